//! Requests: decoded, rendered by the repository's templates, built as mails, and read back by a parser that is not ours.
//!
//! Holds: a mail has exactly the headers, the recipient, the words and the files that were meant; a refusal says why in a line
//! of bounded length; whatever was refused in one encoding is not taken in the other.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use mail_parser::{MessageParser, MimeHeaders};
use postrider::{
    config::{Environment, PipelineConfig, Settings},
    email::{Attachment, AttachmentContent, EmailAddress, EmailRequest, Envelope, attachment::check_attachment},
    mime::{self, FilePart, MessageParts},
    pipeline::decode::decode,
    smtp::OutgoingMail,
    templates::{AttachedFile, CompiledTemplate, System},
    wire,
};
use proptest::{prelude::*, sample::select};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    change::{changed_bytes, changed_json},
    drive::{Came, Subject},
    support::requests,
};

/// Headers of every mail, in the order in which we write them.
const HEADERS: [&str; 13] = [
    "Date",
    "From",
    "To",
    "Reply-To",
    "Subject",
    "Message-ID",
    "Auto-Submitted",
    "X-Postrider-Message",
    "X-Postrider-Request",
    "X-Postrider-Template",
    "X-Postrider-Lane",
    "MIME-Version",
    "Content-Type",
];
/// Longest refusal, in characters: it becomes a header of the dead letter.
const WORDS_MAX: usize = 1000;
/// Recipients that a mail is built for: the others differ in nothing.
const BUILT_MAX: usize = 3;
/// Largest mail of a rendered part and files of this size.
const PART_BYTES_MAX: usize = 1024 * 1024;

/// A message as the broker would deliver it.
#[derive(Debug, Clone)]
pub struct Message {
    content_type: Option<String>,
    routing_key: String,
    body: Body,
}

#[derive(Clone)]
struct Body(Vec<u8>);

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// What reads requests, and the templates.
pub struct Mails {
    planted: bool,
    rules: PipelineConfig,
    templates: BTreeMap<String, CompiledTemplate>,
    from: EmailAddress,
    now: DateTime<Utc>,
    requests: Vec<Value>,
}

impl Mails {
    pub fn new(planted: bool) -> Self {
        let nothing = Environment::from_iter(std::iter::empty::<(String, String)>());
        let sources = requests::templates();
        let compiled = sources.iter().map(|source| {
            let template = CompiledTemplate::compile(source, 1, 3).expect("the repository's templates compile");
            (source.key.clone(), template)
        });
        let samples = sources.iter().map(|source| {
            let request = requests::sample(&source.key, &["ada@example.bj", "kofi@example.bj"]);
            wire::to_json(&request)
        });
        let written = [include_str!("../corpus/mail/whole.json"), include_str!("../corpus/mail/least.json")];
        let written = written.into_iter().map(|text| serde_json::from_str(text).expect("JSON"));
        Self {
            planted,
            rules: Settings::read(&nothing, None).pipeline().expect("the defaults are sound"),
            templates: compiled.collect(),
            from: EmailAddress::parse("noreply@rgz.bj").expect("an address"),
            now: DateTime::from_timestamp(1_795_000_000, 0).expect("a time"),
            requests: samples.chain(written).collect(),
        }
    }

    fn envelope(message: &Message) -> Envelope {
        Envelope { content_type: message.content_type.clone(), ..Envelope::of_nobody(&message.routing_key) }
    }

    fn check_request(request: &EmailRequest) -> Result<(), String> {
        let odd = |text: &str| text.chars().any(char::is_control);
        holds(!request.recipients.is_empty() && request.recipients.len() <= 100, "1 to 100 recipients")?;
        for recipient in &request.recipients {
            holds(!recipient.display_name.as_deref().is_some_and(odd), "no control character in a name")?;
            holds(!odd(recipient.shown()), "no control character in an address")?;
        }
        let mut keys: Vec<String> = request.recipients.iter().map(postrider::email::Recipient::key).collect();
        keys.sort();
        keys.dedup();
        holds(keys.len() == request.recipients.len(), "equal recipients are one")?;
        for file in &request.attachments {
            let name = &file.file_name;
            holds(!name.is_empty() && !odd(name) && !name.contains(['/', '\\']), "a clean file name")?;
        }
        let variables = serde_json::to_string(&request.variables).unwrap_or_default();
        holds(!variables.contains("\\u0000"), "no NUL in a variable")
    }

