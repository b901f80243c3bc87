//! Mails as the API and `--json` give them. Without the right to see persons' data addresses are masked, and the rest of what
//! is personal is null.

use serde_json::{Value, json};

use crate::{
    email::EmailAddress,
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

/// A page of mails.
#[must_use]
pub fn message_page_json(page: &MessagePage, personal: bool) -> Value {
    json!({
        "items": page.items.iter().map(|message| message_json(message, personal)).collect::<Vec<_>>(),
        "total": page.total,
        "total_is_exact": page.total_is_exact,
        "next": page.next,
        "searched_since": page.searched_since,
    })
}

/// One mail of a list.
fn message_json(message: &MessageSummary, personal: bool) -> Value {
    json!({
        "id": message.id,
        "request_id": message.request_id,
        "to": message.to.as_deref().map(|to| address_for(personal, to)),
        "subject": message.subject.as_deref().filter(|_| personal),
        "status": message.status,
        "sent_at": message.sent_at,
        "delivered_at": message.delivered_at,
        "bounce_type": message.bounce_type,
        "bounce_subtype": message.bounce_subtype,
        "complaint_type": message.complaint_type,
        "created_at": message.created_at,
        "template_key": message.template_key,
        "template_version": message.template_version,
        "source": message.source,
        "lane": message.lane,
        "attempts": message.attempts,
        "latency_ms": message.latency_ms,
        "reason": message.reason,
        "error": message.error.as_deref().filter(|_| personal),
    })
}

/// One mail with its timeline and attachments.
#[must_use]
pub fn message_detail_json(message: &Message, personal: bool) -> Value {
    let m = &message.detail;
    json!({
        "id": m.id,
        "request_id": m.request_id,
        "message_id": m.message_id,
        "to": m.to.as_deref().map(|to| address_for(personal, to)),
        "name": m.name.as_deref().filter(|_| personal),
        "subject": m.subject.as_deref().filter(|_| personal),
        "status": m.status,
        "held": m.held,
        "due_at": m.due_at,
        "reason": m.reason,
        "error": m.error.as_deref().filter(|_| personal),
        "attempts": m.attempts,
        "deferrals": m.deferrals,
        "created_at": m.created_at,
        "updated_at": m.updated_at,
        "sent_at": m.sent_at,
        "delivered_at": m.delivered_at,
        "bounced_at": m.bounced_at,
        "bounce_type": m.bounce_type,
        "bounce_subtype": m.bounce_subtype,
        "complained_at": m.complained_at,
        "complaint_type": m.complaint_type,
        "template_key": m.template_key,
        "template_version": m.template_version,
        "source": m.source,
        "lane": m.lane,
        "priority": format!("P{}", m.priority),
        "locale": m.locale,
        "reply_to": m.reply_to.as_deref().filter(|_| personal),
        "variables": m.variables.as_ref().filter(|_| personal),
        "metadata": Some(&m.metadata).filter(|_| personal),
        "published_at": m.published_at,
        "not_before": m.not_before,
        "expires_at": m.expires_at,
        "generation": m.generation,
        "retransmission_of": m.retransmission_of,
        "html_bytes": m.html_bytes,
        "text_bytes": m.text_bytes,
        "timeline": message.timeline.iter().map(|line| event_json(line, personal)).collect::<Vec<_>>(),
        "attachments": message.attachments.iter().map(|file| attachment_json(file, personal)).collect::<Vec<_>>(),
    })
}

fn event_json(line: &MessageEvent, personal: bool) -> Value {
    json!({
        "at": line.at,
        "kind": line.kind,
        "attempt": line.attempt,
        "latency_ms": line.latency_ms,
        "relay": line.relay,
        "phase": line.phase,
        "reply_code": line.reply_code,
        "reply_text": line.reply_text.as_deref().filter(|_| personal),
        "relay_message_id": line.relay_message_id,
        "error": line.error.as_deref().filter(|_| personal),
    })
}

fn attachment_json(file: &MessageAttachment, personal: bool) -> Value {
    json!({
        "filename": Some(file.filename.as_str()).filter(|_| personal),
        "content_type": file.content_type,
        "content_id": file.content_id.as_deref().filter(|_| personal),
        "size_bytes": file.size_bytes,
        "sha256": hex::encode(&file.sha256),
    })
}
