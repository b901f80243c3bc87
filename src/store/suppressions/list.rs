//! Reading the suppression list: filtered and page by page for people, whole and in the order of its keys for a file.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};

use super::{Suppression, SuppressionChange};
use crate::{
    email::SuppressionReason,
    store::{Store, StoreError, messages::TOTAL_MAX, within_limit},
};

/// Which entries to list; every part that is given must match.
#[derive(Debug, Clone, Default)]
pub struct SuppressionFilter {
    /// Of this address.
    pub address_hash: Option<[u8; 32]>,
    /// For this reason.
    pub reason: Option<SuppressionReason>,
    /// From this source; `operator` finds every `operator:<name>`.
    pub source: Option<String>,
    /// After this entry, as an earlier page said.
    pub after: Option<Cursor>,
    /// At most this many.
    pub limit: i64,
}

/// A list of entries, newest first.
#[derive(Debug, Clone)]
pub struct SuppressionPage {
    /// The entries.
    pub items: Vec<Suppression>,
    /// How many match in all, up to [`TOTAL_MAX`].
    pub total: i64,
    /// Whether `total` is all of them.
    pub total_is_exact: bool,
    /// Where the next page begins; nothing: this was the last.
    pub next: Option<Cursor>,
}

/// A place in the list: entries that are added meanwhile do not move it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    created_at: DateTime<Utc>,
    address_hash: [u8; 32],
    reason: SuppressionReason,
    category: String,
}

impl Cursor {
    fn of(entry: &Suppression) -> Self {
        Self {
            created_at: entry.created_at,
            address_hash: entry.address_hash,
            reason: entry.reason,
            category: entry.category.clone().unwrap_or_default(),
        }
    }

    /// As it stands in a URL; of the address it holds only the hash.
    #[must_use]
    pub fn to_text(&self) -> String {
        let (at, hash) = (self.created_at.timestamp_micros(), hex::encode(self.address_hash));
        URL_SAFE_NO_PAD.encode(format!("{at}/{hash}/{}/{}", self.reason, self.category))
    }

    /// Reads what [`Cursor::to_text`] wrote.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok().filter(|text| !text.contains('\0'))?;
        let mut parts = text.splitn(4, '/');
        Some(Self {
            created_at: DateTime::from_timestamp_micros(parts.next()?.parse().ok()?)?,
            address_hash: hex::decode(parts.next()?).ok()?.try_into().ok()?,
            reason: SuppressionReason::from_name(parts.next()?)?,
            category: parts.next()?.to_owned(),
        })
    }
}

/// A row as the database has it.
pub(super) struct Row {
    pub(super) address_hash: Vec<u8>,
    pub(super) address: Option<String>,
    pub(super) reason: String,
    pub(super) category: String,
    pub(super) source: String,
    pub(super) note: Option<String>,
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) created_at: DateTime<Utc>,
}

impl Row {
    pub(super) fn entry(self) -> Result<Suppression, StoreError> {
        let newer = |what: &str| StoreError::Away(format!("unknown suppression {what}: is the schema newer?"));
        Ok(Suppression {
            address_hash: self.address_hash.try_into().map_err(|_| newer("hash"))?,
            address: self.address,
            reason: SuppressionReason::from_name(&self.reason).ok_or_else(|| newer(&self.reason))?,
            category: Some(self.category).filter(|category| !category.is_empty()),
            source: self.source,
            note: self.note,
            expires_at: self.expires_at,
            created_at: self.created_at,
        })
    }
}

