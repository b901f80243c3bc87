//! Mails as the API and `--json` give them. Without the right to see persons' data addresses are masked, and the rest of what
//! is personal is null.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    email::EmailAddress,
    http::names::{BounceType, LaneName, PriorityName, StatusName},
    store::messages::{
        MessagePage, MessageSummary,
        detail::{Message, MessageAttachment, MessageEvent},
    },
};

/// An address as it is, or masked.
pub(in crate::http) fn address_for(personal: bool, address: &str) -> String {
    match (personal, EmailAddress::parse(address)) {
        (true, _) => address.to_owned(),
        (false, Ok(address)) => address.masked(),
        (false, Err(_)) => "***".to_owned(),
    }
}

/// Mails, newest first by their publish time.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageList {
    items: Vec<MessageItem>,
    /// How many match in all, up to 10,000, whichever page this is
    #[schema(minimum = 0, maximum = 10_000)]
    total: i64,
    /// Whether `total` is all of them
    total_is_exact: bool,
    /// Cursor of the next page; null: this was the last
    next: Option<Uuid>,
    /// Mails published before this may not have been looked at for this page; null: all were that could be on it
    searched_since: Option<DateTime<Utc>>,
}

/// A mail to one recipient.
#[derive(Debug, Serialize, ToSchema)]
struct MessageItem {
    id: Uuid,
    /// The request that it is part of
    request_id: Uuid,
    /// The recipient; masked for viewers, null once anonymised
    #[schema(example = "someone@example.org")]
    to: Option<String>,
    /// As rendered; null for viewers
    subject: Option<String>,
    #[schema(value_type = StatusName)]
    status: String,
    /// When the relay took it
    sent_at: Option<DateTime<Utc>>,
    /// When the recipient's server took it, as the provider tells
    delivered_at: Option<DateTime<Utc>>,
    #[schema(value_type = Option<BounceType>)]
    bounce_type: Option<String>,
    /// The provider's word for why
    bounce_subtype: Option<String>,
    /// The provider's word for what was complained about
    complaint_type: Option<String>,
    /// When the row was made
    created_at: DateTime<Utc>,
    #[schema(example = "rma_confirmation")]
    template_key: String,
    /// Fixed by the first try
    template_version: Option<i32>,
    /// Who asked for it
    #[schema(example = "rma")]
    source: String,
    #[schema(value_type = LaneName)]
    lane: String,
    /// SMTP attempts that counted
    attempts: i32,
    /// From publish to the relay's 250
    latency_ms: Option<i64>,
    /// Why it failed or got no mail
    reason: Option<String>,
    /// What went wrong last; null for viewers
    error: Option<String>,
}

/// One mail with everything that is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageDetails {
    id: Uuid,
    /// The request that it is part of
    request_id: Uuid,
    /// Our Message-ID
    message_id: String,
    /// The recipient; masked for viewers, null once anonymised
    #[schema(example = "someone@example.org")]
    to: Option<String>,
    /// The recipient's name; null for viewers
    name: Option<String>,
    /// As rendered; null for viewers
    subject: Option<String>,
    #[schema(value_type = StatusName)]
    status: String,
    /// Unknown, and left to an operator
    held: bool,
    /// When it may be tried next
    due_at: Option<DateTime<Utc>>,
    /// Why it failed or got no mail
    reason: Option<String>,
    /// What went wrong last; null for viewers
    error: Option<String>,
    /// SMTP attempts that counted
    attempts: i32,
    /// How often it was put off
    deferrals: i32,
    /// When the row was made
    created_at: DateTime<Utc>,
    /// When it was changed last
    updated_at: DateTime<Utc>,
    /// When the relay took it
    sent_at: Option<DateTime<Utc>>,
    /// When the recipient's server took it, as the provider tells
    delivered_at: Option<DateTime<Utc>>,
    /// When it came back, as the provider tells
    bounced_at: Option<DateTime<Utc>>,
    #[schema(value_type = Option<BounceType>)]
    bounce_type: Option<String>,
    /// The provider's word for why
    bounce_subtype: Option<String>,
    /// When the recipient complained, as the provider tells
    complained_at: Option<DateTime<Utc>>,
    /// The provider's word for what about
    complaint_type: Option<String>,
    #[schema(example = "rma_confirmation")]
    template_key: String,
    /// Fixed by the first try
    template_version: Option<i32>,
    /// Who asked for it
    #[schema(example = "rma")]
    source: String,
    #[schema(value_type = LaneName)]
    lane: String,
    #[schema(value_type = PriorityName)]
    priority: String,
    /// BCP 47
    #[schema(example = "fr")]
    locale: Option<String>,
    /// Null for viewers
    reply_to: Option<String>,
    /// What the template showed; null for viewers, and once anonymised
    #[schema(value_type = Option<Object>)]
    variables: Option<Value>,
    /// The producer's own, echoed on events; null for viewers
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
    /// By the producer's clock, else when first seen
    published_at: DateTime<Utc>,
    not_before: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
    /// How often the request was replayed
    generation: i32,
    /// The mail that it repeats
    retransmission_of: Option<Uuid>,
    /// Size of the HTML part
    html_bytes: Option<i32>,
    /// Size of the text part
    text_bytes: Option<i32>,
    /// What happened to it, in order
    timeline: Vec<TimelineItem>,
    attachments: Vec<AttachmentItem>,
}

