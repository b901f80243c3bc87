//! Outcomes and settlements: what became of a try, and what the broker has confirmed since.
//!
//! Invariant: an outcome is recorded only under the token of the claim it belongs to. What a worker that lost its lease has to
//! tell is merged where it settles an unknown outcome (the relay has the mail after all), and is a line of the timeline
//! where somebody else has taken the row; it never makes a second send.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use super::{
    Store, StoreError, caps,
    gather::Load,
    suppressions::{NewSuppression, suppress_in},
    whole::Whole,
};
use crate::email::{Lane, Phase, Reason, Reply};

/// In the timeline, beside what a worker found out whose row somebody else had taken.
const LATE: &str = "told by a daemon whose lease had run out, when somebody else had taken the mail over";

/// Where a try leaves the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewStatus {
    /// The relay has it.
    Sent {
        /// When the 250 was read.
        at: DateTime<Utc>,
        /// From publish to then.
        latency: Duration,
    },
    /// To be tried again.
    Queued {
        /// When.
        due_in: Duration,
    },
    /// May have been accepted; to be settled by feedback, then sent again.
    Unknown {
        /// When.
        due_in: Duration,
    },
    /// May have been accepted; an operator decides.
    Held,
    /// Over.
    Failed {
        /// Why.
        reason: Reason,
    },
}

impl NewStatus {
    /// Whether it leaves nothing to be settled: no copy, no dead letter.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Sent { .. })
    }
}

/// The outcome of one try, ready to be written.
#[derive(Debug, Clone)]
pub struct OutcomeRow {
    /// The row.
    pub id: Uuid,
    /// Of the claim.
    pub token: Uuid,
    /// Where the row goes.
    pub status: NewStatus,
    /// Whether this try counts.
    pub counted: bool,
    /// `sent`, `deferred`, `rejected` or `unknown`.
    pub kind: &'static str,
    /// Which relay.
    pub relay: String,
    /// The step that decided.
    pub phase: Option<Phase>,
    /// Its words.
    pub reply: Option<Reply>,
    /// For people.
    pub error: Option<String>,
    /// It has a place under its recipient's cap, which it gives back if it failed for good.
    pub has_place: bool,
    /// The relay refused the address for good: it is on the suppression list from the same commit on.
    pub suppression: Option<Box<NewSuppression>>,
}

impl Load for OutcomeRow {}

/// What became of recording an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It is recorded.
    Recorded,
    /// Feedback has said meanwhile that the relay has it; what the try found out is a line of its timeline.
    Resolved,
    /// The row is not ours any more: the lease ran out and somebody else decided.
    LeaseLost,
}

impl Store {
    /// Records the outcome of a try; returns when it is committed.
    ///
    /// # Errors
    /// [`StoreError::Away`]: it is not known whether it was recorded; record it again.
    pub async fn finish(&self, lane: Lane, row: OutcomeRow) -> Result<Finish, StoreError> {
        self.gatherers_of(lane).outcomes.call(row).await
    }

    /// Notes that the broker confirmed retry copy `copy_no` of a request: older copies are duplicates from now on.
    ///
    /// Copies count anew in each generation: a request that was replayed meanwhile hears nothing of this, or its new copy
    /// would be taken for an old one.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn settled_retry(
        &self,
        lane: Lane,
        request_id: Uuid,
        generation: i32,
        copy_no: i32,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "with r as (
                update email_requests set copy_no = greatest(copy_no, $3) where id = $1 and generation <= $2 returning id)
             update email_messages m set settlement = 'done' from r
             where m.request_id = r.id and m.settlement = 'pending'
                and (m.status = 'queued' or m.status = 'unknown' and not m.held)",
            request_id,
            generation,
            copy_no
        )
        .execute(self.pool_of(lane))
        .await?;
        Ok(())
    }

    /// Notes that the broker confirmed the dead letter of a request: nothing is owed any more, unless it was replayed
    /// meanwhile, and owes another one.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn settled_dead(&self, lane: Lane, request_id: Uuid, generation: i32) -> Result<(), StoreError> {
        sqlx::query!(
            "update email_messages m set settlement = 'done' from email_requests r
             where r.id = $1 and r.generation <= $2 and m.request_id = r.id and m.settlement = 'pending'",
            request_id,
            generation
        )
        .execute(self.pool_of(lane))
        .await?;
        Ok(())
    }
}

