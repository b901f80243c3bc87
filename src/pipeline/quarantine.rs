//! Messages under suspicion: worked on alone, so that what takes the daemon down is found, and its neighbours are not blamed.
//!
//! A message that comes back although no row explains it, for the second time, is *rehearsed* before it goes its way: decoded,
//! rendered and built while no other message is. A mail whose worker died twice while it was sent is sent alone. Both are
//! written down before they begin (`Store::mark_alone`); what is never taken back was the message's own crash.
//!
//! Invariant: nobody waits long for a suspect. A rehearsal is as short as a rendering; beside a mail that is sent alone
//! others wait `BESIDE_WAIT_MAX` at most, and then it does not count as alone.
//! Invariant: while a mail on the wire has its mark, nothing else is decoded, rendered, rehearsed, built or sent. Whoever does
//! not wait any longer has the mark taken away first: what takes the daemon down then is not blamed on it.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError},
    time::Duration,
};

use chrono::Utc;
use futures_util::FutureExt;
use tokio::{
    sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, watch},
    time::timeout,
};
use uuid::Uuid;

use super::{CRASHES_MAX, Halt, Pipeline, decode, settlement::Settlement};
use crate::{
    broker::Delivery,
    email::{Lane, Reason, identity::row_id},
    faults::{self, Point},
    store::{Crashes, StoreError},
};

/// How long the store may take to note that a message is worked on alone.
const NOTE_MAX: Duration = Duration::from_secs(2);
/// Longer than any statement is waited for: a mark that is still on its way has come by then.
const MARK_IS_LATE: Duration = Duration::from_secs(60);
/// From this crash on a message is worked on alone.
const ALONE_FROM: i32 = 2;
/// How long a mail that is to be sent alone waits for its turn to be.
const TURN_MAX: Duration = Duration::from_secs(60);
/// How long a mail that is to be sent alone waits for those that are on the wire.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long others wait for a mail that is sent alone.
const BESIDE_WAIT_MAX: Duration = Duration::from_secs(2);

/// A mark in the store, and whether we heard that it was made.
struct Mark {
    id: Uuid,
    is_heard: bool,
}

/// Who is at work, and whether somebody needs to be alone.
pub struct Quarantine {
    turn_max: Duration,
    drain_max: Duration,
    beside_wait_max: Duration,
    /// Held by the mail that is alone on the wire, or waits for the others to leave it.
    turns: Mutex<()>,
    /// Held by the one message that is rehearsed.
    rehearsal: Mutex<()>,
    /// Held by whoever decodes, renders or builds; exclusively by a rehearsal.
    desk: RwLock<()>,
    wire: watch::Sender<Wire>,
    /// Redeliveries counted while the store was away.
    remembered: std::sync::Mutex<HashMap<[u8; 32], i32>>,
}

#[derive(Debug, Default)]
struct Wire {
    /// Mails being sent.
    busy: usize,
    /// Somebody is alone, or waits to be.
    is_claimed: bool,
    /// Somebody else has come beside who is alone.
    is_disturbed: bool,
    /// Who is alone has its mark, or is about to have it: a crash would be its own.
    is_marked: bool,
}

/// A mail on the wire; not there any more when it is dropped.
pub(super) struct OnWire<'a> {
    wire: &'a watch::Sender<Wire>,
    /// Its turn to be alone.
    alone: Option<MutexGuard<'a, ()>>,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            turn_max: TURN_MAX,
            drain_max: DRAIN_MAX,
            beside_wait_max: BESIDE_WAIT_MAX,
            turns: Mutex::default(),
            rehearsal: Mutex::default(),
            desk: RwLock::new(()),
            wire: watch::Sender::new(Wire::default()),
            remembered: std::sync::Mutex::default(),
        }
    }
}

