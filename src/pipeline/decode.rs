//! Stage 2: bytes and headers become an [`EmailRequest`], or a reason why they are none.
//!
//! Invariant: what is wrong with the bytes is wrong for ever; every error here is final and names the field and the limit.

/// The payload hash.
mod canonical;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    config::PipelineConfig,
    email::{
        AddressError, Attachment, AttachmentContent, EmailAddress, EmailRequest, Envelope, PayloadHash, Priority,
        Recipient,
        attachment::{clean_file_name, is_content_id},
        request::BadAddress,
    },
    wire,
};

/// A whole request, encoded: RabbitMQ 4's default limit.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const RECIPIENTS_MAX: usize = 100;
const ATTACHMENTS_MAX: usize = 50;
const METADATA_MAX: usize = 32;
const KEY_CHARS_MAX: usize = 100;
const NAME_CHARS_MAX: usize = 255;
const BAD_ADDRESS_CHARS_MAX: usize = 320;
const LOCALE_CHARS_MAX: usize = 35;
const VARIABLES_DEPTH_MAX: usize = 32;
/// Beyond this a double no longer holds every whole number.
const WHOLE_NUMBER_MAX: f64 = 9_007_199_254_740_992.0;

/// Why the bytes are no request that can be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Neither protobuf nor JSON.
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    /// `content_type` names something else.
    #[error("content_type is {0:?}: use {protobuf} or {json}", protobuf = wire::PROTOBUF, json = wire::JSON)]
    ContentType(String),
    /// Larger than RabbitMQ 4 would carry.
    #[error("the message has {0} bytes, more than {MESSAGE_BYTES_MAX}: send large attachments by reference")]
    TooLarge(usize),
    /// A field breaks a rule.
    #[error("{field}: {rule}")]
    Field {
        /// Which, as in the proto file.
        field: String,
        /// What is wrong, and what would be right.
        rule: String,
    },
}

fn field(name: impl Into<String>, rule: impl Into<String>) -> Malformed {
    Malformed::Field { field: name.into(), rule: rule.into() }
}

/// A decoded request, and when it was published.
#[derive(Debug)]
pub struct Decoded {
    /// The request.
    pub request: EmailRequest,
    /// By the producer's clock, else now.
    pub published_at: DateTime<Utc>,
    /// It asked for P0 without being allowed to.
    pub demoted: bool,
}

/// Decodes and checks a message.
///
/// # Errors
/// [`Malformed`]: final, and for people.
pub fn decode(
    envelope: &Envelope,
    body: &Bytes,
    rules: &PipelineConfig,
    now: DateTime<Utc>,
) -> Result<Decoded, Malformed> {
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Malformed::TooLarge(body.len()));
    }
    let content_type = envelope.content_type.as_deref().unwrap_or(wire::PROTOBUF);
    let wire = match content_type.split(';').next().unwrap_or_default().trim() {
        wire::PROTOBUF | "application/protobuf" | "application/octet-stream" | "" => wire::from_protobuf(body.clone())?,
        wire::JSON => wire::from_json(body)?,
        other => return Err(Malformed::ContentType(other.chars().take(100).collect())),
    };
    check(wire, envelope, rules, now)
}

