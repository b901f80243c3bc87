//! What producers sent lately for a template: names and kinds of variables, never a value.
//!
//! Ids of mails begin with the publish time, so the newest mails are the end of the primary key; a template has no index of its
//! own there, which every mail would pay for. The newest `MAILS_MAX` mails are looked at, and of the template's among them
//! the requests of the newest `REQUESTS_MAX`: the same work at a thousand mails as at ten million.
//! Invariant: values become words for their kinds inside the database (`shape_of`).

use serde_json::Value;
use sqlx::Connection;

use crate::store::{Store, StoreError, whole::Whole, within_limit};

/// Mails that are looked at.
pub const MAILS_MAX: i64 = 50_000;
/// Requests whose variables are looked at.
pub const REQUESTS_MAX: i64 = 500;
/// Different shapes that are told apart, the most frequent first.
const SHAPES_MAX: i64 = 100;
/// Variables that take more room than this are not looked at, in bytes as they are stored.
const VARIABLES_BYTES_MAX: i32 = 64 * 1024;
/// Longest time that the database may spend on it.
const LIMIT_MS: &str = "3000";

/// Variables of one kind, and how many requests had them.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The variables with a word for its kind in place of each value: `string`, `url`, `empty`, `number`, `boolean`, `null`.
    pub variables: Value,
    /// How many requests.
    pub requests: i64,
}

impl Store {
    /// What the variables of the newest requests for this template are like, the most frequent first. Tests that operators sent do not count, nor does
    /// what was anonymised.
    ///
    /// # Errors
    /// When the database is away, or takes too long.
    pub async fn recent_shapes(&self, key: &str) -> Result<Vec<Shape>, StoreError> {
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let mut tx = whole.connection().begin().await?;
            sqlx::query!("select set_config('statement_timeout', $1, true)", LIMIT_MS).fetch_one(&mut *tx).await?;
            let shapes = sqlx::query_as!(
                Shape,
                r#"with mails as materialized (
                    select request_id, template_key, source_endpoint, row_number() over (order by id desc) as place
                    from email_messages order by id desc limit $2
                 ), newest as materialized (
                    select request_id from mails where template_key = $1 and source_endpoint <> 'test'
                    group by request_id order by min(place) limit $3
                 ), shapes as materialized (
                    select shape_of(r.variables) as shape from newest n
                    join email_requests r on r.id = n.request_id
                    where jsonb_typeof(r.variables) = 'object' and pg_column_size(r.variables) <= $4
                 )
                 select shape as "variables!", count(*) as "requests!"
                 from shapes group by shape order by count(*) desc, shape limit $5"#,
                key,
                MAILS_MAX,
                REQUESTS_MAX,
                VARIABLES_BYTES_MAX,
                SHAPES_MAX
            )
            .fetch_all(&mut *tx)
            .await?;
            tx.rollback().await?;
            whole.end();
            Ok(shapes)
        })
        .await
    }
}
