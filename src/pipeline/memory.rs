//! What this daemon sent while the database was away: how a duplicate is recognised that no row knows yet.
//!
//! Invariant: only this daemon's own deeds are in it, and only in memory. What another daemon did, and what this one did before it
//! died, is in the journal.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{Fate, pending::Tries};
use crate::email::PayloadHash;

/// Requests remembered before the oldest are looked through.
const REQUESTS_SOUND: usize = 10_000;
/// How long a request is remembered: longer than a mail of the fast lane is tried.
const REMEMBERED_FOR: Duration = Duration::from_secs(2 * 3600);

/// After this long the journal's entries are in the audit, once there is a database: each daemon looks every few seconds.
const WRITTEN_AFTER: Duration = Duration::from_secs(30);

/// Where a recipient stands, as far as this daemon knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// On its way, in another task.
    Sending,
    /// To be tried again.
    Again(Tries),
    /// Over.
    Ended(Fate),
}

/// The requests of the fast lane that went out without a database.
#[derive(Debug, Default)]
pub struct Memory {
    requests: Mutex<HashMap<Uuid, Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    payload_hash: PayloadHash,
    at: Instant,
    recipients: HashMap<[u8; 32], Known>,
}

impl Memory {
    /// Whether this request went out without a database lately.
    pub(super) fn knows(&self, request: Uuid) -> bool {
        self.lock().contains_key(&request)
    }

    /// Whether it did so a moment ago, so that the audit may not have it yet.
    pub(super) fn knew_lately(&self, request: Uuid) -> bool {
        self.lock().get(&request).is_some_and(|known| known.at.elapsed() < WRITTEN_AFTER)
    }

    /// The payload that it came with first, if that was another one.
    pub(super) fn conflict(&self, request: Uuid, payload_hash: PayloadHash) -> Option<PayloadHash> {
        self.lock().get(&request).map(|known| known.payload_hash).filter(|first| *first != payload_hash)
    }

    /// Takes a recipient on, unless another task has it. The error is how it stands.
    pub(super) fn take(&self, request: Uuid, hash: PayloadHash, recipient: &[u8; 32]) -> Result<Option<Tries>, Known> {
        let mut requests = self.lock();
        if requests.len() > REQUESTS_SOUND {
            requests.retain(|_, known| known.at.elapsed() < REMEMBERED_FOR);
        }
        let known = requests.entry(request).or_insert_with(|| Remembered {
            payload_hash: hash,
            at: Instant::now(),
            recipients: HashMap::new(),
        });
        match known.recipients.insert(*recipient, Known::Sending) {
            None => Ok(None),
            Some(Known::Again(tries)) => Ok(Some(tries)),
            Some(taken @ (Known::Sending | Known::Ended(_))) => {
                known.recipients.insert(*recipient, taken.clone());
                Err(taken)
            }
        }
    }

    /// Notes where a recipient that was taken on stands now.
    pub(super) fn note(&self, request: Uuid, recipient: &[u8; 32], known: Known) {
        if let Some(remembered) = self.lock().get_mut(&request) {
            remembered.recipients.insert(*recipient, known);
            remembered.at = Instant::now();
        }
    }

    /// Gives a recipient back that was taken on and not begun.
    pub(super) fn give_back(&self, request: Uuid, recipient: &[u8; 32], tries: Option<Tries>) {
        let mut requests = self.lock();
        if let Some(remembered) = requests.get_mut(&request) {
            match tries {
                Some(tries) => drop(remembered.recipients.insert(*recipient, Known::Again(tries))),
                None => drop(remembered.recipients.remove(recipient)),
            }
            if remembered.recipients.is_empty() {
                requests.remove(&request);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Remembered>> {
        // What is noted one recipient at a time is sound whoever panicked.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::email::Status;

    const REQUEST: Uuid = Uuid::from_u128(1);
    const HASH: PayloadHash = PayloadHash([7; 32]);
    const ADA: [u8; 32] = [1; 32];

    #[test]
    fn a_recipient_is_taken_on_once_and_what_is_over_stays_over() {
        let memory = Memory::default();
        assert!(!memory.knows(REQUEST));
        assert_eq!(memory.take(REQUEST, HASH, &ADA), Ok(None));
        assert_eq!(memory.take(REQUEST, HASH, &ADA), Err(Known::Sending));
        let tries = Tries { attempts: 1, deferrals: 1 };
        memory.note(REQUEST, &ADA, Known::Again(tries));
        assert_eq!(memory.take(REQUEST, HASH, &ADA), Ok(Some(tries)));
        let over = Known::Ended(Fate::Over(Status::Sent));
        memory.note(REQUEST, &ADA, over.clone());
        assert_eq!(memory.take(REQUEST, HASH, &ADA), Err(over));
        assert_eq!(memory.conflict(REQUEST, HASH), None);
        assert_eq!(memory.conflict(REQUEST, PayloadHash([8; 32])), Some(HASH));
    }

    #[test]
    fn what_was_not_begun_leaves_no_trace() {
        let memory = Memory::default();
        assert_eq!(memory.take(REQUEST, HASH, &ADA), Ok(None));
        memory.give_back(REQUEST, &ADA, None);
        assert!(!memory.knows(REQUEST));
    }
}