    fn files<'a>(&self, attachments: &'a [Attachment]) -> Option<Vec<FilePart<'a>>> {
        let part = |file: &'a Attachment| {
            let AttachmentContent::Inline { bytes, .. } = &file.content else { return None };
            let (types, bytes_max) = (&self.rules.attachment_types, self.rules.attachment_bytes_max);
            check_attachment(&file.file_name, &file.content_type, bytes, types, bytes_max).ok()?;
            Some(FilePart {
                file_name: &file.file_name,
                content_type: &file.content_type,
                bytes,
                content_id: file.content_id.as_deref(),
            })
        };
        attachments.iter().map(part).collect()
    }

    /// The code under test; where a fault is planted, some names become a header.
    fn build(&self, parts: &MessageParts<'_>) -> Result<Vec<u8>, mime::MimeError> {
        let mut built = mime::build(parts)?;
        if self.planted && parts.to_name.is_some_and(|name| name.contains('<')) {
            let end = built.windows(2).position(|two| two == b"\r\n").unwrap_or_default();
            built.splice(end..end, *b"\r\nX-Planted: 1");
        }
        Ok(built)
    }

    fn check_mail(parts: &MessageParts<'_>, built: &[u8]) -> Result<(), String> {
        let size: usize = parts.files.iter().map(|file| file.bytes.len()).sum();
        holds(built.len() < 2 * (2 * PART_BYTES_MAX + size) + 64 * 1024, "a mail as large as what is in it")?;
        let end = built.windows(4).position(|four| four == b"\r\n\r\n").ok_or("there is no end of the head")?;
        let head = String::from_utf8_lossy(&built[..end]);
        let names: Vec<&str> = head
            .split("\r\n")
            .filter(|line| !line.starts_with([' ', '\t']))
            .map(|line| line.split(':').next().unwrap_or_default())
            .collect();
        if names != HEADERS {
            return Err(format!("the headers are {names:?}"));
        }
        let mail = MessageParser::new().parse(built).ok_or("it cannot be parsed")?;
        holds(mail.headers().len() == HEADERS.len(), "the parser finds the same headers")?;
        holds(mail.subject().map(squeezed) == Some(squeezed(parts.subject)), "the subject that was meant")?;
        let to = mail.to().ok_or("there is no To")?.clone().into_list();
        let [to] = to.as_slice() else { return Err(format!("To names {} people", to.len())) };
        holds(to.address() == Some(parts.to.as_str()), "the recipient that was meant")?;
        holds(
            to.name().map(squeezed).unwrap_or_default() == squeezed(parts.to_name.unwrap_or_default()),
            "the name that was meant",
        )?;
        let said = |part: Option<std::borrow::Cow<'_, str>>, meant: &str| {
            part.is_some_and(|part| visible(&part) == visible(meant))
        };
        holds(said(mail.body_text(0), parts.text), "the text that was meant")?;
        holds(said(mail.body_html(0), parts.html), "the HTML that was meant")?;
        let multiparts = 1
            + usize::from(parts.files.iter().any(|file| file.content_id.is_some()))
            + usize::from(parts.files.iter().any(|file| file.content_id.is_none()));
        holds(mail.parts.len() == multiparts + 2 + parts.files.len(), "no part that was not meant")?;
        let mut meant: Vec<&FilePart<'_>> = parts.files.iter().collect();
        meant.sort_by_key(|file| file.content_id.is_none());
        let found = mail.parts.iter().filter(|part| part.attachment_name().is_some());
        for (file, part) in meant.iter().zip(found) {
            holds(
                part.attachment_name().map(squeezed) == Some(squeezed(file.file_name)),
                "the file name that was meant",
            )?;
            holds(part.contents() == file.bytes, "the file that was meant")?;
        }
        Ok(())
    }

    fn check_refusal(words: &str) -> Result<Came, String> {
        holds(!words.is_empty(), "a refusal says why")?;
        if words.chars().count() > WORDS_MAX {
            return Err(format!("a refusal has {} characters", words.chars().count()));
        }
        match words.chars().find(|c| c.is_control()) {
            Some(c) => Err(format!("a refusal holds U+{:04X}", u32::from(c))),
            None => Ok(Came::Refused),
        }
    }
}

impl Subject for Mails {
    type Input = Message;

    fn inputs(&self) -> BoxedStrategy<Message> {
        let texts: Vec<Vec<u8>> = self.requests.iter().map(|request| request.to_string().into_bytes()).collect();
        let encoded = |request: &Value| wire::from_json(request.to_string().as_bytes()).map(|r| wire::to_protobuf(&r));
        let binary: Vec<Vec<u8>> =
            self.requests.iter().map(|request| encoded(request).expect("a sound request").to_vec()).collect();
        let json = |body: Vec<u8>| (Some(wire::JSON.to_owned()), body);
        let protobuf = |body: Vec<u8>| (Some(wire::PROTOBUF.to_owned()), body);
        let body = prop_oneof![
            6 => (changed_json(self.requests.clone()), any::<bool>()).prop_map(move |(request, as_json)| {
                match encoded(&request) {
                    Ok(encoded) if !as_json => protobuf(encoded.to_vec()),
                    _ => json(request.to_string().into_bytes()),
                }
            }),
            2 => changed_bytes(texts, &["{", "}", "[", "]", "\"", ":", ",", "\\u0000", "\\ud800", "1e999"]).prop_map(json),
            2 => changed_bytes(binary, &["\u{8}", "\u{12}", "\u{1a}"]).prop_map(protobuf),
        ];
        let key = prop_oneof![8 => Just("billing.p2".to_owned()), 1 => select(vec!["email.retry", "", "x", "a.b.c", "incident.p0"]).prop_map(str::to_owned)];
        (body, key, 0..20_u8)
            .prop_map(|((content_type, body), routing_key, odds)| Message {
                content_type: if odds == 0 { None } else { content_type },
                routing_key,
                body: Body(body),
            })
            .boxed()
    }

