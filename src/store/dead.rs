//! Dead letters as rows: what operators look at, so that nobody has to browse a queue.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{Store, StoreError};

/// A dead letter on its way into the archive.
#[derive(Debug, Clone)]
pub struct NewDeadLetter {
    /// The settlement id, else a hash of bytes and headers: the same letter is archived once.
    pub settlement_key: String,
    /// Why.
    pub reason: String,
    /// For people.
    pub error: Option<String>,
    /// If the bytes told.
    pub request_id: Option<Uuid>,
    /// Who asked.
    pub source: Option<String>,
    /// Which template.
    pub template_key: Option<String>,
    /// Where it travelled.
    pub lane: Option<String>,
    /// SMTP attempts.
    pub attempts: Option<i32>,
    /// The producer's.
    pub routing_key: Option<String>,
    /// When it was first seen.
    pub first_at: Option<DateTime<Utc>>,
    /// When it failed.
    pub last_at: Option<DateTime<Utc>>,
    /// Of the copy that failed.
    pub generation: i32,
    /// AMQP properties.
    pub properties: Value,
    /// AMQP headers.
    pub headers: Value,
    /// The message.
    pub body: Vec<u8>,
}

/// A dead letter in a list.
#[derive(Debug, Clone)]
pub struct DeadSummary {
    /// The row.
    pub id: Uuid,
    /// Why.
    pub reason: String,
    /// For people.
    pub error: Option<String>,
    /// If the bytes told.
    pub request_id: Option<Uuid>,
    /// Who asked.
    pub source: Option<String>,
    /// Which template.
    pub template_key: Option<String>,
    /// Where it travelled.
    pub lane: Option<String>,
    /// SMTP attempts.
    pub attempts: Option<i32>,
    /// waiting, replayed, discarded.
    pub state: String,
    /// When it failed, else when it was archived.
    pub at: DateTime<Utc>,
}

/// A dead letter with everything that came with it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// As in a list.
    pub summary: DeadSummary,
    /// The producer's.
    pub routing_key: Option<String>,
    /// When it was first seen.
    pub first_at: Option<DateTime<Utc>>,
    /// AMQP properties.
    pub properties: Value,
    /// AMQP headers.
    pub headers: Value,
    /// The message; nothing once anonymised.
    pub body: Option<Vec<u8>>,
    /// Its size.
    pub body_bytes: i32,
}

/// Which dead letters to list.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// Of this reason.
    pub reason: Option<String>,
    /// Of this template.
    pub template_key: Option<String>,
    /// Of this source.
    pub source: Option<String>,
    /// At most this many.
    pub limit: i64,
}

impl Store {
    /// Archives a dead letter; the same one a second time changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Away`]: leave it in its queue.
    pub async fn archive_dead(&self, letter: &NewDeadLetter) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into dead_letters (id, settlement_key, reason, error, request_id, source, template_key, lane, attempts,
                routing_key, first_at, last_at, generation, properties, headers, body, body_bytes)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
             on conflict (settlement_key) do nothing",
            Uuid::now_v7(),
            letter.settlement_key,
            letter.reason,
            letter.error,
            letter.request_id,
            letter.source,
            letter.template_key,
            letter.lane,
            letter.attempts,
            letter.routing_key,
            letter.first_at,
            letter.last_at,
            letter.generation,
            letter.properties,
            letter.headers,
            letter.body,
            i32::try_from(letter.body.len()).unwrap_or(i32::MAX)
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Lists dead letters, newest first, and how many match in all.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn dead_letters(&self, filter: &DeadFilter) -> Result<(Vec<DeadSummary>, i64), StoreError> {
        let items = sqlx::query_as!(
            DeadSummary,
            r#"select id, reason, error, request_id, source, template_key, lane, attempts, state,
                coalesce(last_at, archived_at) as "at!"
               from dead_letters
               where ($1::text is null or reason = $1) and ($2::text is null or template_key = $2)
                 and ($3::text is null or source = $3)
               order by archived_at desc, id desc limit $4"#,
            filter.reason,
            filter.template_key,
            filter.source,
            filter.limit
        )
        .fetch_all(&self.pool)
        .await?;
        let total = sqlx::query_scalar!(
            r#"select count(*) as "n!" from dead_letters
               where ($1::text is null or reason = $1) and ($2::text is null or template_key = $2)
                 and ($3::text is null or source = $3)"#,
            filter.reason,
            filter.template_key,
            filter.source
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((items, total))
    }

    /// One dead letter, by its id or by its request's (the newest of it).
    ///
    /// # Errors
    /// When the database is away.
    pub async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        let row = sqlx::query!(
            r#"select id, reason, error, request_id, source, template_key, lane, attempts, state,
                coalesce(last_at, archived_at) as "at!", routing_key, first_at, properties, headers, body, body_bytes
               from dead_letters where id = $1 or request_id = $1 order by archived_at desc limit 1"#,
            id
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| DeadLetter {
            summary: DeadSummary {
                id: row.id,
                reason: row.reason,
                error: row.error,
                request_id: row.request_id,
                source: row.source,
                template_key: row.template_key,
                lane: row.lane,
                attempts: row.attempts,
                state: row.state,
                at: row.at,
            },
            routing_key: row.routing_key,
            first_at: row.first_at,
            properties: row.properties,
            headers: row.headers,
            body: row.body,
            body_bytes: row.body_bytes,
        }))
    }
}
