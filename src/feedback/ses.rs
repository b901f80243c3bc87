//! Amazon SES: its feedback notifications and its event publishing, as neutral events.
//!
//! Invariant: nothing that SES may ever send is an error here. What is not known is `FeedbackKind::Other`, what cannot be read
//! `FeedbackKind::Unreadable`, and a field that is missing or of another type is as if it were not there.

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::email::{
    address::mask_all,
    feedback::{Bounce, FeedbackEvent, FeedbackKind, Mark, ToldRecipient},
};

/// Longest word of SES's that is kept (`bounce_subtype` of the audit).
const WORD_CHARS_MAX: usize = 50;
/// Longest text of a far server that is kept.
const DIAGNOSTIC_CHARS_MAX: usize = 1000;
/// Of a longer one no more is looked at: enough that what is kept ends before it, however much is masked.
const DIAGNOSTIC_CHARS_READ: usize = 32 * DIAGNOSTIC_CHARS_MAX;

/// Reads what SES published at `published_at`.
#[must_use]
pub fn read(body: &str, published_at: DateTime<Utc>) -> FeedbackEvent {
    // "Successfully validated SNS topic for Amazon SES event publishing." is no JSON, and no event.
    let parsed = serde_json::from_str(body);
    let is_unreadable = parsed.is_err() && body.trim_start().starts_with('{');
    let event: Value = parsed.unwrap_or(Value::Null);
    // The one in event publishing, the other in notifications.
    let event_type = text(&event, "/eventType").or_else(|| text(&event, "/notificationType")).unwrap_or("other");
    let mail = event.get("mail").unwrap_or(&Value::Null);
    let (part, list) = parts(event_type);
    let details = event.get(part).unwrap_or(&Value::Null);
    let accepted_at = time(mail, "/timestamp");
    FeedbackEvent {
        event_type: if is_unreadable { "unreadable".to_owned() } else { word(event_type) },
        relay_message_id: text(mail, "/messageId").map(str::to_owned),
        mark: mark(mail),
        has_marks: has_marks(mail),
        accepted_at,
        occurred_at: time(details, "/timestamp").or(accepted_at).unwrap_or(published_at),
        kind: if is_unreadable { FeedbackKind::Unreadable } else { kind(event_type, details) },
        recipients: recipients(details.get(list), mail, details),
    }
}

/// Where an event of this type has its details, and in them its recipients.
fn parts(event_type: &str) -> (&'static str, &'static str) {
    match event_type {
        "Bounce" => ("bounce", "bouncedRecipients"),
        "Complaint" => ("complaint", "complainedRecipients"),
        "Delivery" => ("delivery", "recipients"),
        "DeliveryDelay" => ("deliveryDelay", "delayedRecipients"),
        "Reject" => ("reject", ""),
        "Rendering Failure" | "RenderingFailure" => ("failure", ""),
        "Open" => ("open", ""),
        "Click" => ("click", ""),
        "Subscription" => ("subscription", ""),
        _ => ("send", ""),
    }
}

fn kind(event_type: &str, details: &Value) -> FeedbackKind {
    let bounced = |permanent, subtype: &str, blames_address| FeedbackKind::Bounced {
        bounce: Bounce { permanent, subtype: word(subtype) },
        blames_address,
    };
    match event_type {
        "Send" => FeedbackKind::Accepted,
        "Delivery" => FeedbackKind::Delivered,
        "DeliveryDelay" => FeedbackKind::Delayed { cause: word(text(details, "/delayType").unwrap_or("Undetermined")) },
        "Bounce" => {
            let permanent = text(details, "/bounceType") == Some("Permanent");
            let subtype = text(details, "/bounceSubType").or_else(|| text(details, "/bounceType"));
            let subtype = subtype.unwrap_or("Undetermined");
            // Who left a list has an address that works.
            bounced(permanent, subtype, permanent && subtype != "UnsubscribedRecipient")
        }
        "Complaint" => {
            let feedback_type = text(details, "/complaintFeedbackType").or_else(|| text(details, "/complaintSubType"));
            FeedbackKind::Complained { feedback_type: word(feedback_type.unwrap_or("undetermined")) }
        }
        // The content is at fault, not the address.
        "Reject" => bounced(true, "Reject", false),
        "Rendering Failure" | "RenderingFailure" => bounced(true, "RenderingFailure", false),
        "Open" => FeedbackKind::Opened,
        "Click" => FeedbackKind::Clicked,
        "Subscription" => FeedbackKind::Subscription,
        _ => FeedbackKind::Other,
    }
}

/// Those that the event names, or else all of the mail's.
fn recipients(named: Option<&Value>, mail: &Value, details: &Value) -> Vec<ToldRecipient> {
    // Read once, however many are named.
    let of_all = ["/smtpResponse", "/reason", "/errorMessage"].iter().find_map(|at| text(details, at)).map(diagnostic);
    let listed = named.and_then(Value::as_array).filter(|list| !list.is_empty());
    let all = listed.or_else(|| mail.get("destination").and_then(Value::as_array));
    all.into_iter()
        .flatten()
        .filter_map(|entry| {
            // A name, or an object with more about it.
            let address = entry.as_str().or_else(|| text(entry, "/emailAddress"))?;
            let own = text(entry, "/diagnosticCode").or_else(|| text(entry, "/status")).map(diagnostic);
            Some(ToldRecipient { address: bare(address).to_owned(), diagnostic: own.or_else(|| of_all.clone()) })
        })
        .collect()
}

/// A far server's words as they are kept.
fn diagnostic(words: &str) -> String {
    let read: String = words.chars().filter(|c| !c.is_control()).take(DIAGNOSTIC_CHARS_READ).collect();
    mask_all(&read).chars().take(DIAGNOSTIC_CHARS_MAX).collect()
}

/// `Somebody <somebody@example.org>` is `somebody@example.org`.
fn bare(address: &str) -> &str {
    let inner = address.rsplit_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map_or(address, |(address, _)| address).trim()
}

/// Our own words about the mail: a header where SES returns those, else the message's tags.
fn mark(mail: &Value) -> Option<Mark> {
    let headers = mail.get("headers").and_then(Value::as_array).into_iter().flatten();
    let ours = headers
        .filter(|header| text(header, "/name").is_some_and(|name| name.eq_ignore_ascii_case(Mark::HEADER)))
        .find_map(|header| Mark::read(text(header, "/value")?));
    ours.or_else(|| {
        let values = mail.get("tags").and_then(|tags| tags.get(Mark::TAG))?;
        Mark::read_tag(text(values, "/0")?)
    })
}

/// Whether SES is set up to give anything of the mail back.
fn has_marks(mail: &Value) -> bool {
    let has_headers = mail.get("headers").and_then(Value::as_array).is_some_and(|headers| !headers.is_empty());
    let tags = mail.get("tags").and_then(Value::as_object);
    // SES's own tags begin so, and are always there.
    has_headers || tags.is_some_and(|tags| tags.keys().any(|name| !name.starts_with("ses:")))
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str().filter(|text| !text.is_empty())
}

/// Most are RFC 3339; some of SES's have ` +0000` at their end.
fn time(value: &Value, pointer: &str) -> Option<DateTime<Utc>> {
    let text = text(value, pointer)?;
    let time = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f %z"))
        .ok()?;
    // As exact as the database keeps it.
    DateTime::from_timestamp_micros(time.timestamp_micros())
}

fn word(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORD_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
