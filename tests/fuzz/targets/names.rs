//! Small texts that become addresses, names, places and lists.
//!
//! Holds: what is read is read the same a second time; an address that is taken is one to other parsers too, and is masked
//! wherever it stands; a cleaned file name is clean; a reference leads nowhere but where the settings say; a file of
//! suppressions that we wrote has no formula in it.

use std::{path::PathBuf, str::FromStr};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use mail_parser::MessageParser;
use postrider::{
    broker::delivery::Original,
    config::AttachmentConfig,
    email::{EmailAddress, Lane, address::mask_all, attachment::clean_file_name},
    objects::reference::{Source, source_of},
    suppression_file::{self, Reading},
};
use proptest::{collection::vec, prelude::*, sample::select};
use sha2::{Digest, Sha256};

use crate::{
    change::{changed_bytes, changed_text, odd_text},
    drive::{Came, Subject},
};

const ADDRESSES: [&str; 8] = [
    "ada@example.bj",
    "Ada.Lovelace+tag@Mail.Example.org",
    "contact@bücher.example",
    "andré@xn--bcher-kva.example",
    "o'neil@a-b.co.uk",
    "x@[192.0.2.1]",
    "\"a b\"@example.bj",
    "a@b@c.dd",
];
const FILE_NAMES: [&str; 7] =
    ["Facture février.pdf", "../../etc/passwd", "C:\\temp\\NUL.tar.gz", ".htaccess", "COM1.csv", "a..pdf", "lpt9"];
const REFERENCES: [&str; 8] = [
    "https://files.rgz.bj/a.pdf?X-Amz-Signature=s#x",
    "https://files.rgz.bj.:443/../a",
    "https://user:pw@files.rgz.bj/a",
    "s3://invoices/2026/a.pdf",
    "s3://invoices/../x",
    "file:///srv/files/2026/a.pdf",
    "file:///srv/files/%2e%2e/%2e%2e/etc/passwd",
    "archive:",
];
const FILES: [&str; 3] = [
    include_str!("../corpus/names/commas.csv"),
    include_str!("../corpus/names/semicolons.csv"),
    "address\r\na@b.cc\r\n",
];
/// Headers that we read.
const HEADERS: [&str; 12] = [
    "x-published-at-ms",
    "x-copy",
    "x-generation",
    "x-crashes",
    "x-pending",
    "x-doubtful",
    "x-template-version",
    "x-replayed-at-ms",
    "x-routing-key",
    "x-try-traceparent",
    "traceparent",
    "x-death",
];
/// Names that Windows keeps for devices, whatever comes behind the first dot.
const DEVICES: [&str; 22] = [
    "con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "lpt1", "lpt2",
    "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9",
];

/// One small text, and what it is read as.
#[derive(Debug, Clone)]
pub enum Small {
    Address(String),
    Masked(String, String, String),
    FileName(String),
    Reference(String),
    Headers(Box<Headers>),
    Suppressions(Vec<u8>),
}

/// Properties of a message.
#[derive(Clone)]
pub struct Headers(BasicProperties);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.headers())
    }
}

/// What reads small texts.
pub struct Names {
    planted: bool,
    allowed: AttachmentConfig,
}

impl Names {
    pub fn new(planted: bool) -> Self {
        let allowed = AttachmentConfig {
            https_hosts: vec!["files.rgz.bj".to_owned()],
            s3_buckets: vec!["invoices".to_owned()],
            folder: Some(PathBuf::from("/srv/files")),
            ..AttachmentConfig::default()
        };
        Self { planted, allowed }
    }

