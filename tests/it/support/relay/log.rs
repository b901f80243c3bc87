//! Everything that happened at the relay.

use std::time::Instant;

/// A mail whose final dot arrived.
#[derive(Debug, Clone)]
pub struct ReceivedMail {
    /// Number of its connection, from 1.
    pub connection: usize,
    /// Number of its transaction, from 1.
    pub transaction: usize,
    /// Whether it came under TLS.
    pub is_encrypted: bool,
    /// Who authenticated.
    pub user: Option<String>,
    /// The envelope's sender.
    pub from: String,
    /// What followed it in MAIL.
    pub parameters: String,
    /// The envelope's recipients that were not refused.
    pub to: Vec<String>,
    /// The content, dots undone, terminator left out.
    pub content: Vec<u8>,
    /// When MAIL came.
    pub begun_at: Instant,
    /// When the final dot came.
    pub received_at: Instant,
    /// When the reply to it was written.
    pub answered_at: Option<Instant>,
    /// Whether the relay has taken it.
    pub is_accepted: bool,
}

impl ReceivedMail {
    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}

/// The relay said 354: from here on content is on its way.
#[derive(Debug, Clone)]
pub struct GoAhead {
    /// The transaction's first recipient.
    pub to: String,
    /// When.
    pub at: Instant,
}

/// One line that was said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Number of the connection, from 1.
    pub connection: usize,
    /// When.
    pub at: Instant,
    /// By the relay, or by the other side.
    pub by_relay: bool,
    /// The line, without its end.
    pub line: String,
}

/// Everything that happened at the relay, in order.
#[derive(Debug, Clone, Default)]
pub struct RelayLog {
    /// Every mail whose final dot arrived, accepted or not.
    pub mails: Vec<ReceivedMail>,
    /// Every 354.
    pub go_aheads: Vec<GoAhead>,
    /// Every line but the content's.
    pub said: Vec<Said>,
    /// Connections that were ever made.
    pub connections: usize,
    /// Connections that are open.
    pub connections_open: usize,
    /// Most that were open at one time.
    pub connections_open_max: usize,
    /// Transactions begun: MAIL commands.
    pub transactions: usize,
}

impl RelayLog {
    /// The mails that the relay has taken.
    pub fn accepted(&self) -> impl Iterator<Item = &ReceivedMail> {
        self.mails.iter().filter(|mail| mail.is_accepted)
    }

    /// The commands that came, in order, reduced to their verbs.
    pub fn verbs(&self) -> Vec<&str> {
        self.said
            .iter()
            .filter(|said| !said.by_relay)
            .map(|said| said.line.split([' ', ':']).next().unwrap_or(""))
            .collect()
    }

    /// Whether a command began with this.
    pub fn was_told(&self, start: &str) -> bool {
        self.said.iter().any(|said| !said.by_relay && said.line.starts_with(start))
    }

    /// What was said, for a failing test's message.
    pub fn dialogue(&self) -> String {
        let line =
            |said: &Said| format!("#{} {} {}\n", said.connection, if said.by_relay { "<" } else { ">" }, said.line);
        self.said.iter().map(line).collect()
    }
}
