//! What the relay answered: bytes become replies (RFC 5321 §4.2), and a report becomes an outcome.
//!
//! Invariant: replies are bytes; text that is not UTF-8 changes nothing about what the code means.
//! Invariant: a reply is complete and consistent (every line with the same code, the last one marked as last), or it is no reply.
//! Invariant: [`classify`] and [`refuses_address`] are pure, and every row of their tables has a test.

use bytes::BytesMut;

use crate::email::{EmailAddress, LinkFault, Outcome, Phase, Reply, SendReport};

/// Longest line that is read. RFC 5321 §4.5.3.1.5 allows 512 octets; real relays go further.
const LINE_BYTES_MAX: usize = 4096;
/// Most lines in one reply.
const LINES_MAX: usize = 128;
/// Longest text kept, in characters.
const TEXT_CHARS_MAX: usize = 500;

/// A complete reply as it came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawReply {
    pub(super) code: u16,
    pub(super) lines: Vec<Vec<u8>>,
}

/// Gathers the lines of one reply after another.
#[derive(Debug, Default)]
pub(super) struct ReplyParser {
    code: u16,
    lines: Vec<Vec<u8>>,
}

impl ReplyParser {
    /// Takes one whole reply off the front of `incoming`, or nothing when more bytes are needed.
    ///
    /// After an error the stream is out of step: nothing more may be read from it.
    pub(super) fn take(&mut self, incoming: &mut BytesMut) -> Result<Option<RawReply>, LinkFault> {
        loop {
            let Some(end) = incoming.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') else {
                return if incoming.len() >= LINE_BYTES_MAX { Err(LinkFault::BadReply) } else { Ok(None) };
            };
            let line = incoming.split_to(end + 1);
            let line = line.strip_suffix(b"\r\n").unwrap_or(&line[..end]);
            let (code, is_last, text) = read_line(line).ok_or(LinkFault::BadReply)?;
            if !self.lines.is_empty() && code != self.code || self.lines.len() == LINES_MAX {
                return Err(LinkFault::BadReply);
            }
            self.code = code;
            self.lines.push(text.to_vec());
            if is_last {
                return Ok(Some(RawReply { code, lines: std::mem::take(&mut self.lines) }));
            }
        }
    }

    /// Whether part of a reply has been read.
    pub(super) fn is_midway(&self) -> bool {
        !self.lines.is_empty()
    }
}

/// `250-text` or `250 text` or `250`.
fn read_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0_u16, |code, digit| code * 10 + u16::from(digit - b'0'));
    if !(200..600).contains(&code) {
        return None;
    }
    match rest.split_first() {
        None => Some((code, true, &[])),
        Some((b' ', text)) => Some((code, true, text)),
        Some((b'-', text)) => Some((code, false, text)),
        Some(_) => None,
    }
}

impl RawReply {
    /// The reply in our words. Relays like to repeat the recipient: what is `hidden` is masked before anybody keeps it.
    pub(super) fn to_reply(&self, hidden: Option<&EmailAddress>) -> Reply {
        let mut texts: Vec<String> = self.lines.iter().map(|line| printable(line)).collect();
        let enhanced = texts.first().and_then(|text| enhanced_status(self.code, text));
        if enhanced.is_some() {
            // Relays repeat the status on every line; once is enough.
            for text in &mut texts[1..] {
                if enhanced_status(self.code, text) == enhanced {
                    *text = text.split_once(' ').map_or("", |(_, rest)| rest).to_owned();
                }
            }
        }
        texts.retain(|text| !text.is_empty());
        let mut text = texts.join(" ");
        if let Some(address) = hidden {
            text = mask(&text, address);
        }
        Reply { code: self.code, enhanced, text: text.chars().take(TEXT_CHARS_MAX).collect() }
    }
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned()
}

/// `5.1.1 text`: only where its class agrees with the code (RFC 2034 §4).
fn enhanced_status(code: u16, text: &str) -> Option<(u8, u16, u16)> {
    let mut parts = text.split(' ').next()?.split('.');
    let mut part =
        || parts.next().filter(|p| p.len() <= 3 && p.bytes().all(|b| b.is_ascii_digit()))?.parse::<u16>().ok();
    let (class, subject, detail) = (part()?, part()?, part()?);
    let class = u8::try_from(class).ok()?;
    (parts.next().is_none() && u16::from(class) == code / 100).then_some((class, subject, detail))
}

fn mask(text: &str, address: &EmailAddress) -> String {
    // Lower-casing ASCII only keeps every byte where it was.
    let (lower, needle) = (text.to_ascii_lowercase(), address.as_str().to_ascii_lowercase());
    let (mut masked, mut from) = (String::with_capacity(text.len()), 0);
    while let Some(at) = lower[from..].find(&needle) {
        masked.push_str(&text[from..from + at]);
        masked.push_str(&address.masked());
        from += at + needle.len();
    }
    masked.push_str(&text[from..]);
    masked
}

/// What one attempt means for its recipient.
///
/// A fault of the platform (throttling, a relay that closes, credentials that it wants) never burns a try.
#[must_use]
pub fn classify(report: &SendReport) -> Outcome {
    match report {
        SendReport::Accepted { reply } => Outcome::Sent { reply: reply.clone() },
        SendReport::Refused { phase, reply } => refused(*phase, reply),
        SendReport::Broken { phase, fault } => broken(*phase, fault),
        SendReport::NotCapable { missing } => Outcome::Rejected {
            phase: Phase::Mail,
            reply: None,
            error: told(format!("the relay cannot carry this mail: {missing}")),
        },
        SendReport::Withdrawn { why } => Outcome::Deferred {
            phase: Phase::Mail,
            reply: None,
            error: told(format!("not begun: {why}")),
            counted: false,
        },
    }
}

