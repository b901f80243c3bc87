//! Files that requests refer to.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

use super::table;

/// Their instruments.
pub(super) struct Attachments {
    fetches: Counter<u64>,
    duration: Histogram<f64>,
    bytes: Counter<u64>,
}

impl Attachments {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            fetches: table::ATTACHMENT_FETCHES.counts(meter),
            duration: table::ATTACHMENT_FETCH.records(meter),
            bytes: table::ATTACHMENT_BYTES.counts(meter),
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
