//! Whom a relay's certificate must satisfy: the system's authorities and the relay's `ca_file`. Verification is never off.
//!
//! Invariant: the crypto provider is named here, so that no other crate's features can make it ambiguous.

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::fault::{RelayError, RelayFault};
use crate::{
    config::{RelayConfig, RelayTls},
    email::Phase,
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
        let mut roots = system.get_or_insert_with(system_authorities).clone();
        if let Some(path) = &relay.ca_file {
            let of_file = |source| TlsSetupError::CaFile { relay: relay.name.clone(), path: path.clone(), source };
            let certificates = CertificateDer::pem_file_iter(path).map_err(of_file)?.collect::<Result<Vec<_>, _>>();
            let (added, _unusable) = roots.add_parsable_certificates(certificates.map_err(of_file)?);
            if added == 0 {
                return Err(TlsSetupError::CaFileEmpty { relay: relay.name.clone(), path: path.clone() });
            }
        }
        if roots.is_empty() {
            return Err(TlsSetupError::NoAuthorities { relay: relay.name.clone() });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Some(Self { connector: TlsConnector::from(Arc::new(config)), name }))
    }

    /// The handshake. The caller limits its time.
    pub(super) async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, RelayError> {
        self.connector.connect(self.name.clone(), stream).await.map_err(|error| handshake_error(&error))
    }
}

fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // A system store may hold certificates that are old beyond reading; the others still count.
    let loaded = rustls_native_certs::load_native_certs();
    let (_added, _unusable) = roots.add_parsable_certificates(loaded.certs);
    roots
}

fn handshake_error(error: &io::Error) -> RelayError {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let words = match cause {
        Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
            // A bad signature is what an authority leaves behind that was renewed under its old name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the relay's certificate is not signed by an authority that is trusted \
                 here; put the authority's certificate into SMTP_CA_FILE"
                    .to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the relay's certificate is not for this host name; set SMTP_HOST to a name in the certificate"
                    .to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the relay's certificate has expired; it must be renewed on the relay".to_owned()
            }
            other => format!("the relay's certificate is not acceptable ({other})"),
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            "the relay does not speak TLS here; SMTP_USE_TLS=true means STARTTLS \
             on port 587 and TLS from the first byte on port 465"
                .to_owned()
        }
        Some(other) => format!("no TLS with the relay ({other})"),
        None => format!("no TLS with the relay ({})", error.kind()),
    };
    RelayError::new(RelayFault::Tls, Phase::StartTls, words)
}
