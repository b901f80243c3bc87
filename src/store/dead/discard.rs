//! Dead letters that an operator wants nothing of any more: they are never replayed, and stay to be looked at.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::store::{Store, StoreError, replay::LetterState, within_limit};

/// Longest note, in characters.
pub const NOTE_CHARS_MAX: usize = 500;

/// Who discarded a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discard {
    /// `operator:<name>`.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// When.
    pub at: DateTime<Utc>,
}

/// What became of discarding one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discarded {
    /// It is discarded now.
    Done(Discard),
    /// It was before, by whoever this says.
    Before(Option<Discard>),
    /// It was replayed, or is on its way: there is nothing left to discard.
    Refused(LetterState),
    /// There is no such letter.
    Unknown,
}

impl Store {
    /// Discards a letter that waits. A replay of it at the same moment either comes first, and this is refused, or finds it
    /// discarded.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn discard(&self, id: Uuid, by: &str, note: Option<&str>) -> Result<Discarded, StoreError> {
        let discarding = sqlx::query_as!(
            Discard,
            r#"with discarded as (
                update dead_letters set state = 'discarded' where id = $1 and state = 'waiting' returning id, reason),
               logged as (
                insert into operator_changes (changed_by, action, target, before, after)
                select left($2, 100), 'dead_letter.discard', id::text,
                    jsonb_build_object('state', 'waiting', 'reason', reason), jsonb_build_object('state', 'discarded')
                from discarded)
               insert into dead_letter_discards (dead_letter_id, discarded_by, note)
               select id, left($2, 100), left($3, 500) from discarded
               returning discarded_by as by, note, at"#,
            id,
            by,
            note
        )
        .fetch_optional(&self.pool);
        if let Some(discard) = within_limit(async { Ok(discarding.await?) }).await? {
            return Ok(Discarded::Done(discard));
        }
        let reading =
            sqlx::query_scalar!("select state from dead_letters where id = $1", id).fetch_optional(&self.pool);
        let Some(state) = within_limit(async { Ok(reading.await?) }).await? else { return Ok(Discarded::Unknown) };
        match LetterState::from_name(&state) {
            Some(LetterState::Discarded) => Ok(Discarded::Before(self.discard_of(id).await?)),
            Some(state) => Ok(Discarded::Refused(state)),
            None => Err(StoreError::Away(format!("unknown state {state:?}: is the schema newer?"))),
        }
    }

    /// Who discarded this letter.
    pub(super) async fn discard_of(&self, id: Uuid) -> Result<Option<Discard>, StoreError> {
        let reading = sqlx::query_as!(
            Discard,
            "select discarded_by as by, note, at from dead_letter_discards where dead_letter_id = $1",
            id
        )
        .fetch_optional(&self.pool);
        within_limit(async { Ok(reading.await?) }).await
    }
}
