//! Dead letters as rows: what operators look at, so that nobody has to browse a queue.

/// Lists, page by page.
mod list;

/// What operators want nothing of any more.
mod discard;

/// What waits, grouped.
mod groups;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

pub use self::{
    discard::{Discard, Discarded, NOTE_CHARS_MAX},
    groups::{DeadGroup, DeadGroups},
    list::{DeadCursor, DeadPage},
};
use super::{Store, StoreError, replay::LetterState, within_limit};

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
    /// Of a request that no queue took: what its event says.
    pub unrouted: Option<Unrouted>,
}

/// A request that no queue took, as its event tells of it.
#[derive(Debug, Clone)]
pub struct Unrouted {
    /// Who asked; the first word of the event's routing key.
    pub source: String,
    /// The request's, if it could be read.
    pub metadata: Option<Value>,
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
    /// waiting, replaying, replayed, discarded.
    pub state: String,
    /// When it failed, else when it was archived.
    pub at: DateTime<Utc>,
    /// JSON: the recipients that failed or are held, and why.
    pub recipients: Option<String>,
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
    /// When it was archived.
    pub archived_at: DateTime<Utc>,
    /// When it went on its way again.
    pub replayed_at: Option<DateTime<Utc>>,
    /// Who discarded it.
    pub discard: Option<Discard>,
}

/// Which dead letters are meant; every part that is given must match.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// Of this reason.
    pub reason: Option<String>,
    /// Of this template.
    pub template_key: Option<String>,
    /// Of this source.
    pub source: Option<String>,
    /// In one of these states; none given: in any.
    pub states: Vec<LetterState>,
    /// Failed at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Failed before this time.
    pub until: Option<DateTime<Utc>>,
    /// The recipient's keyed hash.
    pub recipient_hash: Option<[u8; 32]>,
    /// After this letter, as an earlier page said.
    pub after: Option<DeadCursor>,
    /// At most this many.
    pub limit: i64,
}

impl Store {
    /// Archives a dead letter; the same one a second time changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Away`]: leave it in its queue.
    pub async fn archive_dead(&self, letter: &NewDeadLetter) -> Result<(), StoreError> {
        let archiving = sqlx::query!(
            "with letter as (
                insert into dead_letters (id, settlement_key, reason, error, request_id, source, template_key, lane, attempts,
                    routing_key, first_at, last_at, generation, properties, headers, body, body_bytes)
                values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
                on conflict (settlement_key) do nothing
                returning id, request_id, routing_key)
             insert into outbox (source, kind, request_id, attempt, reason, occurred_at, dead_letter_id, metadata)
             select $18::text, 'unrouted', request_id, 0, 'no binding matches the routing key ' || routing_key, now(), id,
                $19::jsonb
             from letter
             where $18::text is not null and current_setting('postrider.events', true) is distinct from 'off'",
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
            i32::try_from(letter.body.len()).unwrap_or(i32::MAX),
            letter.unrouted.as_ref().map(|unrouted| unrouted.source.as_str()),
            letter.unrouted.as_ref().and_then(|unrouted| unrouted.metadata.clone())
        )
        .execute(&self.pool);
        within_limit(async { Ok(archiving.await?) }).await?;
        self.outbox_written.notify_one();
        Ok(())
    }

    /// The letters of this id: the one that has it, or all of the request that has it, oldest first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn dead_letters_of(&self, id: Uuid) -> Result<Vec<Uuid>, StoreError> {
        Ok(sqlx::query_scalar!(
            "select id from dead_letters where id = $1 or request_id = $1 order by archived_at, id",
            id
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// One dead letter, by its id or by its request's (the newest of it).
    ///
    /// # Errors
    /// When the database is away.
    pub async fn dead_letter(&self, id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        let row = sqlx::query!(
            r#"select id, reason, error, request_id, source, template_key, lane, attempts, state,
                coalesce(last_at, archived_at) as "at!", headers ->> 'x-recipients' as recipients, routing_key, first_at,
                properties, headers, body, body_bytes, archived_at, replayed_at
               from dead_letters where id = $1 or request_id = $1 order by archived_at desc limit 1"#,
            id
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let discard = self.discard_of(row.id).await?;
        Ok(Some(DeadLetter {
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
                recipients: row.recipients,
            },
            routing_key: row.routing_key,
            first_at: row.first_at,
            properties: row.properties,
            headers: row.headers,
            body: row.body,
            body_bytes: row.body_bytes,
            archived_at: row.archived_at,
            replayed_at: row.replayed_at,
            discard,
        }))
    }
}
