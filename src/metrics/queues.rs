//! What waits, as the broker counts it. Counting takes a question for each queue, so one daemon asks for all; and it takes a moment,
//! so the answer is kept for whoever looks.
//!
//! Invariant: what is not known now is not shown: a series that stays away says more than one that stands still.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use opentelemetry::{KeyValue, metrics::Meter};

use super::{instrument::Instrument, table};
use crate::{
    broker::depths::{Depths, LaneDepth},
    email::Lane,
};

/// What was counted last; nothing: this daemon does not know.
pub type Counted = Arc<ArcSwapOption<Depths>>;

/// Makes the instruments; they show what is put there.
pub(super) fn observe(meter: &Meter, counted: &Counted) {
    lane(meter, counted, &table::QUEUE_DEPTH, |depth| depth.ready);
    lane(meter, counted, &table::QUEUE_RETRYING, LaneDepth::retrying_in_all);
    lane(meter, counted, &table::QUEUE_CONSUMERS, |depth| depth.consumers);
    queue(meter, counted, &table::DEAD_QUEUE, |depths| depths.dead);
    queue(meter, counted, &table::UNROUTED_QUEUE, |depths| depths.unrouted);
}

fn lane(meter: &Meter, counted: &Counted, shown: &Instrument, of: fn(&LaneDepth) -> u32) {
    let counted = Arc::clone(counted);
    shown
        .watched_gauge(meter)
        .with_callback(move |observer| {
            let Some(depths) = counted.load_full() else { return };
            for lane in Lane::ALL {
                if let Some(depth) = depths.lanes.get(lane) {
                    observer.observe(f64::from(of(depth)), &[KeyValue::new("lane", lane.name())]);
                }
            }
        })
        .build();
}

fn queue(meter: &Meter, counted: &Counted, shown: &Instrument, of: fn(&Depths) -> Option<u32>) {
    let counted = Arc::clone(counted);
    shown
        .watched_gauge(meter)
        .with_callback(move |observer| {
            if let Some(count) = counted.load_full().as_deref().and_then(of) {
                observer.observe(f64::from(count), &[]);
            }
        })
        .build();
}
