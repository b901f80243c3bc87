//! Settings: environment variables (and a TOML file for what is structured) become one typed [`Config`].
//!
//! [`SETTINGS`] lists them all. The environment wins over the file; `NAME_FILE` reads the setting NAME from a file;
//! a variable that is set to nothing counts as unset. The file looks like this:
//!
//! ```toml
//! [settings]                  # any setting, by its name in lower case
//! smtp_from_email = "noreply@example.org"
//!
//! [lanes.fast]                # fast, standard, bulk
//! prefetch = 32
//! connections = 4
//! ladder = ["1s", "5s", "20s", "60s"]
//! age_max = "1h"
//!
//! [[relays]]                  # in order of preference
//! name = "primary"
//! host = "mail.example.org"
//! port = 587
//! tls = "starttls"            # starttls, implicit, plain
//! user = "noreply@example.org"
//! password_file = "/run/secrets/smtp_password"
//! connections_bulk = 1        # connections_fast, _standard, _bulk: this relay's, instead of the lane's
//!
//! [[dkim]]                    # each key signs: one of RSA and one of Ed25519, say
//! domain = "example.org"      # the sender's, or one above it
//! selector = "postrider1"     # the public key is at postrider1._domainkey.example.org
//! key_file = "/run/secrets/dkim.pem"
//! ```
//!
//! Invariants: a [`Config`] that exists is valid, so that nothing behind it checks settings again; all that is wrong
//! is told at once, in [`Faults`]; no secret appears in the `Debug` or `Display` of anything here.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;

use crate::{
    email::{EmailAddress, PerLane, attachment::FileType},
    feedback::{sns::SignatureVersion, topic::TopicArn},
    mime::dkim::SigningKey,
};

mod setting;

mod table;

mod fault;

mod source;

mod file;

mod read;

mod parse;

mod sections;

mod relays;

mod attachments;

mod dkim;

mod listeners;

mod telemetry;

#[cfg(test)]
mod tests;

pub use crate::email::RateLimit;
pub(crate) use attachments::host_of;
pub use attachments::{AttachmentConfig, KeptIn, S3Config, S3Credentials};
pub use fault::{Fault, Faults};
pub use listeners::{ListenerConfig, Network};
pub use setting::{Group, Need, Setting, env_example};
pub use source::{Environment, Settings};
pub use table::SETTINGS;
pub use telemetry::{Endpoint, Sampling, TelemetryConfig};

/// Everything the daemon is told. Secrets are wrapped, so that `Debug` does not show them.
#[derive(Debug, Clone)]
pub struct Config {
    /// The broker.
    pub broker: BrokerConfig,
    /// The database.
    pub store: StoreConfig,
    /// The relays.
    pub smtp: SmtpConfig,
    /// What every mail carries.
    pub mail: MailConfig,
    /// `DKIM_KEY_FILE`, `[[dkim]]` in the file: the keys that sign every mail; none: nothing is signed.
    pub dkim: Vec<Arc<SigningKey>>,
    /// Limits and rules of the pipeline.
    pub pipeline: PipelineConfig,
    /// The listeners.
    pub http: HttpConfig,
    /// Whose feedback is taken.
    pub sns: SnsConfig,
    /// Logs.
    pub log: LogConfig,
    /// Traces and metrics that are pushed.
    pub telemetry: TelemetryConfig,
    /// `POSTRIDER_CORE_DUMPS`: whether a daemon that dies may leave its memory on the disk (no).
    pub core_dumps: bool,
    /// What is odd but not wrong, such as a name that looks like a setting and is none; for the log at start.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads everything the daemon needs. `file` is what `--config` names; without it `POSTRIDER_CONFIG` may name one.
    ///
    /// # Errors
    /// All that is missing or wrong, at once.
    pub fn load(environment: &Environment, file: Option<&Path>) -> Result<Self, Faults> {
        Settings::read(environment, file).config()
    }
}

