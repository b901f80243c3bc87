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
use crate::{email::PayloadHash, store::journal::Ended};

/// Requests remembered before old ones are first looked for.
const REQUESTS_SOUND: usize = 1000;
/// How long a request is remembered beyond the time that a mail of the fast lane is tried: a copy may wait for its turn.
const REMEMBERED_BEYOND: Duration = Duration::from_secs(3600);
/// Where a recipient stands, as far as this daemon knows.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// On its way, in another task.
    Sending,
    /// To be tried again.
    Again(Tries),
    /// Over; with the entry of the journal that says so, until it is known to be settled.
    Ended(Fate, Option<Box<(Tries, Uuid, Ended)>>),
}

/// The requests of the fast lane that went out without a database.
#[derive(Debug)]
pub struct Memory {
    inner: Mutex<Inner>,
    remembered_for: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    requests: HashMap<Uuid, Remembered>,
    /// Looked through when there are more than this.
    sound: usize,
}

#[derive(Debug)]
struct Remembered {
    payload_hash: PayloadHash,
    at: Instant,
    recipients: HashMap<[u8; 32], Known>,
}

/// A recipient that was taken on. Given back when it is dropped without having been put down, also by a panic.
pub(super) struct Taken<'a> {
    memory: &'a Memory,
    request: Uuid,
    recipient: [u8; 32],
    before: Option<Tries>,
    is_put_down: bool,
}

impl Memory {
    /// For mails that are tried for this long.
    #[must_use]
    pub fn new(age_max: Duration) -> Self {
        Self { inner: Mutex::default(), remembered_for: age_max + REMEMBERED_BEYOND }
    }

    /// Whether this request is on its way without a database, in another task.
    pub(super) fn is_sending(&self, request: Uuid) -> bool {
        let inner = self.lock();
        let known = inner.requests.get(&request);
        known.is_some_and(|known| known.recipients.values().any(|known| matches!(known, Known::Sending)))
    }

    /// Whether this request went out without a database, so that the audit may not have it yet.
    pub(super) fn knows_request(&self, request: Uuid) -> bool {
        self.lock().requests.contains_key(&request)
    }

    /// Whether this daemon itself knows what became of a recipient.
    pub(super) fn knows(&self, request: Uuid, recipient: &[u8; 32]) -> bool {
        self.lock().requests.get(&request).is_some_and(|known| known.recipients.contains_key(recipient))
    }

    /// Whether this daemon itself has brought a recipient to its end.
    pub(super) fn has_ended(&self, request: Uuid, recipient: &[u8; 32]) -> bool {
        let inner = self.lock();
        let known = inner.requests.get(&request).and_then(|known| known.recipients.get(recipient));
        matches!(known, Some(Known::Ended(..)))
    }

    /// The payload that it came with first, if that was another one.
    pub(super) fn conflict(&self, request: Uuid, payload_hash: PayloadHash) -> Option<PayloadHash> {
        self.lock().requests.get(&request).map(|known| known.payload_hash).filter(|first| *first != payload_hash)
    }

    /// Takes a recipient on, unless another task has it or it is over. The error is how it stands.
    pub(super) fn take(&self, request: Uuid, hash: PayloadHash, recipient: &[u8; 32]) -> Result<Taken<'_>, Known> {
        let mut inner = self.lock();
        let known = inner.remembered(request, hash, self.remembered_for);
        let before = match known.recipients.get(recipient) {
            None => None,
            Some(Known::Again(tries)) => Some(*tries),
            Some(taken @ (Known::Sending | Known::Ended(..))) => return Err(taken.clone()),
        };
        known.recipients.insert(*recipient, Known::Sending);
        Ok(Taken { memory: self, request, recipient: *recipient, before, is_put_down: false })
    }

    /// Notes where a recipient stands.
    pub(super) fn note(&self, request: Uuid, hash: PayloadHash, recipient: &[u8; 32], known: Known) {
        let mut inner = self.lock();
        let remembered = inner.remembered(request, hash, self.remembered_for);
        remembered.recipients.insert(*recipient, known);
        remembered.at = Instant::now();
    }

    /// The audit has it: rows decide from here on.
    pub(super) fn forget(&self, request: Uuid) {
        self.lock().requests.remove(&request);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What is noted one recipient at a time is sound whoever panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remembered(&mut self, request: Uuid, payload_hash: PayloadHash, long: Duration) -> &mut Remembered {
        if self.requests.len() > self.sound.max(REQUESTS_SOUND) {
            self.requests.retain(|_, known| known.at.elapsed() < long);
            // Not looked through again before there are twice as many, whatever their age.
            self.sound = self.requests.len() * 2;
        }
        let fresh = || Remembered { payload_hash, at: Instant::now(), recipients: HashMap::new() };
        self.requests.entry(request).or_insert_with(fresh)
    }
}

