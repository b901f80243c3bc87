//! The producer's side: a request becomes an AMQP message as the contract asks for it.
//!
//! Used by `postrider publish` and by test mails, and what a Rust producer can use as it is.

use std::{collections::HashMap, str::FromStr};

use bytes::Bytes;
use chrono::Utc;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    broker::{Outgoing, delivery::PUBLISHED_AT},
    email::Priority,
    pipeline::decode::MESSAGE_BYTES_MAX,
    wire,
};

/// A request that is not right, told before it is published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Nothing would carry it: with an alternate exchange the broker returns nothing, so the key is checked here.
    #[error("{0}")]
    Routing(String),
    /// RabbitMQ 4 would not take it.
    #[error("the request has {0} bytes encoded, more than {MESSAGE_BYTES_MAX}: send large attachments by reference")]
    TooLarge(usize),
}

/// What a request is made of.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The idempotency key.
    pub request_id: Uuid,
    /// Who asks.
    pub source: String,
    /// Which template.
    pub template_key: String,
    /// A pinned version; 0: the active one.
    pub template_version: u32,
    /// Addresses.
    pub to: Vec<String>,
    /// What the template prints.
    pub variables: Map<String, Value>,
    /// Name, type, bytes.
    pub attachments: Vec<(String, String, Bytes)>,
    /// How urgent.
    pub priority: Priority,
    /// Echoed on events.
    pub metadata: HashMap<String, String>,
}

impl Draft {
    /// As it travels.
    #[must_use]
    pub fn into_wire(self) -> wire::EmailRequest {
        let recipients =
            self.to.into_iter().map(|address| wire::Recipient { address, display_name: String::new() }).collect();
        let attachments = self
            .attachments
            .into_iter()
            .map(|(file_name, content_type, bytes)| wire::Attachment {
                file_name,
                content_type,
                content: Some(wire::AttachmentContent::Inline(bytes)),
                content_id: String::new(),
            })
            .collect();
        let fields = self.variables.into_iter().map(|(name, value)| (name, struct_value(value))).collect();
        wire::EmailRequest {
            request_id: self.request_id.to_string(),
            source: self.source,
            template_key: self.template_key,
            template_version: self.template_version,
            recipients,
            variables: Some(wire::Struct { fields }),
            attachments,
            priority: wire_priority(self.priority).into(),
            metadata: self.metadata,
            ..wire::EmailRequest::default()
        }
    }
}

/// A priority as it travels.
#[must_use]
pub const fn wire_priority(priority: Priority) -> wire::Priority {
    match priority {
        Priority::P0 => wire::Priority::P0,
        Priority::P1 => wire::Priority::P1,
        Priority::P2 => wire::Priority::P2,
        Priority::P3 => wire::Priority::P3,
    }
}

fn struct_value(value: Value) -> wire::Value {
    let kind = match value {
        Value::Null => wire::ValueKind::NullValue(0),
        Value::Bool(yes) => wire::ValueKind::BoolValue(yes),
        Value::Number(n) => wire::ValueKind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(text) => wire::ValueKind::StringValue(text),
        Value::Array(items) => {
            wire::ValueKind::ListValue(prost_types::ListValue { values: items.into_iter().map(struct_value).collect() })
        }
        Value::Object(all) => wire::ValueKind::StructValue(wire::Struct {
            fields: all.into_iter().map(|(name, value)| (name, struct_value(value))).collect(),
        }),
    };
    wire::Value { kind: Some(kind) }
}

/// The request's AMQP message for this exchange, persistent and stamped with the time of publishing.
///
/// # Errors
/// When no lane would get it, or it is too large for the broker.
pub fn outgoing(request: &wire::EmailRequest, exchange: &str) -> Result<Outgoing, PublishError> {
    let priority = priority_of(request)?;
    let sound = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
    };
    if !sound(&request.source) {
        return Err(PublishError::Routing(
            "source must be one word of a-z, 0-9, _ and -: it is the first word of the routing key".to_owned(),
        ));
    }
    let body = wire::to_protobuf(request);
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(PublishError::TooLarge(body.len()));
    }
    let now = Utc::now();
    let mut headers = FieldTable::default();
    headers.insert(PUBLISHED_AT.into(), AMQPValue::LongLongInt(now.timestamp_millis()));
    let properties = BasicProperties::default()
        .with_content_type(wire::PROTOBUF.into())
        .with_type(wire::REQUEST_TYPE.into())
        .with_message_id(request.request_id.as_str().into())
        .with_delivery_mode(2)
        .with_priority(priority.amqp())
        .with_timestamp(u64::try_from(now.timestamp()).unwrap_or(0))
        .with_headers(headers);
    Ok(Outgoing {
        exchange: exchange.to_owned(),
        routing_key: format!("{}.{}", request.source, priority.routing_word()),
        properties,
        body,
    })
}

/// The priority that a request asks for.
///
/// # Errors
/// When it asks for none.
pub fn priority_of(request: &wire::EmailRequest) -> Result<Priority, PublishError> {
    wire::Priority::try_from(request.priority)
        .ok()
        .and_then(|p| Priority::from_str(p.as_str_name()).ok())
        .ok_or_else(|| PublishError::Routing("priority must be P0, P1, P2 or P3: it picks the lane".to_owned()))
}
