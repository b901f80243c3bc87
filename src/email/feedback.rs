//! What a provider tells of a mail after it took it, in nobody's dialect; and the fold: where the mail stands by all of that.
//!
//! Invariant: the fold is a join of least upper bounds. Whatever the order, the grouping and the repetition of events, the
//! same set of them leaves a mail in the same state.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Status, SuppressionReason};

/// One event of a provider, about one mail and any number of its recipients.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedbackEvent {
    /// What the provider calls it.
    pub event_type: String,
    /// The relay's own id of the mail, as its 250 named it.
    pub relay_message_id: Option<String>,
    /// Our own mark, if the provider gave it back.
    pub mark: Option<Mark>,
    /// Whether the provider gave back any of the mail's headers or tags at all: without them only the relay's id matches.
    pub has_marks: bool,
    /// When the relay took the mail.
    pub accepted_at: Option<DateTime<Utc>>,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// What happened.
    pub kind: FeedbackKind,
    /// To whom; empty: the provider did not say.
    pub recipients: Vec<ToldRecipient>,
}

/// Which mail it was, in words that we put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The row of the recipient.
    pub row_id: Uuid,
    /// Which attempt, from 1.
    pub attempt: i32,
}

impl Mark {
    /// The header of a mail that holds it.
    pub const HEADER: &'static str = "X-Postrider-Message";
    /// The message tag that holds it, for providers that return tags.
    pub const TAG: &'static str = "postrider";

    /// As the header's value.
    #[must_use]
    pub fn header(self) -> String {
        format!("{};attempt={}", self.row_id, self.attempt)
    }

    /// As `X-SES-MESSAGE-TAGS` has it: short enough for a line that nobody needs to fold.
    #[must_use]
    pub fn tag(self) -> String {
        format!("{}={}_{}", Self::TAG, self.row_id, self.attempt)
    }

    /// Reads the header's value.
    #[must_use]
    pub fn read(header: &str) -> Option<Self> {
        Self::of(header.trim().split_once(";attempt=")?)
    }

    /// Reads the tag's value.
    #[must_use]
    pub fn read_tag(value: &str) -> Option<Self> {
        Self::of(value.split_once('_')?)
    }

    fn of((row_id, attempt): (&str, &str)) -> Option<Self> {
        Some(Self { row_id: row_id.parse().ok()?, attempt: attempt.trim().parse().ok()? })
    }
}

/// A recipient, as the provider names it.
#[derive(Clone, PartialEq, Eq)]
pub struct ToldRecipient {
    /// As it came.
    pub address: String,
    /// The far server's words or code, if there are any.
    pub diagnostic: Option<String>,
}

// An address is not for logs.
impl std::fmt::Debug for ToldRecipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ToldRecipient(..)")
    }
}

/// What happened to a mail. Each kind says that the provider had taken it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedbackKind {
    /// The provider took it.
    Accepted,
    /// The far server took it.
    Delivered,
    /// The far server does not take it yet.
    Delayed {
        /// The provider's word for why.
        cause: String,
    },
    /// It came back.
    Bounced {
        /// How.
        bounce: Bounce,
        /// Whether the address itself is at fault, so that nothing more should go there.
        blames_address: bool,
    },
    /// Somebody says that it is not wanted.
    Complained {
        /// The provider's word: `abuse`, `not-spam` ...
        feedback_type: String,
    },
    /// It was looked at.
    Opened,
    /// A link in it was followed.
    Clicked,
    /// Somebody changed what lists they are on.
    Subscription,
    /// Something that this version does not know: kept, and of no effect.
    Other,
    /// Something that is no event as its format has it: kept, and reported as one for nobody.
    Unreadable,
}

/// How a mail came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounce {
    /// For good.
    pub permanent: bool,
    /// The provider's word: `General`, `MailboxFull` ...
    pub subtype: String,
}

