//! Applies what was told to the mails it is about: a batch of receipts in one transaction.
//!
//! Invariant: a receipt is marked as matched in the transaction that changes its mail's row. Where that row stands is the join of
//! where it stood and what the event says, so it makes no difference which daemon applies which receipt when.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    email::{
        EmailAddress, Status,
        feedback::{Bounce, FeedbackEvent, FeedbackKind, Standing},
    },
    store::{
        Store, StoreError,
        claim::status_of,
        suppressions::{NewSuppression, suppress_in},
        whole::Whole,
        within_limit,
    },
};

/// A daemon that vanishes with mails locked must not keep them from the others.
const BEGIN: &str = "begin; set local idle_in_transaction_session_timeout = '15s'; set local lock_timeout = '5s'";

/// Receipts that were taken out to be applied; given back untouched when dropped.
pub struct FeedbackBatch {
    whole: Whole,
    /// What was told, the longest waiting first.
    pub receipts: Vec<TakenReceipt>,
}

/// One of them.
#[derive(Debug)]
pub struct TakenReceipt {
    /// The row.
    pub id: i64,
    /// How often its mail was looked for before.
    looks: i32,
    /// As it came.
    pub body: String,
    /// When the provider published it.
    pub published_at: DateTime<Utc>,
}

/// What applying a batch came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Events by kind that found their mail, or are about none.
    pub matched: Vec<&'static str>,
    /// Events whose mail is not known yet, or never was.
    pub unmatched: usize,
    /// Mails whose outcome was not known before.
    pub resolved: usize,
    /// Addresses that get no more mail.
    pub suppressed: usize,
}

/// A row that an event may be about, under a lock.
struct Row {
    id: Uuid,
    request_id: Uuid,
    recipient_hash: Vec<u8>,
    status: Status,
    attempts: i32,
    /// Nothing once anonymised. Personal.
    address: Option<String>,
    standing: Standing,
    sent_at: Option<DateTime<Utc>>,
    is_changed: bool,
    is_resolved: bool,
}

/// A line of the timeline.
struct Line {
    message_id: Uuid,
    at: DateTime<Utc>,
    kind: &'static str,
    attempt: i32,
    words: Option<String>,
    reason: Option<String>,
}

/// What all events of a batch do.
#[derive(Default)]
struct Effects {
    lines: Vec<Line>,
    /// Who gets no more mail, and when the reason for it happened.
    suppressed: Vec<(NewSuppression, DateTime<Utc>)>,
}