impl Store {
    /// Lists entries, newest first; those that have run out as well.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn suppressions(&self, filter: &SuppressionFilter) -> Result<SuppressionPage, StoreError> {
        let hash = filter.address_hash.as_ref().map(<[u8; 32]>::as_slice);
        let (reason, source) = (filter.reason.map(SuppressionReason::name), filter.source.as_deref());
        let after = filter.after.as_ref();
        let reading = async {
            let rows = sqlx::query_as!(
                Row,
                "select address_hash, address, reason, category, source, note, expires_at, created_at from suppressions
                 where ($1::bytea is null or address_hash = $1) and ($2::text is null or reason = $2)
                    and ($3::text is null or source = $3 or starts_with(source, $3 || ':'))
                    -- a plain comparison, which the index answers whatever the plan was made for
                    and (created_at, address_hash, reason, category)
                        < (coalesce($4, 'infinity'::timestamptz), coalesce($5, ''::bytea), coalesce($6, ''), coalesce($7, ''))
                 order by created_at desc, address_hash desc, reason desc, category desc limit $8",
                hash,
                reason,
                source,
                after.map(|after| after.created_at),
                after.map(|after| after.address_hash.as_slice()),
                after.map(|after| after.reason.name()),
                after.map(|after| after.category.as_str()),
                filter.limit + 1
            )
            .fetch_all(&self.pool)
            .await?;
            let counted = sqlx::query_scalar!(
                r#"select count(*) as "n!" from (
                    select 1 from suppressions
                    where ($1::bytea is null or address_hash = $1) and ($2::text is null or reason = $2)
                        and ($3::text is null or source = $3 or starts_with(source, $3 || ':'))
                    limit $4) as few"#,
                hash,
                reason,
                source,
                TOTAL_MAX + 1
            )
            .fetch_one(&self.pool)
            .await?;
            Ok((rows, counted))
        };
        let (rows, counted) = within_limit(reading).await?;
        let mut items: Vec<Suppression> = rows.into_iter().map(Row::entry).collect::<Result<_, _>>()?;
        let limit = usize::try_from(filter.limit).unwrap_or_default();
        let has_more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| has_more).map(Cursor::of);
        Ok(SuppressionPage { items, total: counted.min(TOTAL_MAX), total_is_exact: counted <= TOTAL_MAX, next })
    }

    /// Every entry of one address.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn suppressions_of(&self, address_hash: &[u8; 32]) -> Result<Vec<Suppression>, StoreError> {
        let reading = sqlx::query_as!(
            Row,
            "select address_hash, address, reason, category, source, note, expires_at, created_at from suppressions
             where address_hash = $1 order by reason, category",
            address_hash.as_slice()
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(reading.await?) }).await?;
        rows.into_iter().map(Row::entry).collect()
    }

    /// What was changed about one address, oldest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn suppression_changes(&self, address_hash: &[u8; 32]) -> Result<Vec<SuppressionChange>, StoreError> {
        let reading = sqlx::query_as!(
            SuppressionChange,
            "select at, change, reason, category, changed_by, note from suppression_changes
             where address_hash = $1 order by id",
            address_hash.as_slice()
        )
        .fetch_all(&self.pool);
        within_limit(async { Ok(reading.await?) }).await
    }

    /// At most `limit` entries that follow one in the order of their keys, or the first: read so, the whole list takes little
    /// memory and holds no connection, and an entry that is there all the time is read once.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn suppressions_after(
        &self,
        after: Option<&Suppression>,
        limit: i64,
    ) -> Result<Vec<Suppression>, StoreError> {
        let reading = sqlx::query_as!(
            Row,
            "select address_hash, address, reason, category, source, note, expires_at, created_at from suppressions
             where (address_hash, reason, category) > ($1, $2, $3)
             order by address_hash, reason, category limit $4",
            // Nothing is before the empty key.
            after.map(|after| after.address_hash.as_slice()).unwrap_or_default(),
            after.map(|after| after.reason.name()).unwrap_or_default(),
            after.and_then(|after| after.category.as_deref()).unwrap_or_default(),
            limit
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(reading.await?) }).await?;
        rows.into_iter().map(Row::entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_anything_else_is_none() {
        let cursor = Cursor {
            created_at: DateTime::from_timestamp_micros(1_764_000_000_123_456).expect("a time"),
            address_hash: [7; 32],
            reason: SuppressionReason::Unsubscribe,
            category: "offres/été".to_owned(),
        };
        assert_eq!(Cursor::from_text(&cursor.to_text()), Some(cursor));
        for wrong in ["", "x", "MTIz", &URL_SAFE_NO_PAD.encode("1/00/unsubscribe/")] {
            assert_eq!(Cursor::from_text(wrong), None, "{wrong}");
        }
    }
}
