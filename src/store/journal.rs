//! What the fast lane did without a database, as entries that are written into the audit when it is back.
//!
//! Each entry is whole: it holds the request, all of its recipients, and one step of one of them, so that it needs no
//! other entry to have come before it.
//! Invariant: an entry counts once (its id), and never moves a row backwards, whatever the order the entries arrive in:
//! see [`Progress`].

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{
    Store, StoreError, caps, events_setting,
    suppressions::{BY_RELAY, NewSuppression, suppress_in},
    within_limit,
};
use crate::email::{Status, SuppressionReason};

/// Serialises the daemons that write the journal.
const JOURNAL_LOCK: i64 = 0x6a6f_7572_6e61_6c00;

/// One step of one mail, with everything that its rows need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Counts once.
    pub id: Uuid,
    /// When it happened, by the daemon's clock.
    pub at: DateTime<Utc>,
    /// Which daemon did it: the name of its lease.
    pub worker_id: Uuid,
    /// The request.
    pub request: EntryRequest,
    /// Its recipients, in their order.
    pub recipients: Vec<EntryRecipient>,
    /// Whose step this is.
    pub recipient_hash: String,
    /// What was rendered; nothing for an entry that follows one with the words.
    pub words: Option<EntryWords>,
    /// The request's attachments.
    pub attachments: Vec<EntryAttachment>,
    /// Of the claim.
    pub token: Uuid,
    /// How often the mail had been put off before: which try this is.
    pub round: i32,
    /// What happened.
    pub step: Step,
}

/// What the request row holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_requests")]
pub struct EntryRequest {
    pub id: Uuid,
    pub payload_hash: String,
    pub source: String,
    pub template_key: String,
    pub template_version: Option<i32>,
    pub priority: i16,
    pub lane: String,
    pub locale: Option<String>,
    pub reply_to: Option<String>,
    pub variables: serde_json::Value,
    pub metadata: serde_json::Value,
    pub published_at: DateTime<Utc>,
    pub not_before: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub generation: i32,
    pub copy_no: i32,
}

/// What a recipient's row holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_messages")]
pub struct EntryRecipient {
    pub id: Uuid,
    pub hash: String,
    pub email: String,
    pub name: Option<String>,
    pub message_id: String,
}

/// Subject and bodies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_messages")]
pub struct EntryWords {
    pub subject: String,
    pub html: String,
    pub text: String,
}

/// A file, with its bytes where the entry brings them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_attachments")]
pub struct EntryAttachment {
    pub file_name: String,
    pub content_type: String,
    pub content_id: Option<String>,
    pub size_bytes: i32,
    pub sha256: String,
}

/// What happened to the mail.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// It is about to go to the relay.
    Sending,
    /// A try has ended, or policy said no.
    Ended(Box<Ended>),
}

/// How it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_messages and email_timeline")]
pub struct Ended {
    /// Where the row goes: a name of [`Status`].
    pub status: String,
    /// Tries that counted, this one included.
    pub attempts: i32,
    /// Seconds until it is due again.
    pub due_in: Option<f64>,
    /// Unknown, and left to an operator.
    pub held: bool,
    pub reason: Option<String>,
    pub sent_at: Option<DateTime<Utc>>,
    pub latency_ms: Option<i64>,
    /// `sent`, `deferred`, `rejected`, `unknown`, `suppressed`, `expired`.
    pub kind: String,
    pub relay: String,
    pub phase: Option<String>,
    pub reply_code: Option<i16>,
    pub reply_text: Option<String>,
    pub relay_message_id: Option<String>,
    pub error: Option<String>,
    /// The relay refused the address for good.
    #[serde(default)]
    pub suppresses: bool,
    /// The broker has confirmed the copy or letter that it brings.
    pub is_settled: bool,
}

/// How far a mail is. Only a step further counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Waiting, or on its way: twice the number of earlier put-offs, and one more once this try has ended.
    Tried(i32),
    /// Unknown and left to an operator; only the relay's word goes further.
    Held,
    /// Given up.
    Failed,
    /// The relay has it, or policy said no: over.
    Over,
}

impl Progress {
    /// Of a row.
    #[must_use]
    pub const fn of_row(status: Status, held: bool, deferrals: i32) -> Self {
        match status {
            Status::Queued => Self::Tried(2 * deferrals - 1),
            Status::Sending => Self::Tried(2 * deferrals),
            Status::Unknown if held => Self::Held,
            Status::Unknown => Self::Tried(2 * deferrals - 1),
            Status::Failed => Self::Failed,
            Status::Sent
            | Status::Delivered
            | Status::Bounced
            | Status::Complaint
            | Status::Suppressed
            | Status::RateLimited
            | Status::Expired => Self::Over,
        }
    }

