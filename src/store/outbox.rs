//! The outbox: events owed to producers.
//!
//! Rows are written by the database itself, in the transaction that changes a mail's status (the triggers of migration 6), and by
//! the archive for a request that no queue took. Here they are read, and deleted once their events are published.
//! Invariant: what a daemon has taken no other one takes, and what it did not finish is there again.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::{NOTICED_WHEN_IT_VANISHES, PLAN_ONCE, Store, StoreError, within_limit};

/// An event that is owed, without what only its publication needs.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Rises with time.
    pub id: i64,
    /// Who asked for the mail.
    pub source: String,
    /// What happened.
    pub kind: String,
    /// The mail; nothing: of a request that no queue took.
    pub message_id: Option<Uuid>,
    /// Its request, if it could be read.
    pub request_id: Option<Uuid>,
    /// SMTP attempts that counted.
    pub attempt: i32,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub occurred_at: DateTime<Utc>,
    /// Since when it is owed.
    pub created_at: DateTime<Utc>,
    /// Where the rest of a request is that no queue took.
    pub dead_letter_id: Option<Uuid>,
    /// What the producer of such a request wants echoed.
    pub metadata: Option<Value>,
}

/// What an event says beside its row. Nothing of it is there any more once the mail is deleted.
#[derive(Debug, Clone, Default)]
pub struct EventDetails {
    /// Which template.
    pub template_key: Option<String>,
    /// The address; nothing once anonymised. Personal.
    pub recipient: Option<String>,
    /// As the producer gave it.
    pub metadata: Option<Value>,
}

/// Reads the outbox, over a connection of its own: a batch is held while its events travel, and nobody shall wait for that.
pub struct OutboxReader {
    connection: PgConnection,
}

/// Rows that are ours until this is finished or dropped; dropped, all of them are owed as before.
pub struct Taken<'a> {
    /// In the order of their ids.
    pub rows: Vec<OutboxRow>,
    transaction: Transaction<'a, Postgres>,
}

impl Store {
    /// Returns once this daemon may have written a row since it was asked last. Cancel-safe.
    pub async fn outbox_written(&self) {
        self.outbox_written.notified().await;
    }

    /// When the oldest event was written that is owed; nothing: none is.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn oldest_event(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        let looking =
            sqlx::query_scalar!("select created_at from outbox order by id limit 1").fetch_optional(&self.pool);
        within_limit(async { Ok(looking.await?) }).await
    }

    /// Connects to read the outbox. After an error the reader is of no use any more.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn open_outbox(&self) -> Result<OutboxReader, StoreError> {
        let options = self.pool.connect_options();
        let opening = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            sqlx::raw_sql(PLAN_ONCE).execute(&mut connection).await?;
            sqlx::raw_sql(NOTICED_WHEN_IT_VANISHES).execute(&mut connection).await?;
            Ok(OutboxReader { connection })
        };
        within_limit(opening).await
    }
}

impl OutboxReader {
    /// Takes the oldest rows that nobody else has taken, at most this many.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn take(&mut self, most: i64) -> Result<Taken<'_>, StoreError> {
        let taking = async {
            let mut transaction = self.connection.begin().await?;
            let rows = sqlx::query_as!(
                OutboxRow,
                "select id, source, kind, message_id, request_id, attempt, reason, occurred_at, created_at,
                    dead_letter_id, metadata
                 from outbox order by id limit $1 for update skip locked",
                most
            )
            .fetch_all(&mut *transaction)
            .await?;
            Ok(Taken { rows, transaction })
        };
        within_limit(taking).await
    }

    /// Says goodbye.
    pub async fn close(self) {
        drop(within_limit(async { Ok(self.connection.close().await?) }).await);
    }
}

impl Taken<'_> {
    /// What the events of these mails or dead letters say beside their rows, by their ids.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn details(
        &mut self,
        messages: &[Uuid],
        letters: &[Uuid],
    ) -> Result<HashMap<Uuid, EventDetails>, StoreError> {
        let looking = async {
            let mut found = HashMap::with_capacity(messages.len() + letters.len());
            if !messages.is_empty() {
                let rows = sqlx::query!(
                    r#"select m.id as "id!", m.template_key as "template_key!", m.recipient_email, r.metadata as "metadata?"
                       from email_messages m left join email_requests r on r.id = m.request_id where m.id = any($1)"#,
                    messages
                )
                .fetch_all(&mut *self.transaction)
                .await?;
                found.extend(rows.into_iter().map(|row| {
                    let template_key = Some(row.template_key);
                    (row.id, EventDetails { template_key, recipient: row.recipient_email, metadata: row.metadata })
                }));
            }
            if !letters.is_empty() {
                let rows = sqlx::query!("select id, template_key from dead_letters where id = any($1)", letters)
                    .fetch_all(&mut *self.transaction)
                    .await?;
                found.extend(
                    rows.into_iter().map(|row| {
                        (row.id, EventDetails { template_key: row.template_key, ..EventDetails::default() })
                    }),
                );
            }
            Ok(found)
        };
        within_limit(looking).await
    }

    /// Deletes the rows whose events need nothing more; the others are owed as before.
    ///
    /// # Errors
    /// [`StoreError::Away`]: it is not known whether they were deleted; their events may come again.
    pub async fn finish(mut self, done: &[i64]) -> Result<(), StoreError> {
        let finishing = async {
            if !done.is_empty() {
                sqlx::query!("delete from outbox where id = any($1)", done).execute(&mut *self.transaction).await?;
            }
            self.transaction.commit().await?;
            Ok(())
        };
        within_limit(finishing).await
    }
}
