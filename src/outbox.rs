//! The outbox: events that were written with their outcomes, on their way to `email.events`.
//!
//! Each daemon takes what is there in batches, and publishes it in the order of the rows; what the broker confirmed is deleted.
//! Several daemons share the work, so between them there is no order.
//!
//! Invariant: a row is deleted after the broker has confirmed its event, or has said that nobody is bound to its key.
//! Invariant: an event that is published again, after a crash or an answer that was lost, has the same id.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use lapin::BasicProperties;
use prost::Message;
use serde_json::Value;
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    broker::{BrokerError, Outgoing, PipelinedPublisher, topology},
    email::Status,
    faults::{self, Point},
    metrics::Metrics,
    store::{
        Store, StoreError,
        outbox::{EventDetails, OutboxReader, OutboxRow, Taken},
    },
    wire,
};

/// Events of one batch.
const BATCH_MAX: i64 = 1000;
/// Events of one key whose mails are looked up at once: each may bring a producer's metadata of many kilobytes.
const DETAILS_MAX: usize = 100;
/// Between two batches that were not full: what comes meanwhile shares the next one's cost.
const GATHER: Duration = Duration::from_millis(75);
/// How often the outbox is looked at unasked: other daemons and commands write to it as well.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Longest publication of a batch; a broker that holds up its publishers (memory or disk alarm) exceeds it.
const PUBLISH_MAX: Duration = Duration::from_secs(30);
/// Longest routing key (AMQP 0-9-1 shortstr).
const KEY_BYTES_MAX: usize = 255;
/// Longest pause while broker or database are away.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long the last events may take when the daemon stops; what is left is the next daemon's.
const LAST_MAX: Duration = Duration::from_secs(3);
/// Event ids are UUIDs version 5 below this one.
const EVENT_NAMESPACE: Uuid = Uuid::from_u128(0x3d5f_9b7e_52a1_4c86_8f0e_6a4b_19c7_d230);

/// What an event may tell of beside the statuses of a mail.
const KINDS_BESIDE: [&str; 3] = ["deferred", "replayed", "unrouted"];

/// Every kind of event: the second word of its routing key.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    Status::ALL.iter().map(|status| status.name()).chain(KINDS_BESIDE)
}

/// Why a batch was not carried.
#[derive(Debug, thiserror::Error)]
enum OutboxError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Carries events from the database to the broker.
pub struct Outbox {
    store: Arc<Store>,
    publisher: PipelinedPublisher,
    metrics: Arc<Metrics>,
    /// Kept between batches.
    reader: Option<OutboxReader>,
}

impl Outbox {
    /// From this database to this broker.
    #[must_use]
    pub const fn new(store: Arc<Store>, publisher: PipelinedPublisher, metrics: Arc<Metrics>) -> Self {
        Self { store, publisher, metrics, reader: None }
    }

