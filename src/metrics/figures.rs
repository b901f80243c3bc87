//! How each lane fares at this moment: what an operator looks at, beside the series that Prometheus collects.
//!
//! Invariant: counting is adding to an atomic; once a second [`Figures::keep`] looks at them, and nobody else reads them.
//! Invariant: steps of the history are those of the wall clock, so that those of several daemons can be added.

/// The last minutes.
mod history;

/// How long mails took.
mod latency;

use std::{
    array,
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::latency::{BUCKETS, bucket};
pub use self::{
    history::{History, STEP_SECONDS, STEPS},
    latency::Latency,
};
use crate::email::{Envelope, Lane, PerLane};

/// What rates are averaged over.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Between two looks at the counters.
const TICK: Duration = Duration::from_secs(1);
/// Minutes whose latencies are told, the one that runs included.
const LATENCY_MINUTES: i64 = 5;

/// What happens in one lane, counted.
#[derive(Debug, Default)]
struct Counts {
    in_flight: AtomicU64,
    taken: AtomicU64,
    sent: AtomicU64,
    deferred: AtomicU64,
    dead: AtomicU64,
    /// One more than the greatest age in milliseconds since the last look; 0: nothing was taken.
    age: AtomicU64,
}

/// Everything that is counted, and what it came to in the last minutes.
#[derive(Debug)]
pub struct Figures {
    counts: PerLane<Counts>,
    /// Of the fast lane, since the last look.
    latency: [AtomicU32; BUCKETS],
    past: Mutex<PerLane<Past>>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            counts: PerLane::from_fn(|_| Counts::default()),
            latency: array::from_fn(|_| AtomicU32::new(0)),
            past: Mutex::new(PerLane::from_fn(|_| Past::default())),
        }
    }
}

impl Figures {
    /// A delivery was taken from its queue.
    pub(super) fn taken(&self, envelope: &Envelope) {
        let counts = self.counts.get(envelope.lane);
        counts.in_flight.fetch_add(1, Ordering::Relaxed);
        counts.taken.fetch_add(1, Ordering::Relaxed);
        // A copy has waited on purpose, most of the time.
        if let Some(at) = envelope.published_at.filter(|_| !envelope.is_copy) {
            let age_ms = u64::try_from((Utc::now() - at).num_milliseconds()).unwrap_or(0);
            counts.age.fetch_max(age_ms.saturating_add(1), Ordering::Relaxed);
        }
    }

    /// It is settled.
    pub(super) fn left(&self, lane: Lane) {
        self.counts.get(lane).in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// The relay took a mail.
    pub(super) fn sent(&self, lane: Lane, latency: Duration) {
        self.counts.get(lane).sent.fetch_add(1, Ordering::Relaxed);
        if lane == Lane::Fast {
            self.latency[bucket(latency)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A try ended without a decision.
    pub(super) fn deferred(&self, lane: Lane) {
        self.counts.get(lane).deferred.fetch_add(1, Ordering::Relaxed);
    }

    /// A dead letter was written.
    pub(super) fn dead(&self, lane: Lane) {
        self.counts.get(lane).dead.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks at the counters once a second, until `stop`.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            self.look(Instant::now(), Utc::now());
            tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(TICK) => {} }
        }
    }

    fn look(&self, now: Instant, clock: DateTime<Utc>) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        for lane in Lane::ALL {
            let counts = self.counts.get(lane);
            let totals = Totals {
                taken: counts.taken.load(Ordering::Relaxed),
                sent: counts.sent.load(Ordering::Relaxed),
                deferred: counts.deferred.load(Ordering::Relaxed),
                dead: counts.dead.load(Ordering::Relaxed),
            };
            let age_ms = counts.age.swap(0, Ordering::Relaxed).checked_sub(1);
            past.get_mut(lane).look(now, clock.timestamp(), totals, age_ms);
        }
        let latency = array::from_fn(|index| self.latency[index].swap(0, Ordering::Relaxed));
        past.fast.add_latency(clock.timestamp() / 60, &latency);
    }

    /// How a lane fares, as it was seen within the last second.
    #[must_use]
    pub fn of(&self, lane: Lane) -> LaneFigures {
        let in_flight = self.counts.get(lane).in_flight.load(Ordering::Relaxed);
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.get(lane).figures(in_flight)
    }
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    taken: u64,
    sent: u64,
    deferred: u64,
    dead: u64,
}

/// What the looks at one lane's counters came to.
#[derive(Debug, Default)]
struct Past {
    /// The looks of [`RATE_WINDOW`], oldest first, and the one before.
    looks: VecDeque<(Instant, Totals, Option<u64>)>,
    /// Counters when the step that runs began.
    step_began: Totals,
    /// The step that runs.
    step: i64,
    history: History,
    /// Latencies of a minute.
    latency: VecDeque<(i64, [u32; BUCKETS])>,
}

impl Past {
    fn look(&mut self, now: Instant, unix_seconds: i64, totals: Totals, age_ms: Option<u64>) {
        while self.looks.get(1).is_some_and(|(at, ..)| now.duration_since(*at) >= RATE_WINDOW) {
            self.looks.pop_front();
        }
        self.looks.push_back((now, totals, age_ms));
        let step = unix_seconds.div_euclid(STEP_SECONDS);
        if self.step == 0 {
            (self.step, self.history.last_step) = (step, step - 1);
        }
        // A clock that was set back repeats a step: what happens in it is told with the next one.
        if step > self.step {
            let began = std::mem::replace(&mut self.step_began, totals);
            let sent = small(totals.sent - began.sent);
            let troubled = small((totals.deferred - began.deferred) + (totals.dead - began.dead));
            self.history.push(self.step, sent, troubled);
            self.history.advance(step - 1);
            self.step = step;
        }
    }

