//! READ FIRST: the life of one message, in order.
//!
//! ```text
//! consume -> decode -> render -> admit -> deliver -> settle
//! ```
//!
//! The stages are leaves: they return values, and all branching is here. What each failure becomes:
//!
//! | stage | failure | becomes |
//! |---|---|---|
//! | decode | not a request, or it breaks a limit | dead letter; the letter is the record |
//! | render | template, variable, attachment | row `failed`, dead letter |
//! | admit | duplicate, not due, busy, conflict, store away | ack, delayed copy, dead letter, wait |
//! | deliver | what the relay said, or the link's end | the row, as [`crate::retry`] decides |
//! | settle | broker away | unacknowledged: it comes back and finds its rows |
//!
//! Invariant: write, act, write, ack. The row says `sending` before the first SMTP byte, the outcome is committed after the
//! last one, and only then is the delivery settled.
//! Invariant: a delivery that cannot be settled is dropped unacknowledged. Nothing is lost: the broker has it.

/// Stage 2.
pub mod decode;

/// Stage 3.
mod render;

/// Stage 4.
mod admit;

/// Stage 5.
mod deliver;

/// Stage 6.
mod settle;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use self::settle::{Settlement, dead_letter_headers};
use self::{decode::Decoded, render::Rendering};
use crate::{
    broker::{Delivery, Publisher, Topology},
    config::{MailConfig, PipelineConfig},
    email::{EmailRequest, Envelope, PerLane, Reason, Status},
    faults::{self, Point},
    metrics::Metrics,
    smtp::Relays,
    store::{Standing, Store},
    templates::Catalogue,
};

/// Recipients of one request that are sent to side by side.
const RECIPIENTS_AT_ONCE: usize = 8;
/// A message that crashed a stage this often by itself is parked.
const CRASHES_MAX: i32 = 3;

/// Everything a message needs on its way.
pub struct Pipeline {
    /// Limits and rules.
    pub rules: PipelineConfig,
    /// What every mail carries.
    pub mail: MailConfig,
    /// Templates, compiled.
    pub catalogue: Arc<Catalogue>,
    /// The audit.
    pub store: Arc<Store>,
    /// The relays.
    pub relays: Arc<Relays>,
    /// For retry copies and dead letters: each lane has its own channels.
    pub publishers: PerLane<Arc<Publisher>>,
    /// Names of queues.
    pub topology: Topology,
    /// Whether feedback can settle an unknown outcome.
    pub has_feedback: bool,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The daemon stops: hand back what has not reached the relay.
    pub stop: CancellationToken,
}

/// What became of one recipient in this delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Over, here and now.
    Over(Status),
    /// It was over before: this delivery is a duplicate.
    Duplicate,
    /// To be tried again; the row says so since this delivery.
    Retry(Duration),
    /// To be looked at again; nothing new was decided.
    Wait(Duration),
    /// Over, and not well: a dead letter is owed.
    Dead { recipient: String, reason: Reason, error: String, attempts: i32 },
    /// The daemon stops.
    HandBack,
}

impl Pipeline {
    /// Carries one delivery to its settlement. Never panics, never fails: what goes wrong is a settlement too.
    pub async fn carry(self: Arc<Self>, delivery: Delivery) {
        let lane = delivery.envelope.lane;
        let span = tracing::info_span!(
            "message",
            lane = lane.name(),
            request.id = tracing::field::Empty,
            template = tracing::field::Empty,
        );
        let _in_flight = self.metrics.in_flight(lane);
        async {
            faults::reached(Point::Consumed);
            // The stages see a reference, so that a panic in one of them cannot swallow the delivery.
            let result = AssertUnwindSafe(self.process(&delivery)).catch_unwind().await;
            let settlement = result.unwrap_or_else(|panic| crashed(&delivery.envelope, panic.as_ref()));
            self.settle(delivery, settlement).await;
        }
        .instrument(span)
        .await;
    }

