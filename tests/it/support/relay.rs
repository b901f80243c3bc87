//! A relay that misbehaves on command: a real SMTP dialogue over a real socket, in this process.
//!
//! ```ignore
//! let relay = Relay::start().await;
//! relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 try later")).to("tempfail").times(2));
//! // ... point the daemon at relay.config() ...
//! let mails = relay.wait_for_mails(1).await;
//! ```
//!
//! Invariant: it takes a mail only with a 2xx that it is about to say (or with [`Act::AcceptThenDisconnect`]), and
//! everything that was said on either side is in its [`RelayLog`].
//! Invariant: it never ends a test's wait by a sleep: waits look at the log, and each has a deadline.

mod dialogue;
mod log;
mod script;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider::config::{RelayConfig, RelayCredentials, RelayTls, SmtpConfig};
use postrider::email::PerLane;
use rustls::ServerConfig;
use secrecy::SecretString;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{port::Port, wait::WAIT_MAX};

pub use log::{GoAhead, ReceivedMail, RelayLog};
pub use script::{Act, Rule, Suffered};

/// What the relay offers and asks for.
#[derive(Clone)]
pub struct Offer {
    /// PIPELINING.
    pub pipelining: bool,
    /// 8BITMIME.
    pub eight_bit_mime: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// SIZE and its limit; zero names none.
    pub size: Option<u64>,
    /// STARTTLS.
    pub starttls: Option<Arc<ServerConfig>>,
    /// TLS from the first byte.
    pub implicit_tls: Option<Arc<ServerConfig>>,
    /// Who may send; nobody needs to say so when this is nothing.
    pub credentials: Option<(String, String)>,
    /// What AUTH offers when there are credentials.
    pub mechanisms: String,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            pipelining: true,
            eight_bit_mime: true,
            smtputf8: true,
            size: Some(40 * 1024 * 1024),
            starttls: None,
            implicit_tls: None,
            credentials: None,
            mechanisms: "PLAIN LOGIN".to_owned(),
        }
    }
}

/// The relay. Dropping it ends it and its connections.
pub struct Relay {
    port: Port,
    shared: Arc<Shared>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

/// What all connections of a relay share.
struct Shared {
    offer: Offer,
    rules: Mutex<Vec<Rule>>,
    /// What RSET is answered, if not as it should be: it is a step of no mail.
    reset: Mutex<Option<String>>,
    log: watch::Sender<RelayLog>,
    /// Set: final dots wait for a permit.
    gate: Mutex<Option<Gate>>,
    /// Cancelled: the connections end.
    connections: Mutex<CancellationToken>,
}

/// What holds final dots.
#[derive(Clone)]
struct Gate {
    permits: Arc<Semaphore>,
    /// Addresses that pass without one.
    free: Arc<[String]>,
}

impl Relay {
    /// A well-behaved relay on a free port, with PIPELINING, 8BITMIME, SMTPUTF8 and SIZE, in plain, for everybody.
    pub async fn start() -> Self {
        Self::with(Offer::default()).await
    }

    /// A relay that offers this.
    pub async fn with(offer: Offer) -> Self {
        let port = Port::reserve();
        let listener = port.listen().await;
        let shared = Arc::new(Shared {
            offer,
            rules: Mutex::default(),
            reset: Mutex::default(),
            log: watch::Sender::new(RelayLog::default()),
            gate: Mutex::default(),
            connections: Mutex::default(),
        });
        let listening = Mutex::new(Some(tokio::spawn(dialogue::listen(listener, Arc::clone(&shared)))));
        Self { port, shared, listening }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port.address().port()
    }

    /// The settings that lead to it, in plain unless it offers TLS, with the credentials it wants.
    pub fn config(&self) -> RelayConfig {
        let offer = &self.shared.offer;
        RelayConfig {
            name: format!("relay-{}", self.port()),
            // Certificates of tests are for this name; it has an address of each family, one of which is refused.
            host: "localhost".to_owned(),
            port: self.port(),
            tls: match (&offer.implicit_tls, &offer.starttls) {
                (Some(_), _) => RelayTls::Implicit,
                (None, Some(_)) => RelayTls::StartTls,
                (None, None) => RelayTls::Plain,
            },
            ca_file: None,
            credentials: offer.credentials.as_ref().map(|(user, password)| RelayCredentials {
                user: user.clone(),
                password: SecretString::from(password.as_str()),
            }),
            connections: PerLane::from_fn(|_| None),
        }
    }

