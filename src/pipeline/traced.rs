//! What traces tell of a message: one span for each delivery, and below it what the stages did.
//!
//! ```text
//! process email.standard              the delivery, below the producer's span (see [`crate::telemetry::origin`])
//! ├─ decode, render, fetch             fetch: attachments that lie elsewhere
//! ├─ admit
//! │  ├─ place                         waiting for a relay and a connection; below it the steps of one that was opened for it
//! │  └─ claim                         rows and claim committed
//! ├─ deliver                          one recipient
//! │  ├─ build
//! │  ├─ SMTP send                     one relay; below it each step of the dialogue
//! │  └─ commit                        the outcome
//! ├─ publish email.retry.standard.10s a retry copy; or a dead letter
//! └─ ack email.standard
//! ```
//!
//! Names and attributes are those of OpenTelemetry's conventions for messaging where there are any, and `email.*` else.
//!
//! Invariant: as in [`crate::telemetry::span`], nobody and nothing of a mail's content is named.

use std::time::Duration;

use chrono::Utc;
use opentelemetry_semantic_conventions::attribute as semconv;
use uuid::Uuid;

use super::Pipeline;
use crate::{
    broker::{Delivery, Outgoing, topology},
    email::{EmailRequest, LinkFault, Phase, SendReport},
    smtp::{Sent, Steps},
    store::Claim,
    telemetry::{
        origin::Headers,
        span::{Make, Span},
    },
};

/// What `messaging.system` is.
pub(super) const SYSTEM: &str = "rabbitmq";
/// What a producer has named may be long.
const NAME_CHARS_MAX: usize = 100;

impl Pipeline {
    /// The span of a delivery.
    pub(super) fn traced(&self, delivery: &Delivery) -> Span {
        let envelope = &delivery.envelope;
        let origin = || {
            let since = envelope.replayed_at.max(envelope.published_at);
            let age = since.and_then(|at| (Utc::now() - at).to_std().ok()).unwrap_or(Duration::ZERO);
            let headers = Headers {
                traceparent: envelope.traceparent.as_deref(),
                tracestate: envelope.tracestate.as_deref(),
                earlier_try: envelope.earlier_try.as_deref(),
                given_up: envelope.given_up.as_deref(),
                is_replay: envelope.replayed_at.is_some(),
            };
            headers.origin(age)
        };
        self.tracer.begin(origin, || {
            let queue = topology::lane_queue(envelope.lane);
            let mut make = Make::consumer(format!("process {queue}"))
                .with(semconv::MESSAGING_SYSTEM, SYSTEM)
                .with(semconv::MESSAGING_OPERATION_NAME, "process")
                .with(semconv::MESSAGING_OPERATION_TYPE, "process")
                .with(semconv::MESSAGING_DESTINATION_NAME, queue)
                .with(semconv::MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY, short(&envelope.routing_key))
                .with(semconv::MESSAGING_RABBITMQ_MESSAGE_DELIVERY_TAG, number(delivery.tag()))
                .with(semconv::MESSAGING_MESSAGE_BODY_SIZE, number(delivery.body.len() as u64))
                .with("email.lane", envelope.lane.name())
                .with("email.redelivered", envelope.redelivered);
            // Any other text is the producer's, and may name anybody.
            if let Some(id) = envelope.message_id.as_deref().and_then(|text| Uuid::parse_str(text).ok()) {
                make = make.with(semconv::MESSAGING_MESSAGE_ID, id.to_string());
            }
            if envelope.is_copy {
                make = make.with("email.copy", i64::from(envelope.copy_no));
            }
            if envelope.generation > 0 {
                make = make.with("email.generation", i64::from(envelope.generation));
            }
            make
        })
    }
}

/// What is known of a delivery once it is decoded.
pub(super) fn decoded(span: &Span, request: &EmailRequest) {
    if span.is_on() {
        span.set("email.request_id", request.id.to_string());
        span.set("email.source", short(&request.source));
        span.set("email.template", short(&request.template_key));
        span.set("email.recipients", number(request.recipients.len() as u64));
    }
}

