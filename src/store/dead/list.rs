//! Lists of dead letters, newest first by when they were archived.
//!
//! What a filter asks for has no index; a page looks at no more than `SEARCHED_MAX` letters from where it begins.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{DeadFilter, DeadSummary};
use crate::store::{
    Store, StoreError,
    messages::{SEARCHED_MAX, TOTAL_MAX},
    within_limit,
};

/// A place in the list: letters that arrive meanwhile do not move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadCursor {
    archived_at: DateTime<Utc>,
    id: Uuid,
}

impl DeadCursor {
    /// As it stands in a URL.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{}.{}", self.archived_at.timestamp_micros(), self.id)
    }

    /// Reads what [`DeadCursor::to_text`] wrote.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let (at, id) = text.split_once('.')?;
        // Before 1970 and after the year 3000 there are no letters, and further off no times that the database takes.
        let at = at.parse().ok().filter(|at| (0..32_503_680_000_000_000).contains(at))?;
        Some(Self { archived_at: DateTime::from_timestamp_micros(at)?, id: id.parse().ok()? })
    }
}

/// A list of dead letters, newest first.
#[derive(Debug, Clone)]
pub struct DeadPage {
    /// The letters.
    pub items: Vec<DeadSummary>,
    /// How many match in all, up to [`TOTAL_MAX`], whichever page this is.
    pub total: i64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
    /// Where the next page begins; nothing: this was the last.
    pub next: Option<DeadCursor>,
    /// Letters archived before this were not looked at for this page; nothing: all were that could be on it.
    pub searched_since: Option<DateTime<Utc>>,
}

/// Letters that a statement looks at, or has found.
struct Place {
    archived_at: DateTime<Utc>,
    id: Uuid,
}

impl Place {
    const fn cursor(&self) -> DeadCursor {
        DeadCursor { archived_at: self.archived_at, id: self.id }
    }
}

impl Store {
    /// Lists dead letters, newest first.
    ///
    /// A recipient is found by the rows of the letter's request; of a letter that waits, only those count that failed or are
    /// held.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn dead_letters(&self, filter: &DeadFilter) -> Result<DeadPage, StoreError> {
        within_limit(async {
            let limit = usize::try_from(filter.limit).unwrap_or_default();
            let edge = self.dead_edge(filter.after).await?;
            let mut found = self.find_dead(filter, filter.after, edge, filter.limit + 1).await?;
            let has_more = found.len() > limit;
            let edge = edge.filter(|_| !has_more);
            found.truncate(limit);
            let next = if has_more { found.last().map(Place::cursor) } else { edge };
            let counted_to = self.dead_edge(None).await?;
            let counted = self.find_dead(filter, None, counted_to, TOTAL_MAX + 1).await?.len();
            let counted = i64::try_from(counted).unwrap_or(i64::MAX);
            let ids: Vec<Uuid> = found.iter().map(|place| place.id).collect();
            Ok(DeadPage {
                items: self.dead_summaries(&ids).await?,
                total: counted.min(TOTAL_MAX),
                total_is_exact: counted <= TOTAL_MAX && counted_to.is_none(),
                next,
                searched_since: edge.map(|edge| edge.archived_at),
            })
        })
        .await
    }

    /// What matches after one letter and down to another, which is looked at too.
    async fn find_dead(
        &self,
        filter: &DeadFilter,
        after: Option<DeadCursor>,
        edge: Option<DeadCursor>,
        limit: i64,
    ) -> Result<Vec<Place>, StoreError> {
        let states: Vec<String> = filter.states.iter().map(|state| state.name().to_owned()).collect();
        Ok(sqlx::query_as!(
            Place,
            "select d.archived_at, d.id from dead_letters d
             where (d.archived_at, d.id) < (coalesce($8, 'infinity'::timestamptz), coalesce($9, $10::uuid))
                and (d.archived_at, d.id) >= (coalesce($11, '-infinity'::timestamptz), coalesce($12, $13::uuid))
                and ($1::text is null or d.reason = $1) and ($2::text is null or d.template_key = $2)
                and ($3::text is null or d.source = $3)
                and (cardinality($4::text[]) = 0 or d.state = any($4))
                and ($5::timestamptz is null or coalesce(d.last_at, d.archived_at) >= $5)
                and ($6::timestamptz is null or coalesce(d.last_at, d.archived_at) < $6)
                and ($7::bytea is null or exists (
                    select 1 from email_messages m where m.request_id = d.request_id and m.recipient_hash = $7
                        and (d.state <> 'waiting' or m.status = 'failed' or m.held)))
             order by d.archived_at desc, d.id desc limit $14",
            filter.reason,
            filter.template_key,
            filter.source,
            &states,
            filter.since,
            filter.until,
            filter.recipient_hash.as_ref().map(<[u8; 32]>::as_slice),
            after.map(|after| after.archived_at),
            after.map(|after| after.id),
            Uuid::max(),
            edge.map(|edge| edge.archived_at),
            edge.map(|edge| edge.id),
            Uuid::nil(),
            limit
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// The last letter that a search from there looks at, if there are more.
    async fn dead_edge(&self, after: Option<DeadCursor>) -> Result<Option<DeadCursor>, StoreError> {
        let places = sqlx::query_as!(
            Place,
            "select archived_at, id from dead_letters
             where (archived_at, id) < (coalesce($1, 'infinity'::timestamptz), coalesce($2, $3::uuid))
             order by archived_at desc, id desc offset $4 limit 2",
            after.map(|after| after.archived_at),
            after.map(|after| after.id),
            Uuid::max(),
            SEARCHED_MAX - 1
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(places.first().filter(|_| places.len() > 1).map(Place::cursor))
    }

    async fn dead_summaries(&self, ids: &[Uuid]) -> Result<Vec<DeadSummary>, StoreError> {
        Ok(sqlx::query_as!(
            DeadSummary,
            r#"select id, reason, error, request_id, source, template_key, lane, attempts, state,
                coalesce(last_at, archived_at) as "at!", headers ->> 'x-recipients' as recipients
               from dead_letters where id = any($1) order by archived_at desc, id desc"#,
            ids
        )
        .fetch_all(&self.pool)
        .await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_anything_else_is_none() {
        let archived_at = DateTime::from_timestamp_micros(1_764_000_000_123_456).expect("a time");
        let cursor = DeadCursor { archived_at, id: Uuid::from_u128(7) };
        assert_eq!(DeadCursor::from_text(&cursor.to_text()), Some(cursor));
        for wrong in ["", ".", "1.x", "-1.00000000-0000-0000-0000-000000000000", "9223372036854775807.", "7"] {
            assert_eq!(DeadCursor::from_text(wrong), None, "{wrong}");
        }
    }
}
