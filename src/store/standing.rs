//! What a delivery finds when its request is known already: decided from the row alone, without a database.

use std::time::Duration;

use crate::email::{Status, UnknownPolicy};

/// What becomes of a mail that may or may not have been accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownRule {
    /// Resend or hold.
    pub policy: UnknownPolicy,
    /// How long feedback may settle it before the policy does.
    pub wait: Duration,
}

/// One message row, as far as the decision needs it.
#[derive(Debug, Clone, Copy)]
pub struct RowFacts {
    /// Where it stands.
    pub status: Status,
    /// Time until it is due; zero: due, or no due time.
    pub due_in: Duration,
    /// The daemon that claimed it still renews its lease.
    pub lease_live: bool,
    /// The claim on it is one of ours that was given up before the first SMTP byte.
    pub given_up: bool,
    /// The claim on it is the very one being made: its commit was lost on the wire.
    pub own_token: bool,
    /// A retry copy or dead letter is owed.
    pub settlement_pending: bool,
    /// Unknown and left to an operator.
    pub held: bool,
    /// The request is past `expires_at`.
    pub expired: bool,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It may be claimed.
    Claimable,
    /// Our own claim: go on as if it had just been made.
    OwnClaim,
    /// Not before this long.
    NotDue(Duration),
    /// Another worker is at it.
    Busy,
    /// Over, and nothing is owed.
    Settled,
    /// Failed or held, and the dead letter is owed.
    Owed,
    /// Its worker is gone: the outcome is unknown; feedback may settle it within the wait.
    NowUnknown(Duration),
    /// Unknown for good: an operator decides.
    NowHeld,
    /// Past `expires_at`: never sent.
    NowExpired,
}

/// Decides what a delivery does about a row that it finds.
#[must_use]
pub fn decide(row: &RowFacts, rule: UnknownRule) -> Finding {
    match row.status {
        // Nothing was sent under it: the row is as it was before.
        Status::Sending if row.given_up && row.expired => Finding::NowExpired,
        Status::Sending if row.given_up => Finding::Claimable,
        Status::Queued if row.expired => Finding::NowExpired,
        Status::Queued if row.due_in > Duration::ZERO => Finding::NotDue(row.due_in),
        Status::Queued => Finding::Claimable,
        Status::Sending if row.own_token => Finding::OwnClaim,
        Status::Sending if row.lease_live => Finding::Busy,
        Status::Sending => lost(row.expired, rule),
        Status::Unknown if row.held && row.settlement_pending => Finding::Owed,
        Status::Unknown if row.held => Finding::Settled,
        Status::Unknown if row.due_in > Duration::ZERO => Finding::NotDue(row.due_in),
        // The wait is over and nobody has said what became of it.
        Status::Unknown => lost(row.expired, UnknownRule { wait: Duration::ZERO, ..rule }),
        Status::Failed if row.settlement_pending => Finding::Owed,
        Status::Sent
        | Status::Delivered
        | Status::Bounced
        | Status::Complaint
        | Status::Failed
        | Status::Suppressed
        | Status::RateLimited
        | Status::Expired => Finding::Settled,
    }
}

const fn lost(expired: bool, rule: UnknownRule) -> Finding {
    match rule.policy {
        UnknownPolicy::Hold => Finding::NowHeld,
        // It may have gone out already, and must not go out again: only a person can tell.
        UnknownPolicy::Resend if expired => Finding::NowHeld,
        UnknownPolicy::Resend if rule.wait.is_zero() => Finding::Claimable,
        UnknownPolicy::Resend => Finding::NowUnknown(rule.wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const MINUTE: Duration = Duration::from_secs(60);

    const fn row(status: Status) -> RowFacts {
        RowFacts {
            status,
            due_in: Duration::ZERO,
            lease_live: false,
            given_up: false,
            own_token: false,
            settlement_pending: false,
            held: false,
            expired: false,
        }
    }

    const fn rule(policy: UnknownPolicy, wait: Duration) -> UnknownRule {
        UnknownRule { policy, wait }
    }

    #[test]
    fn what_a_redelivery_finds_decides() {
        let resend = rule(UnknownPolicy::Resend, Duration::ZERO);
        for (facts, finding) in [
            (row(Status::Queued), Finding::Claimable),
            (RowFacts { due_in: SOON, ..row(Status::Queued) }, Finding::NotDue(SOON)),
            (RowFacts { expired: true, ..row(Status::Queued) }, Finding::NowExpired),
            (RowFacts { own_token: true, lease_live: true, ..row(Status::Sending) }, Finding::OwnClaim),
            (RowFacts { lease_live: true, ..row(Status::Sending) }, Finding::Busy),
            (RowFacts { given_up: true, lease_live: true, ..row(Status::Sending) }, Finding::Claimable),
            (RowFacts { given_up: true, expired: true, ..row(Status::Sending) }, Finding::NowExpired),
            (row(Status::Sending), Finding::Claimable),
            (RowFacts { expired: true, ..row(Status::Sending) }, Finding::NowHeld),
            (RowFacts { settlement_pending: true, ..row(Status::Failed) }, Finding::Owed),
            (row(Status::Failed), Finding::Settled),
            (row(Status::Sent), Finding::Settled),
            (RowFacts { held: true, settlement_pending: true, ..row(Status::Unknown) }, Finding::Owed),
            (RowFacts { held: true, ..row(Status::Unknown) }, Finding::Settled),
            (RowFacts { due_in: SOON, ..row(Status::Unknown) }, Finding::NotDue(SOON)),
            (row(Status::Unknown), Finding::Claimable),
        ] {
            assert_eq!(decide(&facts, resend), finding, "{facts:?}");
        }
    }

    #[test]
    fn feedback_gets_its_time_before_a_resend_and_an_operator_before_a_hold() {
        let lost = row(Status::Sending);
        assert_eq!(decide(&lost, rule(UnknownPolicy::Resend, MINUTE)), Finding::NowUnknown(MINUTE));
        assert_eq!(decide(&lost, rule(UnknownPolicy::Hold, MINUTE)), Finding::NowHeld);
        let waited = row(Status::Unknown);
        assert_eq!(decide(&waited, rule(UnknownPolicy::Resend, MINUTE)), Finding::Claimable);
        let given_up = RowFacts { given_up: true, lease_live: true, ..lost };
        assert_eq!(decide(&given_up, rule(UnknownPolicy::Hold, MINUTE)), Finding::Claimable, "nothing was sent");
    }
}
