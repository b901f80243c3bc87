//! What a template made of a request, and what its manifest promises.

use std::time::Duration;

use super::{EmailAddress, Priority, unsubscribe};

/// Whether suppression and caps apply in full (marketing) or only bounces and complaints (transactional).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateKind {
    /// A mail that somebody's own action or contract asks for.
    Transactional,
    /// A mail that we want to send.
    Marketing,
}

impl TemplateKind {
    /// `transactional` or `marketing`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transactional => "transactional",
            Self::Marketing => "marketing",
        }
    }
}

/// What happens to a mail whose recipient has had as many as the cap allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverCap {
    /// It is not sent, and its row says why.
    Drop,
    /// It waits until the next day or week.
    Defer,
}

impl OverCap {
    /// `drop` or `defer`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Defer => "defer",
        }
    }
}

/// What happens to a mail that may or may not have been accepted, when no feedback settles it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownPolicy {
    /// Send it again with the same Message-ID.
    Resend,
    /// An operator decides.
    Hold,
}

impl UnknownPolicy {
    /// `resend` or `hold`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resend => "resend",
            Self::Hold => "hold",
        }
    }
}

/// What a template says of itself in `manifest.toml`.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// One line for people.
    pub description: String,
    /// billing, incident, onboarding ...
    pub category: String,
    /// Transactional or marketing.
    pub kind: TemplateKind,
    /// What producers usually publish it with.
    pub priority: Priority,
    /// SMTP attempts in all.
    pub tries: i32,
    /// From publish to the relay's 250.
    pub deadline: Duration,
    /// BCP 47.
    pub locale: String,
    /// Missing or null: an error that names it.
    pub required: Vec<String>,
    /// Null when absent.
    pub optional: Vec<String>,
    /// File types it accepts (`pdf`, `csv` ...); empty: attachments are refused.
    pub attachments: Vec<String>,
    /// People who always get it as well.
    pub always_to: Vec<EmailAddress>,
    /// What becomes of a mail whose outcome is unknown.
    pub unknown_policy: UnknownPolicy,
    /// What becomes of a mail over its recipient's cap; nothing: it says nothing of it, and it is dropped.
    pub over_cap: Option<OverCap>,
}

impl Manifest {
    /// Whether people can unsubscribe from it.
    #[must_use]
    pub fn is_marketing(&self) -> bool {
        self.kind == TemplateKind::Marketing
    }

    /// What stands for the link to unsubscribe where no mail is sent; nothing: such a mail has none.
    #[must_use]
    pub fn example_unsubscribe_url(&self) -> Option<&'static str> {
        self.is_marketing().then_some(unsubscribe::EXAMPLE)
    }
}

/// Subject, HTML and text of one request: the same for all its recipients.
#[derive(Debug, Clone)]
pub struct RenderedEmail {
    /// The version of the template that was used.
    pub template_version: i32,
    /// One line.
    pub subject: String,
    /// A whole HTML document.
    pub html: String,
    /// The text part.
    pub text: String,
}
