//! Recorded mails that operators send again: their rows, and what is owed to the broker for them.
//!
//! Invariant: request, mail, files, both timelines, the link and the line of the change log are committed together, before any
//! message is published.
//! Invariant: whoever asks for the same mail at the same moment waits for the other, and finds what the other made.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{
    MarketingTemplates, Store, StoreError,
    changes::{Change, record},
    claim::status_of,
    whole::Whole,
    within_limit,
};
use crate::email::{PayloadHash, Status};

/// How long a mail that was sent again without a key is not sent again without one.
pub const PRESSED_TWICE: Duration = Duration::from_secs(300);
/// Owed messages that are looked for at once.
const OWED_MAX: i64 = 20;

/// A mail that somebody wants sent again.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The recorded mail.
    pub message: Uuid,
    /// `operator:<name>`.
    pub by: &'a str,
    /// The same key for the same mail is one request. Without one, what was just asked for is not asked for again.
    pub key: Option<&'a str>,
}

/// A mail as it is recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Where it stands.
    pub status: Status,
    /// Unknown, and left to an operator.
    pub held: bool,
    /// The recipient; nothing once anonymised. Personal.
    pub to: Option<String>,
    /// The recipient's name. Personal.
    pub name: Option<String>,
    /// Keyed hash of the address.
    pub recipient_hash: [u8; 32],
    /// Subject and bodies are there.
    pub has_content: bool,
    /// Who asked for it.
    pub source: String,
    /// Which template.
    pub template_key: String,
    /// And which version of it.
    pub template_version: Option<i32>,
    /// 0 to 3.
    pub priority: i16,
    /// BCP 47.
    pub locale: Option<String>,
    /// Personal.
    pub reply_to: Option<String>,
    /// By the producer's clock, else when first seen.
    pub published_at: DateTime<Utc>,
    /// Why the recipient may not get it now.
    pub suppressed: Option<String>,
    /// Its files, as they were given.
    pub files: Vec<RecordedFile>,
    /// How many there should be.
    pub files_recorded: usize,
}

/// A file of a recorded mail.
#[derive(Debug, Clone)]
pub struct RecordedFile {
    /// Cleaned. Personal.
    pub file_name: String,
    /// As declared.
    pub content_type: String,
    /// Of an inline image.
    pub content_id: Option<String>,
    /// How large it is.
    pub size_bytes: u64,
    /// Its bytes are kept under this.
    pub sha256: Vec<u8>,
}

/// The rows that are to be written.
#[derive(Debug, Clone)]
pub struct NewRetransmission {
    /// The new request.
    pub request_id: Uuid,
    /// Its mail's row.
    pub row_id: Uuid,
    /// Its Message-ID, with angle brackets.
    pub message_id: String,
    /// Of the message that will claim it.
    pub payload_hash: PayloadHash,
    /// As that message says it.
    pub published_at: DateTime<Utc>,
    /// That message's.
    pub generation: i32,
}

/// A request that repeats a recorded mail.
#[derive(Debug, Clone)]
pub struct Retransmission {
    /// The request.
    pub request_id: Uuid,
    /// Its mail's row.
    pub message_id: Uuid,
    /// The mail that it repeats.
    pub repeats: Uuid,
    /// Who asked for it.
    pub asked_by: String,
    /// When.
    pub at: DateTime<Utc>,
    /// The broker has confirmed its message.
    pub is_published: bool,
}

/// What became of recording a wish; `R` says why it was refused.
#[derive(Debug, Clone)]
pub enum Recording<R> {
    /// It is committed: publish its message.
    Done(Retransmission),
    /// It was before.
    Before(Retransmission),
    /// Nothing was written.
    Refused(R),
    /// There is no such mail.
    Unknown,
}

