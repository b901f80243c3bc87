//! The change log: who did what to what, when, and what it was before and is after.
//!
//! Invariant: a line is written in the transaction that makes the change, so that there is none of either without the other.
//! Invariant: lines hold ids and keys, never an address, a variable's value or a payload.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Store, StoreError, messages::TOTAL_MAX, within_limit};

/// A change to be noted.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// Who: `operator:<name>`.
    pub by: &'a str,
    /// What was done, for instance `template.activate`.
    pub action: &'a str,
    /// To which: a key or an id.
    pub target: &'a str,
    /// What it was.
    pub before: Option<Value>,
    /// What it is.
    pub after: Option<Value>,
}

/// Notes a change, in the transaction that makes it.
///
/// # Errors
/// When the database is away.
pub async fn record(connection: &mut PgConnection, change: &Change<'_>) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into operator_changes (changed_by, action, target, before, after)
         values (left($1, 100), left($2, 50), left($3, 200), $4, $5)",
        change.by,
        change.action,
        change.target,
        change.before,
        change.after
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A line of the change log.
#[derive(Debug, Clone)]
pub struct ChangeLine {
    /// Rises.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub changed_by: String,
    /// What was done.
    pub action: String,
    /// To which.
    pub target: String,
    /// What it was.
    pub before: Option<Value>,
    /// What it is.
    pub after: Option<Value>,
}

/// Which lines are meant; every part that is given must match.
#[derive(Debug, Clone, Default)]
pub struct ChangeFilter {
    /// By this operator: `operator:<name>`.
    pub by: Option<String>,
    /// Of this action, or of this family: `template` finds `template.activate`.
    pub action: Option<String>,
    /// Of this key or id.
    pub target: Option<String>,
    /// At or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Before this time.
    pub until: Option<DateTime<Utc>>,
    /// Older than the line of this id.
    pub after: Option<i64>,
    /// At most this many.
    pub limit: i64,
}

/// A page of the change log, newest first.
#[derive(Debug, Clone)]
pub struct ChangePage {
    /// The lines.
    pub items: Vec<ChangeLine>,
    /// How many match in all, up to [`TOTAL_MAX`].
    pub total: i64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
    /// The id that the next page follows; nothing: this was the last.
    pub next: Option<i64>,
}

impl Store {
    /// Lists changes, newest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn changes(&self, filter: &ChangeFilter) -> Result<ChangePage, StoreError> {
        within_limit(async {
            let mut items = sqlx::query_as!(
                ChangeLine,
                "select id, at, changed_by, action, target, before, after from operator_changes
                 where ($1::text is null or changed_by = $1)
                    and ($2::text is null or action = $2 or starts_with(action, $2 || '.'))
                    and ($3::text is null or target = $3)
                    and ($4::timestamptz is null or at >= $4) and ($5::timestamptz is null or at < $5)
                    and ($6::bigint is null or id < $6)
                 order by id desc limit $7",
                filter.by,
                filter.action,
                filter.target,
                filter.since,
                filter.until,
                filter.after,
                filter.limit + 1
            )
            .fetch_all(&self.pool)
            .await?;
            let limit = usize::try_from(filter.limit).unwrap_or_default();
            let has_more = items.len() > limit;
            items.truncate(limit);
            let total = sqlx::query_scalar!(
                r#"select count(*) as "count!" from (select 1 from operator_changes
                 where ($1::text is null or changed_by = $1)
                    and ($2::text is null or action = $2 or starts_with(action, $2 || '.'))
                    and ($3::text is null or target = $3)
                    and ($4::timestamptz is null or at >= $4) and ($5::timestamptz is null or at < $5)
                 limit $6) as found"#,
                filter.by,
                filter.action,
                filter.target,
                filter.since,
                filter.until,
                TOTAL_MAX + 1
            )
            .fetch_one(&self.pool)
            .await?;
            Ok(ChangePage {
                next: items.last().map(|line| line.id).filter(|_| has_more),
                items,
                total: total.min(TOTAL_MAX),
                total_is_exact: total <= TOTAL_MAX,
            })
        })
        .await
    }
}