impl FeedbackKind {
    /// The kind of its line in the timeline.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Delivered => "delivered",
            Self::Delayed { .. } => "delayed",
            Self::Bounced { .. } => "bounced",
            Self::Complained { .. } => "complaint",
            Self::Opened => "opened",
            Self::Clicked => "clicked",
            Self::Subscription => "subscription",
            Self::Other => "other",
            Self::Unreadable => "unreadable",
        }
    }

    /// Why nothing more should be sent to the address; nothing: no reason.
    #[must_use]
    pub fn suppresses(&self) -> Option<SuppressionReason> {
        match self {
            Self::Bounced { bounce, blames_address: true } if bounce.permanent => Some(SuppressionReason::HardBounce),
            // "Not spam" is a vote for the sender.
            Self::Complained { feedback_type } if feedback_type != "not-spam" => Some(SuppressionReason::Complaint),
            _ => None,
        }
    }
}

/// Where a mail stands by everything that was told of it.
///
/// Each part is the greatest or the earliest of what the events say of it, so that [`Standing::join`] is associative,
/// commutative and idempotent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// When it was first delivered.
    pub delivered_at: Option<DateTime<Utc>>,
    /// How and when it came back: for good rather than for now, then the earliest, then by its words.
    pub bounce: Option<(Bounce, DateTime<Utc>)>,
    /// When it was first complained about, and how.
    pub complaint: Option<(DateTime<Utc>, String)>,
}

impl Standing {
    /// What one event says.
    #[must_use]
    pub fn of(kind: &FeedbackKind, at: DateTime<Utc>) -> Self {
        let mut standing = Self::default();
        match kind {
            FeedbackKind::Delivered => standing.delivered_at = Some(at),
            FeedbackKind::Bounced { bounce, .. } => standing.bounce = Some((bounce.clone(), at)),
            FeedbackKind::Complained { feedback_type } if feedback_type != "not-spam" => {
                standing.complaint = Some((at, feedback_type.clone()));
            }
            FeedbackKind::Complained { .. }
            | FeedbackKind::Accepted
            | FeedbackKind::Delayed { .. }
            | FeedbackKind::Opened
            | FeedbackKind::Clicked
            | FeedbackKind::Subscription
            | FeedbackKind::Other
            | FeedbackKind::Unreadable => {}
        }
        standing
    }

    /// What both say together.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let rank =
            |(bounce, at): &(Bounce, DateTime<Utc>)| (bounce.permanent, Reverse(*at), Reverse(bounce.subtype.clone()));
        Self {
            delivered_at: earliest(self.delivered_at, other.delivered_at),
            bounce: [self.bounce, other.bounce].into_iter().flatten().max_by_key(rank),
            complaint: earliest(self.complaint, other.complaint),
        }
    }

    /// Complaint over permanent bounce over delivered over other bounces over sent.
    #[must_use]
    pub fn status(&self) -> Status {
        let permanent = self.bounce.as_ref().map(|(bounce, _)| bounce.permanent);
        match (&self.complaint, permanent, self.delivered_at) {
            (Some(_), _, _) => Status::Complaint,
            (None, Some(true), _) => Status::Bounced,
            (None, _, Some(_)) => Status::Delivered,
            (None, Some(false), None) => Status::Bounced,
            (None, None, None) => Status::Sent,
        }
    }
}

