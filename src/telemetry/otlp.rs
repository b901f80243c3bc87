//! Traces and metrics on their way to a collector, by OTLP over HTTP.
//!
//! The SDK's own threads batch and export; the requests themselves run on the daemon's runtime, because the client needs one.
//!
//! Invariant: sending mail never waits for a collector. A span that ends while `QUEUE_MAX` of them wait is dropped and counted, a
//! batch that the collector does not take is dropped and counted, and an export ends after its time at the latest.
//! Invariant: a collector that is away is told in the log once, and once that it is back.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{Context, KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{PeriodicReader, Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span as SdkSpan, SpanData, SpanExporter,
        SpanProcessor,
    },
};
use opentelemetry_semantic_conventions::resource::{HOST_NAME, SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION};
use reqwest_of_object_store as reqwest;
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{sampling::LinkedSampler, span::Tracer};
use crate::config::{Endpoint, TelemetryConfig};

/// Spans that wait or are being exported, at most.
pub const QUEUE_MAX: usize = 8192;
/// Spans of one export.
const BATCH_MAX: usize = 512;
/// Longest wait of a span for others.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// How long what is left may take to be exported when the daemon stops.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// What all spans belong to.
const TRACER: &str = "postrider";

/// Pushing cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The client.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: the HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    /// The exporter.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// What became of spans and exports.
#[derive(Debug, Default)]
pub struct Exported {
    /// Spans that the collector has.
    pub spans: AtomicU64,
    /// Spans dropped because too many waited.
    pub dropped: AtomicU64,
    /// Spans of exports that failed.
    pub failed: AtomicU64,
    /// Exports of metrics that the collector has.
    pub metrics: AtomicU64,
    /// Exports of metrics that failed.
    pub metrics_failed: AtomicU64,
}

/// What pushes the metrics.
pub type MetricsReader = PeriodicReader<Counting<opentelemetry_otlp::MetricExporter>>;

/// Traces and metrics of one daemon on their way out; or nothing, where nothing is to be pushed.
pub struct Otlp {
    tracing: Option<SdkTracerProvider>,
    exported: Arc<Exported>,
    resource: Resource,
}

impl Otlp {
    /// Prepares what the settings ask for, and connects to nobody yet. To be called on the runtime that shall do the work.
    ///
    /// # Errors
    /// When the client or an exporter cannot be made.
    pub fn start(config: &TelemetryConfig) -> Result<(Self, Option<MetricsReader>), OtlpError> {
        let exported = Arc::new(Exported::default());
        let resource = resource(config);
        let (mut tracing, mut metrics) = (None, None);
        if config.traces.is_some() || config.metrics.is_some() {
            let client = Arc::new(OnRuntime::new(config)?);
            if let Some(endpoint) = &config.traces {
                tracing = Some(traces(config, endpoint, &client, &exported, &resource)?);
            }
            if let Some(endpoint) = &config.metrics {
                metrics = Some(metrics_reader(config, endpoint, &client, &exported)?);
            }
        }
        Ok((Self { tracing, exported, resource }, metrics))
    }

    /// Makes spans, where they are wanted.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracing.as_ref().map(|provider| Tracer::new(provider.tracer(TRACER))).unwrap_or_default()
    }

    /// What became of spans and exports so far.
    #[must_use]
    pub const fn exported(&self) -> &Arc<Exported> {
        &self.exported
    }

    /// What traces and metrics say of this daemon.
    #[must_use]
    pub const fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Exports the spans that are left, within a few seconds. What does not get out then is lost.
    pub async fn shut_down(self) {
        let Some(provider) = self.tracing else { return };
        // It waits for its thread.
        let flushing = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_MAX));
        if !matches!(flushing.await, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be exported in time");
        }
    }
}

fn traces(
    config: &TelemetryConfig,
    endpoint: &Endpoint,
    client: &Arc<OnRuntime>,
    exported: &Arc<Exported>,
    resource: &Resource,
) -> Result<SdkTracerProvider, OtlpError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_shared_http_client(Arc::clone(client) as Arc<dyn HttpClient>)
        .with_endpoint(endpoint.as_str())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(config.timeout)
        .with_headers(headers(config))
        .build()?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter =
        CountingSpans { exporter: Counting::new(exporter, "traces", exported), waiting: Arc::clone(&waiting) };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_MAX)
        .with_max_export_batch_size(BATCH_MAX)
        .with_scheduled_delay(BATCH_EVERY)
        .build();
    let batching = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(Bounded { batching, waiting, exported: Arc::clone(exported) })
        .with_sampler(LinkedSampler::new(config.sampling))
        .with_resource(resource.clone())
        .build())
}

