//! What the database says: rows without an outcome at a cut, how much is still open, and everything in the end.

use std::time::Duration;

use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use crate::ledger::{CutRow, Letter, Row};

/// A server that was just started may need so long to answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Before it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Rows without an outcome, right now.
pub async fn without_outcome(pool: &PgPool) -> Vec<CutRow> {
    let rows: Vec<(Uuid, String, String, Option<Uuid>, i64)> = patiently(|| {
        sqlx::query_as(
            "select id, recipient_email, status, token, (extract(epoch from updated_at) * 1000)::bigint
             from email_messages where status = 'sending' or status = 'unknown' and not held",
        )
        .fetch_all(pool)
    })
    .await;
    let row = |(row, recipient, status, token, touched_ms)| CutRow { row, recipient, status, token, touched_ms };
    rows.into_iter().map(row).collect()
}

/// What is not over yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Open {
    /// Requests that neither a row nor a dead letter knows.
    pub unknown: i64,
    /// Rows that wait for something.
    pub waiting: i64,
    /// Requests whose dead letter is not archived.
    pub unlettered: i64,
}

impl Open {
    /// Whether everything is over.
    pub fn is_nothing(self) -> bool {
        self == Self { unknown: 0, waiting: 0, unlettered: 0 }
    }
}

/// How much of these requests is not over yet.
pub async fn open(pool: &PgPool, requests: &[Uuid]) -> Open {
    patiently(|| {
        sqlx::query_as(
            "select
                (select count(*) from unnest($1::uuid[]) as a (id)
                 where not exists (select 1 from email_messages m where m.request_id = a.id)
                   and not exists (select 1 from dead_letters d where d.request_id = a.id)) as unknown,
                (select count(*) from email_messages
                 where status in ('queued', 'sending') or status = 'unknown' and not held or settlement = 'pending')
                    as waiting,
                (select count(distinct m.request_id) from email_messages m
                 where (m.status = 'failed' or m.held)
                   and not exists (select 1 from dead_letters d where d.request_id = m.request_id)) as unlettered",
        )
        .bind(requests)
        .fetch_one(pool)
    })
    .await
}

/// All rows, with what their timelines tell.
pub async fn rows(pool: &PgPool) -> Vec<Row> {
    #[derive(FromRow)]
    struct Found {
        id: Uuid,
        request_id: Uuid,
        recipient_email: String,
        status: String,
        held: bool,
        settlement: String,
        reason: Option<String>,
        message_id: String,
        lines: i64,
        sent_lines: i64,
        unknown_lines: i64,
    }
    let found: Vec<Found> = patiently(|| {
        sqlx::query_as(
            "select m.id, m.request_id, m.recipient_email, m.status, m.held, m.settlement, m.reason, m.message_id,
                count(t.id) as lines, count(t.id) filter (where t.kind = 'sent') as sent_lines,
                count(t.id) filter (where t.kind = 'unknown') as unknown_lines
             from email_messages m left join email_timeline t on t.message_id = m.id group by m.id",
        )
        .fetch_all(pool)
    })
    .await;
    let row = |f: Found| Row {
        id: f.id,
        request: f.request_id,
        recipient: f.recipient_email,
        status: f.status,
        held: f.held,
        settlement: f.settlement,
        reason: f.reason,
        message_id: f.message_id,
        lines: f.lines,
        sent_lines: f.sent_lines,
        unknown_lines: f.unknown_lines,
    };
    found.into_iter().map(row).collect()
}

/// All archived dead letters.
pub async fn letters(pool: &PgPool) -> Vec<Letter> {
    let letters: Vec<(Option<Uuid>, String)> =
        patiently(|| sqlx::query_as("select request_id, reason from dead_letters").fetch_all(pool)).await;
    letters.into_iter().map(|(request, reason)| Letter { request, reason }).collect()
}

/// A row's timeline, in words.
pub async fn history(pool: &PgPool, request: Uuid, recipient: &str) -> Vec<String> {
    patiently(|| {
        sqlx::query_scalar(
            "select to_char(t.at, 'HH24:MI:SS.MS') || ' ' || t.kind || ' attempt ' || t.attempt
                || coalesce(' at ' || t.phase, '') || coalesce(' ' || t.reply_code, '') || coalesce(' ' || t.error, '')
             from email_timeline t join email_messages m on m.id = t.message_id
             where m.request_id = $1 and m.recipient_email = $2 order by t.id",
        )
        .bind(request)
        .bind(recipient)
        .fetch_all(pool)
    })
    .await
}

/// Asks until there is an answer.
async fn patiently<T, Fut: Future<Output = Result<T, sqlx::Error>>>(ask: impl Fn() -> Fut) -> T {
    let asking = async {
        loop {
            if let Ok(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(ANSWER_MAX, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("the database does not answer: {:?}", ask().await.err()),
    }
}
