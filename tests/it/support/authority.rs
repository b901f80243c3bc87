use std::{path::PathBuf, sync::Arc};

use postrider::config::SmtpConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tempfile::TempDir;

use super::relay::Relay;

/// An authority of our own, and a server certificate by it.
pub struct Authority {
    /// Holds its certificate.
    pub directory: TempDir,
    /// For the relay.
    pub server: Arc<ServerConfig>,
}

impl Authority {
    /// With a certificate for this host.
    pub fn for_host(host: &str) -> Self {
        Self::named("An authority", host)
    }

    /// One that goes by this name.
    pub fn named(name: &str, host: &str) -> Self {
        Self::make(name, &CertificateParams::new(vec![host.to_owned()]).expect("a host name"))
    }

    /// With a certificate for this host that was good until some years ago.
    pub fn with_expired_certificate(host: &str) -> Self {
        let mut certificate = CertificateParams::new(vec![host.to_owned()]).expect("a host name");
        (certificate.not_before, certificate.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        Self::make("An authority", &certificate)
    }

    fn make(name: &str, certificate: &CertificateParams) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let certificate = certificate.signed_by(&key, &issuer).expect("a certificate");
        let directory = TempDir::new().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("a file");
        let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the defaults are sound")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("key and certificate match");
        Self { directory, server: Arc::new(server) }
    }

    /// A certificate and a key, PEM, for somebody who goes by this name and whom no authority knows.
    pub fn stranger(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let files = (self.directory.path().join("stranger.pem"), self.directory.path().join("stranger.key"));
        std::fs::write(&files.0, certificate.pem()).expect("a file");
        std::fs::write(&files.1, key.serialize_pem()).expect("a file");
        files
    }

    /// Its certificate, PEM.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The relay's settings, with this authority trusted.
    pub fn trusted(&self, relay: &Relay) -> SmtpConfig {
        let mut config = relay.smtp_config();
        config.relays[0].ca_file = Some(self.file());
        config
    }
}