/// Records a batch of outcomes, and with them whom the relay refused for good, and whose place under a cap is free again; only
/// then it takes more than one statement.
pub(super) async fn finish_batch(pool: &PgPool, batch: &[OutcomeRow]) -> Result<Vec<Finish>, StoreError> {
    let refused: Vec<NewSuppression> = batch.iter().filter_map(|row| row.suppression.as_deref().cloned()).collect();
    let has_failed = |row: &OutcomeRow| row.has_place && matches!(row.status, NewStatus::Failed { .. });
    let failed: Vec<Uuid> = batch.iter().filter(|row| has_failed(row)).map(|row| row.id).collect();
    if refused.is_empty() && failed.is_empty() {
        let mut connection = pool.acquire().await?;
        return record(&mut connection, batch).await;
    }
    let mut whole = Whole::of(pool).await?;
    let mut tx = whole.connection().begin().await?;
    let finished = record(&mut tx, batch).await?;
    if !failed.is_empty() {
        caps::give_back(&mut tx, &failed).await?;
    }
    if !refused.is_empty() {
        // What the relay said of an address is true whoever has the row by now.
        suppress_in(&mut tx, &refused).await?;
    }
    tx.commit().await?;
    whole.end();
    Ok(finished)
}

/// One statement; as in claims, values are picked out of their arrays by number.
async fn record(connection: &mut PgConnection, batch: &[OutcomeRow]) -> Result<Vec<Finish>, StoreError> {
    let mut c = Columns::default();
    let mut order: Vec<&OutcomeRow> = batch.iter().collect();
    order.sort_by_key(|row| row.id);
    for row in order {
        c.push(row);
    }
    let recorded = sqlx::query_scalar!(
        r#"
        with updated as (
            update email_messages m set
                status = o.status,
                attempts = m.attempts + o.counted,
                deferrals = m.deferrals + case when o.status in ('queued', 'unknown') then 1 else 0 end,
                due_at = now() + make_interval(secs => o.due_in),
                held = o.held,
                settlement = o.settlement,
                reason = o.reason,
                error_message = o.error,
                sent_at = o.sent_at,
                updated_at = now()
            from (
                select n, id, ($2::uuid[])[n] as token, ($3::text[])[n] as status,
                    ($4::int[])[n] as counted, ($5::float8[])[n] as due_in, ($6::bool[])[n] as held,
                    ($7::text[])[n] as settlement, ($8::text[])[n] as reason, ($9::timestamptz[])[n] as sent_at,
                    ($17::text[])[n] as error
                from (select id, nr::int as n from unnest($1::uuid[]) with ordinality as k (id, nr)) as k
                -- all of them; what matters is that the planner expects few, and looks each up by its key even in a table
                -- that it believes to be empty
                limit cardinality($1::uuid[])) as o
            where m.id = o.id and (m.status = 'sending' and m.token = o.token
                -- the relay has it, whatever was decided for want of knowing that
                or o.status = 'sent' and m.status in ('queued', 'unknown', 'failed'))
            returning m.id, m.attempts, o.n, o.error
        )
        insert into email_timeline (message_id, kind, attempt, relay, phase, reply_code, reply_text,
            relay_message_id, latency_ms, error)
        select id, ($10::text[])[n], attempts, ($11::text[])[n], ($12::text[])[n], ($13::smallint[])[n], ($14::text[])[n],
            ($15::text[])[n], ($16::bigint[])[n], error
        from updated
        returning message_id
        "#,
        &c.id,
        &c.token,
        &c.status as _,
        &c.counted,
        &c.due_in as _,
        &c.held,
        &c.settlement as _,
        &c.reason as _,
        &c.sent_at as _,
        &c.kind as _,
        &c.relay as _,
        &c.phase as _,
        &c.reply_code as _,
        &c.reply_text as _,
        &c.relay_message_id as _,
        &c.latency_ms as _,
        &c.error as _,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut answers: HashMap<Uuid, Finish> = recorded.into_iter().map(|id| (id, Finish::Recorded)).collect();
    if answers.len() < batch.len() {
        settle_rest(connection, batch, &c, &mut answers).await?;
    }
    Ok(batch.iter().map(|row| answers.get(&row.id).copied().unwrap_or(Finish::LeaseLost)).collect())
}

/// Those that were not in `sending` under our token: either this very outcome was committed before and only its answer was
/// lost, or feedback was faster (in both cases the token is still ours), or somebody else has taken the row.
async fn settle_rest(
    connection: &mut PgConnection,
    batch: &[OutcomeRow],
    c: &Columns<'_>,
    answers: &mut HashMap<Uuid, Finish>,
) -> Result<(), StoreError> {
    let ours = sqlx::query!(
        r#"select m.id, m.status = o.status and (m.status <> 'sent' or exists (
                select from email_timeline t where t.message_id = m.id and t.kind = o.kind
                    and t.relay_message_id is not distinct from o.relay_message_id)) as "recorded!"
           from email_messages m
           join unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
            as o (id, token, status, kind, relay_message_id) on m.id = o.id and m.token = o.token
           where m.status = o.status or m.status in ('sent', 'delivered', 'bounced', 'complaint')"#,
        &c.id,
        &c.token,
        &c.status as _,
        &c.kind as _,
        &c.relay_message_id as _
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in ours {
        answers.entry(row.id).or_insert(if row.recorded { Finish::Recorded } else { Finish::Resolved });
    }
    for row in batch {
        match answers.get(&row.id) {
            Some(Finish::Resolved) => tell_beside(connection, row, None).await?,
            None => tell_beside(connection, row, Some(LATE)).await?,
            Some(Finish::Recorded | Finish::LeaseLost) => {}
        }
    }
    Ok(())
}

