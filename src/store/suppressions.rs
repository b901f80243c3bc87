//! Who may not get mail: one row for each address, reason and category, and a line for every change of one.
//!
//! Invariant: writing is idempotent and never makes an entry weaker: one without an end keeps none, another keeps the later
//! end, and what has run out is renewed. Only lifting takes an entry away.
//! Invariant: the history holds hashes, never an address, and nothing is ever changed in it.

/// Reading the list, page by page.
mod list;

/// Templates for which all of it counts.
mod marketing;

/// The copy in memory, for the fast lane.
mod memory;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

pub use self::list::{Cursor, SuppressionFilter, SuppressionPage};
pub use self::marketing::MarketingTemplates;
pub(super) use self::memory::Suppressed;
use super::{Store, StoreError, whole::Whole, within_limit};
use crate::email::SuppressionReason;

/// The `source` of what a relay refused in the dialogue.
pub const BY_RELAY: &str = "smtp";
/// Entries that are written by one statement.
pub const BATCH: usize = 1000;
/// Longest `source`, in characters.
pub const SOURCE_CHARS_MAX: usize = 100;
/// Longest `category`, in characters.
pub const CATEGORY_CHARS_MAX: usize = 50;
/// Longest `note`, in characters.
pub const NOTE_CHARS_MAX: usize = 500;

/// An entry to be written. Texts that are too long are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSuppression {
    /// Keyed hash of the address: [`Store::address_hash`] of its key.
    pub address_hash: [u8; 32],
    /// The address. Personal.
    pub address: Option<String>,
    /// Why.
    pub reason: SuppressionReason,
    /// Who says so: `ses`, `smtp`, `operator:<name>` ...
    pub source: String,
    /// What was unsubscribed from, a template's category; nothing: everything.
    pub category: Option<String>,
    /// For operators.
    pub note: Option<String>,
    /// Until when; nothing: for ever.
    pub expires_at: Option<DateTime<Utc>>,
    /// Since when; nothing: now.
    pub created_at: Option<DateTime<Utc>>,
}

impl NewSuppression {
    /// From now on and for ever, without a category or a note.
    #[must_use]
    pub const fn new(
        address_hash: [u8; 32],
        address: Option<String>,
        reason: SuppressionReason,
        source: String,
    ) -> Self {
        Self { address_hash, address, reason, source, category: None, note: None, expires_at: None, created_at: None }
    }

    /// The same key twice in one batch is one entry, as if one had been written after the other.
    fn absorb(&mut self, later: &Self) {
        self.expires_at = match (self.expires_at, later.expires_at) {
            (Some(one), Some(other)) => Some(one.max(other)),
            _ => None,
        };
        self.created_at = match (self.created_at, later.created_at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        if self.address.is_none() {
            self.address.clone_from(&later.address);
        }
        if later.note.is_some() {
            self.note.clone_from(&later.note);
        }
    }
}

/// An entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    /// Keyed hash of the address.
    pub address_hash: [u8; 32],
    /// The address, until it is anonymised. Personal.
    pub address: Option<String>,
    /// Why.
    pub reason: SuppressionReason,
    /// What was unsubscribed from; nothing: everything.
    pub category: Option<String>,
    /// Who said so first.
    pub source: String,
    /// For operators.
    pub note: Option<String>,
    /// Until when; nothing: for ever.
    pub expires_at: Option<DateTime<Utc>>,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

impl Suppression {
    /// Whether it stops mail now.
    #[must_use]
    pub fn is_in_force(&self, now: DateTime<Utc>) -> bool {
        self.expires_at.is_none_or(|at| at > now)
    }
}

/// What writing entries changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// New ones.
    pub added: usize,
    /// Renewed, prolonged, or with another note.
    pub changed: usize,
    /// As they were.
    pub unchanged: usize,
}

impl std::ops::AddAssign for Written {
    fn add_assign(&mut self, more: Self) {
        self.added += more.added;
        self.changed += more.changed;
        self.unchanged += more.unchanged;
    }
}

/// One line of an address' history.
#[derive(Debug, Clone)]
pub struct SuppressionChange {
    /// When.
    pub at: DateTime<Utc>,
    /// `added`, `changed` or `lifted`.
    pub change: String,
    /// Which entry.
    pub reason: String,
    /// Empty: everything.
    pub category: String,
    /// By whom.
    pub changed_by: String,
    /// Why.
    pub note: Option<String>,
}

/// Puts addresses on the list, in the caller's transaction.
///
/// # Errors
/// When the database is away.
pub async fn suppress_in(tx: &mut PgConnection, entries: &[NewSuppression]) -> Result<Written, StoreError> {
    write(tx, entries, None).await
}