impl Quarantine {
    /// For work on the processor: beside others, but never beside a rehearsal, and not beside a mail that has its mark.
    pub(super) async fn desk(&self) -> RwLockReadGuard<'_, ()> {
        loop {
            self.until_unmarked().await;
            let desk = self.desk.read().await;
            // Marks are made by who has the desk to itself.
            if !self.wire.borrow().is_marked {
                return desk;
            }
        }
    }

    /// The same for the work of a mail that is on the wire: that has waited for its turn there, or has the mark itself.
    pub(super) async fn desk_on_wire(&self) -> RwLockReadGuard<'_, ()> {
        self.desk.read().await
    }

    /// Waits a moment for a mail that has its mark; then it is disturbed, and its mark taken away.
    async fn until_unmarked(&self) {
        let mut changes = self.wire.subscribe();
        // The sender lives in self, so only the time can run out.
        if timeout(self.beside_wait_max, changes.wait_for(|wire| !wire.is_marked)).await.is_err() {
            self.wire.send_modify(|wire| wire.is_disturbed |= wire.is_marked);
            // Taking a mark away has its own limit.
            let _ = changes.wait_for(|wire| !wire.is_marked).await;
        }
    }

    /// For sending: beside others. Waits a moment for who is alone.
    pub(super) async fn beside(&self) -> OnWire<'_> {
        let mut changes = self.wire.subscribe();
        // The sender lives in self, so only the time can run out.
        let _ = timeout(self.beside_wait_max, changes.wait_for(|wire| !wire.is_claimed || wire.is_disturbed)).await;
        self.wire.send_modify(|wire| {
            wire.busy += 1;
            wire.is_disturbed |= wire.is_claimed;
        });
        let on_wire = OnWire { wire: &self.wire, alone: None };
        let _ = changes.wait_for(|wire| !wire.is_marked).await;
        on_wire
    }

    /// For sending alone; nothing when the others cannot be waited for. Who wants to be alone takes turns.
    async fn alone(&self) -> Option<OnWire<'_>> {
        let turn = timeout(self.turn_max, self.turns.lock()).await.ok()?;
        self.wire.send_modify(|wire| (wire.is_claimed, wire.is_disturbed) = (true, false));
        // Gives the claim back if the wait is in vain.
        let claim = OnWire { wire: &self.wire, alone: Some(turn) };
        let mut changes = self.wire.subscribe();
        timeout(self.drain_max, changes.wait_for(|wire| wire.busy == 0)).await.ok()?.ok()?;
        // Nobody is at the desk either, and nothing is rehearsed: whoever comes from here on sees the mark.
        let quiet = async { (self.rehearsal.lock().await, self.desk.write().await) };
        let _quiet = timeout(self.drain_max, quiet).await.ok()?;
        self.wire.send_modify(|wire| wire.is_marked = !wire.is_disturbed);
        // Read apart from the claim's end: it writes what is read here.
        let is_alone = self.wire.borrow().is_marked;
        is_alone.then_some(claim)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], i32>> {
        // Counters are sound whoever panicked.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OnWire<'_> {
    /// Returns once somebody else has come beside; never if it was not alone anyway.
    async fn disturbed(&self) {
        let mut changes = self.wire.subscribe();
        let _ = changes.wait_for(|wire| self.alone.is_some() && wire.is_disturbed).await;
    }

    /// One among others from here on.
    fn join_the_others(&mut self) {
        self.wire.send_modify(|wire| {
            (wire.is_claimed, wire.is_disturbed, wire.is_marked) = (false, false, false);
            wire.busy += 1;
        });
        self.alone = None;
    }
}

impl Drop for OnWire<'_> {
    fn drop(&mut self) {
        self.wire.send_modify(|wire| {
            if self.alone.is_some() {
                (wire.is_claimed, wire.is_disturbed, wire.is_marked) = (false, false, false);
            } else {
                wire.busy -= 1;
            }
        });
    }
}

/// What is held against a message.
pub(super) enum Suspicion {
    /// Nothing, or too little.
    None,
    /// It has crashed before: it goes alone first.
    Alone,
    /// It is parked.
    Poison(String),
}

