//! The keys that SNS signs with: from a file, or fetched from their place, once.
//!
//! Invariant: with a file nothing is ever fetched.
//! Invariant: certificates are fetched one at a time and only so many a minute, and failures are remembered, so that forged
//! messages cannot make this daemon hammer SNS.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use rustls::{RootCertStore, pki_types::CertificateDer};
use tokio::{sync::Mutex, time::Instant};

use super::{
    certificate::{self, CertificateError, SigningKey},
    fetch::{FetchError, Fetcher, Resolve},
    topic::{Place, TopicArn},
};
use crate::config::SnsConfig;

/// How long a place that gave no usable certificate is not asked again.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// The same when it could not be asked: whoever waits with us need not wait for it too.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(2);
/// Places asked in a minute. SNS changes its certificate about once a year.
const FETCHES_A_MINUTE: u32 = 20;
/// Places remembered; when there are more, the failures go first.
const KNOWN_MAX: usize = 64;

/// Why there is no key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SignerError {
    /// There may be one later.
    #[error("{0}")]
    Unavailable(String),
    /// What lies there is no certificate of SNS.
    #[error("{0}")]
    Refused(String),
}

/// Why signing certificates cannot be dealt with at all. Found at start.
#[derive(Debug, thiserror::Error)]
pub enum SignersSetupError {
    /// The file cannot be read.
    #[error("{setting}: {} cannot be read ({source})", path.display())]
    File {
        /// Which setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What it holds cannot be used.
    #[error("{setting}: {} {source}", path.display())]
    Certificate {
        /// Which setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: CertificateError,
    },
    /// There is nobody to trust.
    #[error(
        "this system has no certificate authorities; install ca-certificates, or set SNS_CA_FILE or SNS_SIGNING_CERT_FILE"
    )]
    NoAuthorities,
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up ({0})")]
    Library(#[from] rustls::Error),
}

/// Keys by the places of their certificates.
pub struct Signers(Source);

enum Source {
    File(Arc<[SigningKey]>),
    Places(Box<Places>),
}

struct Places {
    fetcher: Arc<Fetcher>,
    roots: Arc<RootCertStore>,
    known: RwLock<HashMap<Place, Known>>,
    /// Held while a certificate is fetched.
    turn: Mutex<Window>,
}

#[derive(Clone)]
enum Known {
    Key(Arc<[SigningKey]>),
    Nothing { why: SignerError, until: Instant },
}

struct Window {
    began: Instant,
    fetches: u32,
}

impl Signers {
    /// As configured; the fetcher, which also confirms subscriptions, trusts the same authorities.
    ///
    /// # Errors
    /// When a file is not what its setting says, or nobody is trusted.
    pub fn new(config: &SnsConfig, resolver: Arc<dyn Resolve>) -> Result<(Self, Arc<Fetcher>), SignersSetupError> {
        let added = match &config.ca_file {
            Some(path) => read("SNS_CA_FILE", path)?,
            None => Vec::new(),
        };
        let is_added = !added.is_empty();
        let (roots, usable) = certificate::authorities(added);
        if let Some(path) = config.ca_file.clone().filter(|_| is_added && usable == 0) {
            return Err(SignersSetupError::Certificate {
                setting: "SNS_CA_FILE",
                path,
                source: CertificateError::Unreadable,
            });
        }
        let fetcher = Arc::new(Fetcher::new(Arc::clone(&roots), resolver)?);
        let source = match &config.signing_cert_file {
            Some(path) => {
                let unusable = |source| SignersSetupError::Certificate {
                    setting: "SNS_SIGNING_CERT_FILE",
                    path: path.clone(),
                    source,
                };
                let certificates = read("SNS_SIGNING_CERT_FILE", path)?;
                let keys: Result<Arc<[_]>, _> = certificates.iter().map(SigningKey::of).collect();
                Source::File(keys.map_err(unusable)?)
            }
            None if roots.is_empty() => return Err(SignersSetupError::NoAuthorities),
            None => Source::Places(Box::new(Places {
                fetcher: Arc::clone(&fetcher),
                roots,
                known: RwLock::default(),
                turn: Mutex::new(Window { began: Instant::now(), fetches: 0 }),
            })),
        };
        Ok((Self(source), fetcher))
    }

