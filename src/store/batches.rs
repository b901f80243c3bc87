//! Which calls are gathered into batches, over whose connections, and who hears of each batch.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use sqlx::PgPool;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Finish, OutcomeRow, Store, claim, feedback, gather, outcome};
use crate::email::Lane;

/// How long a statement about what providers tell may take: Amazon SNS waits 15 s for an answer, and repeats what had none.
const FEEDBACK_LIMIT: Duration = Duration::from_secs(10);

/// Claims or outcomes that were committed together.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// `claims` or `outcomes`.
    pub statement: &'static str,
    /// `fast`: over the fast lane's own connections; or `shared`.
    pub connections: &'static str,
    /// How many.
    pub rows: usize,
    /// How long it took, whether or not it could be committed.
    pub took: Duration,
}

/// Is told each batch.
pub(super) type BatchListener = dyn Fn(Batch) + Send + Sync;

pub(super) struct Gatherers {
    pub(super) fast: LaneGatherers,
    pub(super) others: LaneGatherers,
    pub(super) feedback: gather::Gatherer<feedback::Receipt, feedback::Kept>,
}

pub(super) struct LaneGatherers {
    pub(super) claims: gather::Gatherer<claim::NewRequest, claim::Inserted>,
    pub(super) outcomes: gather::Gatherer<OutcomeRow, Finish>,
}

/// Who listens to batches, and whose they are.
#[derive(Clone)]
pub(super) struct Batches {
    pub(super) listener: Arc<OnceLock<Arc<BatchListener>>>,
    pub(super) connections: &'static str,
}

impl Batches {
    fn tell(&self, statement: &'static str, rows: usize, began: Instant) {
        if let Some(listener) = self.listener.get() {
            listener(Batch { statement, connections: self.connections, rows, took: began.elapsed() });
        }
    }
}

impl LaneGatherers {
    pub(super) fn start(
        pool: &PgPool,
        outbox_written: &Arc<Notify>,
        worker_id: Uuid,
        limit: Duration,
        batches: &Batches,
    ) -> Self {
        let (claims_pool, outcomes_pool) = (pool.clone(), pool.clone());
        let (by_claims, by_outcomes) = (Arc::clone(outbox_written), Arc::clone(outbox_written));
        let (of_claims, of_outcomes) = (batches.clone(), batches.clone());
        Self {
            claims: gather::Gatherer::start(limit, move |batch| {
                let (pool, written, batches) = (claims_pool.clone(), Arc::clone(&by_claims), of_claims.clone());
                async move {
                    let began = Instant::now();
                    let inserted = claim::insert::insert_batch(&pool, worker_id, &batch).await;
                    batches.tell("claims", batch.len(), began);
                    written.notify_one();
                    inserted
                }
            }),
            outcomes: gather::Gatherer::start(limit, move |batch| {
                let (pool, written, batches) = (outcomes_pool.clone(), Arc::clone(&by_outcomes), of_outcomes.clone());
                async move {
                    let began = Instant::now();
                    let finished = outcome::finish_batch(&pool, &batch).await;
                    batches.tell("outcomes", batch.len(), began);
                    written.notify_one();
                    finished
                }
            }),
        }
    }
}

pub(super) fn start_feedback(pool: &PgPool) -> gather::Gatherer<feedback::Receipt, feedback::Kept> {
    let pool = pool.clone();
    gather::Gatherer::start(FEEDBACK_LIMIT, move |batch| {
        let pool = pool.clone();
        async move { feedback::keep_batch(&pool, &batch).await }
    })
}

impl Store {
    /// Tells this listener each batch of claims and outcomes from now on.
    pub fn tell_batches(&self, listener: Arc<dyn Fn(Batch) + Send + Sync>) {
        // The first one stays.
        drop(self.batch_listener.set(listener));
    }

    pub(super) const fn gatherers_of(&self, lane: Lane) -> &LaneGatherers {
        match lane {
            Lane::Fast => &self.gatherers.fast,
            Lane::Standard | Lane::Bulk => &self.gatherers.others,
        }
    }
}