impl Store {
    /// Takes what is to be looked at now, at most `max`; nothing: there is none.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn take_feedback(&self, max: i64) -> Result<Option<FeedbackBatch>, StoreError> {
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let connection = whole.connection();
            sqlx::raw_sql(BEGIN).execute(&mut **connection).await?;
            let receipts = take(connection, max).await?;
            if receipts.is_empty() {
                sqlx::raw_sql("rollback").execute(&mut **connection).await?;
                whole.end();
                return Ok(None);
            }
            Ok(Some(FeedbackBatch { whole, receipts }))
        })
        .await
    }

    /// Applies what the receipts of a batch turned out to say, in their order.
    ///
    /// # Errors
    /// When the database is away: everything stays as it was, and can be taken again.
    pub async fn apply_feedback(&self, batch: FeedbackBatch, events: &[FeedbackEvent]) -> Result<Applied, StoreError> {
        within_limit(self.apply(batch, events)).await
    }

    async fn apply(&self, batch: FeedbackBatch, events: &[FeedbackEvent]) -> Result<Applied, StoreError> {
        let FeedbackBatch { mut whole, receipts } = batch;
        let tx = whole.connection();
        let anchors = anchors(tx, events).await?;
        let mut rows = lock_rows(tx, events, &anchors).await?;
        let mut effects = Effects::default();
        let mut applied = Applied::default();
        let mut fates = Vec::with_capacity(events.len());
        for ((event, receipt), anchor) in events.iter().zip(&receipts).zip(&anchors) {
            let mut has_row = false;
            let mut is_anonymised = false;
            let numbers = self.rows_of(event, *anchor, &rows);
            for (number, told) in numbers {
                let row = &mut rows[number];
                has_row = true;
                is_anonymised |= row.address.is_none();
                let words = told.and_then(|n| event.recipients[n].diagnostic.clone());
                row.tell(event, words, &mut effects.lines);
                row.suppress(event, &mut effects.suppressed);
            }
            // Told once: a receipt that waits for its mail is looked at again and again.
            if receipt.looks == 0 {
                self.suppress_told(event, is_anonymised, &mut effects.suppressed);
            }
            // What is about no mail at all waits for none.
            let is_matched = has_row || event.kind == FeedbackKind::Other;
            if is_matched {
                applied.matched.push(event.kind.name());
            } else {
                applied.unmatched += 1;
            }
            fates.push((is_matched, is_anonymised));
        }
        applied.resolved = rows.iter().filter(|row| row.is_resolved).count();
        write_rows(tx, &rows).await?;
        write_lines(tx, &effects.lines).await?;
        let (suppressed, added) = write_suppressed(tx, effects.suppressed).await?;
        applied.suppressed = added;
        write_receipts(tx, &receipts, events, &fates).await?;
        sqlx::raw_sql("commit").execute(&mut **tx).await?;
        whole.end();
        self.note_suppressed(&suppressed);
        Ok(applied)
    }

    /// The rows that an event is about, each with the number of the recipient as the event names it.
    fn rows_of(&self, event: &FeedbackEvent, anchor: Option<Uuid>, rows: &[Row]) -> Vec<(usize, Option<usize>)> {
        let Some(anchor) = anchor.and_then(|id| rows.iter().position(|row| row.id == id)) else { return Vec::new() };
        if event.recipients.len() <= 1 {
            // Each mail has one recipient, even where the far server knows the person by another address.
            return vec![(anchor, event.recipients.first().map(|_| 0))];
        }
        let request_id = rows[anchor].request_id;
        let of_request =
            |hash: [u8; 32]| rows.iter().position(|row| row.request_id == request_id && row.recipient_hash == hash);
        let told = event.recipients.iter().enumerate();
        told.filter_map(|(n, told)| Some((of_request(self.hash_of(&told.address)?)?, Some(n)))).collect()
    }

    fn hash_of(&self, address: &str) -> Option<[u8; 32]> {
        EmailAddress::parse(address).ok().map(|address| self.address_hash(&address.key()))
    }

    /// Whoever complains, or is not there, gets nothing more: also when the mail is not known any more.
    fn suppress_told(
        &self,
        event: &FeedbackEvent,
        is_anonymised: bool,
        suppressed: &mut Vec<(NewSuppression, DateTime<Utc>)>,
    ) {
        for told in &event.recipients {
            let Ok(address) = EmailAddress::parse(&told.address) else { continue };
            let hash = self.address_hash(&address.key());
            // Who was forgotten stays forgotten; the hash is enough to keep mail away.
            let address = (!is_anonymised).then(|| address.as_str().to_owned());
            suppressed.extend(suppression(event, hash, address));
        }
    }
}

/// What this event puts on the list for an address, and since when there is a reason.
fn suppression(
    event: &FeedbackEvent,
    hash: [u8; 32],
    address: Option<String>,
) -> Option<(NewSuppression, DateTime<Utc>)> {
    let reason = event.kind.suppresses()?;
    let note = reason_of(&event.kind);
    Some((NewSuppression { note, ..NewSuppression::new(hash, address, reason, "ses".to_owned()) }, event.occurred_at))
}

impl Row {
    /// The address that we sent it to, whatever the far server calls it.
    fn suppress(&self, event: &FeedbackEvent, suppressed: &mut Vec<(NewSuppression, DateTime<Utc>)>) {
        if let Ok(hash) = <[u8; 32]>::try_from(self.recipient_hash.as_slice()) {
            suppressed.extend(suppression(event, hash, self.address.clone()));
        }
    }