    fn judge(&mut self, message: &Message) -> Result<Came, String> {
        let body = Bytes::from(message.body.0.clone());
        let decoded = match decode(&Self::envelope(message), &body, &self.rules, self.now) {
            Ok(decoded) => decoded,
            Err(malformed) => return Self::check_refusal(&malformed.to_string()),
        };
        let request = &decoded.request;
        Self::check_request(request)?;
        let Some(template) = self.templates.get(&request.template_key) else { return Ok(Came::Refused) };
        let Some(files) = self.files(&request.attachments) else { return Ok(Came::Refused) };
        let attached: Vec<AttachedFile<'_>> = files
            .iter()
            .map(|file| AttachedFile { file_name: file.file_name, content_type: file.content_type })
            .collect();
        let system = System {
            request_date: decoded.published_at,
            attachments: &attached,
            support_email: Some("support@rgz.bj"),
            support_phone: None,
            timezone: chrono_tz::Africa::PortoNovo,
            locale: request.locale.as_deref().unwrap_or("fr"),
            unsubscribe_url: template.manifest().example_unsubscribe_url(),
        };
        let mail = match template.render(&request.variables, &system) {
            Ok(mail) => mail,
            Err(error) => return Self::check_refusal(&error.to_string()),
        };
        holds(mail.subject.len() <= 998 && !mail.subject.contains(['\r', '\n', '\0']), "a subject of one line")?;
        holds(mail.html.len() <= PART_BYTES_MAX && mail.text.len() <= PART_BYTES_MAX, "parts of at most 1 MiB")?;
        holds(!mail.html.contains("<x-pwn"), "no element that a variable made")?;
        let reply_to = request.reply_to.clone().unwrap_or_else(|| self.from.clone());
        let mut came = Came::Refused;
        for recipient in request.recipients.iter().take(BUILT_MAX) {
            let Ok(to) = &recipient.address else { continue };
            let parts = MessageParts {
                from: &self.from,
                from_name: Some("RGZ Notifications"),
                to,
                to_name: recipient.display_name.as_deref(),
                reply_to: Some(&reply_to),
                subject: &mail.subject,
                html: &mail.html,
                text: &mail.text,
                files: &files,
                message_id: "0190-1@rgz.bj",
                date: self.now,
                row_id: Uuid::nil(),
                attempt: 1,
                request_id: request.id,
                template_key: &request.template_key,
                template_version: 1,
                lane: request.priority.lane(),
                auto_submitted: true,
                extra: &[],
                keys: &[],
            };
            let built = self.build(&parts).map_err(|error| format!("no mail can be made: {error}"))?;
            Self::check_mail(&parts, &built)?;
            drop(OutgoingMail::new(self.from.clone(), to.clone(), built));
            came = Came::AllTheWay;
        }
        // Both encodings say the same.
        let as_json = wire::from_json(&body).or_else(|_| wire::from_protobuf(body.clone()));
        if let Ok(request) = as_json {
            let again = wire::from_json(wire::to_json(&request).to_string().as_bytes());
            let again = again.map_err(|error| format!("not a request in JSON: {error}"))?;
            let (variables, read) = (wire::to_json(&request), wire::to_json(&again));
            holds(alike(&variables["variables"], &read["variables"]), "the same variables in JSON")?;
            let without = |request: wire::EmailRequest| wire::EmailRequest { variables: None, ..request };
            holds(without(again) == without(request), "the same in JSON")?;
        }
        Ok(came)
    }
}

/// What a reader shows of a text: runs of blanks are folding's business.
fn squeezed(text: &str) -> String {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    text.split(odd).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What is left of a body: lines end as they travel, and control characters do not.
fn visible(text: &str) -> String {
    text.replace("\r\n", "\n")
        .replace('\r', "\n")
        .chars()
        .filter(|c| !c.is_ascii_control() || "\n\t".contains(*c))
        .collect()
}

/// Whether these are the same values. Of a fraction with more digits than people write, sixteen or seventeen, or with an exponent,
/// the reader of JSON may miss the last bits, for it rounds up to three times; everything else is exact.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let bits = |number: &serde_json::Number| number.as_f64().map(f64::to_bits);
            let apart = bits(one).zip(bits(other)).map(|(one, other)| one.abs_diff(other));
            one == other || apart.is_some_and(|bits| bits <= 4)
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(name, one)| other.get(name).is_some_and(|other| alike(one, other));
            one.len() == other.len() && one.iter().all(same)
        }
        (one, other) => one == other,
    }
}

fn holds(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("does not hold: {what}")) }
}
