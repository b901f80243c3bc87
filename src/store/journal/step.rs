//! One step of each of many mails: what it changes in the row, decided here, and written for all of them at once.

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{Ended, Entry, EntryRequest, progress::Progress};
use crate::{
    email::Status,
    store::{StoreError, caps},
};

/// What a row says before the step.
struct Row {
    id: Uuid,
    status: Status,
    held: bool,
    deferrals: i32,
    token: Option<Uuid>,
    worker_id: Option<Uuid>,
    /// Whether the daemon that has it on the wire is alive.
    is_lease_live: bool,
    /// Whether this very line is in the timeline.
    has_line: bool,
}

/// What a step changes.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// Nothing: the row is as far, and knows it.
    Nothing,
    /// It goes out under this token.
    Sending,
    /// The copy or letter that the row owed is with the broker.
    Settled,
    /// A line, and nothing else: the row is further, or somebody else decides.
    Told,
    /// A line, and where the row goes.
    Ended,
}

/// `was_reopened`: a replay has overtaken this entry, so that it only adds a line.
fn change(entry: &Entry, row: &Row, was_reopened: bool) -> Change {
    let (there, here) = (entry.progress(), Progress::of_row(row.status, row.held, row.deferrals));
    let is_own = row.worker_id == Some(entry.worker_id);
    // Somebody else has it on the wire: that one decides, but for the relay's yes.
    let is_busy = row.status == Status::Sending && row.is_lease_live && !is_own && row.token != Some(entry.token);
    let is_further = !was_reopened && (there == Progress::Over || !is_busy) && there > here;
    let Some((ended, new_status)) = entry.ended() else {
        // At the same place it is the same try of the same daemon: under the token that it really went out with.
        let is_same_try = !was_reopened && is_own && there == here && row.status == Status::Sending;
        return if is_further || is_same_try { Change::Sending } else { Change::Nothing };
    };
    // What feedback has settled meanwhile may still lack the relay's own words, and the id that later feedback is found by.
    let is_told = row.status == new_status || row.has_line;
    if !was_reopened && there == here && row.token == Some(entry.token) && is_told {
        // Told once before, when the copy or letter was still owed; or the row knew it all along.
        return if ended.is_settled { Change::Settled } else { Change::Nothing };
    }
    if is_further { Change::Ended } else { Change::Told }
}

/// Takes one step of each of these mails, no two of the same one.
pub(super) async fn steps(
    tx: &mut PgConnection,
    entries: &[&Entry],
    was_reopened: impl Fn(&EntryRequest) -> bool,
) -> Result<(), StoreError> {
    let rows = rows_of(tx, entries).await?;
    let (mut sending, mut settled, mut lines, mut endings, mut stopped) = (vec![], vec![], vec![], vec![], vec![]);
    for (place, entry) in entries.iter().enumerate() {
        let row = rows.get(&place).ok_or(sqlx::Error::RowNotFound)?;
        let change = change(entry, row, was_reopened(&entry.request));
        match change {
            Change::Nothing => {}
            Change::Sending => {
                let (token, worker_id) = (entry.token, entry.worker_id);
                sending.push(Sending { id: row.id, token, worker_id, round: entry.round });
            }
            Change::Settled => settled.push(row.id),
            Change::Told | Change::Ended => {
                let Some((ended, new_status)) = entry.ended() else { continue };
                lines.push(Line::new(row.id, entry, ended));
                if change == Change::Ended {
                    endings.push(Ending::new(row.id, entry, ended, new_status));
                    if matches!(new_status, Status::Failed | Status::Suppressed | Status::Expired) {
                        stopped.push(row.id);
                    }
                }
            }
        }
    }
    begin(tx, &sending).await?;
    settle(tx, &settled).await?;
    end(tx, &endings).await?;
    tell(tx, &lines).await?;
    if !stopped.is_empty() {
        // Claimed with the database, under a cap, and ended without it.
        caps::give_back(tx, &stopped).await?;
    }
    Ok(())
}

/// Whose row is looked for.
#[derive(Serialize)]
struct Wanted<'a> {
    place: usize,
    request_id: Uuid,
    hash: &'a str,
    at: DateTime<Utc>,
    kind: Option<&'a str>,
}

/// The rows of these entries by their places, locked.
async fn rows_of(tx: &mut PgConnection, entries: &[&Entry]) -> Result<HashMap<usize, Row>, StoreError> {
    let wanted = entries.iter().enumerate().map(|(place, entry)| Wanted {
        place,
        request_id: entry.request.id,
        hash: &entry.recipient_hash,
        at: stored_time(entry.at),
        kind: entry.ended().map(|(ended, _)| ended.kind.as_str()),
    });
    let rows = sqlx::query!(
        r#"select s.place as "place!", m.id, m.status, m.held, m.deferrals, m.token, m.worker_id,
            coalesce(w.lease_until > now(), false) as "is_lease_live!",
            exists (select from email_timeline t where t.message_id = m.id and t.at = s.at and t.kind = s.kind)
                as "has_line!"
           from jsonb_to_recordset($1) as s (place bigint, request_id uuid, hash text, at timestamptz, kind text)
           join email_messages m on m.request_id = s.request_id and m.recipient_hash = decode(s.hash, 'hex')
           left join email_workers w on w.id = m.worker_id
           order by m.id for update of m"#,
        Json(wanted.collect::<Vec<_>>()) as _
    )
    .fetch_all(tx)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let place = usize::try_from(row.place).unwrap_or(usize::MAX);
            let row = Row {
                id: row.id,
                status: Status::from_name(&row.status).unwrap_or(Status::Sent),
                held: row.held,
                deferrals: row.deferrals,
                token: row.token,
                worker_id: row.worker_id,
                is_lease_live: row.is_lease_live,
                has_line: row.has_line,
            };
            (place, row)
        })
        .collect())
}