    /// Of a step in a round.
    #[must_use]
    pub const fn of_step(round: i32, ended: Option<(Status, bool)>) -> Self {
        match ended {
            None => Self::Tried(2 * round),
            Some((status, held)) => Self::of_row(status, held, round + 1),
        }
    }
}

impl Entry {
    /// The same, after the broker has confirmed what it brings.
    #[must_use]
    pub fn settled(&self) -> Self {
        let mut settled = self.clone();
        if let Step::Ended(ended) = &mut settled.step {
            ended.is_settled = true;
            settled.id = Uuid::new_v5(&self.id, b"settled");
        }
        settled
    }

    fn ended(&self) -> Option<(&Ended, Status)> {
        match &self.step {
            Step::Sending => None,
            Step::Ended(ended) => Some((ended, Status::from_name(&ended.status).unwrap_or(Status::Unknown))),
        }
    }

    /// What a relay's refusal puts on the suppression list.
    fn refused_address(&self) -> Option<NewSuppression> {
        let ended = self.ended().map(|(ended, _)| ended).filter(|ended| ended.suppresses)?;
        let hash = hex::decode(&self.recipient_hash).ok()?.try_into().ok()?;
        let address = self.recipients.iter().find(|r| r.hash == self.recipient_hash).map(|r| r.email.clone());
        Some(NewSuppression {
            note: ended.reply_code.zip(ended.reply_text.as_deref()).map(|(code, text)| format!("{code} {text}")),
            ..NewSuppression::new(hash, address, SuppressionReason::HardBounce, BY_RELAY.to_owned())
        })
    }

    fn progress(&self) -> Progress {
        Progress::of_step(self.round, self.ended().map(|(ended, status)| (status, ended.held)))
    }
}

/// An entry, and the bytes of the attachments that it brings, in their order.
#[derive(Debug)]
pub struct ReceivedEntry {
    /// The entry.
    pub entry: Entry,
    /// The files' bytes; none for an entry that follows one with them.
    pub files: Vec<Vec<u8>>,
}

/// The right to write the journal: one daemon at a time has it. Given back when it is dropped.
pub struct JournalLock {
    /// Of its own, beside the pools: the lock goes with the session, and a pool would keep both.
    connection: PgConnection,
}

impl Store {
    /// The name of this daemon's lease.
    #[must_use]
    pub const fn worker_id(&self) -> Uuid {
        self.worker_id
    }

    /// Asks for the right to write the journal; nothing: another daemon has it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn try_lock_journal(&self) -> Result<Option<JournalLock>, StoreError> {
        let options = self.pool.connect_options();
        let locking = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            // A daemon that vanishes in the middle of it must not keep the others out for hours.
            sqlx::query("set tcp_keepalives_idle = 10").execute(&mut connection).await?;
            sqlx::query("set tcp_keepalives_interval = 5").execute(&mut connection).await?;
            sqlx::query("set tcp_keepalives_count = 3").execute(&mut connection).await?;
            sqlx::query("set idle_in_transaction_session_timeout = '60s'").execute(&mut connection).await?;
            if let Some(setting) = events_setting(self.events) {
                sqlx::raw_sql(setting).execute(&mut connection).await?;
            }
            let is_ours = sqlx::query_scalar!("select pg_try_advisory_lock($1) as \"is_ours!\"", JOURNAL_LOCK)
                .fetch_one(&mut connection)
                .await?;
            Ok(is_ours.then_some(JournalLock { connection }))
        };
        within_limit(locking).await
    }

    /// Writes entries into the audit, all of them or none; one that was written before changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Away`]: leave them in their queue. [`StoreError::Data`]: one of them cannot be stored.
    pub async fn apply_journal(&self, lock: &mut JournalLock, entries: &[ReceivedEntry]) -> Result<(), StoreError> {
        let applying = async {
            let mut tx = lock.connection.begin().await?;
            for received in entries {
                apply(&mut tx, received).await?;
            }
            tx.commit().await?;
            self.outbox_written.notify_one();
            Ok(())
        };
        within_limit(applying).await
    }

    /// Gives the right back, and says goodbye.
    pub async fn unlock_journal(&self, lock: JournalLock) {
        drop(within_limit(async { Ok(lock.connection.close().await?) }).await);
    }
}

