//! What is counted: OpenTelemetry instruments, served to Prometheus on `/metrics`.
//!
//! Invariant: labels are lane, template, outcome, result, reason, relay, fault: closed or small sets. Never an address, never a
//! request id.

/// How each lane fares at this moment.
pub mod figures;

mod relays;

mod attachments;

mod retention;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter, MeterProvider, UpDownCounter},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder, Registry, TextEncoder};

use self::figures::Figures;
use crate::{
    email::{Envelope, Lane},
    smtp::Relays,
    store::{Applied, retention::Action},
};

/// What all instruments belong to.
const METER: &str = "postrider";
/// Seconds from publish to the relay's 250: from a millisecond on loopback to the longest rung of a ladder.
const LATENCY_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 21_600.0];

/// What [`crate::email::Outcome`] calls a try that ended without a decision.
const DEFERRED: &str = "deferred";

/// All instruments.
pub struct Metrics {
    registry: Registry,
    // Held, because the instruments die with it.
    provider: SdkMeterProvider,
    accepted: Counter<u64>,
    outcomes: Counter<u64>,
    settled: Counter<u64>,
    dead: Counter<u64>,
    over_cap: Counter<u64>,
    replayed: Counter<u64>,
    latency: Histogram<f64>,
    deadline_missed: Counter<u64>,
    in_flight: UpDownCounter<i64>,
    without_store: Counter<u64>,
    feedback: Counter<u64>,
    feedback_resolved: Counter<u64>,
    feedback_suppressed: Counter<u64>,
    webhook_received: Counter<u64>,
    webhook_refused: Counter<u64>,
    webhook_failed: Counter<u64>,
    unsubscribed: Counter<u64>,
    events_published: Counter<u64>,
    events_unbound: Counter<u64>,
    /// Of the oldest event that waits, in milliseconds since 1970; 0: none does.
    events_since: Arc<AtomicI64>,
    attachments: attachments::Attachments,
    retention: retention::RetentionSeries,
    figures: Arc<Figures>,
}

/// The exporter could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(String);

