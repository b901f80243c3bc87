//! Why a relay cannot be used: a closed list, with words that tell an operator what to do.
//!
//! Invariant: nothing here concerns one mail. What becomes of a mail is a [`SendReport`](crate::email::SendReport).

use std::fmt;

use crate::email::{LinkFault, Phase, Reply};

/// What keeps a relay from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelayFault {
    /// Its name does not resolve.
    Dns,
    /// Nothing listens there.
    Refused,
    /// No way to that address.
    Unreachable,
    /// It is silent.
    TimedOut,
    /// It hangs up.
    Closed,
    /// TLS could not be agreed on, or its certificate is not acceptable.
    Tls,
    /// STARTTLS is required here and not offered there.
    NoStartTls,
    /// It does not take our credentials, or wants some.
    Auth,
    /// It says that it cannot serve us for now (4xx).
    Busy,
    /// It says that it will not serve us (5xx).
    Greeting,
    /// What it says is not SMTP as we know it.
    Protocol,
    /// It listens, and puts off one mail after another.
    Deferring,
}

impl RelayFault {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Dns,
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
        Self::Closed,
        Self::Tls,
        Self::NoStartTls,
        Self::Auth,
        Self::Busy,
        Self::Greeting,
        Self::Protocol,
        Self::Deferring,
    ];

    /// The name used in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Closed => "closed",
            Self::Tls => "tls",
            Self::NoStartTls => "no_starttls",
            Self::Auth => "auth",
            Self::Busy => "busy",
            Self::Greeting => "greeting",
            Self::Protocol => "protocol",
            Self::Deferring => "deferring",
        }
    }
}

impl fmt::Display for RelayFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fault of a relay, the step it happened at, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct RelayError {
    /// Which kind.
    pub fault: RelayFault,
    /// At which step.
    pub phase: Phase,
    /// For people: what happened and what to do.
    pub words: String,
}

impl RelayError {
    pub(super) fn new(fault: RelayFault, phase: Phase, words: impl Into<String>) -> Self {
        Self { fault, phase, words: words.into() }
    }

    /// A link that failed while the connection was being made ready.
    pub(super) fn link(phase: Phase, fault: &LinkFault) -> Self {
        let kind = match fault {
            LinkFault::Closed | LinkFault::Broken(_) => RelayFault::Closed,
            LinkFault::TimedOut(_) => RelayFault::TimedOut,
            LinkFault::BadReply => RelayFault::Protocol,
        };
        let hint = if phase == Phase::Connect && kind == RelayFault::TimedOut {
            "; check SMTP_HOST, SMTP_PORT and the firewall"
        } else if phase == Phase::Greeting {
            "; check SMTP_PORT: a server that speaks TLS from the first byte wants port 465 and SMTP_USE_TLS=true"
        } else {
            ""
        };
        Self::new(kind, phase, format!("{fault} at {phase}{hint}"))
    }

    /// A relay that refused to let us in, at the greeting or at EHLO.
    pub(super) fn turned_away(phase: Phase, reply: &Reply) -> Self {
        match reply.code {
            400..=499 => Self::new(
                RelayFault::Busy,
                phase,
                format!(
                    "the relay cannot serve us now ({}); if this lasts, lower the lanes' connections",
                    reply.line()
                ),
            ),
            _ => Self::new(
                RelayFault::Greeting,
                phase,
                format!("the relay will not serve this host ({}); ask its operator", reply.line()),
            ),
        }
    }

    /// One mail after another was put off, the last one in these words.
    pub(super) fn deferring(phase: Phase, words: &str) -> Self {
        let words = format!(
            "the relay put off mails to several people in a row ({words}); no try is burnt while this lasts; ask its \
             operator"
        );
        Self::new(RelayFault::Deferring, phase, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_and_a_place_of_its_own() {
        for (index, fault) in RelayFault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, index, "{fault}");
            assert_eq!(RelayFault::ALL.iter().filter(|other| other.name() == fault.name()).count(), 1);
        }
    }
}
