//! The claims that this daemon has at hand.
//!
//! A row in `sending` under this daemon's name is somebody's work only while the delivery that claimed it is being carried.
//! A claim whose answer never came may have been committed all the same; when its delivery is handed back, the row would
//! look busy for as long as the daemon lives. So the store remembers which tokens are at work, and which were given up
//! before a byte was sent.
//!
//! Invariant: a token is at work from before its claim is asked for until its outcome is committed.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

/// What this daemon knows of a claim of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnClaim {
    /// A delivery is being carried under it.
    AtWork,
    /// It was given up before the first SMTP byte.
    GivenUp,
    /// Nobody carries it any more, and nobody knows how far it came: a worker crashed.
    Lost,
}

/// The tokens of this daemon.
#[derive(Debug, Default)]
pub(super) struct HeldClaims {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    at_work: HashSet<Uuid>,
    /// Never cleared: an outage adds at most as many as were in flight.
    given_up: HashSet<Uuid>,
}

impl HeldClaims {
    pub(super) fn state(&self, token: Uuid) -> OwnClaim {
        let inner = self.lock();
        if inner.at_work.contains(&token) {
            OwnClaim::AtWork
        } else if inner.given_up.contains(&token) {
            OwnClaim::GivenUp
        } else {
            OwnClaim::Lost
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Sets of ids are sound whoever panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens at work, until it is dropped.
#[derive(Debug)]
pub struct AtWork {
    held: Arc<HeldClaims>,
    tokens: Vec<Uuid>,
}

impl AtWork {
    pub(super) fn new(held: &Arc<HeldClaims>, tokens: Vec<Uuid>) -> Self {
        held.lock().at_work.extend(&tokens);
        Self { held: Arc::clone(held), tokens }
    }

    /// Notes that the claim under this token, if there is one, was given up before the first SMTP byte.
    pub fn give_up(&self, token: Uuid) {
        self.held.lock().given_up.insert(token);
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut inner = self.held.lock();
        for token in &self.tokens {
            inner.at_work.remove(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_at_work_while_it_is_carried_and_lost_or_given_up_afterwards() {
        let held = Arc::new(HeldClaims::default());
        let [sent, doubtful] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let work = AtWork::new(&held, vec![sent, doubtful]);
        work.give_up(doubtful);
        assert_eq!([held.state(sent), held.state(doubtful)], [OwnClaim::AtWork; 2]);
        drop(work);
        assert_eq!([held.state(sent), held.state(doubtful)], [OwnClaim::Lost, OwnClaim::GivenUp]);
    }
}
