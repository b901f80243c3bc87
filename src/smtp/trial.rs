//! Whether mails may go to a relay whose connections work: not to one that puts off one person's mail after another's.
//! Pure.
//!
//! A deferral is the mail's own affair until mails to `SEVERAL` different people in a row were put off, with nothing
//! dealt with in between. From then on it is the relay's affair: no try is burnt, mails stop, and after each pause some
//! are let go on trial. The first one that is taken or refused for good ends it.
//!
//! A relay that puts everybody off once (greylisting) and takes the second try needs many to be let go before second
//! tries come up, so each trial that fails makes the next one larger; the pauses between them are the breaker's.
//! After another kind of fault some go first as well: a relay that greets well may yet hang up on every mail.
//!
//! Invariant: one person whose mails are put off for ever never closes the way for others.
//! Invariant: whoever was let go is accounted for once, so a trial cannot wait for a mail that is no longer there; and
//! mails that the relay is slow to answer hold up the others for `PATIENCE` only.

use std::time::Duration;

use tokio::time::Instant;

use crate::email::Lane;

/// So many different people in a row are no chance.
pub(super) const SEVERAL: usize = 5;
/// Mails of the first trial.
const TRIAL_MIN: u32 = 3;
/// Mails of a trial after many that failed.
const TRIAL_MAX: u32 = 96;
/// After so long as many mails may go again, whatever has become of the first ones.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Trials {
    /// Whose mails were put off since one was dealt with, as hashes; at most [`SEVERAL`].
    put_off: Vec<u64>,
    way: Way,
    size: u32,
    /// Tells mails of this trial from those of earlier ones.
    number: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    Open,
    Closed,
    Trial { left: u32, under_way: u32, more_at: Instant },
}

/// Whether a mail may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayGo {
    Now,
    At(Instant),
    /// Until something changes.
    No,
}

/// A mail was let go, in this trial if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LetGo(u64);

/// What a deferral means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deferral {
    /// It is the mail's own affair.
    OfTheMail,
    /// It is the relay's affair.
    OfTheRelay,
    /// The same, and from now on no mail may go.
    ClosesTheWay,
}

impl Trials {
    pub(super) const fn new() -> Self {
        Self { put_off: Vec::new(), way: Way::Open, size: TRIAL_MIN, number: 0 }
    }

    /// Whether a mail of this lane may go. The fast lane takes part in every trial, however many are under way.
    pub(super) fn may_go(&self, lane: Lane, now: Instant) -> MayGo {
        match self.way {
            Way::Open => MayGo::Now,
            Way::Closed => MayGo::No,
            Way::Trial { left, more_at, .. } if left > 0 || lane == Lane::Fast || more_at <= now => MayGo::Now,
            Way::Trial { more_at, .. } => MayGo::At(more_at),
        }
    }

    /// Lets one go, if it may.
    pub(super) fn let_go(&mut self, lane: Lane, now: Instant) -> Option<LetGo> {
        if self.may_go(lane, now) != MayGo::Now {
            return None;
        }
        if let Way::Trial { left, under_way, more_at } = &mut self.way {
            if *left == 0 && *more_at <= now {
                (*left, *more_at) = (self.size, now + PATIENCE);
            }
            *left = left.saturating_sub(1);
            *under_way += 1;
        }
        Some(LetGo(self.number))
    }

    /// The relay dealt with a mail: took it, or refused it for good. True if that opens the way.
    pub(super) fn dealt_with(&mut self) -> bool {
        let opens = self.way != Way::Open;
        self.put_off.clear();
        (self.way, self.size) = (Way::Open, TRIAL_MIN);
        opens
    }

    /// The relay put off a mail to this person.
    pub(super) fn put_off(&mut self, let_go: LetGo, person: u64) -> Deferral {
        if self.put_off.len() < SEVERAL && !self.put_off.contains(&person) {
            self.put_off.push(person);
        }
        if !self.is_the_relays_affair() {
            // A trial after another kind of fault: the relay listens to mails again.
            self.way = Way::Open;
            return Deferral::OfTheMail;
        }
        let closes = match &mut self.way {
            Way::Open => true,
            Way::Closed => false,
            Way::Trial { left, under_way, .. } if let_go.0 == self.number => {
                *under_way = under_way.saturating_sub(1);
                let is_over = *left == 0 && *under_way == 0;
                if is_over {
                    self.size = (self.size * 2).min(TRIAL_MAX);
                }
                is_over
            }
            Way::Trial { .. } => false,
        };
        if closes {
            self.way = Way::Closed;
            Deferral::ClosesTheWay
        } else {
            Deferral::OfTheRelay
        }
    }

    /// A mail that was let go proved nothing, or did not go at all. True if another may go instead.
    pub(super) fn proved_nothing(&mut self, let_go: LetGo) -> bool {
        match &mut self.way {
            Way::Trial { left, under_way, .. } if let_go.0 == self.number => {
                *under_way = under_way.saturating_sub(1);
                *left = (*left + 1).min(self.size);
                true
            }
            Way::Open | Way::Closed | Way::Trial { .. } => false,
        }
    }

    /// A probe got through to a relay that had been unusable: some mails may go on trial.
    pub(super) fn begin(&mut self, now: Instant) {
        self.number += 1;
        self.way = Way::Trial { left: self.size, under_way: 0, more_at: now + PATIENCE };
    }

