//! A connection to the broker that is made again whenever it is gone.
//!
//! Invariant: at most one attempt to connect is under way, with jittered backoff, for as long as it takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapin::{
    Connection, ConnectionProperties, ErrorKind,
    tcp::{AMQPUriTcpExt, RustlsConnector, TLSConfig},
    uri::{AMQPAuthority, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism},
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Mutex, watch};
use tokio_retry::{
    Retry,
    strategy::{ExponentialBackoff, jitter},
};

use crate::{
    config::{BrokerConfig, BrokerIdentity},
    tls::{self, Peer},
};

/// Longest wait for TCP, TLS and the AMQP handshake together: lapin limits the first only.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest pause between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// Seconds after which a silent peer counts as gone, unless the URL says otherwise.
const HEARTBEAT_SECONDS: u16 = 20;
const BROKER: Peer = Peer {
    who: "the broker",
    host: "AMQP_URL",
    authorities: "AMQP_CA_FILE",
    own: Some("AMQP_CLIENT_CERT_FILE"),
    no_tls: "amqps:// in AMQP_URL means the broker's port for TLS, 5671 as a rule",
};

/// What can go wrong at the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The connection could not be made or was lost.
    #[error("broker: {0}")]
    Amqp(#[from] lapin::Error),
    /// There is no connection, and the words say what to do.
    #[error("broker: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("broker: no answer within {} s while {doing}", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// What was being done.
        doing: &'static str,
    },
    /// The URL cannot be used.
    #[error("AMQP_URL: {0}")]
    Url(String),
    /// TLS cannot be set up as the settings say.
    #[error("{0}")]
    Tls(String),
    /// An exchange or queue exists with other arguments, or may not be touched.
    #[error("{0}")]
    Topology(String),
    /// An exchange or queue does not exist.
    #[error("{0}")]
    Missing(String),
    /// No queue took a message: the one that it was for is gone.
    #[error("broker: no queue took the message ({0})")]
    Unroutable(String),
    /// The broker refused a message.
    #[error("broker: the message was not taken ({0})")]
    NotTaken(String),
}

impl BrokerError {
    /// Whether the broker will never take this message, whatever becomes of it: it is too large, for instance.
    #[must_use]
    pub fn is_about_the_message(&self) -> bool {
        // CONTENT_TOO_LARGE and PRECONDITION_FAILED, as they close the channel that it was published on.
        matches!(self, Self::Amqp(error)
            if matches!(error.kind(), ErrorKind::ProtocolError(said) if matches!(said.get_id(), 311 | 406)))
    }

    /// Whether a queue or exchange of ours has been deleted: declaring the topology again may help.
    #[must_use]
    pub fn is_missing_object(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Unroutable(_) => true,
            Self::Amqp(error) => matches!(error.kind(), ErrorKind::ProtocolError(said) if said.get_id() == 404),
            Self::Unreachable(_)
            | Self::TimedOut { .. }
            | Self::Url(_)
            | Self::Tls(_)
            | Self::Topology(_)
            | Self::NotTaken(_) => false,
        }
    }
}

/// What a connection is used for; shown in the broker's own management pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Takes deliveries and settles them. Never publishes.
    Consume,
    /// Publishes. Never consumes.
    Publish,
    /// Shows events to somebody at a terminal.
    Tail,
    /// Counts what waits, for somebody at a terminal.
    Look,
}

impl Purpose {
    const fn connection_name(self) -> &'static str {
        match self {
            Self::Consume => "postrider consume",
            Self::Publish => "postrider publish",
            Self::Tail => "postrider tail",
            Self::Look => "postrider look",
        }
    }
}

/// Whether a connection stands, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Nobody needed it yet.
    Untried,
    /// It stands.
    Up,
    /// It is gone; the words say why.
    Down(String),
}

/// One connection, for one purpose.
pub struct Link {
    /// Parsed for each attempt only, so that no other copy of the password stays here.
    url: SecretString,
    /// For `amqps://`.
    tls: Option<Arc<ClientConfig>>,
    purpose: Purpose,
    current: Mutex<Option<Arc<Connection>>>,
    state: watch::Sender<LinkState>,
}

