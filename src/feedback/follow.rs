//! What was stored is read and applied to its mails, in batches.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::ses;
use crate::{
    metrics::Metrics,
    store::{Applied, Store, StoreError},
};

/// Receipts applied in one transaction.
const BATCH: i64 = 256;
/// Pause between two batches, so that what arrives meanwhile shares the next one.
const GATHER: Duration = Duration::from_millis(50);
/// How often to look for what another daemon stored, and for mails that were not known yet.
const POLL: Duration = Duration::from_secs(1);

/// Applies what was stored, until `stop`.
pub async fn follow(store: Arc<Store>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut batch = BATCH;
    loop {
        if store.is_up() {
            match apply_once(&store, batch).await {
                Ok(Some(applied)) => {
                    metrics.feedback(&applied);
                    batch = BATCH;
                }
                Ok(None) => {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = store.feedback_kept() => {}
                        () = tokio::time::sleep(POLL) => {}
                    }
                }
                // Something in one of them cannot be stored; the others must not wait for it.
                Err(StoreError::Data { sqlstate, message }) => {
                    if batch == 1 {
                        tracing::error!(
                            sqlstate,
                            message,
                            "an event cannot be applied: it stays stored, as one for nobody"
                        );
                        if let Err(error) = store.give_up_feedback().await {
                            tracing::warn!(%error, "could not set it aside yet");
                        }
                        batch = BATCH;
                    } else {
                        batch /= 2;
                    }
                }
                Err(StoreError::Repeat(why)) => tracing::debug!(why, "applying events once more"),
                Err(error) => {
                    tracing::warn!(%error, "could not apply what the provider told; trying again");
                    tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(POLL) => {} }
                }
            }
        } else {
            tokio::select! { () = stop.cancelled() => return, () = store.wait_until_back() => {} }
        }
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(GATHER) => {} }
    }
}

/// Nothing: there was nothing to apply.
async fn apply_once(store: &Store, max: i64) -> Result<Option<Applied>, StoreError> {
    let Some(batch) = store.take_feedback(max).await? else { return Ok(None) };
    // One provider so far; the next one is a line here and a file beside.
    let events: Vec<_> = batch.receipts.iter().map(|receipt| ses::read(&receipt.body, receipt.published_at)).collect();
    store.apply_feedback(batch, &events).await.map(Some)
}
