//! Whether a dead letter may go on its way again: decided from what the audit says of it, without a database.
//!
//! Two ways lead back. A letter whose rows ended is *reopened*: the rows that failed or are held begin anew under a higher
//! generation, so that every older copy is a duplicate. A letter that has no rows, or whose rows wait for exactly this
//! message, is *resumed*: the message goes back as it was, and whatever rows there are decide.
//!
//! Invariant: what is sent, or stopped by a policy, is never reopened.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::email::{PayloadHash, Reason, Status};

/// Where a dead letter stands: the `state` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterState {
    /// Nobody has dealt with it.
    Waiting,
    /// On its way again, and not yet confirmed by the broker.
    Replaying,
    /// On its way again, confirmed.
    Replayed,
    /// An operator wants nothing of it any more.
    Discarded,
}

impl LetterState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Replaying, Self::Replayed, Self::Discarded];

    /// As in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Replaying => "replaying",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// One recipient of the letter's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecipientFacts {
    /// Where the mail stands.
    pub status: Status,
    /// Unknown and left to an operator.
    pub held: bool,
    /// The address is on the suppression list, as far as it concerns this template.
    pub suppressed: bool,
    /// Its own dead letter has not been published yet.
    pub owed: bool,
}

impl RecipientFacts {
    const fn is_reopenable(self) -> bool {
        matches!(self.status, Status::Failed) || matches!(self.status, Status::Unknown) && self.held
    }

    const fn is_pending(self) -> bool {
        !self.status.is_final() && !self.is_reopenable()
    }
}

/// The letter's request, as the audit has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRequest {
    /// Of its newest copies.
    pub generation: i32,
    /// Never after this time.
    pub expires_at: Option<DateTime<Utc>>,
    /// By the producer's clock, else when first seen.
    pub published_at: DateTime<Utc>,
    /// The version that the first claim fixed.
    pub template_version: Option<i32>,
    /// It is a recorded mail that was sent again: it has no words but the recorded ones.
    pub is_retransmission: bool,
    /// What came with its id first.
    pub payload_hash: PayloadHash,
    /// The letter is about this request: its settlement id says so.
    pub is_letters_own: bool,
    /// Its rows.
    pub recipients: Vec<RecipientFacts>,
}

/// A dead letter, as far as the decision needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterFacts {
    /// The letter.
    pub id: Uuid,
    /// Where it stands.
    pub state: LetterState,
    /// Why it is one; nothing when a later version knows more reasons.
    pub reason: Option<Reason>,
    /// The same as the database has it.
    pub reason_name: String,
    /// Its bytes are still there.
    pub has_body: bool,
    /// Of the copy that failed.
    pub generation: i32,
    /// Of the copy that is on its way, if one is.
    pub replay_generation: Option<i32>,
    /// When it was first seen, else archived.
    pub first_at: DateTime<Utc>,
    /// If its bytes told.
    pub request_id: Option<Uuid>,
    /// Which template.
    pub template_key: Option<String>,
    /// What the audit has of its request.
    pub request: Option<KnownRequest>,
}

/// What a replay does with a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The rows that failed or are held begin anew, under this generation.
    Reopen {
        /// Higher than any copy's so far.
        generation: i32,
    },
    /// The message goes back as it was, under this generation.
    Resume {
        /// The letter's own.
        generation: i32,
    },
    /// An earlier replay was cut off before the broker confirmed its copy: the same copy goes out once more.
    Again {
        /// That copy's.
        generation: i32,
    },
    /// An earlier replay was cut off after its copy had arrived: only the letter does not say so yet.
    Arrived,
    /// Nothing.
    Skip(Skip),
}

/// Why nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Skip {
    /// It was replayed before, and has not failed anew since: that would be another letter.
    Replayed,
    /// The request was replayed since, by another letter of it.
    Superseded,
    /// An operator discarded it.
    Discarded,
    /// Anonymising has removed its bytes.
    Anonymised,
    /// Past `expires_at`.
    Expired,
    /// Older than the audit remembers.
    TooOld,
    /// The same id with another payload: it would conflict again.
    Conflict,
    /// A copy of the request is under way.
    OnItsWay,
    /// Nothing of it failed: this is where its mails stand.
    Over(Status),
    /// Everybody whom it would go to is on the suppression list.
    Suppressed,
    /// It failed as another letter, which can be replayed.
    OtherLetter,
    /// Another letter of the same request goes on its way with it, and one is enough.
    SameRequest,
    /// The audit has no rows of its request, or of another payload: it may have been sent.
    Forgotten,
    /// It crashed whoever read it, and reading it now did not show that it is this request.
    Unreadable,
    /// Its generation cannot be raised any more.
    LastGeneration,
}

