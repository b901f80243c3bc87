//! Certificates of others: whom we trust, and what is wrong with one that we do not, in words that help.
//!
//! For every door that speaks TLS. Verification is rustls' own and never off; what is added here is that a certificate which is
//! refused is described: its names, who issued it and its dates.

use std::{io, path::Path, sync::Arc};

use chrono::DateTime;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// Names of a certificate that are told; one of a hosting company may have hundreds.
const NAMES_MAX: usize = 5;
/// Longest part of a certificate that is told: whoever answers has written it.
const PART_CHARS_MAX: usize = 100;

/// Whom a certificate is expected of, and the settings that a remedy names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// `the broker`.
    pub(crate) who: &'static str,
    /// The setting that names the host.
    pub(crate) host: &'static str,
    /// The setting that names the authorities besides the system's.
    pub(crate) authorities: &'static str,
    /// The setting that names our own certificate; nothing: we never have one.
    pub(crate) own: Option<&'static str>,
    /// What to look at when it does not speak TLS at all.
    pub(crate) no_tls: &'static str,
}

/// Our own certificate, with those between it and its authority, and its key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The system's authorities.
pub(crate) fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // A system store may hold certificates that are old beyond reading; the others still count.
    let loaded = rustls_native_certs::load_native_certs();
    let (_added, _unusable) = roots.add_parsable_certificates(loaded.certs);
    roots
}

/// Adds a file's authorities, and says how many were of use.
///
/// # Errors
/// When it cannot be read, or is not PEM.
pub(crate) fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<usize, pem::Error> {
    let certificates = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    let (added, _unusable) = roots.add_parsable_certificates(certificates);
    Ok(added)
}

/// Our side of TLS, for a peer whose certificate must be by one of these authorities; there is at least one.
///
/// # Errors
/// When the library refuses its own defaults, or our key is not our certificate's.
pub(crate) fn client(roots: RootCertStore, identity: Option<Identity>) -> Result<ClientConfig, Error> {
    // Named here, so that no other crate's features can make it ambiguous.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Telling(verifier)));
    match identity {
        Some((certificates, key)) => config.with_client_auth_cert(certificates, key),
        None => Ok(config.with_no_client_auth()),
    }
}

/// Our side of a handshake that ends in the refusal of whatever certificate is shown, for its description.
///
/// # Errors
/// When the library refuses its own defaults.
pub(crate) fn looking() -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let looking = Arc::new(Looking(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(looking).with_no_client_auth())
}

/// What is wrong, if TLS is what is wrong: the cause, the certificate where it was seen, the setting and the remedy.
pub(crate) fn words(error: &io::Error, peer: &Peer) -> Option<String> {
    let cause = error.get_ref()?.downcast_ref::<Error>()?;
    let Peer { who, no_tls, .. } = peer;
    Some(match cause {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            match inner.downcast_ref::<Refused>() {
                Some(refused) => refusal(&refused.cause, Some(&refused.shown), peer),
                None => refusal(&CertificateError::Other(OtherError(Arc::clone(inner))), None, peer),
            }
        }
        Error::InvalidCertificate(cause) => refusal(cause, None, peer),
        Error::InvalidMessage(_) => format!("{who} does not speak TLS here; {no_tls}"),
        Error::AlertReceived(alert) => refused_by(*alert, peer),
        other => format!("no TLS with {who} ({other})"),
    })
}

/// Whether a certificate was refused that nobody has described.
pub(crate) fn is_undescribed(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(cause, Some(Error::InvalidCertificate(cause)) if !matches!(cause, CertificateError::Other(_)))
}

fn refusal(cause: &CertificateError, shown: Option<&str>, peer: &Peer) -> String {
    let Peer { who, host, authorities, .. } = peer;
    let words = match cause {
        // A bad signature is what an authority leaves behind that was renewed under its old name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "{who}'s certificate is not signed by an authority that is trusted here; put the authority's certificate into \
             {authorities}"
        ),
        CertificateError::NotValidForName => {
            format!("{who}'s certificate is not for this host name; set {host} to a name in the certificate")
        }
        CertificateError::NotValidForNameContext { expected, .. } => format!(
            "{who}'s certificate is not for this host name ({}); set {host} to a name in the certificate",
            expected.to_str()
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("{who}'s certificate has expired; it must be renewed there")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("{who}'s certificate is not valid yet; compare this machine's clock with {who}'s")
        }
        other => format!("{who}'s certificate is not acceptable ({other})"),
    };
    match (shown, cause) {
        (Some(shown), _) => format!("{words} ({shown})"),
        (None, CertificateError::ExpiredContext { not_after, .. }) => {
            format!("{words} (it was valid until {})", day(i64::try_from(not_after.as_secs()).unwrap_or_default()))
        }
        (None, CertificateError::NotValidForNameContext { presented, .. }) => {
            format!("{words} (it is for {})", listed(presented.iter().map(String::as_str)))
        }
        (None, _) => words,
    }
}

/// The other side has refused us.
fn refused_by(alert: AlertDescription, peer: &Peer) -> String {
    let Peer { who, own, .. } = peer;
    let is_about_ours = matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    );
    match own.filter(|_| is_about_ours) {
        Some(own) => format!("{who} does not take our certificate, or wants one ({alert:?}); see {own}"),
        None => format!("no TLS with {who}: it refuses ({alert:?})"),
    }
}

/// Verifies as the library does, and describes what it refuses.
#[derive(Debug)]
struct Telling(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Telling {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| match error {
            Error::InvalidCertificate(cause) => Refused::error(cause, end_entity),
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Takes no certificate at all.
#[derive(Debug)]
struct Looking(Arc<CryptoProvider>);

impl ServerCertVerifier for Looking {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Err(Refused::error(CertificateError::UnknownIssuer, end_entity))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("nothing is taken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("nothing is taken here".to_owned()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate that was refused: why, and what it says of itself.
#[derive(Debug, thiserror::Error)]
#[error("{cause} ({shown})")]
struct Refused {
    cause: CertificateError,
    shown: String,
}

impl Refused {
    fn error(cause: CertificateError, certificate: &CertificateDer<'_>) -> Error {
        let refused = Self { cause, shown: description(certificate) };
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
    }
}

/// What a refused certificate says of itself, as far as an error holds that.
pub(crate) fn shown(error: &io::Error) -> Option<String> {
    let cause = error.get_ref()?.downcast_ref::<Error>()?;
    let Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = cause else { return None };
    inner.downcast_ref::<Refused>().map(|refused| refused.shown.clone())
}

/// Names, issuer and dates.
fn description(certificate: &[u8]) -> String {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
        return "it cannot be read".to_owned();
    };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<String> = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
        .collect();
    let names = if names.is_empty() { "no host".to_owned() } else { listed(names.iter().map(String::as_str)) };
    let validity = certificate.validity();
    format!(
        "it is for {names}, issued by \"{}\", valid from {} to {}",
        clean(&certificate.issuer().to_string()),
        day(validity.not_before.timestamp()),
        day(validity.not_after.timestamp())
    )
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

/// The first few, and how many there are besides.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let told = names.take(NAMES_MAX).map(clean).collect::<Vec<_>>().join(", ");
    if more == 0 { told } else { format!("{told} and {more} more") }
}

/// Without what would do things to a log or a terminal.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(PART_CHARS_MAX).collect()
}

fn day(timestamp: i64) -> String {
    DateTime::from_timestamp(timestamp, 0).map_or_else(|| "?".to_owned(), |time| time.format("%Y-%m-%d").to_string())
}
