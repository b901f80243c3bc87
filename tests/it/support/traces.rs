//! Looking for a person in whatever holds bytes, in whichever form they may be written there.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

/// How often something is unwrapped: base64 in JSON in bytea, and once more.
const DEPTH: usize = 3;
/// Shorter runs of hexadecimal or base64 digits hold nobody.
const RUN_MIN: usize = 12;

/// Words that name a person, or what belongs to them.
pub struct Traces(Vec<Trace>);

struct Trace {
    words: String,
    /// In lower case, to be found in anything that is.
    folded: Vec<String>,
    /// As they stand.
    exact: Vec<String>,
}

impl Traces {
    /// Of these words: parts of an address, a name, a number.
    pub fn of(words: &[&str]) -> Self {
        Self(words.iter().map(|words| Trace::of(words)).collect())
    }

    /// Those of the words that are in there, in any form.
    pub fn in_bytes(&self, bytes: &[u8]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        self.look(bytes, DEPTH, &mut found);
        found
    }

    /// All words.
    pub fn all(&self) -> BTreeSet<String> {
        self.0.iter().map(|trace| trace.words.clone()).collect()
    }

    fn look(&self, bytes: &[u8], depth: usize, found: &mut BTreeSet<String>) {
        let text = String::from_utf8_lossy(bytes);
        let lower = text.to_lowercase();
        for trace in &self.0 {
            let is_there = trace.folded.iter().any(|form| lower.contains(form.as_str()))
                || trace.exact.iter().any(|form| text.contains(form.as_str()));
            if is_there {
                found.insert(trace.words.clone());
            }
        }
        if depth == 0 {
            return;
        }
        // Bytes in a dump: \x and digits.
        for run in bytes.split(|b| !b.is_ascii_hexdigit()).filter(|run| run.len() >= RUN_MIN) {
            if let Ok(decoded) = hex::decode(&run[..run.len() / 2 * 2]) {
                self.look(&decoded, depth - 1, found);
            }
        }
        // Bytes in JSON.
        let is_digit = |b: u8| b.is_ascii_alphanumeric() || b"+/".contains(&b);
        for run in bytes.split(|b| !is_digit(*b)).filter(|run| run.len() >= 2 * RUN_MIN) {
            if let Ok(decoded) = STANDARD_NO_PAD.decode(&run[..run.len() / 4 * 4]) {
                self.look(&decoded, depth - 1, found);
            }
        }
    }
}

impl Trace {
    fn of(words: &str) -> Self {
        let lower = words.to_lowercase();
        let folded = vec![
            lower.clone(),
            escaped(&lower, |b| format!("%{b:02x}")),
            escaped(&lower, |b| if b == b' ' { "+".to_owned() } else { format!("%{b:02x}") }),
            escaped(&lower, |b| format!("={b:02x}")),
            escaped(&lower, |b| if b == b' ' { "_".to_owned() } else { format!("={b:02x}") }),
            lower.replace(' ', "_"),
            json_escaped(&lower),
        ];
        let cases = [words.to_owned(), lower, words.to_uppercase()];
        let mut exact: Vec<_> = cases.iter().flat_map(|words| in_base64(words.as_bytes())).collect();
        // As programs print bytes for those who look for faults.
        exact.extend(cases.iter().map(|words| format!("{:?}", words.as_bytes()).trim_matches(['[', ']']).to_owned()));
        Self { words: words.to_owned(), folded, exact }
    }
}

/// Everything but letters, digits, dots and hyphens written as `code` says.
fn escaped(words: &str, code: impl Fn(u8) -> String) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
    words.bytes().map(|b| if is_plain(b) { char::from(b).into() } else { code(b) }).collect()
}

fn json_escaped(words: &str) -> String {
    words.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) }).collect()
}

/// As it looks inside of something longer, wherever it begins there; digits that its neighbours have a part in are left out.
fn in_base64(words: &[u8]) -> Vec<String> {
    (0..3)
        .filter_map(|before| {
            let padded = [&vec![b'-'; before][..], words].concat();
            let written = STANDARD_NO_PAD.encode(&padded);
            let (first, last) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
            written.get(first..last).map(str::to_owned).filter(|form| form.len() >= 6)
        })
        .collect()
}

#[test]
fn a_person_is_found_in_every_form() {
    let traces = Traces::of(&["ada.lovelace@b\u{fc}cher.example", "+229 97 12"]);
    let address = "Ada.Lovelace@B\u{dc}CHER.example";
    let inner = format!("to: {address}, +229 97 12 34").into_bytes();
    for form in [
        inner.clone(),
        base64::engine::general_purpose::STANDARD.encode(inner.to_ascii_lowercase()).into_bytes(),
        format!("\\\\x{}", hex::encode(&inner)).into_bytes(),
        hex::encode(base64::engine::general_purpose::STANDARD.encode([b"x", &inner.to_ascii_lowercase()[..]].concat()))
            .into_bytes(),
        // In the case that it has, too.
        base64::engine::general_purpose::STANDARD.encode(&inner).into_bytes(),
        format!("data: {:?}", inner.to_ascii_lowercase()).into_bytes(),
        b"ADA.LOVELACE%40b%C3%BCcher.example %2B229+97+12".to_vec(),
        b"ada.lovelace=40b=C3=BCcher.example =2B229_97_12".to_vec(),
        b"ada.lovelace@b\\u00fccher.example +229 97 12".to_vec(),
    ] {
        assert!(!traces.in_bytes(&form).is_empty(), "{}", String::from_utf8_lossy(&form));
    }
    assert!(traces.in_bytes(b"nobody, ada@example.bj, +229 97 21").is_empty());
}
