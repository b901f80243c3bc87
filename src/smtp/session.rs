//! From nothing to a connection that is ready for MAIL: name, TCP, greeting, EHLO, STARTTLS, AUTH.
//!
//! Invariant: where TLS is asked for, neither credentials nor mail ever travel without it; there is no fallback.
//! Invariant: every step has a limit, so a silent relay cannot hold a place for ever.

use std::{net::SocketAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use lettre::transport::smtp::{
    commands::{Ehlo, Starttls},
    extension::ClientId,
};
use secrecy::{ExposeSecret, zeroize::Zeroizing};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{
    connection::Connection,
    fault::{RelayError, RelayFault},
    reply::RawReply,
    steps::Steps,
    tls::TlsClient,
};
use crate::{
    config::{RelayConfig, RelayCredentials, RelayTls},
    email::{LinkFault, Phase},
};

/// Shorter passwords are words that a relay may well say of its own.
const ECHO_CHARS_MIN: usize = 4;
/// Longest time for one of a relay's addresses: an address that swallows packets must not hide the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 6;

/// What a relay offers, as its EHLO says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The connection is under TLS.
    pub is_encrypted: bool,
    /// Commands may be sent ahead (RFC 2920).
    pub pipelining: bool,
    /// Content may hold bytes above 127 (RFC 6152).
    pub eight_bit_mime: bool,
    /// Addresses may hold characters beyond ASCII (RFC 6531).
    pub smtputf8: bool,
    /// Sizes may be announced (RFC 1870).
    pub size: bool,
    /// Largest mail in bytes; nothing when the relay names no limit.
    pub size_max: Option<u64>,
    /// STARTTLS is offered (RFC 3207).
    pub starttls: bool,
    /// Mechanisms of AUTH, in upper case (RFC 4954).
    pub auth: Vec<String>,
}

impl std::fmt::Display for Capabilities {
    /// `TLS, PIPELINING, SMTPUTF8, SIZE 10240000`: what matters to us.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_encrypted { "TLS" } else { "no TLS" })?;
        for (name, offered) in
            [("PIPELINING", self.pipelining), ("8BITMIME", self.eight_bit_mime), ("SMTPUTF8", self.smtputf8)]
        {
            if offered {
                write!(f, ", {name}")?;
            }
        }
        self.size_max.map_or(Ok(()), |bytes| write!(f, ", SIZE {bytes}"))
    }
}

impl Capabilities {
    fn read(reply: &RawReply, is_encrypted: bool) -> Self {
        let mut found = Self { is_encrypted, ..Self::default() };
        // The first line is the relay's name.
        for line in reply.lines.iter().skip(1) {
            let line = String::from_utf8_lossy(line).to_ascii_uppercase();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("PIPELINING") => found.pipelining = true,
                Some("8BITMIME") => found.eight_bit_mime = true,
                Some("SMTPUTF8") => found.smtputf8 = true,
                Some("STARTTLS") => found.starttls = true,
                Some("AUTH") => found.auth.extend(words.map(str::to_owned)),
                Some("SIZE") => {
                    found.size = true;
                    // Zero means that no limit is named (RFC 1870 §4).
                    found.size_max = words.next().and_then(|word| word.parse().ok()).filter(|max| *max > 0);
                }
                _ => {}
            }
        }
        found
    }
}

/// All that is needed to connect to one relay.
pub(super) struct Endpoint {
    pub(super) relay: RelayConfig,
    pub(super) tls: Option<TlsClient>,
    pub(super) helo_name: String,
    pub(super) step_timeout: Duration,
    pub(super) dot_timeout: Duration,
}

impl Endpoint {
    /// Connects and goes through everything that comes before MAIL.
    pub(super) async fn open(&self) -> Result<Connection, RelayError> {
        let mut steps = Steps::begin();
        let stream = self.connect().await?;
        steps.end(Phase::Connect);
        let mut connection = Connection::new(stream, self.step_timeout, self.dot_timeout, steps)
            .map_err(|error| unreachable_error(&error))?;
        match (self.relay.tls, &self.tls) {
            (RelayTls::Implicit, Some(tls)) => {
                connection = connection.into_tls(tls).await?;
                greet(&mut connection).await?;
                self.ehlo(&mut connection).await?;
            }
            (RelayTls::StartTls, Some(tls)) => {
                greet(&mut connection).await?;
                self.ehlo(&mut connection).await?;
                connection = start_tls(connection, tls).await?;
                // What was offered in plain counts for nothing (RFC 3207 §4.2).
                self.ehlo(&mut connection).await?;
            }
            (RelayTls::Plain, _) => {
                greet(&mut connection).await?;
                self.ehlo(&mut connection).await?;
            }
            (RelayTls::Implicit | RelayTls::StartTls, None) => {
                return Err(RelayError::new(RelayFault::Tls, Phase::StartTls, "TLS is not set up for this relay"));
            }
        }
        if let Some(credentials) = &self.relay.credentials {
            authenticate(&mut connection, credentials).await?;
        }
        connection.opening = Some(std::mem::replace(&mut connection.steps, Steps::none()));
        if connection.is_in_step() { Ok(connection) } else { Err(RelayError::link(Phase::Ehlo, &LinkFault::BadReply)) }
    }

