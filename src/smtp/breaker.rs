//! Whether a relay may be connected to. Closed: yes. Open: no, until a probe has got through.
//!
//! Invariant: it governs opening only; connections that work go on working, so a relay that merely takes no more of
//! them still gets mail.
//! Invariant: failures are forgotten when a mail was dealt with, not when a probe got through, so a relay that greets
//! well and then fails every mail is tried more and more rarely.
//! Invariant: once open it is closed by its prober only; `trial` says how many mails may go then.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::fault::RelayError;

/// Longest pause between two probes.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Beyond this many the pause is the longest anyway.
const FAILURES_MAX: usize = 16;

/// What is known about a relay.
#[derive(Debug, Clone)]
pub enum RelayState {
    /// Nobody has needed it yet.
    Untried,
    /// The last connection attempt succeeded.
    Up,
    /// It cannot be used; it is probed.
    Down {
        /// Why, and what to do.
        error: RelayError,
        /// Since when.
        since: DateTime<Utc>,
        /// When it is probed next.
        retry_at: DateTime<Utc>,
    },
    /// It put off mails to several people in a row, and now some go on trial.
    OnTrial {
        /// What it said.
        error: RelayError,
        /// Since when.
        since: DateTime<Utc>,
    },
}

#[derive(Debug)]
pub(super) struct Breaker {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    failures: usize,
}

#[derive(Debug)]
enum State {
    Untried,
    Closed,
    Open { error: RelayError, since: DateTime<Utc>, retry_at: Instant },
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self { inner: Mutex::new(Inner { state: State::Untried, failures: 0 }) }
    }

    /// Whether connections may be opened.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.lock().state, State::Untried | State::Closed)
    }

    /// Notes a fault. True for the one who found it first: that one starts the probing.
    pub(super) fn trip(&self, error: RelayError) -> bool {
        let mut inner = self.lock();
        let is_first = !matches!(inner.state, State::Open { .. });
        // Connections that were being opened when the first failed tell nothing new.
        if is_first {
            inner.open(error, Utc::now());
        }
        is_first
    }

    /// Notes that a probe failed too, and when the next is due.
    pub(super) fn still_down(&self, error: RelayError) {
        let mut inner = self.lock();
        let since = match &inner.state {
            State::Open { since, .. } => *since,
            State::Untried | State::Closed => Utc::now(),
        };
        inner.open(error, since);
    }

    /// Notes that a connection could be opened, besides probing.
    pub(super) fn note_connection(&self) {
        let mut inner = self.lock();
        if matches!(inner.state, State::Untried) {
            inner.state = State::Closed;
        }
    }

    /// Notes that a probe got through. True if that had been thought impossible.
    pub(super) fn close(&self) -> bool {
        let mut inner = self.lock();
        let was_open = matches!(inner.state, State::Open { .. });
        inner.state = State::Closed;
        was_open
    }

    /// Notes that the relay dealt with a mail: took it, or refused it for good.
    pub(super) fn forget_failures(&self) {
        self.lock().failures = 0;
    }

    /// When the next probe is due; nothing while closed.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        match self.lock().state {
            State::Open { retry_at, .. } => Some(retry_at),
            State::Untried | State::Closed => None,
        }
    }

    pub(super) fn state(&self) -> RelayState {
        match &self.lock().state {
            State::Untried => RelayState::Untried,
            State::Closed => RelayState::Up,
            State::Open { error, since, retry_at } => RelayState::Down {
                error: error.clone(),
                since: *since,
                retry_at: Utc::now() + retry_at.saturating_duration_since(Instant::now()),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it, and every state it can be left in is sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn open(&mut self, error: RelayError, since: DateTime<Utc>) {
        self.state = State::Open { error, since, retry_at: Instant::now() + pause(self.failures) };
        self.failures = (self.failures + 1).min(FAILURES_MAX);
    }
}

/// 0.5 s, 1 s, 2 s ... 30 s, of which a random half is left away, so that several daemons do not probe in step.
fn pause(failures: usize) -> Duration {
    let whole = ExponentialBackoff::from_millis(2).factor(250).max_delay(PAUSE_MAX).nth(failures).unwrap_or(PAUSE_MAX);
    whole / 2 + jitter(whole / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{email::Phase, smtp::RelayFault};

    fn error() -> RelayError {
        RelayError::new(RelayFault::Refused, Phase::Connect, "nothing listens there")
    }

    #[test]
    fn pauses_grow_to_half_a_minute() {
        for (failures, whole_ms) in [(0, 500), (1, 1000), (2, 2000), (5, 16_000), (6, 30_000), (FAILURES_MAX, 30_000)] {
            let pause = pause(failures);
            let whole = Duration::from_millis(whole_ms);
            assert!(whole / 2 <= pause && pause <= whole, "{failures}: {pause:?}");
        }
    }

    #[test]
    fn only_the_first_of_many_failures_counts() {
        let breaker = Breaker::new();
        assert!(breaker.is_closed());
        assert!(breaker.trip(error()));
        let due = breaker.retry_at();
        assert!(!breaker.trip(error()));
        assert_eq!(breaker.retry_at(), due);
        assert!(!breaker.is_closed());
        assert!(breaker.close());
        assert!(breaker.is_closed() && !breaker.close());
    }

    #[test]
    fn a_connection_that_was_being_opened_when_another_failed_is_no_probe() {
        let breaker = Breaker::new();
        breaker.note_connection();
        assert!(matches!(breaker.state(), RelayState::Up));
        breaker.trip(error());
        breaker.note_connection();
        assert!(!breaker.is_closed());
    }

    #[test]
    fn a_probe_that_gets_through_does_not_make_up_for_mails_that_fail() {
        let breaker = Breaker::new();
        for _ in 0..6 {
            breaker.trip(error());
            breaker.close();
        }
        breaker.trip(error());
        let due = breaker.retry_at().expect("it is open");
        assert!(due > Instant::now() + Duration::from_secs(10));
        breaker.close();
        breaker.forget_failures();
        breaker.trip(error());
        assert!(breaker.retry_at().expect("it is open") < Instant::now() + Duration::from_secs(1));
    }
}