    /// Settings with this one relay and patience enough for a slow machine.
    pub fn smtp_config(&self) -> SmtpConfig {
        smtp_config(vec![self.config()])
    }

    /// Adds a rule. Where several match, the one that was added first counts.
    pub fn script(&self, rule: Rule) {
        self.shared.rules.lock().expect("no test panics here").push(rule);
    }

    /// From now on answers RSET with this line.
    pub fn script_reset(&self, line: &str) {
        *self.shared.reset.lock().expect("no test panics here") = Some(line.to_owned());
    }

    /// How often each rule has applied, in the order of their adding.
    pub fn misdeeds(&self) -> Vec<usize> {
        self.shared.rules.lock().expect("no test panics here").iter().map(|rule| rule.happened).collect()
    }

    /// Forgets all rules.
    pub fn behave(&self) {
        self.shared.rules.lock().expect("no test panics here").clear();
    }

    /// From now on no final dot is answered.
    pub fn hold_final_dots(&self) {
        self.hold_final_dots_but_to(&[]);
    }

    /// From now on no final dot is answered, but for mails to these addresses.
    pub fn hold_final_dots_but_to(&self, free: &[&str]) {
        let free = free.iter().map(ToString::to_string).collect();
        let gate = Gate { permits: Arc::new(Semaphore::new(0)), free };
        *self.shared.gate.lock().expect("no test panics here") = Some(gate);
    }

    /// Lets this many held final dots be answered.
    pub fn let_through(&self, dots: usize) {
        if let Some(gate) = &*self.shared.gate.lock().expect("no test panics here") {
            gate.permits.add_permits(dots);
        }
    }

    /// Answers all final dots that were held, and holds no more.
    pub fn release_final_dots(&self) {
        if let Some(gate) = self.shared.gate.lock().expect("no test panics here").take() {
            gate.permits.close();
        }
    }

    /// Refuses new connections, as a relay does that is not running. Those that exist go on.
    pub async fn refuse_connections(&self) {
        let listening = self.listening.lock().expect("no test panics here").take();
        if let Some(task) = listening {
            task.abort();
            // Only when the task is gone is the port closed.
            let _ = task.await;
        }
    }

    /// Takes connections again, on the same port.
    pub async fn take_connections(&self) {
        let listener = self.port.listen().await;
        let task = tokio::spawn(dialogue::listen(listener, Arc::clone(&self.shared)));
        *self.listening.lock().expect("no test panics here") = Some(task);
    }

    /// Cuts every connection, in the middle of whatever it does.
    pub fn cut_connections(&self) {
        std::mem::take(&mut *self.shared.connections.lock().expect("no test panics here")).cancel();
    }

    /// What has happened so far.
    pub fn log(&self) -> RelayLog {
        self.shared.log.borrow().clone()
    }

    /// Looks at what has happened so far, without a copy of it all.
    pub fn look<T>(&self, at: impl FnOnce(&RelayLog) -> T) -> T {
        at(&self.shared.log.borrow())
    }

    /// Waits until this many mails were accepted, and returns them in the order of their acceptance.
    pub async fn wait_for_mails(&self, count: usize) -> Vec<ReceivedMail> {
        self.wait_until(&format!("{count} mails accepted"), |log| log.accepted().count() >= count).await;
        let mut mails: Vec<_> = self.log().accepted().cloned().collect();
        mails.sort_by_key(|mail| mail.answered_at);
        mails
    }

    /// Waits until the log shows it.
    pub async fn wait_until(&self, what: &str, mut is_so: impl FnMut(&RelayLog) -> bool) {
        let mut log = self.shared.log.subscribe();
        let seen = tokio::time::timeout(WAIT_MAX, log.wait_for(|log| is_so(log))).await.is_ok_and(|seen| seen.is_ok());
        assert!(seen, "the relay waited in vain for: {what}\n{}", self.log().dialogue());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut_connections();
        if let Some(task) = self.listening.lock().ok().and_then(|mut listening| listening.take()) {
            task.abort();
        }
    }
}

/// Settings with these relays and patience enough for a slow machine.
pub fn smtp_config(relays: Vec<RelayConfig>) -> SmtpConfig {
    SmtpConfig {
        relays,
        helo_name: "daemon.test".to_owned(),
        step_timeout: Duration::from_secs(10),
        dot_timeout: Duration::from_secs(20),
        connections: PerLane { fast: 2, standard: 2, bulk: 2 },
        mails_per_connection_max: 100,
        idle_max: Duration::from_secs(30),
        warm_connections_fast: 1,
    }
}
