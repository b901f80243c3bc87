//! Reading the audit: which mails there are, and what became of them.
//!
//! Invariant: no list reads more than `SEARCHED_MAX` rows, however many there are; one that would says how far it looked.

/// One mail with everything that is known of it, and who looked at it.
pub mod detail;

/// Lists, page by page.
mod search;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use self::search::{MessageFilter, SEARCHED_MAX};
use super::{Store, StoreError};

/// Beyond this many, a list's total is not counted: see [`MessagePage::total_is_exact`].
pub const TOTAL_MAX: i64 = 10_000;

/// One mail in a list.
#[derive(Debug, Clone)]
pub struct MessageSummary {
    /// The row.
    pub id: Uuid,
    /// Its request.
    pub request_id: Uuid,
    /// The recipient. Personal.
    pub to: Option<String>,
    /// As rendered. Personal.
    pub subject: Option<String>,
    /// Where it stands.
    pub status: String,
    /// When the relay took it.
    pub sent_at: Option<DateTime<Utc>>,
    /// When the recipient's server took it, as the provider tells.
    pub delivered_at: Option<DateTime<Utc>>,
    /// `permanent` or `temporary`: how it came back, as the provider tells.
    pub bounce_type: Option<String>,
    /// The provider's word for why.
    pub bounce_subtype: Option<String>,
    /// The provider's word for what was complained about.
    pub complaint_type: Option<String>,
    /// When the row was made.
    pub created_at: DateTime<Utc>,
    /// Which template.
    pub template_key: String,
    /// And which version of it.
    pub template_version: Option<i32>,
    /// Who asked for it.
    pub source: String,
    /// Where it travelled.
    pub lane: String,
    /// SMTP attempts that counted.
    pub attempts: i32,
    /// From publish to the relay's 250.
    pub latency_ms: Option<i64>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What went wrong last.
    pub error: Option<String>,
}

/// A list of mails, newest first.
#[derive(Debug, Clone)]
pub struct MessagePage {
    /// The mails.
    pub items: Vec<MessageSummary>,
    /// How many match in all, up to [`TOTAL_MAX`], whichever page this is.
    pub total: i64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
    /// The next page's [`MessageFilter::after`]; nothing: this was the last.
    pub next: Option<Uuid>,
    /// Mails published before this may not have been looked at for this page; nothing: all were that could be on it.
    pub searched_since: Option<DateTime<Utc>>,
}

/// One try, or another step in a mail's life.
#[derive(Debug, Clone)]
pub struct TimelineLine {
    /// Which mail.
    pub message_id: Uuid,
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub kind: String,
    /// SMTP attempts so far.
    pub attempt: i32,
    /// Which relay.
    pub relay: Option<String>,
    /// The step that decided.
    pub phase: Option<String>,
    /// The relay's code.
    pub reply_code: Option<i16>,
    /// The relay's words.
    pub reply_text: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Store {
    /// What happened to every mail of a request, in order.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn timeline(&self, request_id: Uuid) -> Result<Vec<TimelineLine>, StoreError> {
        Ok(sqlx::query_as!(
            TimelineLine,
            "select t.message_id, t.at, t.kind, t.attempt, t.relay, t.phase, t.reply_code, t.reply_text, t.error
             from email_timeline t join email_messages m on m.id = t.message_id
             where m.request_id = $1 order by t.id",
            request_id
        )
        .fetch_all(&self.pool)
        .await?)
    }
}
