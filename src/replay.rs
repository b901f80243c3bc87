//! Replaying dead letters: how one goes on its way again, and what replaying knows of the templates. Command line, API and pages
//! replay in runs ([`run`]).
//!
//! One letter goes on its way again like this: one transaction decides and commits ([`Store::begin_replay`]), then the copy is
//! published and confirmed, then the letter says `replayed`. Cut off anywhere, the next replay of it publishes the same copy
//! again, and whoever gets it twice recognises the second as a duplicate.
//!
//! Invariant: no copy is published before the commit that its rows, and every older copy, are judged by.
//! Invariant: bodies are read as their letters are sent; a plan reads none.

/// Runs, letter by letter.
pub mod run;

use std::{collections::HashMap, panic::AssertUnwindSafe, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    broker::{
        BrokerError, Outgoing, Publisher, dead_letter,
        delivery::{
            COPY, CRASHES, DOUBTFUL, GENERATION, GIVEN_UP, OVER, PENDING, PUBLISHED_AT, REPLAYED_AT, ROUTING_KEY,
            TEMPLATE_VERSION, TRY, is_brokers_own,
        },
        topology,
    },
    config::PipelineConfig,
    email::{Envelope, Lane, PayloadHash, Priority, Reason, TemplateKind},
    faults::{self, Point},
    pipeline::decode::decode,
    publish,
    store::{
        MarketingTemplates, Store, StoreError,
        replay::{Begun, LetterContent, ReplayCopy, ReplayRules, Skip},
    },
    templates::{TemplateSource, parse_manifest},
    wire,
};

/// What retry copies say of themselves and of those who still wait, and what their first claim has fixed.
const OF_RETRY_COPIES: [&str; 5] = [COPY, DOUBTFUL, OVER, PENDING, TEMPLATE_VERSION];

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The broker has not confirmed a copy; the next replay of its letter publishes it again.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// What has become of one letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// Its copy is on its way, confirmed by the broker.
    Published,
    /// It was, by an earlier replay that was cut off.
    Arrived,
    /// Nothing was done.
    Skipped(Skip),
}

/// What replaying needs to know of the active templates.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    active: HashMap<String, i32>,
    marketing: MarketingTemplates,
}

impl Templates {
    /// Reads them.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn load(store: &Store) -> Result<Self, StoreError> {
        let mut all = Self::default();
        for stored in store.active_templates().await? {
            let manifest = serde_json::from_value::<TemplateSource>(stored.source)
                .ok()
                .and_then(|source| parse_manifest(&source.manifest_toml, 1).ok());
            if let Some(manifest) = manifest.filter(|manifest| manifest.kind == TemplateKind::Marketing) {
                all.marketing.insert(stored.key.clone(), manifest.category);
            }
            all.active.insert(stored.key, stored.version);
        }
        Ok(all)
    }

    /// Those for which the whole suppression list counts.
    #[must_use]
    pub const fn marketing(&self) -> &MarketingTemplates {
        &self.marketing
    }

    /// The rules of a replay that knows these templates.
    #[must_use]
    pub fn rules(&self, keep_version: bool, audit_retention: Duration) -> ReplayRules {
        let (marketing, active) = (self.marketing.clone(), self.active.clone());
        ReplayRules { keep_version, audit_retention, marketing, active }
    }
}

/// Sends one letter on its way again; returns when the broker has its copy. That it was replayed is for the caller to note, in
/// the letter and wherever else. Nothing: there is no such letter.
///
/// # Errors
/// When the database or the broker is away. Replaying it again is safe.
pub async fn replay(
    store: &Store,
    publisher: &Publisher,
    id: Uuid,
    reason: Option<Reason>,
    rules: &ReplayRules,
    pipeline: &PipelineConfig,
) -> Result<Option<Replayed>, ReplayError> {
    let read = match reason {
        Some(Reason::Poison) => store.letter_content(id).await?.and_then(|content| read(content, pipeline)),
        _ => None,
    };
    let copy = match store.begin_replay(id, rules, read).await? {
        Begun::Publish(copy) => copy,
        Begun::Arrived => return Ok(Some(Replayed::Arrived)),
        Begun::Skip(skip) => return Ok(Some(Replayed::Skipped(skip))),
        Begun::Unknown => return Ok(None),
    };
    let request = copy.request_id.unwrap_or_default();
    faults::reached_by(Point::ReplayCommitted, request);
    let Some(mut content) = store.letter_content(id).await? else {
        return Ok(Some(Replayed::Skipped(Skip::Anonymised)));
    };
    let body = Bytes::from(std::mem::take(&mut content.body));
    publisher.publish(&outgoing(&copy, &content, body)).await?;
    faults::reached_by(Point::ReplayConfirmed, request);
    Ok(Some(Replayed::Published))
}

