//! One relay: its connections by lane, whether it may be used, how fast, and what is learned from each mail.
//!
//! Invariant: a lane never has more connections to it than its limit: a place holds a permit, a new connection is
//! opened only where none lies idle, and what is left behind is idle before its permit is free.
//! Invariant: one prober, whatever the number of those who wait for it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    breaker::{Breaker, RelayState},
    connection::Connection,
    fault::{RelayError, RelayFault},
    pace::Pace,
    place::Pass,
    relays::RelayHealth,
    reply::{Lesson, lesson, wants_other_settings},
    session::Endpoint,
    trial::{Deferral, LetGo, MayGo, Trials},
};
use crate::{
    config::SmtpConfig,
    email::{EmailAddress, Lane, PerLane, Phase, SendReport},
};

pub(super) struct Relay {
    pub(super) endpoint: Endpoint,
    breaker: Breaker,
    pace: Mutex<Pace>,
    trials: Mutex<Trials>,
    /// Why the way was closed, and since when: of use while deferrals are the relay's affair.
    deferring: Mutex<Option<(RelayError, DateTime<Utc>)>>,
    /// In the order of [`RelayFault::ALL`].
    faults: [AtomicU64; RelayFault::ALL.len()],
    throttled: AtomicU64,
    pub(super) lanes: PerLane<LaneConnections>,
    pub(super) mails_per_connection_max: u32,
    idle_max: Duration,
    changes: watch::Sender<()>,
    is_closing: AtomicBool,
    is_swept: AtomicBool,
}

pub(super) struct LaneConnections {
    pub(super) permits: Arc<Semaphore>,
    limit: usize,
    /// The one used last is used next, so that what is too much grows old and goes.
    idle: Mutex<Vec<Connection>>,
}

impl LaneConnections {
    fn new(limit: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(limit)), limit, idle: Mutex::new(Vec::new()) }
    }
}

