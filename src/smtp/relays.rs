//! The relays in order of preference, and the places on their connections.
//!
//! Invariant: a lane never has more connections to a relay than its limit: a place holds a permit, a new connection is
//! opened only where none lies idle, and what is left behind is idle before its permit is free.
//! Invariant: a fault of a relay never reaches a caller of [`Relays::place`]: the next relay is taken, or it waits.
//! Invariant: one prober a relay, whatever the number of those who wait for it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::RootCertStore;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

pub use super::breaker::RelayState;
use super::{
    breaker::Breaker,
    connection::Connection,
    fault::{RelayError, RelayFault},
    reply::wants_other_settings,
    session::{Capabilities, Endpoint},
    tls::{TlsClient, TlsSetupError},
    transaction::{self, OutgoingMail},
};
use crate::{
    config::SmtpConfig,
    email::{Lane, LinkFault, PerLane, Phase, SendReport},
};

/// All relays of this daemon.
pub struct Relays {
    relays: Vec<Arc<Relay>>,
    /// Moves whenever a relay goes up or down, or a connection comes free that a waiting lane could not have opened.
    changes: watch::Sender<()>,
}

struct Relay {
    endpoint: Endpoint,
    breaker: Breaker,
    lanes: PerLane<LaneConnections>,
    mails_per_connection_max: u32,
    idle_max: Duration,
    changes: watch::Sender<()>,
    is_closing: AtomicBool,
    is_swept: AtomicBool,
}

struct LaneConnections {
    permits: Arc<Semaphore>,
    limit: usize,
    /// The one used last is used next, so that what is too much grows old and goes.
    idle: Mutex<Vec<Connection>>,
}

/// How a relay fares, for operators.
#[derive(Debug, Clone)]
pub struct RelayHealth {
    /// Its name in the settings.
    pub name: String,
    /// Whether it can be used.
    pub state: RelayState,
    /// Places taken, connections being opened included.
    pub in_use: PerLane<usize>,
    /// Connections that lie ready.
    pub idle: PerLane<usize>,
}

/// The right to send one mail over a connection that is ready for it.
///
/// Dropped unused, it gives the connection back.
#[must_use]
pub struct Place {
    relay: Arc<Relay>,
    lane: Lane,
    connection: Option<Connection>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Relays {
    /// Prepares the relays; connects to none.
    ///
    /// # Errors
    /// When TLS cannot be set up as the settings say.
    pub fn new(config: &SmtpConfig) -> Result<Arc<Self>, TlsSetupError> {
        let mut system: Option<RootCertStore> = None;
        let changes = watch::Sender::new(());
        let relays = config.relays.iter().map(|relay| {
            let tls = TlsClient::new(relay, &mut system)?;
            Ok(Arc::new(Relay {
                endpoint: Endpoint {
                    relay: relay.clone(),
                    tls,
                    helo_name: config.helo_name.clone(),
                    step_timeout: config.step_timeout,
                    dot_timeout: config.dot_timeout,
                },
                breaker: Breaker::new(),
                lanes: PerLane::from_fn(|lane| LaneConnections::new(*config.connections.get(lane))),
                mails_per_connection_max: config.mails_per_connection_max,
                idle_max: config.idle_max,
                changes: changes.clone(),
                is_closing: AtomicBool::new(false),
                is_swept: AtomicBool::new(false),
            }))
        });
        Ok(Arc::new(Self { relays: relays.collect::<Result<_, TlsSetupError>>()?, changes }))
    }

    /// A place on a connection of this lane, to the first relay that works. Waits for as long as it takes: for its
    /// turn, and for a relay. Dropping the future gives up the wait and harms nothing.
    pub async fn place(&self, lane: Lane) -> Place {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let Some(relay) = self.relays.iter().find(|relay| relay.may_serve(lane)) else {
                // The sender lives in `self`, so this cannot fail.
                let _ = changes.changed().await;
                continue;
            };
            let permits = Arc::clone(&relay.lanes.get(lane).permits);
            let permit = tokio::select! {
                biased;
                permit = permits.acquire_owned() => permit.ok(),
                _ = changes.changed() => None,
            };
            if permit.is_none() {
                continue;
            }
            if let Some(connection) = relay.connection(lane).await {
                return Place { relay: Arc::clone(relay), lane, connection: Some(connection), permit };
            }
        }
    }

    /// How each relay fares, in order of preference.
    #[must_use]
    pub fn health(&self) -> Vec<RelayHealth> {
        self.relays.iter().map(|relay| relay.health()).collect()
    }

    /// The relays' names, in order of preference.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.relays.iter().map(|relay| relay.name())
    }

    /// Connects to the relay of this name, up to where MAIL would come, and hangs up; nothing if there is no such relay.
    pub async fn probe(&self, name: &str) -> Option<Result<Capabilities, RelayError>> {
        let relay = self.relays.iter().find(|relay| relay.name() == name)?;
        Some(match relay.endpoint.open().await {
            Ok(connection) => {
                let capabilities = connection.capabilities.clone();
                connection.quit().await;
                Ok(capabilities)
            }
            Err(error) => Err(error),
        })
    }

    /// Says goodbye on every idle connection, within two seconds or so; what is in use closes after its mail.
    pub async fn close(&self) {
        let mut goodbyes = JoinSet::new();
        for relay in &self.relays {
            relay.is_closing.store(true, Ordering::SeqCst);
            for lane in Lane::ALL {
                for connection in std::mem::take(&mut *relay.lanes.get(lane).idle()) {
                    goodbyes.spawn(connection.quit());
                }
            }
        }
        goodbyes.join_all().await;
    }
}

