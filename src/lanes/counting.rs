//! One daemon asks the broker for all of them how much waits: the one that started first.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{broker::depths::DepthGauge, metrics::queues::Counted, store::Store};

/// Between two questions.
const EVERY: Duration = Duration::from_secs(10);
/// The same while the broker does not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the database may take to say which daemons are alive.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Counts what waits for whoever looks, until `end`, as long as no older daemon does.
pub async fn count(store: Arc<Store>, gauge: DepthGauge, counted: Counted, end: CancellationToken) {
    loop {
        let is_first = is_first(&store).await;
        let now = if is_first { gauge.now().await.ok() } else { None };
        let pause = if is_first && now.is_none() { AGAIN } else { EVERY };
        counted.store(now);
        tokio::select! { () = end.cancelled() => return, () = tokio::time::sleep(pause) => {} }
    }
}

/// Whether this daemon started first of those that are alive. Without a database each counts for itself.
async fn is_first(store: &Store) -> bool {
    if !store.is_up() {
        return true;
    }
    match tokio::time::timeout(ANSWER_MAX, store.live_daemons()).await {
        Ok(Ok(alive)) => alive.first().is_none_or(|first| first.id == store.worker_id()),
        Ok(Err(_)) | Err(_) => true,
    }
}