impl Skip {
    /// For programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::Superseded => "superseded",
            Self::Discarded => "discarded",
            Self::Anonymised => "anonymised",
            Self::Expired => "expired",
            Self::TooOld => "too_old",
            Self::Conflict => "idempotency_conflict",
            Self::OnItsWay => "on_its_way",
            Self::Over(status) => status.name(),
            Self::Suppressed => "suppressed",
            Self::OtherLetter => "other_letter",
            Self::SameRequest => "same_request",
            Self::Forgotten => "forgotten",
            Self::Unreadable => "unreadable",
            Self::LastGeneration => "last_generation",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replayed => "already replayed; if it failed again, that is another letter",
            Self::Superseded => "its request was replayed since, by another letter",
            Self::Discarded => "discarded",
            Self::Anonymised => "its content was removed by anonymising",
            Self::Expired => "past its expires_at",
            Self::TooOld => "older than the audit remembers (EMAIL_AUDIT_RETENTION_DAYS): it may have been sent",
            Self::Conflict => "its id belongs to another payload: it would conflict again; publish it under a new id",
            Self::OnItsWay => "its request is on its way already",
            Self::Over(status) => return write!(f, "nothing of it failed: it is {status}"),
            Self::Suppressed => "on the suppression list",
            Self::OtherLetter => "its request failed as another letter: replay that one",
            Self::SameRequest => "another letter of the same request is replayed with it, and its mails go out once",
            Self::Forgotten => "the audit does not know its request: it may have been sent",
            Self::Unreadable => {
                "this version cannot read it either, or it is not the request that its message_id names"
            }
            Self::LastGeneration => "its x-generation cannot be raised: publish it under a new id",
        })
    }
}

/// Decides.
#[must_use]
pub fn decide(letter: &LetterFacts, audit_retention: Duration, now: DateTime<Utc>) -> Verdict {
    match letter.state {
        LetterState::Discarded => Verdict::Skip(Skip::Discarded),
        LetterState::Replayed => Verdict::Skip(Skip::Replayed),
        LetterState::Replaying => cut_off(letter),
        LetterState::Waiting => waiting(letter, audit_retention, now),
    }
}

/// An earlier replay was cut off, or is at it right now.
fn cut_off(letter: &LetterFacts) -> Verdict {
    let generation = letter.replay_generation.unwrap_or(letter.generation);
    if let Some(request) = &letter.request {
        // Reopened rows wait for the copy, and for nothing else: once none waits, it has come.
        let has_ended = !request.recipients.is_empty() && !request.recipients.iter().any(|r| r.is_pending());
        if has_ended || request.generation > generation {
            return Verdict::Arrived;
        }
    }
    if letter.has_body { Verdict::Again { generation } } else { Verdict::Skip(Skip::Anonymised) }
}

fn waiting(letter: &LetterFacts, audit_retention: Duration, now: DateTime<Utc>) -> Verdict {
    if !letter.has_body {
        return Verdict::Skip(Skip::Anonymised);
    }
    match letter.reason {
        Some(Reason::IdempotencyConflict) => return Verdict::Skip(Skip::Conflict),
        Some(Reason::TooOld) => return Verdict::Skip(Skip::TooOld),
        _ => {}
    }
    let published_at = letter.request.as_ref().map_or(letter.first_at, |request| request.published_at);
    if (now - published_at).to_std().unwrap_or_default() > audit_retention {
        return Verdict::Skip(Skip::TooOld);
    }
    let Some(request) = &letter.request else {
        return if has_rows(letter.reason) {
            Verdict::Skip(Skip::Forgotten)
        } else {
            Verdict::Resume { generation: letter.generation }
        };
    };
    let reopenable = || request.recipients.iter().filter(|recipient| recipient.is_reopenable());
    let is_pending = request.recipients.iter().any(|recipient| recipient.is_pending());
    // This message may be the only copy that is left of a request that still waits, or whose own letter is still owed.
    let may_be_the_only_copy = matches!(letter.reason, Some(Reason::Malformed | Reason::Poison | Reason::Broker))
        && (is_pending || !request.is_letters_own && request.recipients.iter().any(|recipient| recipient.owed));
    if reopenable().next().is_none() && !may_be_the_only_copy {
        let over = request.recipients.first().map(|recipient| Skip::Over(recipient.status));
        return Verdict::Skip(if is_pending { Skip::OnItsWay } else { over.unwrap_or(Skip::Forgotten) });
    }
    if !request.is_letters_own || reopenable().next().is_none() {
        return match letter.reason {
            _ if may_be_the_only_copy => Verdict::Resume { generation: letter.generation },
            reason if has_rows(reason) => Verdict::Skip(Skip::Forgotten),
            _ => Verdict::Skip(Skip::OtherLetter),
        };
    }
    if request.expires_at.is_some_and(|at| at <= now) {
        return Verdict::Skip(Skip::Expired);
    }
    if letter.generation < request.generation {
        return Verdict::Skip(Skip::Superseded);
    }
    if !is_pending && reopenable().all(|recipient| recipient.suppressed) {
        return Verdict::Skip(Skip::Suppressed);
    }
    match request.generation.max(letter.generation).checked_add(1) {
        Some(generation) => Verdict::Reopen { generation },
        None => Verdict::Skip(Skip::LastGeneration),
    }
}

/// Whether a letter of this reason is written only for requests that have rows.
const fn has_rows(reason: Option<Reason>) -> bool {
    match reason {
        Some(
            Reason::UnknownTemplate
            | Reason::MissingVariable
            | Reason::RenderFailed
            | Reason::BadAttachment
            | Reason::BadAddress
            | Reason::NoUnsubscribeLink
            | Reason::Rejected
            | Reason::TriesExhausted
            | Reason::AgeExhausted
            | Reason::OutcomeUnknown,
        )
        // Whatever it is, it is careful to think that something may have been sent.
        | None => true,
        Some(
            Reason::Malformed
            | Reason::IdempotencyConflict
            | Reason::Poison
            | Reason::TooOld
            | Reason::Unrouted
            | Reason::Broker,
        ) => false,
    }
}

#[cfg(test)]
mod tests;
