//! One delivery: what the stages may see of it, and the right to settle it once.
//!
//! Invariant: settling takes the [`Delivery`] by value. One that is dropped stays unacknowledged and comes back.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, TimeZone, Utc};
use lapin::{
    Acker, BasicProperties,
    options::BasicNackOptions,
    types::{AMQPValue, DeliveryTag, FieldTable, ShortString},
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use crate::{
    email::{Envelope, Lane},
    telemetry::span::Span,
};

/// Publish time in milliseconds; kept through retries.
pub const PUBLISHED_AT: &str = "x-published-at-ms";
/// Which retry copy this is.
pub const COPY: &str = "x-copy";
/// Raised by a replay.
pub const GENERATION: &str = "x-generation";
/// How often a stage panicked on it.
pub const CRASHES: &str = "x-crashes";
/// Who is still to get it, for a daemon that cannot ask the database.
pub const PENDING: &str = "x-pending";
/// Who is not, likewise.
pub const OVER: &str = "x-over";
/// Somebody else may have had it on the wire when the copy was made, likewise.
pub const DOUBTFUL: &str = "x-doubtful";
/// The template version that the first claim fixed, likewise.
pub const TEMPLATE_VERSION: &str = "x-template-version";
/// When an operator sent it on its way again, in milliseconds.
pub const REPLAYED_AT: &str = "x-replayed-at-ms";
/// The producer's own routing key; the copy's is the name of a queue.
pub const ROUTING_KEY: &str = "x-routing-key";

/// The try that published a copy or dead letter, as a `traceparent`: for the links of what comes of it.
pub const TRY: &str = "x-try-traceparent";
/// The same in the copy that a replay publishes: the try that gave up.
pub const GIVEN_UP: &str = "x-given-up-traceparent";

/// The end of the year 9999: a later time is a mistake, and no database stores it.
const MILLISECONDS_MAX: i64 = 253_402_300_799_999;
/// Headers that the broker keeps its own books in: republished, they confuse it (RabbitMQ before 4.0 believes them).
const BROKER_HEADERS: [&str; 6] = ["x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC", "x-opt-rabbitmq"];
const BROKER_HEADER_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];

/// Settling did not reach the broker: the delivery is not ours any more and comes back to somebody.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SettleError {
    /// The channel is gone.
    #[error("the channel is gone; the broker will deliver the message again")]
    ChannelGone,
    /// lapin's own error.
    #[error("the settlement was not written: {0}")]
    Amqp(#[from] lapin::Error),
}

/// One message from a queue.
#[must_use = "a delivery that is dropped stays unacknowledged"]
pub struct Delivery {
    /// What its properties and headers say.
    pub envelope: Envelope,
    /// The message.
    pub body: Bytes,
    /// Properties and headers as they came, for copies of it.
    pub original: Original,
    /// Cancelled when the consumer that took it is lost: the broker gives the message to somebody else then, and what has
    /// not begun should not begin.
    pub gone: CancellationToken,
    /// What is traced of its way, from when somebody began it until it is settled.
    pub span: Span,
    acker: Acker,
    tag: DeliveryTag,
    acks: Acks,
}

/// Properties, headers and addressing of a message as it came.
#[derive(Debug, Clone)]
pub struct Original {
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it came with.
    pub routing_key: String,
    /// All of its properties.
    pub properties: BasicProperties,
}

impl Delivery {
    /// Takes what lapin hands over.
    pub(super) fn new(lane: Lane, delivery: lapin::message::Delivery, gone: CancellationToken, acks: Acks) -> Self {
        let original = Original {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
        };
        let envelope = original.envelope(lane, delivery.redelivered);
        Self {
            envelope,
            body: Bytes::from(delivery.data),
            original,
            gone,
            span: Span::none(),
            acker: delivery.acker,
            tag: delivery.delivery_tag,
            acks,
        }
    }

