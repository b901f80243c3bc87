//! The deliveries of one consumer that are being worked on, by number and bytes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::window::Window;

/// What one subscription's deliveries have come to, for the watchdog.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Deliveries so far.
    pub(super) taken: AtomicU64,
    /// Those being worked on.
    pub(super) at_work: AtomicUsize,
}

/// What is being worked on, whichever subscription it came from.
#[derive(Debug, Default)]
pub(super) struct Held {
    number: AtomicUsize,
    bytes: AtomicUsize,
    freed: Notify,
}

/// One delivery being worked on, until it is dropped.
pub(super) struct AtWork {
    held: Arc<Held>,
    pulse: Arc<Pulse>,
    bytes: usize,
}

impl Held {
    /// Whether another delivery of this size may be begun.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        Window::has_room(self.number.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed), bytes)
    }

    /// Waits until it may. For one waiter.
    pub(super) async fn room(&self, bytes: usize) {
        while !self.has_room(bytes) {
            self.freed.notified().await;
        }
    }

    /// Begins one.
    pub(super) fn begin(self: &Arc<Self>, pulse: &Arc<Pulse>, bytes: usize) -> AtWork {
        self.number.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        pulse.at_work.fetch_add(1, Ordering::Relaxed);
        AtWork { held: Arc::clone(self), pulse: Arc::clone(pulse), bytes }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.pulse.at_work.fetch_sub(1, Ordering::Relaxed);
        self.held.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.held.number.fetch_sub(1, Ordering::Relaxed);
        self.held.freed.notify_one();
    }
}
