//! Runs of replays: letter by letter, at a bounded rate, until none is left or somebody says so.
//!
//! A daemon takes up whatever run nobody is at (`Runner::follow`); a command line is at its own. Letters are taken in the
//! run's order, a few at once where the rate asks for it, and each by itself is as safe as [`super::replay`] is: killed
//! anywhere, whoever takes the run up next goes on with the letters that have no result.
//!
//! Invariant: a runner that is paused, given up or told to stop begins no other letter, and ends those at hand.
//! Invariant: a fault of the platform is no letter's result: it is waited for, and the run says for what.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{ReplayError, Replayed, Templates, replay};
use crate::{
    broker::{Link, Publisher, link::LinkState},
    config::PipelineConfig,
    store::{
        Store, StoreError,
        replay::{ItemResult, Lease, LetterResult, OpenItem, ReplayRules, RunProgress, RunState, RunWork},
        told::Topic,
    },
};

/// Letters at hand at once: each holds a connection to the database for a moment, and its bytes.
const AT_ONCE: usize = 4;
/// Runs that a daemon is at, at once.
const RUNS_AT_ONCE: usize = 4;
/// How often a daemon looks for runs that nobody is at, unasked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a lease is renewed, and a run asked whether it goes on, unasked.
const BEAT: Duration = Duration::from_secs(1);
/// Pause before a letter is tried again whose broker or database is away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// How long letters at hand may take when a run is stopped; what is cut off then is finished by the next runner.
const LAST_MAX: Duration = Duration::from_secs(4);

/// How a runner left its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// All letters have a result.
    Done,
    /// An operator has paused it or given it up.
    Stopped(RunState),
    /// Somebody else is at it, or it is gone: our lease had run out.
    Lost,
    /// We were told to stop: somebody else takes it up.
    Interrupted,
    /// Broker or database are away, and it is not for us to wait.
    Away(String),
}

/// What a runner needs.
#[derive(Clone)]
pub struct Runner {
    /// Where runs and letters are.
    pub store: Arc<Store>,
    /// Where copies go.
    pub publisher: Arc<Publisher>,
    /// The connection that they go over.
    pub link: Arc<Link>,
    /// Limits and rules.
    pub pipeline: PipelineConfig,
    /// Wait for a broker or a database that is away, instead of ending.
    pub is_patient: bool,
}

/// Why a letter was left without a result.
enum Left {
    /// We were told to stop.
    Told,
    /// Broker or database are away.
    Away(String),
}

/// A run at hand.
struct Carrying {
    runner: Runner,
    work: RunWork,
    lease: Lease,
    rules: Mutex<Arc<ReplayRules>>,
    /// Why nothing moves.
    waits_for: Mutex<Option<String>>,
    /// No other letter is begun, and nothing is waited for.
    quit: CancellationToken,
}

impl Runner {
    /// Takes up runs that nobody is at, until `stop`; those at hand are then given back.
    pub async fn follow(self, stop: CancellationToken) {
        let mut told = self.store.told(Topic::Replays);
        let mut runs = JoinSet::new();
        loop {
            while runs.len() < RUNS_AT_ONCE && !stop.is_cancelled() {
                let lease = Lease::new(self.pipeline.lease);
                let work = match self.store.take_run(&lease).await {
                    Ok(Some(work)) => work,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "cannot look for replays");
                        break;
                    }
                };
                let (runner, stop) = (self.clone(), stop.clone());
                runs.spawn(async move {
                    tracing::info!(run = %work.id, "a replay was taken up");
                    let ended = runner.carry(work, lease, &stop, |_| {}).await;
                    tracing::info!(run = %work.id, ?ended, "a replay was left");
                });
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = runs.join_next(), if !runs.is_empty() => {
                    if let Err(error) = ended {
                        // Its lease runs out, and it is taken up again.
                        tracing::error!(%error, "a replay's runner ended unexpectedly");
                    }
                }
                told = told.changed() => if told.is_err() { break },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        while runs.join_next().await.is_some() {}
    }

    /// Carries a run that was taken up as far as it goes, telling its progress.
    pub async fn carry(
        &self,
        work: RunWork,
        lease: Lease,
        stop: &CancellationToken,
        progress: impl Fn(RunProgress),
    ) -> Ended {
        let carrying = Arc::new(Carrying {
            runner: self.clone(),
            work,
            lease,
            rules: Mutex::default(),
            waits_for: Mutex::new(None),
            quit: CancellationToken::new(),
        });
        let ended = carrying.carry(stop, progress).await;
        if ended != Ended::Done
            && let Err(error) = self.store.release_run(work.id, &lease).await
        {
            tracing::debug!(%error, "could not give a replay back; its lease runs out by itself");
        }
        ended
    }
}