impl Store {
    /// A mail as it is recorded, with its files. Nothing: there is no such row.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn recorded(
        &self,
        message: Uuid,
        marketing: &MarketingTemplates,
    ) -> Result<Option<Recorded>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        within_limit(recorded(&mut connection, message, marketing)).await
    }

    /// Writes a wish's rows as `compose` makes them of what is recorded, unless they are there already.
    ///
    /// # Errors
    /// When the database is away: they were written, or nothing was.
    pub async fn record_retransmission<R>(
        &self,
        wish: &Wish<'_>,
        marketing: &MarketingTemplates,
        compose: impl FnOnce(&Recorded) -> Result<NewRetransmission, R>,
    ) -> Result<Recording<R>, StoreError> {
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let mut tx = whole.connection().begin().await?;
            let recording = write(&mut tx, wish, marketing, compose).await?;
            tx.commit().await?;
            whole.end();
            Ok(recording)
        })
        .await
    }

    /// Notes that the broker has confirmed the message of a request.
    ///
    /// # Errors
    /// When the database is away: it is published again then.
    pub async fn confirm_retransmission(&self, request_id: Uuid) -> Result<(), StoreError> {
        let confirming = sqlx::query!(
            "update retransmissions set published_at = now() where request_id = $1 and published_at is null",
            request_id
        )
        .execute(&self.pool);
        within_limit(async { Ok(confirming.await.map(|_| ())?) }).await
    }

    /// Requests whose message the broker has not confirmed for this long, the oldest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn owed_retransmissions(&self, after: Duration) -> Result<Vec<Retransmission>, StoreError> {
        let reading = sqlx::query_as!(
            Retransmission,
            r#"select request_id, message_id, repeats, asked_by, at, published_at is not null as "is_published!"
               from retransmissions where published_at is null and at < now() - make_interval(secs => $1)
               order by at limit $2"#,
            after.as_secs_f64(),
            OWED_MAX
        )
        .fetch_all(&self.pool);
        within_limit(async { Ok(reading.await?) }).await
    }

    /// The requests that repeat a mail, the oldest first; at most a hundred.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn retransmissions_of(&self, message: Uuid) -> Result<Vec<Retransmission>, StoreError> {
        let reading = sqlx::query_as!(
            Retransmission,
            r#"select request_id, message_id, repeats, asked_by, at, published_at is not null as "is_published!"
               from retransmissions where repeats = $1 order by at, request_id limit 100"#,
            message
        )
        .fetch_all(&self.pool);
        within_limit(async { Ok(reading.await?) }).await
    }
}

async fn write<R>(
    tx: &mut PgConnection,
    wish: &Wish<'_>,
    marketing: &MarketingTemplates,
    compose: impl FnOnce(&Recorded) -> Result<NewRetransmission, R>,
) -> Result<Recording<R>, StoreError> {
    let locked = sqlx::query!("select id from email_messages where id = $1 for no key update", wish.message)
        .fetch_optional(&mut *tx)
        .await?;
    if locked.is_none() {
        return Ok(Recording::Unknown);
    }
    if let Some(before) = written_before(tx, wish).await? {
        return Ok(Recording::Before(before));
    }
    let Some(recorded) = recorded(tx, wish.message, marketing).await? else { return Ok(Recording::Unknown) };
    let new = match compose(&recorded) {
        Ok(new) => new,
        Err(refusal) => return Ok(Recording::Refused(refusal)),
    };
    insert_rows(tx, wish, &new).await?;
    let key = wish.key.map_or_else(|| format!("at {}", new.published_at.timestamp_millis()), str::to_owned);
    let written = sqlx::query_as!(
        Retransmission,
        r#"insert into retransmissions (request_id, message_id, repeats, key, asked_by)
           values ($1, $2, $3, $4, left($5, 100))
           returning request_id, message_id, repeats, asked_by, at, false as "is_published!""#,
        new.request_id,
        new.row_id,
        wish.message,
        key,
        wish.by
    )
    .fetch_one(&mut *tx)
    .await?;
    let change = Change {
        by: wish.by,
        action: "message.resend",
        target: &wish.message.to_string(),
        before: None,
        after: Some(json!({ "request_id": new.request_id, "message_id": new.row_id })),
    };
    record(tx, &change).await?;
    Ok(Recording::Done(written))
}

/// The request of the same key, or, where none is given, one that is on its way or was made a moment ago.
async fn written_before(tx: &mut PgConnection, wish: &Wish<'_>) -> Result<Option<Retransmission>, StoreError> {
    Ok(sqlx::query_as!(
        Retransmission,
        r#"select x.request_id, x.message_id, x.repeats, x.asked_by, x.at, x.published_at is not null as "is_published!"
           from retransmissions x left join email_messages m on m.id = x.message_id
           where x.repeats = $1 and (x.key = $2 or $2::text is null
                and (x.at > now() - make_interval(secs => $3) or m.status in ('queued', 'sending')))
           order by x.at desc limit 1"#,
        wish.message,
        wish.key,
        PRESSED_TWICE.as_secs_f64()
    )
    .fetch_optional(tx)
    .await?)
}