    /// Publishes until `stop`, and then what is there once more if the broker answers.
    pub async fn keep(mut self, stop: CancellationToken) {
        let carrying = async {
            self.carry_until(&stop).await;
            self.carry_the_last().await;
        };
        let patience = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_MAX).await;
        };
        tokio::select! {
            () = carrying => {}
            () = patience => tracing::info!("events are left in the outbox: the next daemon publishes them"),
        }
    }

    async fn carry_until(&mut self, stop: &CancellationToken) {
        let mut pauses = pauses();
        // While the broker is away nothing is taken. A batch in hand is finished also when the daemon stops: it is on the wire.
        while stop.run_until_cancelled(self.publisher_ready()).await.is_some() {
            let waiting = match self.carry_batch().await {
                Ok(Carried::Full) => {
                    pauses = self::pauses();
                    continue;
                }
                Ok(Carried::All) => {
                    pauses = self::pauses();
                    stop.run_until_cancelled(self.until_written()).await
                }
                Err(error) => {
                    tracing::warn!(%error, "events could not be published; they wait in the outbox");
                    let pause = pauses.next().unwrap_or(PAUSE_MAX);
                    stop.run_until_cancelled(self.until_back(pause)).await
                }
            };
            if waiting.is_none() {
                break;
            }
        }
    }

    async fn until_written(&self) {
        tokio::time::sleep(GATHER).await;
        // Nobody rings for what others have written.
        drop(tokio::time::timeout(LOOK_EVERY, self.store.outbox_written()).await);
    }

    async fn until_back(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
        self.store.wait_until_back().await;
    }

    async fn carry_the_last(&mut self) {
        let carrying = async {
            self.publisher.open().await?;
            while let Carried::Full = self.carry_batch().await? {}
            Ok::<(), OutboxError>(())
        };
        if let Err(error) = carrying.await {
            tracing::info!(%error, "events may be left in the outbox: the next daemon publishes them");
        }
        if let Some(reader) = self.reader.take() {
            reader.close().await;
        }
    }

    /// Waits for the broker as long as it takes; what waits with it is seen in the metrics.
    async fn publisher_ready(&mut self) {
        let Self { store, publisher, metrics, .. } = self;
        let mut pauses = pauses();
        let opening = async {
            while let Err(error) = publisher.open().await {
                tracing::warn!(%error, "cannot publish events yet");
                tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
            }
        };
        let watching = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                if let Ok(since) = store.oldest_event().await {
                    metrics.events_waiting_since(since);
                }
            }
        };
        tokio::select! { () = opening => {}, () = watching => {} }
    }

    async fn carry_batch(&mut self) -> Result<Carried, OutboxError> {
        // Only one that did its work to the end is used again.
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.store.open_outbox().await?,
        };
        let mut taken = reader.take(BATCH_MAX).await?;
        let rows = std::mem::take(&mut taken.rows);
        self.metrics.events_waiting_since(rows.first().map(|row| row.created_at));
        if rows.is_empty() {
            taken.finish(&[]).await?;
        } else {
            let mut tally = Tally::default();
            let publishing = publish(&mut self.publisher, &mut taken, &rows, &mut tally);
            let limit = BrokerError::TimedOut { limit: PUBLISH_MAX, doing: "publishing events" };
            let published = tokio::time::timeout(PUBLISH_MAX, publishing).await.unwrap_or(Err(limit.into()));
            match &published {
                Ok(()) => faults::reached(Point::EventsConfirmed),
                Err(_) => self.publisher.reset(),
            }
            // What the broker has confirmed so far need not be repeated, whatever became of the rest.
            taken.finish(&tally.done).await?;
            self.metrics.events(tally.done.len() - tally.unbound, tally.unbound);
            self.restore_if_missing(&published).await?;
            published?;
        }
        self.reader = Some(reader);
        let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= BATCH_MAX);
        if !is_full {
            self.metrics.events_waiting_since(None);
        }
        Ok(if is_full { Carried::Full } else { Carried::All })
    }

    async fn restore_if_missing(&self, published: &Result<(), OutboxError>) -> Result<(), OutboxError> {
        if let Err(OutboxError::Broker(error)) = published
            && error.is_missing_object()
        {
            tracing::warn!(%error, "the exchange of events is missing");
            self.publisher.restore(topology::EVENTS).await?;
        }
        Ok(())
    }
}

/// What a batch found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// As many as a batch may hold: there are probably more.
    Full,
    /// All that there was.
    All,
}

/// Rows that need nothing more.
#[derive(Debug, Default)]
struct Tally {
    done: Vec<i64>,
    /// Of them, those that nobody is bound to hear of.
    unbound: usize,
}

/// The rows of one routing key.
#[derive(Default)]
struct OfKey<'a> {
    rows: Vec<&'a OutboxRow>,
    /// How many of them have been dealt with.
    passed: usize,
    /// Whether a queue is bound to the key; nothing: not known yet.
    is_bound: Option<bool>,
    details: HashMap<Uuid, EventDetails>,
    /// How many of the rows have had their details looked up.
    covered: usize,
}

impl OfKey<'_> {
    /// The event of the next row.
    async fn next_event(&mut self, taken: &mut Taken<'_>) -> Result<wire::EmailEvent, StoreError> {
        if self.passed == self.covered {
            // Before it is known that anybody hears of it, only what tells that is worth a look.
            let most = if self.is_bound.is_some() { DETAILS_MAX } else { 1 };
            let end = self.rows.len().min(self.passed + most);
            let rows = &self.rows[self.passed..end];
            let messages: Vec<Uuid> = rows.iter().filter_map(|row| row.message_id).collect();
            let letters: Vec<Uuid> = rows.iter().filter_map(|row| row.dead_letter_id).collect();
            self.details = taken.details(&messages, &letters).await?;
            self.covered = end;
        }
        let row = self.rows[self.passed];
        let details = row.message_id.or(row.dead_letter_id).and_then(|id| self.details.get(&id));
        Ok(event(row, details))
    }
}

/// Publishes rows in their order. The first event of each key goes alone and tells whether anybody is bound to it; if nobody is,
/// the others of that key are as good as dropped: they happened before that, and the exchange would do the same.
async fn publish(
    publisher: &mut PipelinedPublisher,
    taken: &mut Taken<'_>,
    rows: &[OutboxRow],
    tally: &mut Tally,
) -> Result<(), OutboxError> {
    let keys: Vec<String> = rows.iter().map(|row| format!("{}.{}", row.source, row.kind)).collect();
    let mut by_key: HashMap<&str, OfKey<'_>> = HashMap::new();
    for (row, key) in rows.iter().zip(&keys) {
        by_key.entry(key).or_default().rows.push(row);
    }
    for (row, key) in rows.iter().zip(&keys) {
        if key.len() > KEY_BYTES_MAX {
            // The broker could never take it, and everything behind it would wait for ever.
            tracing::error!(outbox.id = row.id, "an event's routing key is longer than {KEY_BYTES_MAX} bytes: dropped");
            tally.done.push(row.id);
            tally.unbound += 1;
            continue;
        }
        let Some(of_key) = by_key.get_mut(key.as_str()) else { continue };
        match of_key.is_bound {
            Some(true) => {
                let event = of_key.next_event(taken).await?;
                publisher.push(row.id, &outgoing(&event, key), &mut tally.done).await?;
            }
            Some(false) => {
                tally.done.push(row.id);
                tally.unbound += 1;
            }
            None => {
                let event = of_key.next_event(taken).await?;
                let is_bound = publisher.probe(&outgoing(&event, key), &mut tally.done).await?;
                tally.done.push(row.id);
                tally.unbound += usize::from(!is_bound);
                of_key.is_bound = Some(is_bound);
            }
        }
        of_key.passed += 1;
    }
    Ok(publisher.settle(&mut tally.done).await?)
}

