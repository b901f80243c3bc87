//! What a run of the daemon is asked to do.

use super::{args::Args, relay::Route, requests::Content, services::Site};

/// The folder of the benchmark's own templates.
const TEMPLATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/templates");

/// `EMAIL_HASH_KEY` of every daemon.
pub(crate) const HASH_KEY: &str = "only for the benchmark's own databases";

/// Kind of the lane queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// Replicated.
    Quorum,
    /// With priorities.
    Classic,
}

impl Queue {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// Which of the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one that all rows use that do not say otherwise.
    First,
    /// RabbitMQ 4.0, where it can be had.
    Second,
}

/// What the relay is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relay {
    /// `smtp-sink` itself.
    Plain,
    /// It asks for STARTTLS.
    StartTls,
    /// It is a round trip of 20 ms away.
    Distant {
        /// Whether it offers PIPELINING.
        pipelining: bool,
    },
}

/// Where the audit is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Audit {
    /// A database of the run's own.
    Fresh,
    /// One that holds rows already, and keeps what the run adds.
    Filled(String),
}

/// Mails queued, daemons started, all carried.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) mails: u64,
    pub(crate) broker: Which,
    pub(crate) queue: Queue,
    pub(crate) daemons: u16,
    /// Of all daemons together.
    pub(crate) connections: u16,
    /// Of all daemons together.
    pub(crate) prefetch: u16,
    pub(crate) content: Content,
    pub(crate) relay: Relay,
    pub(crate) audit: Audit,
    /// Whether somebody listens to all events.
    pub(crate) subscriber: bool,
    /// Events of SES that arrive meanwhile.
    pub(crate) events_per_second: Option<u32>,
}

impl Work {
    /// Mails of 2 kB, quorum queues, one daemon: what the other rows differ from in one thing.
    pub(crate) fn usual(args: &Args) -> Self {
        Self {
            mails: args.mails,
            broker: Which::First,
            queue: Queue::Quorum,
            daemons: 1,
            connections: args.connections,
            prefetch: args.prefetch,
            content: Content::Notice,
            relay: Relay::Plain,
            audit: Audit::Fresh,
            subscriber: false,
            events_per_second: None,
        }
    }

    /// What each daemon is told beyond where its services are; everything else is at its default.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let share = |all: u16| (all / self.daemons).max(1);
        let connections = share(self.connections);
        vec![
            ("AMQP_QUEUE_TYPE".to_owned(), self.queue.name().to_owned()),
            ("SMTP_CONNECTIONS_STANDARD".to_owned(), connections.to_string()),
            ("EMAIL_PREFETCH_STANDARD".to_owned(), share(self.prefetch).max(connections).to_string()),
        ]
    }
}

/// All settings of a daemon: its services, what the run asks for, what the command line adds.
pub(crate) fn daemon_settings(
    args: &Args,
    site: &Site,
    route: &Route,
    own: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = [
        ("AMQP_URL", site.amqp_url.as_str()),
        ("DATABASE_URL", site.database_url.as_str()),
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", &route.port().to_string()),
        ("SMTP_FROM_EMAIL", "noreply@bench.example"),
        ("SMTP_FROM_NAME", "Banc d’essai"),
        ("EMAIL_HASH_KEY", HASH_KEY),
        ("EMAIL_TEMPLATES_DIR", TEMPLATES),
        // Nobody asks it anything; any free port will do.
        ("ADMIN_ADDR", "127.0.0.1:0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    all.extend(route.tls_settings());
    all.extend(own);
    all.extend(args.settings.iter().cloned());
    all
}