impl Metrics {
    /// Makes the instruments.
    ///
    /// # Errors
    /// When the exporter cannot be registered.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|error| MetricsError(error.to_string()))?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        let meter = provider.meter(METER);
        let info = meter.u64_gauge("postrider.build").with_description("1, labelled with the version").build();
        info.record(1, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))]);
        Ok(Self {
            accepted: meter
                .u64_counter("email.accepted")
                .with_description("Deliveries that held a well-formed request")
                .build(),
            outcomes: meter.u64_counter("email.outcomes").with_description("Tries, by what the relay said").build(),
            settled: meter
                .u64_counter("email.settled")
                .with_description("Deliveries that left their queue, by how")
                .build(),
            dead: meter.u64_counter("email.dead_letters").with_description("Dead letters, by reason").build(),
            over_cap: meter
                .u64_counter("email.over_cap")
                .with_description("Mails whose recipient had had as many as the cap allows: dropped, or deferred")
                .build(),
            replayed: meter
                .u64_counter("email.replayed")
                .with_description("Dead letters that came back to their lane")
                .build(),
            latency: meter
                .f64_histogram("email.publish_to_accept")
                .with_description("From publish to the relay's 250")
                .with_unit("s")
                .with_boundaries(LATENCY_BUCKETS.to_vec())
                .build(),
            deadline_missed: meter
                .u64_counter("email.deadline_missed")
                .with_description("Mails that the relay took later than their template promises")
                .build(),
            in_flight: meter
                .i64_up_down_counter("email.in_flight")
                .with_description("Deliveries being worked on")
                .build(),
            without_store: meter
                .u64_counter("email.sent_without_database")
                .with_description(
                    "Tries of the fast lane while the database was away; maybe_repeated: nobody could tell",
                )
                .build(),
            feedback: meter
                .u64_counter("email.feedback")
                .with_description(
                    "Events of providers that were applied, by kind; unmatched: their mail is not known (yet)",
                )
                .build(),
            feedback_resolved: meter
                .u64_counter("email.feedback_resolved")
                .with_description("Mails whose outcome was not known, until an event told that the relay has them")
                .build(),
            feedback_suppressed: meter
                .u64_counter("email.feedback_suppressed")
                .with_description("Addresses put on the suppression list by bounces and complaints")
                .build(),
            webhook_received: meter
                .u64_counter("email.webhook_received")
                .with_description("Messages that the webhook took, by what they came to")
                .build(),
            webhook_refused: meter
                .u64_counter("email.webhook_refused")
                .with_description(
                    "Messages that the webhook refused for good, by reason: forged, or a setting is wrong",
                )
                .build(),
            unsubscribed: meter
                .u64_counter("email.unsubscribed")
                .with_description(
                    "People who took themselves off marketing mail, by where; once for each time they said so",
                )
                .build(),
            webhook_failed: meter
                .u64_counter("email.webhook_failed")
                .with_description(
                    "Messages that the webhook could not take, so that their sender repeats them, by fault",
                )
                .build(),
            events_published: meter
                .u64_counter("email.events_published")
                .with_description("Events that the broker has confirmed")
                .build(),
            events_unbound: meter
                .u64_counter("email.events_unbound")
                .with_description("Events that were dropped because no queue was bound to their key")
                .build(),
            events_since: watch_events(&meter),
            attachments: attachments::Attachments::new(&meter),
            retention: retention::RetentionSeries::new(&meter),
            figures: Arc::default(),
            registry,
            provider,
        })
    }

    /// How each lane fares at this moment.
    #[must_use]
    pub const fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }

    /// Shows how these relays fare, each time somebody looks.
    pub fn observe_relays(&self, relays: &Arc<Relays>) {
        relays::observe(&self.provider.meter(METER), relays);
    }

    pub(crate) fn accepted(&self, lane: Lane, template: &str) {
        self.accepted.add(1, &[lane_label(lane), template_label(template)]);
    }

    pub(crate) fn outcome(&self, lane: Lane, template: &str, outcome: &'static str) {
        self.outcomes.add(1, &[lane_label(lane), template_label(template), KeyValue::new("outcome", outcome)]);
        if outcome == DEFERRED {
            self.figures.deferred(lane);
        }
    }

    pub(crate) fn sent(&self, lane: Lane, template: &str, latency: Duration) {
        self.latency.record(latency.as_secs_f64(), &[lane_label(lane), template_label(template)]);
        self.figures.sent(lane, latency);
    }

    pub(crate) fn deadline_missed(&self, lane: Lane, template: &str) {
        self.deadline_missed.add(1, &[lane_label(lane), template_label(template)]);
    }

    pub(crate) fn settled(&self, lane: Lane, how: &'static str) {
        self.settled.add(1, &[lane_label(lane), KeyValue::new("settlement", how)]);
    }

    pub(crate) fn dead(&self, lane: Lane, reason: &'static str) {
        self.dead.add(1, &[lane_label(lane), KeyValue::new("reason", reason)]);
        self.figures.dead(lane);
    }

    /// `result`: `dropped` or `deferred`.
    pub(crate) fn over_cap(&self, lane: Lane, template: &str, result: &'static str) {
        self.over_cap.add(1, &[lane_label(lane), template_label(template), KeyValue::new("result", result)]);
    }

    pub(crate) fn without_store(&self, kind: &'static str) {
        self.without_store.add(1, &[KeyValue::new("kind", kind)]);
    }

    pub(crate) fn feedback(&self, applied: &Applied) {
        for kind in &applied.matched {
            self.feedback.add(1, &[KeyValue::new("kind", *kind)]);
        }
        self.feedback.add(applied.unmatched as u64, &[KeyValue::new("kind", "unmatched")]);
        self.feedback_resolved.add(applied.resolved as u64, &[]);
        self.feedback_suppressed.add(applied.suppressed as u64, &[]);
    }

    pub(crate) fn webhook_received(&self, result: &'static str) {
        self.webhook_received.add(1, &[KeyValue::new("result", result)]);
    }

    pub(crate) fn webhook_refused(&self, reason: &'static str) {
        self.webhook_refused.add(1, &[KeyValue::new("reason", reason)]);
    }

    pub(crate) fn webhook_failed(&self, fault: &'static str) {
        self.webhook_failed.add(1, &[KeyValue::new("fault", fault)]);
    }

    pub(crate) fn unsubscribed(&self, source: &'static str) {
        self.unsubscribed.add(1, &[KeyValue::new("source", source)]);
    }

    pub(crate) fn events(&self, published: usize, unbound: usize) {
        self.events_published.add(u64::try_from(published).unwrap_or(u64::MAX), &[]);
        self.events_unbound.add(u64::try_from(unbound).unwrap_or(u64::MAX), &[]);
    }

    /// When the oldest event happened that waits to be published; nothing: none waits.
    pub(crate) fn events_waiting_since(&self, since: Option<DateTime<Utc>>) {
        self.events_since.store(since.map_or(0, |since| since.timestamp_millis()), Ordering::Relaxed);
    }

    /// A file that a request refers to was asked for; `effort` is how long it took and what came, unless it was kept already.
    pub(crate) fn attachment_fetched(
        &self,
        source: &'static str,
        result: &'static str,
        effort: Option<(Duration, usize)>,
    ) {
        self.attachments.fetched(source, result, effort);
    }

    /// Retention has anonymised or deleted rows of a table.
    pub(crate) fn retained(&self, action: Action, table: &'static str, rows: u64) {
        self.retention.done(action, table, rows);
    }

    pub(crate) fn retention_failed(&self, step: &'static str) {
        self.retention.failed(step);
    }

    /// For how long the oldest row has been due; nothing: none is.
    pub(crate) fn retention_overdue(&self, action: Action, overdue: Option<TimeDelta>) {
        self.retention.overdue(action, overdue);
    }

    /// Another daemon is at work on it, and tells.
    pub(crate) fn retention_elsewhere(&self) {
        self.retention.elsewhere();
    }

    /// All that was due is done.
    pub(crate) fn retention_ended(&self, at: DateTime<Utc>) {
        self.retention.ended(at);
    }

    pub(crate) fn replayed(&self, lane: Lane) {
        self.replayed.add(1, &[lane_label(lane)]);
    }

    /// A delivery was taken, and is worked on until the answer is dropped.
    pub(crate) fn taken(&self, envelope: &Envelope) -> InFlight {
        self.in_flight.add(1, &[lane_label(envelope.lane)]);
        self.figures.taken(envelope);
        InFlight { counter: self.in_flight.clone(), figures: Arc::clone(&self.figures), lane: envelope.lane }
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// When the exporter cannot encode what it holds.
    pub fn render(&self) -> Result<String, MetricsError> {
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .map_err(|error| MetricsError(error.to_string()))?;
        String::from_utf8(out).map_err(|error| MetricsError(error.to_string()))
    }
}

/// Counts a delivery as being worked on until it is dropped, also by a panic.
pub(crate) struct InFlight {
    counter: UpDownCounter<i64>,
    figures: Arc<Figures>,
    lane: Lane,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counter.add(-1, &[lane_label(self.lane)]);
        self.figures.left(self.lane);
    }
}

fn watch_events(meter: &Meter) -> Arc<AtomicI64> {
    let since = Arc::new(AtomicI64::new(0));
    let watched = Arc::clone(&since);
    meter
        .f64_observable_gauge("email.events_waiting")
        .with_description("Age of the oldest event that this daemon has seen and not yet published; 0: none")
        .with_unit("s")
        .with_callback(move |observer| {
            let since = watched.load(Ordering::Relaxed);
            let age_ms = if since == 0 { 0 } else { (Utc::now().timestamp_millis() - since).max(0) };
            observer.observe(age_ms as f64 / 1000.0, &[]);
        })
        .build();
    since
}

fn lane_label(lane: Lane) -> KeyValue {
    KeyValue::new("lane", lane.name())
}

fn template_label(template: &str) -> KeyValue {
    KeyValue::new("template", template.to_owned())
}
