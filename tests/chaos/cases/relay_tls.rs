//! The relay cannot be spoken to safely for a while: nothing goes out in plain, and nothing is lost.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider::email::Phase;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tempfile::TempDir;

use super::Case;
use crate::{
    ledger::{Fault, Violation},
    report::Report,
    stage::{Run, Stage},
    support::relay::{Act, Offer, Rule},
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "relay_starttls_refused",
            "a relay that does not encrypt gets nothing, and gets it all once it does",
            (16, 180),
            refused,
        ),
        Case::new(
            "relay_certificate_expired",
            "a certificate that has expired holds the lanes, and costs no mail a try",
            (16, 180),
            expired,
        ),
    ]
}

/// Shows one certificate or another.
#[derive(Debug)]
struct Shown(Mutex<Arc<CertifiedKey>>);

impl Shown {
    fn show(&self, key: &Arc<CertifiedKey>) {
        *self.0.lock().expect("nobody panics here") = Arc::clone(key);
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.lock().expect("nobody panics here")))
    }
}

/// An authority with two certificates for the relay.
struct Papers {
    folder: TempDir,
    good: Arc<CertifiedKey>,
    old: Arc<CertifiedKey>,
    shown: Arc<Shown>,
    server: Arc<ServerConfig>,
}

impl Papers {
    fn make() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "An authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let folder = TempDir::new().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("a file");
        let good = certificate(&issuer, None);
        let old = certificate(&issuer, Some(2024));
        let shown = Arc::new(Shown(Mutex::new(Arc::clone(&good))));
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the defaults are sound")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        Self { folder, good, old, shown, server: Arc::new(server) }
    }
}

fn certificate(issuer: &Issuer<'_, KeyPair>, expired_in: Option<i32>) -> Arc<CertifiedKey> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a host name");
    if let Some(year) = expired_in {
        params.not_before = date_time_ymd(year - 1, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
    }
    let certificate: CertificateDer<'static> = params.signed_by(&key, issuer).expect("a certificate").der().clone();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = ring::sign::any_supported_type(&private).expect("a key that signs");
    Arc::new(CertifiedKey::new(vec![certificate], signing))
}

async fn begin(run: Run, papers: &Papers) -> Stage {
    let mut setup = super::relay::setup((10, 20))
        .with("SMTP_HOST", "localhost")
        .with("SMTP_USE_TLS", "true")
        .with("SMTP_CA_FILE", papers.folder.path().join("ca.pem").to_str().expect("UTF-8"))
        // Few mails a connection, so that new ones are opened all the time.
        .with("SMTP_MAILS_PER_CONNECTION", "3");
    setup.offer = Offer { starttls: Some(Arc::clone(&papers.server)), ..Offer::default() };
    Stage::set(run, setup).await
}

async fn refused(run: Run) -> Report {
    let papers = Papers::make();
    let mut stage = begin(run, &papers).await;
    let refusals = Rule::at(Phase::StartTls, Act::reply("454 4.7.0 TLS not available")).every(3);
    stage.post.relay.script(refusals.times(stage.run.either(6, 2)));
    stage.start_daemon(&[]);
    finish(stage).await
}

async fn expired(run: Run) -> Report {
    let papers = Papers::make();
    let rounds = run.either(3, 1);
    let mut stage = begin(run, &papers).await;
    stage.start_daemon(&[]);
    let part = stage.load.total() / (rounds + 1);
    for _ in 0..rounds {
        stage.load.allow(part);
        papers.shown.show(&papers.old);
        tokio::time::sleep(Duration::from_millis(stage.random.between(1000..=2500))).await;
        papers.shown.show(&papers.good);
        stage.note_mended();
        stage.until_over().await;
    }
    finish(stage).await
}

async fn finish(mut stage: Stage) -> Report {
    stage.load.allow_all();
    stage.until("everything is published", async |stage| stage.load.is_done()).await;
    stage.until_over().await;
    let plain = stage.post.relay.look(|log| log.mails.iter().filter(|mail| !mail.is_encrypted).count());
    if plain > 0 {
        stage.found.push(Violation::general(Fault::Content, format!("{plain} mails in plain")));
    }
    stage.conclude().await
}
