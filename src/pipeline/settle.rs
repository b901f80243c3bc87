//! Stage 6: the delivery leaves the queue, one way or another.
//!
//! Invariant: a copy or a dead letter is confirmed by the broker before the original is acknowledged. What cannot be
//! settled is dropped unacknowledged, and comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use lapin::types::AMQPValue;
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use uuid::Uuid;

use super::{
    Carried, Halt, Pipeline,
    letter::Letter,
    settlement::{Delay, Settlement},
    traced,
};
use crate::{
    broker::{
        Delivery, Outgoing,
        delivery::{COPY, CRASHES, DOUBTFUL, OVER, PENDING, PUBLISHED_AT, TEMPLATE_VERSION, TRY},
        topology,
    },
    email::Lane,
    faults::{self, Point},
    journal,
    store::{Store, StoreError, journal::Entry},
};

/// Longest pause between two tries to publish.
const PUBLISH_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What the store hears once the broker has confirmed a copy or letter.
#[derive(Debug, Clone, Copy)]
enum Note {
    Retry { request_id: Uuid, generation: i32, copy_no: i32 },
    Dead { request_id: Uuid, generation: i32 },
}

impl Note {
    async fn tell(self, store: &Store, lane: Lane) -> Result<(), StoreError> {
        match self {
            Self::Retry { request_id, generation, copy_no } => {
                store.settled_retry(lane, request_id, generation, copy_no).await
            }
            Self::Dead { request_id, generation } => store.settled_dead(lane, request_id, generation).await,
        }
    }
}

impl Pipeline {
    /// `counted`: the key under which crashes of this message were counted, if they were and are to be forgotten.
    pub(super) async fn settle(&self, delivery: Delivery, carried: Carried, counted: Option<[u8; 32]>) {
        let lane = delivery.envelope.lane;
        let Carried { settlement, afterwards, is_counted: _ } = carried;
        settlement.tell(&delivery.span);
        let (failures, afterwards): (Vec<Entry>, Vec<Entry>) = afterwards
            .into_iter()
            .partition(|entry| entry.owes_a_letter() && matches!(settlement, Settlement::Delayed(_)));
        // While a copy waits for the others, the letter about these is still owed. Their entries come before the copy, which
        // says that they have failed and nothing else of them: without the entries nobody could ever write the letter.
        for entry in &failures {
            if !Box::pin(self.publish_patiently(lane, &journal::outgoing(entry, &[]))).await {
                return;
            }
        }
        let mut is_ready_to_ack = match &settlement {
            Settlement::Ack(label) => {
                self.metrics.settled(lane, label);
                tracing::debug!(settlement = label, "acknowledged");
                true
            }
            Settlement::Abandoned => {
                self.metrics.settled(lane, "abandoned");
                return;
            }
            Settlement::HandBack => {
                self.metrics.settled(lane, "handed_back");
                // What has ended is told at once; its copy or letter is still owed, and the entry says so.
                for entry in &afterwards {
                    Box::pin(self.publish_patiently(lane, &journal::outgoing(entry, &[]))).await;
                }
                if let Err(error) = delivery.requeue().await {
                    tracing::debug!(%error, "could not hand the message back");
                }
                return;
            }
            Settlement::Reroute(target) => {
                self.metrics.settled(lane, "rerouted");
                let outgoing = self.copy(&delivery, topology::lane_queue(*target), &[]);
                Box::pin(self.publish_copy(&delivery, &outgoing)).await
            }
            Settlement::Delayed(delay) => {
                self.metrics.settled(lane, "delayed");
                Box::pin(self.delay(&delivery, delay)).await
            }
            // The last of its kind is decided where the message is known.
            Settlement::AfterCrash { .. } | Settlement::Crashed(_) => {
                self.metrics.settled(lane, "crashed");
                let crashes = match &settlement {
                    Settlement::AfterCrash { crashes } => *crashes,
                    _ => delivery.envelope.crashes + 1,
                };
                let rung = self.topology.rung(lane, Duration::ZERO);
                let extra = [(CRASHES, AMQPValue::LongInt(crashes))];
                let outgoing = self.copy(&delivery, topology::retry_queue(lane, rung), &extra);
                self.publish_copy(&delivery, &outgoing).await
            }
            Settlement::Dead(letter) => {
                self.metrics.settled(lane, "dead_lettered");
                self.metrics.dead(lane, self.template_of_letter(letter).as_deref().unwrap_or("unknown"), letter.reason);
                tracing::warn!(reason = letter.reason.name(), "dead-lettered");
                Box::pin(self.bury(&delivery, letter)).await
            }
        };
        for entry in &afterwards {
            let settled = journal::outgoing(&entry.settled(), &[]);
            is_ready_to_ack = is_ready_to_ack && self.publish_patiently(lane, &settled).await;
        }
        if !is_ready_to_ack {
            // The daemon stops: dropped unacknowledged, the broker delivers it again, to a daemon that can settle it.
            return;
        }
        if let Some(key) = counted {
            // Before the message is gone: afterwards nobody would come back to do it.
            self.forget_suspicion(lane, &key).await;
        }
        faults::reached(Point::AckDue);
        let step = delivery.span.make(|| traced::ack(&delivery));
        if let Err(error) = delivery.ack().await {
            step.fail("channel_gone");
            tracing::info!(%error, "not acknowledged; the redelivery will be recognised");
        }
        drop(step);
        faults::reached(Point::Acked);
    }

