//! Who is at a run: a lease on the database's clock, and what has become of the letters.
//!
//! Invariant: at most one holds a run, and whoever lost it finds that out with the next letter at the latest. Two at once would
//! send nothing twice all the same: [`Store::begin_replay`] decides each letter under a lock.
//! Invariant: that a letter was replayed is written into the letter and into its run by one statement. Cut off before it, the
//! letter says `replaying`, and the next runner publishes the same copy again or finds that it has arrived.

use std::time::Duration;

use uuid::Uuid;

use super::{ItemResult, RunState};
use crate::{
    email::Reason,
    store::{Store, StoreError, within_limit},
};

/// Letters that a runner asks for together.
pub const LETTERS_AT_ONCE: i64 = 100;

/// The right to be at a run.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// Made for one taking of one run.
    pub token: Uuid,
    /// Somebody who does not renew it for this long is gone.
    pub length: Duration,
}

impl Lease {
    /// A fresh one of this length.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { token: Uuid::new_v4(), length }
    }
}

/// A run that was taken up.
#[derive(Debug, Clone, Copy)]
pub struct RunWork {
    /// Which.
    pub id: Uuid,
    /// Letters a second at most.
    pub rate: i32,
    /// Send the words of the first time.
    pub keep_version: bool,
}

/// A letter of a run without a result.
#[derive(Debug, Clone)]
pub struct OpenItem {
    /// Its place in the run.
    pub position: i32,
    /// The letter.
    pub letter: Uuid,
    /// Why it is one; nothing when a later version knows more reasons.
    pub reason: Option<Reason>,
}

/// What has become of a letter.
#[derive(Debug, Clone)]
pub struct LetterResult {
    /// Not [`ItemResult::Open`].
    pub result: ItemResult,
    /// For programs.
    pub why: Option<&'static str>,
    /// For people. No person's data.
    pub detail: Option<String>,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunProgress {
    /// Whoever asked is still the one who is at it.
    pub is_ours: bool,
    /// Where it stands.
    pub state: RunState,
    /// All of its letters.
    pub letters: i32,
    /// Those with a result.
    pub done: i32,
}

impl Store {
    /// Takes up the oldest run that nobody is at. Nothing: there is none.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn take_run(&self, lease: &Lease) -> Result<Option<RunWork>, StoreError> {
        let taking = sqlx::query!(
            "update replay_runs set runner_id = $1, lease_until = now() + make_interval(secs => $2)
             where id = (
                select id from replay_runs
                where state = 'running' and (lease_until is null or lease_until <= now())
                order by id limit 1 for update skip locked)
             returning id, rate_per_second, keep_version",
            lease.token,
            lease.length.as_secs_f64()
        )
        .fetch_optional(&self.pool);
        let taken = within_limit(async { Ok(taking.await?) }).await?;
        Ok(taken.map(|row| RunWork { id: row.id, rate: row.rate_per_second, keep_version: row.keep_version }))
    }

