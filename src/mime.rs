//! A rendered mail becomes the bytes of a message (RFC 5322, MIME). The only door to mail-builder. Pure: no I/O, no clock.
//!
//! ```text
//! multipart/mixed                when there are files
//!   multipart/related            when there are images that the HTML shows
//!     multipart/alternative
//!       text/plain
//!       text/html
//!     image/png ...
//!   application/pdf ...
//! ```
//!
//! Invariants, checked on the finished bytes before they are handed out ([`MimeError::Unsound`]):
//! - every line ends in CRLF, and there is no CR or LF elsewhere: nothing can end the message or smuggle in a command;
//! - no line is longer than 998 octets, and all is 7-bit (but for addresses that need SMTPUTF8);
//! - a name, a subject, a file name or a variable can never become a header;
//! - what is signed are the bytes that go out: nothing is changed after it.

use std::{borrow::Cow, sync::Arc};

use chrono::{DateTime, Utc};
use mail_builder::{
    MessageBuilder,
    headers::{HeaderType, address::Address, content_type::ContentType, date::Date, message_id::MessageId, raw::Raw},
    mime::{BodyPart, MimePart},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::email::{EmailAddress, Lane, attachment::is_content_id, feedback::Mark};

/// Signatures.
pub mod dkim;

/// Texts as headers write them.
mod words;

#[cfg(test)]
mod tests;

use dkim::{KeyError, SigningKey};
use words::{ascii_file_name, encoded_words, is_encoded_word_like, one_line};

/// Longest line, without its CRLF (RFC 5322 §2.1.1).
const LINE_BYTES_MAX: usize = 998;
/// Longest word of a header that we write ourselves: it cannot be folded.
const WORD_BYTES_MAX: usize = 900;

/// Everything a message is made of.
#[derive(Debug, Clone)]
pub struct MessageParts<'a> {
    /// Also the envelope sender.
    pub from: &'a EmailAddress,
    /// Shown instead of it.
    pub from_name: Option<&'a str>,
    /// The one recipient.
    pub to: &'a EmailAddress,
    /// Shown instead of it.
    pub to_name: Option<&'a str>,
    /// Where answers go.
    pub reply_to: Option<&'a EmailAddress>,
    /// One line.
    pub subject: &'a str,
    /// A whole document.
    pub html: &'a str,
    /// The same as text.
    pub text: &'a str,
    /// In the order of the request.
    pub files: &'a [FilePart<'a>],
    /// `left@right`, without angle brackets.
    pub message_id: &'a str,
    /// When it is sent.
    pub date: DateTime<Utc>,
    /// The row of this recipient: how an event of the relay's finds its way back.
    pub row_id: Uuid,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// The producer's id.
    pub request_id: Uuid,
    /// Which template made it.
    pub template_key: &'a str,
    /// Which version of it.
    pub template_version: i32,
    /// The lane it travelled in.
    pub lane: Lane,
    /// Says `Auto-Submitted: auto-generated` (RFC 3834), so that nobody's holiday notice answers.
    pub auto_submitted: bool,
    /// More headers: `List-Unsubscribe`, `X-SES-MESSAGE-TAGS`. Printable ASCII.
    pub extra: &'a [(&'a str, &'a str)],
    /// Keys that sign it (DKIM), each with a signature of its own, made at `date`.
    pub keys: &'a [Arc<SigningKey>],
}

/// A file of the message.
#[derive(Debug, Clone, Copy)]
pub struct FilePart<'a> {
    /// Cleaned.
    pub file_name: &'a str,
    /// Lower case, without parameters.
    pub content_type: &'a str,
    /// The file.
    pub bytes: &'a [u8],
    /// Set for an image that the HTML shows by `cid:`.
    pub content_id: Option<&'a str>,
}