/// How the broker is reached and what is declared there.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `AMQP_URL`: `amqp://` or `amqps://`, with user, password and virtual host.
    pub url: SecretString,
    /// `AMQP_CA_FILE`: certificates to trust besides the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// `AMQP_CLIENT_CERT_FILE` and `AMQP_CLIENT_KEY_FILE`: how we show ourselves to an `amqps://` broker.
    pub identity: Option<BrokerIdentity>,
    /// `AMQP_QUEUE_TYPE`: what lanes, dead-letter and unrouted queues are.
    pub queue_type: QueueType,
    /// `AMQP_TOPOLOGY`.
    pub topology: TopologyMode,
    /// `EMAIL_PREFETCH_<LANE>`, `prefetch` in the file: deliveries held unacknowledged at once, 1 to 2000 (32, 64, 64).
    pub prefetch: PerLane<u16>,
    /// `EMAIL_LADDER_<LANE>`, `ladder` in the file: the delays before the second, third ... try; 1 to 12 rising values.
    pub ladders: PerLane<Vec<Duration>>,
    /// `DEAD_LETTER_ARCHIVE`: whether dead letters are moved into the database.
    pub archive: bool,
}

/// A certificate of our own, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerIdentity {
    /// The certificate, with those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Kind of the lane queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated, the default.
    Quorum,
    /// With `x-max-priority`.
    Classic,
}

/// Who makes the exchanges and queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopologyMode {
    /// The daemon declares what is missing.
    Declare,
    /// The daemon checks that everything is there.
    Verify,
    /// The daemon trusts that everything is there.
    None,
}

/// How PostgreSQL is reached.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `DATABASE_URL`.
    pub url: SecretString,
    /// `DATABASE_CONNECTIONS_MAX`: for all but the fast lane, 2 to 200 (default 10).
    pub connections_max: u32,
    /// `DATABASE_FAST_CONNECTIONS_MAX`: kept for the fast lane, 1 to 50 (default 3).
    pub fast_connections_max: u32,
    /// `EMAIL_HASH_KEY`: keys the hash that stands for an address, at least 32 characters.
    pub hash_key: SecretString,
    /// `EMAIL_EVENTS`: which events producers get (final).
    pub events: EventsMode,
    /// Where the bytes of attachments come from and are kept.
    pub attachments: AttachmentConfig,
}

/// The relays and how they are spoken to.
#[derive(Debug, Clone)]
pub struct SmtpConfig {
    /// In order of preference; at least one.
    pub relays: Vec<RelayConfig>,
    /// `SMTP_HELO_NAME`: what EHLO says (default: this machine's host name, else `localhost`).
    pub helo_name: String,
    /// `SMTP_TIMEOUT_SECONDS`: limit of each step of the dialogue but the reply to the final dot (30 s).
    pub step_timeout: Duration,
    /// `SMTP_DOT_TIMEOUT_SECONDS`: limit of the reply to the final dot (600, RFC 5321 §4.5.3.2.6).
    pub dot_timeout: Duration,
    /// `SMTP_CONNECTIONS_<LANE>`, `connections` in the file: SMTP connections at most, for each relay that does not say otherwise (4, 8, 4).
    pub connections: PerLane<usize>,
    /// `SMTP_MAILS_PER_CONNECTION`: a connection is retired after this many (100).
    pub mails_per_connection_max: u32,
    /// `SMTP_IDLE_SECONDS`: a connection idle for longer is closed, not reused (30 s).
    pub idle_max: Duration,
    /// `SMTP_WARM_CONNECTIONS_FAST`: connections of the fast lane that are kept open at the first relay though idle (1).
    pub warm_connections_fast: usize,
}

/// One relay.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// For logs, metrics and readiness: the file's `name`, else `host:port`.
    pub name: String,
    /// Host name or address; certificates are checked against it.
    pub host: String,
    /// 587 by default.
    pub port: u16,
    /// How the connection is protected.
    pub tls: RelayTls,
    /// `SMTP_CA_FILE`: certificates to trust besides the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// `SMTP_USER` and `SMTP_PASSWORD`.
    pub credentials: Option<RelayCredentials>,
    /// The file's `connections_<lane>`: SMTP connections at most, where this relay's are not `SMTP_CONNECTIONS_<LANE>`.
    pub connections: PerLane<Option<usize>>,
}

/// User and password for AUTH.
#[derive(Debug, Clone)]
pub struct RelayCredentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: SecretString,
}