async fn recorded(
    connection: &mut PgConnection,
    message: Uuid,
    marketing: &MarketingTemplates,
) -> Result<Option<Recorded>, StoreError> {
    let Some(row) = sqlx::query!(
        r#"select m.status, m.held, m.recipient_email, m.recipient_name, m.recipient_hash,
            num_nulls(m.subject, m.html_content, m.text_content) = 0 as "has_content!", r.source, m.template_key,
            m.template_version, r.priority, r.locale, r.reply_to, r.published_at, m.attachments_count,
            (select s.reason from suppressions s where s.address_hash = m.recipient_hash
                and stops_mail(s.reason, s.category, $2::jsonb ->> m.template_key)
                and (s.expires_at is null or s.expires_at > now())
                order by s.reason, s.category limit 1) as suppressed
           from email_messages m join email_requests r on r.id = m.request_id where m.id = $1"#,
        message,
        marketing.as_json()
    )
    .fetch_optional(&mut *connection)
    .await?
    else {
        return Ok(None);
    };
    let files = sqlx::query!(
        "select a.filename, a.content_type, a.content_id, b.size_bytes, b.sha256
         from email_attachments a join attachment_blobs b on b.sha256 = a.sha256
         where a.message_id = $1 order by a.ordinal, a.filename, a.id",
        message
    )
    .fetch_all(connection)
    .await?;
    let files: Vec<RecordedFile> = files
        .into_iter()
        .map(|file| RecordedFile {
            file_name: file.filename,
            content_type: file.content_type,
            content_id: file.content_id,
            size_bytes: u64::try_from(file.size_bytes).unwrap_or_default(),
            sha256: file.sha256,
        })
        .collect();
    Ok(Some(Recorded {
        status: status_of(&row.status)?,
        held: row.held,
        to: row.recipient_email,
        name: row.recipient_name,
        recipient_hash: <[u8; 32]>::try_from(row.recipient_hash).unwrap_or_default(),
        has_content: row.has_content,
        source: row.source,
        template_key: row.template_key,
        template_version: row.template_version,
        priority: row.priority,
        locale: row.locale,
        reply_to: row.reply_to,
        published_at: row.published_at,
        suppressed: row.suppressed,
        files,
        files_recorded: usize::try_from(row.attachments_count).unwrap_or_default(),
    }))
}

/// Request, mail and files, as they are recorded; and a line in either mail's timeline.
async fn insert_rows(tx: &mut PgConnection, wish: &Wish<'_>, new: &NewRetransmission) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into email_requests (id, payload_hash, source, template_key, template_version, priority, lane, locale,
            reply_to, variables, metadata, published_at, generation, retransmission_of)
         select $2, $3, r.source, r.template_key, m.template_version, r.priority, r.lane, r.locale, r.reply_to,
            r.variables, r.metadata, $4, $5, m.id
         from email_messages m join email_requests r on r.id = m.request_id where m.id = $1",
        wish.message,
        new.request_id,
        new.payload_hash.0.as_slice(),
        new.published_at,
        new.generation
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, template_version,
            recipient_email, recipient_name, subject, html_content, text_content, attachments_count, status, message_id,
            source_endpoint)
         select $2, $3, m.recipient_hash, 0, m.template_key, m.template_version, m.recipient_email, m.recipient_name,
            m.subject, m.html_content, m.text_content, m.attachments_count, 'queued', $4, m.source_endpoint
         from email_messages m where m.id = $1",
        wish.message,
        new.row_id,
        new.request_id,
        new.message_id
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "insert into email_attachments (message_id, filename, content_type, content_id, size_bytes, sha256, ordinal)
         select $2, filename, content_type, content_id, size_bytes, sha256,
            row_number() over (order by ordinal, filename, id)
         from email_attachments where message_id = $1",
        wish.message,
        new.row_id
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "insert into email_timeline (message_id, kind, attempt, error)
         values ($1, 'retransmitted', 0, 'sent again as ' || $2::uuid || ', by ' || left($3::text, 100)),
            ($2, 'retransmission', 0, 'sends ' || $1::uuid || ' again, by ' || left($3::text, 100))",
        wish.message,
        new.row_id,
        wish.by
    )
    .execute(tx)
    .await?;
    Ok(())
}