fn metrics_reader(
    config: &TelemetryConfig,
    endpoint: &Endpoint,
    client: &Arc<OnRuntime>,
    exported: &Arc<Exported>,
) -> Result<MetricsReader, OtlpError> {
    let exporter = opentelemetry_otlp::MetricExporter::builder()
        .with_http()
        .with_shared_http_client(Arc::clone(client) as Arc<dyn HttpClient>)
        .with_endpoint(endpoint.as_str())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(config.timeout)
        .with_headers(headers(config))
        .with_temporality(Temporality::Cumulative)
        .build()?;
    let exporter = Counting::new(exporter, "metrics", exported);
    Ok(PeriodicReader::builder(exporter).with_interval(config.metrics_every).build())
}

fn headers(config: &TelemetryConfig) -> HashMap<String, String> {
    config.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
}

/// The same for every signal. What the settings say wins over what we know.
fn resource(config: &TelemetryConfig) -> Resource {
    let host = hostname::get().ok().and_then(|name| name.into_string().ok());
    Resource::builder_empty()
        .with_attribute(KeyValue::new(SERVICE_VERSION, env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(SERVICE_INSTANCE_ID, Uuid::new_v4().to_string()))
        .with_attributes(host.map(|host| KeyValue::new(HOST_NAME, host)))
        .with_attributes(config.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone())))
        .with_attribute(KeyValue::new(SERVICE_NAME, config.service_name.clone()))
        .build()
}

/// A client that does its work on the daemon's runtime, whichever thread asks: the SDK's threads have none.
#[derive(Debug)]
struct OnRuntime {
    client: reqwest::Client,
    runtime: Handle,
}

impl OnRuntime {
    fn new(config: &TelemetryConfig) -> Result<Self, OtlpError> {
        // The client asks for the process's provider of TLS, and panics where there is none. Main has chosen the same one; not
        // everybody begins at main.
        drop(rustls::crypto::ring::default_provider().install_default());
        // A header may be a token, which must not follow a redirection elsewhere.
        let client =
            reqwest::Client::builder().timeout(config.timeout).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { client, runtime: Handle::current() })
    }
}

#[async_trait::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Lets a span in while there is room, so that the batching behind it never has to drop one uncounted.
#[derive(Debug)]
struct Bounded {
    batching: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    exported: Arc<Exported>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut SdkSpan, context: &Context) {
        self.batching.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < QUEUE_MAX {
            self.batching.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.exported.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batching.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batching.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batching.set_resource(resource);
    }
}

/// An exporter whose successes and failures are counted, and told in the log when one follows the other.
pub struct Counting<E> {
    exporter: E,
    signal: &'static str,
    exported: Arc<Exported>,
    is_failing: AtomicBool,
}

impl<E> fmt::Debug for Counting<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting").field("signal", &self.signal).finish_non_exhaustive()
    }
}

impl<E> Counting<E> {
    fn new(exporter: E, signal: &'static str, exported: &Arc<Exported>) -> Self {
        Self { exporter, signal, exported: Arc::clone(exported), is_failing: AtomicBool::new(false) }
    }

    fn tell(&self, result: &OTelSdkResult) {
        match result {
            Err(error) if !self.is_failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, signal = self.signal, "the collector takes nothing: what cannot be exported is dropped and counted");
            }
            Ok(()) if self.is_failing.swap(false, Ordering::Relaxed) => {
                tracing::info!(signal = self.signal, "the collector takes exports again");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

#[derive(Debug)]
struct CountingSpans {
    exporter: Counting<opentelemetry_otlp::SpanExporter>,
    waiting: Arc<AtomicUsize>,
}

impl SpanExporter for CountingSpans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let Counting { exporter, exported, .. } = &self.exporter;
        let result = exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let counter = if result.is_ok() { &exported.spans } else { &exported.failed };
        counter.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.exporter.tell(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.exporter.set_resource(resource);
    }
}

impl PushMetricExporter for Counting<opentelemetry_otlp::MetricExporter> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.exporter.export(metrics).await;
        let counter = if result.is_ok() { &self.exported.metrics } else { &self.exported.metrics_failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.tell(&result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