impl Carrying {
    async fn carry(self: &Arc<Self>, stop: &CancellationToken, progress: impl Fn(RunProgress)) -> Ended {
        let mut told = self.runner.store.told(Topic::Replays);
        let mut ticks = every(Duration::from_secs(1) / u32::try_from(self.work.rate).unwrap_or(1).max(1));
        let mut beat = every(BEAT.min(self.lease.length / 3));
        let (mut waiting, mut after, mut is_last_set) = (VecDeque::new(), -1, false);
        // Tasks of their own: what one of them holds, a connection above all, must not wait for this loop.
        let mut at_hand = JoinSet::new();
        // What is the end of it, once nothing is at hand any more.
        let mut end: Option<Ended> = None;
        loop {
            if end.is_none() && waiting.is_empty() && !is_last_set {
                match self.next_set(after).await {
                    Ok(set) => {
                        is_last_set = set.is_empty();
                        after = set.last().map_or(after, |item| item.position);
                        waiting = set.into();
                    }
                    Err(Some(away)) => end = Some(Ended::Away(away)),
                    // Only looked for again after a moment, in which somebody may stop it.
                    Err(None) => {}
                }
            }
            if at_hand.is_empty() {
                if let Some(ended) = end {
                    return ended;
                }
                if waiting.is_empty() && is_last_set {
                    match self.runner.store.complete_run(self.work.id, &self.lease).await {
                        Ok(true) => return Ended::Done,
                        // Paused at the last moment, or taken over.
                        Ok(false) => {}
                        Err(error) => self.note_away(&error.to_string()),
                    }
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled(), if end.is_none() => {
                    end = Some(Ended::Interrupted);
                    self.quit.cancel();
                }
                Some(done) = at_hand.join_next(), if !at_hand.is_empty() => match done {
                    Ok(Ok(now)) => {
                        progress(now);
                        end = end.or_else(|| ending(now));
                    }
                    Ok(Err(Left::Told)) => {}
                    Ok(Err(Left::Away(words))) => end = end.or(Some(Ended::Away(words))),
                    Err(error) => {
                        // Whoever takes the run up again meets it once more, and somebody must look.
                        tracing::error!(run = %self.work.id, %error, "replaying a letter panicked");
                        end = end.or_else(|| Some(Ended::Away(error.to_string())));
                    }
                },
                // Cut off; whoever comes next finds the letter as it is.
                () = tokio::time::sleep(LAST_MAX), if end.is_some() => return end.unwrap_or(Ended::Lost),
                Ok(()) = told.changed(), if end.is_none() => end = self.look().await,
                _ = beat.tick(), if end.is_none() => end = self.look().await,
                _ = ticks.tick(), if end.is_none() && at_hand.len() < AT_ONCE && !waiting.is_empty() => {
                    if let Some(item) = waiting.pop_front() {
                        at_hand.spawn(Arc::clone(self).one(item));
                    }
                }
            }
            if end.is_some() {
                self.quit.cancel();
            }
        }
    }

    /// The next letters without a result, with what is to be known of the templates. The error: it ends with these words, or is
    /// to be tried again.
    async fn next_set(&self, after: i32) -> Result<Vec<OpenItem>, Option<String>> {
        let store = &self.runner.store;
        let reading = async {
            let templates = Templates::load(store).await?;
            let rules = templates.rules(self.work.keep_version, self.runner.pipeline.audit_retention);
            *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
            store.open_items(self.work.id, after).await
        };
        match reading.await {
            Ok(set) => Ok(set),
            Err(error) if self.runner.is_patient => {
                self.note_away(&error.to_string());
                tokio::time::sleep(AWAY_PAUSE).await;
                Err(None)
            }
            Err(error) => Err(Some(error.to_string())),
        }
    }

    /// Renews the lease. Answers how the run ends for us, if it does.
    async fn look(&self) -> Option<Ended> {
        let waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A letter that is being published waits for the connection as well, and says nothing.
        let waits_for = waits_for.or_else(|| match self.runner.link.state() {
            LinkState::Down(words) => Some(words),
            LinkState::Untried | LinkState::Up => None,
        });
        match self.runner.store.renew_run(self.work.id, &self.lease, waits_for.as_deref()).await {
            Ok(Some(now)) => ending(now),
            Ok(None) => Some(Ended::Lost),
            Err(error) if self.runner.is_patient => {
                tracing::debug!(%error, "cannot renew a replay's lease");
                None
            }
            Err(error) => Some(Ended::Away(error.to_string())),
        }
    }

    /// One letter to its result. A broker or a database that is away is waited for, if we are patient.
    async fn one(self: Arc<Self>, item: OpenItem) -> Result<RunProgress, Left> {
        loop {
            let rules = Arc::clone(&self.rules.lock().unwrap_or_else(PoisonError::into_inner));
            let words = match self.try_one(&item, &rules).await {
                Ok(now) => {
                    self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).take();
                    return Ok(now);
                }
                Err(words) if !self.runner.is_patient => return Err(Left::Away(words)),
                Err(words) => words,
            };
            self.note_away(&words);
            tokio::select! {
                () = self.quit.cancelled() => return Err(Left::Told),
                () = tokio::time::sleep(AWAY_PAUSE) => {}
            }
        }
    }