impl Link {
    /// Prepares a connection; nothing is opened yet.
    ///
    /// # Errors
    /// When the URL is not an AMQP URL, or a file of certificates or the key cannot be used.
    pub fn new(config: &BrokerConfig, purpose: Purpose) -> Result<Self, BrokerError> {
        let tls = match parse(&config.url)?.scheme {
            AMQPScheme::AMQP => None,
            AMQPScheme::AMQPS => Some(Arc::new(client(config)?)),
        };
        Ok(Self {
            url: config.url.clone(),
            tls,
            purpose,
            current: Mutex::new(None),
            state: watch::Sender::new(LinkState::Untried),
        })
    }

    /// What it is called in logs, in readiness and in the broker's own pages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.purpose.connection_name()
    }

    /// Whether the connection stands.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    /// The connection, made again if it is gone, for as long as it takes.
    pub async fn get(&self) -> Arc<Connection> {
        let mut current = self.current.lock().await;
        if let Some(connection) = current.as_ref().filter(|c| c.status().connected()) {
            return connection.clone();
        }
        *current = None;
        // tokio-retry's base is a power, not a pause: 2^n x 125 ms = 0.25 s, 0.5 s, 1 s ...
        let pauses = ExponentialBackoff::from_millis(2).factor(125).max_delay(BACKOFF_MAX).map(jitter);
        let attempt = || async {
            let made = self.connect_once().await;
            if let Err(error) = &made {
                tracing::warn!(purpose = self.purpose.connection_name(), %error, "broker is away");
                self.state.send_replace(LinkState::Down(error.to_string()));
            }
            made
        };
        let connection = loop {
            // The iterator of pauses never ends, so neither does this, but the type does not say so.
            if let Ok(connection) = Retry::start(pauses.clone(), attempt).await {
                break Arc::new(connection);
            }
        };
        tracing::info!(purpose = self.purpose.connection_name(), "connected to the broker");
        self.state.send_replace(LinkState::Up);
        *current = Some(connection.clone());
        connection
    }

    /// One attempt, for `postrider check` and the supervisor.
    ///
    /// # Errors
    /// When the broker cannot be reached, refuses us, or does not answer in time.
    pub async fn connect_once(&self) -> Result<Connection, BrokerError> {
        let properties =
            ConnectionProperties::default().with_connection_name(self.purpose.connection_name().to_owned().into());
        let uri = parse(&self.url)?;
        let (host, port) = (uri.authority.host.clone(), uri.authority.port);
        let has_password = uri.query.auth_mechanism != Some(SASLMechanism::External);
        let tls = self.tls.clone();
        // Set once TLS stands and the broker has our certificate to judge.
        let has_certificate = Arc::new(AtomicBool::new(false));
        let shown = Arc::clone(&has_certificate);
        let runtime = lapin::runtime::default_runtime()?;
        let dial = async move |uri: AMQPUri, runtime| {
            let AMQPAuthority { host, port, .. } = uri.authority;
            // Who we are is told later, and not needed here.
            let userinfo = AMQPUserInfo { username: String::new(), password: String::new() };
            let authority = AMQPAuthority { userinfo, host: host.clone(), port };
            let place = AMQPUri { authority, ..AMQPUri::default() };
            let stream = place.connect_with_config_async(TLSConfig::default(), &runtime).await?;
            match &tls {
                Some(tls) => {
                    let stream = stream.into_rustls(&RustlsConnector::from(Arc::clone(tls)), &host).await?;
                    shown.store(tls.client_auth_cert_resolver.has_certs(), Ordering::SeqCst);
                    Ok(stream)
                }
                None => Ok(stream),
            }
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, Connection::connector(uri, runtime, dial, properties)).await {
            Ok(made) => {
                made.map_err(|error| explain(error, &host, port, has_password, has_certificate.load(Ordering::SeqCst)))
            }
            Err(_) => Err(BrokerError::TimedOut { limit: CONNECT_TIMEOUT, doing: "connecting" }),
        }
    }

    /// Lets this connection go, which does not answer, without waiting for it to say goodbye. One that has taken its place
    /// meanwhile stays.
    pub async fn give_up(&self, silent: &Arc<Connection>) {
        let mut current = self.current.lock().await;
        let Some(connection) = current.take_if(|connection| Arc::ptr_eq(connection, silent)) else { return };
        self.state.send_replace(LinkState::Down("it does not answer".to_owned()));
        tokio::spawn(async move { drop(connection.close(320, "no answer".into()).await) });
    }

    /// Closes the connection in an orderly way, if it stands.
    pub async fn close(&self) {
        let taken = self.current.lock().await.take();
        if let Some(connection) = taken
            && let Err(error) = connection.close(200, "goodbye".into()).await
        {
            tracing::debug!(%error, "the broker did not say goodbye");
        }
    }
}

