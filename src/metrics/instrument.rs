//! One metric as it is declared: what documentation shows of it, and what its instrument is made from.

use opentelemetry::metrics::{
    AsyncInstrumentBuilder, Counter, Gauge, Histogram, Meter, ObservableCounter, ObservableGauge, UpDownCounter,
};

/// What a metric is called, counts and is labelled with.
#[derive(Debug, Clone, Copy)]
pub struct Instrument {
    /// As OpenTelemetry has it; [`Instrument::prometheus_name`] is what `/metrics` shows.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// `s`, or nothing for plain numbers.
    pub unit: &'static str,
    /// All that its series differ in.
    pub labels: &'static [&'static str],
    /// For people, without a full stop.
    pub description: &'static str,
    /// Upper bounds of a histogram.
    pub buckets: &'static [f64],
}

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Values are counted by size.
    Histogram,
}

impl Kind {
    /// `counter`, `gauge` or `histogram`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Instrument {
    pub(super) const fn counter(name: &'static str, labels: &'static [&'static str], says: &'static str) -> Self {
        Self { name, kind: Kind::Counter, unit: "", labels, description: says, buckets: &[] }
    }

    pub(super) const fn gauge(name: &'static str, labels: &'static [&'static str], says: &'static str) -> Self {
        Self { kind: Kind::Gauge, ..Self::counter(name, labels, says) }
    }

    pub(super) const fn histogram(
        name: &'static str,
        labels: &'static [&'static str],
        buckets: &'static [f64],
        says: &'static str,
    ) -> Self {
        Self { kind: Kind::Histogram, buckets, ..Self::counter(name, labels, says) }
    }

    /// Counted in seconds.
    pub(super) const fn seconds(self) -> Self {
        Self { unit: "s", ..self }
    }

    /// What `/metrics` and Prometheus call it; a histogram has `_bucket`, `_sum` and `_count` behind that.
    #[must_use]
    pub fn prometheus_name(&self) -> String {
        let unit = if self.unit == "s" { "_seconds" } else { "" };
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{unit}{total}", self.name.replace('.', "_"))
    }

    /// What Prometheus calls its labels.
    pub fn prometheus_labels(&self) -> impl Iterator<Item = String> {
        self.labels.iter().map(|label| label.replace('.', "_"))
    }

    pub(super) fn counts(&self, meter: &Meter) -> Counter<u64> {
        debug_assert_eq!(self.kind, Kind::Counter, "{}", self.name);
        meter.u64_counter(self.name).with_description(self.description).with_unit(self.unit).build()
    }

    pub(super) fn shows(&self, meter: &Meter) -> Gauge<u64> {
        debug_assert_eq!(self.kind, Kind::Gauge, "{}", self.name);
        meter.u64_gauge(self.name).with_description(self.description).with_unit(self.unit).build()
    }

    pub(super) fn goes_up_and_down(&self, meter: &Meter) -> UpDownCounter<i64> {
        debug_assert_eq!(self.kind, Kind::Gauge, "{}", self.name);
        meter.i64_up_down_counter(self.name).with_description(self.description).with_unit(self.unit).build()
    }

    pub(super) fn records(&self, meter: &Meter) -> Histogram<f64> {
        debug_assert_eq!(self.kind, Kind::Histogram, "{}", self.name);
        meter
            .f64_histogram(self.name)
            .with_description(self.description)
            .with_unit(self.unit)
            .with_boundaries(self.buckets.to_vec())
            .build()
    }

    /// A counter that is read whenever somebody looks; to be given a callback and built.
    pub(super) fn watched_counter<'a>(
        &self,
        meter: &'a Meter,
    ) -> AsyncInstrumentBuilder<'a, ObservableCounter<u64>, u64> {
        debug_assert_eq!(self.kind, Kind::Counter, "{}", self.name);
        meter.u64_observable_counter(self.name).with_description(self.description).with_unit(self.unit)
    }

    /// The same of a gauge.
    pub(super) fn watched_gauge<'a>(&self, meter: &'a Meter) -> AsyncInstrumentBuilder<'a, ObservableGauge<f64>, f64> {
        debug_assert_eq!(self.kind, Kind::Gauge, "{}", self.name);
        meter.f64_observable_gauge(self.name).with_description(self.description).with_unit(self.unit)
    }
}