    async fn process(&self, delivery: &Delivery) -> Settlement {
        let envelope = &delivery.envelope;
        let Decoded { request, published_at, demoted } =
            match decode::decode(envelope, &delivery.body, &self.rules, Utc::now()) {
                Ok(decoded) => decoded,
                Err(malformed) => return Settlement::unreadable(Reason::Malformed, malformed.to_string()),
            };
        faults::reached_by(Point::Decoded, request.id);
        let span = tracing::Span::current();
        span.record("request.id", tracing::field::display(request.id));
        span.record("template", request.template_key.as_str());
        if demoted && envelope.copy_no == 0 {
            tracing::warn!(source = request.source, "this source may not use P0 (EMAIL_P0_SOURCES): sent as P1");
        }
        if self.is_too_old(published_at) {
            let days = self.rules.audit_retention.as_secs() / 86_400;
            let error =
                format!("published more than {days} days ago (EMAIL_AUDIT_RETENTION_DAYS): it may have been sent");
            return Settlement::unreadable(Reason::TooOld, error).about(&request);
        }
        // The body's priority wins over the routing key, in both directions.
        if request.priority.lane() != envelope.lane {
            return Settlement::Reroute(request.priority.lane());
        }
        if envelope.replayed_at.is_some() && envelope.copy_no == 0 && !envelope.redelivered {
            self.metrics.replayed(envelope.lane);
        }
        let Ok(rendering) = self.render(envelope, &request, published_at).await else {
            return Settlement::HandBack;
        };
        faults::reached_by(Point::Rendered, request.id);
        self.metrics.accepted(envelope.lane, rendering.label());
        self.admit_and_deliver(delivery, &request, published_at, &rendering).await
    }

    async fn admit_and_deliver(
        &self,
        delivery: &Delivery,
        request: &EmailRequest,
        published_at: DateTime<Utc>,
        rendering: &Rendering,
    ) -> Settlement {
        let Some(earlier) = self.earlier_recipients(delivery, request).await else {
            return Settlement::HandBack;
        };
        let message = admit::Message::new(self, delivery, request, published_at, rendering, earlier);
        if let Err(settlement) = self.keep_attachments(&message).await {
            return settlement;
        }
        let (standings, mut place) = match self.admit_all(&message).await {
            Ok(admitted) => admitted,
            Err(settlement) => return settlement,
        };
        // The first recipient that could be claimed was, for there was a place; the others go their own way beside it. If
        // that one needed none after all, another takes the place over: a request that held an idle place while it waits
        // for a second one could stop its lane.
        let first = standings
            .iter()
            .position(|s| matches!(s, Standing::Claimed(_)))
            .or_else(|| standings.iter().position(|s| matches!(s, Standing::Ready)));
        if first.is_none() {
            drop(place.take());
        }
        let journeys = standings.into_iter().enumerate().map(|(index, standing)| {
            let place = if Some(index) == first { place.take() } else { None };
            self.one_recipient(&message, index, standing, place)
        });
        let fates: Vec<Fate> = stream::iter(journeys.collect::<Vec<_>>()).buffered(RECIPIENTS_AT_ONCE).collect().await;
        Settlement::of(&fates, message.copy_no(), request)
    }

    async fn one_recipient(
        &self,
        message: &admit::Message<'_>,
        index: usize,
        standing: Standing,
        place: Option<crate::smtp::Place>,
    ) -> Fate {
        let (standing, place) = match standing {
            Standing::Ready => match self.admit_one(message, index, place).await {
                Ok(admitted) => admitted,
                Err(fate) => return fate,
            },
            other => (other, place),
        };
        match (standing, place) {
            (Standing::Claimed(claim), Some(place)) => self.deliver(message, index, claim, place).await,
            // A claim is only asked for with a place in hand; whatever else this is, it is looked at again later.
            (Standing::Claimed(_) | Standing::Ready, _) => Fate::Wait(Duration::ZERO),
            (Standing::NotDue(due_in), _) => Fate::Wait(due_in),
            (Standing::Busy, _) => Fate::Wait(Duration::ZERO),
            (Standing::Stopped(status), _) => Fate::Over(status),
            (Standing::Settled(_), _) => Fate::Duplicate,
            (Standing::Failed { reason, error, attempts }, _) => {
                Fate::Dead { recipient: message.recipient(index).shown().to_owned(), reason, error, attempts }
            }
        }
    }

    fn is_too_old(&self, published_at: DateTime<Utc>) -> bool {
        let age = (Utc::now() - published_at).to_std().unwrap_or_default();
        age > self.rules.audit_retention
    }
}

/// A stage panicked: the message waits a little and is tried again, and is parked when it does so for the third time.
fn crashed(envelope: &Envelope, panic: &(dyn std::any::Any + Send)) -> Settlement {
    let words = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned());
    tracing::error!(panic = words, "a stage panicked on this message");
    if envelope.crashes + 1 >= CRASHES_MAX {
        Settlement::unreadable(Reason::Poison, format!("a stage panicked {CRASHES_MAX} times: {words}"))
    } else {
        Settlement::AfterCrash { crashes: envelope.crashes + 1 }
    }
}
