//! Headers of a dead letter: what says why a message is in `email.dead`.

/// Which of [`crate::email::Reason`].
pub const REASON: &str = "x-reason";
/// For people.
pub const ERROR: &str = "x-error";
/// SMTP attempts that counted, at most of any recipient.
pub const ATTEMPTS: &str = "x-attempts";
/// When it was published, milliseconds.
pub const FIRST_AT: &str = "x-first-at-ms";
/// When it failed, milliseconds.
pub const LAST_AT: &str = "x-last-at-ms";
/// Where it travelled.
pub const LANE: &str = "x-lane";
/// The same for the same failure, however often it is published.
pub const SETTLEMENT_ID: &str = "x-settlement-id";
/// If the bytes told.
pub const REQUEST_ID: &str = "x-request-id";
/// Who asked.
pub const SOURCE: &str = "x-source";
/// Which template.
pub const TEMPLATE: &str = "x-template";
/// JSON: the recipients that failed or are held, and why.
pub const RECIPIENTS: &str = "x-recipients";
/// JSON: every try, in order.
pub const HISTORY: &str = "x-history";

/// All of them: what a replayed copy must not carry.
pub const ALL: [&str; 12] = [
    REASON,
    ERROR,
    ATTEMPTS,
    FIRST_AT,
    LAST_AT,
    LANE,
    SETTLEMENT_ID,
    REQUEST_ID,
    SOURCE,
    TEMPLATE,
    RECIPIENTS,
    HISTORY,
];
