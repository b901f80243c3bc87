//! Which traces are kept.
//!
//! Invariant: a trace that goes back to another one by links (a retry long afterwards, a replay) is kept if that one was, so that
//! all that became of a message is there, or nothing.

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanContext, SpanKind, TraceContextExt, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

use crate::config::Sampling;

/// OpenTelemetry's samplers, and links as parents.
#[derive(Debug, Clone)]
pub(super) struct LinkedSampler {
    is_parent_based: bool,
    ratio: Sampler,
}

impl LinkedSampler {
    pub(super) const fn new(sampling: Sampling) -> Self {
        Self { is_parent_based: sampling.is_parent_based, ratio: Sampler::TraceIdRatioBased(sampling.ratio) }
    }
}

impl ShouldSample for LinkedSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent_span = parent.filter(|context| context.has_active_span()).map(|context| context.span());
        let known = parent_span.as_ref().map(|span| span.span_context().clone()).filter(SpanContext::is_valid);
        // Within a message the decision has been made; before that it is the producer's, if that is to hold.
        let of_ours = known.as_ref().filter(|context| self.is_parent_based || !context.is_remote());
        let decided = of_ours.or_else(|| links.first().filter(|_| self.is_parent_based).map(|link| &link.span_context));
        let trace_state = known.as_ref().map_or_else(TraceState::default, |context| context.trace_state().clone());
        match decided {
            Some(context) => SamplingResult {
                decision: if context.is_sampled() { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
                attributes: Vec::new(),
                trace_state,
            },
            None => SamplingResult {
                trace_state,
                ..self.ratio.should_sample(None, trace_id, name, kind, attributes, links)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags};

    use super::*;

    fn context(is_sampled: bool, is_remote: bool) -> SpanContext {
        let flags = if is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        SpanContext::new(TraceId::from(7_u128), SpanId::from(7_u64), flags, is_remote, TraceState::default())
    }

    fn keeps(sampling: Sampling, parent: Option<SpanContext>, link: Option<SpanContext>) -> bool {
        let parent = parent.map(|parent| Context::new().with_remote_span_context(parent));
        let links: Vec<Link> = link.into_iter().map(Link::with_context).collect();
        let sampler = LinkedSampler::new(sampling);
        let trace = TraceId::from(7_u128);
        let result = sampler.should_sample(parent.as_ref(), trace, "x", &SpanKind::Consumer, &[], &links);
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn the_producers_decision_holds_and_a_link_counts_as_a_parent() {
        let (none, all) =
            (Sampling { is_parent_based: true, ratio: 0.0 }, Sampling { is_parent_based: true, ratio: 1.0 });
        assert!(keeps(none, Some(context(true, true)), None) && !keeps(all, Some(context(false, true)), None));
        assert!(keeps(none, None, Some(context(true, true))) && !keeps(all, None, Some(context(false, true))));
        assert!(keeps(all, None, None) && !keeps(none, None, None));
    }

    #[test]
    fn without_it_a_message_is_kept_or_not_as_a_whole() {
        let none = Sampling { is_parent_based: false, ratio: 0.0 };
        assert!(!keeps(none, Some(context(true, true)), None), "the producer is not asked");
        assert!(keeps(none, Some(context(true, false)), None), "what is within is kept with the whole");
    }
}