    /// What the broker calls it on its channel.
    #[must_use]
    pub const fn tag(&self) -> u64 {
        self.tag
    }

    /// What this message's crashes are counted under: known before a byte of it is decoded, the same at every delivery.
    #[must_use]
    pub fn crash_key(&self) -> [u8; 32] {
        match &self.envelope.message_id {
            Some(id) => Sha256::digest(id).into(),
            None => Sha256::digest(&self.body).into(),
        }
    }

    /// Tells the broker that the message is dealt with; returns when that was written, together with others.
    ///
    /// # Errors
    /// When the broker was not told: the message comes back, and the store must recognise it.
    pub async fn ack(self) -> Result<(), SettleError> {
        let Self { acker, tag, acks, body, gone, .. } = self;
        // Nobody needs it any more, and it may be large.
        drop(body);
        tokio::select! {
            biased;
            written = acks.ack(tag, acker) => written,
            // What is handed over to a line that dies may never be answered.
            () = gone.cancelled() => Err(SettleError::ChannelGone),
        }
    }

    /// Hands the message back to its queue, for another daemon or for later.
    ///
    /// # Errors
    /// When the broker was not told; the message comes back all the same.
    pub async fn requeue(self) -> Result<(), SettleError> {
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        // `Ok(false)` is lapin's way to say that the channel died and nothing was sent.
        let written = tokio::select! {
            biased;
            written = self.acker.nack(options) => written?,
            () = self.gone.cancelled() => false,
        };
        match written {
            true => {
                self.acks.handed_back(self.tag);
                Ok(())
            }
            false => Err(SettleError::ChannelGone),
        }
    }
}

impl Original {
    /// What the pipeline needs of them. Nothing in them is believed that only our own copies may say.
    #[must_use]
    pub fn envelope(&self, lane: Lane, redelivered: bool) -> Envelope {
        let headers = self.properties.headers().clone().unwrap_or_default();
        let small = |name| number(&headers, name).and_then(|n| i32::try_from(n).ok()).unwrap_or(0).max(0);
        let moment = |name| {
            let ms = number(&headers, name).filter(|ms| (0..=MILLISECONDS_MAX).contains(ms))?;
            Utc.timestamp_millis_opt(ms).single()
        };
        let published_at = moment(PUBLISHED_AT).or_else(|| self.properties.timestamp().and_then(whole_seconds));
        Envelope {
            lane,
            // Every copy names the producer's routing key; no producer does.
            is_copy: headers.contains_key(ROUTING_KEY),
            routing_key: words(&headers, ROUTING_KEY).unwrap_or_else(|| self.routing_key.clone()),
            content_type: self.properties.content_type().as_ref().map(ToString::to_string),
            message_id: self.properties.message_id().as_ref().map(ToString::to_string),
            published_at,
            generation: small(GENERATION),
            copy_no: small(COPY),
            crashes: small(CRASHES),
            // A producer that sets these says nothing: only our own copies are believed.
            pending: words(&headers, PENDING).filter(|_| headers.contains_key(ROUTING_KEY)),
            over: words(&headers, OVER).filter(|_| headers.contains_key(ROUTING_KEY)),
            is_doubtful: matches!(headers.inner().get(DOUBTFUL), Some(AMQPValue::Boolean(true)))
                && headers.contains_key(ROUTING_KEY),
            template_version: Some(small(TEMPLATE_VERSION))
                .filter(|version| *version > 0 && headers.contains_key(ROUTING_KEY)),
            redelivered,
            replayed_at: moment(REPLAYED_AT),
            traceparent: words(&headers, "traceparent"),
            tracestate: words(&headers, "tracestate"),
            earlier_try: words(&headers, TRY).filter(|_| headers.contains_key(ROUTING_KEY)),
            given_up: words(&headers, GIVEN_UP).filter(|_| headers.contains_key(ROUTING_KEY)),
        }
    }

