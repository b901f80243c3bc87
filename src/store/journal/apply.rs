//! Entries into the audit's rows: a batch in as many statements as one of them would take.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{Entry, EntryRequest, ReceivedEntry, step};
use crate::store::{StoreError, suppressions::suppress_in};

/// Writes a batch, whose entries may be of the same request and of the same mail. Their files are there: see [`keep_files`].
pub(super) async fn apply(tx: &mut PgConnection, received: &[ReceivedEntry]) -> Result<(), StoreError> {
    let mut entries = new_of(tx, received).await?;
    let stored = keep_requests(tx, &entries).await?;
    // One that was forgotten in between is written anew.
    if entries.iter().any(|entry| !stored.contains_key(&entry.request.id)) {
        return Err(sqlx::Error::RowNotFound.into());
    }
    let is_known = |request: &EntryRequest| stored[&request.id].payload_hash == request.payload_hash;
    for other in entries.extract_if(.., |entry| !is_known(&entry.request)) {
        let id = other.request.id;
        tracing::error!(request.id = %id, "the journal holds a request whose id the audit knows with another payload");
    }
    keep_recipients(tx, &entries).await?;
    keep_attachments(tx, &entries).await?;
    for round in rounds(&entries) {
        step::steps(tx, &round, |request| stored[&request.id].generation > request.generation).await?;
    }
    // After the mails, as everybody does who writes both.
    let refused: Vec<_> = entries.iter().filter_map(|entry| entry.refused_address()).collect();
    if !refused.is_empty() {
        suppress_in(tx, &refused).await?;
    }
    Ok(())
}

/// Keeps an entry's files, in a transaction of each: they are large, go by what they hold, and others wait for the same one.
pub(super) async fn keep_files(connection: &mut PgConnection, received: &ReceivedEntry) -> Result<(), StoreError> {
    for (attachment, bytes) in received.entry.attachments.iter().zip(&received.files) {
        sqlx::query!(
            "insert into attachment_blobs (sha256, size_bytes, data) values ($1, $2, $3)
             on conflict (sha256) do update set used_at = now()",
            hex::decode(&attachment.sha256).unwrap_or_default(),
            attachment.size_bytes,
            bytes.as_ref()
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Those that were not written before, each once.
async fn new_of<'a>(tx: &mut PgConnection, received: &'a [ReceivedEntry]) -> Result<Vec<&'a Entry>, StoreError> {
    let ids: Vec<Uuid> = received.iter().map(|one| one.entry.id).collect();
    let new = sqlx::query_scalar!(
        "insert into journal_entries (id) select unnest($1::uuid[]) on conflict do nothing returning id",
        &ids
    )
    .fetch_all(tx)
    .await?;
    let mut new: HashSet<Uuid> = new.into_iter().collect();
    Ok(received.iter().map(|one| &one.entry).filter(|entry| new.remove(&entry.id)).collect())
}

/// What the audit holds of a request.
struct Stored {
    id: Uuid,
    /// Hexadecimal, as an entry has it.
    payload_hash: String,
    generation: i32,
}

/// Inserts the requests that are not there, and locks them all as a claim does, so that both decide one after the other.
async fn keep_requests(tx: &mut PgConnection, entries: &[&Entry]) -> Result<HashMap<Uuid, Stored>, StoreError> {
    let mut requests: Vec<&EntryRequest> = entries.iter().map(|entry| &entry.request).collect();
    // Stable: of several the first is inserted. In one order, so that two who insert do not wait for each other.
    requests.sort_by_key(|request| request.id);
    requests.dedup_by_key(|request| request.id);
    sqlx::query!(
        "insert into email_requests (id, payload_hash, source, template_key, template_version, priority, lane, locale,
            reply_to, variables, metadata, published_at, not_before, expires_at, generation, copy_no)
         select id, decode(payload_hash, 'hex'), source, template_key, template_version, priority, lane, locale,
            reply_to, variables, metadata, published_at, not_before, expires_at, generation, copy_no
         from jsonb_to_recordset($1) as r (id uuid, payload_hash text, source text, template_key text,
            template_version int, priority smallint, lane text, locale text, reply_to text, variables jsonb,
            metadata jsonb, published_at timestamptz, not_before timestamptz, expires_at timestamptz, generation int,
            copy_no int)
         on conflict (id) do nothing",
        Json(&requests) as _
    )
    .execute(&mut *tx)
    .await?;
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    let stored = sqlx::query_as!(
        Stored,
        r#"select id, encode(payload_hash, 'hex') as "payload_hash!", generation
           from email_requests where id = any($1) order by id for update"#,
        &ids
    )
    .fetch_all(tx)
    .await?;
    let known = |row: Stored| (row.id, row);
    Ok(stored.into_iter().map(known).collect())
}

/// A recipient, as the columns of `email_messages`.
#[derive(Serialize)]
struct Recipient<'a> {
    id: Uuid,
    request_id: Uuid,
    hash: &'a str,
    ordinal: i16,
    template_key: &'a str,
    template_version: Option<i32>,
    email: &'a str,
    name: Option<&'a str>,
    attachments_count: i32,
    message_id: &'a str,
    source: &'a str,
    /// Which of the words, counted from one: those of the first entry that brings some.
    words: Option<usize>,
}

