//! How a delivery leaves its queue, decided from what became of its recipients.
//!
//! Invariant: nobody is asked and nothing is awaited here; `settle` carries it out.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{
    Fate,
    letter::{About, Letter, fitting},
    pending::{Left, Pending, Tries},
};
use crate::{
    email::{EmailRequest, Envelope, Lane, PayloadHash, Reason, Status},
    telemetry::span::Span,
};

/// How long a message of the fast lane waits that needs a database that is away.
const FOR_STORE: Duration = Duration::from_secs(5);

/// How a delivery leaves its queue.
#[derive(Debug)]
pub enum Settlement {
    /// Acknowledged; the word says why, for logs and metrics.
    Ack(&'static str),
    /// Back to the queue: the daemon stops.
    HandBack,
    /// To the lane that its priority asks for.
    Reroute(Lane),
    /// A copy waits, and comes back.
    Delayed(Delay),
    /// A copy waits a little, because a stage panicked.
    AfterCrash {
        /// How often so far.
        crashes: i32,
    },
    /// A dead letter.
    Dead(Box<Letter>),
    /// Dropped unacknowledged: the daemon stops, and its end gives the message back.
    Abandoned,
    /// A stage panicked, with these words: becomes [`Self::AfterCrash`] or a dead letter.
    Crashed(String),
}

/// A copy that waits.
#[derive(Debug, PartialEq, Eq)]
pub struct Delay {
    pub(super) due_in: Duration,
    pub(super) request_id: Uuid,
    pub(super) copy_no: i32,
    /// A new retry was decided: once the copy is confirmed, older ones are duplicates.
    pub(super) supersedes: bool,
    /// Who is still to get it, for a daemon that cannot ask the database.
    pub(super) pending: String,
    /// And who is not, likewise; nothing: an earlier version's copy, passed on as it came.
    pub(super) over: Option<String>,
    /// The version that the first claim fixed, likewise.
    pub(super) template_version: Option<i32>,
    /// Somebody else may have it on the wire, likewise.
    pub(super) is_doubtful: bool,
}

impl Settlement {
    /// A dead letter that has no rows: it is itself the record.
    pub(super) fn unreadable(reason: Reason, error: String) -> Self {
        let recipients = serde_json::Value::Array(Vec::new());
        Self::Dead(Box::new(Letter { reason, error, attempts: 0, about: None, has_rows: false, recipients }))
    }

    /// Names the request in a dead letter.
    pub(super) fn about(mut self, request: &EmailRequest) -> Self {
        if let Self::Dead(letter) = &mut self {
            letter.about = Some(About::of(request));
        }
        self
    }

    /// Names a request in a dead letter whose bytes must not be read.
    pub(super) fn about_unread(mut self, id: Uuid) -> Self {
        if let Self::Dead(letter) = &mut self {
            let (source, template_key) = (String::new(), String::new());
            letter.about = Some(About { id, payload_hash: PayloadHash::UNREAD, source, template_key });
            letter.has_rows = true;
        }
        self
    }

    /// A message of the fast lane that needs the database while that is away: it waits in the ladder, not in our hands, and
    /// comes back as it was.
    pub(super) fn for_store(envelope: &Envelope) -> Self {
        Self::Delayed(Delay {
            due_in: FOR_STORE,
            request_id: Uuid::nil(),
            copy_no: envelope.copy_no,
            supersedes: false,
            pending: envelope.pending.clone().unwrap_or_default(),
            over: envelope.over.clone(),
            template_version: envelope.template_version,
            is_doubtful: envelope.redelivered || envelope.is_doubtful,
        })
    }

    /// What a trace says of it.
    pub(super) fn tell(&self, span: &Span) {
        match self {
            Self::Dead(letter) => {
                span.set("email.settlement", "dead_lettered");
                span.fail(letter.reason.name());
            }
            Self::AfterCrash { .. } | Self::Crashed(_) => {
                span.set("email.settlement", "crashed");
                span.fail("crashed");
            }
            Self::Ack(label) => span.set("email.settlement", *label),
            Self::HandBack => span.set("email.settlement", "handed_back"),
            Self::Abandoned => span.set("email.settlement", "abandoned"),
            Self::Reroute(_) => span.set("email.settlement", "rerouted"),
            Self::Delayed(_) => span.set("email.settlement", "delayed"),
        }
    }

    /// The same id came with another payload.
    pub(super) fn conflict(request: &EmailRequest, first: PayloadHash) -> Self {
        let error =
            format!("request_id was used before with another payload: first {first}, now {}", request.payload_hash);
        Self::unreadable(Reason::IdempotencyConflict, error).about(request)
    }

    /// Whether something came of the message. A copy that only waits, because somebody else has it or it is not due, is the
    /// same message still.
    pub(super) const fn is_progress(&self) -> bool {
        match self {
            Self::Ack(_) | Self::Dead(_) => true,
            Self::Delayed(delay) => delay.supersedes,
            Self::HandBack | Self::Abandoned | Self::Reroute(_) | Self::AfterCrash { .. } | Self::Crashed(_) => false,
        }
    }

