//! What is counted: OpenTelemetry instruments, served to Prometheus on `/metrics` and pushed to a collector where there is one.
//!
//! A new metric is a line of [`table`], an instrument made from it, and a method that counts. The tests find what lacks one of these.

/// How each lane fares at this moment.
pub mod figures;

/// One metric as it is declared.
pub mod instrument;

/// All metrics.
pub mod table;

/// What waits.
pub mod queues;

mod daemon;

mod relays;

mod attachments;

mod retention;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter, MeterProvider, UpDownCounter},
};
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use opentelemetry_semantic_conventions::attribute as semconv;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::sync::watch;

use self::{figures::Figures, queues::Counted};
use crate::{
    broker::{ConsumerState, topology},
    email::{Envelope, Lane, PerLane, Reason, Status},
    feedback::front_door::Fault,
    http::{ADMIN, PUBLIC, listener::Refused},
    smtp::Relays,
    store::{
        Applied, Store,
        retention::{Action, steps},
    },
    telemetry::otlp::{MetricsReader, Otlp},
    templates::Catalogue,
};

/// What all instruments belong to.
const METER: &str = "postrider";
/// How long the last push may take when the daemon stops.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// What [`crate::email::Outcome`] calls a try that ended without a decision.
const DEFERRED: &str = "deferred";

/// All instruments.
pub struct Metrics {
    registry: Registry,
    // Held, because the instruments die with it.
    provider: SdkMeterProvider,
    accepted: Counter<u64>,
    outcomes: Counter<u64>,
    retries: Counter<u64>,
    stopped: Counter<u64>,
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
    http_connections: UpDownCounter<i64>,
    http_refused: Counter<u64>,
    events_published: Counter<u64>,
    events_unbound: Counter<u64>,
    /// Of the oldest event that waits, in milliseconds since 1970; 0: none does.
    events_since: Arc<AtomicI64>,
    attachments: attachments::Attachments,
    retention: retention::RetentionSeries,
    /// What every delivery of a lane is labelled with; texts are shared, not copied.
    of_lanes: PerLane<[KeyValue; 3]>,
    consumed: Counter<u64>,
    processed: Histogram<f64>,
    published: Counter<u64>,
    publishing: Histogram<f64>,
    /// What waits, as the broker counts it.
    counted: Counted,
    figures: Arc<Figures>,
}

/// The exporter could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(String);

impl Metrics {
    /// Makes the instruments, for `/metrics` only.
    ///
    /// # Errors
    /// When the exporter cannot be registered.
    pub fn new() -> Result<Self, MetricsError> {
        Self::build(SdkMeterProvider::builder())
    }

