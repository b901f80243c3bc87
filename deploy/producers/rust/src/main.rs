//! A producer of mail requests in Rust: publishes one, and hears what becomes of them. See the README beside it.
//!
//! ```sh
//! producer publish ada@example.bj 4711     # prints the request's id once the broker has the message
//! producer events [COUNT]                  # prints what became of mails, a JSON object a line
//! ```
//!
//! `AMQP_URL` says where the broker is.
#![allow(clippy::print_stdout, reason = "a command line prints")]

/// What the build script makes of `proto/postrider/v1/email.proto`.
mod proto {
    #![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/postrider.v1.rs"));
}

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use prost::Message;
use prost_types::{Struct, Value, value::Kind};
use uuid::Uuid;

use crate::proto::{EmailEvent, EmailRequest, Priority, Recipient};

/// Where requests go.
const REQUESTS: &str = "email.requests";
/// Where events come from.
const EVENTS: &str = "email.events";
/// Who we are: the first word of routing keys, and of the queue with our events.
const SOURCE: &str = "support";
/// Ours alone; names of requests are made in it.
const NAMESPACE: Uuid = Uuid::from_u128(0x5f1d_9a6e_3c52_4e0b_9a41_6a0f_7a6d_2f11);
/// Publishing is tried this often before it is somebody else's trouble.
const TRIES: u32 = 5;
/// Events that were seen lately, so that one that comes twice counts once.
const SEEN_MAX: usize = 10_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["publish", to, ticket] => println!("{}", publish(&ticket_created(to, ticket.parse()?)).await?),
        ["events"] => events(None).await?,
        ["events", count] => events(Some(count.parse()?)).await?,
        _ => bail!("producer publish ADDRESS TICKET | producer events [COUNT]"),
    }
    Ok(())
}

/// What this service has to say. The id is made from what the mail is about, so that whoever says it again, after a crash
/// or a doubt, says it under the same id, and one mail is sent.
fn ticket_created(to: &str, ticket: u32) -> EmailRequest {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let variables: BTreeMap<String, Value> = [
        ("ticket_number".to_owned(), Value { kind: Some(Kind::NumberValue(f64::from(ticket))) }),
        ("title".to_owned(), text("No signal since this morning")),
        ("priority".to_owned(), text("P2")),
        ("support_link".to_owned(), text(&format!("https://support.example.bj/{ticket}"))),
    ]
    .into();
    EmailRequest {
        request_id: Uuid::new_v5(&NAMESPACE, format!("ticket-created/{ticket}").as_bytes()).to_string(),
        source: SOURCE.to_owned(),
        template_key: "support_ticket_created".to_owned(),
        recipients: vec![Recipient { address: to.to_owned(), display_name: "Ada".to_owned() }],
        variables: Some(Struct { fields: variables }),
        priority: Priority::P1.into(),
        metadata: [("ticket".to_owned(), ticket.to_string())].into(),
        ..EmailRequest::default()
    }
}

/// Returns when the broker has it for good: confirmed, and not returned.
async fn publish(request: &EmailRequest) -> anyhow::Result<&str> {
    let mut pause = Duration::from_millis(200);
    for tries_left in (0..TRIES).rev() {
        match publish_once(request).await {
            Ok(()) => return Ok(&request.request_id),
            // Whether it arrived is not known. The same id makes trying again harmless.
            Err(error) if tries_left > 0 && is_passing(&error) => tokio::time::sleep(pause).await,
            Err(error) => return Err(error),
        }
        pause *= 2;
    }
    bail!("the broker takes nothing")
}

/// A line that broke and a broker that is full are worth another try; what it does not know is not.
fn is_passing(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<lapin::Error>().map(lapin::Error::kind) {
        Some(lapin::ErrorKind::ProtocolError(refusal)) => refusal.get_id() < 400,
        Some(_) => true,
        None => error.is::<Nacked>(),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the broker could not take the message (nack)")]
struct Nacked;

// A service keeps connection and channel open and publishes all its requests over them.
async fn publish_once(request: &EmailRequest) -> anyhow::Result<()> {
    let (_connection, channel) = connect().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut headers = FieldTable::default();
    headers.insert("x-published-at-ms".into(), AMQPValue::LongLongInt(i64::try_from(now.as_millis())?));
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent().into()));
    let properties = BasicProperties::default()
        .with_content_type("application/x-protobuf".into())
        .with_type("postrider.v1.EmailRequest".into())
        .with_message_id(request.request_id.as_str().into())
        .with_delivery_mode(2)
        .with_priority(6)
        .with_timestamp(now.as_secs())
        .with_headers(headers);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirmation = channel
        .basic_publish(REQUESTS.into(), format!("{SOURCE}.p1").into(), options, &request.encode_to_vec(), properties)
        .await?
        .await?;
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            bail!("no queue takes it: {}", returned.reply_text)
        }
        Confirmation::Nack(None) => Err(Nacked.into()),
        Confirmation::NotRequested => bail!("the channel does not confirm"),
    }
}

/// A service with tracing has its current span injected here by its OpenTelemetry propagator; this one begins a trace, unless
/// `TRACEPARENT` names one.
fn traceparent() -> String {
    std::env::var("TRACEPARENT").unwrap_or_else(|_| {
        let (trace, span) = (Uuid::new_v4().simple().to_string(), Uuid::new_v4().simple().to_string());
        format!("00-{trace}-{}-01", &span[..16])
    })
}

/// Prints events from a queue of our own, which keeps them while we are away.
async fn events(mut count: Option<usize>) -> anyhow::Result<()> {
    let (connection, channel) = connect().await?;
    let queue = format!("{SOURCE}.email-events");
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // When nobody reads it, the oldest go: a queue that refused would hold up the events of all.
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(100_000));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, arguments).await?;
    let (key, options) = (format!("{SOURCE}.*"), QueueBindOptions::default());
    channel.queue_bind(queue.as_str().into(), EVENTS.into(), key.into(), options, FieldTable::default()).await?;
    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut deliveries = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    let mut seen = Seen::default();
    while count != Some(0) {
        let delivery = deliveries.next().await.context("the broker ended the subscription")??;
        let event = EmailEvent::decode(delivery.data.as_slice())?;
        if seen.is_new(&event.event_id) {
            let line = serde_json::json!({
                "request_id": event.request_id, "kind": event.kind, "recipient": event.recipient,
                "reason": event.reason, "attempt": event.attempt, "metadata": event.metadata,
            });
            println!("{line}");
            count = count.map(|left| left - 1);
        }
        // Only now: an event that we crash on comes again.
        delivery.ack(BasicAckOptions::default()).await?;
    }
    // An acknowledgement may still be on its way: what goes away without goodbye gets its last event again.
    connection.close(200, "done".into()).await?;
    Ok(())
}

#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    fn is_new(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > SEEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

async fn connect() -> anyhow::Result<(Connection, Channel)> {
    let url = std::env::var("AMQP_URL").context("AMQP_URL is not set")?;
    let properties = ConnectionProperties::default().with_connection_name(SOURCE.into());
    let connection = Connection::connect(&url, properties).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}
