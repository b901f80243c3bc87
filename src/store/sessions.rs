//! Sessions of operators who signed in to the pages.
//!
//! Invariant: what is stored opens nothing: of a session's secret there is only the hash.

use std::time::Duration;

use super::{Store, StoreError, within_limit};

/// A session ends this long after signing in, whatever happens.
pub const SESSION_MAX: Duration = Duration::from_secs(12 * 3600);
/// And this long after the last look.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(2 * 3600);

/// Sessions of one operator at once; the one that was used longest ago gives way.
const SESSIONS_OF_ONE_MAX: i64 = 20;

/// A session as it is kept.
#[derive(Debug, Clone)]
pub struct StoredSession {
    /// The token's name.
    pub operator: String,
    /// What only the session's secret and the operator's token together make.
    pub proof: Vec<u8>,
}

impl Store {
    /// Begins a session, and forgets those that have ended or are too many.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn begin_session(&self, id: &[u8; 32], operator: &str, proof: &[u8; 32]) -> Result<(), StoreError> {
        let beginning = sqlx::query!(
            "with over as (
                delete from operator_sessions where expires_at <= now() or seen_at <= now() - make_interval(secs => $5)
                    or id in (select id from operator_sessions where operator = $2 order by seen_at desc offset $6))
             insert into operator_sessions (id, operator, proof, expires_at)
             values ($1, $2, $3, now() + make_interval(secs => $4))",
            id.as_slice(),
            operator,
            proof.as_slice(),
            SESSION_MAX.as_secs_f64(),
            SESSION_IDLE_MAX.as_secs_f64(),
            SESSIONS_OF_ONE_MAX - 1
        )
        .execute(&self.pool);
        within_limit(async { Ok(beginning.await?) }).await?;
        Ok(())
    }

    /// The session of this id, unless it has ended. Notes at most once a minute that it was used.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn session(&self, id: &[u8; 32]) -> Result<Option<StoredSession>, StoreError> {
        let reading = sqlx::query_as!(
            StoredSession,
            "with seen as (
                update operator_sessions set seen_at = now()
                where id = $1 and seen_at < now() - interval '1 minute' and seen_at > now() - make_interval(secs => $2))
             select operator, proof from operator_sessions
             where id = $1 and expires_at > now() and seen_at > now() - make_interval(secs => $2)",
            id.as_slice(),
            SESSION_IDLE_MAX.as_secs_f64()
        )
        .fetch_optional(&self.pool);
        within_limit(async { Ok(reading.await?) }).await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn end_session(&self, id: &[u8; 32]) -> Result<(), StoreError> {
        let ending = sqlx::query!("delete from operator_sessions where id = $1", id.as_slice()).execute(&self.pool);
        within_limit(async { Ok(ending.await?) }).await?;
        Ok(())
    }
}