    /// What the recipients' fates come to: while any is pending, a copy waits; then one dead letter; else an ack.
    /// `hashes` and the version are what a copy tells a daemon that cannot ask the database.
    pub(super) fn of(
        fates: &[Fate],
        hashes: &[&[u8; 32]],
        copy_no: i32,
        template_version: Option<i32>,
        request: &EmailRequest,
    ) -> Self {
        if fates.contains(&Fate::Unwritten) {
            return Self::Abandoned;
        }
        if fates.contains(&Fate::HandBack) {
            return Self::HandBack;
        }
        if let Some(words) =
            fates.iter().find_map(|fate| if let Fate::Crashed(words) = fate { Some(words) } else { None })
        {
            return Self::Crashed(words.clone());
        }
        let pending = fates.iter().filter_map(|fate| match fate {
            Fate::Retry(due_in, _) => Some((*due_in, true)),
            Fate::Wait(due_in, _) => Some((*due_in, false)),
            Fate::Busy(_) => Some((Duration::ZERO, false)),
            Fate::Owed(_) => Some((FOR_STORE, false)),
            Fate::Over(_)
            | Fate::Duplicate
            | Fate::Dead { .. }
            | Fate::Crashed(_)
            | Fate::HandBack
            | Fate::Unwritten => None,
        });
        let supersedes = pending.clone().any(|(_, new)| new);
        if let Some(due_in) = pending.map(|(due_in, _)| due_in).min() {
            let (pending, over) =
                Pending::write(fates.iter().zip(hashes).filter_map(|(fate, hash)| Some((*hash, left(fate)?))));
            return Self::Delayed(Delay {
                due_in,
                request_id: request.id,
                copy_no: copy_no + i32::from(supersedes),
                supersedes,
                pending,
                over: Some(over),
                template_version,
                is_doubtful: fates.iter().any(|fate| matches!(fate, Fate::Busy(_))),
            });
        }
        let mut dead = fates.iter().filter_map(|fate| match fate {
            Fate::Dead { recipient, reason, error, attempts } => Some((recipient, *reason, error, *attempts)),
            Fate::Over(_)
            | Fate::Duplicate
            | Fate::Retry(..)
            | Fate::Wait(..)
            | Fate::Busy(_)
            | Fate::Owed(_)
            | Fate::Crashed(_)
            | Fate::HandBack
            | Fate::Unwritten => None,
        });
        let Some((_, reason, error, attempts)) = dead.clone().max_by_key(|(_, reason, ..)| weight(*reason)) else {
            return Self::Ack(label(fates));
        };
        let recipients = dead.by_ref().map(|(address, reason, error, attempts)| {
            json!({"address": address, "reason": reason.name(), "error": error, "attempts": attempts})
        });
        let recipients = serde_json::Value::Array(fitting(recipients));
        Self::Dead(Box::new(Letter {
            reason,
            error: error.clone(),
            attempts,
            about: Some(About::of(request)),
            has_rows: true,
            recipients,
        }))
    }
}

/// What a copy says of a recipient; nothing: it is over.
const fn left(fate: &Fate) -> Option<Left> {
    match fate {
        Fate::Retry(_, tries) | Fate::Wait(_, tries) | Fate::Busy(tries) => Some(Left::Pending(*tries)),
        Fate::Dead { attempts, .. } => Some(Left::Owed(Tries { attempts: *attempts, deferrals: 0 })),
        Fate::Owed(tries) => Some(Left::Owed(*tries)),
        Fate::Over(_) | Fate::Duplicate => Some(Left::Over),
        Fate::Crashed(_) | Fate::HandBack | Fate::Unwritten => None,
    }
}

/// Which reason a letter about several recipients is filed under: what may have been delivered asks for most care.
const fn weight(reason: Reason) -> u8 {
    match reason {
        Reason::OutcomeUnknown => 2,
        Reason::BadAddress => 0,
        _ => 1,
    }
}

fn label(fates: &[Fate]) -> &'static str {
    let has = |status| fates.contains(&Fate::Over(status));
    if has(Status::Sent) {
        "sent"
    } else if has(Status::Suppressed) {
        "suppressed"
    } else if has(Status::Expired) {
        "expired"
    } else if has(Status::RateLimited) {
        "rate_limited"
    } else {
        "duplicate"
    }
}

#[cfg(test)]
mod tests {
    use super::{super::letter::HEADER_BYTES_MAX, *};

    const SOON: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(300);

