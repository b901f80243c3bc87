//! What a producer asked for, decoded and checked for shape.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{AddressError, EmailAddress, Priority};

/// One decoded `EmailRequest`.
#[derive(Clone)]
pub struct EmailRequest {
    /// The producer's idempotency key.
    pub id: Uuid,
    /// SHA-256 over the canonical form: equal requests have equal hashes, whatever their encoding.
    pub payload_hash: PayloadHash,
    /// billing, incident, ... lower case.
    pub source: String,
    /// Which template.
    pub template_key: String,
    /// A pinned version of it.
    pub template_version: Option<i32>,
    /// 1 to 100, no two with the same key.
    pub recipients: Vec<Recipient>,
    /// What the template prints.
    pub variables: Map<String, Value>,
    /// In the order given.
    pub attachments: Vec<Attachment>,
    /// After the rule "the body wins over the routing key".
    pub priority: Priority,
    /// BCP 47; nothing: the template's own.
    pub locale: Option<String>,
    /// Overrides the configured Reply-To.
    pub reply_to: Option<EmailAddress>,
    /// Not before this time.
    pub not_before: Option<DateTime<Utc>>,
    /// Never after this time.
    pub expires_at: Option<DateTime<Utc>>,
    /// Echoed on events.
    pub metadata: BTreeMap<String, String>,
}

impl EmailRequest {
    /// Whether a file of it is not at hand yet.
    #[must_use]
    pub fn has_references(&self) -> bool {
        self.attachments.iter().any(|a| matches!(a.content, AttachmentContent::Reference { .. }))
    }

    /// Bytes of all its files, at hand or announced.
    #[must_use]
    pub fn attachment_bytes(&self) -> u64 {
        self.attachments.iter().map(|a| a.content.size_bytes()).fold(0, u64::saturating_add)
    }
}

impl fmt::Debug for EmailRequest {
    /// Names the request without showing anybody's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmailRequest")
            .field("id", &self.id)
            .field("source", &self.source)
            .field("template_key", &self.template_key)
            .field("recipients", &self.recipients.len())
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

/// One person who gets a mail of their own.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// The address, or why there is none: a bad address fails only itself.
    pub address: Result<EmailAddress, BadAddress>,
    /// Shown before the address; no control characters.
    pub display_name: Option<String>,
}

impl Recipient {
    /// What tells this recipient from the others of the request: the address' key, or the bad text as given.
    #[must_use]
    pub fn key(&self) -> String {
        match &self.address {
            Ok(address) => address.key(),
            Err(bad) => bad.text.to_lowercase(),
        }
    }

    /// What the audit shows as the recipient. Personal: not for logs.
    #[must_use]
    pub fn shown(&self) -> &str {
        match &self.address {
            Ok(address) => address.as_str(),
            Err(bad) => &bad.text,
        }
    }
}

/// A text that is not an address, and why. `Debug` does not show the text.
#[derive(Clone, PartialEq, Eq)]
pub struct BadAddress {
    /// As given, at most 320 characters, without control characters.
    pub text: String,
    /// Why it is not an address.
    pub error: AddressError,
}

impl fmt::Debug for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BadAddress({})", self.error)
    }
}

/// A file that goes with the mail.
#[derive(Clone)]
pub struct Attachment {
    /// Cleaned: no path, no control characters, at most 255 characters.
    pub file_name: String,
    /// As declared, lower case, without parameters.
    pub content_type: String,
    /// The bytes, or where they lie.
    pub content: AttachmentContent,
    /// Set for an inline image.
    pub content_id: Option<String>,
}

/// The bytes of an attachment, or where they lie.
#[derive(Clone)]
pub enum AttachmentContent {
    /// In the request itself.
    Inline {
        /// The file.
        bytes: Bytes,
        /// Its SHA-256.
        sha256: [u8; 32],
    },
    /// Elsewhere; fetched before sending, and checked.
    Reference {
        /// `s3://`, `https://` or `file://`.
        uri: String,
        /// Announced size.
        size_bytes: u64,
        /// Announced SHA-256.
        sha256: [u8; 32],
    },
}

impl AttachmentContent {
    /// How large the file is, or is said to be.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        match self {
            Self::Inline { bytes, .. } => bytes.len() as u64,
            Self::Reference { size_bytes, .. } => *size_bytes,
        }
    }
}

/// SHA-256 over a request's canonical form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayloadHash(pub [u8; 32]);

/// The id of a request's final failure: request, payload and generation. The same failure has the same id however often it
/// is told, and a failure after a replay has another one.
#[must_use]
pub fn settlement_id(request: Uuid, payload: PayloadHash, generation: i32) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(request.as_bytes());
    hash.update(payload.0);
    hash.update(generation.to_be_bytes());
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &hash.finalize())
}

impl PayloadHash {
    /// Stands for the payload of a message whose bytes must not be read, because it crashes whoever does.
    pub const UNREAD: Self = Self([0; 32]);
}

impl fmt::Display for PayloadHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PayloadHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
