//! Lists of runs, newest first, and of a run's letters, in the order in which they are taken.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Run, RunRow, RunState};
use crate::store::{Store, StoreError, messages::TOTAL_MAX, within_limit};

/// A page of runs, newest first.
#[derive(Debug, Clone)]
pub struct RunPage {
    /// The runs.
    pub items: Vec<Run>,
    /// How many there are in all, up to [`TOTAL_MAX`].
    pub total: i64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
    /// The id that the next page follows; nothing: this was the last.
    pub next: Option<Uuid>,
}

/// What has become of a letter of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemResult {
    /// Nothing yet.
    Open,
    /// It is on its way, confirmed by the broker.
    Replayed,
    /// It was left alone.
    Skipped,
    /// It could not be replayed, for a fault of its own.
    Failed,
}

impl ItemResult {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Open, Self::Replayed, Self::Skipped, Self::Failed];

    /// For programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }

    /// The result of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|result| result.name() == name)
    }
}

/// A letter of a run.
#[derive(Debug, Clone)]
pub struct RunItem {
    /// The order in which letters are taken, from 0.
    pub position: i32,
    /// The letter.
    pub dead_letter_id: Uuid,
    /// Its request, if its bytes told.
    pub request_id: Option<Uuid>,
    /// Why it is a dead letter.
    pub reason: String,
    /// Which template.
    pub template_key: Option<String>,
    /// Whose words it was planned to send, where that was known.
    pub template_version: Option<i32>,
    /// What has become of it.
    pub result: ItemResult,
    /// Why it was skipped or failed, for programs.
    pub why: Option<String>,
    /// The same for people.
    pub detail: Option<String>,
    /// When it had its result.
    pub done_at: Option<DateTime<Utc>>,
}

/// Which letters of a run.
#[derive(Debug, Clone, Default)]
pub struct ItemFilter {
    /// With this result.
    pub result: Option<ItemResult>,
    /// After this position.
    pub after: Option<i32>,
    /// At most this many.
    pub limit: i64,
}

/// A page of a run's letters.
#[derive(Debug, Clone)]
pub struct ItemPage {
    /// The letters, in their order.
    pub items: Vec<RunItem>,
    /// The position that the next page follows; nothing: this was the last.
    pub next: Option<i32>,
}

impl Store {
    /// Lists runs, newest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn runs(&self, state: Option<RunState>, after: Option<Uuid>, limit: i64) -> Result<RunPage, StoreError> {
        within_limit(async {
            let rows = sqlx::query_as!(
                RunRow,
                r#"select id, filter, state, rate_per_second, keep_version, plan, letters, replayed, skipped, failed,
                    created_by, created_at, started_at, finished_at,
                    coalesce(lease_until > now(), false) as "has_runner!", waits_for
                   from replay_runs where ($1::text is null or state = $1) and ($2::uuid is null or id < $2)
                   order by id desc limit $3"#,
                state.map(RunState::name),
                after,
                limit + 1
            )
            .fetch_all(&self.pool)
            .await?;
            let mut items = rows.into_iter().map(RunRow::run).collect::<Result<Vec<_>, _>>()?;
            let limit = usize::try_from(limit).unwrap_or_default();
            let has_more = items.len() > limit;
            items.truncate(limit);
            let total = sqlx::query_scalar!(
                r#"select count(*) as "count!" from (
                    select 1 from replay_runs where ($1::text is null or state = $1) limit $2) as found"#,
                state.map(RunState::name),
                TOTAL_MAX + 1
            )
            .fetch_one(&self.pool)
            .await?;
            Ok(RunPage {
                next: items.last().map(|run| run.id).filter(|_| has_more),
                items,
                total: total.min(TOTAL_MAX),
                total_is_exact: total <= TOTAL_MAX,
            })
        })
        .await
    }

    /// Lists a run's letters, in their order.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn run_items(&self, run: Uuid, filter: &ItemFilter) -> Result<ItemPage, StoreError> {
        let reading = sqlx::query!(
            r#"select position, dead_letter_id, request_id, reason, template_key, template_version,
                coalesce(result, 'open') as "result!", why, detail, done_at
               from replay_items
               where run_id = $1 and position > $2
                and ($3::text is null or $3 = 'open' and result is null or result = $3)
               order by position limit $4"#,
            run,
            filter.after.unwrap_or(-1),
            filter.result.map(ItemResult::name),
            filter.limit + 1
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(reading.await?) }).await?;
        let limit = usize::try_from(filter.limit).unwrap_or_default();
        let has_more = rows.len() > limit;
        let items = rows
            .into_iter()
            .take(limit)
            .map(|row| {
                Ok(RunItem {
                    position: row.position,
                    dead_letter_id: row.dead_letter_id,
                    request_id: row.request_id,
                    reason: row.reason,
                    template_key: row.template_key,
                    template_version: row.template_version,
                    result: ItemResult::from_name(&row.result)
                        .ok_or_else(|| super::super::newer_schema(&row.result))?,
                    why: row.why,
                    detail: row.detail,
                    done_at: row.done_at,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(ItemPage { next: items.last().map(|item| item.position).filter(|_| has_more), items })
    }

    /// Why letters of a run were skipped or failed, and how many: the most frequent first, at most a hundred.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn run_results(&self, run: Uuid) -> Result<Vec<(String, String, i64)>, StoreError> {
        let reading = sqlx::query!(
            r#"select result as "result!", why as "why!", count(*) as "letters!" from replay_items
               where run_id = $1 and result is not null and why is not null
               group by result, why order by 3 desc, 1, 2 limit 100"#,
            run
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(reading.await?) }).await?;
        Ok(rows.into_iter().map(|row| (row.result, row.why, row.letters)).collect())
    }
}