    /// Whether deferrals are the relay's affair.
    pub(super) const fn is_the_relays_affair(&self) -> bool {
        self.put_off.len() >= SEVERAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn let_go(trials: &mut Trials) -> LetGo {
        trials.let_go(Lane::Standard, Instant::now()).expect("it may go")
    }

    fn may_go(trials: &Trials, lane: Lane) -> bool {
        trials.may_go(lane, Instant::now()) == MayGo::Now
    }

    fn put_off(trials: &mut Trials, person: u64) -> Deferral {
        let let_go = let_go(trials);
        trials.put_off(let_go, person)
    }

    /// A relay that has put off several people.
    fn closed() -> Trials {
        let mut trials = Trials::new();
        for person in 0..4 {
            assert_eq!(put_off(&mut trials, person), Deferral::OfTheMail);
        }
        assert_eq!(put_off(&mut trials, 4), Deferral::ClosesTheWay);
        trials
    }

    #[test]
    fn five_different_people_in_a_row_close_the_way() {
        let trials = closed();
        for lane in Lane::ALL {
            assert!(!may_go(&trials, lane));
        }
    }

    #[test]
    fn those_under_way_when_it_closes_burn_no_try_and_do_not_close_it_again() {
        let mut trials = Trials::new();
        let under_way: Vec<_> = (0..9).map(|_| let_go(&mut trials)).collect();
        let deferrals: Vec<_> =
            under_way.into_iter().zip(0..).map(|(let_go, person)| trials.put_off(let_go, person)).collect();
        let (own, rest) = deferrals.split_at(4);
        assert!(own.iter().all(|deferral| *deferral == Deferral::OfTheMail));
        assert_eq!(rest[0], Deferral::ClosesTheWay);
        assert!(rest[1..].iter().all(|deferral| *deferral == Deferral::OfTheRelay));
    }

    #[test]
    fn one_person_who_is_always_put_off_closes_nothing() {
        let mut trials = Trials::new();
        for _ in 0..100 {
            assert_eq!(put_off(&mut trials, 7), Deferral::OfTheMail);
        }
        for person in 0..3 {
            assert_eq!(put_off(&mut trials, person), Deferral::OfTheMail);
        }
        assert!(!trials.dealt_with());
        for person in 0..4 {
            assert_eq!(put_off(&mut trials, person), Deferral::OfTheMail);
        }
    }

    #[test]
    fn some_go_on_trial_and_one_that_is_dealt_with_ends_it() {
        let mut trials = closed();
        trials.begin(Instant::now());
        for _ in 0..TRIAL_MIN {
            let_go(&mut trials);
        }
        assert!(!may_go(&trials, Lane::Standard) && !may_go(&trials, Lane::Bulk));
        assert!(may_go(&trials, Lane::Fast), "an incident does not wait for the next trial");
        assert!(trials.dealt_with());
        assert!(may_go(&trials, Lane::Bulk));
        assert_eq!(put_off(&mut trials, 1), Deferral::OfTheMail);
    }

    #[test]
    fn a_trial_that_fails_closes_the_way_once_all_of_it_failed_and_the_next_is_larger() {
        let mut trials = closed();
        let mut sizes = Vec::new();
        for _ in 0..8 {
            trials.begin(Instant::now());
            let mut under_way = Vec::new();
            while let Some(let_go) = trials.let_go(Lane::Standard, Instant::now()) {
                under_way.push(let_go);
            }
            sizes.push(under_way.len());
            let last = under_way.pop().expect("some may go");
            for let_go in under_way {
                assert_eq!(trials.put_off(let_go, 9), Deferral::OfTheRelay);
            }
            assert_eq!(trials.put_off(last, 9), Deferral::ClosesTheWay);
        }
        assert_eq!(sizes, [3, 6, 12, 24, 48, 96, 96, 96]);
        trials.begin(Instant::now());
        trials.dealt_with();
        assert_eq!(trials.size, TRIAL_MIN);
    }

    #[test]
    fn what_proves_nothing_makes_room_for_another() {
        let mut trials = closed();
        trials.begin(Instant::now());
        let mut last = let_go(&mut trials);
        for _ in 1..TRIAL_MIN {
            last = let_go(&mut trials);
        }
        assert!(trials.let_go(Lane::Standard, Instant::now()).is_none());
        assert!(trials.proved_nothing(last));
        assert!(trials.let_go(Lane::Standard, Instant::now()).is_some());
    }

    #[test]
    fn mails_that_the_relay_is_slow_to_answer_do_not_hold_up_the_others_for_ever() {
        let (mut trials, now) = (closed(), Instant::now());
        trials.begin(now);
        for _ in 0..TRIAL_MIN {
            let_go(&mut trials);
        }
        let more_at = now + PATIENCE;
        assert_eq!(trials.may_go(Lane::Bulk, now), MayGo::At(more_at));
        for _ in 0..TRIAL_MIN {
            assert!(trials.let_go(Lane::Bulk, more_at).is_some());
        }
        assert!(trials.let_go(Lane::Bulk, more_at).is_none());
        // It is over when the last of all of them was put off.
        let number = LetGo(trials.number);
        for _ in 1..TRIAL_MIN * 2 {
            assert_eq!(trials.put_off(number, 1), Deferral::OfTheRelay);
        }
        assert_eq!(trials.put_off(number, 1), Deferral::ClosesTheWay);
    }

    #[test]
    fn mails_of_an_earlier_trial_do_not_count_in_this_one() {
        let mut trials = closed();
        trials.begin(Instant::now());
        let late = let_go(&mut trials);
        trials.begin(Instant::now());
        assert_eq!(trials.put_off(late, 3), Deferral::OfTheRelay);
        assert!(!trials.proved_nothing(late));
        assert!(matches!(trials.way, Way::Trial { left: TRIAL_MIN, under_way: 0, .. }));
    }

    #[test]
    fn after_another_kind_of_fault_a_deferral_shows_that_the_relay_listens() {
        let mut trials = Trials::new();
        trials.begin(Instant::now());
        assert_eq!(put_off(&mut trials, 1), Deferral::OfTheMail);
        assert_eq!(trials.way, Way::Open);
    }
}
