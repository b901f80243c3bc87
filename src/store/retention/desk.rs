//! The right to work, which one daemon or command at a time has, and one batch of a step.
//!
//! Invariant: a batch is one transaction, and the line that tells of it is part of it.

use sqlx::{Connection, PgConnection, Postgres, Row as _, Transaction};
use uuid::Uuid;

use super::{Act, Moments, Step, Work};
use crate::store::{NOTICED_WHEN_IT_VANISHES, Store, StoreError, events_setting, within_limit};

/// Whoever holds it is at work.
const RETENTION_LOCK: i64 = 0x7265_7465_6e74_696f;

/// What its session is told: a batch must neither wait for long nor make others wait, and it may take notes away from logs that
/// nobody rewrites.
const SESSION: &str = "set application_name = 'postrider retention'; \
    set statement_timeout = '15s'; set lock_timeout = '2s'; set postrider.retention = 'on'; set jit = off";

/// The right to work. Given back when it is dropped.
pub struct Desk {
    /// Of its own, beside the pools: the lock goes with the session, and whoever sends mail waits for nothing here.
    connection: PgConnection,
}

/// What a batch came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows that were changed or deleted, by table.
    pub rows: Vec<(&'static str, u64)>,
    /// There may be more.
    pub has_more: bool,
    /// Where to go on. Nothing: where it began.
    pub place: Option<String>,
}

impl Batch {
    /// All of its rows.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rows.iter().map(|(_, rows)| rows).sum()
    }

    /// Those of one table.
    #[must_use]
    pub fn of(&self, table: &str) -> u64 {
        self.rows.iter().filter(|(name, _)| *name == table).map(|(_, rows)| rows).sum()
    }
}

impl Store {
    /// Asks for the right to forget and delete; nothing: somebody else has it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn try_lock_retention(&self) -> Result<Option<Desk>, StoreError> {
        let options = self.pool.connect_options();
        let locking = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            sqlx::raw_sql(NOTICED_WHEN_IT_VANISHES).execute(&mut connection).await?;
            sqlx::raw_sql(SESSION).execute(&mut connection).await?;
            // What waited for too long expires, and its producer hears of it.
            if let Some(setting) = events_setting(self.events) {
                sqlx::raw_sql(setting).execute(&mut connection).await?;
            }
            let is_ours = sqlx::query_scalar::<_, bool>("select pg_try_advisory_lock($1)")
                .bind(RETENTION_LOCK)
                .fetch_one(&mut connection)
                .await?;
            Ok(is_ours.then_some(Desk { connection }))
        };
        within_limit(locking).await
    }

    /// Whether somebody is at work.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn is_retention_at_work(&self) -> Result<bool, StoreError> {
        let looking = sqlx::query_scalar::<_, bool>(
            "select exists (select from pg_locks where locktype = 'advisory' and granted
                and database = (select oid from pg_database where datname = current_database())
                and ((classid::bigint << 32) | objid::bigint) = $1)",
        )
        .bind(RETENTION_LOCK)
        .fetch_one(&self.pool);
        within_limit(async { Ok(looking.await?) }).await
    }

    /// One batch of a step, from a place on. Its events are on their way when it returns.
    ///
    /// # Errors
    /// When the database is away, or one of the rows cannot be changed: nothing was.
    pub async fn retain(
        &self,
        desk: &mut Desk,
        step: &Step,
        moments: &Moments,
        rows_max: i64,
        place: Option<&str>,
    ) -> Result<Batch, StoreError> {
        let batch = within_limit(desk.batch(step, moments, rows_max, place)).await?;
        self.outbox_written.notify_one();
        Ok(batch)
    }
}