    fn address(text: &str) -> Result<Came, String> {
        let address = match EmailAddress::parse(text) {
            Ok(address) => address,
            Err(error) => {
                let words = error.to_string();
                return if words.is_empty() { Err("a refusal without a word".to_owned()) } else { Ok(Came::Refused) };
            }
        };
        let again = EmailAddress::parse(address.as_str()).map_err(|error| format!("not twice: {error}"))?;
        holds(again == address, "the same when it is read again")?;
        holds(format!("{}@{}", address.local(), address.domain()) == address.as_str(), "its two sides are all of it")?;
        holds(
            address.domain().is_ascii() && address.domain() == address.domain().to_ascii_lowercase(),
            "a domain in ASCII",
        )?;
        // A letter may be longer in lower case, and the part before the @ then too long.
        if let Ok(by_key) = EmailAddress::parse(&address.key()) {
            holds(by_key.key() == address.key(), "one key")?;
        }
        let on_the_wire = format!("RCPT TO:<{}>\r\n", address.as_str());
        holds(on_the_wire.split(['\r', '\n', '<', '>', ' ']).count() == 6, "one command with one path")?;
        let masked = address.masked();
        holds(!masked.contains(address.as_str()) && !address.to_string().contains(address.as_str()), "printed masked")?;
        let head = format!("To: <{}>\r\n\r\n", address.as_str());
        let mail = MessageParser::new().parse(head.as_bytes()).ok_or("another parser does not read it")?;
        let to = mail.to().and_then(|to| to.first()).and_then(|to| to.address());
        if to != Some(address.as_str()) {
            return Err(format!("another parser reads {to:?}"));
        }
        // RFC 6531 §3.3 takes every character beyond ASCII. lettre, which none of our addresses goes through, takes letters and
        // digits; of the others its rule looks for the bytes of UTF-8 in a character's number. They stand for letters here.
        let letter = |c: char| if c.is_ascii() || c.is_alphanumeric() { c } else { 'é' };
        let plain = format!("{}@{}", address.local().chars().map(letter).collect::<String>(), address.domain());
        holds(lettre::Address::from_str(&plain).is_ok(), "an address to lettre too")?;
        Ok(Came::AllTheWay)
    }

    fn masked(before: &str, address: &str, after: &str) -> Result<Came, String> {
        let Ok(address) = EmailAddress::parse(address) else { return Ok(Came::Refused) };
        let text = format!("{before}<{}>{after}", address.as_str());
        let masked = mask_all(&text);
        holds(!masked.contains(address.as_str()), "no address is left in a text")?;
        // Without brackets, whatever it has grown together with.
        let text = format!("{before}{}{after}", address.as_str());
        let masked = mask_all(&text);
        if masked.contains(address.as_str()) {
            return Err(format!("an address is left in {masked:?}"));
        }
        Ok(Came::AllTheWay)
    }

    fn file_name(&self, name: &str) -> Result<Came, String> {
        let mut cleaned = clean_file_name(name);
        if self.planted && name.contains("..\\") {
            cleaned = name.to_owned();
        }
        holds(!cleaned.is_empty() && cleaned.chars().count() <= 255, "1 to 255 characters")?;
        let odd = |c: char| {
            c.is_control()
                || "/\\<>:\"|?*".contains(c)
                || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
        };
        if let Some(c) = cleaned.chars().find(|c| odd(*c)) {
            return Err(format!("a cleaned name holds U+{:04X}", u32::from(c)));
        }
        holds(
            cleaned != "." && cleaned != ".." && !cleaned.starts_with('.'),
            "no name of a folder, and nothing hidden",
        )?;
        holds(!cleaned.ends_with(['.', ' ']), "no end that Windows drops")?;
        let stem = cleaned.split('.').next().unwrap_or_default().trim_end().to_lowercase();
        holds(!DEVICES.contains(&stem.as_str()), "no name of a device")?;
        holds(clean_file_name(&cleaned) == cleaned, "clean once is clean")?;
        Ok(Came::AllTheWay)
    }

    fn reference(&self, uri: &str) -> Result<Came, String> {
        match source_of(uri, &self.allowed) {
            Ok(Source::Https { host, url }) => {
                holds(host == "files.rgz.bj" && url.host_str() == Some("files.rgz.bj"), "an allowed host")?;
                holds(url.scheme() == "https" && url.username().is_empty() && url.fragment().is_none(), "a bare URL")?;
            }
            Ok(Source::S3 { bucket, key }) => {
                holds(bucket == "invoices", "an allowed bucket")?;
                holds(key.as_ref().split('/').all(|part| !matches!(part, "" | "." | "..")), "a key without steps up")?;
            }
            Ok(Source::File { path }) => {
                holds(path.starts_with("/srv/files"), "under the folder")?;
                holds(path.components().all(|part| part.as_os_str() != ".."), "a path without steps up")?;
            }
            Ok(Source::Archive) => holds(uri == "archive:", "our own")?,
            Err(error) => {
                let words = error.to_string();
                holds(words.chars().count() < 400 && !words.contains(char::is_control), "a refusal of one line")?;
                return Ok(Came::Refused);
            }
        }
        Ok(Came::AllTheWay)
    }

