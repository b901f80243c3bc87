//! How many bytes of large messages are decoded, rendered, built and sent at once, and of files that messages only refer to.
//!
//! A message of 10 MB is there twice: as it came (its files are slices of it, not copies) and as it goes, in base64. Small
//! ones pass without asking.
//!
//! Invariant: the fast lane has a share of its own, and never waits for the others'.
//! Invariant: a share of fetched bytes is asked for last: whoever holds one waits for no other share.
//! Invariant: a share is asked for before a place on a connection, never with one in hand: whoever holds a place goes on.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::email::Lane;

/// Encoded messages up to this size pass without a share.
const SMALL_BYTES_MAX: usize = 128 * 1024;
/// For the fast lane.
const FAST_BYTES: usize = 16 * 1024 * 1024;
/// For the other lanes together.
const OTHER_BYTES: usize = 24 * 1024 * 1024;
/// Of one request, built for several recipients at once.
const BUILT_BYTES: usize = 16 * 1024 * 1024;
/// Recipients of one request that are sent to side by side.
const RECIPIENTS_MAX: usize = 8;
/// Shares are counted in units of this.
const UNIT: usize = 1024;

/// The shares of all lanes.
#[derive(Default)]
pub struct Budget {
    messages: Shares,
    fetched: Shares,
}

struct Shares {
    fast: Semaphore,
    others: Semaphore,
}

impl Default for Shares {
    fn default() -> Self {
        Self { fast: Semaphore::new(FAST_BYTES / UNIT), others: Semaphore::new(OTHER_BYTES / UNIT) }
    }
}

impl Budget {
    /// Waits for a message's share, held until it is settled; nothing for a small one. One that is larger than the whole
    /// budget goes alone.
    pub(super) async fn share(&self, lane: Lane, bytes: usize) -> Option<SemaphorePermit<'_>> {
        self.messages.share(lane, bytes).await
    }

    /// The same for the files that a message refers to, before they are fetched.
    pub(super) async fn share_of_fetched(&self, lane: Lane, bytes: u64) -> Option<SemaphorePermit<'_>> {
        self.fetched.share(lane, usize::try_from(bytes).unwrap_or(usize::MAX)).await
    }
}

impl Shares {
    async fn share(&self, lane: Lane, bytes: usize) -> Option<SemaphorePermit<'_>> {
        if bytes <= SMALL_BYTES_MAX {
            return None;
        }
        let (budget, whole) = match lane {
            Lane::Fast => (&self.fast, FAST_BYTES),
            Lane::Standard | Lane::Bulk => (&self.others, OTHER_BYTES),
        };
        let units = u32::try_from(bytes.min(whole) / UNIT).unwrap_or(u32::MAX);
        // It is never closed.
        budget.acquire_many(units).await.ok()
    }
}

/// How many recipients a request of this size is sent to side by side: each has a message of its own.
pub(super) fn recipients_at_once(bytes: usize) -> usize {
    (BUILT_BYTES / bytes.max(1)).clamp(1, RECIPIENTS_MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LARGE: usize = 10 * 1024 * 1024;

    #[tokio::test]
    async fn large_ones_wait_for_each_other_and_small_ones_for_nobody() {
        let budget = Budget::default();
        let first = budget.share(Lane::Standard, LARGE).await;
        let second = budget.share(Lane::Bulk, LARGE).await;
        assert!(first.is_some() && second.is_some());
        assert!(budget.share(Lane::Standard, LARGE).now_or_never().is_none(), "there is no room for a third");
        assert!(budget.share(Lane::Standard, SMALL_BYTES_MAX).now_or_never().is_some_and(|share| share.is_none()));
        assert!(budget.share(Lane::Fast, LARGE).now_or_never().is_some(), "the fast lane has its own");
        drop(first);
        assert!(budget.share(Lane::Standard, LARGE).now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_that_is_larger_than_everything_goes_alone() {
        let budget = Budget::default();
        let share = budget.share(Lane::Fast, 10 * FAST_BYTES).await;
        assert!(budget.share(Lane::Fast, SMALL_BYTES_MAX + 1).now_or_never().is_none());
        drop(share);
        assert!(budget.share(Lane::Fast, SMALL_BYTES_MAX + 1).now_or_never().is_some());
    }

    #[test]
    fn a_large_request_is_built_for_few_at_once() {
        for (bytes, want) in
            [(0, 8), (2_000, 8), (2 * 1024 * 1024, 8), (5 * 1024 * 1024, 3), (LARGE, 1), (2 * BUILT_BYTES, 1)]
        {
            assert_eq!(recipients_at_once(bytes), want, "{bytes}");
        }
    }
}
