//! The relays in order of preference, and who gets the next place at which of them.
//!
//! Invariant: a fault of a relay never reaches a caller of [`Relays::place`]: the next relay is taken, or it waits. So
//! is a relay that is paced out: the next one in order takes the mail.
//! Invariant: one of a lane at a time looks for a relay and waits for it, the others stand in line behind it: what
//! comes free goes to whoever waited longest, and a relay that is slow does not wake them all.

use std::{future::pending, sync::Arc};

use futures_util::future::join_all;
use rustls::RootCertStore;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, watch},
    time::{Instant, sleep_until},
};

pub use super::breaker::RelayState;
use super::{
    fault::{RelayError, RelayFault},
    place::{Pass, Place},
    relay::Relay,
    session::{Capabilities, Endpoint},
    steps::{Heard, Listener},
    tls::{TlsClient, TlsSetupError},
    trial::MayGo,
};
use crate::{
    config::SmtpConfig,
    email::{Lane, PerLane},
};

/// All relays of this daemon.
pub struct Relays {
    relays: Vec<Arc<Relay>>,
    /// Moves whenever a relay goes up or down, a trial has room, or a connection comes free that a waiting lane could
    /// not have opened.
    changes: watch::Sender<()>,
    heard: Heard,
    /// Held by the one of a lane whose turn it is.
    turns: PerLane<Mutex<()>>,
}

/// How a relay fares, for operators.
#[derive(Debug, Clone)]
pub struct RelayHealth {
    /// Its name in the settings.
    pub name: String,
    /// Whether it can be used.
    pub state: RelayState,
    /// How many mails a second it gets at most, because it throttled; nothing: as many as there are.
    pub mails_per_second: Option<f64>,
    /// How many mails it throttled.
    pub throttled: u64,
    /// How often each fault was met.
    pub faults: Vec<(RelayFault, u64)>,
    /// Places taken: up to two for each connection, one mail on the wire and one following.
    pub in_use: PerLane<usize>,
    /// Connections that are open and have nothing to do.
    pub idle: PerLane<usize>,
}

impl RelayHealth {
    /// All that [`Self::state_name`] can be.
    pub const STATES: [&str; 5] = ["untried", "up", "paced", "down", "on_trial"];

    /// Whether nothing is known that keeps mail from being sent to it.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        match self.state {
            RelayState::Untried | RelayState::Up => true,
            RelayState::Down { .. } | RelayState::OnTrial { .. } => false,
        }
    }

    /// `untried`, `up`, `paced`, `down` or `on_trial`.
    #[must_use]
    pub const fn state_name(&self) -> &'static str {
        match self.state {
            RelayState::Untried => "untried",
            RelayState::Up if self.mails_per_second.is_some() => "paced",
            RelayState::Up => "up",
            RelayState::Down { .. } => "down",
            RelayState::OnTrial { .. } => "on_trial",
        }
    }
}

impl Relays {
    /// Prepares the relays; connects to none.
    ///
    /// # Errors
    /// When TLS cannot be set up as the settings say.
    pub fn new(config: &SmtpConfig) -> Result<Arc<Self>, TlsSetupError> {
        let mut system: Option<RootCertStore> = None;
        let (changes, heard) = (watch::Sender::new(()), Heard::default());
        let relays = config.relays.iter().map(|relay| {
            let endpoint = Endpoint {
                tls: TlsClient::new(relay, &mut system)?,
                relay: relay.clone(),
                helo_name: config.helo_name.clone(),
                step_timeout: config.step_timeout,
                dot_timeout: config.dot_timeout,
            };
            Ok(Arc::new(Relay::new(endpoint, config, changes.clone(), heard.clone())))
        });
        let relays = relays.collect::<Result<_, TlsSetupError>>()?;
        Ok(Arc::new(Self { relays, changes, heard, turns: PerLane::from_fn(|_| Mutex::new(())) }))
    }

    /// A place on a connection of this lane, to the first relay that works and is not paced out. Waits for as long as
    /// it takes: for its turn, and for a relay. Dropping the future gives up the wait and harms nothing.
    pub async fn place(&self, lane: Lane) -> Place {
        loop {
            let turn = self.turns.get(lane).lock().await;
            let (pass, permit) = self.next(lane).await;
            // Connecting takes time that those behind need not wait for.
            drop(turn);
            let mut place = Place::take(pass, permit);
            if let Some(opening) = place.relay().connected(lane).await {
                place.opened_with(opening);
                return place;
            }
        }
    }

    /// Tells this listener the steps of every mail and of every connection that is opened from now on.
    pub fn tell_steps(&self, listener: Arc<Listener>) {
        self.heard.listen(listener);
    }

    /// A place at a relay that works right now, but at none of these; nothing if there is none.
    pub async fn place_elsewhere(&self, lane: Lane, not_at: &[String]) -> Option<Place> {
        loop {
            let others = self.relays.iter().filter(|relay| !not_at.iter().any(|name| name == relay.name()));
            let (relay, _) = first_due(others, lane);
            let relay = relay?;
            let permit = Arc::clone(&relay.lanes.get(lane).permits).acquire_owned().await.ok()?;
            let Some(pass) = relay.let_go(lane, Instant::now()) else { continue };
            let mut place = Place::take(pass, permit);
            if let Some(opening) = place.relay().connected(lane).await {
                place.opened_with(opening);
                return Some(place);
            }
        }
    }

    /// Waits for a relay that may be sent to, and for room on its connections.
    async fn next(&self, lane: Lane) -> (Pass, OwnedSemaphorePermit) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let (relay, look_again_at) = first_due(self.relays.iter(), lane);
            let permit = async {
                match relay {
                    Some(relay) => Arc::clone(&relay.lanes.get(lane).permits).acquire_owned().await.ok(),
                    None => pending().await,
                }
            };
            let later = async {
                match look_again_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            // The sender of changes lives in `self`, so that none of these fails.
            let permit = tokio::select! {
                biased;
                permit = permit => permit,
                _ = changes.changed() => None,
                () = later => None,
            };
            if let (Some(relay), Some(permit)) = (relay, permit)
                && let Some(pass) = relay.let_go(lane, Instant::now())
            {
                return (pass, permit);
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

    /// Keeps connections of the fast lane open at the first relay, until [`Self::close`].
    pub async fn keep_warm(&self) {
        if let Some(relay) = self.relays.first() {
            Arc::clone(relay).keep_warm().await;
        }
    }

    /// Says goodbye on every idle connection, within two seconds or so; what is in use closes after its mail.
    pub async fn close(&self) {
        join_all(self.relays.iter().map(|relay| relay.close())).await;
    }
}

/// The first relay that a mail of this lane may go to now; and when one before it is due, if any.
fn first_due<'a>(
    relays: impl Iterator<Item = &'a Arc<Relay>>,
    lane: Lane,
) -> (Option<&'a Arc<Relay>>, Option<Instant>) {
    let (now, mut due_at) = (Instant::now(), None);
    for relay in relays {
        match relay.may_go(lane, now) {
            MayGo::Now => return (Some(relay), due_at),
            MayGo::At(at) => due_at = Some(due_at.map_or(at, |earlier: Instant| earlier.min(at))),
            MayGo::No => {}
        }
    }
    (None, due_at)
}
