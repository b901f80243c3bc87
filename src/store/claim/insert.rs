//! Requests that were never seen before: a batch of them with all their messages in one statement.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool, types::Json};
use uuid::Uuid;

use super::{AttachmentRow, ClaimRequest, Initial, Inserted, NewRequest, RecipientClaim, Words, status_of};
use crate::{
    email::{Reason, Status},
    faults,
    store::{
        StoreError,
        caps::{self, Wanted},
        whole::Whole,
    },
};

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
    let wanted: Vec<Wanted<'_>> = order.iter().flat_map(|&i| wanted(&batch[i])).collect();
    if wanted.is_empty() && !faults::leaves_out_claim_commit() {
        let mut connection = pool.acquire().await?;
        return insert(&mut connection, worker_id, batch, &order, &HashSet::new()).await;
    }
    let mut whole = Whole::of(pool).await?;
    let mut tx = whole.connection().begin().await?;
    let inserted = insert_under_caps(&mut tx, worker_id, batch, &order, &wanted).await?;
    if faults::leaves_out_claim_commit() {
        tx.rollback().await?;
    } else {
        tx.commit().await?;
    }
    whole.end();
    Ok(inserted)
}

/// The mails of a request that want a place under its cap.
fn wanted(request: &ClaimRequest) -> impl Iterator<Item = Wanted<'_>> {
    request.cap.iter().flat_map(|cap| {
        let claimed = request.recipients.iter().filter(|recipient| matches!(recipient.initial, Initial::Claim(_)));
        claimed.map(move |r| Wanted { message_id: r.id, address_hash: &r.recipient_hash, cap })
    })
}