/// One recipient's mail.
pub(super) fn deliver(claim: &Claim) -> Make {
    Make::internal("deliver")
        .with("email.row_id", claim.id.to_string())
        .with("email.attempt", i64::from(claim.attempts) + 1)
}

/// Something that is asked of PostgreSQL.
pub(super) fn database(name: &'static str) -> Make {
    Make::client(name).with(semconv::DB_SYSTEM_NAME, "postgresql")
}

/// A mail on its way to a relay.
pub(super) fn send(relay: &str, (host, port): (&str, u16)) -> Make {
    Make::client("SMTP send")
        .with(semconv::NETWORK_PROTOCOL_NAME, "smtp")
        .with(semconv::SERVER_ADDRESS, host.to_owned())
        .with(semconv::SERVER_PORT, i64::from(port))
        .with("email.relay", relay.to_owned())
}

/// How that went.
pub(super) fn sent(span: &Span, sent: &Sent) {
    if !span.is_on() {
        return;
    }
    for steps in [&sent.opening, &sent.steps].into_iter().flatten() {
        steps_of(span, steps);
    }
    match &sent.report {
        SendReport::Accepted { reply } => span.set("smtp.reply_code", i64::from(reply.code)),
        SendReport::Refused { phase, reply } => {
            span.set("smtp.reply_code", i64::from(reply.code));
            span.set("smtp.phase", phase.name());
            span.fail(reply.code.to_string());
        }
        SendReport::Broken { phase, fault } => {
            span.set("smtp.phase", phase.name());
            span.fail(match fault {
                LinkFault::Closed => "closed",
                LinkFault::Broken(_) => "broken",
                LinkFault::TimedOut(_) => "timeout",
                LinkFault::BadReply => "bad_reply",
            });
        }
        SendReport::NotCapable { .. } => span.fail("not_capable"),
        SendReport::Withdrawn { .. } => span.fail("withdrawn"),
    }
}

/// Each step of a dialogue, below this span.
pub(super) fn steps_of(span: &Span, steps: &Steps) {
    if span.is_on() {
        for (phase, from, to) in steps.iter() {
            span.step(from, to, || Make::internal(step_name(phase)));
        }
    }
}

const fn step_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "SMTP connect",
        Phase::Greeting => "SMTP greeting",
        Phase::Ehlo => "SMTP EHLO",
        Phase::StartTls => "SMTP STARTTLS",
        Phase::Auth => "SMTP AUTH",
        Phase::Mail => "SMTP MAIL",
        Phase::Rcpt => "SMTP RCPT",
        Phase::Data => "SMTP DATA",
        Phase::Content => "SMTP content",
        Phase::FinalDot => "SMTP final dot",
    }
}

/// A copy or letter that is published.
pub(super) fn publish(outgoing: &Outgoing) -> Make {
    let destination = destination(outgoing);
    Make::producer(format!("publish {destination}"))
        .with(semconv::MESSAGING_SYSTEM, SYSTEM)
        .with(semconv::MESSAGING_OPERATION_NAME, "publish")
        .with(semconv::MESSAGING_OPERATION_TYPE, "send")
        .with(semconv::MESSAGING_DESTINATION_NAME, destination.to_owned())
        .with(semconv::MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY, short(&outgoing.routing_key))
        .with(semconv::MESSAGING_MESSAGE_BODY_SIZE, number(outgoing.body.len() as u64))
}

/// Where something is published: the exchange, or with the default exchange the queue.
pub(super) const fn destination(outgoing: &Outgoing) -> &str {
    if outgoing.exchange.is_empty() { outgoing.routing_key.as_str() } else { outgoing.exchange.as_str() }
}

/// The acknowledgement.
pub(super) fn ack(delivery: &Delivery) -> Make {
    let queue = topology::lane_queue(delivery.envelope.lane);
    Make::client(format!("ack {queue}"))
        .with(semconv::MESSAGING_SYSTEM, SYSTEM)
        .with(semconv::MESSAGING_OPERATION_NAME, "ack")
        .with(semconv::MESSAGING_OPERATION_TYPE, "settle")
        .with(semconv::MESSAGING_DESTINATION_NAME, queue)
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn short(text: &str) -> String {
    text.chars().take(NAME_CHARS_MAX).collect()
}