/// Why no message can be made of these parts. The same parts fail again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MimeError {
    /// Not `left@right` in printable ASCII.
    #[error("the Message-ID is not of the form left@right")]
    MessageId,
    /// A header's name or value is not printable ASCII, or has a word that no line can hold.
    #[error("the value of header {0} cannot be written")]
    Header(String),
    /// A content type that is not `type/subtype`.
    #[error("attachment \"{file_name}\": its content type cannot be written")]
    ContentType {
        /// Which file.
        file_name: String,
    },
    /// A content id that is not printable ASCII without blanks and angle brackets.
    #[error("attachment \"{file_name}\": its content id cannot be written")]
    ContentId {
        /// Which file.
        file_name: String,
    },
    /// It cannot be signed.
    #[error("the DKIM key {0}")]
    Key(#[from] KeyError),
    /// The finished bytes break a rule that every message must keep. A fault of ours.
    #[error("the message would not be sound: {0}")]
    Unsound(&'static str),
}

/// Makes the bytes of a message: the same bytes for the same parts.
///
/// # Errors
/// See [`MimeError`].
pub fn build(parts: &MessageParts<'_>) -> Result<Vec<u8>, MimeError> {
    // A Message-ID has the form of a content id, and two sides.
    if !is_content_id(parts.message_id) || !parts.message_id.contains('@') {
        return Err(MimeError::MessageId);
    }
    let mut message = MessageBuilder::new()
        .header("Date", Date::new(parts.date.timestamp()))
        .header("From", mailbox(parts.from, parts.from_name))
        .header("To", mailbox(parts.to, parts.to_name));
    if let Some(reply_to) = parts.reply_to {
        message = message.header("Reply-To", mailbox(reply_to, None));
    }
    message =
        message.header("Subject", unstructured(parts.subject)).header("Message-ID", MessageId::new(parts.message_id));
    if parts.auto_submitted {
        message = message.header("Auto-Submitted", Raw::new("auto-generated"));
    }
    let own = [
        (Mark::HEADER, Mark { row_id: parts.row_id, attempt: parts.attempt }.header()),
        ("X-Postrider-Request", parts.request_id.to_string()),
        ("X-Postrider-Template", format!("{}/{}", parts.template_key, parts.template_version)),
        ("X-Postrider-Lane", parts.lane.name().to_owned()),
    ];
    for (name, value) in own.iter().map(|(name, value)| (*name, value.as_str())).chain(parts.extra.iter().copied()) {
        if !is_header(name, value) {
            return Err(MimeError::Header(name.chars().filter(char::is_ascii_graphic).take(100).collect()));
        }
        message = message.header(name, Raw::new(value));
    }
    let html = clean_body(parts.html);
    let text = clean_body(parts.text);
    let boundary = boundary(parts, &html, &text);
    let body = body(&html, &text, parts.files, &boundary)?;
    let mut bytes = Vec::new();
    message.body(body).serialize(&mut bytes);
    let eight_bit = [Some(parts.from), Some(parts.to), parts.reply_to].iter().flatten().any(|a| a.needs_smtputf8());
    check(&bytes, eight_bit)?;
    if parts.keys.is_empty() {
        return Ok(bytes);
    }
    let mut signed = dkim::signatures(&bytes, parts.keys.iter().map(AsRef::as_ref), parts.date)?;
    signed.append(&mut bytes);
    Ok(signed)
}

fn body<'x>(html: &'x str, text: &'x str, files: &[FilePart<'x>], boundary: &str) -> Result<MimePart<'x>, MimeError> {
    let leaf = |kind: &'static str, content: &'x str| {
        MimePart::new(ContentType::new(kind).attribute("charset", "utf-8"), BodyPart::from(content))
    };
    let mut body = multipart("alternative", boundary, vec![leaf("text/plain", text), leaf("text/html", html)]);
    for (kind, inline) in [("related", true), ("mixed", false)] {
        let mut children = Vec::with_capacity(1 + files.len());
        for file in files.iter().filter(|file| file.content_id.is_some() == inline) {
            children.push(file_part(file)?);
        }
        if !children.is_empty() {
            children.insert(0, body);
            body = multipart(kind, boundary, children);
        }
    }
    Ok(body)
}

fn multipart<'x>(kind: &str, boundary: &str, children: Vec<MimePart<'x>>) -> MimePart<'x> {
    let mut content_type =
        ContentType::new(format!("multipart/{kind}")).attribute("boundary", format!("{boundary}_{}", &kind[..1]));
    if kind == "related" {
        content_type = content_type.attribute("type", "multipart/alternative");
    }
    MimePart::new(content_type, children)
}