    async fn connect(&self) -> Result<TcpStream, RelayError> {
        let found = timeout(self.step_timeout, lookup_host((self.relay.host.as_str(), self.relay.port))).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(Ok(addresses)) => addresses.take(ADDRESSES_MAX).collect(),
            Ok(Err(_)) => Vec::new(),
            Err(_) => {
                return Err(RelayError::new(
                    RelayFault::Dns,
                    Phase::Connect,
                    "no answer from DNS about the relay's host name; check the resolver",
                ));
            }
        };
        let mut error = RelayError::new(
            RelayFault::Dns,
            Phase::Connect,
            "the relay's host name does not resolve; check SMTP_HOST and the resolver",
        );
        for address in addresses {
            let limit = self.step_timeout.min(CONNECT_TIMEOUT);
            match timeout(limit, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(cause)) => error = unreachable_error(&cause),
                Err(_) => error = RelayError::link(Phase::Connect, &LinkFault::TimedOut(limit)),
            }
        }
        Err(error)
    }

    async fn ehlo(&self, connection: &mut Connection) -> Result<(), RelayError> {
        let command = Ehlo::new(ClientId::Domain(self.helo_name.clone())).to_string();
        let reply = exchange(connection, Phase::Ehlo, &command).await?;
        match reply.code {
            250 => {
                connection.capabilities = Capabilities::read(&reply, connection.capabilities.is_encrypted);
                Ok(())
            }
            400.. => Err(RelayError::turned_away(Phase::Ehlo, &reply.to_reply(None))),
            _ => Err(RelayError::link(Phase::Ehlo, &LinkFault::BadReply)),
        }
    }
}

async fn greet(connection: &mut Connection) -> Result<(), RelayError> {
    // The relay speaks first.
    let reply = exchange(connection, Phase::Greeting, "").await?;
    match reply.code {
        220 => Ok(()),
        400.. => Err(RelayError::turned_away(Phase::Greeting, &reply.to_reply(None))),
        _ => Err(RelayError::link(Phase::Greeting, &LinkFault::BadReply)),
    }
}

async fn start_tls(mut connection: Connection, tls: &TlsClient) -> Result<Connection, RelayError> {
    if !connection.capabilities.starttls {
        return Err(RelayError::new(
            RelayFault::NoStartTls,
            Phase::StartTls,
            "the relay does not offer STARTTLS; SMTP_USE_TLS=false sends in plain, if that is what you want",
        ));
    }
    let reply = exchange(&mut connection, Phase::StartTls, &Starttls.to_string()).await?;
    if reply.code != 220 {
        let words = format!("the relay refuses STARTTLS ({})", reply.to_reply(None).line());
        return Err(RelayError::new(RelayFault::Tls, Phase::StartTls, words));
    }
    // Plain bytes behind the 220 would be read as if they had come under TLS: somebody on the path put them there.
    if !connection.is_in_step() {
        let words = "the relay sent something in plain after it agreed to STARTTLS; somebody may be interfering";
        return Err(RelayError::new(RelayFault::Tls, Phase::StartTls, words));
    }
    connection.into_tls(tls).await
}

async fn authenticate(connection: &mut Connection, credentials: &RelayCredentials) -> Result<(), RelayError> {
    let offers = |name: &str| connection.capabilities.auth.iter().any(|offered| offered == name);
    let (user, password) = (credentials.user.as_str(), credentials.password.expose_secret());
    // RFC 4616 §2, in one line as RFC 4954 §4 allows.
    let plain = Zeroizing::new(BASE64.encode(Zeroizing::new(format!("\0{user}\0{password}")).as_bytes()));
    let word = Zeroizing::new(BASE64.encode(password));
    let reply = if offers("PLAIN") {
        let command = Zeroizing::new(format!("AUTH PLAIN {}\r\n", plain.as_str()));
        exchange(connection, Phase::Auth, &command).await?
    } else if offers("LOGIN") {
        // The challenges are "Username:" and "Password:" in many spellings; their order is what counts.
        let mut reply = exchange(connection, Phase::Auth, "AUTH LOGIN\r\n").await?;
        for answer in [&BASE64.encode(user), word.as_str()] {
            if reply.code == 334 {
                let command = Zeroizing::new(format!("{answer}\r\n"));
                reply = exchange(connection, Phase::Auth, &command).await?;
            }
        }
        reply
    } else {
        return Err(RelayError::new(
            RelayFault::Auth,
            Phase::Auth,
            "SMTP_USER is set, but the relay offers neither AUTH PLAIN nor AUTH LOGIN here; it may offer them under TLS only",
        ));
    };
    match reply.code {
        235 => Ok(()),
        400.. => {
            // A relay that repeats what it was told would have it logged.
            let mut said = reply.to_reply(None).line();
            for secret in [plain.as_str(), word.as_str(), password] {
                if secret.len() >= ECHO_CHARS_MIN {
                    said = said.replace(secret, "***");
                }
            }
            let words = format!("the relay refuses the credentials ({said}); check SMTP_USER and SMTP_PASSWORD");
            Err(RelayError::new(RelayFault::Auth, Phase::Auth, words))
        }
        _ => Err(RelayError::link(Phase::Auth, &LinkFault::BadReply)),
    }
}

/// One command (or none), one reply.
async fn exchange(connection: &mut Connection, phase: Phase, command: &str) -> Result<RawReply, RelayError> {
    let result = match connection.write(command.as_bytes(), 1).await {
        Ok(()) => connection.read_reply().await,
        Err(fault) => Err(fault),
    };
    connection.steps.end(phase);
    result.map_err(|fault| RelayError::link(phase, &fault))
}

fn unreachable_error(error: &std::io::Error) -> RelayError {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => RelayError::new(
            RelayFault::Refused,
            Phase::Connect,
            "nothing listens at the relay's address; check SMTP_HOST and SMTP_PORT, and whether the relay runs",
        ),
        kind => RelayError::new(
            RelayFault::Unreachable,
            Phase::Connect,
            format!("the relay's address cannot be reached ({kind}); check the network and the firewall"),
        ),
    }
}