/// Inserts those that are not there, and the words where they were missing.
async fn keep_recipients(tx: &mut PgConnection, entries: &[&Entry]) -> Result<(), StoreError> {
    let (mut recipients, mut places) = (Vec::<Recipient<'_>>::new(), HashMap::new());
    let (mut subjects, mut htmls, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        let mut brought = None;
        for (ordinal, recipient) in entry.recipients.iter().enumerate() {
            let place = *places.entry((entry.request.id, recipient.hash.as_str())).or_insert_with(|| {
                recipients.push(Recipient {
                    id: recipient.id,
                    request_id: entry.request.id,
                    hash: &recipient.hash,
                    ordinal: i16::try_from(ordinal).unwrap_or(i16::MAX),
                    template_key: &entry.request.template_key,
                    template_version: entry.request.template_version,
                    email: &recipient.email,
                    name: recipient.name.as_deref(),
                    attachments_count: i32::try_from(entry.attachments.len()).unwrap_or(i32::MAX),
                    message_id: &recipient.message_id,
                    source: &entry.request.source,
                    words: None,
                });
                recipients.len() - 1
            });
            if recipients[place].words.is_none()
                && let Some(words) = &entry.words
            {
                // Sent once for all who get them.
                recipients[place].words = Some(*brought.get_or_insert_with(|| {
                    subjects.push(words.subject.as_str());
                    htmls.push(words.html.as_str());
                    texts.push(words.text.as_str());
                    subjects.len()
                }));
            }
        }
    }
    // In the order in which others lock them.
    recipients.sort_by_key(|recipient| recipient.id);
    sqlx::query!(
        "insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, template_version,
            recipient_email, recipient_name, subject, html_content, text_content, attachments_count, status, message_id,
            source_endpoint)
         select r.id, r.request_id, decode(r.hash, 'hex'), r.ordinal, r.template_key, r.template_version, r.email, r.name,
            ($2::text[])[r.words], ($3::text[])[r.words], ($4::text[])[r.words], r.attachments_count, 'queued',
            r.message_id, r.source
         from jsonb_to_recordset($1) as r (id uuid, request_id uuid, hash text, ordinal smallint, template_key text,
            template_version int, email text, name text, attachments_count int, message_id text, source text, words int)
         on conflict (request_id, recipient_hash) do update set
            subject = coalesce(email_messages.subject, excluded.subject),
            html_content = coalesce(email_messages.html_content, excluded.html_content),
            text_content = coalesce(email_messages.text_content, excluded.text_content)
         where email_messages.subject is null and excluded.subject is not null",
        Json(&recipients) as _,
        &subjects as _,
        &htmls as _,
        &texts as _
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// An attachment of a mail, as the columns of `email_attachments`.
#[derive(Serialize)]
struct Attachment<'a> {
    request_id: Uuid,
    hash: &'a str,
    filename: &'a str,
    content_type: &'a str,
    content_id: Option<&'a str>,
    size_bytes: i32,
    sha256: &'a str,
    ordinal: i32,
}

/// Of those whose bytes are there: they come with the first entry only, and that may be a later one.
async fn keep_attachments(tx: &mut PgConnection, entries: &[&Entry]) -> Result<(), StoreError> {
    let (mut attachments, mut seen) = (Vec::new(), HashSet::new());
    for entry in entries {
        for recipient in &entry.recipients {
            for (ordinal, file) in entry.attachments.iter().enumerate() {
                let (hash, sha256, filename) = (recipient.hash.as_str(), file.sha256.as_str(), file.file_name.as_str());
                if seen.insert((entry.request.id, hash, sha256, filename)) {
                    attachments.push(Attachment {
                        request_id: entry.request.id,
                        hash,
                        filename,
                        content_type: &file.content_type,
                        content_id: file.content_id.as_deref(),
                        size_bytes: file.size_bytes,
                        sha256,
                        ordinal: i32::try_from(ordinal).unwrap_or(i32::MAX),
                    });
                }
            }
        }
    }
    if attachments.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into email_attachments (message_id, filename, content_type, content_id, size_bytes, sha256, ordinal)
         select m.id, f.filename, f.content_type, f.content_id, f.size_bytes, b.sha256, f.ordinal
         from jsonb_to_recordset($1) as f (request_id uuid, hash text, filename text, content_type text, content_id text,
            size_bytes int, sha256 text, ordinal int)
         join email_messages m on m.request_id = f.request_id and m.recipient_hash = decode(f.hash, 'hex')
         join attachment_blobs b on b.sha256 = decode(f.sha256, 'hex')
         where not exists (
            select 1 from email_attachments a where a.message_id = m.id and a.sha256 = b.sha256 and a.filename = f.filename)",
        Json(&attachments) as _
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The steps of each mail in their order, at most one of a mail in each round.
fn rounds<'a>(entries: &[&'a Entry]) -> Vec<Vec<&'a Entry>> {
    let mut rounds: Vec<Vec<&Entry>> = Vec::new();
    let mut taken = HashMap::new();
    for entry in entries {
        let round = taken.entry((entry.request.id, entry.recipient_hash.as_str())).or_insert(0_usize);
        if rounds.len() == *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push(entry);
        *round += 1;
    }
    rounds
}