/// Reads a message that crashed whoever read it: this version may know better, and here it takes no mail down with it.
fn read(content: LetterContent, rules: &PipelineConfig) -> Option<PayloadHash> {
    let property = |name: &str| content.properties.get(name).and_then(Value::as_str).map(str::to_owned);
    let envelope = Envelope {
        content_type: property("content_type"),
        message_id: property("message_id"),
        published_at: Some(content.first_at),
        ..Envelope::of_nobody(content.routing_key.as_deref().unwrap_or_default())
    };
    let body = Bytes::from(content.body);
    let decoding = AssertUnwindSafe(|| decode(&envelope, &body, rules, Utc::now()));
    let decoded = std::panic::catch_unwind(decoding).ok()?.ok()?;
    Some(decoded.request.payload_hash)
}

/// The copy as it is published: the message as it was, without what its failure and its earlier ways have added.
fn outgoing(copy: &ReplayCopy, content: &LetterContent, body: Bytes) -> Outgoing {
    let lane = copy.lane.unwrap_or_else(|| lane_of(content, &body));
    let mut headers = FieldTable::default();
    for (name, value) in content.headers.as_object().into_iter().flatten() {
        let is_ours = dead_letter::ALL.contains(&name.as_str())
            || [GENERATION, CRASHES, REPLAYED_AT, GIVEN_UP].contains(&name.as_str())
            // Copies count anew in a new generation. A message that goes back as it was is the copy that it was.
            || copy.is_reopened && OF_RETRY_COPIES.contains(&name.as_str());
        // The try that gave up: what comes now begins a trace, and is linked to it.
        let name = if name == TRY { GIVEN_UP } else { name };
        let (false, Some(value), Some(name)) = (is_ours || is_brokers_own(name), value.as_str(), short(name)) else {
            continue;
        };
        // The archive keeps words. Where a number is expected its words are read as well.
        headers.insert(name, AMQPValue::LongString(value.into()));
    }
    let milliseconds = |at: DateTime<Utc>| AMQPValue::LongLongInt(at.timestamp_millis());
    headers.insert(GENERATION.into(), AMQPValue::LongInt(copy.generation));
    headers.insert(REPLAYED_AT.into(), milliseconds(copy.replayed_at));
    if let Some(key) = &content.routing_key {
        headers.insert(ROUTING_KEY.into(), AMQPValue::LongString(key.as_str().into()));
    }
    let given = |name: &str| content.properties.get(name);
    let words = |name: &str| given(name).and_then(Value::as_str).and_then(short);
    let timestamp = given("timestamp").and_then(Value::as_u64);
    if !headers.contains_key(PUBLISHED_AT) && timestamp.is_none() {
        // The producer has not said when: a replay must not make it younger than it is.
        headers.insert(PUBLISHED_AT.into(), milliseconds(content.first_at));
    }
    let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    if let Some(content_type) = words("content_type") {
        properties = properties.with_content_type(content_type);
    }
    if let Some(kind) = words("type") {
        properties = properties.with_type(kind);
    }
    if let Some(id) = words("message_id") {
        properties = properties.with_message_id(id);
    }
    if let Some(priority) = given("priority").and_then(Value::as_u64).and_then(|p| u8::try_from(p).ok()) {
        properties = properties.with_priority(priority);
    }
    if let Some(seconds) = timestamp {
        properties = properties.with_timestamp(seconds);
    }
    Outgoing { exchange: String::new(), routing_key: topology::lane_queue(lane), properties, body }
}

/// Nothing when it is too long for AMQP's short strings; nothing that ever came in is, but for NULs that were replaced.
fn short(text: &str) -> Option<ShortString> {
    ShortString::try_new(text).ok()
}