/// How a relay's connection is protected. There is no opportunistic mode: it falls to anybody on the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayTls {
    /// `SMTP_USE_TLS=false`.
    Plain,
    /// `SMTP_USE_TLS=true`: STARTTLS is required.
    StartTls,
    /// `SMTP_USE_TLS=true` on port 465: TLS from the first byte.
    Implicit,
}

/// What every mail carries.
#[derive(Debug, Clone)]
pub struct MailConfig {
    /// `SMTP_FROM_EMAIL`, also the envelope sender.
    pub from: EmailAddress,
    /// `SMTP_FROM_NAME`.
    pub from_name: Option<String>,
    /// `SMTP_REPLY_TO`.
    pub reply_to: Option<EmailAddress>,
    /// `EMAIL_MESSAGE_ID_DOMAIN`: right side of Message-ID (default: the domain of `SMTP_FROM_EMAIL`).
    pub message_id_domain: String,
    /// `EMAIL_SUPPORT_EMAIL`: shown in mails; its line goes when unset.
    pub support_email: Option<String>,
    /// `EMAIL_SUPPORT_PHONE`: likewise.
    pub support_phone: Option<String>,
    /// `EMAIL_TIMEZONE` (default `Africa/Porto-Novo`).
    pub timezone: chrono_tz::Tz,
    /// `EMAIL_TEMPLATES_DIR` (default `templates`).
    pub templates_dir: PathBuf,
    /// `EMAIL_PUBLIC_URL`: what links to unsubscribe begin with, without a slash at the end; nothing: no marketing mail is sent.
    pub public_url: Option<String>,
    /// What tells mail providers which mail it is.
    pub headers: HeadersConfig,
}

/// Headers for mail providers.
#[derive(Debug, Clone)]
pub struct HeadersConfig {
    /// `EMAIL_LIST_ID_DOMAIN`: right side of List-Id in marketing mails (default: the domain of `SMTP_FROM_EMAIL`).
    pub list_id_domain: String,
    /// `EMAIL_FEEDBACK_SENDER_ID`: last part of Feedback-ID; nothing: mails have no such header.
    pub feedback_sender_id: Option<String>,
    /// `SES_CONFIGURATION_SET`.
    pub ses_configuration_set: Option<String>,
    /// `SES_MESSAGE_TAGS`.
    pub ses_tags: Vec<SesTag>,
}

/// A tag by which Amazon SES counts mails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SesTag {
    /// The template's key.
    Template,
    /// The request's source.
    Source,
    /// The template's category.
    Category,
    /// The lane.
    Lane,
    /// A name and a value, the same for every mail.
    Fixed(String, String),
}

impl SesTag {
    /// What differs from mail to mail, by its name.
    fn of_mail(name: &str) -> Option<Self> {
        [Self::Template, Self::Source, Self::Category, Self::Lane].into_iter().find(|tag| tag.name() == name)
    }

    /// The tag's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Template => "template",
            Self::Source => "source",
            Self::Category => "category",
            Self::Lane => "lane",
            Self::Fixed(name, _) => name,
        }
    }
}

/// Limits and rules of the pipeline.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// `EMAIL_ALLOWED_ATTACHMENT_TYPES`: pdf, png, jpg, json, csv.
    pub attachment_types: Vec<FileType>,
    /// `EMAIL_MAX_ATTACHMENT_SIZE_MB` in bytes (10 MB, counted in units of 1024 x 1024).
    pub attachment_bytes_max: usize,
    /// `EMAIL_MAX_ATTACHMENTS_TOTAL_MB` in bytes: all files of one mail together (25 MB, or one file's limit where that is more).
    pub attachments_total_max: u64,
    /// `EMAIL_P0_SOURCES`: who may use P0 (default `incident`); others travel as P1.
    pub p0_sources: Vec<String>,
    /// `SMTP_RETRY_MAX_ATTEMPTS`: tries of a template whose manifest names none (default 3).
    pub tries_default: i32,
    /// `EMAIL_AGE_MAX_<LANE>`, `age_max` in the file: older mails are not tried again (24 h; fast 1 h).
    pub age_max: PerLane<Duration>,
    /// `EMAIL_MAX_NOT_BEFORE_DAYS`: furthest `not_before` (30 days).
    pub not_before_max: Duration,
    /// `EMAIL_UNKNOWN_WAIT_SECONDS`: how long feedback may settle an unknown outcome (60 s; counts as 0 for P0 and without topics of SNS).
    pub unknown_wait: Duration,
    /// `EMAIL_LEASE_SECONDS`: how long a daemon that stops renewing keeps what it claimed (30 s; 1 to 600, and less than 10 only where nothing but tests runs).
    pub lease: Duration,
    /// `SHUTDOWN_GRACE_SECONDS`: how long mails on the wire may take to finish after SIGTERM (60 s).
    pub shutdown_grace: Duration,
    /// `EMAIL_AUDIT_RETENTION_DAYS` (365).
    pub audit_retention: Duration,
    /// `EMAIL_AUTO_ANONYMIZE_AFTER_DAYS` (90).
    pub anonymize_after: Duration,
    /// `EMAIL_RETENTION_EVERY`: how often daemons look for what is to be anonymised or deleted (1 h).
    pub retention_every: Duration,
    /// `EMAIL_RATE_LIMIT_TRANSACTIONAL`: mails of transactional templates to one person (unlimited).
    pub rate_limit_transactional: RateLimit,
    /// `EMAIL_RATE_LIMIT_MARKETING`: mails of marketing templates to one person (`1/day`).
    pub rate_limit_marketing: RateLimit,
}

