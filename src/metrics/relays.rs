//! The relays' series: read from their health whenever somebody looks, so that sending knows nothing of metrics.
//!
//! Invariant: every series of a relay is there from the start, so that the first fault shows as a rise.

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};

use crate::{
    email::Lane,
    smtp::{RelayHealth, Relays},
};

/// Makes the instruments; they are read for as long as the meter's provider lives.
pub(super) fn observe(meter: &Meter, relays: &Arc<Relays>) {
    let watched = Arc::clone(relays);
    meter
        .u64_observable_gauge("email.relay_up")
        .with_description("0 while the relay cannot be used or puts everybody off, else 1 (also before its first use)")
        .with_callback(move |observer| {
            for relay in watched.health() {
                observer.observe(u64::from(relay.is_usable()), &[label(&relay)]);
            }
        })
        .build();
    let watched = Arc::clone(relays);
    meter
        .u64_observable_counter("email.relay_faults")
        .with_description("Faults of the relay that were met, probes included, by name")
        .with_callback(move |observer| {
            for relay in watched.health() {
                for (fault, count) in &relay.faults {
                    observer.observe(*count, &[label(&relay), KeyValue::new("fault", fault.name())]);
                }
            }
        })
        .build();
    let watched = Arc::clone(relays);
    meter
        .u64_observable_counter("email.relay_throttled")
        .with_description("Mails that the relay put off because it was given too many")
        .with_callback(move |observer| {
            for relay in watched.health() {
                observer.observe(relay.throttled, &[label(&relay)]);
            }
        })
        .build();
    let watched = Arc::clone(relays);
    meter
        .f64_observable_gauge("email.relay_pace")
        .with_description("Mails a second that the relay gets at most, because it throttled; 0 while nothing limits it")
        .with_callback(move |observer| {
            for relay in watched.health() {
                observer.observe(relay.mails_per_second.unwrap_or(0.0), &[label(&relay)]);
            }
        })
        .build();
    let watched = Arc::clone(relays);
    meter
        .u64_observable_gauge("email.relay_connections")
        .with_description("Connections to the relay, by lane, in use and idle")
        .with_callback(move |observer| {
            for relay in watched.health() {
                for lane in Lane::ALL {
                    for (use_, count) in [("in_use", relay.in_use.get(lane)), ("idle", relay.idle.get(lane))] {
                        let labels = [label(&relay), KeyValue::new("lane", lane.name()), KeyValue::new("state", use_)];
                        observer.observe(u64::try_from(*count).unwrap_or(u64::MAX), &labels);
                    }
                }
            }
        })
        .build();
}

fn label(relay: &RelayHealth) -> KeyValue {
    KeyValue::new("relay", relay.name.clone())
}