    async fn delay(&self, delivery: &Delivery, delay: &Delay) -> bool {
        let lane = delivery.envelope.lane;
        let rung = self.topology.rung(lane, delay.due_in);
        let mut extra = vec![
            (COPY, AMQPValue::LongInt(delay.copy_no)),
            (DOUBTFUL, AMQPValue::Boolean(delay.is_doubtful)),
            (PENDING, AMQPValue::LongString(delay.pending.as_str().into())),
        ];
        if let Some(over) = &delay.over {
            extra.push((OVER, AMQPValue::LongString(over.as_str().into())));
        }
        if let Some(version) = delay.template_version {
            extra.push((TEMPLATE_VERSION, AMQPValue::LongInt(version)));
        }
        let outgoing = self.copy(delivery, topology::retry_queue(lane, rung), &extra);
        if !self.publish_copy(delivery, &outgoing).await {
            return false;
        }
        let generation = delivery.envelope.generation;
        let note = Note::Retry { request_id: delay.request_id, generation, copy_no: delay.copy_no };
        !delay.supersedes || self.note_settled(lane, note).await
    }

    /// Notes in the store that the broker has confirmed a copy or letter. The fast lane does not wait for a database that is
    /// away; it is told when it is back, or by the journal.
    async fn note_settled(&self, lane: Lane, note: Note) -> bool {
        if lane != Lane::Fast {
            return self.persistently(|| note.tell(&self.store, lane)).await.is_some();
        }
        if self.store.is_up()
            && matches!(self.patiently(|| note.tell(&self.store, lane)).await, Ok(()) | Err(Halt::Refused(_)))
        {
            return true;
        }
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            loop {
                store.wait_until_back().await;
                match note.tell(&store, lane).await {
                    Err(error) if error.is_away() => store.note_away(&error),
                    Err(StoreError::Repeat(_)) => {}
                    Ok(()) | Err(_) => return,
                }
            }
        });
        true
    }

    async fn bury(&self, delivery: &Delivery, letter: &Letter) -> bool {
        let lane = delivery.envelope.lane;
        let extra = self.letter_headers(delivery, letter).await;
        let borrowed: Vec<(&str, AMQPValue)> = extra.iter().map(|(name, value)| (*name, value.clone())).collect();
        let mut outgoing = self.copy(delivery, String::new(), &borrowed);
        outgoing.exchange = topology::DEAD.to_owned();
        outgoing.routing_key.clone_from(&delivery.envelope.routing_key);
        if !self.publish_copy(delivery, &outgoing).await {
            return false;
        }
        match &letter.about {
            Some(about) if letter.has_rows => {
                let generation = delivery.envelope.generation;
                self.note_settled(lane, Note::Dead { request_id: about.id, generation }).await
            }
            Some(_) | None => true,
        }
    }

    fn copy(&self, delivery: &Delivery, queue: String, extra: &[(&str, AMQPValue)]) -> Outgoing {
        let mut extra = extra.to_vec();
        if delivery.envelope.published_at.is_none() {
            // First seen now: later copies must not look younger.
            extra.push((PUBLISHED_AT, AMQPValue::LongLongInt(Utc::now().timestamp_millis())));
        }
        if let Some(this_try) = delivery.span.traceparent() {
            extra.push((TRY, AMQPValue::LongString(this_try.into())));
        }
        Outgoing {
            exchange: String::new(),
            routing_key: queue,
            properties: delivery.original.copy_properties(&extra),
            body: delivery.body.clone(),
        }
    }

    /// Publishes a copy or letter of this delivery for as long as it takes. False: the daemon stops first.
    async fn publish_copy(&self, delivery: &Delivery, outgoing: &Outgoing) -> bool {
        let step = delivery.span.make(|| traced::publish(outgoing));
        let began = Instant::now();
        let published = self.publish_patiently(delivery.envelope.lane, outgoing).await;
        if published {
            self.metrics.published(traced::destination(outgoing), began.elapsed());
        } else {
            step.fail("stopped");
        }
        published
    }

    /// Publishes for as long as it takes. False: the daemon stops first.
    pub(super) async fn publish_patiently(&self, lane: Lane, outgoing: &Outgoing) -> bool {
        faults::reached(Point::CopyDue);
        let mut pauses = ExponentialBackoff::from_millis(2).factor(50).max_delay(PUBLISH_PAUSE_MAX).map(jitter);
        loop {
            let published = tokio::select! {
                published = self.publishers.get(lane).publish(outgoing) => published,
                // A publish that has begun is finished if the broker is there; a broker that is away is not waited for.
                () = self.stopped_for(Duration::from_secs(5)) => return false,
            };
            let Err(error) = published else {
                faults::reached(Point::CopyConfirmed);
                return true;
            };
            tracing::warn!(%error, to = outgoing.routing_key, "could not publish; trying again");
            if error.is_missing_object() {
                // Somebody has deleted the queue; no consumer of ours notices when it is one where mails only wait.
                tokio::select! {
                    () = self.stop.cancelled() => return false,
                    restored = self.publishers.get(lane).restore(&self.topology, outgoing, &error) => {
                        if let Err(error) = restored {
                            tracing::error!(%error, "a queue is gone and could not be declared again");
                        }
                    }
                }
            }
            let pause = pauses.next().unwrap_or(PUBLISH_PAUSE_MAX);
            tokio::select! { () = self.stop.cancelled() => return false, () = tokio::time::sleep(pause) => {} }
        }
    }

    async fn stopped_for(&self, long: Duration) {
        self.stop.cancelled().await;
        tokio::time::sleep(long).await;
    }
}