    fn tell(&mut self, event: &FeedbackEvent, words: Option<String>, lines: &mut Vec<Line>) {
        if matches!(event.kind, FeedbackKind::Other | FeedbackKind::Unreadable) {
            return;
        }
        let before = (self.status, self.standing.clone());
        self.standing = std::mem::take(&mut self.standing).join(Standing::of(&event.kind, event.occurred_at));
        // Whatever was decided for want of knowing it: the provider has the mail.
        let was_known = matches!(self.status, Status::Sent | Status::Delivered | Status::Bounced | Status::Complaint);
        self.is_resolved |= !was_known;
        if self.sent_at.is_none() {
            self.sent_at = event.accepted_at.or(Some(event.occurred_at));
        }
        let attempt = event.mark.map_or(self.attempts.max(1), |mark| mark.attempt);
        if !was_known {
            self.attempts = self.attempts.max(attempt);
        }
        self.status = self.standing.status();
        self.is_changed |= (self.status, &self.standing) != (before.0, &before.1);
        lines.push(Line {
            message_id: self.id,
            at: event.occurred_at,
            kind: event.kind.name(),
            attempt,
            words: words.filter(|_| self.address.is_some()),
            reason: reason_of(&event.kind),
        });
    }
}

/// What a line says beside its kind.
fn reason_of(kind: &FeedbackKind) -> Option<String> {
    match kind {
        FeedbackKind::Bounced { bounce, .. } => Some(format!("{}: {}", bounce_type(bounce.permanent), bounce.subtype)),
        FeedbackKind::Complained { feedback_type } => Some(feedback_type.clone()),
        FeedbackKind::Delayed { cause } => Some(cause.clone()),
        FeedbackKind::Accepted
        | FeedbackKind::Delivered
        | FeedbackKind::Opened
        | FeedbackKind::Clicked
        | FeedbackKind::Subscription
        | FeedbackKind::Other
        | FeedbackKind::Unreadable => None,
    }
}

const fn bounce_type(permanent: bool) -> &'static str {
    if permanent { "permanent" } else { "temporary" }
}

/// The row that each event is about: by our own mark, or else by the relay's id.
async fn anchors(tx: &mut PgConnection, events: &[FeedbackEvent]) -> Result<Vec<Option<Uuid>>, StoreError> {
    let marked: Vec<Uuid> = events.iter().filter_map(|event| Some(event.mark?.row_id)).collect();
    let known =
        sqlx::query_scalar!("select id from email_messages where id = any($1)", &marked).fetch_all(&mut *tx).await?;
    let known: std::collections::HashSet<Uuid> = known.into_iter().collect();
    let by_mark = |event: &FeedbackEvent| event.mark.map(|mark| mark.row_id).filter(|id| known.contains(id));
    let relay_ids: Vec<&str> = events
        .iter()
        .filter(|event| by_mark(event).is_none())
        .filter_map(|event| event.relay_message_id.as_deref())
        .collect();
    let mut by_relay_id: HashMap<String, Uuid> = HashMap::new();
    if !relay_ids.is_empty() {
        let lines = sqlx::query!(
            "select relay_message_id as \"relay_message_id!\", message_id from email_timeline
             where relay_message_id = any($1) order by id",
            &relay_ids as _
        )
        .fetch_all(&mut *tx)
        .await?;
        by_relay_id.extend(lines.into_iter().map(|line| (line.relay_message_id, line.message_id)));
    }
    let by_relay = |event: &FeedbackEvent| by_relay_id.get(event.relay_message_id.as_deref()?).copied();
    Ok(events.iter().map(|event| by_mark(event).or_else(|| by_relay(event))).collect())
}

/// Locks the rows that the events may be about, in the order of their ids as everybody does.
async fn lock_rows(
    tx: &mut PgConnection,
    events: &[FeedbackEvent],
    anchors: &[Option<Uuid>],
) -> Result<Vec<Row>, StoreError> {
    let ids: Vec<Uuid> = anchors.iter().flatten().copied().collect();
    // Each mail has one recipient; an event that names more is looked up among all of the request.
    let of_many = events.iter().zip(anchors).filter(|(event, _)| event.recipients.len() > 1);
    let wide: Vec<Uuid> = of_many.filter_map(|(_, anchor)| *anchor).collect();
    let rows = sqlx::query!(
        r#"select id, request_id, recipient_hash, status, attempts, recipient_email, delivered_at,
            bounce_type, bounce_subtype, bounced_at, complained_at, complaint_type, sent_at
           from email_messages
           where id = any($1) or request_id = any(array(select request_id from email_messages where id = any($2)))
           order by id for no key update"#,
        &ids,
        &wide
    )
    .fetch_all(tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            let permanent = row.bounce_type.as_deref() == Some("permanent");
            let subtype = row.bounce_subtype.unwrap_or_default();
            Ok(Row {
                id: row.id,
                request_id: row.request_id,
                recipient_hash: row.recipient_hash,
                status: status_of(&row.status)?,
                attempts: row.attempts,
                address: row.recipient_email,
                standing: Standing {
                    delivered_at: row.delivered_at,
                    bounce: row.bounced_at.map(|at| (Bounce { permanent, subtype }, at)),
                    complaint: row.complained_at.map(|at| (at, row.complaint_type.unwrap_or_default())),
                },
                sent_at: row.sent_at,
                is_changed: false,
                is_resolved: false,
            })
        })
        .collect()
}

