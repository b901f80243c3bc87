//! DKIM signatures (RFC 6376, Ed25519 by RFC 8463): relaxed/relaxed, one for each key. Pure: the time is passed in.
//!
//! Own code over ring: the libraries that sign bring the `rsa` crate, whose timing can give the key away (RUSTSEC-2023-0071),
//! or a resolver that nobody here asks anything.
//!
//! Invariant: what a relay may replace is not signed. Amazon SES writes Message-ID and Date anew and takes its own headers out.
//! Invariant: what a reader sees or presses is signed, and what is shown as such cannot be added later: those headers are named
//! once more than they are there.

/// What two forms of one mail have in common.
mod canonical;

/// Private keys, and the DNS records of their public halves.
mod key;

#[cfg(test)]
mod tests;

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use ring::digest::{SHA256, digest};

use self::canonical::{Field, body_digest, fields, split};
pub use self::key::{KeyError, SigningKey};

/// Headers that are signed where they are there, each as often as it is there.
const SIGNED: [&str; 13] = [
    "From",
    "Reply-To",
    "To",
    "Cc",
    "Subject",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Auto-Submitted",
    "List-Id",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "Feedback-ID",
];
/// Those among them that must not be added to a signed mail.
const SEALED: [&str; 6] = ["From", "Reply-To", "To", "Cc", "Subject", "Content-Type"];
/// Seconds for which a signature holds: a mail may wait for days at a relay, but need not be good for replaying for ever.
const VALID_SECONDS: i64 = 14 * 24 * 3600;
/// Characters of a line that this header is folded at.
const LINE_CHARS: usize = 72;

/// The signatures of a message, as headers to stand before it. The body is digested once, whatever the number of keys.
///
/// # Errors
/// When a key cannot sign: ring says nothing more.
pub fn signatures<'k>(
    message: &[u8],
    keys: impl IntoIterator<Item = &'k SigningKey>,
    at: DateTime<Utc>,
) -> Result<Vec<u8>, KeyError> {
    let (head, body) = split(message);
    let fields = fields(head);
    let body = BASE64_STANDARD.encode(body_digest(body));
    let (names, chosen) = choose(&fields);
    let mut hashed = Vec::with_capacity(head.len() + 512);
    for field in &chosen {
        field.write_relaxed(&mut hashed);
        hashed.extend_from_slice(b"\r\n");
    }
    let mut headers = Vec::new();
    for key in keys {
        let unsigned = header(key, &names, &body, at);
        let mut input = hashed.clone();
        // The header itself comes last, its signature empty, and without the end of its line (RFC 6376 §3.7).
        Field::new(unsigned.as_bytes()).write_relaxed(&mut input);
        let signature = BASE64_STANDARD.encode(key.sign(digest(&SHA256, &input).as_ref(), &input)?);
        headers.extend_from_slice(unsigned.as_bytes());
        let mut room = LINE_CHARS - 3;
        let mut rest = signature.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(room.min(rest.len()));
            headers.extend_from_slice(line.as_bytes());
            headers.extend_from_slice(if after.is_empty() { b"\r\n" } else { b"\r\n\t" });
            (rest, room) = (after, LINE_CHARS);
        }
    }
    Ok(headers)
}

/// The names for `h=`, and the fields in that order: of several of one name, from the last to the first (RFC 6376 §5.4.2).
fn choose<'m>(fields: &[Field<'m>]) -> (Vec<&'static str>, Vec<Field<'m>>) {
    let (mut names, mut chosen) = (Vec::new(), Vec::new());
    for name in SIGNED {
        for field in fields.iter().rev().filter(|field| field.is_named(name)) {
            names.push(name);
            chosen.push(*field);
        }
        if SEALED.contains(&name) {
            names.push(name);
        }
    }
    (names, chosen)
}

/// The header up to `b=`, folded.
fn header(key: &SigningKey, names: &[&str], body: &str, at: DateTime<Utc>) -> String {
    let (begun, ended) = (at.timestamp(), at.timestamp() + VALID_SECONDS);
    let mut header = format!(
        "DKIM-Signature: v=1; a={}; c=relaxed/relaxed;\r\n\td={}; s={};\r\n\tt={begun}; x={ended};\r\n\th=",
        key.algorithm(),
        key.domain(),
        key.selector()
    );
    let mut column = 3;
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            header.push(':');
            column += 1;
            if column + name.len() > LINE_CHARS {
                header.push_str("\r\n\t ");
                column = 2;
            }
        }
        header.push_str(name);
        column += name.len();
    }
    header.push_str(&format!(";\r\n\tbh={body};\r\n\tb="));
    header
}