fn refused(phase: Phase, reply: &Reply) -> Outcome {
    let error = told(format!("{phase}: {}", reply.line()));
    let deferred = |counted| Outcome::Deferred { phase, reply: Some(reply.clone()), error: error.clone(), counted };
    match reply.code {
        421 => deferred(false),
        400..=499 => deferred(!is_throttling(reply)),
        // It wants credentials, or TLS: settings are wrong, not the mail. After the content the code cannot mean that.
        530 | 534 | 535 | 538 if phase < Phase::Content => deferred(false),
        500.. => Outcome::Rejected { phase, reply: Some(reply.clone()), error },
        // No transaction reports a positive reply as a refusal; should one ever, it is read as a link out of step.
        _ => broken(phase, &LinkFault::BadReply),
    }
}

fn broken(phase: Phase, fault: &LinkFault) -> Outcome {
    let error = told(format!("{phase}: {fault}"));
    match phase {
        Phase::Connect | Phase::Greeting | Phase::Ehlo | Phase::StartTls | Phase::Auth | Phase::Mail => {
            Outcome::Deferred { phase, reply: None, error, counted: false }
        }
        Phase::Rcpt | Phase::Data | Phase::Content => Outcome::Deferred { phase, reply: None, error, counted: true },
        Phase::FinalDot => Outcome::Unknown { error },
    }
}

/// Whether the relay has said that no mail will ever reach this address: a 5xx to RCPT whose status (RFC 3463 and its registry)
/// speaks of the mailbox itself.
///
/// Deliberately not: a code without a status; 5.1.2 (a resolver that fails says so of everybody); 5.2.2 (full) and 5.2.3; 5.4.x
/// (routing); 5.7.x (policy, and our own relay refusing us); anything after RCPT, which is about the content.
#[must_use]
pub fn refuses_address(outcome: &Outcome) -> bool {
    let Outcome::Rejected { phase: Phase::Rcpt, reply: Some(reply), .. } = outcome else { return false };
    match reply.enhanced {
        // No such mailbox; not an address at all; moved, nobody knows where to; a domain that takes no mail (RFC 7505).
        Some((5, 1, 1 | 3 | 6 | 10)) => true,
        // Disabled; some providers say the same of a mailbox that gets too much at the moment.
        Some((5, 2, 1)) => !speaks_of_rates(reply),
        _ => false,
    }
}

/// A 4xx that speaks of us as a sender, not of this mail: 454, 4.7.x, or words about rates.
fn is_throttling(reply: &Reply) -> bool {
    reply.code == 454 || matches!(reply.enhanced, Some((4, 7, _))) || speaks_of_rates(reply)
}

fn speaks_of_rates(reply: &Reply) -> bool {
    reply.text.split(|c: char| !c.is_alphanumeric()).any(|word| {
        let word = word.to_ascii_lowercase();
        word == "rate" || word == "rates" || word == "ratelimit" || word == "ratelimited" || word.starts_with("throttl")
    })
}

/// What a mail's fate says about the relay, apart from its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lesson {
    /// It took the mail.
    Took,
    /// It refused the mail for good: it works.
    Refused,
    /// It put the mail off, or hung up on it.
    PutOff,
    /// It is being given more than it wants.
    Throttles,
    /// Nothing.
    Nothing,
}

/// What a mail's fate says about the relay.
pub(super) fn lesson(report: &SendReport) -> Lesson {
    match report {
        SendReport::Accepted { .. } => Lesson::Took,
        SendReport::Refused { .. } if wants_other_settings(report) => Lesson::Nothing,
        // Greylisting is about one sender and one recipient, whatever its code.
        SendReport::Refused { reply, .. } if reply.code < 500 && is_greylisting(reply) => Lesson::Nothing,
        // At MAIL this is how a relay ends a connection that has grown old.
        SendReport::Refused { phase, reply } if reply.code == 421 => {
            if *phase > Phase::Mail || is_throttling(reply) {
                Lesson::Throttles
            } else {
                Lesson::Nothing
            }
        }
        SendReport::Refused { reply, .. } => match reply.code {
            500.. => Lesson::Refused,
            400..=499 if is_throttling(reply) => Lesson::Throttles,
            400..=499 => Lesson::PutOff,
            _ => Lesson::Nothing,
        },
        SendReport::Broken { phase: Phase::Rcpt | Phase::Data | Phase::Content, .. } => Lesson::PutOff,
        SendReport::Broken { .. } | SendReport::NotCapable { .. } | SendReport::Withdrawn { .. } => Lesson::Nothing,
    }
}

fn is_greylisting(reply: &Reply) -> bool {
    let text = reply.text.to_ascii_lowercase();
    ["greylist", "graylist", "grey-list", "gray-list"].iter().any(|word| text.contains(word))
}

/// The relay wants credentials or TLS that our settings do not give it.
pub(super) fn wants_other_settings(report: &SendReport) -> bool {
    matches!(report, SendReport::Refused { phase, reply } if *phase < Phase::Content && matches!(reply.code, 530 | 534 | 535 | 538))
}

fn told(text: String) -> String {
    if text.chars().count() <= TEXT_CHARS_MAX { text } else { text.chars().take(TEXT_CHARS_MAX).collect() }
}

#[cfg(test)]
mod tests;
