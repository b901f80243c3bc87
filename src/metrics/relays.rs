//! The relays' series: read from their health whenever somebody looks, so that sending knows nothing of metrics; and how long the
//! steps of the dialogue take, which the relays tell.
//!
//! Invariant: every series of a relay is there from the start, so that the first fault shows as a rise.

use std::{collections::HashMap, sync::Arc};

use opentelemetry::{KeyValue, StringValue, metrics::Meter};

use super::table;
use crate::{
    email::Lane,
    smtp::{RelayHealth, Relays},
};

/// Makes the instruments; they are read for as long as the meter's provider lives.
pub(super) fn observe(meter: &Meter, relays: &Arc<Relays>) {
    listen(meter, relays);
    let watched = Arc::clone(relays);
    table::RELAY_UP
        .watched_gauge(meter)
        .with_callback(move |observer| {
            for relay in watched.health() {
                observer.observe(f64::from(u8::from(relay.is_usable())), &[label(&relay)]);
            }
        })
        .build();
    let watched = Arc::clone(relays);
    table::RELAY_STATE
        .watched_gauge(meter)
        .with_callback(move |observer| {
            for relay in watched.health() {
                for state in RelayHealth::STATES {
                    let is_so = f64::from(u8::from(relay.state_name() == state));
                    observer.observe(is_so, &[label(&relay), KeyValue::new("state", state)]);
                }
            }
        })
        .build();
    let watched = Arc::clone(relays);
    table::RELAY_FAULTS
        .watched_counter(meter)
        .with_callback(move |observer| {
            for relay in watched.health() {
                for (fault, count) in &relay.faults {
                    observer.observe(*count, &[label(&relay), KeyValue::new("fault", fault.name())]);
                }
            }
        })
        .build();
    let watched = Arc::clone(relays);
    table::RELAY_THROTTLED
        .watched_counter(meter)
        .with_callback(move |observer| {
            for relay in watched.health() {
                observer.observe(relay.throttled, &[label(&relay)]);
            }
        })
        .build();
    let watched = Arc::clone(relays);
    table::RELAY_PACE
        .watched_gauge(meter)
        .with_callback(move |observer| {
            for relay in watched.health() {
                observer.observe(relay.mails_per_second.unwrap_or(0.0), &[label(&relay)]);
            }
        })
        .build();
    let watched = Arc::clone(relays);
    table::RELAY_CONNECTIONS
        .watched_gauge(meter)
        .with_callback(move |observer| {
            for relay in watched.health() {
                for lane in Lane::ALL {
                    for (use_, count) in [("in_use", relay.in_use.get(lane)), ("idle", relay.idle.get(lane))] {
                        let labels = [label(&relay), KeyValue::new("lane", lane.name()), KeyValue::new("state", use_)];
                        observer.observe(*count as f64, &labels);
                    }
                }
            }
        })
        .build();
}

/// Five steps a mail: names are shared, not copied.
fn listen(meter: &Meter, relays: &Arc<Relays>) {
    let steps_taken = table::SMTP_STEP.records(meter);
    let names: HashMap<String, StringValue> =
        relays.names().map(|name| (name.to_owned(), Arc::<str>::from(name).into())).collect();
    relays.tell_steps(Arc::new(move |relay, steps| {
        let Some(name) = names.get(relay) else { return };
        for (phase, from, to) in steps.iter() {
            let labels = [KeyValue::new("relay", name.clone()), KeyValue::new("phase", phase.name())];
            steps_taken.record((to - from).as_secs_f64(), &labels);
        }
    }));
}

fn label(relay: &RelayHealth) -> KeyValue {
    KeyValue::new("relay", relay.name.clone())
}
