//! The archivist: moves what arrives in `email.dead` and `email.unrouted` into `dead_letters` rows.
//!
//! Operators work on the rows, so looking at dead letters destroys nothing and the queues fill only while the database is
//! away.
//! Invariant: a letter is acknowledged after its row is committed, and archived once however often it arrives.
//! Invariant: a letter whose reader died is archived unread. One that only came back, because a consumer changed its window or a
//! connection was lost, is read like any other: who reads one that came back leaves a mark until it has.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, TimeZone, Utc};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    broker::{Delivery, dead_letter as h, delivery::GENERATION, topology},
    email::Reason,
    store::{
        Store, StoreError,
        dead::{NewDeadLetter, Unrouted},
    },
    wire,
};

/// Source of an event about a request that names none.
const NOBODY: &str = "unknown";
/// Metadata that an event about a request echoes whose limits nobody has checked; what is larger is left out.
const METADATA_BYTES_MAX: usize = 64 * 1024;

/// Archives one delivery. While the database is away it stays in its queue.
pub async fn archive(store: Arc<Store>, delivery: Delivery, queue: &'static str) {
    let suspect = suspect(&delivery);
    let request = loop {
        match request_of(&store, &delivery, suspect.as_ref()).await {
            Ok(request) => break request,
            Err(StoreError::Repeat(_)) => {}
            Err(error) => return hand_back(&store, delivery, &error).await,
        }
    };
    let mut letter = letter_of(&delivery, queue, request.as_ref());
    let mut is_bare = false;
    loop {
        match store.archive_dead(&letter).await {
            Ok(()) => break,
            Err(error @ StoreError::Data { .. }) if !is_bare => {
                // Something beside the message cannot be stored. The message itself always can.
                tracing::warn!(%error, "archiving a dead letter without its headers");
                letter = bare(letter);
                is_bare = true;
            }
            Err(error @ StoreError::Data { .. }) => {
                // Nothing of it may be lost because of one odd header: it stays where it is, and somebody must look.
                tracing::error!(%error, "a dead letter cannot be archived; it stays in its queue");
                return;
            }
            Err(StoreError::Repeat(_)) => {}
            Err(error) => return hand_back(&store, delivery, &error).await,
        }
    }
    if let Some(key) = suspect
        && let Err(error) = store.forget_crashes(delivery.envelope.lane, &key).await
    {
        tracing::debug!(%error, "a mark of an archived letter stays until its retention ends");
    }
    if let Err(error) = delivery.ack().await {
        tracing::info!(%error, "an archived letter was not acknowledged; it will be recognised");
    }
}

/// Its consumer pauses with the database, and holds nothing.
async fn hand_back(store: &Arc<Store>, delivery: Delivery, error: &StoreError) {
    store.note_away(error);
    if let Err(error) = delivery.requeue().await {
        tracing::debug!(%error, "could not hand a letter back; the broker does so itself");
    }
}

/// What the crashes of a letter are counted under that came back and may have killed whoever read it. The pipeline has read
/// those that it has put a reason on.
fn suspect(delivery: &Delivery) -> Option<[u8; 32]> {
    let headers = delivery.original.properties.headers();
    let is_read = headers.as_ref().is_some_and(|headers| headers.contains_key(h::REASON));
    (delivery.envelope.redelivered && !is_read).then(|| delivery.crash_key())
}

/// The request in a letter that does not name it, if it can be read without danger.
async fn request_of(
    store: &Store,
    delivery: &Delivery,
    suspect: Option<&[u8; 32]>,
) -> Result<Option<wire::EmailRequest>, StoreError> {
    let headers = delivery.original.headers_as_text();
    let is_poison = headers.get(h::REASON).is_some_and(|reason| reason == Reason::Poison.name());
    if is_poison || headers.contains_key(h::REQUEST_ID) {
        return Ok(None);
    }
    let Some(key) = suspect else { return Ok(readable(delivery)) };
    let (lane, mark) = (delivery.envelope.lane, Uuid::new_v4());
    if store.count_redelivery(lane, key, None).await?.is_some_and(|crashes| crashes.alone > 0) {
        tracing::warn!("archiving a letter unread: whoever read it before has not come to the end");
        return Ok(None);
    }
    store.mark_alone(lane, key, mark).await?;
    let request = readable(delivery);
    loop {
        match store.unmark_alone(lane, mark).await {
            Ok(()) => return Ok(request),
            Err(StoreError::Repeat(_)) => {}
            Err(error) => return Err(error),
        }
    }
}

