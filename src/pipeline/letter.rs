//! What a dead letter says, and the id by which it is known again.

use chrono::Utc;
use lapin::types::AMQPValue;
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Pipeline;
use crate::{
    broker::{Delivery, dead_letter as h, delivery::GENERATION},
    email::{self, EmailRequest, PayloadHash, Reason},
};

/// A header holds no more than this of an error or a history: the whole of the headers must fit one AMQP frame.
pub(super) const HEADER_BYTES_MAX: usize = 16 * 1024;

/// What a dead letter says.
#[derive(Debug)]
pub struct Letter {
    pub(super) reason: Reason,
    pub(super) error: String,
    pub(super) attempts: i32,
    pub(super) about: Option<About>,
    /// Its rows wait to hear that the letter is confirmed.
    pub(super) has_rows: bool,
    pub(super) recipients: serde_json::Value,
}

#[derive(Debug)]
pub(super) struct About {
    pub(super) id: Uuid,
    pub(super) payload_hash: PayloadHash,
    pub(super) source: String,
    pub(super) template_key: String,
}

impl About {
    pub(super) fn of(request: &EmailRequest) -> Self {
        Self {
            id: request.id,
            payload_hash: request.payload_hash,
            source: request.source.clone(),
            template_key: request.template_key.clone(),
        }
    }
}

impl Pipeline {
    pub(super) async fn letter_headers(&self, delivery: &Delivery, letter: &Letter) -> Vec<(&'static str, AMQPValue)> {
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

    /// The template that a letter is about, as metrics name it: a key that nobody knows must not make a new series.
    pub(super) fn template_of_letter(&self, letter: &Letter) -> Option<String> {
        let key = &letter.about.as_ref()?.template_key;
        self.catalogue.active(key).map(|template| template.key().to_owned())
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
pub(super) fn fitting(lines: impl Iterator<Item = serde_json::Value>) -> Vec<serde_json::Value> {
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
