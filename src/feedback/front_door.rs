//! From a request to a receipt: every check that a message of SNS must pass, in an order in which each protects the next.
//!
//! ```text
//! envelope -> topic allowed -> fresh -> signature version -> certificate's place -> key -> signature -> kept, or confirmed
//! ```
//!
//! Invariant: only what costs nothing comes before the topic is known to be ours.
//! Invariant: whoever is refused learns that, and nothing of why but what the sender's owner must change; the reason is
//! counted, and logged without a word of the message.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Mutex;

use super::{
    fetch::{Fetcher, Resolve},
    signers::{SignerError, Signers, SignersSetupError},
    sns::{Envelope, EnvelopeError, Freshness, Kind, SignatureVersion},
    topic::TopicArn,
};
use crate::{
    config::SnsConfig,
    metrics::Metrics,
    store::{Kept, Receipt, Store, StoreError},
};

/// Who tells, in the audit: SNS carries what SES says.
const PROVIDER: &str = "ses";
/// Confirmations remembered, so that a message that comes again confirms nothing again.
const CONFIRMED_MAX: usize = 256;
/// Seconds in which one refusal of a kind is logged; all are counted.
const LOG_PAUSE: i64 = 10;

/// What a message came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// It is stored.
    Stored,
    /// It had been stored before.
    Known,
    /// It confirmed our subscription.
    Confirmed,
    /// We were unsubscribed; nothing was done about it.
    Unsubscribed,
}

impl Received {
    /// As a label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Known => "known",
            Self::Confirmed => "confirmed",
            Self::Unsubscribed => "unsubscribed",
        }
    }
}

/// Why a message will never be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// More bytes than SNS ever sends.
    TooLarge,
    /// Not an envelope of SNS, or it contradicts its own headers.
    Malformed,
    /// Unsigned, as the subscription's raw message delivery makes it.
    RawDelivery,
    /// The topic is not one of `SNS_TOPIC_ARNS`.
    UnknownTopic,
    /// Older than `SNS_AGE_MAX`.
    Stale,
    /// Published later than now.
    FromTheFuture,
    /// A weaker signature than `SNS_SIGNATURE_VERSION`, or an unknown one.
    SignatureVersion,
    /// The certificate does not lie on SNS's host in the topic's region.
    CertificateUrl,
    /// What lies there is not a certificate of SNS.
    Certificate,
    /// The signature is not of this key over these fields.
    Signature,
    /// The subscription would be confirmed somewhere else, or something else would be done.
    SubscribeUrl,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::TooLarge,
        Self::Malformed,
        Self::RawDelivery,
        Self::UnknownTopic,
        Self::Stale,
        Self::FromTheFuture,
        Self::SignatureVersion,
        Self::CertificateUrl,
        Self::Certificate,
        Self::Signature,
        Self::SubscribeUrl,
    ];

    /// As a label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::RawDelivery => "raw_delivery",
            Self::UnknownTopic => "unknown_topic",
            Self::Stale => "stale",
            Self::FromTheFuture => "from_the_future",
            Self::SignatureVersion => "signature_version",
            Self::CertificateUrl => "certificate_url",
            Self::Certificate => "certificate",
            Self::Signature => "signature",
            Self::SubscribeUrl => "subscribe_url",
        }
    }

    /// What the operator can do about it, when the message is honest.
    const fn advice(self) -> &'static str {
        match self {
            Self::RawDelivery => "turn RawMessageDelivery off for this subscription: raw messages are not signed",
            Self::UnknownTopic => "if the topic is yours, add its ARN to SNS_TOPIC_ARNS",
            Self::Stale => "to take what a dead-letter queue has kept, raise SNS_AGE_MAX for that time",
            Self::FromTheFuture => "look at this machine's clock",
            Self::SignatureVersion => {
                "set the topic's attribute SignatureVersion to 2, or allow 1 with SNS_SIGNATURE_VERSION"
            }
            Self::Certificate => "if SNS_SIGNING_CERT_FILE is set, put SNS's present certificate there",
            Self::TooLarge | Self::Malformed | Self::CertificateUrl | Self::Signature | Self::SubscribeUrl => {
                "SNS itself sends no such message"
            }
        }
    }
}

/// Why a message cannot be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The database is away, or too slow.
    Store,
    /// The certificate cannot be fetched, or its authority is not known here.
    Certificate,
    /// SNS does not take the confirmation.
    Confirmation,
    /// All of it took too long.
    Timeout,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Store, Self::Certificate, Self::Confirmation, Self::Timeout];

    /// As a label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Certificate => "certificate",
            Self::Confirmation => "confirmation",
            Self::Timeout => "timeout",
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// For good.
    Refused(Refusal),
    /// It should come again.
    Failed(Fault),
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Fault> for Rejection {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// What SNS says beside the message. Not signed, so nothing is believed but what speaks against the message.
#[derive(Debug, Clone, Copy, Default)]
pub struct SnsHeaders<'a> {
    /// `x-amz-sns-message-type`.
    pub message_type: Option<&'a str>,
    /// Whether `x-amz-sns-rawdelivery` is there and says so.
    pub is_raw: bool,
}

/// Takes what SNS sends.
pub struct FrontDoor {
    topics: Vec<TopicArn>,
    signature_version: SignatureVersion,
    age_max: TimeDelta,
    signers: Signers,
    fetcher: Arc<Fetcher>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    /// MessageIds; held while one is confirmed.
    confirmed: Mutex<VecDeque<String>>,
    /// When each refusal was logged last, in seconds.
    logged: [AtomicI64; Refusal::ALL.len()],
}