impl Pipeline {
    /// Looks whether a delivery has come back without a reason.
    pub(super) async fn suspicion(&self, delivery: &Delivery) -> Suspicion {
        let envelope = &delivery.envelope;
        if envelope.crashes > 0 {
            // It panicked, so it is known by itself, whatever the store says.
            return Suspicion::Alone;
        }
        if !envelope.redelivered {
            return Suspicion::None;
        }
        let key = delivery.crash_key();
        let counted = match self.count_redelivery(delivery, &key).await {
            Ok(counted) => {
                // The store counts again. What was counted meanwhile is of no more use, and some of it has gone to other daemons.
                self.quarantine.remembered().clear();
                counted
            }
            Err(error) => {
                if error.is_away() {
                    self.store.note_away(&error);
                }
                let mut remembered = self.quarantine.remembered();
                let crashes = remembered.entry(key).or_default();
                *crashes += 1;
                Some(Crashes { crashes: *crashes, alone: 0 })
            }
        };
        match counted {
            None => Suspicion::None,
            Some(crashes) if crashes.alone >= CRASHES_MAX => Suspicion::Poison(format!(
                "the daemon died {} times while it worked on this message and on nothing else",
                crashes.alone
            )),
            Some(crashes) if crashes.crashes >= ALONE_FROM => Suspicion::Alone,
            Some(_) => Suspicion::None,
        }
    }

    async fn count_redelivery(&self, delivery: &Delivery, key: &[u8; 32]) -> Result<Option<Crashes>, StoreError> {
        if !self.store.is_up() {
            return Err(StoreError::Away("it is known to be away".to_owned()));
        }
        self.store.count_redelivery(delivery.envelope.lane, key, request_id_of(delivery)).await
    }

    /// Decodes, renders and builds a message while no other is. The error is the words of its panic.
    pub(super) async fn rehearse(&self, delivery: &Delivery) -> Result<(), String> {
        let (lane, key) = (delivery.envelope.lane, delivery.crash_key());
        // One at a time: a crash has one mark, or everybody who waited for the desk would be blamed for it.
        let _rehearsal = self.quarantine.rehearsal.lock().await;
        // Nor those that are sent alone: with the lock in hand none gets its mark from here on.
        self.quarantine.until_unmarked().await;
        // While the store is away nothing can be written down; then it is only kept apart.
        let mark = if self.store.is_up() { Some(self.mark_alone(lane, &key).await) } else { None };
        tracing::info!("a message that came back without a reason is worked on alone");
        let result = AssertUnwindSafe(self.go_through(delivery)).catch_unwind().await;
        if let Some(mark) = mark {
            self.unmark_alone(lane, mark).await;
        }
        result.map_err(|panic| super::words_of(panic.as_ref()))
    }

    /// A mark that this is a crash of the message's own, unless it is taken away again.
    async fn mark_alone(&self, lane: Lane, key: &[u8; 32]) -> Mark {
        let id = Uuid::new_v4();
        let is_heard = matches!(timeout(NOTE_MAX, self.store.mark_alone(lane, key, id)).await, Ok(Ok(())));
        Mark { id, is_heard }
    }