impl Store {
    /// Puts addresses on the list.
    ///
    /// # Errors
    /// When the database is away; batches of [`BATCH`] that were committed before stay.
    pub async fn suppress(&self, entries: &[NewSuppression]) -> Result<Written, StoreError> {
        self.suppress_as(entries, None, |_| ()).await
    }

    /// The same on behalf of somebody else than the entries' sources, telling after each batch how many are done. Each batch is
    /// committed by itself: outcomes that suppress the same addresses wait for one, not for a whole file.
    ///
    /// # Errors
    /// When the database is away; what was committed before stays, and writing it again changes nothing.
    pub async fn suppress_as(
        &self,
        entries: &[NewSuppression],
        by: Option<&str>,
        mut progress: impl FnMut(usize),
    ) -> Result<Written, StoreError> {
        let (mut written, mut done) = (Written::default(), 0);
        for batch in entries.chunks(BATCH) {
            written += within_limit(async {
                // One statement is its own transaction.
                let mut whole = Whole::of(&self.pool).await?;
                let written = write(whole.connection(), batch, by).await?;
                whole.end();
                Ok(written)
            })
            .await?;
            done += batch.len();
            progress(done);
        }
        Ok(written)
    }

    /// Takes an address off the list: all its entries, or those of a reason or category. Answers what was lifted.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn lift_suppressions(
        &self,
        address_hash: &[u8; 32],
        reason: Option<SuppressionReason>,
        category: Option<&str>,
        by: &str,
        note: Option<&str>,
    ) -> Result<Vec<Suppression>, StoreError> {
        let lifting = sqlx::query_as!(
            list::Row,
            r#"
            with lifted as (
                delete from suppressions where address_hash = $1 and ($2::text is null or reason = $2)
                    and ($3::text is null or category = $3)
                returning address_hash, address, reason, category, source, note, expires_at, created_at
            ), told as (
                insert into suppression_changes (address_hash, reason, category, change, changed_by, note)
                select address_hash, reason, category, 'lifted', $4, $5 from lifted
            ), logged as (
                insert into operator_changes (changed_by, action, target, before)
                select $4, 'suppression.lift', encode(address_hash, 'hex'), jsonb_strip_nulls(jsonb_build_object(
                    'reason', reason, 'category', nullif(category, ''), 'source', source, 'expires_at', expires_at))
                from lifted
            )
            select address_hash as "address_hash!", address, reason as "reason!", category as "category!",
                source as "source!", note, expires_at, created_at as "created_at!"
            from lifted order by reason, category
            "#,
            address_hash.as_slice(),
            reason.map(SuppressionReason::name),
            category,
            clipped(by, SOURCE_CHARS_MAX),
            note.map(|note| clipped(note, NOTE_CHARS_MAX))
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(lifting.await?) }).await?;
        rows.into_iter().map(list::Row::entry).collect()
    }
}