/// Nothing panics while holding these, and what they hold is sound whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    pub(super) fn new(endpoint: Endpoint, config: &SmtpConfig, changes: watch::Sender<()>) -> Self {
        let limits = &endpoint.relay.connections;
        let limit = |lane| limits.get(lane).unwrap_or(*config.connections.get(lane));
        Self {
            breaker: Breaker::new(),
            pace: Mutex::default(),
            trials: Mutex::new(Trials::new()),
            deferring: Mutex::default(),
            faults: std::array::from_fn(|_| AtomicU64::new(0)),
            throttled: AtomicU64::new(0),
            lanes: PerLane::from_fn(|lane| LaneConnections::new(limit(lane))),
            mails_per_connection_max: config.mails_per_connection_max,
            idle_max: config.idle_max,
            changes,
            is_closing: AtomicBool::new(false),
            is_swept: AtomicBool::new(false),
            endpoint,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.endpoint.relay.name
    }

    /// Whether waiting for this relay makes sense: it may be connected to, or a connection lies ready; and when a mail
    /// is due.
    pub(super) fn may_go(&self, lane: Lane, now: Instant) -> MayGo {
        let is_reachable = self.breaker.is_closed() || !lock(&self.lanes.get(lane).idle).is_empty();
        match lock(&self.trials).may_go(lane, now) {
            _ if !is_reachable => MayGo::No,
            MayGo::Now => lock(&self.pace).due_at(lane, now).map_or(MayGo::Now, MayGo::At),
            later => later,
        }
    }

    /// Lets one mail go, if it may.
    pub(super) fn let_go(self: &Arc<Self>, lane: Lane, now: Instant) -> Option<Pass> {
        if !lock(&self.pace).take(lane, now) {
            return None;
        }
        let Some(let_go) = lock(&self.trials).let_go(lane, now) else {
            lock(&self.pace).give_back();
            return None;
        };
        Some(Pass { relay: Arc::clone(self), lane, at: now, let_go, is_used: false })
    }

    /// A mail that was let go did not go.
    pub(super) fn give_back(&self, let_go: LetGo) {
        lock(&self.pace).give_back();
        self.proved_nothing(let_go);
    }

    /// An idle connection that is alive, else a new one; nothing if there is none to be had.
    pub(super) async fn connection(self: &Arc<Self>, lane: Lane) -> Option<Connection> {
        loop {
            let Some(mut connection) = lock(&self.lanes.get(lane).idle).pop() else { break };
            if connection.idle_since.elapsed() <= self.idle_max && connection.is_alive() {
                return Some(connection);
            }
        }
        if !self.breaker.is_closed() {
            return None;
        }
        match Box::pin(self.endpoint.open()).await {
            Ok(connection) => {
                // Opened by somebody else's fault meanwhile, it is the prober's to close.
                self.breaker.note_connection();
                self.sweep_idle();
                Some(connection)
            }
            Err(error) => {
                self.mark_down(error);
                None
            }
        }
    }

    fn mark_up(&self) {
        if self.breaker.close() {
            tracing::info!(smtp.relay = self.name(), "the relay can be connected to again");
            lock(&self.trials).begin(Instant::now());
            self.changes.send_replace(());
        }
    }

    fn mark_down(self: &Arc<Self>, error: RelayError) {
        self.count(&error);
        let (fault, words) = (error.fault.name(), error.words.clone());
        if self.breaker.trip(error) {
            tracing::warn!(smtp.relay = self.name(), smtp.fault = fault, "the relay cannot be used: {words}");
            tokio::spawn(probe_until_up(Arc::downgrade(self)));
            self.changes.send_replace(());
        }
    }

    fn count(&self, error: &RelayError) {
        self.faults[error.fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back a connection that is in step. Comes before its permit is free.
    pub(super) fn take_back(&self, lane: Lane, mut connection: Connection) {
        if self.is_closing.load(Ordering::SeqCst) {
            return;
        }
        connection.idle_since = Instant::now();
        lock(&self.lanes.get(lane).idle).push(connection);
        if !self.breaker.is_closed() {
            // Those who wait cannot open a connection of their own, so they must hear of this one.
            self.changes.send_replace(());
        }
    }

    /// What a mail's fate says about the relay. `is_fresh`: no mail had gone over that connection before. True if a
    /// deferral is the relay's affair and not the mail's.
    pub(super) fn learn_from(
        self: &Arc<Self>,
        report: &SendReport,
        is_fresh: bool,
        pass: &Pass,
        to: &EmailAddress,
    ) -> bool {
        if let Some(error) = fault_of(report, is_fresh) {
            self.mark_down(error);
        }
        let now = Instant::now();
        match lesson(report) {
            lesson @ (Lesson::Took | Lesson::Refused) => {
                if lesson == Lesson::Took {
                    lock(&self.pace).taken(pass.at, now);
                }
                self.breaker.forget_failures();
                let opens = lock(&self.trials).dealt_with();
                if opens {
                    *lock(&self.deferring) = None;
                    tracing::info!(smtp.relay = self.name(), "the relay works again");
                    self.changes.send_replace(());
                }
                false
            }
            Lesson::PutOff => {
                let deferral = lock(&self.trials).put_off(pass.let_go, hash(to));
                if deferral == Deferral::ClosesTheWay {
                    let error = deferring(report);
                    lock(&self.deferring).get_or_insert_with(|| (error.clone(), Utc::now()));
                    self.mark_down(error);
                }
                // It may also have opened the way.
                self.changes.send_replace(());
                deferral != Deferral::OfTheMail
            }
            Lesson::Throttles => {
                self.throttled.fetch_add(1, Ordering::Relaxed);
                let slower = {
                    let mut pace = lock(&self.pace);
                    pace.throttled(pass.at, now).then(|| pace.per_second(now)).flatten()
                };
                if let Some(mails_per_second) = slower {
                    tracing::warn!(smtp.relay = self.name(), mails_per_second, "the relay throttles: slowing down");
                }
                self.proved_nothing(pass.let_go);
                false
            }
            Lesson::Nothing => {
                self.proved_nothing(pass.let_go);
                false
            }
        }
    }

    fn proved_nothing(&self, let_go: LetGo) {
        let makes_room = lock(&self.trials).proved_nothing(let_go);
        if makes_room {
            self.changes.send_replace(());
        }
    }

    /// Starts the task that closes what has lain idle for too long. It ends with the relay.
    fn sweep_idle(self: &Arc<Self>) {
        if self.is_swept.swap(true, Ordering::SeqCst) {
            return;
        }
        let (relay, every) = (Arc::downgrade(self), (self.idle_max / 2).max(Duration::from_millis(100)));
        tokio::spawn(async move {
            loop {
                sleep(every).await;
                let Some(relay) = relay.upgrade() else { return };
                for lane in Lane::ALL {
                    let idle_max = relay.idle_max;
                    let old: Vec<_> = lock(&relay.lanes.get(lane).idle)
                        .extract_if(.., |c| c.idle_since.elapsed() > idle_max)
                        .collect();
                    for connection in old {
                        connection.quit().await;
                    }
                }
            }
        });
    }

    /// No connection is kept any more; returns those that lie idle.
    pub(super) fn close(&self) -> Vec<Connection> {
        self.is_closing.store(true, Ordering::SeqCst);
        Lane::ALL.into_iter().flat_map(|lane| std::mem::take(&mut *lock(&self.lanes.get(lane).idle))).collect()
    }

    pub(super) fn health(&self) -> RelayHealth {
        let mut state = self.breaker.state();
        if matches!(state, RelayState::Up)
            && lock(&self.trials).is_the_relays_affair()
            && let Some((error, since)) = lock(&self.deferring).clone()
        {
            state = RelayState::OnTrial { error, since };
        }
        RelayHealth {
            name: self.name().to_owned(),
            state,
            mails_per_second: lock(&self.pace).per_second(Instant::now()),
            throttled: self.throttled.load(Ordering::Relaxed),
            faults: RelayFault::ALL
                .into_iter()
                .zip(self.faults.iter().map(|count| count.load(Ordering::Relaxed)))
                .collect(),
            in_use: PerLane::from_fn(|lane| {
                let connections = self.lanes.get(lane);
                connections.limit - connections.permits.available_permits()
            }),
            idle: PerLane::from_fn(|lane| lock(&self.lanes.get(lane).idle).len()),
        }
    }
}

/// What a mail's fate says about the relay's connections: a fault of all of them, if any.
fn fault_of(report: &SendReport, is_fresh: bool) -> Option<RelayError> {
    match report {
        refusal @ SendReport::Refused { phase, reply } if wants_other_settings(refusal) => {
            let words = format!(
                "the relay does not take mail from us as we are ({}); check SMTP_USER, SMTP_PASSWORD and SMTP_USE_TLS",
                reply.line()
            );
            Some(RelayError::new(RelayFault::Auth, *phase, words))
        }
        // On a connection in its prime this is not the end of a long service: the relay is in trouble.
        SendReport::Refused { phase, reply } if reply.code == 421 && is_fresh => {
            Some(RelayError::turned_away(*phase, reply))
        }
        SendReport::Broken { phase: Phase::Mail, fault } if is_fresh => Some(RelayError::link(Phase::Mail, fault)),
        SendReport::Accepted { .. }
        | SendReport::Refused { .. }
        | SendReport::Broken { .. }
        | SendReport::NotCapable { .. } => None,
    }
}

fn deferring(report: &SendReport) -> RelayError {
    match report {
        SendReport::Refused { phase, reply } => RelayError::deferring(*phase, &reply.line()),
        SendReport::Broken { phase, fault } => RelayError::deferring(*phase, &fault.to_string()),
        SendReport::Accepted { .. } | SendReport::NotCapable { .. } => RelayError::deferring(Phase::Mail, ""),
    }
}

/// Persons are told apart, not kept.
fn hash(person: &EmailAddress) -> u64 {
    let mut hasher = DefaultHasher::new();
    person.key().hash(&mut hasher);
    hasher.finish()
}

/// One connection attempt after another, until one succeeds or nobody is left who wants to know.
async fn probe_until_up(relay: Weak<Relay>) {
    loop {
        let Some(due) = relay.upgrade().and_then(|relay| relay.breaker.retry_at()) else { return };
        sleep_until(due).await;
        let Some(relay) = relay.upgrade() else { return };
        if relay.is_closing.load(Ordering::SeqCst) {
            return;
        }
        match Box::pin(relay.endpoint.open()).await {
            Ok(connection) => {
                relay.mark_up();
                connection.quit().await;
                return;
            }
            Err(error) => {
                relay.count(&error);
                relay.breaker.still_down(error);
            }
        }
    }
}
