//! Files that requests refer to.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

/// Seconds of one fetch: from a file on the next machine to the limit of patience.
const BUCKETS: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Their instruments.
pub(super) struct Attachments {
    fetches: Counter<u64>,
    duration: Histogram<f64>,
    bytes: Counter<u64>,
}

impl Attachments {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            fetches: meter
                .u64_counter("email.attachment_fetches")
                .with_description(
                    "Attachments by reference, by where they lie and what came of it; kept: the attachment store had it",
                )
                .build(),
            duration: meter
                .f64_histogram("email.attachment_fetch")
                .with_description("How long fetching an attachment took, whatever came of it")
                .with_unit("s")
                .with_boundaries(BUCKETS.to_vec())
                .build(),
            bytes: meter
                .u64_counter("email.attachment_fetched_bytes")
                .with_description("Bytes of attachments that were fetched and found sound")
                .build(),
        }
    }

    pub(super) fn fetched(&self, source: &'static str, result: &'static str, effort: Option<(Duration, usize)>) {
        let source = KeyValue::new("source", source);
        self.fetches.add(1, &[source.clone(), KeyValue::new("result", result)]);
        if let Some((elapsed, bytes)) = effort {
            self.duration.record(elapsed.as_secs_f64(), std::slice::from_ref(&source));
            self.bytes.add(bytes as u64, &[source]);
        }
    }
}
