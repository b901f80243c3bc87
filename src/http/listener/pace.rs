//! How slow somebody may be: whoever sends or takes bytes gets a while to begin, and then keeps a least rate.
//!
//! Only the time in which we wait for the other side counts, so nobody is blamed for a slow database.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// The least rate, in bytes a second: a body of the largest size that any address takes, 16 MiB, may last for an hour.
pub(super) const BYTES_A_SECOND_MIN: u64 = 4 * 1024;

/// One direction of one request.
#[derive(Debug)]
pub(super) struct Pace {
    grace: Duration,
    moved: u64,
    waited: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// One with this long to begin.
    pub(super) const fn new(grace: Duration) -> Self {
        Self { grace, moved: 0, waited: Duration::ZERO, since: None, timer: None }
    }

    /// Begins anew, with the next request.
    pub(super) fn begin(&mut self) {
        *self = Self::new(self.grace);
    }

    /// These bytes went through.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
            self.timer = None;
        }
    }

    /// Whether nothing went through last.
    pub(super) const fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// Nothing goes through now: whether that has been so for too long. Wakes the task when it will have been.
    pub(super) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        let allowed = self.grace + Duration::from_secs_f64(self.moved as f64 / BYTES_A_SECOND_MIN as f64);
        let deadline = since + allowed.saturating_sub(self.waited);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        matches!(timer.as_mut().poll(cx), Poll::Ready(()))
    }
}
