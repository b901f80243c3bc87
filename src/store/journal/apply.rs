//! One entry into the audit's rows.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Entry, EntryRecipient, ReceivedEntry, progress::Progress};
use crate::{
    email::Status,
    store::{StoreError, caps, suppressions::suppress_in},
};

pub(super) async fn apply(tx: &mut PgConnection, received: &ReceivedEntry) -> Result<(), StoreError> {
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
