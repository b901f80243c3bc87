use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use lapin::types::AMQPValue;
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use postrider::{broker::topology, publish, wire};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{broker::Broker, wait::until_some};

/// What a collector does with what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Takes it.
    Takes,
    /// Reads it, and never answers.
    Hangs,
    /// Says 400, which is not worth another try.
    Refuses,
}

/// Somebody who takes OTLP over HTTP.
pub struct Collector {
    address: String,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

struct Seen {
    mood: Mood,
    spans: Mutex<Vec<Traced>>,
    metrics: Mutex<BTreeSet<String>>,
    resource: Mutex<BTreeMap<String, String>>,
    headers: Mutex<HeaderMap>,
    bytes: Mutex<Vec<u8>>,
    asked: AtomicUsize,
}

/// A span as the collector got it.
#[derive(Debug, Clone)]
pub struct Traced {
    pub trace: String,
    pub id: String,
    /// Empty: it has none.
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub from: u64,
    pub to: u64,
    pub attributes: BTreeMap<String, String>,
    /// What a link is for, and the span that it leads to.
    pub links: Vec<(String, String)>,
    pub is_error: bool,
}

impl Traced {
    /// An attribute, which must be there.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).unwrap_or_else(|| panic!("{name} is not in {self:?}"))
    }
}

impl Collector {
    /// One that takes everything.
    pub async fn start() -> Self {
        Self::in_a_mood(Mood::Takes).await
    }

    /// One that behaves like this.
    pub async fn in_a_mood(mood: Mood) -> Self {
        let seen = Arc::new(Seen {
            mood,
            spans: Mutex::default(),
            metrics: Mutex::default(),
            resource: Mutex::default(),
            headers: Mutex::default(),
            bytes: Mutex::default(),
            asked: AtomicUsize::new(0),
        });
        let routes = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .with_state(Arc::clone(&seen));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("it is bound"));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("it serves") });
        Self { address, seen, task }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub fn url(&self) -> &str {
        &self.address
    }

    /// How many exports there were.
    pub fn asked(&self) -> usize {
        self.seen.asked.load(Ordering::SeqCst)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Traced> {
        self.seen.spans.lock().expect("no test panics here").clone()
    }

    /// The spans of a trace, first begun first, once there are this many of this name.
    pub async fn wait_for(&self, trace: &str, name: &str, count: usize) -> Vec<Traced> {
        until_some(&format!("{count} spans {name} of {trace}"), async || {
            let of_trace = self.trace(trace);
            (of_trace.iter().filter(|span| span.name == name).count() >= count).then_some(of_trace)
        })
        .await
    }

    /// The first span for which it is so, once there is one.
    pub async fn find(&self, what: &str, mut is_so: impl FnMut(&Traced) -> bool) -> Traced {
        until_some(what, async || self.spans().into_iter().find(|span| is_so(span))).await
    }

    /// The spans of a trace, first begun first.
    pub fn trace(&self, trace: &str) -> Vec<Traced> {
        let mut spans: Vec<_> = self.spans().into_iter().filter(|span| span.trace == trace).collect();
        spans.sort_by_key(|span| (span.from, span.to));
        spans
    }

    /// The names of all metrics that were pushed.
    pub fn metrics(&self) -> BTreeSet<String> {
        self.seen.metrics.lock().expect("no test panics here").clone()
    }

    /// What was said of the daemon.
    pub fn resource(&self) -> BTreeMap<String, String> {
        self.seen.resource.lock().expect("no test panics here").clone()
    }

    /// A header of the last export.
    pub fn header(&self, name: &str) -> Option<String> {
        let headers = self.seen.headers.lock().expect("no test panics here");
        Some(headers.get(name)?.to_str().expect("text").to_owned())
    }

    /// Whether these bytes were in anything that was pushed, whatever case they had.
    pub fn has_seen(&self, text: &str) -> bool {
        let bytes = self.seen.bytes.lock().expect("no test panics here").to_ascii_lowercase();
        let wanted = text.to_ascii_lowercase();
        bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes())
    }

    /// A producer that publishes a request, and tells this collector of the span in which it did so.
    /// That is no export: those are the daemon's.
    pub async fn publish_traced(&self, broker: &Broker, request: &wire::EmailRequest) -> Producer {
        let producer = Producer::new(true);
        let mut span = producer.span.clone();
        span.start_time_unix_nano = now();
        producer.publish(broker, request).await;
        span.end_time_unix_nano = now();
        self.seen.spans.lock().expect("no test panics here").push(traced(&span));
        producer
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A trace as a tree, for people.
pub fn tree(spans: &[Traced]) -> String {
    let mut text = String::new();
    for root in spans.iter().filter(|span| !spans.iter().any(|other| other.id == span.parent)) {
        branch(spans, root, root.from, 0, &mut text);
    }
    text
}

fn branch(spans: &[Traced], span: &Traced, since: u64, depth: usize, text: &mut String) {
    let ms = |ns: u64| ns as f64 / 1e6;
    let links: Vec<_> = span.links.iter().map(|(what, to)| format!(" -> {what} {to}")).collect();
    text.push_str(&format!(
        "\n{:>9.3} ms +{:>8.3} ms  {}{} [{:?} {}]{}{}",
        ms(span.from.saturating_sub(since)),
        ms(span.to - span.from),
        "   ".repeat(depth),
        span.name,
        span.kind,
        span.id,
        span.attributes.get("error.type").map(|class| format!(" error.type={class}")).unwrap_or_default(),
        links.join(""),
    ));
    for child in spans.iter().filter(|other| other.parent == span.id) {
        branch(spans, child, since, depth + 1, text);
    }
}

/// A producer's span.
#[derive(Debug, Clone)]
pub struct Producer {
    span: Span,
    is_sampled: bool,
}

impl Producer {
    /// A new one, kept or not.
    pub fn new(is_sampled: bool) -> Self {
        let trace_id = uuid::Uuid::new_v4().as_bytes().to_vec();
        let span_id = uuid::Uuid::new_v4().as_bytes()[..8].to_vec();
        let span = Span {
            trace_id,
            span_id,
            name: "publish email.requests".to_owned(),
            kind: SpanKind::Producer.into(),
            ..Default::default()
        };
        Self { span, is_sampled }
    }

    /// Its trace.
    pub fn trace(&self) -> String {
        hex::encode(&self.span.trace_id)
    }

    /// Its span.
    pub fn id(&self) -> String {
        hex::encode(&self.span.span_id)
    }

    /// Publishes a request within it.
    pub async fn publish(&self, broker: &Broker, request: &wire::EmailRequest) {
        let message = publish::outgoing(request, topology::REQUESTS).expect("a request that can be published");
        let mut headers = message.properties.headers().clone().unwrap_or_default();
        let traceparent = format!("00-{}-{}-{:02x}", self.trace(), self.id(), u8::from(self.is_sampled));
        headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
        broker.publish_raw(&message.routing_key, message.properties.with_headers(headers), &message.body).await;
    }
}

fn now() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_nanos_opt().expect("this century")).expect("after 1970")
}

