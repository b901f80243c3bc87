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
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use uuid::Uuid;

use super::{
    Carried, Fate, Halt, Pipeline,
    pending::{Left, Pending, Tries},
    traced,
};
use crate::{
    broker::{
        Delivery, Outgoing, dead_letter as h,
        delivery::{COPY, CRASHES, DOUBTFUL, GENERATION, PENDING, PUBLISHED_AT, TEMPLATE_VERSION, TRY},
        topology,
    },
    email::{self, EmailRequest, Envelope, Lane, PayloadHash, Reason, Status},
    faults::{self, Point},
    journal,
    store::{Store, StoreError},
    telemetry::span::Span,
};

/// Longest pause between two tries to publish.
const PUBLISH_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a message of the fast lane waits that needs a database that is away.
const FOR_STORE: Duration = Duration::from_secs(5);
/// A header holds no more than this of an error or a history: the whole of the headers must fit one AMQP frame.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// How a delivery leaves its queue.
#[derive(Debug)]
pub enum Settlement {
    /// Acknowledged; the word says why, for logs and metrics.
    Ack(&'static str),
    /// Back to the queue: the daemon stops.
    HandBack,
    /// To the lane that its priority asks for.
    Reroute(Lane),
    /// A copy waits, and comes back.
    Delayed(Delay),
    /// A copy waits a little, because a stage panicked.
    AfterCrash {
        /// How often so far.
        crashes: i32,
    },
    /// A dead letter.
    Dead(Box<Letter>),
    /// Dropped unacknowledged: the daemon stops, and its end gives the message back.
    Abandoned,
    /// A stage panicked, with these words: becomes [`Self::AfterCrash`] or a dead letter.
    Crashed(String),
}

/// A copy that waits.
#[derive(Debug, PartialEq, Eq)]
pub struct Delay {
    due_in: Duration,
    request_id: Uuid,
    copy_no: i32,
    /// A new retry was decided: once the copy is confirmed, older ones are duplicates.
    supersedes: bool,
    /// Who is still to get it, for a daemon that cannot ask the database.
    pending: String,
    /// The version that the first claim fixed, likewise.
    template_version: Option<i32>,
    /// Somebody else may have it on the wire, likewise.
    is_doubtful: bool,
}

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

/// What a dead letter says.
#[derive(Debug)]
pub struct Letter {
    reason: Reason,
    error: String,
    attempts: i32,
    about: Option<About>,
    /// Its rows wait to hear that the letter is confirmed.
    has_rows: bool,
    recipients: serde_json::Value,
}

#[derive(Debug)]
struct About {
    id: Uuid,
    payload_hash: PayloadHash,
    source: String,
    template_key: String,
}

impl About {
    fn of(request: &EmailRequest) -> Self {
        Self {
            id: request.id,
            payload_hash: request.payload_hash,
            source: request.source.clone(),
            template_key: request.template_key.clone(),
        }
    }
}

impl Settlement {
    /// A dead letter that has no rows: it is itself the record.
    pub(super) fn unreadable(reason: Reason, error: String) -> Self {
        let recipients = serde_json::Value::Array(Vec::new());
        Self::Dead(Box::new(Letter { reason, error, attempts: 0, about: None, has_rows: false, recipients }))
    }

    /// Names the request in a dead letter.
    pub(super) fn about(mut self, request: &EmailRequest) -> Self {
        if let Self::Dead(letter) = &mut self {
            letter.about = Some(About::of(request));
        }
        self
    }

    /// Names a request in a dead letter whose bytes must not be read.
    pub(super) fn about_unread(mut self, id: Uuid) -> Self {
        if let Self::Dead(letter) = &mut self {
            let (source, template_key) = (String::new(), String::new());
            letter.about = Some(About { id, payload_hash: PayloadHash::UNREAD, source, template_key });
            letter.has_rows = true;
        }
        self
    }

    /// A message of the fast lane that needs the database while that is away: it waits in the ladder, not in our hands, and
    /// comes back as it was.
    pub(super) fn for_store(envelope: &Envelope) -> Self {
        Self::Delayed(Delay {
            due_in: FOR_STORE,
            request_id: Uuid::nil(),
            copy_no: envelope.copy_no,
            supersedes: false,
            pending: envelope.pending.clone().unwrap_or_default(),
            template_version: envelope.template_version,
            is_doubtful: envelope.redelivered || envelope.is_doubtful,
        })
    }

    /// What a trace says of it.
    fn tell(&self, span: &Span) {
        match self {
            Self::Dead(letter) => {
                span.set("email.settlement", "dead_lettered");
                span.fail(letter.reason.name());
            }
            Self::AfterCrash { .. } | Self::Crashed(_) => {
                span.set("email.settlement", "crashed");
                span.fail("crashed");
            }
            Self::Ack(label) => span.set("email.settlement", *label),
            Self::HandBack => span.set("email.settlement", "handed_back"),
            Self::Abandoned => span.set("email.settlement", "abandoned"),
            Self::Reroute(_) => span.set("email.settlement", "rerouted"),
            Self::Delayed(_) => span.set("email.settlement", "delayed"),
        }
    }