async fn apply(tx: &mut PgConnection, received: &ReceivedEntry) -> Result<(), StoreError> {
    let entry = &received.entry;
    let is_new = sqlx::query!("insert into journal_entries (id) values ($1) on conflict do nothing", entry.id)
        .execute(&mut *tx)
        .await?
        .rows_affected()
        == 1;
    if !is_new {
        return Ok(());
    }
    let request = &entry.request;
    let payload_hash = hex::decode(&request.payload_hash).unwrap_or_default();
    sqlx::query!(
        "insert into email_requests (id, payload_hash, source, template_key, template_version, priority, lane, locale,
            reply_to, variables, metadata, published_at, not_before, expires_at, generation, copy_no)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) on conflict (id) do nothing",
        request.id,
        payload_hash,
        request.source,
        request.template_key,
        request.template_version,
        request.priority,
        request.lane,
        request.locale,
        request.reply_to,
        request.variables,
        request.metadata,
        request.published_at,
        request.not_before,
        request.expires_at,
        request.generation,
        request.copy_no
    )
    .execute(&mut *tx)
    .await?;
    // The same lock that a claim takes, so that both decide one after the other.
    let stored =
        sqlx::query!("select payload_hash, generation from email_requests where id = $1 for update", request.id)
            .fetch_one(&mut *tx)
            .await?;
    if stored.payload_hash != payload_hash {
        tracing::error!(request.id = %request.id, "the journal holds a request whose id the audit knows with another payload");
        return Ok(());
    }
    keep_files(tx, entry, &received.files).await?;
    for (ordinal, recipient) in entry.recipients.iter().enumerate() {
        insert_recipient(tx, entry, ordinal, recipient).await?;
    }
    step(tx, entry, stored.generation > request.generation).await?;
    // After the mail, as everybody does who writes both.
    if let Some(refused) = entry.refused_address() {
        suppress_in(tx, &[refused]).await?;
    }
    Ok(())
}

