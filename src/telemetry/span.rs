//! Spans as the stages see them: there, or nothing. Nobody but this file touches OpenTelemetry's tracing API.
//!
//! Invariant: where nothing is traced, or this message is not sampled, a span is an empty option: no name is built, no
//! attribute is kept, no clock is read.
//! Invariant: attributes hold names, numbers and ids of ours only. No address, no subject, no variable, and no words of a relay,
//! which may hold an address: what went wrong is told by its class.

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _},
};
use opentelemetry_sdk::trace::SdkTracer;
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use super::origin::{Origin, traceparent};

/// Makes spans, or none.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<SdkTracer>);

/// A span under way, which ends when it is dropped; or nothing.
#[derive(Default)]
pub struct Span(Option<Box<Recording>>);

struct Recording {
    tracer: SdkTracer,
    context: SpanContext,
    span: Mutex<opentelemetry_sdk::trace::Span>,
}

/// What a span is made with.
pub struct Make {
    name: Cow<'static, str>,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
}

impl Make {
    /// Something that is done here.
    pub fn internal(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), kind: SpanKind::Internal, attributes: Vec::new() }
    }

    /// Something that is asked of another program.
    pub fn client(name: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: SpanKind::Client, ..Self::internal(name) }
    }

    /// A message that is published.
    pub fn producer(name: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: SpanKind::Producer, ..Self::internal(name) }
    }

    /// A message that is worked on.
    pub fn consumer(name: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: SpanKind::Consumer, ..Self::internal(name) }
    }

    /// With this attribute.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push(KeyValue::new(key, value));
        self
    }

    fn builder(self) -> SpanBuilder {
        SpanBuilder::from_name(self.name).with_kind(self.kind).with_attributes(self.attributes)
    }
}

impl Tracer {
    /// Makes spans.
    #[must_use]
    pub const fn new(tracer: SdkTracer) -> Self {
        Self(Some(tracer))
    }

    /// Begins the span of a message that comes from there. The closures are called where something is traced only.
    pub fn begin(&self, origin: impl FnOnce() -> Origin, make: impl FnOnce() -> Make) -> Span {
        let Some(tracer) = &self.0 else { return Span(None) };
        let Origin { parent, links } = origin();
        start(tracer, parent, links, make().builder())
    }
}

/// Nothing, where the sampler does not want it.
fn start(tracer: &SdkTracer, parent: Option<SpanContext>, links: Vec<Link>, builder: SpanBuilder) -> Span {
    let context = match parent {
        Some(parent) => Context::new().with_remote_span_context(parent),
        None => Context::new(),
    };
    let span = tracer.build_with_context(builder.with_links(links), &context);
    if !span.span_context().is_sampled() {
        return Span(None);
    }
    let context = span.span_context().clone();
    Span(Some(Box::new(Recording { tracer: tracer.clone(), context, span: Mutex::new(span) })))
}

impl Span {
    /// No span.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// A step of this, which begins now.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Self {
        self.make(|| Make::internal(name))
    }

    /// The same of any kind. The closure is called where something is traced only.
    pub fn make(&self, make: impl FnOnce() -> Make) -> Self {
        match &self.0 {
            Some(recording) => recording.child(make().builder()),
            None => Self(None),
        }
    }

    /// A step of this that began and ended then.
    pub fn step(&self, from: Instant, to: Instant, make: impl FnOnce() -> Make) {
        let Some(recording) = &self.0 else { return };
        // The steps' clock never goes back, and says nothing of the time of day.
        let (now, clock) = (Instant::now(), SystemTime::now());
        let at = |moment: Instant| clock - now.saturating_duration_since(moment);
        if let Some(child) = recording.child(make().builder().with_start_time(at(from))).0 {
            child.lock().end_with_timestamp(at(to));
        }
    }

    /// Says one thing more of it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(recording) = &self.0 {
            recording.lock().set_attribute(KeyValue::new(key, value));
        }
    }

    /// It did not do what it was to do. `class`: one of a small set.
    pub fn fail(&self, class: impl Into<Cow<'static, str>>) {
        if let Some(recording) = &self.0 {
            let (mut span, class): (_, Cow<'static, str>) = (recording.lock(), class.into());
            span.set_attribute(KeyValue::new(ERROR_TYPE, class));
            span.set_status(Status::error(""));
        }
    }

    /// Whether anything is kept of it.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// As a `traceparent` header names it.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        self.0.as_ref().map(|recording| traceparent(&recording.context))
    }
}

impl Recording {
    fn child(&self, builder: SpanBuilder) -> Span {
        start(&self.tracer, Some(self.context.clone()), Vec::new(), builder)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, opentelemetry_sdk::trace::Span> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_traced_nothing_is_built() {
        let nobody_asks = || -> Make { panic!("a name was built for nobody") };
        let span = Tracer::default().begin(|| panic!("headers were read for nobody"), nobody_asks);
        let child = span.make(nobody_asks);
        child.step(Instant::now(), Instant::now(), nobody_asks);
        child.set("key", "value");
        child.fail("class");
        assert!(!span.is_on() && !child.is_on() && !span.child("step").is_on());
        assert_eq!((span.traceparent(), size_of::<Span>()), (None, size_of::<usize>()), "it costs a word");
    }
}
