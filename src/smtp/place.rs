//! A place on a connection: the right to send one mail to one relay, and what the relay learns from it.
//!
//! Invariant: a place is accounted for once, however it ends: its permit, its share of the relay's pace and of a trial are
//! used up or given back.

use std::sync::Arc;

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    line::{Done, Job},
    relay::Relay,
    reply::{Lesson, classify, lesson, wants_other_settings},
    steps::Steps,
    transaction::OutgoingMail,
    trial::LetGo,
};
use crate::email::{Lane, LinkFault, Outcome, Phase, SendReport};

/// The right to send one mail over a connection that is open: as its only mail, or behind another.
///
/// Dropped unused, it gives everything back.
#[must_use]
pub struct Place {
    pass: Pass,
    /// Of opening a connection, if that was done for this place.
    opening: Option<Steps>,
    /// Free once the place is no longer counted.
    _permit: OwnedSemaphorePermit,
}

/// The relay lets one mail go: its pace and its trials have room.
pub(super) struct Pass {
    pub(super) relay: Arc<Relay>,
    pub(super) lane: Lane,
    pub(super) at: Instant,
    pub(super) let_go: LetGo,
    pub(super) is_used: bool,
}

/// How a mail fared, and what follows from it beyond the mail.
#[derive(Debug)]
#[must_use]
pub struct Sent {
    /// What the relay said, or how the link ended, and at which step.
    pub report: SendReport,
    /// The relay has put off mails to several people in a row: a deferral says nothing about this one.
    pub is_the_relays_affair: bool,
    /// Whether the mail may be sent again at once, and how.
    pub again: Again,
    /// Of the transaction, as far as it came.
    pub steps: Option<Steps>,
    /// Of opening the connection anew, because it had grown old while the place was held.
    pub opening: Option<Steps>,
}

/// Whether a mail that was not sent may be sent again at once: never if it may have been accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// The outcome stands.
    No,
    /// The connection had grown old: any other will do.
    OnAnyConnection,
    /// The relay is in trouble: another one, or this one when it works again.
    WhenItWorks,
    /// The relay does not want to be spoken to now, or cannot carry such a mail: another one.
    AtAnotherRelay,
}

impl Sent {
    /// What it means for the recipient.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match classify(&self.report) {
            Outcome::Deferred { phase, reply, error, counted } => {
                Outcome::Deferred { phase, reply, error, counted: counted && !self.is_the_relays_affair }
            }
            other => other,
        }
    }
}

impl Place {
    /// The relay's name in the settings.
    #[must_use]
    pub fn relay_name(&self) -> &str {
        self.pass.relay.name()
    }

    /// Where its relay is: host and port.
    #[must_use]
    pub fn server(&self) -> (&str, u16) {
        (&self.pass.relay.endpoint.relay.host, self.pass.relay.endpoint.relay.port)
    }

    /// The steps of opening a connection, if that was done for this place.
    #[must_use]
    pub const fn opening(&self) -> Option<&Steps> {
        self.opening.as_ref()
    }

    pub(super) fn opened_with(&mut self, opening: Option<Steps>) {
        self.opening = opening;
    }

    /// Takes the place; whether there is a connection for it is the relay's to say.
    pub(super) fn take(pass: Pass, permit: OwnedSemaphorePermit) -> Self {
        pass.relay.lanes.get(pass.lane).take_place();
        Self { pass, opening: None, _permit: permit }
    }

    pub(super) const fn relay(&self) -> &Arc<Relay> {
        &self.pass.relay
    }

    /// Sends one mail and says how that went.
    ///
    /// If the future is dropped the mail goes all the same unless its content had not begun, and nobody learns how it fared.
    pub async fn send(mut self, mail: OutgoingMail) -> Sent {
        let relay = Arc::clone(&self.pass.relay);
        let to = mail.to().clone();
        let (job, answer) = Job::new(mail);
        relay.lanes.get(self.pass.lane).hand_over(job);
        // A connection whose task died may have had the mail on the wire.
        let died = || Done {
            report: SendReport::Broken { phase: Phase::FinalDot, fault: LinkFault::Closed },
            is_fresh: false,
            steps: None,
            opening: None,
        };
        let Done { report, is_fresh, steps, opening } = answer.await.unwrap_or_else(|_| died());
        self.pass.is_used = !matches!(report, SendReport::NotCapable { .. } | SendReport::Withdrawn { .. });
        let is_the_relays_affair = self.pass.is_used && relay.learn_from(&report, is_fresh, &self.pass, &to);
        let again = again(&report, is_fresh);
        if let Some(steps) = &steps {
            relay.heard.tell(relay.name(), steps);
        }
        Sent { report, is_the_relays_affair, again, steps, opening }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pass.relay.lanes.get(self.pass.lane).free_place();
        self.pass.relay.tell_of_room();
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.is_used {
            self.relay.give_back(self.let_go);
        }
    }
}

