//! What a version of a template is made of: everything it needs, so that it renders the same for ever.
//!
//! Invariant: a source is self-contained. The shared partials it uses are copied into it, so a later change of the
//! shared layout makes a new version and leaves the old ones as they were.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Part;

/// Starts the checksum's input, so that another layout of it can never be mistaken for this one.
const CHECKSUM_DOMAIN: &[u8] = b"postrider template 1";

/// Everything a version of a template is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateSource {
    /// Its name, for instance `billing_invoice_monthly`.
    pub key: String,
    /// `manifest.toml` as written.
    pub manifest_toml: String,
    /// `subject.hbs`.
    pub subject: String,
    /// `html.hbs`.
    pub html: String,
    /// `text.hbs`.
    pub text: String,
    /// The partials that `html` reaches, by name.
    #[serde(default)]
    pub partials_html: BTreeMap<String, String>,
    /// The partials that `text` reaches, by name.
    #[serde(default)]
    pub partials_text: BTreeMap<String, String>,
    /// The same mail in other languages, by locale. Left out where there is none: sources that were stored before there
    /// were variants keep their document and their checksum.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<String, Variant>,
    /// Variables to show and to check it with.
    #[serde(default)]
    pub sample: Map<String, Value>,
}

/// A template in another locale: all of it, so that no mail is in two languages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// `subject.<locale>.hbs`.
    pub subject: String,
    /// `html.<locale>.hbs`.
    pub html: String,
    /// `text.<locale>.hbs`.
    pub text: String,
    /// The partials that `html` reaches, by name, each as this locale has it.
    #[serde(default)]
    pub partials_html: BTreeMap<String, String>,
    /// The partials that `text` reaches, by name, each as this locale has it.
    #[serde(default)]
    pub partials_text: BTreeMap<String, String>,
}

/// The words of a template in one locale.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    subject: &'a str,
    html: &'a str,
    text: &'a str,
    partials_html: &'a BTreeMap<String, String>,
    partials_text: &'a BTreeMap<String, String>,
}

impl<'a> Words<'a> {
    /// The source of one part.
    #[must_use]
    pub const fn part(&self, part: Part) -> &'a str {
        match part {
            Part::Subject => self.subject,
            Part::Html => self.html,
            Part::Text => self.text,
        }
    }

    /// The partials that one part may use. A subject has none.
    #[must_use]
    pub const fn partials(&self, part: Part) -> &'a BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        match part {
            Part::Subject => NONE,
            Part::Html => self.partials_html,
            Part::Text => self.partials_text,
        }
    }
}

impl Variant {
    /// Its parts.
    #[must_use]
    pub fn words(&self) -> Words<'_> {
        let Self { subject, html, text, partials_html, partials_text } = self;
        Words { subject, html, text, partials_html, partials_text }
    }
}

impl TemplateSource {
    /// Its parts in its own locale.
    #[must_use]
    pub fn words(&self) -> Words<'_> {
        let Self { subject, html, text, partials_html, partials_text, .. } = self;
        Words { subject, html, text, partials_html, partials_text }
    }

    /// SHA-256 over the content. Equal sources have equal checksums, whatever order their sample is kept in.
    #[must_use]
    pub fn checksum(&self) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(CHECKSUM_DOMAIN);
        for text in [&self.key, &self.manifest_toml, &self.subject, &self.html, &self.text] {
            put(&mut hash, text.as_bytes());
        }
        put_partials(&mut hash, &self.words());
        put(&mut hash, canonical(&Value::Object(self.sample.clone())).to_string().as_bytes());
        for (locale, variant) in &self.variants {
            let Variant { subject, html, text, .. } = variant;
            for text in [locale, subject, html, text] {
                put(&mut hash, text.as_bytes());
            }
            put_partials(&mut hash, &variant.words());
        }
        hash.finalize().into()
    }
}

fn put_partials(hash: &mut Sha256, words: &Words<'_>) {
    for part in [Part::Html, Part::Text] {
        put_length(hash, words.partials(part).len());
        for (name, text) in words.partials(part) {
            put(hash, name.as_bytes());
            put(hash, text.as_bytes());
        }
    }
}

fn put(hash: &mut Sha256, bytes: &[u8]) {
    put_length(hash, bytes.len());
    hash.update(bytes);
}

fn put_length(hash: &mut Sha256, length: usize) {
    hash.update((length as u64).to_be_bytes());
}

/// The same value with every object's keys in order: a database may keep them in another.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            Value::Object(sorted.into_iter().map(|(key, value)| (key.clone(), canonical(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// Whether a template can be called this: lower-case letters, digits and `_`, a letter first, at most 100 characters.
#[must_use]
pub fn is_key(text: &str) -> bool {
    text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source() -> TemplateSource {
        serde_json::from_value(json!({
            "key": "a", "manifest_toml": "m", "subject": "s", "html": "h", "text": "t",
            "partials_html": {"layout": "l"}, "sample": {"x": 1, "y": {"a": 1, "b": 2}}
        }))
        .expect("a source")
    }

    #[test]
    fn checksum_ignores_the_order_of_the_sample_and_nothing_else() {
        let one = source();
        let mut other = source();
        other.sample = serde_json::from_value(json!({"y": {"b": 2, "a": 1}, "x": 1})).expect("a map");
        assert_eq!(one.checksum(), other.checksum());
        let mut changed = Vec::new();
        for change in 0..10 {
            let mut other = source();
            match change {
                0 => other.key.push('x'),
                1 => other.manifest_toml.push('x'),
                2 => other.subject.push('x'),
                3 => other.html.push('x'),
                4 => other.text.push('x'),
                5 => other.partials_text = std::mem::take(&mut other.partials_html),
                6 => other.partials_html.values_mut().for_each(|text| text.push('x')),
                7 => drop(other.sample.insert("z".into(), Value::Null)),
                8 => drop(other.variants.insert("en".into(), Variant::default())),
                _ => drop(other.variants.insert("fr-BJ".into(), Variant::default())),
            }
            changed.push(other.checksum());
        }
        changed.push(one.checksum());
        changed.sort_unstable();
        changed.dedup();
        assert_eq!(changed.len(), 11, "every change shows");
    }

    #[test]
    fn survives_json() {
        let text = serde_json::to_string(&source()).expect("JSON");
        assert_eq!(serde_json::from_str::<TemplateSource>(&text).expect("a source"), source());
        assert!(!text.contains("variants"), "as it was stored before there were any: {text}");
    }
}