/// Which events are published to `email.events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsMode {
    /// None.
    Off,
    /// Every status but `queued`, `sending`, `unknown`; and `unrouted`.
    Final,
    /// All of them.
    All,
}

/// The sidecar.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `ADMIN_ADDR` (default `127.0.0.1:8025`).
    pub admin_addr: SocketAddr,
    /// `WEBHOOK_ADDR`; nothing: no public listener. There is none without `SNS_TOPIC_ARNS` or `EMAIL_PUBLIC_URL` either.
    pub webhook_addr: Option<SocketAddr>,
    /// `ADMIN_TOKENS`: `name:role:token`, comma-separated; empty: nobody gets in.
    pub tokens: Vec<AdminToken>,
    /// `ADMIN_HOSTS`: names that the admin listener goes by besides `localhost` and its addresses.
    pub admin_hosts: Vec<String>,
    /// `ADMIN_...`: the admin listener.
    pub admin: ListenerConfig,
    /// `WEBHOOK_...`: the public listener.
    pub webhook: ListenerConfig,
}

/// Amazon SNS, which carries the feedback of Amazon SES.
#[derive(Debug, Clone)]
pub struct SnsConfig {
    /// `SNS_TOPIC_ARNS`: whose messages are taken; empty: nobody's.
    pub topics: Vec<TopicArn>,
    /// `SNS_SIGNATURE_VERSION`: the weakest signature that is taken (2).
    pub signature_version: SignatureVersion,
    /// `SNS_AGE_MAX`: how long ago a message may have been published (2 h: SNS repeats for an hour at most).
    pub age_max: Duration,
    /// `SNS_SIGNING_CERT_FILE`: certificates whose keys sign, PEM; with it none is ever fetched.
    pub signing_cert_file: Option<PathBuf>,
    /// `SNS_CA_FILE`: certificates to trust besides the system's, PEM.
    pub ca_file: Option<PathBuf>,
}

impl Config {
    /// Where what providers tell arrives; nothing: nowhere.
    #[must_use]
    pub fn feedback_addr(&self) -> Option<SocketAddr> {
        self.http.webhook_addr.filter(|_| !self.sns.topics.is_empty())
    }

    /// Where the public listener is; nothing: nobody is to be heard there.
    #[must_use]
    pub fn public_addr(&self) -> Option<SocketAddr> {
        self.http.webhook_addr.filter(|_| !self.sns.topics.is_empty() || self.mail.public_url.is_some())
    }
}

/// One named bearer token.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// Who.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// At least 16 characters.
    pub token: SecretString,
}

/// What a token may do; each role may do what the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Viewer,
    /// Look at persons' data, replay, resend, pause.
    Operator,
    /// Change templates.
    Admin,
}

impl Role {
    /// As it stands in `ADMIN_TOKENS`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// How logs are written.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// `LOG_FORMAT`: json (default) or text.
    pub format: LogFormat,
    /// `LOG_LEVEL`: a filter as `tracing_subscriber::EnvFilter` reads it (default `info`).
    pub filter: String,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