    fn request() -> EmailRequest {
        EmailRequest {
            id: Uuid::nil(),
            payload_hash: crate::email::PayloadHash([0; 32]),
            source: "billing".into(),
            template_key: "t".into(),
            template_version: None,
            recipients: Vec::new(),
            variables: serde_json::Map::new(),
            attachments: Vec::new(),
            priority: crate::email::Priority::P2,
            locale: None,
            reply_to: None,
            not_before: None,
            expires_at: None,
            metadata: std::collections::BTreeMap::new(),
        }
    }

    /// Any hashes will do.
    fn of(fates: &[Fate], copy_no: i32) -> Settlement {
        let hashes: Vec<[u8; 32]> = (0..fates.len()).map(|n| [u8::try_from(n).unwrap_or(0); 32]).collect();
        Settlement::of(fates, &hashes.iter().collect::<Vec<_>>(), copy_no, Some(3), &request())
    }

    fn dead(reason: Reason) -> Fate {
        Fate::Dead { recipient: "a@example.bj".into(), reason, error: "words".into(), attempts: 1 }
    }

    #[test]
    fn while_anybody_is_pending_one_copy_waits_until_the_earliest_is_due() {
        let tries = Tries { attempts: 1, deferrals: 2 };
        let fates = [
            Fate::Over(Status::Sent),
            Fate::Retry(LATER, tries),
            dead(Reason::Rejected),
            Fate::Wait(SOON, Tries::default()),
        ];
        let Settlement::Delayed(delay) = of(&fates, 4) else { panic!("not delayed") };
        assert_eq!((delay.due_in, delay.copy_no, delay.supersedes), (SOON, 5, true));
        assert_eq!((delay.request_id, delay.template_version), (Uuid::nil(), Some(3)));
        let pending = Pending::read(&delay.pending, delay.over.as_deref()).expect("it reads back");
        let left: Vec<_> = (0..4).map(|n| pending.left(&[n; 32])).collect();
        let owed = Left::Owed(Tries { attempts: 1, deferrals: 0 });
        let waits = Left::Pending(Tries::default());
        assert_eq!(left, [Some(Left::Over), Some(Left::Pending(tries)), Some(owed), Some(waits)]);
    }

    #[test]
    fn a_copy_that_came_early_waits_again_under_its_own_number() {
        let Settlement::Delayed(delay) = of(&[Fate::Wait(SOON, Tries::default())], 4) else { panic!("not delayed") };
        assert_eq!((delay.copy_no, delay.supersedes), (4, false));
    }

    #[test]
    fn a_letter_whose_words_only_the_rows_know_keeps_a_copy_alive() {
        let tries = Tries { attempts: 1, deferrals: 0 };
        let Settlement::Delayed(delay) = of(&[Fate::Over(Status::Sent), Fate::Owed(tries)], 2) else {
            panic!("the letter would be lost")
        };
        assert_eq!((delay.due_in, delay.copy_no, delay.supersedes), (FOR_STORE, 2, false));
        let pending = Pending::read(&delay.pending, delay.over.as_deref()).expect("it reads back");
        assert_eq!((pending.left(&[0; 32]), pending.left(&[1; 32])), (Some(Left::Over), Some(Left::Owed(tries))));
    }

    #[test]
    fn when_nobody_is_pending_one_letter_names_all_that_failed() {
        let fates = [dead(Reason::BadAddress), Fate::Over(Status::Sent), dead(Reason::OutcomeUnknown)];
        let Settlement::Dead(letter) = of(&fates, 0) else { panic!("not dead") };
        assert_eq!(letter.reason, Reason::OutcomeUnknown);
        assert_eq!(letter.recipients.as_array().map(Vec::len), Some(2));
        assert!(letter.has_rows);
    }

    #[test]
    fn what_is_over_is_acknowledged_and_a_stop_hands_everything_back() {
        let over = [Fate::Duplicate, Fate::Over(Status::Sent)];
        assert!(matches!(of(&over, 0), Settlement::Ack("sent")));
        assert!(matches!(of(&[Fate::Duplicate], 0), Settlement::Ack("duplicate")));
        let stopped = [Fate::Over(Status::Sent), Fate::HandBack, Fate::Retry(SOON, Tries::default())];
        assert!(matches!(of(&stopped, 0), Settlement::HandBack));
        let crashed = [Fate::Retry(SOON, Tries::default()), Fate::Crashed("boom".into())];
        assert!(matches!(of(&crashed, 0), Settlement::Crashed(words) if words == "boom"));
    }

    #[test]
    fn a_letter_about_many_still_fits_its_headers_and_reads_back() {
        let many: Vec<Fate> = (0..100)
            .map(|n| Fate::Dead {
                recipient: format!("person-{n}@example.bj"),
                reason: Reason::Rejected,
                error: "x".repeat(1000),
                attempts: 1,
            })
            .collect();
        let Settlement::Dead(letter) = of(&many, 0) else { panic!("not dead") };
        let header = letter.recipients.to_string();
        assert!(header.len() <= HEADER_BYTES_MAX && header.len() > HEADER_BYTES_MAX - 1200);
    }
}
