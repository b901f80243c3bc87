//! Which lanes take nothing now, and why: an operator has paused them, or the database is away.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::consumer::Pause,
    email::{Lane, PerLane},
    store::{Store, StoreError, StoreHealth, lanes::LanePause, told::Topic},
};

/// How often a daemon looks whether a lane was paused, should it not have been told.
const POLL: Duration = Duration::from_secs(5);

/// Before it is asked again once the database is back.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(50);

/// What consumers and the pipeline follow.
pub struct Pauses {
    store: Arc<Store>,
    by_operator: watch::Sender<PerLane<Option<LanePause>>>,
    by_store: watch::Sender<Option<String>>,
    /// Both together.
    lanes: PerLane<watch::Sender<Option<String>>>,
}

impl Pauses {
    /// All lanes run until something else is known.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            by_operator: watch::Sender::new(PerLane::from_fn(|_| None)),
            by_store: watch::Sender::new(None),
            lanes: PerLane::from_fn(|_| watch::Sender::new(None)),
        })
    }

    /// What this lane's consumer pauses by.
    #[must_use]
    pub fn of(&self, lane: Lane) -> Pause {
        self.lanes.get(lane).subscribe()
    }

    /// What those pause by who can do nothing without a database, and are no lane.
    #[must_use]
    pub fn of_store(&self) -> Pause {
        self.by_store.subscribe()
    }

    /// What operators have paused, as it was known last.
    #[must_use]
    pub fn by_operator(&self) -> PerLane<Option<LanePause>> {
        self.by_operator.borrow().clone()
    }

    /// Whether this lane takes nothing now.
    #[must_use]
    pub fn is_paused(&self, lane: Lane) -> bool {
        self.lanes.get(lane).borrow().is_some()
    }

    /// Returns when an operator has paused this lane. Cancel-safe.
    pub async fn until_paused_by_operator(&self, lane: Lane) {
        let mut pauses = self.by_operator.subscribe();
        // The sender lives as long as self, so waiting cannot fail.
        drop(pauses.wait_for(|pauses| pauses.get(lane).is_some()).await);
    }

    /// Asks the database which lanes are paused.
    ///
    /// # Errors
    /// When it is away; what was known stays.
    pub async fn load(&self) -> Result<(), StoreError> {
        let now = self.store.lane_pauses().await?;
        let is_news = self.by_operator.send_if_modified(|known| {
            let is_news = *known != now;
            *known = now;
            is_news
        });
        if is_news {
            self.merge();
        }
        Ok(())
    }

    /// Follows operators and the database until `end`.
    pub async fn follow(self: Arc<Self>, end: CancellationToken) {
        tokio::select! {
            () = end.cancelled() => {}
            () = self.follow_operators() => {}
            () = self.follow_store() => {}
        }
    }

    async fn follow_operators(&self) {
        let mut told = self.store.told(Topic::Lanes);
        loop {
            if self.store.is_up()
                && let Err(error) = self.load().await
            {
                // The lanes notice by themselves.
                tracing::debug!(%error, "cannot ask which lanes are paused");
            }
            // The sender of what is told lives as long as the store.
            tokio::select! { _ = told.changed() => {}, () = tokio::time::sleep(POLL) => {} }
        }
    }

    async fn follow_store(&self) {
        let mut health = self.store.health();
        loop {
            let is_up = matches!(*health.borrow_and_update(), StoreHealth::Up);
            if is_up && self.by_store.borrow().is_some() {
                // What was decided meanwhile comes before anything is taken. The pool's old connections fail one by one.
                let caught_up =
                    tokio::select! { loaded = self.load() => loaded.is_ok(), _ = health.changed() => false };
                if !caught_up {
                    tokio::time::sleep(CATCH_UP_PAUSE).await;
                    continue;
                }
            }
            self.by_store.send_replace((!is_up).then(|| "the database is away".to_owned()));
            self.merge();
            // The sender of health lives as long as the store.
            drop(health.changed().await);
        }
    }

    /// The fast lane goes on without a database, but not against an operator.
    fn merge(&self) {
        for lane in Lane::ALL {
            let by_operator =
                self.by_operator.borrow().get(lane).as_ref().map(|pause| format!("paused by {}", pause.by));
            let by_store = if lane == Lane::Fast { None } else { self.by_store.borrow().clone() };
            let why = by_operator.or(by_store);
            self.lanes.get(lane).send_if_modified(|known| {
                let is_news = *known != why;
                *known = why;
                is_news
            });
        }
    }
}