/// The same, where some mails must have a place first. A mail that finds none waits in its row: over whom, and what becomes of it
/// then, is for the transaction that comes for it.
async fn insert_under_caps(
    tx: &mut PgConnection,
    worker_id: Uuid,
    batch: &[NewRequest],
    order: &[usize],
    wanted: &[Wanted<'_>],
) -> Result<Vec<Inserted>, StoreError> {
    if wanted.is_empty() {
        return insert(tx, worker_id, batch, order, &HashSet::new()).await;
    }
    let taken: HashSet<Uuid> = caps::take(tx, wanted).await?.into_iter().collect();
    let without: HashSet<Uuid> = wanted.iter().map(|one| one.message_id).filter(|id| !taken.contains(id)).collect();
    let inserted = insert(tx, worker_id, batch, order, &without).await?;
    let mut unused = taken;
    for &i in order {
        for (recipient, status) in batch[i].recipients.iter().zip(inserted[i].iter().flatten()) {
            if *status == Status::Sending {
                unused.remove(&recipient.id);
            }
        }
    }
    if !unused.is_empty() {
        // Known already, or suppressed.
        caps::undo(tx, &unused.into_iter().collect::<Vec<_>>()).await?;
    }
    Ok(inserted)
}

/// One statement. Those in `without` have no place under their caps.
async fn insert(
    connection: &mut PgConnection,
    worker_id: Uuid,
    batch: &[NewRequest],
    order: &[usize],
    without: &HashSet<Uuid>,
) -> Result<Vec<Inserted>, StoreError> {
    let mut r = RequestColumns::default();
    let mut m = MessageColumns::default();
    let mut w = WordsColumns::default();
    let mut a = AttachmentColumns::default();
    for &i in order {
        r.push(&batch[i]);
        for (ordinal, recipient) in batch[i].recipients.iter().enumerate() {
            m.push(r.number(), ordinal, recipient, without.contains(&recipient.id), &mut w);
            for attachment in &batch[i].attachments {
                a.push(recipient.id, attachment);
            }
        }
    }
    // Values are picked out of their arrays by number: `unnest` of so many arrays builds a table of each, and costs more than
    // the inserts. What recipients of one request have in common is on the wire once.
    let statement = sqlx::query!(
        r#"
        with new_request as (
            insert into email_requests (id, payload_hash, source, template_key, template_version, priority, lane, locale,
                reply_to, variables, metadata, published_at, not_before, expires_at, generation, copy_no)
            select ($1::uuid[])[r], ($2::bytea[])[r], ($3::text[])[r], ($4::text[])[r], ($5::int[])[r],
                ($6::smallint[])[r], ($7::text[])[r], ($8::text[])[r], ($9::text[])[r], ($10::jsonb[])[r],
                ($11::jsonb[])[r], ($12::timestamptz[])[r], ($13::timestamptz[])[r], ($14::timestamptz[])[r],
                ($15::int[])[r], ($16::int[])[r]
            from generate_subscripts($1::uuid[], 1) as r
            on conflict (id) do nothing
            returning id
        ), new_message as (
            insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, template_version,
                recipient_email, recipient_name, subject, html_content, text_content, attachments_count, status,
                message_id, due_at, settlement, token, worker_id, reason, error_message, source_endpoint)
            select ($19::uuid[])[m.n], m.request_id, m.recipient_hash, ($22::smallint[])[m.n], ($4::text[])[m.r],
                ($5::int[])[m.r], ($23::text[])[m.n], ($24::text[])[m.n], ($32::text[])[m.w], ($33::text[])[m.w],
                ($34::text[])[m.w], ($18::int[])[m.r],
                case when m.suppression is null then m.status else 'suppressed' end,
                ($27::text[])[m.n], ($28::timestamptz[])[m.n],
                case when m.status = 'failed' then 'pending' else 'none' end,
                ($29::uuid[])[m.n], $35::uuid, ($30::text[])[m.n],
                coalesce('on the suppression list: ' || m.suppression, ($31::text[])[m.n]), ($3::text[])[m.r]
            from (
                select i.n, i.r, i.w, i.status, i.request_id, i.recipient_hash,
                    -- without words it is not to be sent from here: the journal has what became of it
                    case when i.status in ('sending', 'queued') and i.w is not null then (
                        select s.reason from suppressions s where s.address_hash = i.recipient_hash
                            and stops_mail(s.reason, s.category, i.marketing)
                            and (s.expires_at is null or s.expires_at > now())
                        -- as the primary key has them: the first found is the one that is told
                        order by s.reason, s.category limit 1) end as suppression
                from (
                    select n, ($20::int[])[n] as r, ($25::int[])[n] as w, ($26::text[])[n] as status,
                        ($1::uuid[])[($20::int[])[n]] as request_id, ($21::bytea[])[n] as recipient_hash,
                        ($17::text[])[($20::int[])[n]] as marketing
                    from generate_subscripts($19::uuid[], 1) as n
                    -- each value is picked once, not wherever it is used
                    offset 0) as i
                offset 0) as m
            where m.request_id = any(array(select id from new_request))
            returning id, request_id, ordinal, status, error_message
        ), new_line as (
            -- what stops right here has its whole story in one line
            insert into email_timeline (message_id, kind, attempt, error)
            select id, status, 0, error_message from new_message where status not in ('sending', 'queued')
        ), new_attachment as (
            insert into email_attachments (message_id, filename, content_type, content_id, size_bytes, sha256, ordinal)
            select a.message_id, a.filename, a.content_type, a.content_id, a.size_bytes, a.sha256, a.ordinal
            from unnest($36::uuid[], $37::text[], $38::text[], $39::text[], $40::int[], $41::bytea[])
                with ordinality as a (message_id, filename, content_type, content_id, size_bytes, sha256, ordinal)
            where a.message_id = any(array(select id from new_message))
        )
        select request_id, ordinal, status from new_message
        "#,
        &r.id as _,
        &r.payload_hash as _,
        &r.source as _,
        &r.template_key as _,
        &r.template_version as _,
        &r.priority,
        &r.lane as _,
        &r.locale as _,
        &r.reply_to as _,
        &r.variables as _,
        &r.metadata as _,
        &r.published_at,
        &r.not_before as _,
        &r.expires_at as _,
        &r.generation,
        &r.copy_no,
        &r.marketing as _,
        &r.attachments_count,
        &m.id,
        &m.request,
        &m.recipient_hash as _,
        &m.ordinal,
        &m.email as _,
        &m.name as _,
        &m.words as _,
        &m.status as _,
        &m.message_id as _,
        &m.due_at as _,
        &m.token as _,
        &m.reason as _,
        &m.error as _,
        &w.subject as _,
        &w.html as _,
        &w.text as _,
        worker_id,
        &a.message_id,
        &a.file_name as _,
        &a.content_type as _,
        &a.content_id as _,
        &a.size_bytes,
        &a.sha256 as _,
    );
    let rows = statement.fetch_all(connection).await?;

    // In the order of the statement, whatever order the rows come back in.
    let numbers: HashMap<Uuid, usize> = order.iter().map(|&i| (batch[i].facts.id, i)).collect();
    let mut found: Vec<Vec<(i16, Status)>> = batch.iter().map(|_| Vec::new()).collect();
    for row in rows {
        if let Some(&i) = numbers.get(&row.request_id) {
            found[i].push((row.ordinal, status_of(&row.status)?));
        }
    }
    let answer = |mut rows: Vec<(i16, Status)>| {
        rows.sort_unstable_by_key(|&(ordinal, _)| ordinal);
        (!rows.is_empty()).then(|| rows.into_iter().map(|(_, status)| status).collect())
    };
    Ok(found.into_iter().map(answer).collect())
}

/// One for each request.
#[derive(Default)]
struct RequestColumns<'a> {
    id: Vec<Uuid>,
    payload_hash: Vec<&'a [u8]>,
    source: Vec<&'a str>,
    template_key: Vec<&'a str>,
    template_version: Vec<Option<i32>>,
    priority: Vec<i16>,
    lane: Vec<&'static str>,
    locale: Vec<Option<&'a str>>,
    reply_to: Vec<Option<&'a str>>,
    variables: Vec<Json<&'a Value>>,
    metadata: Vec<Json<&'a Value>>,
    published_at: Vec<DateTime<Utc>>,
    not_before: Vec<Option<DateTime<Utc>>>,
    expires_at: Vec<Option<DateTime<Utc>>>,
    generation: Vec<i32>,
    copy_no: Vec<i32>,
    marketing: Vec<Option<&'a str>>,
    attachments_count: Vec<i32>,
}