/// One statement, whatever their number; the same key twice counts as unchanged the second time.
async fn write(
    connection: &mut PgConnection,
    entries: &[NewSuppression],
    by: Option<&str>,
) -> Result<Written, StoreError> {
    // In the order of their keys, so that two batches cannot lock each other out.
    let mut merged: BTreeMap<([u8; 32], &str, String), NewSuppression> = BTreeMap::new();
    for entry in entries {
        let category = clipped(entry.category.as_deref().unwrap_or_default(), CATEGORY_CHARS_MAX);
        merged
            .entry((entry.address_hash, entry.reason.name(), category))
            .and_modify(|known| known.absorb(entry))
            .or_insert_with(|| entry.clone());
    }
    let mut c = Columns::default();
    for ((hash, reason, category), entry) in &merged {
        c.push(hash, reason, category, entry, by);
    }
    let counts = sqlx::query!(
        r#"
        with written as (
            insert into suppressions as s
                (address_hash, address, reason, category, source, note, expires_at, created_at)
            select g.address_hash, g.address, g.reason, g.category, g.source, g.note, g.expires_at,
                coalesce(g.created_at, now())
            from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                $8::timestamptz[]) as g (address_hash, address, reason, category, source, note, expires_at, created_at)
            on conflict (address_hash, reason, category) do update set
                address = coalesce(s.address, excluded.address),
                source = case when s.expires_at <= now() then excluded.source else s.source end,
                note = coalesce(excluded.note, s.note),
                expires_at = case when excluded.expires_at is null then null
                    else greatest(s.expires_at, excluded.expires_at) end,
                created_at = least(s.created_at, excluded.created_at)
            where s.expires_at < coalesce(excluded.expires_at, 'infinity') or excluded.note <> coalesce(s.note, '')
                or s.address is null and excluded.address is not null or excluded.created_at < s.created_at
            returning s.address_hash, s.reason, s.category, s.note, s.expires_at, s.xmax = 0 as is_new
        ), told as (
            insert into suppression_changes (address_hash, reason, category, change, changed_by, note)
            select w.address_hash, w.reason, w.category, case when w.is_new then 'added' else 'changed' end, g.by, w.note
            from written w join unnest($1::bytea[], $3::text[], $4::text[], $9::text[])
                as g (address_hash, reason, category, by)
                on g.address_hash = w.address_hash and g.reason = w.reason and g.category = w.category
        ), logged as (
            -- A file is one line for each batch of it.
            insert into operator_changes (changed_by, action, target, after)
            select g.by, case count(*) when 1 then 'suppression.add' else 'suppression.import' end,
                case count(*) when 1 then min(encode(w.address_hash, 'hex')) else count(*) || ' entries' end,
                case count(*) when 1 then jsonb_strip_nulls(jsonb_build_object('reason', min(w.reason),
                    'category', nullif(min(w.category), ''), 'expires_at', min(w.expires_at)))
                    else jsonb_build_object('added', count(*) filter (where w.is_new),
                        'changed', count(*) filter (where not w.is_new)) end
            from written w join unnest($1::bytea[], $3::text[], $4::text[], $9::text[])
                as g (address_hash, reason, category, by)
                on g.address_hash = w.address_hash and g.reason = w.reason and g.category = w.category
            where starts_with(g.by, 'operator:') group by g.by
        )
        select count(*) filter (where is_new) as "added!", count(*) filter (where not is_new) as "changed!" from written
        "#,
        &c.address_hash as _,
        &c.address as _,
        &c.reason as _,
        &c.category as _,
        &c.source,
        &c.note as _,
        &c.expires_at as _,
        &c.created_at as _,
        &c.by
    )
    .fetch_one(connection)
    .await?;
    let count = |n: i64| usize::try_from(n).unwrap_or_default();
    let (added, changed) = (count(counts.added), count(counts.changed));
    Ok(Written { added, changed, unchanged: entries.len().saturating_sub(added + changed) })
}

#[derive(Default)]
struct Columns<'a> {
    address_hash: Vec<&'a [u8]>,
    address: Vec<Option<&'a str>>,
    reason: Vec<&'a str>,
    category: Vec<&'a str>,
    source: Vec<String>,
    note: Vec<Option<String>>,
    expires_at: Vec<Option<DateTime<Utc>>>,
    created_at: Vec<Option<DateTime<Utc>>>,
    by: Vec<String>,
}

impl<'a> Columns<'a> {
    fn push(
        &mut self,
        hash: &'a [u8; 32],
        reason: &'a str,
        category: &'a str,
        entry: &'a NewSuppression,
        by: Option<&str>,
    ) {
        let source = clipped(&entry.source, SOURCE_CHARS_MAX);
        self.address_hash.push(hash);
        self.address.push(entry.address.as_deref());
        self.reason.push(reason);
        self.category.push(category);
        self.by.push(by.map_or_else(|| source.clone(), |by| clipped(by, SOURCE_CHARS_MAX)));
        self.source.push(source);
        let note = entry.note.as_deref().map(|note| clipped(note, NOTE_CHARS_MAX));
        self.note.push(note.filter(|note| !note.is_empty()));
        self.expires_at.push(entry.expires_at);
        self.created_at.push(entry.created_at);
    }
}

/// What the database takes of a text, so that no relay's or provider's words can keep an entry off the list.
fn clipped(text: &str, chars_max: usize) -> String {
    text.chars().filter(|c| *c != '\0').take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn the_same_entry_twice_is_the_stronger_of_both() {
        let now = Utc::now();
        let entry = |expires_at: Option<DateTime<Utc>>| NewSuppression {
            expires_at,
            ..NewSuppression::new([1; 32], None, SuppressionReason::HardBounce, "ses".to_owned())
        };
        let (soon, later) = (Some(now + TimeDelta::days(1)), Some(now + TimeDelta::days(9)));
        for (one, other, expected) in
            [(soon, later, later), (later, soon, later), (None, soon, None), (soon, None, None)]
        {
            let mut merged = entry(one);
            merged.absorb(&NewSuppression {
                address: Some("a@example.bj".to_owned()),
                note: Some("General".to_owned()),
                created_at: Some(now),
                ..entry(other)
            });
            assert_eq!(merged.expires_at, expected);
            assert_eq!((merged.note.as_deref(), merged.created_at), (Some("General"), Some(now)));
            assert_eq!(merged.address.as_deref(), Some("a@example.bj"));
        }
    }

    #[test]
    fn no_words_are_too_long_or_too_odd_to_be_stored() {
        assert_eq!(clipped("a\0b\u{e9}cd", 3), "ab\u{e9}");
    }
}