    /// The headers without the broker's own, as names and words; for the archive.
    #[must_use]
    pub fn headers_as_text(&self) -> BTreeMap<String, String> {
        let headers = self.properties.headers().clone().unwrap_or_default();
        let storable = |text: String| text.replace('\0', "\u{FFFD}");
        headers
            .inner()
            .iter()
            .map(|(name, value)| (storable(name.to_string()), storable(value_as_text(value))))
            .collect()
    }

    /// Properties for a copy of this message: same content, the broker's books stripped, `extra` headers set.
    #[must_use]
    pub fn copy_properties(&self, extra: &[(&str, AMQPValue)]) -> BasicProperties {
        let old = &self.properties;
        let mut headers = FieldTable::default();
        for (name, value) in old.headers().clone().unwrap_or_default().inner() {
            if !is_brokers_own(name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
        if !headers.contains_key(ROUTING_KEY) {
            headers.insert(ROUTING_KEY.into(), AMQPValue::LongString(self.routing_key.as_str().into()));
        }
        for (name, value) in extra {
            headers.insert(ShortString::from(*name), value.clone());
        }
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        if let Some(v) = old.content_type() {
            properties = properties.with_content_type(v.clone());
        }
        if let Some(v) = old.content_encoding() {
            properties = properties.with_content_encoding(v.clone());
        }
        if let Some(v) = old.kind() {
            properties = properties.with_type(v.clone());
        }
        if let Some(v) = old.message_id() {
            properties = properties.with_message_id(v.clone());
        }
        if let Some(v) = old.correlation_id() {
            properties = properties.with_correlation_id(v.clone());
        }
        if let Some(v) = old.timestamp() {
            properties = properties.with_timestamp(*v);
        }
        if let Some(v) = old.priority() {
            properties = properties.with_priority(*v);
        }
        if let Some(v) = old.app_id() {
            properties = properties.with_app_id(v.clone());
        }
        properties
    }
}

/// Whether the broker keeps its own books in this header.
#[must_use]
pub fn is_brokers_own(header: &str) -> bool {
    BROKER_HEADERS.contains(&header) || BROKER_HEADER_PREFIXES.iter().any(|prefix| header.starts_with(prefix))
}

fn whole_seconds(seconds: u64) -> Option<DateTime<Utc>> {
    let seconds = i64::try_from(seconds).ok().filter(|s| *s <= MILLISECONDS_MAX / 1000)?;
    Utc.timestamp_opt(seconds, 0).single()
}

/// A header that is a whole number, in whichever of AMQP's integer types the producer's library chose, or as text.
fn number(headers: &FieldTable, name: &str) -> Option<i64> {
    whole_number(headers.inner().get(name)?)
}

fn whole_number(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(v) => Some((*v).into()),
        AMQPValue::ShortShortUInt(v) => Some((*v).into()),
        AMQPValue::ShortInt(v) => Some((*v).into()),
        AMQPValue::ShortUInt(v) => Some((*v).into()),
        AMQPValue::LongInt(v) => Some((*v).into()),
        AMQPValue::LongUInt(v) => Some((*v).into()),
        AMQPValue::LongLongInt(v) => Some(*v),
        AMQPValue::Timestamp(v) => i64::try_from(*v).ok(),
        AMQPValue::LongString(v) => std::str::from_utf8(v.as_bytes()).ok()?.trim().parse().ok(),
        _ => None,
    }
}

fn words(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(v) => std::str::from_utf8(v.as_bytes()).ok().map(str::to_owned),
        AMQPValue::ShortString(v) => Some(v.to_string()),
        _ => None,
    }
}

fn value_as_text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(v) => String::from_utf8_lossy(v.as_bytes()).into_owned(),
        AMQPValue::ShortString(v) => v.to_string(),
        other => match whole_number(other) {
            Some(n) => n.to_string(),
            None => serde_json::to_string(other).unwrap_or_default(),
        },
    }
}
