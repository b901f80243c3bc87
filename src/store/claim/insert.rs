//! Requests that were never seen before: a batch of them with all their messages in one statement.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use super::{AttachmentRow, ClaimRequest, Initial, Inserted, NewRequest, RecipientClaim, RequestFacts, status_of};
use crate::{email::Status, faults, store::StoreError};

/// Inserts a batch of requests with their messages; answers which were new, and how each message starts.
pub(in crate::store) async fn insert_batch(
    pool: &PgPool,
    worker_id: Uuid,
    batch: &[NewRequest],
) -> Result<Vec<Inserted>, StoreError> {
    // In the order of their keys, so that two daemons' batches cannot lock each other out; one of each.
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by_key(|&i| batch[i].facts.id);
    order.dedup_by_key(|&mut i| batch[i].facts.id);
    let mut r = RequestColumns::default();
    let mut m = MessageColumns::default();
    let mut a = AttachmentColumns::default();
    for &i in &order {
        r.push(&batch[i].facts);
        for (ordinal, recipient) in batch[i].recipients.iter().enumerate() {
            m.push(&batch[i], ordinal, recipient);
            for attachment in &batch[i].attachments {
                a.push(recipient.id, attachment);
            }
        }
    }
    let statement = sqlx::query!(
        r#"
        with new_request as (
            insert into email_requests (id, payload_hash, source, template_key, template_version, priority, lane, locale,
                reply_to, variables, metadata, published_at, not_before, expires_at, generation, copy_no)
            select * from unnest($1::uuid[], $2::bytea[], $3::text[], $4::text[], $5::int[], $6::smallint[], $7::text[],
                $8::text[], $9::text[], $10::jsonb[], $11::jsonb[], $12::timestamptz[], $13::timestamptz[],
                $14::timestamptz[], $15::int[], $16::int[])
            on conflict (id) do nothing
            returning id, template_key, template_version, source
        ), new_message as (
            insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, template_version,
                recipient_email, recipient_name, subject, html_content, text_content, attachments_count, status,
                message_id, due_at, settlement, token, worker_id, reason, error_message, source_endpoint)
            select m.id, m.request_id, m.recipient_hash, m.ordinal, r.template_key, r.template_version,
                m.email, m.name, m.subject, m.html, m.text, m.attachments_count,
                case when m.status in ('sending', 'queued') and s.address_hash is not null then 'suppressed' else m.status end,
                m.message_id, m.due_at,
                case when m.status = 'failed' then 'pending' else 'none' end,
                m.token, $32::uuid, m.reason,
                case when m.status in ('sending', 'queued') and s.address_hash is not null
                    then 'on the suppression list: ' || s.reason else m.error end,
                r.source
            from unnest($17::uuid[], $18::uuid[], $19::bytea[], $20::smallint[], $21::text[], $22::text[], $23::text[],
                $24::text[], $25::text[], $26::int[], $27::text[], $28::text[], $29::timestamptz[], $30::uuid[],
                $31::text[], $33::text[], $34::bool[])
                as m (id, request_id, recipient_hash, ordinal, email, name, subject, html, text, attachments_count, status,
                    message_id, due_at, token, reason, error, marketing)
            join new_request r on r.id = m.request_id
            left join suppressions s on s.address_hash = m.recipient_hash
                and (m.marketing or s.reason in ('hard_bounce', 'complaint'))
                and (s.expires_at is null or s.expires_at > now())
            returning id, request_id, ordinal, status, error_message
        ), new_line as (
            -- what stops right here has its whole story in one line
            insert into email_timeline (message_id, kind, attempt, error)
            select id, status, 0, error_message from new_message where status not in ('sending', 'queued')
        ), new_attachment as (
            insert into email_attachments (message_id, filename, content_type, content_id, size_bytes, sha256)
            select a.message_id, a.filename, a.content_type, a.content_id, a.size_bytes, a.sha256
            from unnest($35::uuid[], $36::text[], $37::text[], $38::text[], $39::int[], $40::bytea[])
                as a (message_id, filename, content_type, content_id, size_bytes, sha256)
            join new_message on new_message.id = a.message_id
        )
        select request_id, ordinal, status from new_message order by request_id, ordinal
        "#,
        &r.id,
        &r.payload_hash,
        &r.source,
        &r.template_key,
        &r.template_version as _,
        &r.priority,
        &r.lane,
        &r.locale as _,
        &r.reply_to as _,
        &r.variables,
        &r.metadata,
        &r.published_at,
        &r.not_before as _,
        &r.expires_at as _,
        &r.generation,
        &r.copy_no,
        &m.id,
        &m.request_id,
        &m.recipient_hash,
        &m.ordinal,
        &m.email,
        &m.name as _,
        &m.subject as _,
        &m.html as _,
        &m.text as _,
        &m.attachments_count,
        &m.status,
        &m.message_id,
        &m.due_at as _,
        &m.token as _,
        &m.reason as _,
        worker_id,
        &m.error as _,
        &m.marketing,
        &a.message_id,
        &a.file_name,
        &a.content_type,
        &a.content_id as _,
        &a.size_bytes,
        &a.sha256,
    );
    let rows = if faults::leaves_out_claim_commit() {
        let mut tx = pool.begin().await?;
        let rows = statement.fetch_all(&mut *tx).await?;
        tx.rollback().await?;
        rows
    } else {
        statement.fetch_all(pool).await?
    };

    let mut answers: Vec<Inserted> = batch.iter().map(|_| None).collect();
    let mut rows = rows.into_iter().peekable();
    for &i in &order {
        let id = batch[i].facts.id;
        let mut statuses = Vec::new();
        while let Some(row) = rows.next_if(|row| row.request_id == id) {
            statuses.push(status_of(&row.status)?);
        }
        if !statuses.is_empty() {
            answers[i] = Some(statuses);
        }
    }
    Ok(answers)
}