#[derive(Serialize)]
struct Sending {
    id: Uuid,
    token: Uuid,
    worker_id: Uuid,
    round: i32,
}

async fn begin(tx: &mut PgConnection, sending: &[Sending]) -> Result<(), StoreError> {
    if sending.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "update email_messages m set status = 'sending', token = s.token, worker_id = s.worker_id, due_at = null,
            settlement = 'none', held = false, deferrals = s.round, updated_at = now()
         from jsonb_to_recordset($1) as s (id uuid, token uuid, worker_id uuid, round int) where m.id = s.id",
        Json(sending) as _
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn settle(tx: &mut PgConnection, settled: &[Uuid]) -> Result<(), StoreError> {
    if settled.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "update email_messages set settlement = 'done' where id = any($1) and settlement = 'pending'",
        settled
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Where a row goes.
#[derive(Serialize)]
struct Ending<'a> {
    id: Uuid,
    status: &'static str,
    attempts: i32,
    deferrals: i32,
    held: bool,
    token: Uuid,
    worker_id: Uuid,
    at: DateTime<Utc>,
    due_in: Option<f64>,
    settlement: &'static str,
    reason: Option<&'a str>,
    error: Option<&'a str>,
    sent_at: Option<DateTime<Utc>>,
}

impl<'a> Ending<'a> {
    fn new(id: Uuid, entry: &Entry, ended: &'a Ended, new_status: Status) -> Self {
        Self {
            id,
            status: new_status.name(),
            attempts: ended.attempts,
            deferrals: entry.round + i32::from(matches!(new_status, Status::Queued | Status::Unknown)),
            held: ended.held,
            token: entry.token,
            worker_id: entry.worker_id,
            at: entry.at,
            due_in: ended.due_in,
            settlement: match new_status {
                Status::Queued | Status::Unknown | Status::Failed if ended.is_settled => "done",
                Status::Queued | Status::Unknown | Status::Failed => "pending",
                _ => "none",
            },
            reason: ended.reason.as_deref(),
            error: ended.error.as_deref(),
            sent_at: ended.sent_at,
        }
    }
}

async fn end(tx: &mut PgConnection, endings: &[Ending<'_>]) -> Result<(), StoreError> {
    if endings.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "update email_messages m set status = s.status, attempts = s.attempts, deferrals = s.deferrals, held = s.held,
            token = s.token, worker_id = s.worker_id, due_at = s.at + make_interval(secs => s.due_in),
            settlement = s.settlement, reason = s.reason, error_message = s.error, sent_at = s.sent_at,
            updated_at = now()
         from jsonb_to_recordset($1) as s (id uuid, status text, attempts int, deferrals int, held bool, token uuid,
            worker_id uuid, at timestamptz, due_in float8, settlement text, reason text, error text, sent_at timestamptz)
         where m.id = s.id",
        Json(endings) as _
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// What an operator reads.
#[derive(Serialize)]
struct Line<'a> {
    id: Uuid,
    at: DateTime<Utc>,
    kind: &'a str,
    attempt: i32,
    latency_ms: Option<i64>,
    relay: &'a str,
    phase: Option<&'a str>,
    reply_code: Option<i16>,
    reply_text: Option<&'a str>,
    relay_message_id: Option<&'a str>,
    error: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn new(id: Uuid, entry: &Entry, ended: &'a Ended) -> Self {
        Self {
            id,
            at: stored_time(entry.at),
            kind: &ended.kind,
            attempt: ended.attempts,
            latency_ms: ended.latency_ms,
            relay: &ended.relay,
            phase: ended.phase.as_deref(),
            reply_code: ended.reply_code,
            reply_text: ended.reply_text.as_deref(),
            relay_message_id: ended.relay_message_id.as_deref(),
            error: ended.error.as_deref(),
        }
    }
}

async fn tell(tx: &mut PgConnection, lines: &[Line<'_>]) -> Result<(), StoreError> {
    if lines.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into email_timeline (message_id, at, kind, attempt, latency_ms, relay, phase, reply_code, reply_text,
            relay_message_id, error)
         select id, at, kind, attempt, latency_ms, relay, phase, reply_code, reply_text, relay_message_id, error
         from jsonb_to_recordset($1) as s (id uuid, at timestamptz, kind text, attempt int, latency_ms bigint, relay text,
            phase text, reply_code smallint, reply_text text, relay_message_id text, error text)",
        Json(lines) as _
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// As exact as PostgreSQL keeps it: what is compared must not be rounded on the way.
fn stored_time(at: DateTime<Utc>) -> DateTime<Utc> {
    at.trunc_subsecs(6)
}