fn check(
    wire: wire::EmailRequest,
    envelope: &Envelope,
    rules: &PipelineConfig,
    now: DateTime<Utc>,
) -> Result<Decoded, Malformed> {
    let id = Uuid::parse_str(&wire.request_id)
        .map_err(|_| field("request_id", "must be a UUID, the producer's idempotency key"))?;
    if let Some(message_id) = &envelope.message_id
        && Uuid::parse_str(message_id).ok() != Some(id)
    {
        return Err(field("message_id", "the AMQP property must be the request_id, or absent"));
    }
    let (key_source, key_priority) = routing_words(&envelope.routing_key);
    let source = match wire.source.as_str() {
        "" => key_source.ok_or_else(|| field("source", "is empty, and the routing key does not name one either"))?,
        given => given.to_owned(),
    };
    plain_key("source", &source)?;
    plain_key("template_key", &wire.template_key)?;
    let asked = match wire::Priority::try_from(wire.priority) {
        Ok(wire::Priority::P0) => Some(Priority::P0),
        Ok(wire::Priority::P1) => Some(Priority::P1),
        Ok(wire::Priority::P2) => Some(Priority::P2),
        Ok(wire::Priority::P3) => Some(Priority::P3),
        Ok(wire::Priority::Unspecified) => None,
        Err(_) => return Err(field("priority", format!("{} is none: use P0, P1, P2 or P3", wire.priority))),
    };
    let asked = asked
        .or(key_priority)
        .ok_or_else(|| field("priority", "is missing, and the routing key does not name one either: use P0 to P3"))?;
    let demoted = asked == Priority::P0 && !rules.p0_sources.contains(&source);
    let priority = if demoted { Priority::P1 } else { asked };

    let locale = optional("locale", &wire.locale, LOCALE_CHARS_MAX)?;
    let reply_to = match wire.reply_to.as_str() {
        "" => None,
        given => Some(EmailAddress::parse(given).map_err(|error| field("reply_to", error.to_string()))?),
    };
    let not_before = wire.not_before.map(|t| moment("not_before", t)).transpose()?;
    let expires_at = wire.expires_at.map(|t| moment("expires_at", t)).transpose()?;
    let furthest = TimeDelta::from_std(rules.not_before_max).unwrap_or(TimeDelta::MAX);
    if not_before.is_some_and(|at| at > now.checked_add_signed(furthest).unwrap_or(DateTime::<Utc>::MAX_UTC)) {
        let days = rules.not_before_max.as_secs() / 86_400;
        return Err(field("not_before", format!("lies more than {days} days ahead (EMAIL_MAX_NOT_BEFORE_DAYS)")));
    }
    if let (Some(from), Some(until)) = (not_before, expires_at)
        && until <= from
    {
        return Err(field("expires_at", "is not after not_before: the mail could never be sent"));
    }
    let metadata = metadata(wire.metadata)?;
    let variables = variables(wire.variables)?;
    let recipients = recipients(wire.recipients)?;
    let attachments = attachments(wire.attachments)?;
    let template_version = match wire.template_version {
        0 => None,
        version => Some(i32::try_from(version).map_err(|_| field("template_version", "is too large"))?),
    };

    let mut request = EmailRequest {
        id,
        payload_hash: PayloadHash([0; 32]),
        source,
        template_key: wire.template_key,
        template_version,
        recipients,
        variables,
        attachments,
        priority,
        locale,
        reply_to,
        not_before,
        expires_at,
        metadata,
    };
    request.payload_hash = canonical::payload_hash(&request, wire.priority);
    Ok(Decoded { request, published_at: envelope.published_at.unwrap_or(now), demoted })
}

/// `<source>.<priority>`, as far as the routing key says so.
fn routing_words(key: &str) -> (Option<String>, Option<Priority>) {
    match key.split_once('.') {
        // A retry copy without our header: the key is the name of its queue.
        Some(("email", _)) | None => (None, None),
        Some((source, priority)) => (Some(source.to_owned()).filter(|s| !s.is_empty()), priority.parse().ok()),
    }
}

fn no_nul(name: &str, text: &str) -> Result<(), Malformed> {
    if text.contains('\0') { Err(field(name, "holds a NUL character, which cannot be stored or sent")) } else { Ok(()) }
}

fn one_line(name: &str, text: &str) -> Result<(), Malformed> {
    no_nul(name, text)?;
    match text.chars().find(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        Some('\r' | '\n') => Err(field(name, "holds a line break, which is not allowed in a header")),
        Some(c) => Err(field(name, format!("holds a control character (U+{:04X})", u32::from(c)))),
        None => Ok(()),
    }
}