impl Desk {
    async fn batch(
        &mut self,
        step: &Step,
        moments: &Moments,
        rows_max: i64,
        place: Option<&str>,
    ) -> Result<Batch, StoreError> {
        let mut tx = self.connection.begin().await?;
        let batch = match &step.work {
            Work::Rows(sql) => rows(&mut tx, step, sql, moments, rows_max, place).await?,
            Work::Mails { pick, acts } => mails(&mut tx, step, pick, acts, moments, rows_max, place).await?,
        };
        // Of each mail one row counts, however many hang on it.
        note(&mut tx, step, batch.of(step.table), batch.place.as_deref()).await?;
        tx.commit().await?;
        Ok(batch)
    }

    /// Begins a step of a pass. Answers the place to begin at.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn begin(&mut self, step: &Step, moments: &Moments) -> Result<Option<String>, StoreError> {
        let beginning = sqlx::query_scalar::<_, Option<String>>(
            "insert into retention_steps as s (step, begun_at) values ($1, $2)
             on conflict (step) do update set rows_pass = 0, begun_at = $2, ended_at = null, error = null
             returning place",
        )
        .bind(step.name)
        .bind(moments.now)
        .fetch_one(&mut self.connection);
        within_limit(async { Ok(beginning.await?) }).await
    }

    /// Ends it; `error` says why it did not come to its end.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn end(&mut self, step: &Step, moments: &Moments, error: Option<&str>) -> Result<(), StoreError> {
        let ending = sqlx::query("update retention_steps set ended_at = $2, error = left($3, 500) where step = $1")
            .bind(step.name)
            .bind(moments.now)
            .bind(error)
            .execute(&mut self.connection);
        within_limit(async { Ok(ending.await.map(|_| ())?) }).await
    }

    /// Gives the right back, and says goodbye.
    pub async fn leave(self) {
        drop(within_limit(async { Ok(self.connection.close().await?) }).await);
    }
}

async fn rows(
    tx: &mut Transaction<'_, Postgres>,
    step: &Step,
    sql: &'static str,
    moments: &Moments,
    rows_max: i64,
    place: Option<&str>,
) -> Result<Batch, StoreError> {
    let row = sqlx::query(sql)
        .bind(moments.of(step.age))
        .bind(rows_max)
        .bind(place)
        .bind(moments.now)
        .fetch_one(&mut **tx)
        .await?;
    let (done, seen): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok(Batch {
        rows: vec![(step.table, u64::try_from(done).unwrap_or_default())],
        has_more: seen >= rows_max,
        place: row.try_get(2)?,
    })
}

async fn mails(
    tx: &mut Transaction<'_, Postgres>,
    step: &Step,
    pick: &'static str,
    acts: &'static [Act],
    moments: &Moments,
    rows_max: i64,
    place: Option<&str>,
) -> Result<Batch, StoreError> {
    let picked = sqlx::query(pick)
        .bind(moments.of(step.age))
        .bind(rows_max)
        .bind(place)
        .bind(moments.now)
        .bind(moments.moved_before)
        .bind(moments.first_kept_row())
        .bind(moments.first_row_ahead())
        .fetch_one(&mut **tx)
        .await?;
    let (requests, mails): (Vec<Uuid>, Vec<Uuid>) = (picked.try_get(0)?, picked.try_get(1)?);
    let seen: i64 = picked.try_get(2)?;
    let mut batch = Batch { rows: Vec::new(), has_more: seen >= rows_max, place: picked.try_get(3)? };
    if requests.is_empty() {
        return Ok(batch);
    }
    for act in acts {
        let done = sqlx::query(act.sql)
            .bind(&requests)
            .bind(&mails)
            .bind(moments.now)
            .execute(&mut **tx)
            .await?
            .rows_affected();
        batch.rows.push((act.table, done));
    }
    Ok(batch)
}

async fn note(
    tx: &mut Transaction<'_, Postgres>,
    step: &Step,
    rows: u64,
    place: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query(
        "update retention_steps set rows_ever = rows_ever + $2, rows_pass = rows_pass + $2,
            place = case when $3 then coalesce($4, place) end
         where step = $1",
    )
    .bind(step.name)
    .bind(i64::try_from(rows).unwrap_or(i64::MAX))
    .bind(step.keeps_place)
    .bind(place)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