    /// Renews a lease, and says why the run does not move, if it does not. Nothing: there is no such run any more.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn renew_run(
        &self,
        run: Uuid,
        lease: &Lease,
        waits_for: Option<&str>,
    ) -> Result<Option<RunProgress>, StoreError> {
        let renewing = sqlx::query!(
            r#"update replay_runs set
                lease_until = case when runner_id = $2 then now() + make_interval(secs => $3) else lease_until end,
                waits_for = case when runner_id = $2 and state = 'running' then left($4, 500) else waits_for end
               where id = $1
               returning coalesce(runner_id = $2, false) as "is_ours!", state, letters,
                replayed + skipped + failed as "done!""#,
            run,
            lease.token,
            lease.length.as_secs_f64(),
            waits_for
        )
        .fetch_optional(&self.pool);
        let row = within_limit(async { Ok(renewing.await?) }).await?;
        row.map(|row| progress(row.is_ours, &row.state, row.letters, row.done)).transpose()
    }

    /// Gives a run back, for whoever takes it up next.
    ///
    /// # Errors
    /// When the database is away: the lease runs out by itself.
    pub async fn release_run(&self, run: Uuid, lease: &Lease) -> Result<(), StoreError> {
        let releasing = sqlx::query!(
            "update replay_runs set runner_id = null, lease_until = null, waits_for = null
             where id = $1 and runner_id = $2",
            run,
            lease.token
        )
        .execute(&self.pool);
        within_limit(async { Ok(releasing.await.map(|_| ())?) }).await
    }

    /// The next letters of a run that have no result, after this position.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn open_items(&self, run: Uuid, after: i32) -> Result<Vec<OpenItem>, StoreError> {
        let reading = sqlx::query!(
            "select position, dead_letter_id, reason from replay_items
             where run_id = $1 and position > $2 and result is null order by position limit $3",
            run,
            after,
            LETTERS_AT_ONCE
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(reading.await?) }).await?;
        let item =
            |row: (i32, Uuid, String)| OpenItem { position: row.0, letter: row.1, reason: Reason::from_name(&row.2) };
        Ok(rows.into_iter().map(|row| item((row.position, row.dead_letter_id, row.reason))).collect())
    }

    /// Notes what has become of a letter, in the letter and in its run. A letter that has a result keeps it.
    ///
    /// # Errors
    /// When the database is away: the next runner finds the letter as it is, and sends nothing twice.
    pub async fn finish_item(
        &self,
        run: Uuid,
        lease: &Lease,
        item: &OpenItem,
        result: &LetterResult,
    ) -> Result<Option<RunProgress>, StoreError> {
        loop {
            match within_limit(self.finish_once(run, lease, item, result)).await {
                Err(StoreError::Repeat(_)) => {}
                finished => return finished,
            }
        }
    }

    async fn finish_once(
        &self,
        run: Uuid,
        lease: &Lease,
        item: &OpenItem,
        result: &LetterResult,
    ) -> Result<Option<RunProgress>, StoreError> {
        let row = sqlx::query!(
            r#"with letter as (
                update dead_letters set state = 'replayed' where id = $5 and $6 = 'replayed' and state = 'replaying'),
               item as (
                update replay_items set result = $6, why = $7, detail = left($8, 500), done_at = now()
                where run_id = $1 and position = $4 and result is null returning 1)
               update replay_runs r set
                replayed = r.replayed + case when $6 = 'replayed' then finished.n else 0 end,
                skipped = r.skipped + case when $6 = 'skipped' then finished.n else 0 end,
                failed = r.failed + case when $6 = 'failed' then finished.n else 0 end,
                lease_until = case when r.runner_id = $2 then now() + make_interval(secs => $3) else r.lease_until end,
                waits_for = null
               from (select count(*)::int as n from item) as finished
               where r.id = $1
               returning coalesce(r.runner_id = $2, false) as "is_ours!", r.state, r.letters,
                r.replayed + r.skipped + r.failed as "done!""#,
            run,
            lease.token,
            lease.length.as_secs_f64(),
            item.position,
            item.letter,
            result.result.name(),
            result.why,
            result.detail
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| progress(row.is_ours, &row.state, row.letters, row.done)).transpose()
    }

    /// Ends a run all of whose letters have a result. False: it is not ours, or has open letters, or was stopped.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn complete_run(&self, run: Uuid, lease: &Lease) -> Result<bool, StoreError> {
        let completing = sqlx::query!(
            "update replay_runs set state = 'done', finished_at = now(), runner_id = null, lease_until = null,
                waits_for = null
             where id = $1 and runner_id = $2 and state = 'running'
                and not exists (select from replay_items where run_id = $1 and result is null)",
            run,
            lease.token
        )
        .execute(&self.pool);
        within_limit(async { Ok(completing.await?.rows_affected() == 1) }).await
    }
}

fn progress(is_ours: bool, state: &str, letters: i32, done: i32) -> Result<RunProgress, StoreError> {
    let state = RunState::from_name(state).ok_or_else(|| super::newer_schema(state))?;
    Ok(RunProgress { is_ours, state, letters, done })
}
