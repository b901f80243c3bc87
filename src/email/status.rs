//! Where a mail stands, and the closed lists of reasons why one fails and why an address gets none.

use std::fmt;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in the database, in headers and in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The value of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.name()) }
        }
    };
}

named! {
    /// Where a mail stands: the `status` column of `email_messages`.
    Status {
        /// Known and waiting: first seen, deferred, postponed, reopened.
        Queued = "queued",
        /// Claimed, on its way to the relay.
        Sending = "sending",
        /// May or may not have been accepted.
        Unknown = "unknown",
        /// The relay said 2xx.
        Sent = "sent",
        /// Feedback: arrived.
        Delivered = "delivered",
        /// Feedback: came back.
        Bounced = "bounced",
        /// Feedback: marked as spam.
        Complaint = "complaint",
        /// Rejected or given up; dead-lettered; until replayed.
        Failed = "failed",
        /// The address is on the suppression list.
        Suppressed = "suppressed",
        /// Over the cap, and the template says drop.
        RateLimited = "rate_limited",
        /// Past `expires_at`.
        Expired = "expired",
    }
}

impl Status {
    /// Whether sending is over for it, whatever feedback may still add.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Sending | Self::Unknown)
    }
}

named! {
    /// Why a mail failed for good: the `x-reason` header of a dead letter.
    Reason {
        /// The bytes are no request, or break a limit.
        Malformed = "malformed",
        /// No template of this key or version.
        UnknownTemplate = "unknown_template",
        /// A required variable is missing or null.
        MissingVariable = "missing_variable",
        /// The template could not be rendered with these variables.
        RenderFailed = "render_failed",
        /// An attachment is of a type, size or content that is not allowed.
        BadAttachment = "bad_attachment",
        /// The recipient's address is not one.
        BadAddress = "bad_address",
        /// A marketing mail, and nothing to unsubscribe by: `EMAIL_PUBLIC_URL` is not set.
        NoUnsubscribeLink = "no_unsubscribe_link",
        /// The same request id came with another payload.
        IdempotencyConflict = "idempotency_conflict",
        /// The relay said 5xx.
        Rejected = "rejected",
        /// Deferred until the tries ran out.
        TriesExhausted = "tries_exhausted",
        /// Deferred until the maximum age.
        AgeExhausted = "age_exhausted",
        /// May or may not have been accepted; an operator decides.
        OutcomeUnknown = "outcome_unknown",
        /// Crashed a worker three times by itself.
        Poison = "poison",
        /// Older than the audit remembers.
        TooOld = "too_old",
        /// No binding matched its routing key.
        Unrouted = "unrouted",
        /// The broker put it there (delivery limit, length, a queue's own dead-lettering).
        Broker = "broker",
    }
}

named! {
    /// Why an address gets no mail: the `reason` column of `suppressions`.
    SuppressionReason {
        /// Somebody marked a mail to it as spam.
        Complaint = "complaint",
        /// It does not exist, or takes no mail any more.
        HardBounce = "hard_bounce",
        /// Its owner wants no marketing.
        Unsubscribe = "unsubscribe",
        /// An operator wants to spare it marketing.
        Operator = "operator",
    }
}

impl SuppressionReason {
    /// Whether it stops transactional mail too, and not only marketing.
    #[must_use]
    pub const fn stops_transactional(self) -> bool {
        matches!(self, Self::Complaint | Self::HardBounce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for status in Status::ALL {
            assert_eq!(Status::from_name(status.name()), Some(*status));
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::from_name(reason.name()), Some(*reason));
        }
        for reason in SuppressionReason::ALL {
            assert_eq!(SuppressionReason::from_name(reason.name()), Some(*reason));
        }
    }
}
