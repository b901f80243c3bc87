//! Whether the database can be asked: noticed by whoever asks in vain, and looked for by one prober for all.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use super::{Store, StoreError};

/// A database that was not looked for this long is sound.
const SOUND_AFTER: Duration = Duration::from_secs(30);
/// Beyond this many looks the pause is the longest anyway.
const LOOKS_MAX: usize = 16;
/// Longest pause between two looks whether the database is back.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Whether the store can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreHealth {
    /// It is there.
    Up,
    /// It is not; the words say why.
    Away(String),
    /// It is back, and what the fast lane sent meanwhile is being written into it.
    CatchingUp,
}

impl Store {
    /// How the store fares: what lanes pause by.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.subscribe()
    }

    /// Whether claims may be asked for.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(*self.health.borrow(), StoreHealth::Up)
    }

    /// Notes that the store was found away; [`Store::wait_until_back`] then waits for the prober.
    pub fn note_away(self: &Arc<Self>, error: &StoreError) {
        let newly_away = self.health.send_if_modified(|health| {
            // One that fails while the journal is written has gone away again: its prober sees to that.
            let newly = matches!(health, StoreHealth::Up);
            if newly {
                *health = StoreHealth::Away(error.to_string());
            }
            newly
        });
        if newly_away {
            tracing::error!(%error, "the database is away: all lanes but the fast one pause until it is back");
            let store = Arc::clone(self);
            tokio::spawn(async move { store.probe_until_back().await });
        }
    }

    /// Returns when the store is thought to be there, and the journal written. Cancel-safe.
    pub async fn wait_until_back(&self) {
        let mut health = self.health.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        drop(health.wait_for(|health| matches!(health, StoreHealth::Up)).await);
    }

    /// Says that what the fast lane sent meanwhile is in the audit: the lanes may go on.
    pub fn caught_up(&self) {
        let was_behind = self.health.send_if_modified(|health| {
            let was_behind = matches!(health, StoreHealth::CatchingUp);
            if was_behind {
                *health = StoreHealth::Up;
            }
            was_behind
        });
        if was_behind {
            tracing::info!("the database is back");
        }
    }

    /// Says that the database went away again before the journal was written.
    pub fn fell_behind(self: &Arc<Self>, error: &StoreError) {
        self.health.send_replace(StoreHealth::Away(error.to_string()));
        let store = Arc::clone(self);
        tokio::spawn(async move { store.probe_until_back().await });
    }

    /// One prober for everybody who waits, so that a database that comes back is not met by a crowd.
    async fn probe_until_back(&self) {
        loop {
            let looks = self.looks_before_next();
            if looks > 0 {
                let pauses = ExponentialBackoff::from_millis(2).factor(125).max_delay(PROBE_PAUSE_MAX);
                let pause = pauses.map(jitter).nth(looks - 1).unwrap_or(PROBE_PAUSE_MAX);
                tokio::time::sleep(pause).await;
            }
            // A write: a database that has no room, or became read-only, answers `select 1` as well.
            if self.renew_lease().await.is_ok() {
                break;
            }
        }
        self.health.send_replace(StoreHealth::CatchingUp);
    }

    /// How often it was looked for in vain, or found only to be lost again at once: the pause grows with that, so that a
    /// database that takes one statement and not the next is not beset either.
    fn looks_before_next(&self) -> usize {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last) = *looks;
        let count = if last.elapsed() > SOUND_AFTER { 0 } else { count };
        *looks = ((count + 1).min(LOOKS_MAX), Instant::now());
        count
    }
}