async fn write_rows(tx: &mut PgConnection, rows: &[Row]) -> Result<(), StoreError> {
    let changed: Vec<&Row> = rows.iter().filter(|row| row.is_changed).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let bounce = |row: &Row| row.standing.bounce.clone();
    let complaint = |row: &Row| row.standing.complaint.clone();
    sqlx::query!(
        // What was still owed for a mail that turned out to be sent is owed no more.
        "update email_messages m set status = f.status, attempts = f.attempts, sent_at = f.sent_at,
            delivered_at = f.delivered_at, bounce_type = f.bounce_type, bounce_subtype = f.bounce_subtype,
            bounced_at = f.bounced_at, complained_at = f.complained_at, complaint_type = f.complaint_type,
            due_at = null, held = false, settlement = case when f.resolved then 'none' else m.settlement end,
            reason = case when f.resolved then null else m.reason end,
            error_message = case when f.resolved then null else m.error_message end, updated_at = now()
         from unnest($1::uuid[], $2::text[], $3::int[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[],
            $8::timestamptz[], $9::timestamptz[], $10::text[], $11::bool[])
            as f (id, status, attempts, sent_at, delivered_at, bounce_type, bounce_subtype, bounced_at, complained_at,
                complaint_type, resolved)
         where m.id = f.id",
        &changed.iter().map(|row| row.id).collect::<Vec<_>>(),
        &changed.iter().map(|row| row.status.name()).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| row.attempts).collect::<Vec<_>>(),
        &changed.iter().map(|row| row.sent_at).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| row.standing.delivered_at).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| bounce(row).map(|(b, _)| bounce_type(b.permanent))).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| bounce(row).map(|(b, _)| b.subtype)).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| bounce(row).map(|(_, at)| at)).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| complaint(row).map(|(at, _)| at)).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| complaint(row).map(|(_, kind)| kind)).collect::<Vec<_>>() as _,
        &changed.iter().map(|row| row.is_resolved).collect::<Vec<_>>(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Tells each event once: with both of SES's formats set up, and with repeats, the same comes under several ids.
async fn write_lines(tx: &mut PgConnection, lines: &[Line]) -> Result<(), StoreError> {
    if lines.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into email_timeline (message_id, at, kind, attempt, reply_text, error)
         select distinct on (l.message_id, l.kind, l.at) l.message_id, l.at, l.kind, l.attempt, l.words, l.reason
         from unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::int[], $5::text[], $6::text[])
            as l (message_id, at, kind, attempt, words, reason)
         where not exists (
            select from email_timeline t where t.message_id = l.message_id and t.kind = l.kind and t.at = l.at)",
        &lines.iter().map(|line| line.message_id).collect::<Vec<_>>(),
        &lines.iter().map(|line| line.at).collect::<Vec<_>>(),
        &lines.iter().map(|line| line.kind).collect::<Vec<_>>() as _,
        &lines.iter().map(|line| line.attempt).collect::<Vec<_>>(),
        &lines.iter().map(|line| line.words.as_deref()).collect::<Vec<_>>() as _,
        &lines.iter().map(|line| line.reason.as_deref()).collect::<Vec<_>>() as _,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Answers who may get no transactional mail by it, and how many entries are new. What an operator lifted since it happened
/// stays lifted, however often it is told.
async fn write_suppressed(
    tx: &mut PgConnection,
    suppressed: Vec<(NewSuppression, DateTime<Utc>)>,
) -> Result<(Vec<[u8; 32]>, usize), StoreError> {
    if suppressed.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let lifted = sqlx::query!(
        "select address_hash, reason, max(at) as \"at!\" from suppression_changes
         where address_hash = any($1) and change = 'lifted' group by address_hash, reason",
        &suppressed.iter().map(|(entry, _)| entry.address_hash.to_vec()).collect::<Vec<_>>()
    )
    .fetch_all(&mut *tx)
    .await?;
    let is_lifted = |entry: &NewSuppression, at: DateTime<Utc>| {
        lifted.iter().any(|l| l.address_hash == entry.address_hash && l.reason == entry.reason.name() && l.at >= at)
    };
    let entries: Vec<_> =
        suppressed.into_iter().filter(|(entry, at)| !is_lifted(entry, *at)).map(|(entry, _)| entry).collect();
    let written = suppress_in(tx, &entries).await?;
    let hashes = entries.iter().filter(|entry| entry.reason.stops_transactional()).map(|entry| entry.address_hash);
    Ok((hashes.collect(), written.added))
}

/// What is new first, then what was looked for in vain and is due again.
async fn take(connection: &mut PgConnection, max: i64) -> Result<Vec<TakenReceipt>, StoreError> {
    let mut receipts = sqlx::query_as!(
        TakenReceipt,
        "select id, looks, coalesce(body, '') as \"body!\", published_at from webhook_events
         where looks = 0 and next_look_at is not null order by id limit $1 for update skip locked",
        max
    )
    .fetch_all(&mut *connection)
    .await?;
    let left = max - i64::try_from(receipts.len()).unwrap_or(max);
    if left > 0 {
        let again = sqlx::query_as!(
            TakenReceipt,
            "select id, looks, coalesce(body, '') as \"body!\", published_at from webhook_events
             where looks > 0 and next_look_at is not null and next_look_at <= now() order by next_look_at limit $1
             for update skip locked",
            left
        )
        .fetch_all(connection)
        .await?;
        receipts.extend(again);
    }
    Ok(receipts)
}

/// What was matched is done; the rest is looked at again, ever more seldom.
async fn write_receipts(
    tx: &mut PgConnection,
    receipts: &[TakenReceipt],
    events: &[FeedbackEvent],
    fates: &[(bool, bool)],
) -> Result<(), StoreError> {
    sqlx::query!(
        "update webhook_events w set event_type = e.event_type, relay_message_id = e.relay_message_id,
            occurred_at = e.occurred_at, looks = w.looks + 1, has_marks = e.has_marks,
            matched_at = case when e.matched then now() end,
            body = case when e.anonymised then null else w.body end,
            next_look_at = case when not e.matched and w.received_at > now() - interval '3 days'
                    and not (e.is_foreign and w.looks > 0)
                then now() + least(interval '1 second' * (2 ^ least(w.looks, 12)), interval '1 hour') end
         from unnest($1::bigint[], $2::text[], $3::text[], $4::timestamptz[], $5::bool[], $6::bool[], $7::bool[],
                $8::bool[])
            as e (id, event_type, relay_message_id, occurred_at, matched, anonymised, has_marks, is_foreign)
         where w.id = e.id",
        &receipts.iter().map(|receipt| receipt.id).collect::<Vec<_>>(),
        &events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>() as _,
        &events.iter().map(|event| cut(event.relay_message_id.as_deref())).collect::<Vec<_>>() as _,
        &events.iter().map(|event| event.occurred_at).collect::<Vec<_>>(),
        &fates.iter().map(|(matched, _)| *matched).collect::<Vec<_>>(),
        &fates.iter().map(|(_, anonymised)| *anonymised).collect::<Vec<_>>(),
        &events.iter().map(|event| event.has_marks).collect::<Vec<_>>(),
        &events.iter().map(is_foreign).collect::<Vec<_>>(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether it can hardly be about a mail of ours: it returns marks, and ours is not among them, or it names no mail. Whoever shares
/// SES's identity with others gets theirs as well, and must not be kept busy by them.
const fn is_foreign(event: &FeedbackEvent) -> bool {
    event.mark.is_none() && (event.has_marks || event.relay_message_id.is_none())
}

/// What fits the column; no provider's id is longer.
fn cut(id: Option<&str>) -> Option<String> {
    id.map(|id| id.chars().filter(|c| !c.is_control()).take(255).collect())
}
