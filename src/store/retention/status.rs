//! How far it is: what is due, what was done, and what did not go well.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row as _;

use super::{Age, Moments, Step};
use crate::store::{Store, StoreError, within_limit};

/// Rows that are counted at most.
pub const DUE_MAX: i64 = 10_000;

/// What is due of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// How many rows, up to what was asked for; one more than [`DUE_MAX`] stands for more.
    pub rows: i64,
    /// For how long the oldest of them has been due.
    pub overdue: Option<TimeDelta>,
}

/// What a step has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows of its table, ever.
    pub rows_ever: i64,
    /// In the pass that runs or ran last.
    pub rows_pass: i64,
    /// When that began; nothing: there was none.
    pub begun_at: Option<DateTime<Utc>>,
    /// When it ended; nothing: it runs, or was cut off.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it did not come to its end.
    pub error: Option<String>,
    place: Option<String>,
}

impl Store {
    /// What a step has done so far.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn retention_progress(&self, step: &Step) -> Result<Progress, StoreError> {
        let reading = sqlx::query(
            "select rows_ever, rows_pass, begun_at, ended_at, error, place from retention_steps where step = $1",
        )
        .bind(step.name)
        .fetch_optional(&self.pool);
        within_limit(async {
            let Some(row) = reading.await? else { return Ok(Progress::default()) };
            Ok(Progress {
                rows_ever: row.try_get(0)?,
                rows_pass: row.try_get(1)?,
                begun_at: row.try_get(2)?,
                ended_at: row.try_get(3)?,
                error: row.try_get(4)?,
                place: row.try_get(5)?,
            })
        })
        .await
    }

    /// What is due of a step, counted up to `rows_max`. What can still move is counted as well: it is due, and waits.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn retention_due(
        &self,
        step: &Step,
        progress: &Progress,
        moments: &Moments,
        rows_max: i64,
    ) -> Result<Due, StoreError> {
        let cutoff = moments.of(step.age);
        let counting = sqlx::query(step.due)
            .bind(cutoff)
            .bind(rows_max)
            .bind(progress.place.as_deref())
            .bind(moments.now)
            .bind(moments.first_kept_row())
            .bind(moments.first_row_ahead())
            .fetch_one(&self.pool);
        within_limit(async {
            let row = counting.await?;
            let oldest: Option<DateTime<Utc>> = row.try_get(1)?;
            // What was published ahead of its time is as old as its row.
            let overdue = oldest.map(|oldest| (cutoff - oldest).max(TimeDelta::zero()));
            Ok(Due { rows: row.try_get(0)?, overdue: overdue.filter(|_| step.age != Age::Over) })
        })
        .await
    }
}