    fn add_latency(&mut self, minute: i64, counts: &[u32; BUCKETS]) {
        if self.latency.back().is_none_or(|(last, _)| *last != minute) {
            self.latency.push_back((minute, [0; BUCKETS]));
        }
        if let Some((_, sums)) = self.latency.back_mut() {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
        }
        self.latency.retain(|(at, _)| (minute - LATENCY_MINUTES + 1..=minute).contains(at));
    }

    fn figures(&self, in_flight: u64) -> LaneFigures {
        let (first, last) = (self.looks.front(), self.looks.back());
        let rate = |count: fn(&Totals) -> u64| match (first, last) {
            (Some((from, before, _)), Some((to, after, _))) if to > from => {
                let per_second = (count(after) - count(before)) as f64 / to.duration_since(*from).as_secs_f64();
                (per_second * 10.0).round() / 10.0
            }
            _ => 0.0,
        };
        let mut latency = Latency::default();
        for (_, counts) in &self.latency {
            latency.add_counts(counts);
        }
        LaneFigures {
            in_flight,
            rates: Rates {
                taken: rate(|t| t.taken),
                sent: rate(|t| t.sent),
                deferred: rate(|t| t.deferred),
                dead: rate(|t| t.dead),
            },
            // The first look only says where the others begin.
            taken_age_ms: self.looks.iter().skip(1).filter_map(|(_, _, age_ms)| *age_ms).max(),
            history: self.history.clone(),
            latency,
        }
    }
}

/// How one lane fares, at one daemon or at several together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneFigures {
    /// Deliveries being worked on.
    pub in_flight: u64,
    /// What happened a second.
    pub rates: Rates,
    /// Greatest age, from publish to taking, of what was taken lately; nothing: nothing was.
    pub taken_age_ms: Option<u64>,
    /// The last minutes.
    pub history: History,
    /// Of the fast lane, from publish to the relay's 250.
    pub latency: Latency,
}

/// What happened a second, averaged over the last five.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Deliveries taken from the queue.
    pub taken: f64,
    /// Mails that the relay took.
    pub sent: f64,
    /// Tries that ended without a decision.
    pub deferred: f64,
    /// Dead letters.
    pub dead: f64,
}