/// The lane of a message whose request the audit does not know: where it travelled, else where its priority or its routing
/// key leads. One that says nothing of it is looked at on the standard lane.
fn lane_of(content: &LetterContent, body: &Bytes) -> Lane {
    let travelled = content.lane.as_deref().and_then(Lane::from_name);
    let asked_for = || {
        let is_json = content.properties.get("content_type").and_then(Value::as_str) == Some(wire::JSON);
        let request = if is_json { wire::from_json(body).ok()? } else { wire::from_protobuf(body.clone()).ok()? };
        publish::priority_of(&request).ok()
    };
    let in_key = || {
        let word = content.routing_key.as_deref()?.rsplit('.').next()?;
        Priority::ALL.into_iter().find(|priority| priority.routing_word() == word)
    };
    travelled.or_else(|| asked_for().or_else(in_key).map(Priority::lane)).unwrap_or(Lane::Standard)
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use serde_json::json;

    use super::*;

    fn at(ms: i64) -> DateTime<Utc> {
        Utc.timestamp_millis_opt(ms).single().expect("a time")
    }

    fn copy(is_reopened: bool, lane: Option<Lane>) -> ReplayCopy {
        let (id, generation) = (Uuid::nil(), i32::from(is_reopened));
        ReplayCopy { id, generation, is_reopened, replayed_at: at(5000), lane, request_id: None }
    }

    fn content() -> LetterContent {
        LetterContent {
            routing_key: Some("support.p1".into()),
            lane: None,
            first_at: at(1000),
            properties: json!({"content_type": "application/json", "type": wire::REQUEST_TYPE, "message_id": "m",
                "priority": 6, "timestamp": null}),
            headers: json!({"x-reason": "rejected", "x-error": "550", "x-history": "[]", "x-copy": "2", "x-pending": "p",
                "x-generation": "0", "x-crashes": "2", "x-death": "[]", "x-first-death-queue": "email.standard",
                "x-routing-key": "support.p1", "traceparent": "00-ab-cd-01", "x-try-traceparent": "00-ab-ef-01",
                "x-given-up-traceparent": "00-ab-00-01"}),
            body: b"{}".to_vec(),
        }
    }

    fn headers(outgoing: &Outgoing) -> Vec<String> {
        let table = outgoing.properties.headers().clone().unwrap_or_default();
        table.inner().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_copy_carries_what_the_producer_gave_and_nothing_of_its_failure() {
        let reopened = outgoing(&copy(true, Some(Lane::Standard)), &content(), Bytes::new());
        let expected = [
            "traceparent",
            "x-generation",
            "x-given-up-traceparent",
            "x-published-at-ms",
            "x-replayed-at-ms",
            "x-routing-key",
        ];
        assert_eq!(headers(&reopened), expected);
        let given_up = reopened.properties.headers().clone().unwrap_or_default().inner().get(GIVEN_UP).cloned();
        assert_eq!(given_up, Some(AMQPValue::LongString("00-ab-ef-01".into())), "of the letter's own try");
        assert_eq!((reopened.exchange.as_str(), reopened.routing_key.as_str()), ("", "email.standard"));
        assert_eq!(reopened.properties.message_id().as_ref().map(ShortString::as_str), Some("m"));
        assert_eq!(*reopened.properties.priority(), Some(6));
        let table = reopened.properties.headers().clone().unwrap_or_default();
        assert_eq!(table.inner().get(GENERATION), Some(&AMQPValue::LongInt(1)));
        assert_eq!(table.inner().get(PUBLISHED_AT), Some(&AMQPValue::LongLongInt(1000)), "no younger than it is");
    }

    #[test]
    fn a_message_that_goes_back_as_it_was_is_the_copy_that_it_was() {
        let resumed = outgoing(&copy(false, Some(Lane::Bulk)), &content(), Bytes::new());
        assert!(headers(&resumed).contains(&COPY.to_owned()), "{:?}", headers(&resumed));
        assert_eq!(resumed.routing_key, "email.bulk");
    }

    #[test]
    fn a_message_that_nobody_knows_goes_where_it_asks_to_go() {
        let lane = |content: &LetterContent| lane_of(content, &Bytes::from(content.body.clone()));
        assert_eq!(lane(&LetterContent { lane: Some("fast".into()), ..content() }), Lane::Fast);
        let asks = LetterContent { body: br#"{"priority":"P3"}"#.to_vec(), ..content() };
        assert_eq!(lane(&LetterContent { routing_key: Some("support.urgent".into()), ..asks }), Lane::Bulk);
        let unreadable = LetterContent { body: b"?".to_vec(), ..content() };
        assert_eq!(lane(&LetterContent { routing_key: Some("incident.p0".into()), ..unreadable.clone() }), Lane::Fast);
        assert_eq!(lane(&LetterContent { routing_key: None, ..unreadable }), Lane::Standard);
    }
}