    /// The same id came with another payload.
    pub(super) fn conflict(request: &EmailRequest, first: PayloadHash) -> Self {
        let error =
            format!("request_id was used before with another payload: first {first}, now {}", request.payload_hash);
        Self::unreadable(Reason::IdempotencyConflict, error).about(request)
    }

    /// Whether something came of the message. A copy that only waits, because somebody else has it or it is not due, is the
    /// same message still.
    pub(super) const fn is_progress(&self) -> bool {
        match self {
            Self::Ack(_) | Self::Dead(_) => true,
            Self::Delayed(delay) => delay.supersedes,
            Self::HandBack | Self::Abandoned | Self::Reroute(_) | Self::AfterCrash { .. } | Self::Crashed(_) => false,
        }
    }

    /// What the recipients' fates come to: while any is pending, a copy waits; then one dead letter; else an ack.
    /// `hashes` and the version are what a copy tells a daemon that cannot ask the database.
    pub(super) fn of(
        fates: &[Fate],
        hashes: &[&[u8; 32]],
        copy_no: i32,
        template_version: Option<i32>,
        request: &EmailRequest,
    ) -> Self {
        if fates.contains(&Fate::Unwritten) {
            return Self::Abandoned;
        }
        if fates.contains(&Fate::HandBack) {
            return Self::HandBack;
        }
        if let Some(words) =
            fates.iter().find_map(|fate| if let Fate::Crashed(words) = fate { Some(words) } else { None })
        {
            return Self::Crashed(words.clone());
        }
        let pending = fates.iter().filter_map(|fate| match fate {
            Fate::Retry(due_in, _) => Some((*due_in, true)),
            Fate::Wait(due_in, _) => Some((*due_in, false)),
            Fate::Busy(_) => Some((Duration::ZERO, false)),
            Fate::Owed(_) => Some((FOR_STORE, false)),
            Fate::Over(_)
            | Fate::Duplicate
            | Fate::Dead { .. }
            | Fate::Crashed(_)
            | Fate::HandBack
            | Fate::Unwritten => None,
        });
        let supersedes = pending.clone().any(|(_, new)| new);
        if let Some(due_in) = pending.map(|(due_in, _)| due_in).min() {
            return Self::Delayed(Delay {
                due_in,
                request_id: request.id,
                copy_no: copy_no + i32::from(supersedes),
                supersedes,
                pending: Pending::write(fates.iter().zip(hashes).filter_map(|(fate, hash)| Some((*hash, left(fate)?)))),
                template_version,
                is_doubtful: fates.iter().any(|fate| matches!(fate, Fate::Busy(_))),
            });
        }
        let mut dead = fates.iter().filter_map(|fate| match fate {
            Fate::Dead { recipient, reason, error, attempts } => Some((recipient, *reason, error, *attempts)),
            Fate::Over(_)
            | Fate::Duplicate
            | Fate::Retry(..)
            | Fate::Wait(..)
            | Fate::Busy(_)
            | Fate::Owed(_)
            | Fate::Crashed(_)
            | Fate::HandBack
            | Fate::Unwritten => None,
        });
        let Some((_, reason, error, attempts)) = dead.clone().max_by_key(|(_, reason, ..)| weight(*reason)) else {
            return Self::Ack(label(fates));
        };
        let recipients = dead.by_ref().map(|(address, reason, error, attempts)| {
            json!({"address": address, "reason": reason.name(), "error": error, "attempts": attempts})
        });
        let recipients = serde_json::Value::Array(fitting(recipients));
        Self::Dead(Box::new(Letter {
            reason,
            error: error.clone(),
            attempts,
            about: Some(About::of(request)),
            has_rows: true,
            recipients,
        }))
    }
}

/// What a copy says of a recipient; nothing: it is over.
const fn left(fate: &Fate) -> Option<Left> {
    match fate {
        Fate::Retry(_, tries) | Fate::Wait(_, tries) | Fate::Busy(tries) => Some(Left::Pending(*tries)),
        Fate::Dead { attempts, .. } => Some(Left::Owed(Tries { attempts: *attempts, deferrals: 0 })),
        Fate::Owed(tries) => Some(Left::Owed(*tries)),
        Fate::Over(_) | Fate::Duplicate | Fate::Crashed(_) | Fate::HandBack | Fate::Unwritten => None,
    }
}

/// Which reason a letter about several recipients is filed under: what may have been delivered asks for most care.
const fn weight(reason: Reason) -> u8 {
    match reason {
        Reason::OutcomeUnknown => 2,
        Reason::BadAddress => 0,
        _ => 1,
    }
}

fn label(fates: &[Fate]) -> &'static str {
    let has = |status| fates.contains(&Fate::Over(status));
    if has(Status::Sent) {
        "sent"
    } else if has(Status::Suppressed) {
        "suppressed"
    } else if has(Status::Expired) {
        "expired"
    } else if has(Status::RateLimited) {
        "rate_limited"
    } else {
        "duplicate"
    }
}