fn outgoing(event: &wire::EmailEvent, key: &str) -> Outgoing {
    let at = event.occurred_at.as_ref().map_or(0, |at| at.seconds);
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(wire::PROTOBUF.into())
        .with_type(wire::EVENT_TYPE.into())
        .with_message_id(event.event_id.as_str().into())
        .with_timestamp(u64::try_from(at).unwrap_or_default());
    let body = Bytes::from(event.encode_to_vec());
    Outgoing { exchange: topology::EVENTS.to_owned(), routing_key: key.to_owned(), properties, body }
}

fn event(row: &OutboxRow, details: Option<&EventDetails>) -> wire::EmailEvent {
    let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let metadata = row.metadata.as_ref().or(details.and_then(|details| details.metadata.as_ref()));
    wire::EmailEvent {
        event_id: event_id(row).to_string(),
        request_id: text(row.request_id),
        message_id: text(row.message_id),
        source: row.source.clone(),
        template_key: details.and_then(|details| details.template_key.clone()).unwrap_or_default(),
        kind: row.kind.clone(),
        recipient: details.and_then(|details| details.recipient.clone()).unwrap_or_default(),
        occurred_at: Some(wire::Timestamp {
            seconds: row.occurred_at.timestamp(),
            nanos: i32::try_from(row.occurred_at.timestamp_subsec_nanos()).unwrap_or_default(),
        }),
        reason: row.reason.clone().unwrap_or_default(),
        attempt: u32::try_from(row.attempt).unwrap_or_default(),
        metadata: metadata.and_then(Value::as_object).into_iter().flatten().filter_map(entry).collect(),
    }
}

fn entry((name, value): (&String, &Value)) -> Option<(String, String)> {
    Some((name.clone(), value.as_str()?.to_owned()))
}

/// The same for the same row, however often it is published; another one for a row of another database, whose numbers begin
/// at 1 as well.
fn event_id(row: &OutboxRow) -> Uuid {
    let subject = row.message_id.or(row.dead_letter_id).unwrap_or_default();
    let mut name = [0; 32];
    name[..8].copy_from_slice(&row.id.to_be_bytes());
    name[8..24].copy_from_slice(subject.as_bytes());
    name[24..].copy_from_slice(&row.occurred_at.timestamp_micros().to_be_bytes());
    Uuid::new_v5(&EVENT_NAMESPACE, &name)
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBackoff::from_millis(2).factor(50).max_delay(PAUSE_MAX).map(jitter)
}

#[cfg(test)]
mod tests {
    use chrono::{TimeZone, Utc};

    use super::*;

    fn row(id: i64, message_id: u128) -> OutboxRow {
        OutboxRow {
            id,
            source: "support".to_owned(),
            kind: "sent".to_owned(),
            message_id: Some(Uuid::from_u128(message_id)),
            request_id: Some(Uuid::from_u128(2)),
            attempt: 3,
            reason: None,
            occurred_at: Utc.timestamp_opt(1_764_000_000, 5_000).single().expect("a time"),
            created_at: Utc.timestamp_opt(1_764_000_009, 0).single().expect("a time"),
            dead_letter_id: None,
            metadata: None,
        }
    }

    #[test]
    fn an_event_has_the_same_id_however_often_it_is_made_and_no_two_have_one() {
        assert_eq!(event_id(&row(1, 1)), event_id(&row(1, 1)));
        assert_ne!(event_id(&row(1, 1)), event_id(&row(2, 1)));
        assert_ne!(event_id(&row(1, 1)), event_id(&row(1, 2)), "of another database");
    }

    #[test]
    fn an_event_of_a_mail_that_is_gone_says_what_its_row_says() {
        let told = event(&row(1, 1), None);
        assert_eq!((told.kind.as_str(), told.attempt, told.recipient.as_str()), ("sent", 3, ""));
        assert_eq!(told.occurred_at.map(|at| (at.seconds, at.nanos)), Some((1_764_000_000, 5_000)));
    }

    #[test]
    fn kinds_are_named_once() {
        let all: Vec<_> = kinds().collect();
        assert!(all.iter().enumerate().all(|(at, kind)| !all[..at].contains(kind)), "{all:?}");
    }
}
