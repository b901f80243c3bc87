//! Dead letters as the API and `--json` give them. Without the right to see persons' data addresses are masked, and the rest
//! of what is personal is null: headers, properties and content are the producer's, and relays repeat addresses.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    http::{messages::address_for, names::LetterStateName},
    store::dead::{DeadCursor, DeadLetter, DeadPage, DeadSummary, Discard},
    wire,
};

/// Bytes that are shown of what is no request.
const START_BYTES: usize = 200;

/// Dead letters, newest first by when they were archived.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterList {
    items: Vec<DeadLetterItem>,
    /// How many match in all, up to 10,000, whichever page this is
    #[schema(minimum = 0, maximum = 10_000)]
    total: i64,
    /// Whether `total` is all of them
    total_is_exact: bool,
    /// Cursor of the next page; null: this was the last
    next: Option<String>,
    /// Letters archived before this were not looked at for this page; null: all were that could be on it
    searched_since: Option<DateTime<Utc>>,
}

/// What failed for good.
#[derive(Debug, Serialize, ToSchema)]
struct DeadLetterItem {
    id: Uuid,
    /// Why: one of those that the list takes, or a word of whoever put it there
    #[schema(example = "rejected")]
    reason: String,
    /// In words; null for viewers
    error: Option<String>,
    /// If it could be read
    request_id: Option<Uuid>,
    /// Who asked for it
    #[schema(example = "billing")]
    source: Option<String>,
    #[schema(example = "rma_confirmation")]
    template_key: Option<String>,
    /// Where it travelled
    #[schema(example = "standard")]
    lane: Option<String>,
    /// SMTP attempts
    attempts: Option<i32>,
    #[schema(value_type = LetterStateName)]
    state: String,
    /// When it failed, else when it was archived
    at: DateTime<Utc>,
    /// Who did not get it; masked for viewers
    #[schema(example = json!(["someone@example.org"]))]
    recipients: Vec<String>,
}

/// A dead letter with its headers, its history and its content.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterDetails {
    #[serde(flatten)]
    summary: DeadLetterItem,
    /// The producer's; null for viewers
    routing_key: Option<String>,
    /// When it was first seen
    first_at: Option<DateTime<Utc>>,
    archived_at: DateTime<Utc>,
    /// When it went on its way again
    replayed_at: Option<DateTime<Utc>>,
    discard: Option<DiscardItem>,
    /// Of AMQP; null for viewers
    #[schema(value_type = Option<Object>)]
    properties: Option<Value>,
    /// Of AMQP; null for viewers
    #[schema(value_type = Option<Object>)]
    headers: Option<Value>,
    /// What happened to its mails, in order
    history: Vec<HistoryItem>,
    /// Size of the message
    body_bytes: i32,
    /// The request with its attachments' bytes left out; text: the first bytes of what is no request; null for viewers
    content: Value,
}

/// Who discarded a letter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DiscardItem {
    /// `operator:<name of the token>`
    by: String,
    at: DateTime<Utc>,
    /// Null for viewers
    note: Option<String>,
}

/// A try, or another step in the life of one of the letter's mails. Read from a header: what is of another type is null.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
struct HistoryItem {
    message_id: Option<Uuid>,
    at: Option<DateTime<Utc>>,
    #[schema(example = "deferred")]
    kind: Option<String>,
    /// SMTP attempts so far
    attempt: Option<i32>,
    relay: Option<String>,
    /// The step of the dialogue that decided
    #[schema(example = "rcpt")]
    phase: Option<String>,
    /// The relay's code
    #[schema(example = 450)]
    code: Option<i16>,
    /// Null for viewers
    error: Option<String>,
}

/// A page of letters.
pub(crate) fn dead_page_json(page: &DeadPage, personal: bool) -> DeadLetterList {
    DeadLetterList {
        items: page.items.iter().map(|letter| dead_summary_json(letter, personal)).collect(),
        total: page.total,
        total_is_exact: page.total_is_exact,
        next: page.next.map(DeadCursor::to_text),
        searched_since: page.searched_since,
    }
}

/// One letter of a list.
fn dead_summary_json(letter: &DeadSummary, personal: bool) -> DeadLetterItem {
    let s = letter.clone();
    let recipients = listed(s.recipients.as_deref());
    let addresses = recipients.iter().filter_map(|line| words(line, "address"));
    DeadLetterItem {
        id: s.id,
        reason: s.reason,
        error: s.error.filter(|_| personal),
        request_id: s.request_id,
        source: s.source,
        template_key: s.template_key,
        lane: s.lane,
        attempts: s.attempts,
        state: s.state,
        at: s.at,
        recipients: addresses.map(|address| address_for(personal, address)).collect(),
    }
}

/// One letter with its headers, its history and its content.
pub(crate) fn dead_letter_json(letter: &DeadLetter, personal: bool) -> DeadLetterDetails {
    let header = |name: &str| listed(letter.headers.get(name).and_then(Value::as_str));
    DeadLetterDetails {
        summary: dead_summary_json(&letter.summary, personal),
        routing_key: letter.routing_key.clone().filter(|_| personal),
        first_at: letter.first_at,
        archived_at: letter.archived_at,
        replayed_at: letter.replayed_at,
        discard: letter.discard.as_ref().map(|discard| discard_json(discard, personal)),
        properties: Some(letter.properties.clone()).filter(|_| personal),
        headers: Some(letter.headers.clone()).filter(|_| personal),
        history: header("x-history").into_iter().map(|line| history_item(line, personal)).collect(),
        body_bytes: letter.body_bytes,
        content: if personal { content(letter) } else { Value::Null },
    }
}

/// Who discarded a letter.
pub(crate) fn discard_json(discard: &Discard, personal: bool) -> DiscardItem {
    DiscardItem { by: discard.by.clone(), at: discard.at, note: discard.note.clone().filter(|_| personal) }
}

fn history_item(line: Value, personal: bool) -> HistoryItem {
    let item: HistoryItem = serde_json::from_value(line).unwrap_or_default();
    HistoryItem { error: item.error.filter(|_| personal), ..item }
}

/// What a header of ours lists; one that is no list, such as a producer's own of that name, lists nothing.
pub(crate) fn listed(header: Option<&str>) -> Vec<Value> {
    header.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// What stands under a name, if it is text.
pub(crate) fn words<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The request as JSON with its attachments' bytes left out, or the first bytes of what is no request.
pub(crate) fn content(letter: &DeadLetter) -> Value {
    let Some(body) = &letter.body else { return Value::String("(removed by anonymising)".to_owned()) };
    let content_type = letter.properties.get("content_type").and_then(Value::as_str);
    let request = match content_type {
        Some(wire::JSON) => wire::from_json(body).ok(),
        _ => wire::from_protobuf(body.clone().into()).ok().filter(|r| !r.request_id.is_empty()),
    };
    match request {
        Some(request) => {
            let mut json = wire::to_json(&request);
            for attachment in json.get_mut("attachments").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(inline) = attachment.get_mut("inline") {
                    let bytes = inline.as_str().map_or(0, |text| text.len() / 4 * 3);
                    *inline = json!(format!("({bytes} bytes)"));
                }
            }
            json
        }
        None => {
            let start = String::from_utf8_lossy(&body[..body.len().min(START_BYTES)]).into_owned();
            let shown: String = start.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
            Value::String(if body.len() > START_BYTES { format!("{shown} ...") } else { shown })
        }
    }
}