    /// The error: why it has to be tried again.
    async fn try_one(&self, item: &OpenItem, rules: &ReplayRules) -> Result<RunProgress, String> {
        let Runner { store, publisher, link, pipeline, .. } = &self.runner;
        if let LinkState::Down(words) = link.state() {
            // Publishing would wait for it, and nobody would be told why.
            tokio::time::timeout(AWAY_PAUSE, link.get()).await.map_err(|_| words)?;
        }
        let result = match replay(store, publisher, item.letter, item.reason, rules, pipeline).await {
            Ok(Some(Replayed::Published | Replayed::Arrived)) => {
                LetterResult { result: ItemResult::Replayed, why: None, detail: None }
            }
            Ok(Some(Replayed::Skipped(skip))) => {
                LetterResult { result: ItemResult::Skipped, why: Some(skip.name()), detail: Some(skip.to_string()) }
            }
            Ok(None) => failed("gone", "it is gone: retention has deleted it".to_owned()),
            Err(error) => match fault(&error) {
                Fault::Platform => return Err(error.to_string()),
                Fault::Letter(why, words) => failed(why, words),
            },
        };
        let finished = store.finish_item(self.work.id, &self.lease, item, &result).await;
        finished.map_err(|error| error.to_string())?.ok_or_else(|| "the run is gone".to_owned())
    }

    fn note_away(&self, words: &str) {
        let mut waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        if waits_for.is_none() {
            tracing::warn!(run = %self.work.id, why = words, "a replay waits");
        }
        *waits_for = Some(words.to_owned());
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
    // A slow broker is not made up for by a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// How the run ends for whoever finds it so; nothing: it goes on.
const fn ending(now: RunProgress) -> Option<Ended> {
    match now {
        RunProgress { state: state @ (RunState::Paused | RunState::Cancelled | RunState::Planned), .. } => {
            Some(Ended::Stopped(state))
        }
        RunProgress { state: RunState::Done, .. } | RunProgress { is_ours: false, .. } => Some(Ended::Lost),
        RunProgress { state: RunState::Running, .. } => None,
    }
}

fn failed(why: &'static str, words: String) -> LetterResult {
    LetterResult { result: ItemResult::Failed, why: Some(why), detail: Some(words) }
}

/// Whose fault it is that a letter was not replayed.
enum Fault {
    /// Those behind it would fare no better now.
    Platform,
    /// Its own, or that of its lane.
    Letter(&'static str, String),
}

fn fault(error: &ReplayError) -> Fault {
    match error {
        ReplayError::Store(StoreError::Data { sqlstate, .. }) => {
            Fault::Letter("refused", format!("the database refuses it ({sqlstate})"))
        }
        // A lane's queue that is gone is one lane's trouble.
        ReplayError::Broker(missing) if missing.is_missing_object() => Fault::Letter(
            "no_queue",
            format!(
                "the queue of its lane is not there: has `postrider run` declared it in this virtual host? ({missing})"
            ),
        ),
        ReplayError::Broker(refusal) if refusal.is_about_the_message() => Fault::Letter("refused", refusal.to_string()),
        ReplayError::Store(_) | ReplayError::Broker(_) => Fault::Platform,
    }
}