/// Somebody else has the row, or knew more, and decides; but what this worker found out, an operator shall see, and later
/// feedback shall find its mail by.
async fn tell_beside(connection: &mut PgConnection, row: &OutcomeRow, remark: Option<&str>) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into email_timeline (message_id, kind, attempt, relay, phase, reply_code, reply_text, relay_message_id,
            latency_ms, error)
         select id, $2, attempts, $3, $4, $5, $6, $7, $8, $9 from email_messages where id = $1",
        row.id,
        row.kind,
        row.relay,
        row.phase.map(Phase::name),
        row.reply.as_ref().and_then(|r| i16::try_from(r.code).ok()),
        row.reply.as_ref().map(|r| r.text.clone()),
        row.reply.as_ref().and_then(Reply::relay_message_id),
        latency_of(&row.status),
        remark.or(row.error.as_deref())
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// From publish to the relay's 250, milliseconds, for what was sent.
fn latency_of(status: &NewStatus) -> Option<i64> {
    match status {
        NewStatus::Sent { latency, .. } => Some(i64::try_from(latency.as_millis()).unwrap_or(i64::MAX)),
        NewStatus::Queued { .. } | NewStatus::Unknown { .. } | NewStatus::Held | NewStatus::Failed { .. } => None,
    }
}

#[derive(Default)]
struct Columns<'a> {
    id: Vec<Uuid>,
    token: Vec<Uuid>,
    status: Vec<&'static str>,
    counted: Vec<i32>,
    due_in: Vec<Option<f64>>,
    held: Vec<bool>,
    settlement: Vec<&'static str>,
    reason: Vec<Option<&'static str>>,
    sent_at: Vec<Option<DateTime<Utc>>>,
    kind: Vec<&'static str>,
    relay: Vec<&'a str>,
    phase: Vec<Option<&'static str>>,
    reply_code: Vec<Option<i16>>,
    reply_text: Vec<Option<&'a str>>,
    relay_message_id: Vec<Option<&'a str>>,
    latency_ms: Vec<Option<i64>>,
    error: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, row: &'a OutcomeRow) {
        let (status, due_in, sent_at, reason) = match &row.status {
            NewStatus::Sent { at, .. } => ("sent", None, Some(*at), None),
            NewStatus::Queued { due_in } => ("queued", Some(*due_in), None, None),
            NewStatus::Unknown { due_in } => ("unknown", Some(*due_in), None, Some(Reason::OutcomeUnknown)),
            NewStatus::Held => ("unknown", None, None, Some(Reason::OutcomeUnknown)),
            NewStatus::Failed { reason } => ("failed", None, None, Some(*reason)),
        };
        let settlement = if sent_at.is_some() { "none" } else { "pending" };
        self.id.push(row.id);
        self.token.push(row.token);
        self.status.push(status);
        self.counted.push(i32::from(row.counted));
        self.due_in.push(due_in.map(|d| d.as_secs_f64()));
        self.held.push(row.status == NewStatus::Held);
        self.settlement.push(settlement);
        self.reason.push(reason.map(Reason::name));
        self.sent_at.push(sent_at);
        self.kind.push(row.kind);
        self.relay.push(&row.relay);
        self.phase.push(row.phase.map(Phase::name));
        self.reply_code.push(row.reply.as_ref().and_then(|r| i16::try_from(r.code).ok()));
        self.reply_text.push(row.reply.as_ref().map(|r| r.text.as_str()));
        self.relay_message_id.push(row.reply.as_ref().and_then(Reply::relay_message_id));
        self.latency_ms.push(latency_of(&row.status));
        self.error.push(row.error.as_deref());
    }
}
