//! Lists of mails, newest first.
//!
//! Ids begin with the publish time, so a range of time is a range of ids and the primary key is the list. What has no index
//! (status, template, source) is looked for in at most `SEARCHED_MAX` rows from where a page begins: an index on the status
//! would have to be written for every mail three times, to answer a question that is nearly always about the last hours.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{MessagePage, MessageSummary, TOTAL_MAX};
use crate::{
    email::{
        Status,
        identity::{first_row_id, published_at},
    },
    store::{Store, StoreError, within_limit},
};

/// Rows that are looked at for one page, and for its total, where a filter has no index.
pub const SEARCHED_MAX: i64 = 50_000;

/// Which mails to list; every part that is given must match.
#[derive(Debug, Clone, Default)]
pub struct MessageFilter {
    /// The recipient's keyed hash.
    pub recipient_hash: Option<[u8; 32]>,
    /// These requests only.
    pub request_ids: Option<Vec<Uuid>>,
    /// Standing there now.
    pub status: Option<Status>,
    /// Of this template.
    pub template_key: Option<String>,
    /// From this source.
    pub source: Option<String>,
    /// Published at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Published before this time.
    pub until: Option<DateTime<Utc>>,
    /// Older than this mail: an earlier page's [`MessagePage::next`].
    pub after: Option<Uuid>,
    /// At most this many.
    pub limit: i64,
}

impl MessageFilter {
    /// How far to look. Where every row of the range matches, no further than is shown or counted.
    fn rows_max(&self) -> i64 {
        if self.status.is_none() && self.template_key.is_none() && self.source.is_none() {
            TOTAL_MAX.max(self.limit) + 1
        } else {
            SEARCHED_MAX
        }
    }
}

/// What a search found.
struct Found {
    /// Newest first; one more than was asked for if there are more.
    ids: Vec<Uuid>,
    /// The last row that was looked at and the one after it. Only asked for where `ids` are too few.
    edge: Option<Vec<Uuid>>,
    counted: i64,
    /// There are rows that were not looked at to count.
    is_cut: Option<bool>,
}

/// One statement, so that all its parts see the same rows. `$which` begins the condition with what has an index; its own
/// parameters begin at $10.
macro_rules! find {
    ($range:ident, $filter:ident, $which:tt $(, $key:expr)*) => {
        sqlx::query_as!(
            Found,
            "with hits as materialized (
                select id from (
                    select id, status, template_key, source_endpoint from email_messages
                    where " + $which + " id >= $1 and id < $2 order by id desc limit $7) as looked
                where ($4::text is null or status = $4) and ($5::text is null or template_key = $5)
                    and ($6::text is null or source_endpoint = $6)
                order by id desc limit $8),
             counted as materialized (
                select count(*) as n from (
                    select 1 from (
                        select id, status, template_key, source_endpoint from email_messages
                        where " + $which + " id >= $1 and id < $3 order by id desc limit $7) as looked
                    where ($4::text is null or status = $4) and ($5::text is null or template_key = $5)
                        and ($6::text is null or source_endpoint = $6)
                    limit $9) as few)
             select array(select id from hits order by id desc) as \"ids!\",
                case when (select count(*) from hits) < $8 then array(
                    select id from email_messages where " + $which + " id >= $1 and id < $2
                    order by id desc offset $7 - 1 limit 2) end as edge,
                (select n from counted) as \"counted!\",
                case when (select n from counted) < $9 then exists (
                    select 1 from email_messages where " + $which + " id >= $1 and id < $3
                    order by id desc offset $7) end as is_cut",
            $range.0,
            $range.1,
            $range.2,
            $filter.status.map(Status::name),
            $filter.template_key,
            $filter.source,
            $filter.rows_max(),
            $filter.limit + 1,
            TOTAL_MAX + 1
            $(, $key)*
        )
    };
}

impl Store {
    /// Lists mails, newest first by their publish time.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn messages(&self, filter: &MessageFilter) -> Result<MessagePage, StoreError> {
        within_limit(async {
            let mut found = self.find(filter).await?;
            let limit = usize::try_from(filter.limit).unwrap_or_default();
            let edge = match found.edge.as_deref() {
                Some(&[last, _]) => Some(last),
                _ => None,
            };
            let next = if found.ids.len() > limit { found.ids.get(limit.saturating_sub(1)).copied() } else { edge };
            found.ids.truncate(limit);
            let is_exact = found.counted <= TOTAL_MAX && found.is_cut == Some(false);
            Ok(MessagePage {
                items: self.summaries(&found.ids).await?,
                total: found.counted.min(TOTAL_MAX),
                total_is_exact: is_exact,
                next,
                // Of the last millisecond some may not have been looked at.
                searched_since: edge.and_then(published_at).map(|at| at + TimeDelta::milliseconds(1)),
            })
        })
        .await
    }

    async fn find(&self, filter: &MessageFilter) -> Result<Found, StoreError> {
        let from = filter.since.map_or(Uuid::nil(), first_row_id);
        let to = filter.until.map_or(Uuid::max(), first_row_id);
        let range = (from, filter.after.map_or(to, |after| after.min(to)), to);
        let hash = filter.recipient_hash.as_ref().map(<[u8; 32]>::as_slice);
        // A statement for each index: one for all would have one plan for all.
        Ok(match (hash, filter.request_ids.as_deref()) {
            (None, None) => find!(range, filter, "").fetch_one(&self.pool).await?,
            (Some(hash), None) => find!(range, filter, "recipient_hash = $10 and", hash).fetch_one(&self.pool).await?,
            (None, Some(ids)) => find!(range, filter, "request_id = any($10) and", ids).fetch_one(&self.pool).await?,
            (Some(hash), Some(ids)) => {
                find!(range, filter, "request_id = any($10) and recipient_hash = $11 and", ids, hash)
                    .fetch_one(&self.pool)
                    .await?
            }
        })
    }

    async fn summaries(&self, ids: &[Uuid]) -> Result<Vec<MessageSummary>, StoreError> {
        Ok(sqlx::query_as!(
            MessageSummary,
            r#"select m.id, m.request_id, m.recipient_email as "to", m.subject, m.status, m.sent_at, m.delivered_at,
                m.bounce_type, m.bounce_subtype, m.complaint_type, m.created_at, m.template_key, m.template_version,
                r.source, r.lane, m.attempts,
                case when m.sent_at is not null
                    then (extract(epoch from m.sent_at - r.published_at) * 1000)::bigint end as latency_ms,
                m.reason, m.error_message as error
               from email_messages m join email_requests r on r.id = m.request_id
               where m.id = any($1) order by m.id desc"#,
            ids
        )
        .fetch_all(&self.pool)
        .await?)
    }
}
