//! One relay: its connections by lane, whether it may be used, how fast, and what is learned from each mail.
//!
//! Invariant: a lane never has more connections to it than its limit, those being opened included.
//! Invariant: one prober, whatever the number of those who wait for it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    breaker::{Breaker, RelayState},
    connection::Connection,
    driver,
    fault::{RelayError, RelayFault},
    line::{Entry, Line, Opening},
    pace::Pace,
    place::Pass,
    relays::RelayHealth,
    reply::{Lesson, lesson, wants_other_settings},
    session::Endpoint,
    steps::{Heard, Steps},
    trial::{Deferral, LetGo, MayGo, Trials},
};
use crate::{
    config::SmtpConfig,
    email::{EmailAddress, Lane, PerLane, Phase, SendReport},
};

/// Between two connections that are opened ahead: a relay that closes them at once is not beset.
const WARM_PAUSE: Duration = Duration::from_secs(1);

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
    pub(super) lanes: PerLane<Line>,
    mails_per_connection_max: u32,
    /// A connection that nobody has used for so long is closed.
    pub(super) idle_max: Duration,
    warm_fast: usize,
    changes: watch::Sender<()>,
    /// Who wants to know how long steps take.
    pub(super) heard: Heard,
    /// No connection is kept any more.
    pub(super) closing: CancellationToken,
}

/// Nothing panics while holding these, and what they hold is sound whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    pub(super) fn new(endpoint: Endpoint, config: &SmtpConfig, changes: watch::Sender<()>, heard: Heard) -> Self {
        let limits = &endpoint.relay.connections;
        let limit = |lane| limits.get(lane).unwrap_or(*config.connections.get(lane));
        Self {
            breaker: Breaker::new(),
            pace: Mutex::default(),
            trials: Mutex::new(Trials::new()),
            deferring: Mutex::default(),
            faults: std::array::from_fn(|_| AtomicU64::new(0)),
            throttled: AtomicU64::new(0),
            lanes: PerLane::from_fn(|lane| Line::new(limit(lane))),
            mails_per_connection_max: config.mails_per_connection_max,
            idle_max: config.idle_max,
            warm_fast: config.warm_connections_fast,
            changes,
            heard,
            closing: CancellationToken::new(),
            endpoint,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.endpoint.relay.name
    }

    /// Whether waiting for this relay makes sense: it may be connected to, or a connection has room; and when a mail
    /// is due.
    pub(super) fn may_go(&self, lane: Lane, now: Instant) -> MayGo {
        let is_reachable = self.breaker.is_closed() || self.lanes.get(lane).has_room();
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

    /// Sees to it that a place that was just taken has a connection, and says how one was opened for it, if so. Nothing: there
    /// is none to be had.
    pub(super) async fn connected(self: &Arc<Self>, lane: Lane) -> Option<Option<Steps>> {
        let line = self.lanes.get(lane);
        let (mut may_open, mut opened) = (true, None);
        loop {
            let moved = line.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            match line.entry(may_open && self.breaker.is_closed()) {
                Entry::Shares => return Some(opened),
                // One that cannot be opened leaves those that are.
                Entry::Opens(opening) => {
                    opened = self.open_for(lane, opening).await;
                    may_open = opened.is_some();
                }
                Entry::Waits => moved.await,
                Entry::None => return None,
            }
        }
    }

    /// How it was opened; nothing if it could not be.
    async fn open_for(self: &Arc<Self>, lane: Lane, opening: Opening<'_>) -> Option<Steps> {
        let mut connection = self.open().await?;
        let steps = connection.opening.take();
        opening.opened();
        tokio::spawn(driver::drive(Arc::clone(self), lane, connection));
        steps
    }

    /// A new connection; nothing if there is none to be had now.
    pub(super) async fn open(self: &Arc<Self>) -> Option<Connection> {
        if !self.breaker.is_closed() {
            return None;
        }
        match Box::pin(self.endpoint.open()).await {
            Ok(mut connection) => {
                // Opened by somebody else's fault meanwhile, it is the prober's to close.
                self.breaker.note_connection();
                connection.mails_max = self.mails_per_connection_max;
                if let Some(steps) = &connection.opening {
                    self.heard.tell(self.name(), steps);
                }
                Some(connection)
            }
            Err(error) => {
                self.mark_down(error);
                None
            }
        }
    }

    /// How many of a lane's connections are kept open though nobody uses them.
    pub(super) const fn warm(&self, lane: Lane) -> usize {
        match lane {
            Lane::Fast => self.warm_fast,
            Lane::Standard | Lane::Bulk => 0,
        }
    }

    /// Keeps the fast lane's warm connections open, so that an incident does not wait for TCP, TLS and AUTH.
    pub(super) async fn keep_warm(self: Arc<Self>) {
        let line = self.lanes.get(Lane::Fast);
        let mut changes = self.changes.subscribe();
        loop {
            let moved = line.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            changes.mark_unchanged();
            if self.breaker.is_closed()
                && let Some(opening) = line.opens_ahead(self.warm(Lane::Fast))
            {
                self.open_for(Lane::Fast, opening).await;
                tokio::select! { () = self.closing.cancelled() => return, () = tokio::time::sleep(WARM_PAUSE) => continue }
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = moved => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Room on a connection is news where no other can be opened.
    pub(super) fn tell_of_room(&self) {
        if !self.breaker.is_closed() {
            self.changes.send_replace(());
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

    /// No connection is kept any more. Returns when those that have nothing to do are closed.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        for lane in Lane::ALL {
            self.lanes.get(lane).until_quiet().await;
        }
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
            in_use: PerLane::from_fn(|lane| self.lanes.get(lane).places()),
            idle: PerLane::from_fn(|lane| self.lanes.get(lane).idle()),
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
        | SendReport::NotCapable { .. }
        | SendReport::Withdrawn { .. } => None,
    }
}

fn deferring(report: &SendReport) -> RelayError {
    match report {
        SendReport::Refused { phase, reply } => RelayError::deferring(*phase, &reply.line()),
        SendReport::Broken { phase, fault } => RelayError::deferring(*phase, &fault.to_string()),
        SendReport::Accepted { .. } | SendReport::NotCapable { .. } | SendReport::Withdrawn { .. } => {
            RelayError::deferring(Phase::Mail, "")
        }
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
        if relay.closing.is_cancelled() {
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
