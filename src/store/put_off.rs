//! Mails that cannot go yet because an attachment is not at hand: put off, or given up, without having been claimed.
//!
//! Invariant: only a row that waits (`queued`, and due) is touched, under a lock: what somebody else has on the wire, or what
//! may have been accepted already, keeps its state.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Store, StoreError, limit_of, whole::Whole, within};
use crate::email::{Lane, Reason};

/// What becomes of a mail that is put off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutOff {
    /// It is looked at again after this long.
    Again(Duration),
    /// It is given up.
    Failed(Reason),
}

/// One mail that was put off.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Whose.
    pub recipient_hash: Vec<u8>,
    /// SMTP attempts that counted.
    pub attempts: i32,
    /// How often it had been put off before.
    pub deferrals: i32,
    /// What was decided.
    pub verdict: PutOff,
}

impl Store {
    /// Puts those of a request's mails off that wait and are due; `decide` is told how often each was tried and put off.
    /// Those that are not in the answer are somebody else's by now.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn put_off(
        &self,
        lane: Lane,
        request: Uuid,
        recipients: &[Vec<u8>],
        error: &str,
        decide: impl Fn(i32) -> PutOff,
    ) -> Result<Vec<Waiting>, StoreError> {
        within(limit_of(lane), async {
            let mut whole = Whole::of(self.pool_of(lane)).await?;
            let mut tx = whole.connection().begin().await?;
            let rows = sqlx::query!(
                "select id, recipient_hash, attempts, deferrals from email_messages
                 where request_id = $1 and recipient_hash = any($2) and status = 'queued'
                    and (due_at is null or due_at <= now()) order by id for update",
                request,
                recipients
            )
            .fetch_all(&mut *tx)
            .await?;
            let mut waiting = Vec::with_capacity(rows.len());
            for row in rows {
                let verdict = decide(row.deferrals);
                write(&mut tx, row.id, &verdict, error).await?;
                waiting.push(Waiting {
                    recipient_hash: row.recipient_hash,
                    attempts: row.attempts,
                    deferrals: row.deferrals,
                    verdict,
                });
            }
            tx.commit().await?;
            whole.end();
            self.outbox_written.notify_one();
            Ok(waiting)
        })
        .await
    }
}

async fn write(tx: &mut PgConnection, id: Uuid, verdict: &PutOff, error: &str) -> Result<(), StoreError> {
    let (status, due_in, deferred, reason, kind) = match verdict {
        PutOff::Again(due_in) => ("queued", Some(due_in.as_secs_f64()), 1, None, "deferred"),
        PutOff::Failed(reason) => ("failed", None, 0, Some(reason.name()), "failed"),
    };
    sqlx::query!(
        "update email_messages set status = $2, due_at = now() + make_interval(secs => $3::float8),
            deferrals = deferrals + $4, settlement = 'pending', reason = $5, error_message = $6, updated_at = now()
         where id = $1",
        id,
        status,
        due_in,
        deferred,
        reason,
        error
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "insert into email_timeline (message_id, kind, attempt, phase, error)
         select id, $2, attempts, 'attachments', $3 from email_messages where id = $1",
        id,
        kind,
        error
    )
    .execute(tx)
    .await?;
    Ok(())
}
