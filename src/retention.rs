//! Retention: after `EMAIL_AUTO_ANONYMIZE_AFTER_DAYS` the person is removed from the records, after `EMAIL_AUDIT_RETENTION_DAYS` the
//! records go. What is done to which column is in [`decisions`](crate::store::retention::decisions).
//!
//! Every daemon looks from time to time whether something is due; whoever gets the right to work goes through all steps, one
//! small batch after the other, and rests between two batches in proportion to what the last one took. The others leave it alone.
//! Invariant: between two batches nothing is held but the right to work: sending waits for a batch at most, and P0 not
//! even for that, for nothing here touches a row that is under way.
//! Invariant: a step that fails is told and left; the others go on.

/// How large batches are, and how long to rest.
mod pace;

use std::{sync::Arc, time::Duration};

use chrono::{TimeDelta, Utc};
use tokio_retry::strategy::jitter;
use tokio_util::sync::CancellationToken;

pub use self::pace::Pace;
use crate::{
    config::PipelineConfig,
    metrics::Metrics,
    store::{
        Store, StoreError,
        retention::{Action, Desk, Moments, Periods, Step, steps},
    },
};

/// How much of the time of one connection daemons use for it.
const DAEMONS_SHARE: u8 = 10;
/// A daemon that has just begun has other things to do.
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Objects of files that are asked for at once.
const OBJECTS_AT_ONCE: i64 = 100;
/// A batch that was in somebody's way is tried this often again.
const REPEATS_MAX: u32 = 5;

/// Does what is due, in a daemon.
pub struct Retention {
    /// Where.
    pub store: Arc<Store>,
    /// After which times.
    pub periods: Periods,
    /// How often to look.
    pub every: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What a step of a pass came to.
#[derive(Debug)]
pub struct StepReport {
    /// Which.
    pub step: &'static Step,
    /// Rows that were changed or deleted, by table.
    pub rows: Vec<(&'static str, u64)>,
    /// Why it did not come to its end.
    pub error: Option<String>,
}

impl StepReport {
    /// Rows of the step's own table: what hangs on them is not counted.
    #[must_use]
    pub fn own_rows(&self) -> u64 {
        self.rows.iter().filter(|(table, _)| *table == self.step.table).map(|(_, rows)| rows).sum()
    }
}

/// What a pass came to.
#[derive(Debug, Default)]
pub struct PassReport {
    /// Steps that were begun, in their order.
    pub steps: Vec<StepReport>,
    /// All of them were, and none was interrupted.
    pub is_whole: bool,
}

impl PassReport {
    /// Whether everything that was due is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_whole && self.steps.iter().all(|step| step.error.is_none())
    }

    /// Rows of a table that an action has changed or deleted.
    #[must_use]
    pub fn rows(&self, action: Action, table: &str) -> u64 {
        let of_action = self.steps.iter().filter(|report| report.step.action == action);
        of_action.flat_map(|report| &report.rows).filter(|(name, _)| *name == table).map(|(_, rows)| rows).sum()
    }
}

impl Retention {
    /// For a daemon with these rules.
    #[must_use]
    pub fn new(store: Arc<Store>, rules: &PipelineConfig, metrics: Arc<Metrics>) -> Self {
        Self { store, periods: Periods::of(rules), every: rules.retention_every, metrics }
    }

    /// Looks again and again, until `stop`; a batch at hand is finished.
    pub async fn keep(self, stop: CancellationToken) {
        let first = self.every.min(FIRST_PAUSE_MAX);
        let mut pause = first / 2 + jitter(first / 2);
        loop {
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none()
                || stop.run_until_cancelled(self.store.wait_until_back()).await.is_none()
            {
                return;
            }
            match self.pass(&stop).await {
                Ok(()) => {}
                Err(error) => {
                    self.metrics.retention_failed("all");
                    tracing::warn!(%error, "could not look for what is to be forgotten or deleted; trying again later");
                }
            }
            // Not all daemons at once, and not always the same one.
            pause = self.every / 2 + jitter(self.every / 2);
        }
    }

