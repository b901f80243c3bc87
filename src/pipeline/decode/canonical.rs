//! A request's payload hash.
//!
//! Invariant: it is over the decoded request, in canonical order, so that one request has one hash in both encodings and
//! with maps in any order; and no two different requests share a canonical form.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::email::{AttachmentContent, EmailAddress, EmailRequest, PayloadHash};

/// SHA-256 over every field in a fixed order, each with its length before it, so that no two requests share a form.
pub(super) fn payload_hash(request: &EmailRequest, wire_priority: i32) -> PayloadHash {
    let mut hash = Canonical(Sha256::new());
    hash.text("postrider.v1");
    hash.bytes(request.id.as_bytes());
    hash.text(&request.source);
    hash.text(&request.template_key);
    hash.number(request.template_version.unwrap_or(0).into());
    let mut people: Vec<(String, &str)> =
        request.recipients.iter().map(|r| (r.key(), r.display_name.as_deref().unwrap_or_default())).collect();
    people.sort_unstable();
    hash.number(people.len() as i64);
    for (key, name) in &people {
        hash.text(key);
        hash.text(name);
    }
    // Already sorted at every level.
    hash.text(&Value::Object(request.variables.clone()).to_string());
    hash.number(request.attachments.len() as i64);
    for attachment in &request.attachments {
        hash.text(&attachment.file_name);
        hash.text(&attachment.content_type);
        hash.text(attachment.content_id.as_deref().unwrap_or_default());
        match &attachment.content {
            AttachmentContent::Inline { sha256, .. } | AttachmentContent::Reference { sha256, .. } => {
                hash.bytes(sha256);
            }
        }
    }
    hash.number(wire_priority.into());
    hash.text(request.locale.as_deref().unwrap_or_default());
    hash.text(&request.reply_to.as_ref().map(EmailAddress::key).unwrap_or_default());
    for time in [request.not_before, request.expires_at] {
        hash.number(time.map_or(i64::MIN, |t| t.timestamp_micros()));
    }
    hash.number(request.metadata.len() as i64);
    for (name, value) in &request.metadata {
        hash.text(name);
        hash.text(value);
    }
    PayloadHash(hash.0.finalize().into())
}

struct Canonical(Sha256);

impl Canonical {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, n: i64) {
        self.0.update(n.to_be_bytes());
    }
}