    /// The same, pushed as well where there is somebody to push to.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn pushed_by(otlp: &Otlp, reader: Option<MetricsReader>) -> Result<Self, MetricsError> {
        let mut builder = SdkMeterProvider::builder().with_resource(otlp.resource().clone());
        if let Some(reader) = reader {
            builder = builder.with_reader(reader);
        }
        let metrics = Self::build(builder)?;
        daemon::exports(&metrics.provider.meter(METER), otlp.exported());
        Ok(metrics)
    }

    fn build(builder: MeterProviderBuilder) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|error| MetricsError(error.to_string()))?;
        let provider = builder.with_reader(exporter).build();
        let meter = provider.meter(METER);
        table::BUILD.shows(&meter).record(1, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))]);
        let counted = Counted::default();
        queues::observe(&meter, &counted);
        let metrics = Self {
            accepted: table::ACCEPTED.counts(&meter),
            outcomes: table::OUTCOMES.counts(&meter),
            retries: table::RETRIES.counts(&meter),
            stopped: table::STOPPED.counts(&meter),
            settled: table::SETTLED.counts(&meter),
            dead: table::DEAD.counts(&meter),
            over_cap: table::OVER_CAP.counts(&meter),
            replayed: table::REPLAYED.counts(&meter),
            latency: table::LATENCY_ALL.records(&meter),
            deadline_missed: table::DEADLINE_MISSED.counts(&meter),
            in_flight: table::IN_FLIGHT.goes_up_and_down(&meter),
            without_store: table::WITHOUT_STORE.counts(&meter),
            feedback: table::FEEDBACK.counts(&meter),
            feedback_resolved: table::FEEDBACK_RESOLVED.counts(&meter),
            feedback_suppressed: table::FEEDBACK_SUPPRESSED.counts(&meter),
            webhook_received: table::WEBHOOK_RECEIVED.counts(&meter),
            webhook_refused: table::WEBHOOK_REFUSED.counts(&meter),
            unsubscribed: table::UNSUBSCRIBED.counts(&meter),
            http_connections: table::HTTP_CONNECTIONS.goes_up_and_down(&meter),
            http_refused: table::HTTP_REFUSED.counts(&meter),
            webhook_failed: table::WEBHOOK_FAILED.counts(&meter),
            events_published: table::EVENTS_PUBLISHED.counts(&meter),
            events_unbound: table::EVENTS_UNBOUND.counts(&meter),
            events_since: watch_events(&meter),
            attachments: attachments::Attachments::new(&meter),
            retention: retention::RetentionSeries::new(&meter),
            of_lanes: PerLane::from_fn(|lane| messaging_labels("process", &topology::lane_queue(lane))),
            consumed: table::CONSUMED.counts(&meter),
            processed: table::PROCESSED.records(&meter),
            published: table::PUBLISHED.counts(&meter),
            publishing: table::PUBLISHING.records(&meter),
            counted,
            figures: Arc::default(),
            registry,
            provider,
        };
        metrics.begin();
        Ok(metrics)
    }

    /// Series whose labels are known are there from the start, so that the first of them shows as a rise.
    fn begin(&self) {
        for lane in Lane::ALL {
            self.replayed.add(0, &[lane_label(lane)]);
        }
        for kind in ["first", "maybe_repeated"] {
            self.without_store.add(0, &[KeyValue::new("kind", kind)]);
        }
        for fault in Fault::ALL {
            self.webhook_failed.add(0, &[KeyValue::new("fault", fault.name())]);
        }
        for source in ["one-click", "page"] {
            self.unsubscribed.add(0, &[KeyValue::new("source", source)]);
        }
        for listener in [ADMIN, PUBLIC] {
            self.http_connections.add(0, &[KeyValue::new("listener", listener)]);
            for reason in Refused::ALL.into_iter().filter(|reason| listener == ADMIN || !reason.is_of_operators()) {
                self.http_refused
                    .add(0, &[KeyValue::new("listener", listener), KeyValue::new("reason", reason.name())]);
            }
        }
        for step in steps() {
            self.retention.done(step.action, step.table, 0);
        }
        for counter in
            [&self.feedback_resolved, &self.feedback_suppressed, &self.events_published, &self.events_unbound]
        {
            counter.add(0, &[]);
        }
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

    /// Shows whether the database is there, and how its batches are committed.
    pub fn observe_store(&self, store: &Arc<Store>) {
        daemon::store(&self.provider.meter(METER), store);
    }

    /// Shows what the lanes' consumers do.
    pub fn observe_lanes(&self, states: PerLane<watch::Receiver<ConsumerState>>) {
        daemon::lanes(&self.provider.meter(METER), &self.figures, states);
    }

    /// Shows which words are sent.
    pub fn observe_templates(&self, catalogue: &Arc<Catalogue>) {
        daemon::templates(&self.provider.meter(METER), catalogue);
    }

    /// Shows whether a mail could go the whole way, for as long as the one lives who knows.
    pub fn observe_readiness<T: Send + Sync + 'static>(&self, who: Weak<T>, is_ready: fn(&T) -> bool) {
        daemon::readiness(&self.provider.meter(METER), who, is_ready);
    }

    /// Where to put what waits, as the broker counts it.
    #[must_use]
    pub const fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Pushes what was counted last, within a few seconds, and ends all pushing.
    pub async fn shut_down(&self) {
        let provider = self.provider.clone();
        // It waits for its thread, and takes no limit.
        let flushing = tokio::task::spawn_blocking(move || provider.shutdown());
        if tokio::time::timeout(FLUSH_MAX, flushing).await.is_err() {
            tracing::warn!("the last metrics could not be pushed in time");
        }
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

    /// A try after which the mail waits for another one.
    pub(crate) fn retried(&self, lane: Lane, template: &str, outcome: &'static str) {
        self.retries.add(1, &[lane_label(lane), template_label(template), KeyValue::new("outcome", outcome)]);
    }

    /// Policy says no.
    pub(crate) fn stopped(&self, lane: Lane, template: &str, status: Status) {
        self.stopped.add(1, &[lane_label(lane), template_label(template), KeyValue::new("status", status.name())]);
    }

    /// The broker has confirmed a copy or letter.
    pub(crate) fn published(&self, destination: &str, took: Duration) {
        let labels = messaging_labels("publish", destination);
        self.published.add(1, &labels);
        self.publishing.record(took.as_secs_f64(), &labels);
    }

    pub(crate) fn dead(&self, lane: Lane, template: &str, reason: Reason) {
        self.dead.add(1, &[lane_label(lane), template_label(template), KeyValue::new("reason", reason.name())]);
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

    /// A connection to a listener, for as long as the answer lives.
    pub(crate) fn http_connection(&self, listener: &'static str) -> Connected {
        let labels = [KeyValue::new("listener", listener)];
        self.http_connections.add(1, &labels);
        Connected { counter: self.http_connections.clone(), labels }
    }

    pub(crate) fn http_refused(&self, listener: &'static str, reason: Refused) {
        self.http_refused.add(1, &[KeyValue::new("listener", listener), KeyValue::new("reason", reason.name())]);
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
        let labels = self.of_lanes.get(envelope.lane).clone();
        self.consumed.add(1, &labels);
        InFlight {
            counter: self.in_flight.clone(),
            figures: Arc::clone(&self.figures),
            lane: envelope.lane,
            processed: self.processed.clone(),
            labels,
            began: Instant::now(),
        }
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
    processed: Histogram<f64>,
    labels: [KeyValue; 3],
    began: Instant,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counter.add(-1, &[lane_label(self.lane)]);
        self.figures.left(self.lane);
        self.processed.record(self.began.elapsed().as_secs_f64(), &self.labels);
    }
}

/// Counts a connection until it is dropped, also by a panic.
pub(crate) struct Connected {
    counter: UpDownCounter<i64>,
    labels: [KeyValue; 1],
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.counter.add(-1, &self.labels);
    }
}

fn watch_events(meter: &Meter) -> Arc<AtomicI64> {
    let since = Arc::new(AtomicI64::new(0));
    let watched = Arc::clone(&since);
    table::EVENTS_WAITING
        .watched_gauge(meter)
        .with_callback(move |observer| {
            let since = watched.load(Ordering::Relaxed);
            let age_ms = if since == 0 { 0 } else { (Utc::now().timestamp_millis() - since).max(0) };
            observer.observe(age_ms as f64 / 1000.0, &[]);
        })
        .build();
    since
}

fn messaging_labels(operation: &'static str, destination: &str) -> [KeyValue; 3] {
    [
        KeyValue::new(semconv::MESSAGING_SYSTEM, "rabbitmq"),
        KeyValue::new(semconv::MESSAGING_OPERATION_NAME, operation),
        KeyValue::new(semconv::MESSAGING_DESTINATION_NAME, Arc::<str>::from(destination)),
    ]
}

fn lane_label(lane: Lane) -> KeyValue {
    KeyValue::new("lane", lane.name())
}

fn template_label(template: &str) -> KeyValue {
    KeyValue::new("template", template.to_owned())
}