    async fn pass(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let moments = self.periods.at(Utc::now());
        let Some(mut desk) = self.store.try_lock_retention().await? else {
            tracing::debug!("another daemon is at work on what is to be forgotten or deleted");
            self.metrics.retention_elsewhere();
            return Ok(());
        };
        self.note_overdue(&moments).await?;
        let mut pace = Pace::of_share(DAEMONS_SHARE);
        let report = pass(&self.store, &mut desk, &moments, &mut pace, stop, |step, rows| {
            for (table, rows) in rows {
                self.metrics.retained(step.action, table, *rows);
            }
        })
        .await;
        desk.leave().await;
        for done in &report.steps {
            if let Some(error) = &done.error {
                self.metrics.retention_failed(done.step.name);
                tracing::error!(step = done.step.name, error, "a step of retention failed; it is tried again later");
            }
            if done.own_rows() > 0 {
                tracing::info!(step = done.step.name, rows = done.own_rows(), "retention");
            }
        }
        if report.is_done() {
            self.note_overdue(&moments).await?;
            self.metrics.retention_ended(Utc::now());
        }
        Ok(())
    }

    /// Tells for how long the oldest row has been due.
    async fn note_overdue(&self, moments: &Moments) -> Result<(), StoreError> {
        for action in [Action::Anonymise, Action::Delete] {
            self.metrics.retention_overdue(action, overdue(&self.store, moments, action).await?);
        }
        Ok(())
    }
}

/// For how long the oldest row that an action has not reached yet has been due; nothing: none is.
///
/// # Errors
/// When the database is away.
pub async fn overdue(store: &Store, moments: &Moments, action: Action) -> Result<Option<TimeDelta>, StoreError> {
    let mut longest = None;
    for step in steps().iter().filter(|step| step.action == action && !step.is_wide_to_count()) {
        let progress = store.retention_progress(step).await?;
        longest = longest.max(store.retention_due(step, &progress, moments, 1).await?.overdue);
    }
    Ok(longest)
}

/// Goes through all steps once, until nothing is left that can be done, or `stop`. Tells of every batch.
pub async fn pass(
    store: &Store,
    desk: &mut Desk,
    moments: &Moments,
    pace: &mut Pace,
    stop: &CancellationToken,
    mut tell: impl FnMut(&'static Step, &[(&'static str, u64)]),
) -> PassReport {
    let mut report = PassReport::default();
    for step in steps() {
        let mut done = StepReport { step, rows: Vec::new(), error: None };
        let ended = one_step(store, desk, step, moments, pace, stop, |rows| {
            tell(step, rows);
            for (table, rows) in rows {
                match done.rows.iter_mut().find(|(name, _)| name == table) {
                    Some((_, sum)) => *sum += rows,
                    None => done.rows.push((table, *rows)),
                }
            }
        })
        .await;
        done.error = ended.as_ref().err().map(ToString::to_string);
        let noted = match &ended {
            // Interrupted: it has not ended.
            Ok(false) => Ok(()),
            Ok(true) => desk.end(step, moments, None).await,
            Err(_) => desk.end(step, moments, done.error.as_deref()).await,
        };
        report.steps.push(done);
        // Where not even that can be noted, nothing can be done.
        if matches!(ended, Ok(false)) || noted.is_err() {
            return report;
        }
    }
    report.is_whole = delete_objects(store, moments, stop).await;
    report
}

/// The objects of files whose rows are gone. False: it did not come to its end.
async fn delete_objects(store: &Store, moments: &Moments, stop: &CancellationToken) -> bool {
    while !stop.is_cancelled() {
        match store.delete_due_objects(moments.now, OBJECTS_AT_ONCE).await {
            Ok(deleted) if deleted < OBJECTS_AT_ONCE => return true,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "could not look for objects that are to be deleted");
                return false;
            }
        }
    }
    false
}

/// False: it was interrupted.
async fn one_step(
    store: &Store,
    desk: &mut Desk,
    step: &'static Step,
    moments: &Moments,
    pace: &mut Pace,
    stop: &CancellationToken,
    mut tell: impl FnMut(&[(&'static str, u64)]),
) -> Result<bool, StoreError> {
    let mut place = desk.begin(step, moments).await?;
    let mut repeats = 0;
    pace.begin();
    loop {
        if stop.is_cancelled() {
            return Ok(false);
        }
        let begun = tokio::time::Instant::now();
        match store.retain(desk, step, moments, pace.rows(), place.as_deref()).await {
            Ok(batch) => {
                repeats = 0;
                tell(&batch.rows);
                let rest = pace.after(begun.elapsed());
                if !batch.has_more {
                    return Ok(true);
                }
                place = batch.place.or(place);
                if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                    return Ok(false);
                }
            }
            // Somebody was in the way, and they shall be first.
            Err(StoreError::Repeat(_)) if repeats < REPEATS_MAX => {
                repeats += 1;
                if stop.run_until_cancelled(tokio::time::sleep(pace.after(begun.elapsed()))).await.is_none() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