impl Pipeline {
    /// `counted`: the key under which crashes of this message were counted, if they were and are to be forgotten.
    pub(super) async fn settle(&self, delivery: Delivery, carried: Carried, counted: Option<[u8; 32]>) {
        let lane = delivery.envelope.lane;
        let Carried { settlement, afterwards, is_counted: _ } = carried;
        settlement.tell(&delivery.span);
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

    async fn letter_headers(&self, delivery: &Delivery, letter: &Letter) -> Vec<(&'static str, AMQPValue)> {
        let text = |value: &str| AMQPValue::LongString(cut(value).into());
        let envelope = &delivery.envelope;
        let now = Utc::now();
        let first_at = envelope.published_at.unwrap_or(now);
        let mut headers = vec![
            (h::REASON, text(letter.reason.name())),
            (h::ERROR, text(&letter.error)),
            (h::ATTEMPTS, AMQPValue::LongInt(letter.attempts)),
            (h::FIRST_AT, AMQPValue::LongLongInt(first_at.timestamp_millis())),
            (h::LAST_AT, AMQPValue::LongLongInt(now.timestamp_millis())),
            (h::LANE, text(envelope.lane.name())),
            (h::SETTLEMENT_ID, text(&settlement_id(delivery, letter).to_string())),
            (h::RECIPIENTS, text(&letter.recipients.to_string())),
            (GENERATION, AMQPValue::LongInt(envelope.generation)),
        ];
        if let Some(about) = &letter.about {
            headers.push((h::REQUEST_ID, text(&about.id.to_string())));
            if !about.source.is_empty() {
                headers.push((h::SOURCE, text(&about.source)));
                headers.push((h::TEMPLATE, text(&about.template_key)));
            }
            if letter.has_rows && self.store.is_up() {
                headers.push((h::HISTORY, text(&self.history(about.id).await)));
            }
        }
        headers
    }

    /// Every try of every recipient, in order. Without a database the letter goes without it.
    async fn history(&self, request_id: Uuid) -> String {
        let lines = self.store.timeline(request_id).await.unwrap_or_default();
        // The latest tries are the telling ones.
        let lines = lines.into_iter().rev().map(|line| {
            json!({
                "message_id": line.message_id, "at": line.at, "kind": line.kind, "attempt": line.attempt,
                "relay": line.relay, "phase": line.phase, "code": line.reply_code, "error": line.error,
            })
        });
        let mut kept = fitting(lines);
        kept.reverse();
        serde_json::Value::Array(kept).to_string()
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

    /// The template that a letter is about, as metrics name it: a key that nobody knows must not make a new series.
    fn template_of_letter(&self, letter: &Letter) -> Option<String> {
        let key = &letter.about.as_ref()?.template_key;
        self.catalogue.active(key).map(|template| template.key().to_owned())
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

/// One failure has one id: request, payload and generation; for what is no request, the bytes and headers.
///
/// What has no rows has no generation that could be raised: there the time of the replay tells one failure from the next.
fn settlement_id(delivery: &Delivery, letter: &Letter) -> Uuid {
    let envelope = &delivery.envelope;
    let mut hash = Sha256::new();
    match (&letter.about, envelope.replayed_at) {
        (Some(about), Some(at)) if !letter.has_rows => {
            hash.update(email::settlement_id(about.id, about.payload_hash, envelope.generation));
            hash.update(at.timestamp_millis().to_be_bytes());
        }
        (Some(about), _) => return email::settlement_id(about.id, about.payload_hash, envelope.generation),
        (None, _) => {
            hash.update(&delivery.body);
            for (name, value) in delivery.original.headers_as_text() {
                hash.update(name);
                hash.update(value);
            }
        }
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &hash.finalize())
}

/// As many of them, from the first, as fit a header together.
fn fitting(lines: impl Iterator<Item = serde_json::Value>) -> Vec<serde_json::Value> {
    let mut left = HEADER_BYTES_MAX - 2;
    lines
        .take_while(|line| {
            let fits = left.checked_sub(line.to_string().len() + 1);
            left = fits.unwrap_or(0);
            fits.is_some()
        })
        .collect()
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(HEADER_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(300);

    fn request() -> EmailRequest {
        EmailRequest {
            id: Uuid::nil(),
            payload_hash: crate::email::PayloadHash([0; 32]),
            source: "billing".into(),
            template_key: "t".into(),
            template_version: None,
            recipients: Vec::new(),
            variables: serde_json::Map::new(),
            attachments: Vec::new(),
            priority: crate::email::Priority::P2,
            locale: None,
            reply_to: None,
            not_before: None,
            expires_at: None,
            metadata: std::collections::BTreeMap::new(),
        }
    }

    /// Any hashes will do.
    fn of(fates: &[Fate], copy_no: i32) -> Settlement {
        let hashes: Vec<[u8; 32]> = (0..fates.len()).map(|n| [u8::try_from(n).unwrap_or(0); 32]).collect();
        Settlement::of(fates, &hashes.iter().collect::<Vec<_>>(), copy_no, Some(3), &request())
    }

    fn dead(reason: Reason) -> Fate {
        Fate::Dead { recipient: "a@example.bj".into(), reason, error: "words".into(), attempts: 1 }
    }

    #[test]
    fn while_anybody_is_pending_one_copy_waits_until_the_earliest_is_due() {
        let tries = Tries { attempts: 1, deferrals: 2 };
        let fates = [
            Fate::Over(Status::Sent),
            Fate::Retry(LATER, tries),
            dead(Reason::Rejected),
            Fate::Wait(SOON, Tries::default()),
        ];
        let Settlement::Delayed(delay) = of(&fates, 4) else { panic!("not delayed") };
        assert_eq!((delay.due_in, delay.copy_no, delay.supersedes), (SOON, 5, true));
        assert_eq!((delay.request_id, delay.template_version), (Uuid::nil(), Some(3)));
        let pending = Pending::read(&delay.pending).expect("it reads back");
        let left: Vec<_> = (0..4).map(|n| pending.left(&[n; 32])).collect();
        let owed = Left::Owed(Tries { attempts: 1, deferrals: 0 });
        let waits = Left::Pending(Tries::default());
        assert_eq!(left, [None, Some(Left::Pending(tries)), Some(owed), Some(waits)], "who is over is not named");
    }

    #[test]
    fn a_copy_that_came_early_waits_again_under_its_own_number() {
        let Settlement::Delayed(delay) = of(&[Fate::Wait(SOON, Tries::default())], 4) else { panic!("not delayed") };
        assert_eq!((delay.copy_no, delay.supersedes), (4, false));
    }

    #[test]
    fn a_letter_whose_words_only_the_rows_know_keeps_a_copy_alive() {
        let tries = Tries { attempts: 1, deferrals: 0 };
        let Settlement::Delayed(delay) = of(&[Fate::Over(Status::Sent), Fate::Owed(tries)], 2) else {
            panic!("the letter would be lost")
        };
        assert_eq!((delay.due_in, delay.copy_no, delay.supersedes), (FOR_STORE, 2, false));
        let pending = Pending::read(&delay.pending).expect("it reads back");
        assert_eq!((pending.left(&[0; 32]), pending.left(&[1; 32])), (None, Some(Left::Owed(tries))));
    }

    #[test]
    fn when_nobody_is_pending_one_letter_names_all_that_failed() {
        let fates = [dead(Reason::BadAddress), Fate::Over(Status::Sent), dead(Reason::OutcomeUnknown)];
        let Settlement::Dead(letter) = of(&fates, 0) else { panic!("not dead") };
        assert_eq!(letter.reason, Reason::OutcomeUnknown);
        assert_eq!(letter.recipients.as_array().map(Vec::len), Some(2));
        assert!(letter.has_rows);
    }

    #[test]
    fn what_is_over_is_acknowledged_and_a_stop_hands_everything_back() {
        let over = [Fate::Duplicate, Fate::Over(Status::Sent)];
        assert!(matches!(of(&over, 0), Settlement::Ack("sent")));
        assert!(matches!(of(&[Fate::Duplicate], 0), Settlement::Ack("duplicate")));
        let stopped = [Fate::Over(Status::Sent), Fate::HandBack, Fate::Retry(SOON, Tries::default())];
        assert!(matches!(of(&stopped, 0), Settlement::HandBack));
        let crashed = [Fate::Retry(SOON, Tries::default()), Fate::Crashed("boom".into())];
        assert!(matches!(of(&crashed, 0), Settlement::Crashed(words) if words == "boom"));
    }

    #[test]
    fn a_letter_about_many_still_fits_its_headers_and_reads_back() {
        let many: Vec<Fate> = (0..100)
            .map(|n| Fate::Dead {
                recipient: format!("person-{n}@example.bj"),
                reason: Reason::Rejected,
                error: "x".repeat(1000),
                attempts: 1,
            })
            .collect();
        let Settlement::Dead(letter) = of(&many, 0) else { panic!("not dead") };
        let header = letter.recipients.to_string();
        assert!(header.len() <= HEADER_BYTES_MAX && header.len() > HEADER_BYTES_MAX - 1200);
    }
}
