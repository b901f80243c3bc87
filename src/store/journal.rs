//! What the fast lane did without a database, as entries that are written into the audit when it is back.
//!
//! Each entry is whole: it holds the request, all of its recipients, and one step of one of them, so that it needs no
//! other entry to have come before it.
//! Invariant: an entry counts once (its id), and never moves a row backwards, whatever the order the entries arrive in:
//! see `progress::Progress`.

/// What an entry holds.
mod entry;

/// How far a mail is.
mod progress;

/// Writing them into the audit.
mod apply;

/// What a step changes in a mail's row.
mod step;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

pub use self::entry::{Ended, Entry, EntryAttachment, EntryRecipient, EntryRequest, EntryWords, ReceivedEntry, Step};
use super::{NOTICED_WHEN_IT_VANISHES, PLAN_ONCE, Store, StoreError, events_setting, within_limit};
use crate::email::Lane;

/// Serialises the daemons that write the journal.
const JOURNAL_LOCK: i64 = 0x6a6f_7572_6e61_6c00;

/// The right to write the journal: one daemon at a time has it. Given back when it is dropped.
pub struct JournalLock {
    /// Of its own, beside the pools: the lock goes with the session, and a pool would keep both.
    connection: PgConnection,
}

impl Store {
    /// The name of this daemon's lease.
    #[must_use]
    pub const fn worker_id(&self) -> Uuid {
        self.worker_id
    }

    /// Asks for the right to write the journal; nothing: another daemon has it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn try_lock_journal(&self) -> Result<Option<JournalLock>, StoreError> {
        let options = self.pool.connect_options();
        let locking = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            sqlx::raw_sql(NOTICED_WHEN_IT_VANISHES).execute(&mut connection).await?;
            sqlx::raw_sql(PLAN_ONCE).execute(&mut connection).await?;
            if let Some(setting) = events_setting(self.events) {
                sqlx::raw_sql(setting).execute(&mut connection).await?;
            }
            let is_ours = sqlx::query_scalar!("select pg_try_advisory_lock($1) as \"is_ours!\"", JOURNAL_LOCK)
                .fetch_one(&mut connection)
                .await?;
            Ok(is_ours.then_some(JournalLock { connection }))
        };
        within_limit(locking).await
    }

    /// Whether no daemon has the right to write the journal at this moment. It is taken and given back at once.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn nobody_writes_the_journal(&self) -> Result<bool, StoreError> {
        let asking = sqlx::query_scalar!("select pg_try_advisory_xact_lock($1) as \"is_free!\"", JOURNAL_LOCK)
            .fetch_one(self.pool_of(Lane::Fast));
        within_limit(async { Ok(asking.await?) }).await
    }

    /// Writes entries into the audit, all of them or none, their files before; one that was written before changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Away`]: leave them in their queue. [`StoreError::Data`]: one of them cannot be stored.
    pub async fn apply_journal(&self, lock: &mut JournalLock, entries: &[ReceivedEntry]) -> Result<(), StoreError> {
        for received in entries {
            within_limit(apply::keep_files(&mut lock.connection, received)).await?;
        }
        let applying = async {
            let mut tx = lock.connection.begin().await?;
            apply::apply(&mut tx, entries).await?;
            tx.commit().await?;
            self.outbox_written.notify_one();
            Ok(())
        };
        within_limit(applying).await
    }

    /// Gives the right back, and says goodbye.
    pub async fn unlock_journal(&self, lock: JournalLock) {
        drop(within_limit(async { Ok(lock.connection.close().await?) }).await);
    }
}
