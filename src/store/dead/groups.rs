//! What waits for an operator, by reason and template: counted in an index that holds nothing else.

use chrono::{DateTime, Utc};

use crate::store::{Store, StoreError, within_limit};

/// Letters that are counted at most.
const COUNTED_MAX: i64 = 100_000;
/// Groups that are told apart at most.
const GROUPS_MAX: i64 = 200;

/// Letters that wait, of one reason and template.
#[derive(Debug, Clone)]
pub struct DeadGroup {
    /// Why they are dead letters.
    pub reason: String,
    /// Which template, if their bytes told.
    pub template_key: Option<String>,
    /// How many.
    pub letters: i64,
    /// When the first of them was archived.
    pub oldest: DateTime<Utc>,
    /// And the last.
    pub newest: DateTime<Utc>,
}

/// All that waits.
#[derive(Debug, Clone)]
pub struct DeadGroups {
    /// The largest first.
    pub items: Vec<DeadGroup>,
    /// Letters of all groups.
    pub letters: i64,
    /// All that wait were counted.
    pub is_exact: bool,
}

impl Store {
    /// Letters that wait, or whose replay was cut off, by reason and template.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn dead_groups(&self) -> Result<DeadGroups, StoreError> {
        let reading = sqlx::query!(
            r#"with waiting as (
                select reason, template_key, archived_at from dead_letters where state in ('waiting', 'replaying')
                limit $1)
               select reason as "reason!", template_key, count(*) as "letters!", min(archived_at) as "oldest!",
                max(archived_at) as "newest!", (select count(*) from waiting) as "all!"
               from waiting group by reason, template_key order by 3 desc, 1, 2 limit $2"#,
            COUNTED_MAX + 1,
            GROUPS_MAX
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(reading.await?) }).await?;
        let all = rows.first().map_or(0, |row| row.all);
        let items = rows.into_iter().map(|row| DeadGroup {
            reason: row.reason,
            template_key: row.template_key,
            letters: row.letters,
            oldest: row.oldest,
            newest: row.newest,
        });
        Ok(DeadGroups { items: items.collect(), letters: all.min(COUNTED_MAX), is_exact: all <= COUNTED_MAX })
    }
}