/// A file, always in base64: its bytes pass unchanged whatever they are, and no line of them can look like a command.
fn file_part<'x>(file: &FilePart<'x>) -> Result<MimePart<'x>, MimeError> {
    let file_name = || file.file_name.to_owned();
    let is_token =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-_".contains(&b));
    if file.content_type.len() > 100
        || !file.content_type.split_once('/').is_some_and(|(a, b)| is_token(a) && is_token(b))
    {
        return Err(MimeError::ContentType { file_name: file_name() });
    }
    let charset = if file.content_type == "text/csv" { "; charset=utf-8" } else { "" };
    let disposition = ContentType::new(if file.content_id.is_some() { "inline" } else { "attachment" });
    let name = one_line(file.file_name);
    // For readers that do not know RFC 2231: a second file name beside the first would be a defect of the header.
    let plain = if name.is_ascii() { String::new() } else { format!("; name=\"{}\"", ascii_file_name(&name)) };
    let disposition = disposition.attribute("filename", name);
    // A raw header keeps the builder from choosing 7bit for files that are text.
    let mut part = MimePart::raw(BodyPart::from(file.bytes))
        .header("Content-Type", Raw::new(format!("{}{charset}{plain}", file.content_type)))
        .header("Content-Disposition", disposition);
    if let Some(id) = file.content_id {
        if !is_content_id(id) {
            return Err(MimeError::ContentId { file_name: file_name() });
        }
        part = part.cid(id);
    }
    Ok(part)
}

fn mailbox<'x>(address: &'x EmailAddress, name: Option<&'x str>) -> HeaderType<'x> {
    let name = name.map(one_line).filter(|name| !name.is_empty());
    match name {
        Some(name) if is_encoded_word_like(&name) => {
            Raw::new(format!("{} <{}>", encoded_words(&name), address.as_str())).into()
        }
        name => Address::new_address(name, address.as_str()).into(),
    }
}

fn unstructured(text: &str) -> HeaderType<'_> {
    let text = one_line(text);
    if is_encoded_word_like(&text) {
        Raw::new(encoded_words(&text)).into()
    } else {
        mail_builder::headers::text::Text::new(text).into()
    }
}

/// A boundary that no part contains: encoded parts cannot hold `=_`, and it is looked for in those that are not encoded.
fn boundary(parts: &MessageParts<'_>, html: &str, text: &str) -> String {
    let mut round = 0_u32;
    loop {
        let mut hash = Sha256::new_with_prefix(b"postrider boundary");
        hash.update(parts.message_id);
        hash.update(parts.row_id);
        hash.update(parts.attempt.to_be_bytes());
        hash.update(round.to_be_bytes());
        let boundary = format!("=_{}", hex::encode(&hash.finalize()[..16]));
        if !html.contains(&boundary) && !text.contains(&boundary) {
            return boundary;
        }
        round += 1;
    }
}

/// A body as it travels: CRLF at the ends of its lines whatever it had, and no other control character but tabs.
fn clean_body(text: &str) -> String {
    let is_odd = |b: u8| (b < b' ' && b != b'\n' && b != b'\t') || b == 0x7F;
    let text = if text.bytes().any(is_odd) {
        let unified = text.replace("\r\n", "\n").replace('\r', "\n");
        Cow::Owned(unified.chars().filter(|&c| !(c.is_ascii() && is_odd(c as u8))).collect::<String>())
    } else {
        Cow::Borrowed(text)
    };
    let mut body = String::with_capacity(text.len() + text.len() / 32);
    for line in text.split_inclusive('\n') {
        match line.strip_suffix('\n') {
            Some(line) => body.extend([line, "\r\n"]),
            None => body.push_str(line),
        }
    }
    body
}

fn is_header(name: &str, value: &str) -> bool {
    let name_is_sound = (1..=70).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    name_is_sound
        && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        && value.split(' ').all(|word| word.len() <= WORD_BYTES_MAX)
        && value.trim() == value
}

/// The rules that every message must keep, on the bytes as they go out.
fn check(bytes: &[u8], eight_bit: bool) -> Result<(), MimeError> {
    if !eight_bit && !bytes.is_ascii() {
        return Err(MimeError::Unsound("a byte that is not ASCII"));
    }
    let Some(lines) = bytes.strip_suffix(b"\n") else {
        return Err(MimeError::Unsound("the last line does not end"));
    };
    for line in lines.split(|&b| b == b'\n') {
        match line.strip_suffix(b"\r") {
            None => return Err(MimeError::Unsound("a line feed without a carriage return")),
            Some(line) if line.contains(&b'\r') => {
                return Err(MimeError::Unsound("a carriage return without a line feed"));
            }
            Some(line) if line.contains(&0) => return Err(MimeError::Unsound("a NUL character")),
            Some(line) if line.len() > LINE_BYTES_MAX => return Err(MimeError::Unsound("a line that is too long")),
            Some(_) => {}
        }
    }
    Ok(())
}
