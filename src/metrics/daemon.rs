//! How the daemon itself fares: read whenever somebody looks.

use std::sync::{Arc, Weak, atomic::Ordering};

use opentelemetry::{KeyValue, metrics::Meter};
use tokio::sync::watch;

use super::{figures::Figures, table};
use crate::{
    broker::ConsumerState,
    email::{Lane, PerLane},
    store::{Store, StoreHealth},
    telemetry::otlp::Exported,
    templates::Catalogue,
};

fn truth(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// Whether a mail could go the whole way. Nothing is shown once the one who knows is gone.
pub(super) fn readiness<T: Send + Sync + 'static>(meter: &Meter, who: Weak<T>, is_ready: fn(&T) -> bool) {
    table::READY
        .watched_gauge(meter)
        .with_callback(move |observer| {
            if let Some(who) = who.upgrade() {
                observer.observe(truth(is_ready(&who)), &[]);
            }
        })
        .build();
}

/// Whether the database is there, and how its batches are committed.
pub(super) fn store(meter: &Meter, store: &Arc<Store>) {
    let health = store.health();
    table::DATABASE_UP
        .watched_gauge(meter)
        .with_callback(move |observer| observer.observe(truth(matches!(*health.borrow(), StoreHealth::Up)), &[]))
        .build();
    let (rows, duration) = (table::COMMIT_ROWS.records(meter), table::COMMIT_DURATION.records(meter));
    store.tell_batches(Arc::new(move |batch| {
        let labels = [KeyValue::new("statement", batch.statement), KeyValue::new("connections", batch.connections)];
        rows.record(batch.rows as f64, &labels);
        duration.record(batch.took.as_secs_f64(), &labels);
    }));
}

/// What the lanes' consumers do, and how old is what they take.
pub(super) fn lanes(meter: &Meter, figures: &Arc<Figures>, states: PerLane<watch::Receiver<ConsumerState>>) {
    table::LANE_STATE
        .watched_gauge(meter)
        .with_callback(move |observer| {
            for lane in Lane::ALL {
                let now = states.get(lane).borrow().name();
                for state in ConsumerState::NAMES {
                    let labels = [KeyValue::new("lane", lane.name()), KeyValue::new("state", state)];
                    observer.observe(truth(state == now), &labels);
                }
            }
        })
        .build();
    let figures = Arc::clone(figures);
    table::QUEUE_AGE
        .watched_gauge(meter)
        .with_callback(move |observer| {
            for lane in Lane::ALL {
                let age_ms = figures.of(lane).taken_age_ms.unwrap_or(0);
                observer.observe(age_ms as f64 / 1000.0, &[KeyValue::new("lane", lane.name())]);
            }
        })
        .build();
}

/// Which words are sent.
pub(super) fn templates(meter: &Meter, catalogue: &Arc<Catalogue>) {
    let catalogue = Arc::clone(catalogue);
    table::TEMPLATE_VERSION
        .watched_gauge(meter)
        .with_callback(move |observer| {
            for template in catalogue.all_active() {
                let labels = [KeyValue::new("template", template.key().to_owned())];
                observer.observe(f64::from(template.version()), &labels);
            }
        })
        .build();
}

/// What became of spans and exports.
pub(super) fn exports(meter: &Meter, exported: &Arc<Exported>) {
    let all = Arc::clone(exported);
    table::EXPORTED_SPANS
        .watched_counter(meter)
        .with_callback(move |observer| {
            for (result, count) in [("exported", &all.spans), ("dropped", &all.dropped), ("failed", &all.failed)] {
                observer.observe(count.load(Ordering::Relaxed), &[KeyValue::new("result", result)]);
            }
        })
        .build();
    let all = Arc::clone(exported);
    table::EXPORTED_METRICS
        .watched_counter(meter)
        .with_callback(move |observer| {
            for (result, count) in [("exported", &all.metrics), ("failed", &all.metrics_failed)] {
                observer.observe(count.load(Ordering::Relaxed), &[KeyValue::new("result", result)]);
            }
        })
        .build();
}