fn letter_of(delivery: &Delivery, queue: &str, request: Option<&wire::EmailRequest>) -> NewDeadLetter {
    let headers = delivery.original.headers_as_text();
    let header = |name: &str| headers.get(name).cloned();
    let moment = |name: &str| header(name).and_then(|ms| milliseconds(&ms));
    // The pipeline says what it knows; what the broker put here by itself was asked for the rest.
    let reason = header(h::REASON).unwrap_or_else(|| {
        let reason = if queue == topology::UNROUTED { Reason::Unrouted } else { Reason::Broker };
        reason.name().to_owned()
    });
    let error = header(h::ERROR).or_else(|| match queue {
        topology::UNROUTED => {
            Some(format!("no binding of {} matches the routing key; use <source>.<p0|p1|p2|p3>", topology::REQUESTS))
        }
        _ => header("x-first-death-reason").map(|why| format!("put here by the broker: {why}")),
    });
    let given = |text: String| Some(text).filter(|t| !t.is_empty() && t.len() <= 100 && !t.contains('\0'));
    NewDeadLetter {
        // Only the pipeline's own letters are known by an id; a producer's header of that name means nothing.
        settlement_key: header(h::SETTLEMENT_ID)
            .filter(|id| queue == topology::DEAD && header(h::REASON).is_some() && Uuid::parse_str(id).is_ok())
            .unwrap_or_else(|| content_key(delivery)),
        reason: reason.chars().take(40).collect(),
        error: error.map(|e| storable(&e)),
        request_id: header(h::REQUEST_ID)
            .or_else(|| request.map(|r| r.request_id.clone()))
            .and_then(|id| Uuid::parse_str(&id).ok()),
        source: header(h::SOURCE).or_else(|| request.map(|r| r.source.clone())).and_then(given),
        template_key: header(h::TEMPLATE).or_else(|| request.map(|r| r.template_key.clone())).and_then(given),
        lane: header(h::LANE).filter(|lane| lane.len() <= 10),
        attempts: header(h::ATTEMPTS).and_then(|n| n.parse().ok()),
        routing_key: Some(storable(&delivery.envelope.routing_key)),
        first_at: moment(h::FIRST_AT).or(delivery.envelope.published_at),
        last_at: moment(h::LAST_AT),
        generation: header(GENERATION).and_then(|n| n.parse().ok()).unwrap_or(0),
        properties: json!({
            "content_type": delivery.envelope.content_type.as_deref().map(storable),
            "message_id": delivery.envelope.message_id.as_deref().map(storable),
            "type": delivery.original.properties.kind().as_ref().map(|kind| storable(kind.as_str())),
            "priority": delivery.original.properties.priority(),
            "timestamp": delivery.original.properties.timestamp(),
            "exchange": delivery.original.exchange,
            "routing_key": storable(&delivery.original.routing_key),
        }),
        headers: json!(headers),
        body: delivery.body.to_vec(),
        unrouted: (queue == topology::UNROUTED).then(|| unrouted(delivery, request)),
    }
}

/// Longest source that an event's routing key is made of: a key holds 255 bytes.
const SOURCE_BYTES_MAX: usize = 100;

/// What the event of a request says that no queue took. Its routing key may be anything, so the source must be a plain word.
fn unrouted(delivery: &Delivery, request: Option<&wire::EmailRequest>) -> Unrouted {
    let of_key = delivery.envelope.routing_key.split('.').next();
    let is_plain = |word: &&str| {
        (1..=SOURCE_BYTES_MAX).contains(&word.len())
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    let source = request.map(|request| request.source.as_str()).filter(is_plain).or(of_key.filter(is_plain));
    Unrouted {
        source: source.unwrap_or(NOBODY).to_owned(),
        metadata: request.map(|request| &request.metadata).filter(|m| is_echoable(m)).map(|m| json!(m)),
    }
}

fn bare(letter: NewDeadLetter) -> NewDeadLetter {
    NewDeadLetter {
        error: None,
        source: None,
        template_key: None,
        routing_key: None,
        first_at: None,
        last_at: None,
        properties: json!({}),
        headers: json!({}),
        unrouted: letter.unrouted.map(|told| Unrouted { metadata: None, ..told }),
        ..letter
    }
}

fn readable(delivery: &Delivery) -> Option<wire::EmailRequest> {
    match delivery.envelope.content_type.as_deref() {
        Some(wire::JSON) => wire::from_json(&delivery.body).ok(),
        _ => wire::from_protobuf(delivery.body.clone()).ok(),
    }
}

/// Whether metadata that nobody has checked can be kept for an event.
fn is_echoable(metadata: &HashMap<String, String>) -> bool {
    let texts = || metadata.iter().flat_map(|(name, value)| [name, value]);
    texts().all(|text| !text.contains('\0')) && texts().map(String::len).sum::<usize>() <= METADATA_BYTES_MAX
}

/// PostgreSQL stores every character but this one.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

fn content_key(delivery: &Delivery) -> String {
    let mut hash = Sha256::new_with_prefix(&delivery.body);
    for (name, value) in delivery.original.headers_as_text() {
        hash.update(name);
        hash.update(value);
    }
    hex::encode(hash.finalize())
}

fn milliseconds(text: &str) -> Option<DateTime<Utc>> {
    Utc.timestamp_millis_opt(text.parse().ok()?).single()
}