    /// Takes a mark away that was survived, now or when the store is back. One whose making was not heard of may still be on
    /// its way, and is looked for once more.
    async fn unmark_alone(&self, lane: Lane, mark: Mark) {
        let unmarked = timeout(NOTE_MAX, self.store.unmark_alone(lane, mark.id)).await;
        if mark.is_heard && matches!(unmarked, Ok(Ok(()))) {
            return;
        }
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            tokio::time::sleep(MARK_IS_LATE).await;
            loop {
                store.wait_until_back().await;
                match store.unmark_alone(lane, mark.id).await {
                    Err(error) if error.is_away() => store.note_away(&error),
                    Ok(()) | Err(_) => return,
                }
            }
        });
    }

    /// What is wrong with the message is not told here: its proper turn comes. The desk is held only where nothing is waited
    /// for.
    async fn go_through(&self, delivery: &Delivery) {
        let envelope = &delivery.envelope;
        let decoded = {
            let _desk = self.quarantine.desk.write().await;
            let decoded = decode::decode(envelope, &delivery.body, &self.rules, Utc::now());
            if let Ok(decoded) = &decoded {
                faults::reached_by(Point::Decoded, decoded.request.id);
            }
            decoded
        };
        let Ok(decoded) = decoded else { return };
        let request = &decoded.request;
        let template = if self.store.is_up() {
            timeout(NOTE_MAX, self.template_of(envelope, request)).await.ok().and_then(Result::ok).flatten()
        } else {
            self.catalogue.active(&request.template_key)
        };
        let Some(template) = template else { return };
        let _desk = self.quarantine.desk.write().await;
        let Ok(words) = self.words(request, decoded.published_at, &template) else { return };
        faults::reached_by(Point::Rendered, request.id);
        let Some(recipient) = request.recipients.iter().find(|recipient| recipient.address.is_ok()) else { return };
        let hash = self.store.address_hash(&recipient.key());
        let id = row_id(decoded.published_at, request.id, &hash);
        let made = super::deliver::Making {
            request,
            recipient,
            recipient_hash: &hash,
            manifest: Some(template.manifest()),
            words: &words,
            message_id: &format!("{id}@{}", self.mail.message_id_domain),
            row_id: id,
            attempt: 1,
            template_version: template.version(),
            lane: envelope.lane,
        };
        drop(self.make(&made));
    }

    /// Runs a mail's sending: beside the others, or alone if its workers have died before.
    pub(super) async fn on_wire<T>(
        &self,
        lane: Lane,
        crashes: i32,
        key: &[u8; 32],
        sending: impl Future<Output = T>,
    ) -> T {
        // Once, for both ways: moved to the second it would take up its room twice.
        tokio::pin!(sending);
        if crashes >= ALONE_FROM
            && self.store.is_up()
            && let Some(mut wire) = self.quarantine.alone().await
        {
            let mark = self.mark_alone(lane, key).await;
            tracing::warn!(crashes, "a mail whose workers died is sent alone");
            let undisturbed = tokio::select! {
                biased;
                sent = &mut sending => Some(sent),
                () = wire.disturbed() => None,
            };
            // Survived, or from here on a crash may be somebody else's.
            return match undisturbed {
                Some(sent) => {
                    self.unmark_alone(lane, mark).await;
                    sent
                }
                None => {
                    // Who has disturbed it waits until its mark is gone.
                    let unmarking = async {
                        self.unmark_alone(lane, mark).await;
                        wire.join_the_others();
                    };
                    let ((), sent) = tokio::join!(unmarking, &mut sending);
                    sent
                }
            };
        }
        let _wire = self.quarantine.beside().await;
        sending.await
    }

    /// A message leaves its queue: what was held against it is forgotten. Best effort; retention finds what is left.
    pub(super) async fn forget_suspicion(&self, lane: Lane, key: &[u8; 32]) {
        self.quarantine.remembered().remove(key);
        if self.store.is_up()
            && let Err(error) = self.store.forget_crashes(lane, key).await
        {
            tracing::debug!(%error, "could not forget a message's crashes");
        }
    }

    /// Parks a message that crashed by itself: its rows end, its dead letter says why.
    pub(super) async fn park(&self, delivery: &Delivery, error: String) -> Settlement {
        tracing::error!("a message is parked: it crashes whoever works on it");
        let lane = delivery.envelope.lane;
        let mut letter = Settlement::unreadable(Reason::Poison, error.clone());
        if let Some(id) = request_id_of(delivery) {
            match self.patiently(|| self.store.park_poison(lane, id, &error)).await {
                Ok(()) => {}
                // It comes back by itself, and is found out again.
                Err(Halt::Away) if lane == Lane::Fast => return Settlement::for_store(&delivery.envelope),
                Err(_) => return Settlement::HandBack,
            }
            letter = letter.about_unread(id);
        }
        letter
    }
}