/// After the final dot even a clear refusal stands: what follows it is decided with the outcome on record.
fn again(report: &SendReport, is_fresh: bool) -> Again {
    match report {
        SendReport::Broken { phase: Phase::Mail, .. } if is_fresh => Again::WhenItWorks,
        SendReport::Broken { phase: Phase::Mail, .. } => Again::OnAnyConnection,
        SendReport::Refused { phase, reply } if *phase < Phase::FinalDot => {
            if reply.code == 421 || wants_other_settings(report) || lesson(report) == Lesson::Throttles {
                Again::AtAnotherRelay
            } else {
                Again::No
            }
        }
        SendReport::NotCapable { .. } => Again::AtAnotherRelay,
        SendReport::Accepted { .. }
        | SendReport::Refused { .. }
        | SendReport::Broken { .. }
        | SendReport::Withdrawn { .. } => Again::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::email::Reply;

    fn refusal(phase: Phase, code: u16, text: &str) -> SendReport {
        SendReport::Refused { phase, reply: Reply { code, enhanced: None, text: text.to_owned() } }
    }

    fn cut(phase: Phase) -> SendReport {
        SendReport::Broken { phase, fault: LinkFault::Closed }
    }

    #[test]
    fn only_what_cannot_have_been_accepted_goes_again_at_once() {
        for (report, is_fresh, want) in [
            (cut(Phase::Mail), false, Again::OnAnyConnection),
            (cut(Phase::Mail), true, Again::WhenItWorks),
            (cut(Phase::Rcpt), true, Again::No),
            (cut(Phase::Content), true, Again::No),
            (cut(Phase::FinalDot), true, Again::No),
            (refusal(Phase::Mail, 421, "busy"), true, Again::AtAnotherRelay),
            (refusal(Phase::Data, 421, "busy"), false, Again::AtAnotherRelay),
            (refusal(Phase::Content, 421, "busy"), false, Again::AtAnotherRelay),
            (refusal(Phase::FinalDot, 421, "busy"), false, Again::No),
            (refusal(Phase::Rcpt, 454, "throttled"), false, Again::AtAnotherRelay),
            (refusal(Phase::FinalDot, 454, "throttled"), false, Again::No),
            (refusal(Phase::Mail, 530, "who are you"), true, Again::AtAnotherRelay),
            (refusal(Phase::Rcpt, 451, "try later"), true, Again::No),
            (refusal(Phase::Rcpt, 450, "greylisted"), true, Again::No),
            (refusal(Phase::Rcpt, 550, "no such user"), true, Again::No),
            (SendReport::NotCapable { missing: "SMTPUTF8".to_owned() }, true, Again::AtAnotherRelay),
        ] {
            assert_eq!(again(&report, is_fresh), want, "{report:?}");
        }
    }

    #[test]
    fn a_deferral_that_is_the_relays_affair_burns_no_try_and_nothing_else_changes() {
        let counted = |report, is_the_relays_affair| {
            let sent = Sent { report, is_the_relays_affair, again: Again::No, steps: None, opening: None };
            match sent.outcome() {
                Outcome::Deferred { counted, .. } => Some(counted),
                Outcome::Sent { .. } | Outcome::Rejected { .. } | Outcome::Unknown { .. } => None,
            }
        };
        assert_eq!(counted(refusal(Phase::Rcpt, 451, "later"), false), Some(true));
        assert_eq!(counted(refusal(Phase::Rcpt, 451, "later"), true), Some(false));
        assert_eq!(counted(refusal(Phase::Rcpt, 421, "later"), false), Some(false));
        assert_eq!(counted(refusal(Phase::Rcpt, 550, "no"), true), None);
        assert_eq!(counted(cut(Phase::FinalDot), true), None);
    }
}
