//! What providers told of mails: kept as it came before it is answered, understood and applied afterwards.
//!
//! Invariant: a receipt is committed before its sender hears that it was taken, and each is taken once.

/// Applies it.
pub mod apply;

/// What it did not tell.
pub mod report;

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::{Store, StoreError, gather::Load, within_limit};

/// Longest event id that is kept; SNS's have 36 characters.
const EVENT_ID_CHARS_MAX: usize = 200;

/// One event as a provider delivered it, verified but not understood.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// Who tells: `ses`.
    pub provider: &'static str,
    /// The provider's own id of this delivery (SNS MessageId): each is taken once.
    pub event_id: String,
    /// What it says, as it came.
    pub body: String,
    /// When the provider published it.
    pub published_at: DateTime<Utc>,
}

impl Load for Receipt {
    fn bytes(&self) -> usize {
        self.body.len()
    }
}

/// What became of keeping a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is stored, and will be applied.
    New,
    /// It was stored before.
    Known,
}

impl Store {
    /// Keeps what a provider told; returns when it is committed.
    ///
    /// # Errors
    /// When the database is away, or refuses the data.
    pub async fn keep_feedback(&self, mut receipt: Receipt) -> Result<Kept, StoreError> {
        // PostgreSQL takes no NUL in a text; no provider's JSON has a bare one.
        receipt.body = receipt.body.replace('\0', "\u{fffd}");
        receipt.event_id = receipt.event_id.chars().filter(|&c| c != '\0').take(EVENT_ID_CHARS_MAX).collect();
        let kept = self.gatherers.feedback.call(receipt).await?;
        self.feedback_kept.notify_one();
        Ok(kept)
    }
}

impl Store {
    /// Returns once this daemon has kept something more. Cancel-safe.
    pub async fn feedback_kept(&self) {
        self.feedback_kept.notified().await;
    }

    /// Sets a receipt aside: it cannot be applied. It stays stored, and in the report.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn give_up_feedback(&self, id: i64) -> Result<(), StoreError> {
        let giving_up = sqlx::query!(
            "update webhook_events set next_look_at = null, looks = looks + 1 where id = $1 and next_look_at is not null",
            id
        )
        .execute(&self.pool);
        within_limit(async { Ok(giving_up.await?) }).await?;
        Ok(())
    }
}

/// Keeps a batch of receipts in one statement.
pub(super) async fn keep_batch(pool: &PgPool, batch: &[Receipt]) -> Result<Vec<Kept>, StoreError> {
    // In the order of their keys, so that two daemons' batches cannot lock each other out; one of each.
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_by(|&a, &b| key(&batch[a]).cmp(&key(&batch[b])));
    order.dedup_by(|a, b| key(&batch[*a]) == key(&batch[*b]));
    let column = |of: fn(&Receipt) -> &str| order.iter().map(|&i| of(&batch[i])).collect::<Vec<_>>();
    let providers = column(|r| r.provider);
    let ids = column(|r| &r.event_id);
    let bodies = column(|r| &r.body);
    let published: Vec<DateTime<Utc>> = order.iter().map(|&i| batch[i].published_at).collect();
    let new = sqlx::query!(
        "insert into webhook_events (provider, provider_event_id, body, published_at)
         select * from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
         on conflict (provider, provider_event_id) do nothing
         returning provider, provider_event_id",
        &providers as _,
        &ids as _,
        &bodies as _,
        &published
    )
    .fetch_all(pool)
    .await?;
    let mut new: std::collections::HashSet<(&str, &str)> =
        new.iter().map(|row| (row.provider.as_str(), row.provider_event_id.as_str())).collect();
    // Of equal ones in a batch the first is new.
    Ok(batch.iter().map(|receipt| if new.remove(&key(receipt)) { Kept::New } else { Kept::Known }).collect())
}

fn key(receipt: &Receipt) -> (&str, &str) {
    (receipt.provider, &receipt.event_id)
}
