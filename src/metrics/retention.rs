//! Retention's series: what was forgotten and deleted, and whether it keeps up.
//!
//! Invariant: how far behind it is, only the daemon tells that was at work last; the others have no series of it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use chrono::{DateTime, TimeDelta, Utc};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};

use super::table;
use crate::store::retention::{Action, steps};

const UNKNOWN: i64 = -1;

/// All of its instruments.
pub(super) struct RetentionSeries {
    rows: Counter<u64>,
    failures: Counter<u64>,
    watched: Arc<Watched>,
}

struct Watched {
    /// Seconds; less than nothing: not known here.
    overdue: [(Action, AtomicI64); 2],
    /// Seconds since 1970; 0: never.
    ended: AtomicI64,
}

impl Watched {
    fn of(&self, action: Action) -> Option<&AtomicI64> {
        self.overdue.iter().find(|(of, _)| *of == action).map(|(_, seconds)| seconds)
    }
}

impl RetentionSeries {
    pub(super) fn new(meter: &Meter) -> Self {
        let watched = Arc::new(Watched {
            overdue: [Action::Anonymise, Action::Delete].map(|action| (action, AtomicI64::new(UNKNOWN))),
            ended: AtomicI64::new(0),
        });
        let of_overdue = Arc::clone(&watched);
        table::RETENTION_OVERDUE
            .watched_gauge(meter)
            .with_callback(move |observer| {
                for (action, seconds) in &of_overdue.overdue {
                    let seconds = seconds.load(Ordering::Relaxed);
                    if seconds != UNKNOWN {
                        observer.observe(seconds as f64, &[label(*action)]);
                    }
                }
            })
            .build();
        let of_ended = Arc::clone(&watched);
        table::RETENTION_ENDED
            .watched_gauge(meter)
            .with_callback(move |observer| observer.observe(of_ended.ended.load(Ordering::Relaxed) as f64, &[]))
            .build();
        let failures = table::RETENTION_FAILURES.counts(meter);
        for step in steps() {
            failures.add(0, &[KeyValue::new("step", step.name)]);
        }
        Self { rows: table::RETENTION_ROWS.counts(meter), failures, watched }
    }

    pub(super) fn done(&self, action: Action, table: &'static str, rows: u64) {
        self.rows.add(rows, &[label(action), KeyValue::new("table", table)]);
    }

    pub(super) fn failed(&self, step: &'static str) {
        self.failures.add(1, &[KeyValue::new("step", step)]);
    }

    pub(super) fn overdue(&self, action: Action, overdue: Option<TimeDelta>) {
        if let Some(seconds) = self.watched.of(action) {
            seconds.store(overdue.map_or(0, |overdue| overdue.num_seconds().max(0)), Ordering::Relaxed);
        }
    }

    pub(super) fn elsewhere(&self) {
        for (_, seconds) in &self.watched.overdue {
            seconds.store(UNKNOWN, Ordering::Relaxed);
        }
    }

    pub(super) fn ended(&self, at: DateTime<Utc>) {
        self.watched.ended.store(at.timestamp(), Ordering::Relaxed);
    }
}

fn label(action: Action) -> KeyValue {
    KeyValue::new("action", action.name())
}
