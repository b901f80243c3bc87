//! One mail with everything that is known of it, its bodies, and who looked at it.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::store::{Store, StoreError, within_limit};

/// A mail as its rows have it, but for its bodies.
#[derive(Debug, Clone)]
pub struct MessageDetail {
    /// The row.
    pub id: Uuid,
    /// Its request.
    pub request_id: Uuid,
    /// Our Message-ID.
    pub message_id: String,
    /// The recipient. Personal.
    pub to: Option<String>,
    /// The recipient's name. Personal.
    pub name: Option<String>,
    /// As rendered. Personal.
    pub subject: Option<String>,
    /// Where it stands.
    pub status: String,
    /// Unknown, and left to an operator.
    pub held: bool,
    /// When it may be tried next.
    pub due_at: Option<DateTime<Utc>>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What went wrong last. Personal: relays repeat addresses.
    pub error: Option<String>,
    /// SMTP attempts that counted.
    pub attempts: i32,
    /// How often it was put off.
    pub deferrals: i32,
    /// When the relay took it.
    pub sent_at: Option<DateTime<Utc>>,
    /// When the recipient's server took it, as the provider tells.
    pub delivered_at: Option<DateTime<Utc>>,
    /// When it came back, as the provider tells.
    pub bounced_at: Option<DateTime<Utc>>,
    /// `permanent` or `temporary`.
    pub bounce_type: Option<String>,
    /// The provider's word for why.
    pub bounce_subtype: Option<String>,
    /// When the recipient complained, as the provider tells.
    pub complained_at: Option<DateTime<Utc>>,
    /// The provider's word for what about.
    pub complaint_type: Option<String>,
    /// When the row was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed last.
    pub updated_at: DateTime<Utc>,
    /// Which template.
    pub template_key: String,
    /// And which version of it.
    pub template_version: Option<i32>,
    /// Who asked for it.
    pub source: String,
    /// Where it travelled.
    pub lane: String,
    /// 0 to 3.
    pub priority: i16,
    /// BCP 47.
    pub locale: Option<String>,
    /// Personal.
    pub reply_to: Option<String>,
    /// What the template showed. Personal.
    pub variables: Option<Value>,
    /// Echoed on events. Personal: it is the producer's to say what it holds.
    pub metadata: Value,
    /// By the producer's clock, else when first seen.
    pub published_at: DateTime<Utc>,
    /// Not before.
    pub not_before: Option<DateTime<Utc>>,
    /// Never after.
    pub expires_at: Option<DateTime<Utc>>,
    /// How often the request was replayed.
    pub generation: i32,
    /// The mail that it repeats.
    pub retransmission_of: Option<Uuid>,
    /// Size of the HTML part.
    pub html_bytes: Option<i32>,
    /// Size of the text part.
    pub text_bytes: Option<i32>,
}

/// One line of a mail's timeline.
#[derive(Debug, Clone)]
pub struct MessageEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub kind: String,
    /// SMTP attempts so far.
    pub attempt: i32,
    /// From publish to this moment, for what was sent.
    pub latency_ms: Option<i64>,
    /// Which relay.
    pub relay: Option<String>,
    /// The step that decided.
    pub phase: Option<String>,
    /// The relay's code.
    pub reply_code: Option<i16>,
    /// The relay's words. Personal: they may repeat the address.
    pub reply_text: Option<String>,
    /// The relay's own id for the mail.
    pub relay_message_id: Option<String>,
    /// What went wrong. Personal, as the relay's words.
    pub error: Option<String>,
}

/// An attachment of a mail; the bytes are elsewhere.
#[derive(Debug, Clone)]
pub struct MessageAttachment {
    /// Cleaned. Personal: it may name a person.
    pub filename: String,
    /// As declared, and sniffed.
    pub content_type: String,
    /// Of an inline image.
    pub content_id: Option<String>,
    /// Its size.
    pub size_bytes: i32,
    /// Of its bytes.
    pub sha256: Vec<u8>,
}

/// A mail, what happened to it, in order, and what came with it.
#[derive(Debug, Clone)]
pub struct Message {
    /// The mail.
    pub detail: MessageDetail,
    /// The relay's answers, the provider's feedback, replays.
    pub timeline: Vec<MessageEvent>,
    /// In no order.
    pub attachments: Vec<MessageAttachment>,
}

/// A part of a mail as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyPart {
    /// `text/html`.
    Html,
    /// `text/plain`.
    Text,
}

