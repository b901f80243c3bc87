//! Decides, from one try's outcome, where the mail goes next. Pure: no clock, no chance, no I/O.

use std::time::Duration;

use crate::email::{Outcome, Reason, UnknownPolicy};

/// The rules that a mail lives under.
#[derive(Debug, Clone)]
pub struct Rules<'a> {
    /// SMTP attempts in all (the template's).
    pub tries: i32,
    /// Delays before the second, third ... try (the lane's).
    pub ladder: &'a [Duration],
    /// Maximum age (the lane's); judged when a try ends deferred.
    pub age_max: Duration,
    /// What becomes of an unknown outcome (the template's).
    pub unknown_policy: UnknownPolicy,
    /// How long feedback may settle an unknown outcome first.
    pub unknown_wait: Duration,
}

/// The mail, as far as the decision needs it.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    /// Attempts that counted, before this one.
    pub attempts: i32,
    /// How often it was put off, before this one.
    pub deferrals: i32,
    /// Since publish, `not_before`, the end of a cap's deferral or the replay, whichever was last.
    pub age: Duration,
}

/// Where the mail goes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Over, and well.
    Sent,
    /// Again, after this long.
    Retry {
        /// One of the ladder's rungs.
        due_in: Duration,
        /// Whether this try counts.
        counted: bool,
    },
    /// Again with the same Message-ID, after this long, unless feedback settles it first.
    Unknown {
        /// At least the time that feedback gets.
        due_in: Duration,
    },
    /// May have been accepted: an operator decides.
    Held,
    /// Over, and not well.
    Failed {
        /// Why.
        reason: Reason,
        /// Whether this try counts.
        counted: bool,
    },
}

/// Decides.
#[must_use]
pub fn decide(outcome: &Outcome, tried: Tried, rules: &Rules<'_>) -> Verdict {
    match outcome {
        Outcome::Sent { .. } => Verdict::Sent,
        Outcome::Rejected { .. } => Verdict::Failed { reason: Reason::Rejected, counted: true },
        Outcome::Deferred { counted, .. } => {
            let attempts = tried.attempts + i32::from(*counted);
            if attempts >= rules.tries {
                Verdict::Failed { reason: Reason::TriesExhausted, counted: *counted }
            } else if tried.age >= rules.age_max {
                Verdict::Failed { reason: Reason::AgeExhausted, counted: *counted }
            } else {
                Verdict::Retry { due_in: rung(rules.ladder, tried.deferrals), counted: *counted }
            }
        }
        Outcome::Unknown { .. } => {
            let last_try = tried.attempts + 1 >= rules.tries;
            match rules.unknown_policy {
                UnknownPolicy::Hold => Verdict::Held,
                UnknownPolicy::Resend if last_try => Verdict::Held,
                UnknownPolicy::Resend => {
                    Verdict::Unknown { due_in: rules.unknown_wait.max(rung(rules.ladder, tried.deferrals)) }
                }
            }
        }
    }
}

/// Why a mail's attachment is not at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The place that has it is away or slow: a fault of the platform, which its age alone ends.
    Passing,
    /// The place has something else, or nothing: it may come yet, but nothing that waits will make it come.
    Wrong,
    /// What came is not what the request says of it, and never will be.
    Final,
}

/// When a mail is looked at again whose attachment is not at hand; nothing: it is given up. No SMTP try is counted.
///
/// A file that is late is waited for once up the ladder. After `n` deferrals the mail was put off for nothing else, or the
/// file would be in the attachment store.
#[must_use]
pub fn decide_lack(
    lack: Lack,
    deferrals: i32,
    age: Duration,
    ladder: &[Duration],
    age_max: Duration,
) -> Option<Duration> {
    let climbed = usize::try_from(deferrals).is_ok_and(|n| n >= ladder.len());
    let is_over = match lack {
        Lack::Passing => false,
        Lack::Wrong => climbed,
        Lack::Final => true,
    };
    (!is_over && age < age_max).then(|| rung(ladder, deferrals))
}

/// The shortest delay.
#[must_use]
pub fn first_rung(ladder: &[Duration]) -> Duration {
    rung(ladder, 0)
}