impl LaneConnections {
    fn new(limit: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(limit)), limit, idle: Mutex::new(Vec::new()) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        // A list of connections is sound whoever panicked.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    fn name(&self) -> &str {
        &self.endpoint.relay.name
    }

    /// Whether waiting for this relay makes sense: it may be connected to, or a connection lies ready.
    fn may_serve(&self, lane: Lane) -> bool {
        self.breaker.is_closed() || !self.lanes.get(lane).idle().is_empty()
    }

    /// An idle connection that is alive, else a new one; nothing if there is none to be had.
    async fn connection(self: &Arc<Self>, lane: Lane) -> Option<Connection> {
        loop {
            let Some(mut connection) = self.lanes.get(lane).idle().pop() else { break };
            if connection.idle_since.elapsed() <= self.idle_max && connection.is_alive() {
                return Some(connection);
            }
        }
        if !self.breaker.is_closed() {
            return None;
        }
        match Box::pin(self.endpoint.open()).await {
            Ok(connection) => {
                self.mark_up();
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
            tracing::info!(smtp.relay = self.name(), "the relay works again");
            self.changes.send_replace(());
        }
    }

    fn mark_down(self: &Arc<Self>, error: RelayError) {
        let (fault, words) = (error.fault.name(), error.words.clone());
        if self.breaker.trip(error) {
            tracing::warn!(smtp.relay = self.name(), smtp.fault = fault, "the relay cannot be used: {words}");
            tokio::spawn(probe_until_up(Arc::downgrade(self)));
            self.changes.send_replace(());
        }
    }

    /// Takes back a connection that is in step. Comes before its permit is free.
    fn take_back(&self, lane: Lane, mut connection: Connection) {
        if self.is_closing.load(Ordering::SeqCst) {
            return;
        }
        connection.idle_since = Instant::now();
        self.lanes.get(lane).idle().push(connection);
        if !self.breaker.is_closed() {
            // Those who wait cannot open a connection of their own, so they must hear of this one.
            self.changes.send_replace(());
        }
    }

    /// What a mail's fate says about the relay. `is_fresh`: no mail had gone over that connection before.
    fn learn_from(self: &Arc<Self>, report: &SendReport, is_fresh: bool) {
        match report {
            refusal @ SendReport::Refused { phase, reply } if wants_other_settings(refusal) => {
                let words = format!(
                    "the relay does not take mail from us as we are ({}); check SMTP_USER, SMTP_PASSWORD and SMTP_USE_TLS",
                    reply.line()
                );
                self.mark_down(RelayError::new(RelayFault::Auth, *phase, words));
            }
            // On a connection in its prime this is not the end of a long service: the relay is in trouble.
            SendReport::Refused { phase, reply } if reply.code == 421 => {
                if is_fresh {
                    self.mark_down(RelayError::turned_away(*phase, reply));
                }
            }
            SendReport::Broken { phase: Phase::Mail, fault } => {
                if is_fresh {
                    self.mark_down(RelayError::link(Phase::Mail, fault));
                }
            }
            SendReport::Accepted { .. } | SendReport::Refused { .. } => self.breaker.forget_failures(),
            SendReport::Broken { .. } | SendReport::NotCapable { .. } => {}
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
                    let old: Vec<_> =
                        relay.lanes.get(lane).idle().extract_if(.., |c| c.idle_since.elapsed() > idle_max).collect();
                    for connection in old {
                        connection.quit().await;
                    }
                }
            }
        });
    }

    fn health(&self) -> RelayHealth {
        RelayHealth {
            name: self.name().to_owned(),
            state: self.breaker.state(),
            in_use: PerLane::from_fn(|lane| {
                let connections = self.lanes.get(lane);
                connections.limit - connections.permits.available_permits()
            }),
            idle: PerLane::from_fn(|lane| self.lanes.get(lane).idle().len()),
        }
    }
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
            Err(error) => relay.breaker.still_down(error),
        }
    }
}

impl Place {
    /// The relay's name in the settings.
    #[must_use]
    pub fn relay_name(&self) -> &str {
        self.relay.name()
    }

    /// Sends one mail and says how that went; gives the connection back if it is still in step.
    ///
    /// The future must not be dropped once it was polled: the relay may have the mail, and nobody would know. If it is
    /// dropped all the same, the connection is closed and never used again.
    pub async fn send(mut self, mail: &OutgoingMail<'_>) -> SendReport {
        let Some(mut connection) = self.connection.take() else {
            return SendReport::Broken { phase: Phase::Mail, fault: LinkFault::Closed };
        };
        let is_fresh = connection.mails == 0;
        let report = transaction::send(&mut connection, mail).await;
        self.relay.learn_from(&report, is_fresh);
        if !connection.is_in_step() {
            return report;
        }
        if connection.mails < self.relay.mails_per_connection_max {
            self.connection = Some(connection);
        } else {
            // The permit goes with it: until the relay has let it go it counts.
            let permit = self.permit.take();
            tokio::spawn(async move {
                connection.quit().await;
                drop(permit);
            });
        }
        report
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.relay.take_back(self.lane, connection);
        }
    }
}