#[derive(Default)]
struct RequestColumns {
    id: Vec<Uuid>,
    payload_hash: Vec<Vec<u8>>,
    source: Vec<String>,
    template_key: Vec<String>,
    template_version: Vec<Option<i32>>,
    priority: Vec<i16>,
    lane: Vec<String>,
    locale: Vec<Option<String>>,
    reply_to: Vec<Option<String>>,
    variables: Vec<Value>,
    metadata: Vec<Value>,
    published_at: Vec<DateTime<Utc>>,
    not_before: Vec<Option<DateTime<Utc>>>,
    expires_at: Vec<Option<DateTime<Utc>>>,
    generation: Vec<i32>,
    copy_no: Vec<i32>,
}

impl RequestColumns {
    fn push(&mut self, facts: &RequestFacts) {
        self.id.push(facts.id);
        self.payload_hash.push(facts.payload_hash.0.to_vec());
        self.source.push(facts.source.clone());
        self.template_key.push(facts.template_key.clone());
        self.template_version.push(facts.template_version);
        self.priority.push(facts.priority);
        self.lane.push(facts.lane.name().to_owned());
        self.locale.push(facts.locale.clone());
        self.reply_to.push(facts.reply_to.clone());
        self.variables.push(facts.variables.clone());
        self.metadata.push(facts.metadata.clone());
        self.published_at.push(facts.published_at);
        self.not_before.push(facts.not_before);
        self.expires_at.push(facts.expires_at);
        self.generation.push(facts.generation);
        self.copy_no.push(facts.copy_no);
    }
}

#[derive(Default)]
struct MessageColumns {
    id: Vec<Uuid>,
    request_id: Vec<Uuid>,
    recipient_hash: Vec<Vec<u8>>,
    ordinal: Vec<i16>,
    email: Vec<String>,
    name: Vec<Option<String>>,
    subject: Vec<Option<String>>,
    html: Vec<Option<String>>,
    text: Vec<Option<String>>,
    attachments_count: Vec<i32>,
    status: Vec<String>,
    message_id: Vec<String>,
    due_at: Vec<Option<DateTime<Utc>>>,
    token: Vec<Option<Uuid>>,
    reason: Vec<Option<String>>,
    error: Vec<Option<String>>,
    marketing: Vec<bool>,
}

impl MessageColumns {
    fn push(&mut self, request: &ClaimRequest, ordinal: usize, recipient: &RecipientClaim) {
        let words = recipient.words.as_deref();
        let (status, token, due_at, reason, error) = match &recipient.initial {
            Initial::Claim(token) => (Status::Sending, Some(*token), None, None, None),
            Initial::Wait => (Status::Queued, None, None, None, None),
            Initial::NotBefore(at) => (Status::Queued, None, Some(*at), None, None),
            Initial::Fail(reason, error) => (Status::Failed, None, None, Some(*reason), Some(error.clone())),
            Initial::Expired => (Status::Expired, None, None, None, None),
        };
        self.id.push(recipient.id);
        self.request_id.push(request.facts.id);
        self.recipient_hash.push(recipient.recipient_hash.to_vec());
        self.ordinal.push(i16::try_from(ordinal).unwrap_or(i16::MAX));
        self.email.push(recipient.email.clone());
        self.name.push(recipient.name.clone());
        self.subject.push(words.map(|w| w.subject.clone()));
        self.html.push(words.map(|w| w.html.clone()));
        self.text.push(words.map(|w| w.text.clone()));
        self.attachments_count.push(i32::try_from(request.attachments.len()).unwrap_or(i32::MAX));
        self.status.push(status.name().to_owned());
        self.message_id.push(recipient.message_id.clone());
        self.due_at.push(due_at);
        self.token.push(token);
        self.reason.push(reason.map(|r| r.name().to_owned()));
        self.error.push(error);
        self.marketing.push(request.marketing);
    }
}

#[derive(Default)]
struct AttachmentColumns {
    message_id: Vec<Uuid>,
    file_name: Vec<String>,
    content_type: Vec<String>,
    content_id: Vec<Option<String>>,
    size_bytes: Vec<i32>,
    sha256: Vec<Vec<u8>>,
}

impl AttachmentColumns {
    fn push(&mut self, message_id: Uuid, attachment: &AttachmentRow) {
        self.message_id.push(message_id);
        self.file_name.push(attachment.file_name.clone());
        self.content_type.push(attachment.content_type.clone());
        self.content_id.push(attachment.content_id.clone());
        self.size_bytes.push(attachment.size_bytes);
        self.sha256.push(attachment.sha256.to_vec());
    }
}