fn plain_key(name: &str, text: &str) -> Result<(), Malformed> {
    let sound = !text.is_empty()
        && text.len() <= KEY_CHARS_MAX
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
    if sound {
        return Ok(());
    }
    no_nul(name, text)?;
    Err(field(name, format!("must be 1 to {KEY_CHARS_MAX} of a-z, 0-9, _ and -")))
}

fn optional(name: &str, text: &str, chars_max: usize) -> Result<Option<String>, Malformed> {
    one_line(name, text)?;
    if text.chars().count() > chars_max {
        return Err(field(name, format!("is longer than {chars_max} characters: shorten it")));
    }
    Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty()))
}

fn moment(name: &str, t: wire::Timestamp) -> Result<DateTime<Utc>, Malformed> {
    let nanos = u32::try_from(t.nanos).map_err(|_| field(name, "is not a valid time"))?;
    DateTime::from_timestamp(t.seconds, nanos)
        .filter(|at| (1970..=9999).contains(&chrono::Datelike::year(at)))
        .ok_or_else(|| field(name, "is not a valid time"))
}

fn metadata(given: std::collections::HashMap<String, String>) -> Result<BTreeMap<String, String>, Malformed> {
    if given.len() > METADATA_MAX {
        return Err(field(
            "metadata",
            format!("has {} entries, more than {METADATA_MAX}: leave some out", given.len()),
        ));
    }
    for (name, value) in &given {
        no_nul("metadata", name)?;
        no_nul("metadata", value)?;
        if name.chars().count() > NAME_CHARS_MAX || value.chars().count() > 1024 {
            return Err(field(
                "metadata",
                "a name is longer than 255 or a value longer than 1024 characters: shorten it",
            ));
        }
    }
    Ok(given.into_iter().collect())
}

fn variables(given: Option<wire::Struct>) -> Result<Map<String, Value>, Malformed> {
    let mut all = Map::new();
    for (name, value) in given.unwrap_or_default().fields {
        no_nul("variables", &name)?;
        if name == "postrider" {
            return Err(field("variables.postrider", "is a reserved name"));
        }
        let value = plain_value(&format!("variables.{}", shown_name(&name)), value, 1)?;
        all.insert(name, value);
    }
    // The wire's map has no order of its own; a sorted one renders `each` the same way every time.
    all.sort_keys();
    Ok(all)
}

/// A variable's name for an error, which is kept longer than the message, and stands on one line: only what looks like one.
fn shown_name(name: &str) -> &str {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if (1..=KEY_CHARS_MAX).contains(&name.chars().count()) && name.chars().all(is_plain) { name } else { "?" }
}

fn plain_value(path: &str, value: wire::Value, depth: usize) -> Result<Value, Malformed> {
    if depth > VARIABLES_DEPTH_MAX {
        return Err(field("variables", format!("are nested deeper than {VARIABLES_DEPTH_MAX}: flatten them")));
    }
    Ok(match value.kind {
        None | Some(wire::ValueKind::NullValue(_)) => Value::Null,
        Some(wire::ValueKind::BoolValue(yes)) => Value::Bool(yes),
        Some(wire::ValueKind::NumberValue(n)) => number(path, n)?,
        Some(wire::ValueKind::StringValue(text)) => {
            no_nul(path, &text)?;
            Value::String(text)
        }
        Some(wire::ValueKind::ListValue(list)) => Value::Array(
            list.values.into_iter().map(|item| plain_value(path, item, depth + 1)).collect::<Result<_, _>>()?,
        ),
        Some(wire::ValueKind::StructValue(inner)) => {
            let mut all = Map::new();
            for (name, value) in inner.fields {
                no_nul(path, &name)?;
                let value = plain_value(path, value, depth + 1)?;
                all.insert(name, value);
            }
            all.sort_keys();
            Value::Object(all)
        }
    })
}

