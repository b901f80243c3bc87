//! Messages whose worker died: counted before they are decoded, so that even one that no daemon survives is found out.
//!
//! Invariant: what a row explains is not counted. A message whose mail is sent, under way, or not due yet came back
//! because somebody hung up, not because of what is in it.
//! Invariant: what is worked on alone has a mark, and whoever outlives it takes that very mark away, whether or not it heard
//! that the mark was made. A mark that stays was a crash of the message's own.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Store, StoreError, limit_of, within};
use crate::email::{Lane, Reason};

/// What is known of a message's crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crashes {
    /// Redeliveries that no row explains, and leases that ran out on its mails, this one included.
    pub crashes: i32,
    /// Those of them that happened while it was worked on alone.
    pub alone: i32,
}

impl Store {
    /// Counts a redelivery, unless a row explains it. `key`: of the AMQP `message_id`, else of the body; `request_id` if it is known
    /// before decoding.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn count_redelivery(
        &self,
        lane: Lane,
        key: &[u8; 32],
        request_id: Option<Uuid>,
    ) -> Result<Option<Crashes>, StoreError> {
        let counting = sqlx::query_as!(
            Crashes,
            r#"
            with claimable as (
                select 1 from email_messages m left join email_workers w on w.id = m.worker_id
                where m.request_id = $2 and (
                    m.status = 'queued' and coalesce(m.due_at <= now(), true)
                    or m.status = 'unknown' and not m.held and coalesce(m.due_at <= now(), true))
            )
            insert into email_crashes as c (key, crashes)
            select $1, 1
            where not exists (select 1 from email_requests where id = $2) or exists (select 1 from claimable)
            on conflict (key) do update set crashes = c.crashes + 1, updated_at = now()
            returning crashes, (select count(*) from email_crash_marks where key = $1)::int as "alone!"
            "#,
            key.as_slice(),
            request_id
        )
        .fetch_optional(self.pool_of(lane));
        within(limit_of(lane), async { Ok(counting.await?) }).await
    }

    /// Marks a message that is about to be worked on alone: a crash of its own, until [`Store::unmark_alone`].
    ///
    /// # Errors
    /// When the database is away; the mark may have been made all the same.
    pub async fn mark_alone(&self, lane: Lane, key: &[u8; 32], mark: Uuid) -> Result<(), StoreError> {
        let marking = sqlx::query!("insert into email_crash_marks (id, key) values ($1, $2)", mark, key.as_slice())
            .execute(self.pool_of(lane));
        within(limit_of(lane), async { Ok(marking.await?) }).await?;
        Ok(())
    }

    /// Takes a mark away: it was survived, or somebody else came beside it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn unmark_alone(&self, lane: Lane, mark: Uuid) -> Result<(), StoreError> {
        let unmarking = sqlx::query!("delete from email_crash_marks where id = $1", mark).execute(self.pool_of(lane));
        within(limit_of(lane), async { Ok(unmarking.await?) }).await?;
        Ok(())
    }

    /// Forgets a message's crashes: it leaves its queue.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn forget_crashes(&self, lane: Lane, key: &[u8; 32]) -> Result<(), StoreError> {
        let forgetting = sqlx::query!(
            "with marks as (delete from email_crash_marks where key = $1) delete from email_crashes where key = $1",
            key.as_slice()
        )
        .execute(self.pool_of(lane));
        within(limit_of(lane), async { Ok(forgetting.await?) }).await?;
        Ok(())
    }

    /// Ends whatever rows a message has that is parked as poison: what was never final is failed, its dead letter owed.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn park_poison(&self, lane: Lane, request_id: Uuid, error: &str) -> Result<(), StoreError> {
        let parking = sqlx::query!(
            "with parked as (
                update email_messages m set status = 'failed', settlement = 'pending', held = false, due_at = null,
                    reason = $2, error_message = $3, updated_at = now()
                from (
                    select id, status from email_messages
                    where request_id = $1 and status in ('queued', 'sending', 'unknown') and not held
                    order by id for update) as was
                where m.id = was.id
                returning m.id, m.attempts, was.status as was
             ), given_back as (
                -- one that only waited has not gone out, and leaves its place under its recipient's cap to others
                delete from rate_reservations r
                where r.message_id = any(array(select id from parked where was = 'queued')) and not exists (
                    select from email_timeline t where t.message_id = r.message_id and t.kind = 'unknown')
             )
             insert into email_timeline (message_id, kind, attempt, error) select id, 'failed', attempts, $3 from parked",
            request_id,
            Reason::Poison.name(),
            error
        )
        .execute(self.pool_of(lane));
        within(limit_of(lane), async { Ok(parking.await?) }).await?;
        Ok(())
    }
}

/// A lease that ran out on one of the message's mails, within the transaction that found it: counted once a delivery
/// (`is_new`), else looked up.
pub(super) async fn lost_lease(tx: &mut PgConnection, key: &[u8; 32], is_new: bool) -> Result<Crashes, StoreError> {
    Ok(sqlx::query_as!(
        Crashes,
        r#"insert into email_crashes as c (key, crashes) values ($1, 1)
         on conflict (key) do update set crashes = c.crashes + $2, updated_at = now()
         returning crashes, (select count(*) from email_crash_marks where key = $1)::int as "alone!""#,
        key.as_slice(),
        i32::from(is_new)
    )
    .fetch_one(tx)
    .await?)
}