impl Taken<'_> {
    /// Tries so far, if this daemon has tried it before.
    pub(super) const fn before(&self) -> Option<Tries> {
        self.before
    }

    /// Notes where it stands now.
    pub(super) fn put_down(mut self, known: Known) {
        self.is_put_down = true;
        let mut inner = self.memory.lock();
        if let Some(remembered) = inner.requests.get_mut(&self.request) {
            remembered.recipients.insert(self.recipient, known);
            remembered.at = Instant::now();
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.is_put_down {
            return;
        }
        let mut inner = self.memory.lock();
        let Some(remembered) = inner.requests.get_mut(&self.request) else { return };
        match self.before {
            Some(tries) => drop(remembered.recipients.insert(self.recipient, Known::Again(tries))),
            None => drop(remembered.recipients.remove(&self.recipient)),
        }
        if remembered.recipients.is_empty() {
            inner.requests.remove(&self.request);
        }
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
        let memory = Memory::new(Duration::from_secs(3600));
        assert!(!memory.knows_request(REQUEST));
        let first = memory.take(REQUEST, HASH, &ADA).unwrap_or_else(|known| panic!("{known:?}"));
        assert!(matches!(memory.take(REQUEST, HASH, &ADA), Err(Known::Sending)));
        assert!(memory.is_sending(REQUEST));
        let tries = Tries { attempts: 1, deferrals: 1 };
        first.put_down(Known::Again(tries));
        let second = memory.take(REQUEST, HASH, &ADA).unwrap_or_else(|known| panic!("{known:?}"));
        assert_eq!(second.before(), Some(tries));
        second.put_down(Known::Ended(Fate::Over(Status::Sent), None));
        assert!(matches!(memory.take(REQUEST, HASH, &ADA), Err(Known::Ended(Fate::Over(Status::Sent), None))));
        assert!(!memory.is_sending(REQUEST) && memory.knows(REQUEST, &ADA));
        assert_eq!(memory.conflict(REQUEST, HASH), None);
        assert_eq!(memory.conflict(REQUEST, PayloadHash([8; 32])), Some(HASH));
        memory.forget(REQUEST);
        assert!(!memory.knows_request(REQUEST));
    }

    #[test]
    fn what_was_not_begun_leaves_no_trace_and_what_was_tried_is_as_before() {
        let memory = Memory::new(Duration::from_secs(3600));
        drop(memory.take(REQUEST, HASH, &ADA));
        assert!(!memory.knows_request(REQUEST));
        let tries = Tries { attempts: 1, deferrals: 2 };
        memory.note(REQUEST, HASH, &ADA, Known::Again(tries));
        drop(memory.take(REQUEST, HASH, &ADA));
        let again = memory.take(REQUEST, HASH, &ADA).unwrap_or_else(|known| panic!("{known:?}"));
        assert_eq!(again.before(), Some(tries));
    }

    #[test]
    fn many_requests_do_not_cost_a_look_at_all_of_them_each_time() {
        let memory = Memory::new(Duration::from_secs(3600));
        for n in 0..5000 {
            memory.note(Uuid::from_u128(n), HASH, &ADA, Known::Again(Tries::default()));
        }
        let inner = memory.lock();
        assert_eq!(inner.requests.len(), 5000, "all of them are young");
        assert!(inner.sound >= 5000);
    }
}
