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

use crate::store::retention::Action;

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
        meter
            .i64_observable_gauge("email.retention_overdue")
            .with_description("For how long the oldest row has been due that retention has not reached; 0: none is")
            .with_unit("s")
            .with_callback(move |observer| {
                for (action, seconds) in &of_overdue.overdue {
                    let seconds = seconds.load(Ordering::Relaxed);
                    if seconds != UNKNOWN {
                        observer.observe(seconds, &[label(*action)]);
                    }
                }
            })
            .build();
        let of_ended = Arc::clone(&watched);
        meter
            .i64_observable_gauge("email.retention_ended")
            .with_description("When this daemon has last done all that was due, seconds since 1970")
            .with_callback(move |observer| {
                let ended = of_ended.ended.load(Ordering::Relaxed);
                if ended != 0 {
                    observer.observe(ended, &[]);
                }
            })
            .build();
        Self {
            rows: meter
                .u64_counter("email.retention_rows")
                .with_description("Rows that retention has anonymised or deleted, by table")
                .build(),
            failures: meter
                .u64_counter("email.retention_failures")
                .with_description("Steps of retention that failed; all: none could begin")
                .build(),
            watched,
        }
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
