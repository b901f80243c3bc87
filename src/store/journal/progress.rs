//! How far a mail is, compared without a database.

use crate::email::Status;

/// How far a mail is. Only a step further counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// Waiting, or on its way: twice the number of earlier put-offs, and one more once this try has ended.
    Tried(i32),
    /// Unknown and left to an operator; only the relay's word goes further.
    Held,
    /// Given up.
    Failed,
    /// Policy said no. One daemon may say so while another one, which cannot reach the database, has sent it.
    Stopped,
    /// The relay has it: over.
    Over,
}

impl Progress {
    /// Of a row.
    pub(super) const fn of_row(status: Status, held: bool, deferrals: i32) -> Self {
        match status {
            Status::Queued => Self::Tried(2 * deferrals - 1),
            Status::Sending => Self::Tried(2 * deferrals),
            Status::Unknown if held => Self::Held,
            Status::Unknown => Self::Tried(2 * deferrals - 1),
            Status::Failed => Self::Failed,
            Status::Suppressed | Status::RateLimited | Status::Expired => Self::Stopped,
            Status::Sent | Status::Delivered | Status::Bounced | Status::Complaint => Self::Over,
        }
    }

    /// Of a step in a round.
    pub(super) const fn of_step(round: i32, ended: Option<(Status, bool)>) -> Self {
        match ended {
            None => Self::Tried(2 * round),
            Some((status, held)) => Self::of_row(status, held, round + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mail_only_goes_forward() {
        let steps = [
            Progress::of_step(0, None),
            Progress::of_step(0, Some((Status::Queued, false))),
            Progress::of_step(1, None),
            Progress::of_step(1, Some((Status::Unknown, false))),
            Progress::of_step(2, None),
            Progress::of_step(2, Some((Status::Unknown, true))),
            Progress::of_step(2, Some((Status::Failed, false))),
            Progress::of_step(2, Some((Status::Suppressed, false))),
            Progress::of_step(2, Some((Status::Sent, false))),
        ];
        assert!(steps.is_sorted_by(|a, b| a < b), "{steps:?}");
        assert!(steps[0] > Progress::of_row(Status::Queued, false, 0), "a new row waits for its first try");
    }

    proptest! {
        #[test]
        fn whatever_the_order_the_furthest_step_is_where_the_mail_ends(order in Just([0_usize, 1, 2, 3, 4]).prop_shuffle()) {
            let life = [
                (0, None),
                (0, Some((Status::Queued, false))),
                (1, None),
                (1, Some((Status::Unknown, false))),
                (2, Some((Status::Sent, false))),
            ];
            let mut row = (Status::Queued, false, 0);
            for index in order {
                let (round, ended) = life[index];
                if Progress::of_step(round, ended) > Progress::of_row(row.0, row.1, row.2) {
                    row = match ended {
                        None => (Status::Sending, false, round),
                        Some((status @ (Status::Queued | Status::Unknown), held)) => (status, held, round + 1),
                        Some((status, held)) => (status, held, round),
                    };
                }
            }
            prop_assert_eq!(row.0, Status::Sent);
        }
    }
}