impl LaneFigures {
    /// Adds another daemon's.
    pub fn add(&mut self, other: &Self) {
        self.in_flight += other.in_flight;
        self.rates.taken += other.rates.taken;
        self.rates.sent += other.rates.sent;
        self.rates.deferred += other.rates.deferred;
        self.rates.dead += other.rates.dead;
        self.taken_age_ms = self.taken_age_ms.max(other.taken_age_ms);
        self.history.add(&other.history);
        self.latency.add(&other.latency);
    }
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn totals(sent: u64, deferred: u64) -> Totals {
        Totals { taken: sent + deferred, sent, deferred, dead: 0 }
    }

    fn sent(history: &History, step: i64) -> Vec<u32> {
        let steps = history.sent_until(step);
        steps.iter().copied().skip_while(|count| *count == 0).collect()
    }

    #[test]
    fn rates_are_those_of_the_last_seconds_and_steps_are_those_of_the_clock() {
        let (mut past, start) = (Past::default(), Instant::now());
        for second in 0..=12_u64 {
            let now = start + Duration::from_secs(second);
            let so_far = if second <= 7 { 10 * second } else { 70 };
            past.look(now, 1000 + second as i64, totals(so_far, 0), (second == 7).then_some(40));
        }
        let figures = past.figures(3);
        assert_eq!((figures.in_flight, figures.rates.sent, figures.rates.taken), (3, 0.0, 0.0));
        assert_eq!(figures.taken_age_ms, None, "it was too long ago");
        assert_eq!(figures.history.last_step, 201, "1010 is where the step began that runs");
        assert_eq!(sent(&figures.history, 201), [50, 20]);
        assert_eq!(sent(&figures.history, 203), [50, 20, 0, 0], "two steps later, nothing new");

        past.look(start + Duration::from_secs(13), 1013, totals(95, 5), Some(7));
        let figures = past.figures(0);
        assert_eq!((figures.rates.sent, figures.rates.deferred, figures.rates.taken), (5.0, 1.0, 6.0));
        assert_eq!(figures.taken_age_ms, Some(7));
    }

    #[test]
    fn a_daemon_that_slept_has_a_gap_and_one_that_is_idle_a_small_row() {
        let (mut past, start) = (Past::default(), Instant::now());
        past.look(start, 1000, totals(0, 0), None);
        past.look(start + Duration::from_secs(1), 1001, totals(9, 0), None);
        past.look(start + Duration::from_secs(20), 1020, totals(9, 4), None);
        let history = past.figures(0).history;
        assert_eq!((history.last_step, sent(&history, 203)), (203, vec![9, 0, 0, 0]));
        assert_eq!(history.troubled_until(203)[STEPS - 4..], [4, 0, 0, 0]);
        past.look(start + Duration::from_secs(900), 1900, totals(9, 4), None);
        assert_eq!(past.figures(0).history, History { last_step: 379, ..History::default() });
    }

    #[test]
    fn latencies_are_forgotten_after_five_minutes() {
        let mut past = Past::default();
        let mut one = [0; BUCKETS];
        one[4] = 1;
        past.add_latency(10, &one);
        past.add_latency(14, &one);
        assert_eq!(past.figures(0).latency.mails(), 2);
        past.add_latency(15, &[0; BUCKETS]);
        assert_eq!(past.figures(0).latency.mails(), 1);
        past.add_latency(30, &[0; BUCKETS]);
        assert_eq!(past.figures(0).latency, Latency::default());
    }

    proptest! {
        #[test]
        fn nothing_that_was_sent_is_missing_from_the_history(
            seconds in prop::collection::vec((1..4_u64, 0..50_u64), 1..40),
        ) {
            let (mut past, start) = (Past::default(), Instant::now());
            let (mut at, mut so_far) = (0, 0);
            past.look(start, 1000, totals(0, 0), None);
            for (wait, more) in seconds {
                (at, so_far) = (at + wait, so_far + more);
                past.look(start + Duration::from_secs(at), 1000 + at as i64, totals(so_far, 0), None);
            }
            past.look(start + Duration::from_secs(at + 5), 1005 + at as i64, totals(so_far, 0), None);
            let history = past.figures(0).history;
            let told: u32 = history.sent_until(history.last_step).iter().sum();
            prop_assert_eq!(u64::from(told), so_far);
        }
    }
}