async fn traces(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("an export of spans");
    if let Some(answer) = note(&seen, headers, &body).await {
        return answer;
    }
    for of_resource in request.resource_spans {
        if let Some(resource) = of_resource.resource {
            *seen.resource.lock().expect("no test panics here") = attributes(&resource.attributes);
        }
        let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| traced(&span));
        seen.spans.lock().expect("no test panics here").extend(spans);
    }
    StatusCode::OK
}

async fn metrics(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportMetricsServiceRequest::decode(body.clone()).expect("an export of metrics");
    if let Some(answer) = note(&seen, headers, &body).await {
        return answer;
    }
    let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    let names = scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name);
    seen.metrics.lock().expect("no test panics here").extend(names);
    StatusCode::OK
}

/// What is answered instead, if the mood is such.
async fn note(seen: &Seen, headers: HeaderMap, body: &Bytes) -> Option<StatusCode> {
    seen.asked.fetch_add(1, Ordering::SeqCst);
    *seen.headers.lock().expect("no test panics here") = headers;
    seen.bytes.lock().expect("no test panics here").extend_from_slice(body);
    match seen.mood {
        Mood::Takes => None,
        Mood::Hangs => std::future::pending().await,
        Mood::Refuses => Some(StatusCode::BAD_REQUEST),
    }
}

fn traced(span: &Span) -> Traced {
    let links = span.links.iter().map(|link| {
        let what = attributes(&link.attributes).remove("email.link").unwrap_or_default();
        (what, hex::encode(&link.span_id))
    });
    Traced {
        trace: hex::encode(&span.trace_id),
        id: hex::encode(&span.span_id),
        parent: hex::encode(&span.parent_span_id),
        name: span.name.clone(),
        kind: span.kind(),
        from: span.start_time_unix_nano,
        to: span.end_time_unix_nano,
        attributes: attributes(&span.attributes),
        links: links.collect(),
        is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), words(pair.value.as_ref()))).collect()
}

fn words(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}
