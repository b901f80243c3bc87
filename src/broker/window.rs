//! How many deliveries a consumer may hold: few until it knows their size, as many as are configured while they are small.
//!
//! AMQP 0-9-1 limits deliveries by number only, so the number follows the size that was seen. A consumer starts at
//! `WINDOW_MIN`, is at full size two subscriptions later if messages are small, and subscribes anew with less on a large one.
//!
//! Invariant: window times observed size stays within `LANE_BYTES`, or the window is at its least.
//! Invariant: what is held stays within `LANE_BYTES`, or is at most `WINDOW_MIN` messages, whatever the broker has pushed:
//! a window of large messages right after small ones is handed back but for that.
//!
//! What that costs in the worst case, a full window of large messages at once: each crosses the line twice, and comes back
//! marked as redelivered.

/// Deliveries that a consumer may always hold.
pub(super) const WINDOW_MIN: u16 = 2;
/// The second step, enough to learn whether small messages are the rule.
const WINDOW_SECOND: u16 = 16;
/// Bytes of encoded messages that a consumer holds at most, unless [`WINDOW_MIN`] of them are more.
pub(super) const LANE_BYTES: usize = 16 * 1024 * 1024;
/// Of the distance to a smaller message, the estimate goes this part: after a large one, some hundred small ones are needed.
const DECAY: usize = 32;

/// The window of one consumer.
#[derive(Debug)]
pub(super) struct Window {
    full: u16,
    now: u16,
    /// Size of a message: jumps up at once, comes down slowly.
    estimate: usize,
    /// Deliveries since the last change.
    seen: u16,
}

impl Window {
    /// Up to `full`.
    pub(super) fn new(full: u16) -> Self {
        let full = full.max(1);
        Self { full, now: WINDOW_MIN.min(full), estimate: 0, seen: 0 }
    }

    /// What the subscription should ask for.
    pub(super) const fn now(&self) -> u16 {
        self.now
    }

    /// Counts a delivery of this size. True: it is time to subscribe anew.
    pub(super) fn observe(&mut self, bytes: usize) -> bool {
        self.estimate =
            if bytes >= self.estimate { bytes } else { self.estimate - (self.estimate - bytes).div_ceil(DECAY) };
        self.seen = self.seen.saturating_add(1);
        let fitting = u16::try_from(LANE_BYTES / self.estimate.max(1)).unwrap_or(u16::MAX);
        let fitting = fitting.max(WINDOW_MIN).min(self.full);
        let next = if fitting < self.now {
            fitting
        } else if self.seen < self.now {
            // One window of them says nothing about the next before it is over.
            return false;
        } else if self.now < WINDOW_SECOND {
            fitting.min(WINDOW_SECOND)
        } else {
            fitting
        };
        // To grow by little is not worth a subscription.
        let is_change =
            next < self.now || (next > self.now && (next == self.full || next >= self.now.saturating_mul(2)));
        if is_change {
            (self.now, self.seen) = (next, 0);
        }
        is_change
    }

    /// Whether another delivery may be worked on beside these.
    pub(super) const fn has_room(held: usize, held_bytes: usize, bytes: usize) -> bool {
        held < WINDOW_MIN as usize || held_bytes.saturating_add(bytes) <= LANE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: usize = 2 * 1024;
    const LARGE: usize = 10 * 1024 * 1024;

    fn grown(full: u16) -> Window {
        let mut window = Window::new(full);
        for _ in 0..100 {
            window.observe(SMALL);
        }
        assert_eq!(window.now(), full);
        window
    }

    #[test]
    fn small_messages_open_the_whole_window_in_two_steps() {
        let mut window = Window::new(200);
        let mut steps = vec![window.now()];
        for _ in 0..2 + 16 {
            if window.observe(SMALL) {
                steps.push(window.now());
            }
        }
        assert_eq!(steps, [2, 16, 200]);
    }

    #[test]
    fn a_large_message_shuts_it_at_once_and_small_ones_open_it_again() {
        let mut window = grown(64);
        assert!(window.observe(LARGE));
        assert_eq!(window.now(), 2);
        assert!(!window.observe(LARGE));
        let needed = (1..1000).find(|_| window.observe(SMALL) && window.now() == 64).expect("it opens again");
        assert!((50..500).contains(&needed), "{needed}");
    }

    #[test]
    fn messages_in_between_get_a_window_in_between() {
        let mut window = grown(2000);
        assert!(window.observe(1024 * 1024));
        assert_eq!(window.now(), 16);
        let mut window = Window::new(64);
        for _ in 0..200 {
            window.observe(LARGE);
        }
        assert_eq!(window.now(), 2);
        let mut window = Window::new(1);
        assert_eq!((window.now(), window.observe(SMALL)), (1, false));
    }

    #[test]
    fn what_is_held_fits_or_is_the_least() {
        assert!(Window::has_room(1, LARGE, LARGE));
        assert!(!Window::has_room(2, 2 * LARGE, SMALL));
        assert!(Window::has_room(63, 63 * SMALL, SMALL));
    }

    proptest! {
        #[test]
        fn the_window_times_the_last_size_is_bounded(full in 1..2000_u16, sizes in prop::collection::vec(1..LARGE, 1..300)) {
            let mut window = Window::new(full);
            for bytes in sizes {
                let before = window.now();
                let changed = window.observe(bytes);
                prop_assert_eq!(changed, window.now() != before);
                prop_assert!(window.now() <= full && (window.now() >= WINDOW_MIN || window.now() == full));
                prop_assert!(window.now() <= WINDOW_MIN || usize::from(window.now()) * bytes <= LANE_BYTES);
            }
        }
    }
}