/// Why there is no connection, and what to do, where the broker or the system says so clearly.
fn explain(error: lapin::Error, host: &str, port: u16, has_password: bool, has_certificate: bool) -> BrokerError {
    let words = match error.kind() {
        ErrorKind::IOError(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
            format!("nothing listens at {host}:{port}; check host and port, and whether RabbitMQ runs")
        }
        ErrorKind::IOError(io) => match tls::words(io, &BROKER) {
            Some(words) => words,
            // TLS 1.3 judges our certificate when we think the handshake over, and what the broker says of it is lost when it
            // resets the connection in the same moment.
            None if has_certificate && is_hang_up(io) => format!(
                "the broker at {host}:{port} hung up right behind the TLS handshake, as one does that does not take \
                 AMQP_CLIENT_CERT_FILE; its log says why"
            ),
            None => return BrokerError::Amqp(error),
        },
        ErrorKind::ProtocolError(said) if said.get_id() == 403 && !has_password => format!(
            "the broker at {host}:{port} does not take our certificate for a user's: AMQP_CLIENT_CERT_FILE must name one \
             that its authorities have signed and whose name is a user there"
        ),
        ErrorKind::ProtocolError(said) if said.get_id() == 403 => {
            format!("the broker at {host}:{port} refuses the user or the password")
        }
        ErrorKind::ProtocolError(said) if said.get_id() == 530 => {
            format!("the broker at {host}:{port} does not give us this virtual host: {}", said.get_message())
        }
        _ => return BrokerError::Amqp(error),
    };
    BrokerError::Unreachable(words)
}

/// Whether the other side is gone without a word.
fn is_hang_up(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Io;
    matches!(error.kind(), Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::UnexpectedEof)
}

/// The URL, with a heartbeat unless it has one: without it a peer that vanished is noticed by nobody.
fn parse(url: &SecretString) -> Result<AMQPUri, BrokerError> {
    let mut uri: AMQPUri = url.expose_secret().parse().map_err(BrokerError::Url)?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    // The library takes an IPv6 address for no host at all, and would connect to this machine instead.
    let host = url::Url::parse(url.expose_secret()).ok().and_then(|url| url.host_str().map(str::to_owned));
    if let Some(address) = host.as_deref().and_then(|host| host.strip_prefix('[')?.strip_suffix(']')) {
        uri.authority.host = address.to_owned();
    }
    Ok(uri)
}

/// Our side of TLS towards the broker.
fn client(config: &BrokerConfig) -> Result<ClientConfig, BrokerError> {
    let mut roots = tls::system_authorities();
    if let Some(path) = &config.ca_file {
        let added = tls::add_authorities(&mut roots, path);
        let added =
            added.map_err(|error| BrokerError::Tls(format!("AMQP_CA_FILE: it cannot be read as PEM ({error})")))?;
        if added == 0 {
            return Err(BrokerError::Tls("AMQP_CA_FILE: it holds no usable certificate".to_owned()));
        }
    }
    if roots.is_empty() {
        let words = "this system has no certificate authorities; install ca-certificates or set AMQP_CA_FILE";
        return Err(BrokerError::Tls(words.to_owned()));
    }
    let identity = config.identity.as_ref().map(identity).transpose()?;
    tls::client(roots, identity).map_err(|error| {
        let words = format!("AMQP_CLIENT_KEY_FILE: key and certificate cannot be used together ({error})");
        BrokerError::Tls(words)
    })
}

fn identity(files: &BrokerIdentity) -> Result<tls::Identity, BrokerError> {
    let certificates = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect);
    let certificates = certificates
        .map_err(|error| BrokerError::Tls(format!("AMQP_CLIENT_CERT_FILE: it cannot be read as PEM ({error})")))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| BrokerError::Tls(format!("AMQP_CLIENT_KEY_FILE: it cannot be read as PEM ({error})")))?;
    Ok((certificates, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_is_not_taken_for_this_machine() {
        let uri = parse(&SecretString::from("amqps://user:secret@[2001:db8::1]/mail")).expect("a URL");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("2001:db8::1", 5671));
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT_SECONDS));
        let uri = parse(&SecretString::from("amqp://broker.example?heartbeat=5")).expect("a URL");
        assert_eq!((uri.authority.host.as_str(), uri.query.heartbeat), ("broker.example", Some(5)));
    }
}
