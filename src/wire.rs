//! The protobuf types of `proto/postrider/v1/email.proto`, and the two encodings that a request may arrive in.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};

mod generated {
    // Generated: the proto file carries the documentation.
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/postrider.v1.rs"));
}

pub use generated::{
    Attachment, EmailEvent, EmailRequest, Priority, Recipient, Reference, attachment::Content as AttachmentContent,
};
pub use prost_types::{Struct, Timestamp, Value, value::Kind as ValueKind};

/// `content_type` of a request in protobuf's binary encoding.
pub const PROTOBUF: &str = "application/x-protobuf";
/// `content_type` of a request in protobuf's JSON mapping.
pub const JSON: &str = "application/json";
/// `type` of a request.
pub const REQUEST_TYPE: &str = "postrider.v1.EmailRequest";
/// `type` of an event.
pub const EVENT_TYPE: &str = "postrider.v1.EmailEvent";

/// Longest complaint about a text that is no request.
const WORDS_CHARS_MAX: usize = 300;

/// The bytes are no request.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not protobuf, or another message.
    #[error("the body is not a protobuf {REQUEST_TYPE}: {}", shortened(&.0.to_string()))]
    Protobuf(#[from] prost::DecodeError),
    /// Not JSON, or not in protobuf's mapping.
    #[error("the body is not {REQUEST_TYPE} in protobuf's JSON mapping: {0}")]
    Json(String),
}

static REQUEST: LazyLock<MessageDescriptor> = LazyLock::new(|| descriptor(REQUEST_TYPE));
static EVENT: LazyLock<MessageDescriptor> = LazyLock::new(|| descriptor(EVENT_TYPE));

fn descriptor(name: &str) -> MessageDescriptor {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/postrider.bin")).as_slice();
    let pool = DescriptorPool::decode(bytes).expect("the build script wrote a sound descriptor set");
    pool.get_message_by_name(name).expect("the proto file defines it")
}

/// Reads a request in protobuf's binary encoding.
///
/// # Errors
/// When the bytes are something else.
pub fn from_protobuf(body: bytes::Bytes) -> Result<EmailRequest, WireError> {
    Ok(EmailRequest::decode(body)?)
}

/// Reads a request in protobuf's JSON mapping. Unknown fields are errors: a misspelt name must not lose what it says.
///
/// # Errors
/// When the text is not JSON, a field is unknown, or a value is of the wrong type; with line and column.
pub fn from_json(body: &[u8]) -> Result<EmailRequest, WireError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(REQUEST.clone(), &mut reader, &options)
        .and_then(|message| reader.end().map(|()| message))
        .map_err(|error| WireError::Json(without_values(&error.to_string())))?;
    Ok(message.transcode_to()?)
}

/// What a reader of JSON complains about, without the texts that it quotes: they are people's data, and of any length.
fn without_values(words: &str) -> String {
    // The only value in quotes of another kind; a field's name in them is what helps.
    let words = match words.split_once("enum value '").zip(words.rsplit_once('\'')) {
        Some(((before, _), (_, after))) => &format!("{before}enum value{after}"),
        None => words,
    };
    let (mut told, mut quoted, mut escaped) = (String::new(), false, false);
    for c in words.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => {
                told.push_str(if quoted { "...\"" } else { "\"" });
                quoted = !quoted;
            }
            _ if quoted || c.is_control() => {}
            _ => told.push(c),
        }
    }
    shortened(&told)
}

/// What is wrong stands at the beginning of a complaint, and where at its end. Between them is a name of any length, or each
/// level of something nested.
fn shortened(words: &str) -> String {
    let count = words.chars().count();
    if count <= WORDS_CHARS_MAX {
        return words.to_owned();
    }
    let half = WORDS_CHARS_MAX / 2;
    words.chars().take(half).chain(" ... ".chars()).chain(words.chars().skip(count - half)).collect()
}

/// The request as protobuf's JSON mapping, for people.
#[must_use]
pub fn to_json(request: &EmailRequest) -> serde_json::Value {
    as_json(&REQUEST, request)
}

/// The event as protobuf's JSON mapping.
#[must_use]
pub fn event_to_json(event: &EmailEvent) -> serde_json::Value {
    as_json(&EVENT, event)
}

fn as_json(descriptor: &MessageDescriptor, from: &impl Message) -> serde_json::Value {
    let mut message = DynamicMessage::new(descriptor.clone());
    if message.transcode_from(from).is_err() {
        return serde_json::Value::Null;
    }
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).unwrap_or(serde_json::Value::Null)
}

/// Reads an event.
///
/// # Errors
/// When the bytes are something else.
pub fn event_from_protobuf(body: bytes::Bytes) -> Result<EmailEvent, prost::DecodeError> {
    EmailEvent::decode(body)
}

/// The request in protobuf's binary encoding.
#[must_use]
pub fn to_protobuf(request: &EmailRequest) -> bytes::Bytes {
    request.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_read_the_same() {
        let json = br#"{"requestId":"x","priority":"P2","recipients":[{"address":"a@example.bj"}],"variables":{"n":45},
            "attachments":[{"fileName":"a.pdf","inline":"JVBERi0="}]}"#;
        let from_text = from_json(json).expect("valid");
        assert_eq!(from_protobuf(to_protobuf(&from_text)).expect("valid"), from_text);
        assert_eq!(from_json(to_json(&from_text).to_string().as_bytes()).expect("valid"), from_text);
    }

    #[test]
    fn a_complaint_about_json_repeats_no_value() {
        for json in [
            r#"{"recipients": "ada@example.bj"}"#,
            r#"{"requestId": {"a": 1}, "recipients": [{"address": ["ada@example.bj"]}]}"#,
            r#"{"notBefore": "ada@example.bj \" ada@example.bj"}"#,
            r#"{"priority": "ada@example.bj"}"#,
            r#"{"templateVersion": "ada@example.bj"}"#,
            r#"{"attachments": [{"inline": "ada@example.bj"}]}"#,
        ] {
            let error = from_json(json.as_bytes()).expect_err(json).to_string();
            assert!(!error.contains("ada"), "{error}");
        }
        let deep = format!("{{\"variables\":{}1{}}}", "{\"a\":".repeat(60), "}".repeat(60));
        assert!(from_json(deep.as_bytes()).expect_err("deep").to_string().chars().count() < 500);
        let long = format!("{{\"{}\": 1}}", "x".repeat(100_000));
        assert!(from_json(long.as_bytes()).expect_err("unknown").to_string().chars().count() < 500);
    }

    #[test]
    fn a_misspelt_field_is_an_error_that_names_it() {
        let error = from_json(br#"{"request_idd":"x"}"#).expect_err("misspelt").to_string();
        assert!(error.contains("request_idd"), "{error}");
    }
}
