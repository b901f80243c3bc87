//! TLS of a listener: a certificate and its key from files, which are read again when they change.
//!
//! Invariant: a pair that does not fit together, or cannot be read, is never taken up: at start it is a fault of its setting, later
//! the one in use stays.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use secrecy::zeroize::Zeroizing;
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at: whatever renews certificates does so days before they end.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Largest file that is read; a chain has some kilobytes.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The listener's certificate, and those that sign it, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM; nothing: clients have none.
    pub client_ca: Option<PathBuf>,
}

/// Which of the files is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFile {
    /// The certificate.
    Certificate,
    /// The key.
    Key,
    /// The authorities.
    ClientCa,
}

/// What is wrong with one of the files.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct TlsFileError {
    /// Which.
    pub file: TlsFile,
    /// What is wrong with it, such as "cannot be read: ...".
    pub problem: String,
}

/// A listener's TLS, as the files say now.
pub struct ListenerTls {
    files: TlsFiles,
    current: ArcSwap<Pair>,
}

struct Pair {
    /// Of all files.
    digest: [u8; 32],
    config: Arc<ServerConfig>,
    /// When the certificate ends.
    ends_at: Option<DateTime<Utc>>,
}

impl fmt::Debug for ListenerTls {
    /// Names the files only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ListenerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read, or they do not fit together.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsFileError> {
        let current = ArcSwap::from_pointee(Pair::read(&files)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// Whether the certificate has ended.
    #[must_use]
    pub fn has_ended(&self, now: DateTime<Utc>) -> bool {
        self.current.load().ends_at.is_some_and(|end| end < now)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.load().config))
    }

    /// Whether clients may be asked for a certificate.
    pub(super) const fn asks_for_certificates(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Takes up what the files have become. Whether that is something else.
    fn renew(&self) -> Result<bool, TlsFileError> {
        let pair = Pair::read(&self.files)?;
        let is_other = pair.digest != self.current.load().digest;
        if is_other {
            self.current.store(Arc::new(pair));
        }
        Ok(is_other)
    }

    /// Takes up what the files become, until `stop`.
    pub(super) async fn follow(self: Arc<Self>, listener: &'static str, stop: CancellationToken) {
        let mut complained = false;
        loop {
            tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(LOOK_EVERY) => {} }
            let this = Arc::clone(&self);
            let Ok(renewed) = tokio::task::spawn_blocking(move || this.renew()).await else { continue };
            match renewed {
                Ok(is_other) => {
                    if is_other {
                        tracing::info!(listener, ends_at = ?self.current.load().ends_at, "the certificate is another one now");
                    }
                    complained = false;
                }
                // Between the writing of two files they do not fit together: the next look tells.
                Err(error) if !complained => {
                    tracing::error!(listener, file = ?error.file, %error, "the certificate cannot be renewed; the last one stays in use");
                    complained = true;
                }
                Err(_) => {}
            }
        }
    }
}

impl Pair {
    fn read(files: &TlsFiles) -> Result<Self, TlsFileError> {
        let of = |file: TlsFile| move |problem: String| TlsFileError { file, problem };
        let (for_certificate, for_key, for_ca) = (of(TlsFile::Certificate), of(TlsFile::Key), of(TlsFile::ClientCa));
        let certificate_pem = content(&files.certificate).map_err(for_certificate)?;
        let key_pem = content(&files.key).map_err(for_key)?;
        let ca_pem = files.client_ca.as_deref().map(content).transpose().map_err(for_ca)?;
        let digest = Sha256::new()
            .chain_update(Sha256::digest(&certificate_pem))
            .chain_update(Sha256::digest(&key_pem))
            .chain_update(Sha256::digest(ca_pem.as_ref().map_or(&[][..], |pem| pem.as_slice())))
            .finalize()
            .into();

        let chain = certificates(&certificate_pem).map_err(for_certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| for_key("holds no PEM private key".to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| for_certificate(format!("cannot be used: {error}")))?;
        let builder = match &ca_pem {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                let (added, _) = roots.add_parsable_certificates(certificates(pem).map_err(for_ca)?);
                if added == 0 {
                    return Err(for_ca("holds no certificate that can be used".to_owned()));
                }
                // Probes and scrapers have none: who needs one is decided by what is asked for.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| for_ca(format!("cannot be used: {error}")))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let ends_at = chain.first().and_then(ends_at);
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => for_key("holds a key that is not the certificate's".to_owned()),
            rustls::Error::InvalidCertificate(error) => {
                for_certificate(format!("holds a certificate that cannot be used: {error}"))
            }
            error => for_key(format!("holds a key that cannot be used: {error}")),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { digest, config: Arc::new(config), ends_at })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is not PEM: {error}"))?;
    if found.is_empty() { Err("holds no PEM certificate".to_owned()) } else { Ok(found) }
}

fn ends_at(certificate: &CertificateDer<'_>) -> Option<DateTime<Utc>> {
    let (_, read) = x509_parser::parse_x509_certificate(certificate).ok()?;
    DateTime::from_timestamp(read.validity().not_after.timestamp(), 0)
}

/// Wiped when it is dropped: it may be the key.
fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    use std::io::Read as _;

    // Never grown, which would leave what it held before in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX as u64).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    /// A certificate and its key, PEM.
    fn pair() -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["mail.example.bj".to_owned()]).expect("a name");
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    #[test]
    fn what_does_not_fit_together_is_not_taken_up() {
        let folder = TempDir::new().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("written");
        let (certificate, key) = pair();
        write("cert.pem", &certificate);
        write("key.pem", &key);
        let files = TlsFiles { certificate: path("cert.pem"), key: path("key.pem"), client_ca: None };
        let tls = ListenerTls::load(files).expect("a pair");
        let in_use = || tls.current.load().digest;
        let first = in_use();
        assert!(!tls.renew().expect("nothing is wrong"), "nothing has changed");
        let (other_certificate, other_key) = pair();
        for (certificate, key, file) in [
            (other_certificate.as_str(), key.as_str(), TlsFile::Key),
            (&other_certificate[..100], other_key.as_str(), TlsFile::Certificate),
            ("", other_key.as_str(), TlsFile::Certificate),
            (other_certificate.as_str(), "", TlsFile::Key),
        ] {
            write("cert.pem", certificate);
            write("key.pem", key);
            assert_eq!(tls.renew().expect_err("they do not fit").file, file);
            assert_eq!(in_use(), first, "the last pair stays");
        }
        write("key.pem", &other_key);
        write("cert.pem", &other_certificate);
        assert!(tls.renew().expect("a pair"));
        assert_ne!(in_use(), first);
    }
}
