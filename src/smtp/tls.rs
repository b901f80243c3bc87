//! Whom a relay's certificate must satisfy: the system's authorities and the relay's `ca_file`. Verification is never off.

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore,
    pki_types::{InvalidDnsNameError, ServerName, pem},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::fault::{RelayError, RelayFault};
use crate::{
    config::{RelayConfig, RelayTls},
    email::Phase,
    tls::{self, Peer},
};

/// Settings of the file's relays have the same names in lower case, less the prefix.
const RELAY: Peer = Peer {
    who: "the relay",
    host: "SMTP_HOST",
    authorities: "SMTP_CA_FILE",
    own: None,
    no_tls: "SMTP_USE_TLS=true means STARTTLS on port 587 and TLS from the first byte on port 465",
};

/// Why TLS towards a relay cannot be set up. Found at start, before anything is sent.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The file cannot be read, or is not PEM.
    #[error("SMTP_CA_FILE of relay {relay}: {} cannot be read as PEM ({source})", path.display())]
    CaFile {
        /// The relay's name.
        relay: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The file holds no usable certificate.
    #[error("SMTP_CA_FILE of relay {relay}: {} holds no usable certificate", path.display())]
    CaFileEmpty {
        /// The relay's name.
        relay: String,
        /// The file.
        path: PathBuf,
    },
    /// There is nobody to trust.
    #[error("relay {relay}: this system has no certificate authorities; install ca-certificates or set SMTP_CA_FILE")]
    NoAuthorities {
        /// The relay's name.
        relay: String,
    },
    /// The relay's host cannot stand in a certificate.
    #[error(
        "SMTP_HOST of relay {relay} is neither a host name nor an address, so no certificate can be checked against it"
    )]
    HostName {
        /// The relay's name.
        relay: String,
        /// Why.
        source: InvalidDnsNameError,
    },
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up ({0})")]
    Library(#[from] rustls::Error),
}

/// Makes TLS connections to one relay.
#[derive(Clone)]
pub(super) struct TlsClient {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl TlsClient {
    /// Nothing when the relay is spoken to in plain. `system` gathers the system's authorities, once for all relays.
    pub(super) fn new(relay: &RelayConfig, system: &mut Option<RootCertStore>) -> Result<Option<Self>, TlsSetupError> {
        match relay.tls {
            RelayTls::Plain => return Ok(None),
            RelayTls::StartTls | RelayTls::Implicit => {}
        }
        let name = ServerName::try_from(relay.host.clone())
            .map_err(|source| TlsSetupError::HostName { relay: relay.name.clone(), source })?;
        let mut roots = system.get_or_insert_with(tls::system_authorities).clone();
        if let Some(path) = &relay.ca_file {
            let of_file = |source| TlsSetupError::CaFile { relay: relay.name.clone(), path: path.clone(), source };
            if tls::add_authorities(&mut roots, path).map_err(of_file)? == 0 {
                return Err(TlsSetupError::CaFileEmpty { relay: relay.name.clone(), path: path.clone() });
            }
        }
        if roots.is_empty() {
            return Err(TlsSetupError::NoAuthorities { relay: relay.name.clone() });
        }
        let config = tls::client(roots, None)?;
        Ok(Some(Self { connector: TlsConnector::from(Arc::new(config)), name }))
    }

    /// The handshake. The caller limits its time.
    pub(super) async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, RelayError> {
        self.connector.connect(self.name.clone(), stream).await.map_err(|error| handshake_error(&error))
    }
}

fn handshake_error(error: &io::Error) -> RelayError {
    let words = tls::words(error, &RELAY).unwrap_or_else(|| format!("no TLS with the relay ({})", error.kind()));
    RelayError::new(RelayFault::Tls, Phase::StartTls, words)
}