async fn keep_files(tx: &mut PgConnection, entry: &Entry, files: &[Vec<u8>]) -> Result<(), StoreError> {
    for (attachment, bytes) in entry.attachments.iter().zip(files) {
        sqlx::query!(
            "insert into attachment_blobs (sha256, size_bytes, data) values ($1, $2, $3)
             on conflict (sha256) do update set used_at = now()",
            hex::decode(&attachment.sha256).unwrap_or_default(),
            attachment.size_bytes,
            bytes
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

async fn insert_recipient(
    tx: &mut PgConnection,
    entry: &Entry,
    ordinal: usize,
    recipient: &EntryRecipient,
) -> Result<(), StoreError> {
    let words = entry.words.as_ref();
    sqlx::query!(
        "insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, template_version,
            recipient_email, recipient_name, subject, html_content, text_content, attachments_count, status, message_id,
            source_endpoint)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'queued', $13, $14)
         on conflict (request_id, recipient_hash) do update set
            subject = coalesce(email_messages.subject, excluded.subject),
            html_content = coalesce(email_messages.html_content, excluded.html_content),
            text_content = coalesce(email_messages.text_content, excluded.text_content)
         where email_messages.subject is null and excluded.subject is not null",
        recipient.id,
        entry.request.id,
        hex::decode(&recipient.hash).unwrap_or_default(),
        i16::try_from(ordinal).unwrap_or(i16::MAX),
        entry.request.template_key,
        entry.request.template_version,
        recipient.email,
        recipient.name,
        words.map(|w| w.subject.as_str()),
        words.map(|w| w.html.as_str()),
        words.map(|w| w.text.as_str()),
        i32::try_from(entry.attachments.len()).unwrap_or(i32::MAX),
        recipient.message_id,
        entry.request.source
    )
    .execute(&mut *tx)
    .await?;
    // Their bytes come with the first entry only, and that may be a later one.
    for (ordinal, attachment) in entry.attachments.iter().enumerate() {
        sqlx::query!(
            "insert into email_attachments (message_id, filename, content_type, content_id, size_bytes, sha256, ordinal)
             select m.id, $3::text, $4, $5, $6, b.sha256, $8 from email_messages m, attachment_blobs b
             where m.request_id = $1 and m.recipient_hash = $2 and b.sha256 = $7 and not exists (
                select 1 from email_attachments a where a.message_id = m.id and a.sha256 = b.sha256 and a.filename = $3::text)",
            entry.request.id,
            hex::decode(&recipient.hash).unwrap_or_default(),
            attachment.file_name,
            attachment.content_type,
            attachment.content_id,
            attachment.size_bytes,
            hex::decode(&attachment.sha256).unwrap_or_default(),
            i32::try_from(ordinal).unwrap_or(i32::MAX)
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Whether this very line is in the timeline.
async fn has_line(tx: &mut PgConnection, id: Uuid, at: DateTime<Utc>, kind: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        "select exists (select from email_timeline where message_id = $1 and at = $2 and kind = $3) as \"told!\"",
        id,
        at,
        kind
    )
    .fetch_one(tx)
    .await?)
}

/// `was_reopened`: a replay has overtaken this entry, so that it only adds a line.
async fn step(tx: &mut PgConnection, entry: &Entry, was_reopened: bool) -> Result<(), StoreError> {
    let hash = hex::decode(&entry.recipient_hash).unwrap_or_default();
    let row = sqlx::query!(
        r#"select m.id, m.status, m.held, m.deferrals, m.token, m.worker_id,
            coalesce(w.lease_until > now(), false) as "lease_live!"
           from email_messages m left join email_workers w on w.id = m.worker_id
           where m.request_id = $1 and m.recipient_hash = $2 for update of m"#,
        entry.request.id,
        hash
    )
    .fetch_one(&mut *tx)
    .await?;
    let status = Status::from_name(&row.status).unwrap_or(Status::Sent);
    let (there, here) = (entry.progress(), Progress::of_row(status, row.held, row.deferrals));
    let is_own = row.worker_id == Some(entry.worker_id);
    // Somebody else has it on the wire: that one decides, but for the relay's yes.
    let is_busy = status == Status::Sending && row.lease_live && !is_own && row.token != Some(entry.token);
    let is_further = !was_reopened && (there == Progress::Over || !is_busy) && there > here;
    let Some((ended, new_status)) = entry.ended() else {
        // At the same place it is the same try of the same daemon: under the token that it really went out with.
        if is_further || !was_reopened && is_own && there == here && status == Status::Sending {
            sqlx::query!(
                "update email_messages set status = 'sending', token = $2, worker_id = $3, due_at = null,
                    settlement = 'none', held = false, deferrals = $4, updated_at = now() where id = $1",
                row.id,
                entry.token,
                entry.worker_id,
                entry.round
            )
            .execute(&mut *tx)
            .await?;
        }
        return Ok(());
    };
    // What feedback has settled meanwhile may still lack the relay's own words, and the id that later feedback is found by.
    let is_told = status == new_status || has_line(tx, row.id, entry.at, &ended.kind).await?;
    if !was_reopened && there == here && row.token == Some(entry.token) && is_told {
        // Told once before, when the copy or letter was still owed; or the row knew it all along.
        if ended.is_settled {
            sqlx::query!(
                "update email_messages set settlement = 'done' where id = $1 and settlement = 'pending'",
                row.id
            )
            .execute(&mut *tx)
            .await?;
        }
        return Ok(());
    }
    if is_further {
        sqlx::query!(
            "update email_messages set status = $2, attempts = $3, deferrals = $4, held = $5, token = $6, worker_id = $7,
                due_at = $8::timestamptz + make_interval(secs => $9::float8), settlement = $10, reason = $11,
                error_message = $12, sent_at = $13, updated_at = now()
             where id = $1",
            row.id,
            new_status.name(),
            ended.attempts,
            entry.round + i32::from(matches!(new_status, Status::Queued | Status::Unknown)),
            ended.held,
            entry.token,
            entry.worker_id,
            entry.at,
            ended.due_in,
            match new_status {
                Status::Queued | Status::Unknown | Status::Failed if ended.is_settled => "done",
                Status::Queued | Status::Unknown | Status::Failed => "pending",
                _ => "none",
            },
            ended.reason,
            ended.error,
            ended.sent_at
        )
        .execute(&mut *tx)
        .await?;
    }
    sqlx::query!(
        "insert into email_timeline (message_id, at, kind, attempt, latency_ms, relay, phase, reply_code, reply_text,
            relay_message_id, error)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        row.id,
        entry.at,
        ended.kind,
        ended.attempts,
        ended.latency_ms,
        ended.relay,
        ended.phase,
        ended.reply_code,
        ended.reply_text,
        ended.relay_message_id,
        ended.error
    )
    .execute(&mut *tx)
    .await?;
    if is_further && matches!(new_status, Status::Failed | Status::Suppressed | Status::Expired) {
        // Claimed with the database, under a cap, and ended without it.
        caps::give_back(tx, &[row.id]).await?;
    }
    Ok(())
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