/// The n-th delay; the last one for ever after.
fn rung(ladder: &[Duration], n: i32) -> Duration {
    let n = usize::try_from(n).unwrap_or(0);
    ladder.get(n).or(ladder.last()).copied().unwrap_or(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::email::{Phase, Reply};

    const LADDER: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(300), Duration::from_secs(1800)];
    const HOUR: Duration = Duration::from_secs(3600);
    const RULES: Rules<'_> = Rules {
        tries: 3,
        ladder: &LADDER,
        age_max: HOUR,
        unknown_policy: UnknownPolicy::Resend,
        unknown_wait: Duration::ZERO,
    };
    const FRESH: Tried = Tried { attempts: 0, deferrals: 0, age: Duration::ZERO };

    fn deferred(counted: bool) -> Outcome {
        Outcome::Deferred { phase: Phase::Rcpt, reply: None, error: "later".into(), counted }
    }

    fn unknown() -> Outcome {
        Outcome::Unknown { error: "cut".into() }
    }

    #[test]
    fn a_deferred_mail_climbs_the_ladder_until_its_tries_run_out() {
        let retry = |due_in| Verdict::Retry { due_in, counted: true };
        let tried = |n| Tried { attempts: n, deferrals: n, ..FRESH };
        assert_eq!(decide(&deferred(true), tried(0), &RULES), retry(LADDER[0]));
        assert_eq!(decide(&deferred(true), tried(1), &RULES), retry(LADDER[1]));
        assert_eq!(
            decide(&deferred(true), tried(2), &RULES),
            Verdict::Failed { reason: Reason::TriesExhausted, counted: true }
        );
    }

    #[test]
    fn a_fault_of_the_platform_burns_no_try_but_age_still_ends_it() {
        let often = Tried { attempts: 2, deferrals: 40, age: Duration::from_secs(60) };
        assert_eq!(decide(&deferred(false), often, &RULES), Verdict::Retry { due_in: LADDER[2], counted: false });
        let old = Tried { age: HOUR, ..often };
        assert_eq!(
            decide(&deferred(false), old, &RULES),
            Verdict::Failed { reason: Reason::AgeExhausted, counted: false }
        );
    }

    #[test]
    fn a_missing_attachment_climbs_the_ladder_and_one_that_is_away_lives_as_long_as_the_mail() {
        let young = Duration::from_secs(60);
        let next = |lack, deferrals, age| decide_lack(lack, deferrals, age, &LADDER, HOUR);
        for lack in [Lack::Passing, Lack::Wrong] {
            let waits: Vec<_> = (0..3).map(|n| next(lack, n, young)).collect();
            assert_eq!(waits, LADDER.map(Some), "{lack:?}");
            assert_eq!(next(lack, 0, HOUR), None, "{lack:?}");
        }
        assert_eq!(next(Lack::Wrong, 3, young), None);
        assert_eq!(next(Lack::Passing, 40, young), Some(LADDER[2]));
        assert_eq!(next(Lack::Final, 0, Duration::ZERO), None);
    }

    #[test]
    fn a_refusal_is_final_at_once() {
        let reply = Some(Reply { code: 550, enhanced: None, text: "no".into() });
        let refused = Outcome::Rejected { phase: Phase::Rcpt, reply, error: "no".into() };
        assert_eq!(decide(&refused, FRESH, &RULES), Verdict::Failed { reason: Reason::Rejected, counted: true });
    }

    #[test]
    fn an_unknown_outcome_follows_the_policy_and_is_held_when_tries_ran_out() {
        assert_eq!(decide(&unknown(), FRESH, &RULES), Verdict::Unknown { due_in: LADDER[0] });
        let patient = Rules { unknown_wait: Duration::from_secs(60), ..RULES };
        assert_eq!(decide(&unknown(), FRESH, &patient), Verdict::Unknown { due_in: Duration::from_secs(60) });
        let hold = Rules { unknown_policy: UnknownPolicy::Hold, ..RULES };
        assert_eq!(decide(&unknown(), FRESH, &hold), Verdict::Held);
        let last = Tried { attempts: 2, deferrals: 2, ..FRESH };
        assert_eq!(decide(&unknown(), last, &RULES), Verdict::Held);
    }
}