impl BodyPart {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Html, Self::Text];

    /// As in the database and in URLs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Text => "text",
        }
    }

    /// The part of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// What somebody looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewed {
    /// A mail's subject, variables and the rest of its details.
    Details(Uuid),
    /// A mail's body.
    Body(Uuid, BodyPart),
    /// A dead letter's headers and content.
    DeadLetter(Uuid),
}

/// Somebody looked at a mail.
#[derive(Debug, Clone)]
pub struct View {
    /// When.
    pub at: DateTime<Utc>,
    /// Who: `operator:<name>`.
    pub viewed_by: String,
    /// `details`, `html` or `text`.
    pub what: String,
}

impl Store {
    /// Who looked at a mail, the latest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn views_of(&self, id: Uuid, limit: i64) -> Result<Vec<View>, StoreError> {
        let reading = sqlx::query_as!(
            View,
            "select at, viewed_by, what from operator_views where message_id = $1 order by id desc limit $2",
            id,
            limit
        )
        .fetch_all(&self.pool);
        within_limit(async { Ok(reading.await?) }).await
    }

    /// One mail. Nothing: there is no such row.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn message(&self, id: Uuid) -> Result<Option<Message>, StoreError> {
        within_limit(async {
            let Some(detail) = self.message_detail(id).await? else { return Ok(None) };
            let timeline = sqlx::query_as!(
                MessageEvent,
                "select at, kind, attempt, latency_ms, relay, phase, reply_code, reply_text, relay_message_id, error
                 from email_timeline where message_id = $1 order by id",
                id
            )
            .fetch_all(&self.pool)
            .await?;
            let attachments = sqlx::query_as!(
                MessageAttachment,
                "select filename, content_type, content_id, size_bytes, sha256 from email_attachments where message_id = $1
                 order by filename, id",
                id
            )
            .fetch_all(&self.pool)
            .await?;
            Ok(Some(Message { detail, timeline, attachments }))
        })
        .await
    }

    async fn message_detail(&self, id: Uuid) -> Result<Option<MessageDetail>, StoreError> {
        Ok(sqlx::query_as!(
            MessageDetail,
            r#"select m.id, m.request_id, m.message_id, m.recipient_email as "to", m.recipient_name as name, m.subject,
                m.status, m.held, m.due_at, m.reason, m.error_message as error, m.attempts, m.deferrals, m.sent_at,
                m.delivered_at, m.bounced_at, m.bounce_type, m.bounce_subtype, m.complained_at, m.complaint_type,
                m.created_at, m.updated_at, m.template_key, m.template_version, r.source, r.lane, r.priority, r.locale,
                r.reply_to, r.variables, r.metadata, r.published_at, r.not_before, r.expires_at, r.generation,
                r.retransmission_of, octet_length(m.html_content) as html_bytes,
                octet_length(m.text_content) as text_bytes
               from email_messages m join email_requests r on r.id = m.request_id where m.id = $1"#,
            id
        )
        .fetch_optional(&self.pool)
        .await?)
    }

    /// A part of a mail as it was sent. Nothing: there is no such mail, or it has no such part (any more).
    ///
    /// # Errors
    /// When the database is away.
    pub async fn message_body(&self, id: Uuid, part: BodyPart) -> Result<Option<String>, StoreError> {
        let reading = sqlx::query_scalar!(
            "select case when $2 then html_content else text_content end from email_messages where id = $1",
            id,
            part == BodyPart::Html
        )
        .fetch_optional(&self.pool);
        within_limit(async { Ok(reading.await?.flatten()) }).await
    }

    /// Notes who looked at a person's mail. Done before it is shown: what could not be noted is not shown.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn record_view(&self, by: &str, viewed: Viewed) -> Result<(), StoreError> {
        let (what, message_id, dead_letter_id) = match viewed {
            Viewed::Details(id) => ("details", Some(id), None),
            Viewed::Body(id, part) => (part.name(), Some(id), None),
            Viewed::DeadLetter(id) => ("dead_letter", None, Some(id)),
        };
        let writing = sqlx::query!(
            "insert into operator_views (viewed_by, what, message_id, dead_letter_id) values (left($1, 100), $2, $3, $4)",
            by,
            what,
            message_id,
            dead_letter_id
        )
        .execute(&self.pool);
        within_limit(async { Ok(writing.await.map(|_| ())?) }).await
    }
}
