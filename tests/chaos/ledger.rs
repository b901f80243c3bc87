//! The account: what the broker accepted against what became of it. Pure: it is given what the relay wrote down, what the
//! database says, and what it said at each cut, and decides what of that breaks the contract.
//!
//! Invariant: a repeat is allowed only on evidence. Either the relay's transcript shows the final dot of the earlier send
//! and the database, asked right after the cut, had no outcome for it; or the transcript shows a final dot that was never
//! answered within the daemon's patience. Nothing else excuses a second mail.

use std::collections::BTreeSet;

use uuid::Uuid;

mod judge;

pub use judge::judge;

/// A mail that the broker has accepted a request for.
#[derive(Debug, Clone)]
pub struct Expected {
    pub request: Uuid,
    pub recipient: String,
    /// An unknown outcome is left to an operator.
    pub holds: bool,
    /// Of the fast lane.
    pub fast: bool,
    /// The relay never takes it.
    pub refused: bool,
    pub published_ms: i64,
}

/// A mail whose final dot reached the relay.
#[derive(Debug, Clone, Default)]
pub struct Send {
    pub row: Uuid,
    pub request: Uuid,
    pub recipient: String,
    pub message_id: String,
    /// MAIL.
    pub begun_ms: i64,
    pub dot_ms: i64,
    /// The reply to the dot, if it was one.
    pub answered_ms: Option<i64>,
    pub accepted: bool,
    /// How content and envelope do not fit together.
    pub wrong: Option<String>,
}

/// The relay said 354.
#[derive(Debug, Clone)]
pub struct PastData {
    pub recipient: String,
    pub at_ms: i64,
}

/// What the database says of a mail in the end.
#[derive(Debug, Clone, Default)]
pub struct Row {
    pub id: Uuid,
    pub request: Uuid,
    pub recipient: String,
    pub status: String,
    pub held: bool,
    pub settlement: String,
    pub reason: Option<String>,
    pub message_id: String,
    /// Lines of its timeline.
    pub lines: i64,
    pub sent_lines: i64,
    pub unknown_lines: i64,
}

/// An archived dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    pub request: Option<Uuid>,
    pub reason: String,
}

/// A kill, or a line that was cut, and the rows without an outcome right after it.
#[derive(Debug, Clone)]
pub struct Cut {
    pub at_ms: i64,
    /// A line that hangs lets go of what is on it only then.
    pub until_ms: i64,
    /// Whether it can keep an outcome from the database. Losing the broker cannot.
    pub excuses: bool,
    pub rows: Vec<CutRow>,
}

/// A row without an outcome at a cut.
#[derive(Debug, Clone, Default)]
pub struct CutRow {
    pub row: Uuid,
    pub recipient: String,
    /// `sending` or `unknown`.
    pub status: String,
    pub token: Option<Uuid>,
    /// When the row was touched last: for `sending`, the claim.
    pub touched_ms: i64,
}

/// What is known of one case.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub requests: usize,
    pub expected: Vec<Expected>,
    pub sends: Vec<Send>,
    pub past_data: Vec<PastData>,
    pub rows: Vec<Row>,
    pub letters: Vec<Letter>,
    pub cuts: Vec<Cut>,
    /// Messages that are still in a queue.
    pub queued: usize,
    /// The database was away from, until.
    pub outages: Vec<(i64, i64)>,
    /// What a mail to a good address may end as, besides sent and held.
    pub reasons: BTreeSet<&'static str>,
    /// How long the daemon waits for the reply to a final dot.
    pub patience_ms: i64,
    /// Incidents that must go out while the database is away, at least.
    pub p0_away_min: usize,
    /// Repeats that the case allows at most, if that is less than the cuts would.
    pub repeats_max: Option<usize>,
}

/// The figures of one case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub requests: usize,
    pub expected: usize,
    pub at_relay: usize,
    pub sent: usize,
    pub dead: usize,
    pub held: usize,
    pub lost: usize,
    pub stuck: usize,
    pub repeated: usize,
    pub allowed: usize,
    pub sending_at_cuts: usize,
    pub past_data_at_cuts: usize,
    pub p0_away: usize,
    pub degraded: usize,
}

/// One way in which the contract was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Accepted by the broker, and nobody knows of it.
    Lost,
    /// The row says sent, and the relay has nothing.
    SentWithoutMail,
    /// The relay has it, and no row does.
    MailWithoutRow,
    /// The relay has it, and the row says that it failed.
    FailedWithMail,
    /// A second mail that nothing excuses.
    Repeated,
    /// A second mail of what is to be held.
    HeldRepeated,
    /// Not over within the limit.
    Stuck,
    /// A repeat under another Message-ID, or another than the row's.
    MessageId,
    /// The content is not what this envelope should carry.
    Content,
    /// It failed, and should not have.
    Reason,
    /// The dead letter is missing, or there are several, or one for nothing.
    Letter,
    /// The timeline does not tell what happened.
    Timeline,
    /// Left in a queue.
    Queue,
    /// A daemon ended, or did not end, as it should.
    Daemon,
    /// The fast lane did not outlive the database.
    Away,
    /// The case did not run as planned.
    Plan,
}

/// A fault and its evidence.
#[derive(Debug, Clone)]
pub struct Violation {
    pub fault: Fault,
    pub request: Option<Uuid>,
    pub recipient: Option<String>,
    pub words: String,
}

impl Violation {
    /// One that is about no single mail.
    pub fn general(fault: Fault, words: impl Into<String>) -> Self {
        Self { fault, request: None, recipient: None, words: words.into() }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "tests/it runs them; this program has no harness that would")]
mod tests;