/// Struct knows doubles only: a whole one is the integer that its producer meant, and prints as `45`, not `45.0`.
#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and within what a double holds exactly")]
fn number(path: &str, n: f64) -> Result<Value, Malformed> {
    if n.fract() == 0.0 && n.abs() <= WHOLE_NUMBER_MAX {
        return Ok(Value::Number((n as i64).into()));
    }
    Number::from_f64(n).map(Value::Number).ok_or_else(|| field(path, "is not a finite number"))
}

fn recipients(given: Vec<wire::Recipient>) -> Result<Vec<Recipient>, Malformed> {
    let (mut all, mut keys) = (Vec::new(), HashSet::new());
    for (index, recipient) in given.into_iter().enumerate() {
        let name = format!("recipients[{index}].display_name");
        let display_name = optional(&name, &recipient.display_name, NAME_CHARS_MAX)?;
        no_nul(&format!("recipients[{index}].address"), &recipient.address)?;
        let several = recipient.address.contains(',');
        for text in recipient.address.split(',') {
            if several && text.trim().is_empty() {
                continue;
            }
            let address = EmailAddress::parse(text).map_err(|error| bad_address(text, error));
            let one = Recipient { address, display_name: display_name.clone().filter(|_| !several) };
            if !keys.insert(one.key()) {
                continue;
            }
            // A list may name a million: not one more is looked at.
            if all.len() == RECIPIENTS_MAX {
                let rule =
                    format!("names more than {RECIPIENTS_MAX} people: publish a request for each {RECIPIENTS_MAX}");
                return Err(field("recipients", rule));
            }
            all.push(one);
        }
    }
    if all.is_empty() {
        return Err(field("recipients", format!("is empty: 1 to {RECIPIENTS_MAX} are allowed")));
    }
    Ok(all)
}

fn bad_address(text: &str, error: AddressError) -> BadAddress {
    let text = text.trim().chars().filter(|c| !c.is_control()).take(BAD_ADDRESS_CHARS_MAX).collect();
    BadAddress { text, error }
}

fn attachments(given: Vec<wire::Attachment>) -> Result<Vec<Attachment>, Malformed> {
    if given.len() > ATTACHMENTS_MAX {
        return Err(field(
            "attachments",
            format!("has {} files, more than {ATTACHMENTS_MAX}: publish several requests", given.len()),
        ));
    }
    given
        .into_iter()
        .enumerate()
        .map(|(index, attachment)| {
            let name = |part: &str| format!("attachments[{index}].{part}");
            one_line(&name("file_name"), &attachment.file_name)?;
            one_line(&name("content_type"), &attachment.content_type)?;
            let content_id = optional(&name("content_id"), &attachment.content_id, NAME_CHARS_MAX)?;
            if content_id.as_deref().is_some_and(|id| !is_content_id(id)) {
                let rule = "must be printable ASCII without blanks and angle brackets";
                return Err(field(name("content_id"), rule));
            }
            let content = match attachment.content {
                Some(wire::AttachmentContent::Inline(bytes)) => {
                    let sha256 = Sha256::digest(&bytes).into();
                    AttachmentContent::Inline { bytes, sha256 }
                }
                Some(wire::AttachmentContent::Reference(reference)) => AttachmentContent::Reference {
                    sha256: reference
                        .sha256
                        .as_slice()
                        .try_into()
                        .map_err(|_| field(name("reference.sha256"), "must have 32 bytes"))?,
                    uri: reference.uri,
                    size_bytes: reference.size_bytes,
                },
                None => return Err(field(name("content"), "is missing: give the bytes inline, or a reference")),
            };
            let declared = attachment.content_type.split(';').next().unwrap_or_default();
            Ok(Attachment {
                file_name: clean_file_name(&attachment.file_name),
                content_type: declared.trim().to_ascii_lowercase(),
                content,
                content_id,
            })
        })
        .collect()
}
