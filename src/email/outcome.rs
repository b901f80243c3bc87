//! What the relay said, by phase of the SMTP dialogue, and what that means for one recipient.

use std::{fmt, time::Duration};

/// The step of the SMTP dialogue (RFC 5321) at which something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Name resolution and TCP.
    Connect,
    /// The server's 220.
    Greeting,
    /// EHLO.
    Ehlo,
    /// STARTTLS and the handshake.
    StartTls,
    /// AUTH.
    Auth,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Rcpt,
    /// DATA, up to its 354.
    Data,
    /// The content, before its last byte was handed to the socket.
    Content,
    /// After the last byte of the terminator was handed to the socket: the relay may have accepted the mail.
    FinalDot,
}

impl Phase {
    /// As it is written in the timeline and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Greeting => "greeting",
            Self::Ehlo => "ehlo",
            Self::StartTls => "starttls",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Content => "content",
            Self::FinalDot => "final_dot",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A reply of the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// RFC 3463 status, for instance 5.1.1.
    pub enhanced: Option<(u8, u16, u16)>,
    /// The lines' text joined by a blank, bytes that are not UTF-8 replaced, control characters dropped, at most 500 characters.
    pub text: String,
}

impl Reply {
    /// `550 5.1.1 no such user`.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {}", self.code, self.text)
    }

    /// The relay's own id for an accepted mail, where its words hold one: SES says `Ok <id>`, Postfix `queued as <id>`.
    #[must_use]
    pub fn relay_message_id(&self) -> Option<&str> {
        let text = self.text.trim();
        let id = match text.rsplit_once("queued as ") {
            Some((_, id)) => id,
            None => text.strip_prefix("Ok ").or_else(|| text.strip_prefix("OK "))?,
        };
        let id = id.trim();
        let plausible = id.len() <= 255 && !id.is_empty() && !id.contains(char::is_whitespace);
        plausible.then_some(id)
    }
}

/// How a connection failed, as far as one mail is concerned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// The relay closed the connection.
    #[error("the relay closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection broke ({0})")]
    Broken(String),
    /// The relay was silent for too long.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// What came was no SMTP reply, or one that does not fit the step.
    #[error("the relay's answer was not a valid SMTP reply")]
    BadReply,
}

/// How one SMTP transaction for one recipient went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendReport {
    /// 2xx to the final dot.
    Accepted {
        /// The relay's words; SES puts its message id there.
        reply: Reply,
    },
    /// 4xx or 5xx at this step.
    Refused {
        /// Mail, Rcpt, Data, Content (a relay that has had enough) or FinalDot.
        phase: Phase,
        /// The relay's words.
        reply: Reply,
    },
    /// The link failed at this step.
    Broken {
        /// Mail to FinalDot; FinalDot means that the mail may have been accepted.
        phase: Phase,
        /// How.
        fault: LinkFault,
    },
    /// The relay cannot carry this mail (an address needs SMTPUTF8, the mail is larger than SIZE allows); nothing was sent.
    NotCapable {
        /// What is missing, for people.
        missing: String,
    },
    /// It was not to go any more when its turn came (expired, or its lease could not be renewed): no content was sent.
    Withdrawn {
        /// Why, for people.
        why: String,
    },
}

/// What one attempt means for one recipient: what `classify` makes of a [`SendReport`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The relay has it.
    Sent {
        /// Its words.
        reply: Reply,
    },
    /// Not now; trying again is safe.
    Deferred {
        /// The step.
        phase: Phase,
        /// The relay's words, if it said any.
        reply: Option<Reply>,
        /// For people: what happened.
        error: String,
        /// Whether it burns one of the template's tries. A fault of the platform never does.
        counted: bool,
    },
    /// Never; trying again is useless.
    Rejected {
        /// The step.
        phase: Phase,
        /// The relay's words, if it said any.
        reply: Option<Reply>,
        /// For people: what happened.
        error: String,
    },
    /// We do not know whether the relay has it.
    Unknown {
        /// For people: what happened.
        error: String,
    },
}

impl Outcome {
    /// `sent`, `deferred`, `rejected` or `unknown`: for logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::Deferred { .. } => "deferred",
            Self::Rejected { .. } => "rejected",
            Self::Unknown { .. } => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_own_id_is_found_where_there_is_one() {
        let id = |text: &str| {
            Reply { code: 250, enhanced: None, text: text.to_owned() }.relay_message_id().map(str::to_owned)
        };
        assert_eq!(id("Ok 0100018f-aaaa-000000").as_deref(), Some("0100018f-aaaa-000000"));
        assert_eq!(id("2.0.0 Ok: queued as 4XyZ").as_deref(), Some("4XyZ"));
        assert_eq!(id("Message accepted"), None);
        assert_eq!(id("Ok thank you"), None);
    }
}