    /// The keys that may have signed a message of this topic whose certificate lies there; any of them will do.
    ///
    /// # Errors
    /// When there is none, or none now.
    pub async fn keys(
        &self,
        topic: &TopicArn,
        place: &Place,
        now: DateTime<Utc>,
    ) -> Result<Arc<[SigningKey]>, SignerError> {
        match &self.0 {
            Source::File(keys) if keys.iter().any(|key| key.is_valid_at(now)) => Ok(Arc::clone(keys)),
            Source::File(_) => {
                Err(SignerError::Refused("SNS_SIGNING_CERT_FILE holds no certificate that is valid today".to_owned()))
            }
            Source::Places(places) => places.keys(topic, place, now).await,
        }
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SignersSetupError> {
    let pem =
        std::fs::read(path).map_err(|source| SignersSetupError::File { setting, path: path.to_owned(), source })?;
    certificate::read_pem(&pem).map_err(|source| SignersSetupError::Certificate {
        setting,
        path: path.to_owned(),
        source,
    })
}

impl Places {
    async fn keys(
        &self,
        topic: &TopicArn,
        place: &Place,
        now: DateTime<Utc>,
    ) -> Result<Arc<[SigningKey]>, SignerError> {
        if let Some(known) = self.look(place, now) {
            return known;
        }
        let mut window = self.turn.lock().await;
        // Whoever was here before may have fetched it.
        if let Some(known) = self.look(place, now) {
            return known;
        }
        window.take()?;
        let fetched = self.fetch(topic, place, now).await;
        let known = match &fetched {
            Ok(key) => Known::Key(Arc::clone(key)),
            Err(why) => {
                let pause = match why {
                    SignerError::Unavailable(_) => UNAVAILABLE_FOR,
                    SignerError::Refused(_) => REFUSED_FOR,
                };
                tracing::warn!(%why, "no signing certificate, so messages cannot be verified");
                Known::Nothing { why: why.clone(), until: Instant::now() + pause }
            }
        };
        self.remember(place.clone(), known);
        fetched
    }

    /// What is known of this place, as far as it still holds.
    fn look(&self, place: &Place, now: DateTime<Utc>) -> Option<Result<Arc<[SigningKey]>, SignerError>> {
        match self.known.read().unwrap_or_else(PoisonError::into_inner).get(place)? {
            Known::Key(keys) => keys.iter().any(|key| key.is_valid_at(now)).then(|| Ok(Arc::clone(keys))),
            Known::Nothing { why, until } => (Instant::now() < *until).then(|| Err(why.clone())),
        }
    }

    fn remember(&self, place: Place, known: Known) {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX {
            all.retain(|_, known| matches!(known, Known::Key(_)));
        }
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        all.insert(place, known);
    }

    async fn fetch(
        &self,
        topic: &TopicArn,
        place: &Place,
        now: DateTime<Utc>,
    ) -> Result<Arc<[SigningKey]>, SignerError> {
        let fetched = self.fetcher.https(place).await?;
        let unusable = |error: CertificateError| SignerError::Refused(format!("{place}: the certificate {error}"));
        let mut chain = certificate::read_pem(&fetched.body).map_err(unusable)?;
        let leaf = chain.remove(0);
        // The host shows the chain of its own certificate; often the same authority issued both.
        chain.extend(fetched.chain);
        let names = topic.signer_names();
        let mut checked = certificate::check(&leaf, &chain, &self.roots, &names, now);
        if matches!(checked, Err(CertificateError::UnknownIssuer { .. }))
            && let Some(place) = certificate::issuer_place(&leaf)
        {
            let issuer = self.fetcher.plain(&place).await?;
            chain.push(CertificateDer::from(issuer.body.to_vec()));
            checked = certificate::check(&leaf, &chain, &self.roots, &names, now);
        }
        match checked {
            Ok(()) => {}
            // It came from SNS's own host: rather than a forgery this is an authority that is not known here, and there is
            // an hour to make it known.
            Err(error @ CertificateError::UnknownIssuer { .. }) => {
                return Err(SignerError::Unavailable(format!("{place}: the certificate {error}")));
            }
            Err(error) => return Err(unusable(error)),
        }
        let key = SigningKey::of(&leaf).map_err(unusable)?;
        tracing::info!(certificate = %place, until = %key.not_after(), "fetched a signing certificate");
        Ok(Arc::new([key]))
    }
}

impl Window {
    fn take(&mut self) -> Result<(), SignerError> {
        if self.began.elapsed() > Duration::from_secs(60) {
            *self = Self { began: Instant::now(), fetches: 0 };
        }
        if self.fetches >= FETCHES_A_MINUTE {
            return Err(SignerError::Unavailable(format!(
                "{FETCHES_A_MINUTE} certificates were fetched within a minute; the next must wait"
            )));
        }
        self.fetches += 1;
        Ok(())
    }
}

impl From<FetchError> for SignerError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Unavailable(words) => Self::Unavailable(words),
            FetchError::Refused(words) => Self::Refused(words),
        }
    }
}