impl<'a> RequestColumns<'a> {
    fn push(&mut self, request: &'a ClaimRequest) {
        let facts = &request.facts;
        self.id.push(facts.id);
        self.payload_hash.push(&facts.payload_hash.0);
        self.source.push(&facts.source);
        self.template_key.push(&facts.template_key);
        self.template_version.push(facts.template_version);
        self.priority.push(facts.priority);
        self.lane.push(facts.lane.name());
        self.locale.push(facts.locale.as_deref());
        self.reply_to.push(facts.reply_to.as_deref());
        self.variables.push(Json(&facts.variables));
        self.metadata.push(Json(&facts.metadata));
        self.published_at.push(facts.published_at);
        self.not_before.push(facts.not_before);
        self.expires_at.push(facts.expires_at);
        self.generation.push(facts.generation);
        self.copy_no.push(facts.copy_no);
        self.marketing.push(request.marketing.as_deref());
        self.attachments_count.push(number(request.attachments.len()));
    }

    /// Of the request pushed last: SQL counts from 1.
    fn number(&self) -> i32 {
        number(self.id.len())
    }
}

/// One for each recipient.
#[derive(Default)]
struct MessageColumns<'a> {
    id: Vec<Uuid>,
    /// Its request's number.
    request: Vec<i32>,
    recipient_hash: Vec<&'a [u8]>,
    ordinal: Vec<i16>,
    email: Vec<&'a str>,
    name: Vec<Option<&'a str>>,
    /// The number of its words.
    words: Vec<Option<i32>>,
    status: Vec<&'static str>,
    message_id: Vec<&'a str>,
    due_at: Vec<Option<DateTime<Utc>>>,
    token: Vec<Option<Uuid>>,
    reason: Vec<Option<&'static str>>,
    error: Vec<Option<&'a str>>,
}

impl<'a> MessageColumns<'a> {
    fn push(
        &mut self,
        request: i32,
        ordinal: usize,
        recipient: &'a RecipientClaim,
        must_wait: bool,
        words: &mut WordsColumns<'a>,
    ) {
        let (status, token, due_at, reason, error) = match &recipient.initial {
            Initial::Claim(_) if must_wait => (Status::Queued, None, None, None, None),
            Initial::Claim(token) => (Status::Sending, Some(*token), None, None, None),
            Initial::Wait | Initial::EndedElsewhere => (Status::Queued, None, None, None, None),
            Initial::NotBefore(at) => (Status::Queued, None, Some(*at), None, None),
            Initial::Fail(reason, error) => (Status::Failed, None, None, Some(*reason), Some(error.as_str())),
            Initial::Expired => (Status::Expired, None, None, None, None),
        };
        self.id.push(recipient.id);
        self.request.push(request);
        self.recipient_hash.push(&recipient.recipient_hash);
        self.ordinal.push(i16::try_from(ordinal).unwrap_or(i16::MAX));
        self.email.push(&recipient.email);
        self.name.push(recipient.name.as_deref());
        self.words.push(recipient.words.as_ref().map(|w| words.number_of(w)));
        self.status.push(status.name());
        self.message_id.push(&recipient.message_id);
        self.due_at.push(due_at);
        self.token.push(token);
        self.reason.push(reason.map(Reason::name));
        self.error.push(error);
    }
}

/// One for each text: recipients of a request share theirs.
#[derive(Default)]
struct WordsColumns<'a> {
    last: Option<&'a Arc<Words>>,
    subject: Vec<&'a str>,
    html: Vec<&'a str>,
    text: Vec<&'a str>,
}

impl<'a> WordsColumns<'a> {
    fn number_of(&mut self, words: &'a Arc<Words>) -> i32 {
        if !self.last.is_some_and(|last| Arc::ptr_eq(last, words)) {
            self.last = Some(words);
            self.subject.push(&words.subject);
            self.html.push(&words.html);
            self.text.push(&words.text);
        }
        number(self.subject.len())
    }
}

/// One for each file of each recipient.
#[derive(Default)]
struct AttachmentColumns<'a> {
    message_id: Vec<Uuid>,
    file_name: Vec<&'a str>,
    content_type: Vec<&'a str>,
    content_id: Vec<Option<&'a str>>,
    size_bytes: Vec<i32>,
    sha256: Vec<&'a [u8]>,
}

impl<'a> AttachmentColumns<'a> {
    fn push(&mut self, message_id: Uuid, attachment: &'a AttachmentRow) {
        self.message_id.push(message_id);
        self.file_name.push(&attachment.file_name);
        self.content_type.push(&attachment.content_type);
        self.content_id.push(attachment.content_id.as_deref());
        self.size_bytes.push(attachment.size_bytes);
        self.sha256.push(&attachment.sha256);
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
