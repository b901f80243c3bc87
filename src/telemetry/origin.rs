//! Where a message comes from, as its headers say: in which trace its span stands, and what it is linked to.
//!
//! The rule, for the span of one delivery:
//!
//! | delivery | parent | links |
//! |---|---|---|
//! | the producer's own publish, also when it waited long | the producer's span | |
//! | a copy (a retry, another lane) of a young message | the producer's span; without one, or in a trace of our own, the earlier try | the earlier try |
//! | a copy of an old message | none: a trace of its own | the earlier try, the producer's span |
//! | a replay | none: a trace of its own | the try that gave up, the producer's span |
//!
//! A message is old `TOGETHER_MAX` after its publish or replay: what comes hours later would keep a trace open for hours,
//! and whoever collects traces has closed it by then.
//!
//! Pure. Invariant: what cannot be read is as if it were not there; a producer's bad header never stops its mail.

use std::time::Duration;

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{Link, SpanContext, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;

/// How long after its publish or replay a message's tries stand in one trace.
pub const TOGETHER_MAX: Duration = Duration::from_secs(600);

/// Says of a link what it leads to: `earlier_try`, `given_up` or `producer`.
pub const LINK: &str = "email.link";

/// What a message's headers say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    /// The producer's `traceparent`.
    pub traceparent: Option<&'a str>,
    /// The producer's `tracestate`.
    pub tracestate: Option<&'a str>,
    /// The try that published this copy.
    pub earlier_try: Option<&'a str>,
    /// The try whose dead letter is replayed.
    pub given_up: Option<&'a str>,
    /// Somebody replays it, or has.
    pub is_replay: bool,
}

/// Where a span stands.
#[derive(Debug, Default, PartialEq)]
pub struct Origin {
    /// Nothing: it begins a trace.
    pub parent: Option<SpanContext>,
    /// What it goes back to besides.
    pub links: Vec<Link>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Headers<'_> {
    /// Where the span of this delivery stands. `age`: since its publish or replay.
    #[must_use]
    pub fn origin(&self, age: Duration) -> Origin {
        let producer = read(self);
        let of_ours = |text: Option<&str>| read(&Headers { traceparent: text, ..Headers::default() });
        if let Some(earlier) = of_ours(self.earlier_try) {
            let is_old = age > TOGETHER_MAX;
            let mut links = vec![link(&earlier, "earlier_try")];
            if is_old {
                links.extend(producer.as_ref().map(|producer| link(producer, "producer")));
                return Origin { parent: None, links };
            }
            let parent = producer.filter(|producer| producer.trace_id() == earlier.trace_id()).unwrap_or(earlier);
            return Origin { parent: Some(parent), links };
        }
        if self.is_replay {
            let links = of_ours(self.given_up).iter().map(|given_up| link(given_up, "given_up")).collect::<Vec<_>>();
            let producer = producer.iter().map(|producer| link(producer, "producer"));
            return Origin { parent: None, links: links.into_iter().chain(producer).collect() };
        }
        Origin { parent: producer, links: Vec::new() }
    }
}

fn read(headers: &Headers<'_>) -> Option<SpanContext> {
    headers.traceparent?;
    let found = TraceContextPropagator::new().extract_with_context(&Context::new(), headers);
    let context = found.span().span_context().clone();
    context.is_valid().then_some(context)
}

fn link(to: &SpanContext, what: &'static str) -> Link {
    Link::new(to.clone(), vec![KeyValue::new(LINK, what)], 0)
}

/// A span as a `traceparent` header has it.
#[must_use]
pub fn traceparent(context: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const FIRST_TRY: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
    const OF_OURS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const SOON: Duration = Duration::from_secs(20);

    fn told(headers: &Headers<'_>, age: Duration) -> (Option<String>, Vec<(String, String)>) {
        let origin = headers.origin(age);
        let links = origin.links.iter().map(|l| (traceparent(&l.span_context), l.attributes[0].value.to_string()));
        (origin.parent.as_ref().map(traceparent), links.collect())
    }

    fn link_to(text: &str, what: &str) -> (String, String) {
        (text.to_owned(), what.to_owned())
    }

    #[test]
    fn the_producers_publish_is_the_parent_however_long_its_message_waited() {
        let headers = Headers { traceparent: Some(PRODUCER), tracestate: Some("vendor=1"), ..Headers::default() };
        assert_eq!(told(&headers, TOGETHER_MAX * 2), (Some(PRODUCER.to_owned()), vec![]));
        let parent = headers.origin(SOON).parent.expect("a parent");
        assert_eq!((parent.trace_state().get("vendor"), parent.is_remote()), (Some("1"), true));
        assert_eq!(told(&Headers::default(), SOON), (None, vec![]));
    }

    #[test]
    fn a_retry_stands_beside_the_earlier_try_and_is_linked_to_it() {
        let headers = Headers { traceparent: Some(PRODUCER), earlier_try: Some(FIRST_TRY), ..Headers::default() };
        let earlier = link_to(FIRST_TRY, "earlier_try");
        assert_eq!(told(&headers, SOON), (Some(PRODUCER.to_owned()), vec![earlier.clone()]));
        // What comes much later is linked only.
        let producer = link_to(PRODUCER, "producer");
        assert_eq!(told(&headers, TOGETHER_MAX + SOON), (None, vec![earlier, producer]));
        // Nobody told us of a trace: it is the first try's.
        let untold = Headers { earlier_try: Some(OF_OURS), ..Headers::default() };
        assert_eq!(told(&untold, SOON), (Some(OF_OURS.to_owned()), vec![link_to(OF_OURS, "earlier_try")]));
    }

    #[test]
    fn a_replay_begins_a_trace_and_its_retries_stand_in_that() {
        let replay =
            Headers { traceparent: Some(PRODUCER), given_up: Some(FIRST_TRY), is_replay: true, ..Headers::default() };
        let (given_up, producer) = (link_to(FIRST_TRY, "given_up"), link_to(PRODUCER, "producer"));
        assert_eq!(told(&replay, SOON), (None, vec![given_up, producer.clone()]));
        // Its letter was written by somebody who did not trace it.
        assert_eq!(told(&Headers { given_up: None, ..replay }, SOON), (None, vec![producer]));
        let retry = Headers { earlier_try: Some(OF_OURS), ..replay };
        assert_eq!(told(&retry, SOON), (Some(OF_OURS.to_owned()), vec![link_to(OF_OURS, "earlier_try")]));
    }

    #[test]
    fn what_cannot_be_read_is_not_there() {
        for bad in ["", "x", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "\u{1F600}"] {
            let headers = Headers { traceparent: Some(bad), earlier_try: Some(bad), ..Headers::default() };
            assert_eq!(headers.origin(SOON), Origin::default(), "{bad}");
        }
    }
}