    fn headers(Headers(properties): &Headers) -> Result<Came, String> {
        let original =
            Original { exchange: String::new(), routing_key: "billing.p2".to_owned(), properties: properties.clone() };
        let envelope = original.envelope(Lane::Standard, false);
        holds(envelope.generation >= 0 && envelope.copy_no >= 0 && envelope.crashes >= 0, "no count below nothing")?;
        let is_own = properties.headers().as_ref().is_some_and(|headers| headers.contains_key("x-routing-key"));
        holds(envelope.is_copy == is_own, "a copy names the producer's routing key")?;
        holds(is_own || (envelope.pending.is_none() && !envelope.is_doubtful), "a producer's word counts for nothing")?;
        holds(
            original.headers_as_text().iter().all(|(n, v)| !n.contains('\0') && !v.contains('\0')),
            "no NUL is kept",
        )?;
        let copy = original.copy_properties(&[("x-copy", AMQPValue::LongInt(1))]);
        let copied = Original { properties: copy, ..original }.envelope(Lane::Standard, false);
        holds(copied.is_copy && copied.copy_no == 1, "a copy is known as one")?;
        holds(copied.published_at == envelope.published_at, "a copy was published when the original was")?;
        Ok(Came::AllTheWay)
    }

    fn suppressions(bytes: &[u8]) -> Result<Came, String> {
        let hash = |key: &str| Sha256::digest(key).into();
        let contents = suppression_file::read(bytes, &Reading { hash: &hash, source: "fuzz" });
        for fault in &contents.faults {
            let words = fault.to_string();
            holds(!words.is_empty() && words.len() < 400, "a fault of one line")?;
            holds(!words.contains(char::is_control), "a fault without control characters")?;
        }
        if contents.entries.is_empty() {
            return Ok(Came::Refused);
        }
        for entry in &contents.entries {
            let texts =
                [entry.address.as_deref(), entry.note.as_deref(), entry.category.as_deref(), Some(&*entry.source)];
            holds(!texts.into_iter().flatten().any(|text| text.contains('\0')), "nothing that no database takes")?;
        }
        Ok(Came::AllTheWay)
    }
}

fn amqp_value() -> impl Strategy<Value = AMQPValue> {
    prop_oneof![
        odd_text().prop_map(|text| AMQPValue::LongString(text.as_str().into())),
        vec(any::<u8>(), 0..30).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<f64>().prop_map(AMQPValue::Double),
        Just(AMQPValue::Void),
        Just(AMQPValue::FieldTable(FieldTable::default())),
        "[0-9]{1,20}".prop_map(|text| AMQPValue::LongString(text.as_str().into())),
    ]
}

fn headers() -> impl Strategy<Value = Headers> {
    let one = (select(HEADERS.as_slice()), amqp_value());
    (vec(one, 0..8), proptest::option::of(any::<u64>()), odd_text()).prop_map(|(all, timestamp, id)| {
        let mut table = FieldTable::default();
        for (name, value) in all {
            table.insert(ShortString::from(name), value);
        }
        let mut properties = BasicProperties::default().with_headers(table);
        if let Some(timestamp) = timestamp {
            properties = properties.with_timestamp(timestamp);
        }
        // A short string is at most 255 bytes on the wire.
        let id: String = id.chars().take(60).collect();
        Headers(properties.with_message_id(id.as_str().into()))
    })
}

impl Subject for Names {
    type Input = Small;

    fn inputs(&self) -> BoxedStrategy<Small> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let address = || changed_text(owned(&ADDRESSES), &["@", ".", "é", "xn--", "ß", "\u{301}", "İ", "Σ"]);
        prop_oneof![
            3 => address().prop_map(Small::Address),
            2 => (odd_text(), address(), odd_text()).prop_map(|(before, address, after)| Small::Masked(before, address, after)),
            3 => changed_text(owned(&FILE_NAMES), &["/", "\\", ".", "..", " ", "nul", "\u{202E}", "\u{7F}"]).prop_map(Small::FileName),
            3 => changed_text(owned(&REFERENCES), &["/", "..", "%2e", "%2f", "%00", "@", ":", "#", "?", "\\", "//"])
                .prop_map(Small::Reference),
            2 => headers().prop_map(|headers| Small::Headers(Box::new(headers))),
            2 => changed_bytes(
                FILES.iter().map(|file| file.as_bytes().to_vec()).collect(),
                &["\"", "'", ",", ";", "=", "+", "-", "@", "\r\n", "address", "hard_bounce", "\u{FEFF}"],
            )
            .prop_map(Small::Suppressions),
        ]
        .boxed()
    }

    fn judge(&mut self, small: &Small) -> Result<Came, String> {
        match small {
            Small::Address(text) => Self::address(text),
            Small::Masked(before, address, after) => Self::masked(before, address, after),
            Small::FileName(name) => self.file_name(name),
            Small::Reference(uri) => self.reference(uri),
            Small::Headers(headers) => Self::headers(headers),
            Small::Suppressions(bytes) => Self::suppressions(bytes),
        }
    }
}

fn holds(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("does not hold: {what}")) }
}