/// The request's id, as far as it is known before decoding: producers set `message_id` to it.
pub(super) fn request_id_of(delivery: &Delivery) -> Option<Uuid> {
    delivery.envelope.message_id.as_deref().and_then(|id| Uuid::parse_str(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_wants_to_be_alone_waits_for_the_others_and_they_for_it_a_while() {
        let (moment, for_ever) = (Duration::from_millis(20), Duration::from_secs(60));
        let patient = Quarantine { drain_max: for_ever, beside_wait_max: for_ever, ..Quarantine::default() };
        let alone = patient.alone().await.expect("nobody is there");
        assert!(timeout(moment, patient.beside()).await.is_err(), "they wait for it");
        drop(alone);
        let beside = timeout(for_ever, patient.beside()).await.expect("it is gone");
        assert!(timeout(moment, patient.alone()).await.is_err(), "it waits for them");
        drop(beside);
        drop(timeout(for_ever, patient.alone()).await.expect("they are gone").expect("and it is alone"));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_and_who_was_disturbed_knows_it() {
        let moment = Duration::from_millis(20);
        let hasty = Quarantine { drain_max: moment, beside_wait_max: moment, ..Quarantine::default() };
        let first = hasty.beside().await;
        assert!(hasty.alone().await.is_none(), "the other never ended");
        drop(first);
        // Disturbed before it had the wire to itself, by somebody who is gone by then.
        let slow = Quarantine { drain_max: Duration::from_secs(60), beside_wait_max: moment, ..Quarantine::default() };
        let busy = slow.beside().await;
        let disturb = async {
            let passer_by = slow.beside().await;
            drop((passer_by, busy));
        };
        let (alone, ()) = tokio::join!(slow.alone(), disturb);
        assert!(alone.is_none(), "somebody else was there");
        let mut alone = hasty.alone().await.expect("nobody is there");
        let disturbed = async {
            timeout(Duration::from_secs(60), alone.disturbed()).await.expect("it was disturbed");
            alone.join_the_others();
        };
        let (beside, ()) = tokio::join!(hasty.beside(), disturbed);
        drop((alone, beside));
        let wire = hasty.wire.borrow();
        assert_eq!((wire.busy, wire.is_claimed, wire.is_disturbed), (0, false, false));
    }

    #[tokio::test]
    async fn nothing_is_done_at_the_desk_beside_a_mail_that_would_be_blamed_for_it() {
        let (moment, for_ever) = (Duration::from_millis(20), Duration::from_secs(60));
        let patient = Quarantine { drain_max: moment, beside_wait_max: for_ever, ..Quarantine::default() };
        let at_the_desk = patient.desk().await;
        assert!(patient.alone().await.is_none(), "somebody may take the daemon down there");
        drop(at_the_desk);
        let rehearsal = patient.rehearsal.lock().await;
        assert!(patient.alone().await.is_none(), "or here");
        drop(rehearsal);
        let alone = patient.alone().await.expect("nobody is there");
        assert!(timeout(moment, patient.desk()).await.is_err(), "it waits");
        drop(timeout(for_ever, patient.desk_on_wire()).await.expect("its own work does not"));
        drop(alone);
        drop(timeout(for_ever, patient.desk()).await.expect("it is gone"));

        let hasty = Quarantine { beside_wait_max: moment, ..Quarantine::default() };
        let mut alone = hasty.alone().await.expect("nobody is there");
        let disturbed = async {
            alone.disturbed().await;
            assert!(hasty.wire.borrow().is_marked, "they wait until it has lost its mark");
            alone.join_the_others();
        };
        let ((), desk) = tokio::join!(disturbed, hasty.desk());
        drop((desk, alone));
    }
}
