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
    let mut most = BATCH;
    while stop.run_until_cancelled(store.wait_until_back()).await.is_some() {
        let pause = match apply_once(&store, most).await {
            Ok(Some(applied)) => {
                metrics.feedback(&applied);
                most = BATCH;
                GATHER
            }
            Ok(None) => {
                let more = tokio::time::timeout(POLL, store.feedback_kept());
                if stop.run_until_cancelled(more).await.is_none() {
                    return;
                }
                GATHER
            }
            // Something in one of them cannot be stored: the others must not wait for it, so it is looked for.
            Err(Failed { error: StoreError::Data { sqlstate, message }, only: None }) => {
                tracing::debug!(sqlstate, message, "one of several events cannot be applied");
                most = (most / 2).max(1);
                Duration::ZERO
            }
            Err(Failed { error: StoreError::Data { sqlstate, message }, only: Some(id) }) => {
                tracing::error!(sqlstate, message, "an event cannot be applied: it stays stored, as one for nobody");
                if let Err(error) = store.give_up_feedback(id).await {
                    tracing::warn!(%error, "could not set it aside yet");
                }
                most = BATCH;
                GATHER
            }
            Err(Failed { error: StoreError::Repeat(why), .. }) => {
                tracing::debug!(why, "applying events once more");
                GATHER
            }
            Err(Failed { error, .. }) => {
                tracing::warn!(%error, "could not apply what the provider told; trying again");
                POLL
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// What went wrong, and with which receipt if there was but one.
struct Failed {
    error: StoreError,
    only: Option<i64>,
}

/// Nothing: there was nothing to apply.
async fn apply_once(store: &Store, most: i64) -> Result<Option<Applied>, Failed> {
    let taken = store.take_feedback(most).await.map_err(|error| Failed { error, only: None })?;
    let Some(batch) = taken else { return Ok(None) };
    let only = if let [only] = batch.receipts.as_slice() { Some(only.id) } else { None };
    // One provider so far; the next one is a line here and a file beside.
    let events: Vec<_> = batch.receipts.iter().map(|receipt| ses::read(&receipt.body, receipt.published_at)).collect();
    store.apply_feedback(batch, &events).await.map(Some).map_err(|error| Failed { error, only })
}
