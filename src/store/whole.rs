//! Transactions on connections of a pool that can be given up at any moment.
//!
//! sqlx 0.9 does not notice when `begin` is cancelled while its answer is on the way: the connection goes back to its pool inside a
//! transaction, and what others commit on it later is gone with it. Our limits cancel, so a connection whose transaction did
//! not come to its end is closed.

use sqlx::{PgPool, Postgres, pool::PoolConnection};

use super::StoreError;

/// A connection that is closed, not handed back, unless its transaction came to its end.
pub(super) struct Whole {
    connection: Option<PoolConnection<Postgres>>,
}

impl Whole {
    /// Takes a connection out of the pool.
    pub(super) async fn of(pool: &PgPool) -> Result<Self, StoreError> {
        Ok(Self { connection: Some(pool.acquire().await?) })
    }

    /// The connection, to begin on.
    pub(super) fn connection(&mut self) -> &mut PoolConnection<Postgres> {
        self.connection.as_mut().expect("it is there until the end")
    }

    /// Committed or rolled back: back to the pool.
    pub(super) fn end(mut self) {
        drop(self.connection.take());
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}