/// A try, what the provider told, or another step in a mail's life.
#[derive(Debug, Serialize, ToSchema)]
struct TimelineItem {
    at: DateTime<Utc>,
    #[schema(example = "sent")]
    kind: String,
    /// SMTP attempts so far
    attempt: i32,
    /// From publish to this moment, for what was sent
    latency_ms: Option<i64>,
    relay: Option<String>,
    /// The step of the dialogue that decided
    #[schema(example = "rcpt")]
    phase: Option<String>,
    /// The relay's code
    #[schema(example = 250)]
    reply_code: Option<i16>,
    /// The relay's words; null for viewers
    reply_text: Option<String>,
    /// The relay's own id for the mail
    relay_message_id: Option<String>,
    /// Null for viewers
    error: Option<String>,
}

/// What came with a mail.
#[derive(Debug, Serialize, ToSchema)]
struct AttachmentItem {
    /// Null for viewers
    filename: Option<String>,
    #[schema(example = "application/pdf")]
    content_type: String,
    /// Of an inline image; null for viewers
    content_id: Option<String>,
    size_bytes: i32,
    /// Hexadecimal, of the bytes
    #[schema(min_length = 64, max_length = 64)]
    sha256: String,
}

/// A page of mails.
#[must_use]
pub fn message_page_json(page: &MessagePage, personal: bool) -> MessageList {
    MessageList {
        items: page.items.iter().map(|message| item(message, personal)).collect(),
        total: page.total,
        total_is_exact: page.total_is_exact,
        next: page.next,
        searched_since: page.searched_since,
    }
}

/// One mail of a list.
fn item(message: &MessageSummary, personal: bool) -> MessageItem {
    let m = message.clone();
    MessageItem {
        id: m.id,
        request_id: m.request_id,
        to: m.to.map(|to| address_for(personal, &to)),
        subject: m.subject.filter(|_| personal),
        status: m.status,
        sent_at: m.sent_at,
        delivered_at: m.delivered_at,
        bounce_type: m.bounce_type,
        bounce_subtype: m.bounce_subtype,
        complaint_type: m.complaint_type,
        created_at: m.created_at,
        template_key: m.template_key,
        template_version: m.template_version,
        source: m.source,
        lane: m.lane,
        attempts: m.attempts,
        latency_ms: m.latency_ms,
        reason: m.reason,
        error: m.error.filter(|_| personal),
    }
}

/// One mail with its timeline and attachments.
#[must_use]
pub fn message_detail_json(message: &Message, personal: bool) -> MessageDetails {
    let m = message.detail.clone();
    MessageDetails {
        id: m.id,
        request_id: m.request_id,
        message_id: m.message_id,
        to: m.to.map(|to| address_for(personal, &to)),
        name: m.name.filter(|_| personal),
        subject: m.subject.filter(|_| personal),
        status: m.status,
        held: m.held,
        due_at: m.due_at,
        reason: m.reason,
        error: m.error.filter(|_| personal),
        attempts: m.attempts,
        deferrals: m.deferrals,
        created_at: m.created_at,
        updated_at: m.updated_at,
        sent_at: m.sent_at,
        delivered_at: m.delivered_at,
        bounced_at: m.bounced_at,
        bounce_type: m.bounce_type,
        bounce_subtype: m.bounce_subtype,
        complained_at: m.complained_at,
        complaint_type: m.complaint_type,
        template_key: m.template_key,
        template_version: m.template_version,
        source: m.source,
        lane: m.lane,
        priority: format!("P{}", m.priority),
        locale: m.locale,
        reply_to: m.reply_to.filter(|_| personal),
        variables: m.variables.filter(|_| personal),
        metadata: Some(m.metadata).filter(|_| personal),
        published_at: m.published_at,
        not_before: m.not_before,
        expires_at: m.expires_at,
        generation: m.generation,
        retransmission_of: m.retransmission_of,
        html_bytes: m.html_bytes,
        text_bytes: m.text_bytes,
        timeline: message.timeline.iter().map(|line| timeline_item(line, personal)).collect(),
        attachments: message.attachments.iter().map(|file| attachment_item(file, personal)).collect(),
    }
}

fn timeline_item(line: &MessageEvent, personal: bool) -> TimelineItem {
    let line = line.clone();
    TimelineItem {
        at: line.at,
        kind: line.kind,
        attempt: line.attempt,
        latency_ms: line.latency_ms,
        relay: line.relay,
        phase: line.phase,
        reply_code: line.reply_code,
        reply_text: line.reply_text.filter(|_| personal),
        relay_message_id: line.relay_message_id,
        error: line.error.filter(|_| personal),
    }
}

fn attachment_item(file: &MessageAttachment, personal: bool) -> AttachmentItem {
    let file = file.clone();
    AttachmentItem {
        filename: Some(file.filename).filter(|_| personal),
        content_type: file.content_type,
        content_id: file.content_id.filter(|_| personal),
        size_bytes: file.size_bytes,
        sha256: hex::encode(file.sha256),
    }
}
