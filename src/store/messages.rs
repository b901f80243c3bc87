//! Reading the audit: which mails there are, and what became of them.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Store, StoreError};

/// Beyond this many, a list's total is not counted: see [`MessagePage::total_is_exact`].
pub const TOTAL_MAX: i64 = 10_000;

/// Which mails to list; every part that is given must match.
#[derive(Debug, Clone, Default)]
pub struct MessageFilter {
    /// The recipient's keyed hash.
    pub recipient_hash: Option<[u8; 32]>,
    /// These requests only.
    pub request_ids: Option<Vec<Uuid>>,
    /// At most this many.
    pub limit: i64,
}

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
    /// How many match in all, up to [`TOTAL_MAX`].
    pub total: i64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
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
    /// Lists mails.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn messages(&self, filter: &MessageFilter) -> Result<MessagePage, StoreError> {
        let hash = filter.recipient_hash.as_ref().map(<[u8; 32]>::as_slice);
        let ids = filter.request_ids.as_deref();
        let items = sqlx::query_as!(
            MessageSummary,
            r#"select m.id, m.request_id, m.recipient_email as "to", m.subject, m.status, m.sent_at, m.delivered_at,
                m.bounce_type, m.bounce_subtype, m.complaint_type, m.created_at, m.template_key, m.template_version, r.lane, m.attempts,
                case when m.sent_at is not null
                    then (extract(epoch from m.sent_at - r.published_at) * 1000)::bigint end as latency_ms,
                m.reason, m.error_message as error
               from email_messages m join email_requests r on r.id = m.request_id
               where ($1::bytea is null or m.recipient_hash = $1) and ($2::uuid[] is null or m.request_id = any($2))
               order by m.id desc limit $3"#,
            hash,
            ids,
            filter.limit
        )
        .fetch_all(&self.pool)
        .await?;
        let counted = sqlx::query_scalar!(
            r#"select count(*) as "n!" from (
                select 1 from email_messages m
                where ($1::bytea is null or m.recipient_hash = $1) and ($2::uuid[] is null or m.request_id = any($2))
                limit $3) as few"#,
            hash,
            ids,
            TOTAL_MAX + 1
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(MessagePage { items, total: counted.min(TOTAL_MAX), total_is_exact: counted <= TOTAL_MAX })
    }

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
