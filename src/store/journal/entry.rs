//! What an entry of the journal holds: enough to be written without any other.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::progress::Progress;
use crate::{
    email::{Status, SuppressionReason},
    store::suppressions::{BY_RELAY, NewSuppression},
};

/// One step of one mail, with everything that its rows need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Counts once.
    pub id: Uuid,
    /// When it happened, by the daemon's clock.
    pub at: DateTime<Utc>,
    /// Which daemon did it: the name of its lease.
    pub worker_id: Uuid,
    /// The request.
    pub request: EntryRequest,
    /// Its recipients, in their order.
    pub recipients: Vec<EntryRecipient>,
    /// Whose step this is.
    pub recipient_hash: String,
    /// What was rendered; nothing for an entry that follows one with the words.
    pub words: Option<EntryWords>,
    /// The request's attachments.
    pub attachments: Vec<EntryAttachment>,
    /// Of the claim.
    pub token: Uuid,
    /// How often the mail had been put off before: which try this is.
    pub round: i32,
    /// What happened.
    pub step: Step,
}

/// What the request row holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_requests")]
pub struct EntryRequest {
    pub id: Uuid,
    pub payload_hash: String,
    pub source: String,
    pub template_key: String,
    pub template_version: Option<i32>,
    pub priority: i16,
    pub lane: String,
    pub locale: Option<String>,
    pub reply_to: Option<String>,
    pub variables: serde_json::Value,
    pub metadata: serde_json::Value,
    pub published_at: DateTime<Utc>,
    pub not_before: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub generation: i32,
    pub copy_no: i32,
}

/// What a recipient's row holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_messages")]
pub struct EntryRecipient {
    pub id: Uuid,
    pub hash: String,
    pub email: String,
    pub name: Option<String>,
    pub message_id: String,
}

/// Subject and bodies.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_messages")]
pub struct EntryWords {
    pub subject: String,
    pub html: String,
    pub text: String,
}

/// A file, with its bytes where the entry brings them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_attachments")]
pub struct EntryAttachment {
    pub file_name: String,
    pub content_type: String,
    pub content_id: Option<String>,
    pub size_bytes: i32,
    pub sha256: String,
}

/// What happened to the mail.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// It is about to go to the relay.
    Sending,
    /// A try has ended, or policy said no.
    Ended(Box<Ended>),
}

/// How it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the columns of email_messages and email_timeline")]
pub struct Ended {
    /// Where the row goes: a name of [`Status`].
    pub status: String,
    /// Tries that counted, this one included.
    pub attempts: i32,
    /// Seconds until it is due again.
    pub due_in: Option<f64>,
    /// Unknown, and left to an operator.
    pub held: bool,
    pub reason: Option<String>,
    pub sent_at: Option<DateTime<Utc>>,
    pub latency_ms: Option<i64>,
    /// `sent`, `deferred`, `rejected`, `unknown`, `suppressed`, `expired`.
    pub kind: String,
    pub relay: String,
    pub phase: Option<String>,
    pub reply_code: Option<i16>,
    pub reply_text: Option<String>,
    pub relay_message_id: Option<String>,
    pub error: Option<String>,
    /// The relay refused the address for good.
    #[serde(default)]
    pub suppresses: bool,
    /// The broker has confirmed the copy or letter that it brings.
    pub is_settled: bool,
}

impl Entry {
    /// The same, after the broker has confirmed what it brings.
    #[must_use]
    pub fn settled(&self) -> Self {
        let mut settled = self.clone();
        if let Step::Ended(ended) = &mut settled.step {
            ended.is_settled = true;
            settled.id = Uuid::new_v5(&self.id, b"settled");
        }
        settled
    }

    /// Whether a dead letter belongs to it, and not a copy.
    #[must_use]
    pub fn owes_a_letter(&self) -> bool {
        self.ended().is_some_and(|(ended, status)| status == Status::Failed || ended.held)
    }

    pub(super) fn ended(&self) -> Option<(&Ended, Status)> {
        match &self.step {
            Step::Sending => None,
            Step::Ended(ended) => Some((ended, Status::from_name(&ended.status).unwrap_or(Status::Unknown))),
        }
    }

    /// What a relay's refusal puts on the suppression list.
    pub(super) fn refused_address(&self) -> Option<NewSuppression> {
        let ended = self.ended().map(|(ended, _)| ended).filter(|ended| ended.suppresses)?;
        let hash = hex::decode(&self.recipient_hash).ok()?.try_into().ok()?;
        let address = self.recipients.iter().find(|r| r.hash == self.recipient_hash).map(|r| r.email.clone());
        Some(NewSuppression {
            note: ended.reply_code.zip(ended.reply_text.as_deref()).map(|(code, text)| format!("{code} {text}")),
            ..NewSuppression::new(hash, address, SuppressionReason::HardBounce, BY_RELAY.to_owned())
        })
    }

    pub(super) fn progress(&self) -> Progress {
        Progress::of_step(self.round, self.ended().map(|(ended, status)| (status, ended.held)))
    }
}

/// An entry, and the bytes of the attachments that it brings, in their order.
#[derive(Debug)]
pub struct ReceivedEntry {
    /// The entry.
    pub entry: Entry,
    /// The files' bytes; none for an entry that follows one with them.
    pub files: Vec<Bytes>,
}