impl FrontDoor {
    /// One that finds SNS's hosts with this resolver.
    ///
    /// # Errors
    /// When a certificate file is not what its setting says, or nobody is trusted.
    pub fn new(
        config: &SnsConfig,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, SignersSetupError> {
        let (signers, fetcher) = Signers::new(config, resolver)?;
        Ok(Self {
            topics: config.topics.clone(),
            signature_version: config.signature_version,
            age_max: TimeDelta::from_std(config.age_max).unwrap_or(TimeDelta::MAX),
            signers,
            fetcher,
            store,
            metrics,
            confirmed: Mutex::default(),
            logged: Default::default(),
        })
    }

    /// Takes one message; what it came to is true when this returns.
    ///
    /// # Errors
    /// When it is refused, or cannot be taken now.
    pub async fn receive(&self, headers: SnsHeaders<'_>, body: &[u8]) -> Result<Received, Rejection> {
        let (topic, envelope) = self.verified(headers, body, Utc::now()).await?;
        match envelope.kind {
            Kind::Notification => self.keep(envelope).await,
            Kind::SubscriptionConfirmation => self.confirm(topic, &envelope).await,
            Kind::UnsubscribeConfirmation => {
                tracing::warn!(
                    topic = topic.as_str(),
                    "this daemon was unsubscribed: no more feedback will come; subscribe it again if that was not meant"
                );
                Ok(Received::Unsubscribed)
            }
        }
    }

    /// Counts what became of a message, and logs what somebody should know.
    pub fn record(&self, result: Result<Received, Rejection>) {
        match result {
            Ok(received) => self.metrics.webhook_received(received.name()),
            Err(Rejection::Refused(refusal)) => {
                self.metrics.webhook_refused(refusal.name());
                self.log(refusal, Utc::now().timestamp());
            }
            Err(Rejection::Failed(fault)) => self.metrics.webhook_failed(fault.name()),
        }
    }

    /// Whoever floods the door shall not flood the log.
    fn log(&self, refusal: Refusal, now: i64) {
        let place = Refusal::ALL.iter().position(|known| *known == refusal).unwrap_or_default();
        let last = self.logged[place].load(Ordering::Relaxed);
        let is_mine = now - last >= LOG_PAUSE
            && self.logged[place].compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_mine {
            tracing::warn!(
                reason = refusal.name(),
                advice = refusal.advice(),
                "refused a message at the webhook; email_webhook_refused_total counts them all"
            );
        }
    }

    async fn verified(
        &self,
        headers: SnsHeaders<'_>,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<(&TopicArn, Envelope), Rejection> {
        if headers.is_raw {
            return Err(Refusal::RawDelivery.into());
        }
        let envelope = Envelope::parse(body).map_err(|error| match error {
            EnvelopeError::Bare => Refusal::RawDelivery,
            EnvelopeError::NotAnEnvelope => Refusal::Malformed,
        })?;
        if headers.message_type.is_some_and(|told| told != envelope.kind.name()) {
            return Err(Refusal::Malformed.into());
        }
        let topic = self.topics.iter().find(|topic| topic.as_str() == envelope.topic_arn);
        let topic = topic.ok_or(Refusal::UnknownTopic)?;
        match envelope.freshness(now, self.age_max) {
            Freshness::Fresh => {}
            Freshness::Stale => return Err(Refusal::Stale.into()),
            Freshness::FromTheFuture => return Err(Refusal::FromTheFuture.into()),
        }
        let version = envelope.signature_version.filter(|version| *version >= self.signature_version);
        let version = version.ok_or(Refusal::SignatureVersion)?;
        let signature = STANDARD.decode(&envelope.signature).map_err(|_| Refusal::Signature)?;
        let place = topic.certificate_place(&envelope.signing_cert_url).ok_or(Refusal::CertificateUrl)?;
        let keys = self.signers.keys(topic, &place, now).await.map_err(|error| match error {
            SignerError::Unavailable(_) => Rejection::from(Fault::Certificate),
            SignerError::Refused(_) => Refusal::Certificate.into(),
        })?;
        let text = envelope.signed_text();
        let is_signed = keys.iter().any(|key| key.is_valid_at(now) && key.signed(text.as_bytes(), version, &signature));
        if is_signed { Ok((topic, envelope)) } else { Err(Refusal::Signature.into()) }
    }

    async fn keep(&self, envelope: Envelope) -> Result<Received, Rejection> {
        let receipt = Receipt {
            provider: PROVIDER,
            event_id: envelope.message_id,
            body: envelope.message,
            published_at: envelope.published_at,
        };
        match self.store.keep_feedback(receipt).await {
            Ok(Kept::New) => Ok(Received::Stored),
            Ok(Kept::Known) => Ok(Received::Known),
            Err(error) => {
                if !matches!(error, StoreError::Away(_)) {
                    tracing::error!(%error, "what SNS told could not be stored");
                }
                Err(Fault::Store.into())
            }
        }
    }

    async fn confirm(&self, topic: &TopicArn, envelope: &Envelope) -> Result<Received, Rejection> {
        let place = match (&envelope.subscribe_url, &envelope.token) {
            (Some(url), Some(token)) => topic.confirmation_place(url, token),
            _ => None,
        };
        let place = place.ok_or(Refusal::SubscribeUrl)?;
        let mut confirmed = self.confirmed.lock().await;
        if confirmed.contains(&envelope.message_id) {
            return Ok(Received::Known);
        }
        if let Err(error) = self.fetcher.https(&place).await {
            tracing::error!(topic = topic.as_str(), %error, "the subscription is not confirmed; SNS will ask again");
            return Err(Fault::Confirmation.into());
        }
        if confirmed.len() >= CONFIRMED_MAX {
            confirmed.pop_front();
        }
        confirmed.push_back(envelope.message_id.clone());
        tracing::info!(topic = topic.as_str(), "confirmed the subscription");
        Ok(Received::Confirmed)
    }
}