fn earliest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    [a, b].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).expect("a time")
    }

    fn bounce(permanent: bool, subtype: &str) -> FeedbackKind {
        let bounce = Bounce { permanent, subtype: subtype.to_owned() };
        FeedbackKind::Bounced { bounce, blames_address: permanent }
    }

    fn complaint(feedback_type: &str) -> FeedbackKind {
        FeedbackKind::Complained { feedback_type: feedback_type.to_owned() }
    }

    fn fold(events: &[(FeedbackKind, i64)]) -> Standing {
        events.iter().map(|(kind, second)| Standing::of(kind, at(*second))).fold(Standing::default(), Standing::join)
    }

    #[test]
    fn each_rank_wins_over_those_below_it_whichever_came_first() {
        let ranks = [
            (FeedbackKind::Accepted, Status::Sent),
            (bounce(false, "MailboxFull"), Status::Bounced),
            (FeedbackKind::Delivered, Status::Delivered),
            (bounce(true, "General"), Status::Bounced),
            (complaint("abuse"), Status::Complaint),
        ];
        for (low, (below, _)) in ranks.iter().enumerate() {
            for (above, status) in &ranks[low..] {
                for order in [[below, above], [above, below]] {
                    let events: Vec<_> =
                        order.iter().enumerate().map(|(n, kind)| ((*kind).clone(), n as i64)).collect();
                    assert_eq!(fold(&events).status(), *status, "{events:?}");
                }
            }
        }
    }

    #[test]
    fn of_two_bounces_the_one_for_good_tells_why_and_else_the_earlier() {
        let told = |events: &[_]| fold(events).bounce.map(|(bounce, at)| (bounce.subtype, at));
        let both = [(bounce(false, "MailboxFull"), 1), (bounce(true, "NoEmail"), 2)];
        assert_eq!(told(&both), Some(("NoEmail".to_owned(), at(2))));
        let soft = [(bounce(false, "MailboxFull"), 5), (bounce(false, "General"), 4)];
        assert_eq!(told(&soft), Some(("General".to_owned(), at(4))));
    }

    #[test]
    fn a_vote_that_it_is_no_spam_is_no_complaint() {
        assert_eq!(fold(&[(FeedbackKind::Delivered, 1), (complaint("not-spam"), 2)]).status(), Status::Delivered);
        assert_eq!(complaint("not-spam").suppresses(), None);
        assert_eq!(complaint("abuse").suppresses(), Some(SuppressionReason::Complaint));
        assert_eq!(bounce(false, "MailboxFull").suppresses(), None);
    }

    fn any_kind() -> impl Strategy<Value = FeedbackKind> {
        prop_oneof![
            Just(FeedbackKind::Accepted),
            Just(FeedbackKind::Delivered),
            Just(FeedbackKind::Delayed { cause: "MailboxFull".to_owned() }),
            (any::<bool>(), "General|MailboxFull|NoEmail").prop_map(|(permanent, subtype)| bounce(permanent, &subtype)),
            "abuse|fraud|not-spam".prop_map(|feedback_type| complaint(&feedback_type)),
            Just(FeedbackKind::Opened),
            Just(FeedbackKind::Clicked),
            Just(FeedbackKind::Subscription),
            Just(FeedbackKind::Other),
        ]
    }

    /// All orders of these.
    fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
        if items.is_empty() {
            return vec![Vec::new()];
        }
        let mut all = Vec::new();
        for n in 0..items.len() {
            let mut rest = items.to_vec();
            let first = rest.remove(n);
            for mut tail in permutations(&rest) {
                tail.insert(0, first.clone());
                all.push(tail);
            }
        }
        all
    }

    proptest! {
        #[test]
        fn every_order_ends_the_same(events in proptest::collection::vec((any_kind(), 0_i64..4), 0..6)) {
            let expected = fold(&events);
            for order in permutations(&events) {
                prop_assert_eq!(&fold(&order), &expected);
            }
        }

        #[test]
        fn repetition_and_grouping_make_no_difference(
            events in proptest::collection::vec((any_kind(), 0_i64..4), 0..12),
            cut in 0_usize..12,
        ) {
            let expected = fold(&events);
            let (left, right) = events.split_at(cut.min(events.len()));
            prop_assert_eq!(&fold(left).join(fold(right)), &expected);
            prop_assert_eq!(&expected.clone().join(fold(right)), &expected);
            prop_assert_eq!(&expected.clone().join(expected.clone()), &expected);
        }
    }
}
