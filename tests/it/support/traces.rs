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
    folded: Vec<Vec<u8>>,
    /// As they stand.
    exact: Vec<Vec<u8>>,
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
        let lower = String::from_utf8_lossy(bytes).to_lowercase().into_bytes();
        for trace in &self.0 {
            let is_there = trace.folded.iter().any(|form| holds(&lower, form))
                || trace.exact.iter().any(|form| holds(bytes, form));
            if is_there {
                found.insert(trace.words.clone());
            }
        }
        if depth == 0 {
            return;
        }
        for run in runs(bytes, |b| b.is_ascii_hexdigit()) {
            // An escape such as \x has an x in it, so that a run begins with its first digit.
            if let Ok(decoded) = hex::decode(&run[..run.len() / 2 * 2]) {
                self.look(&decoded, depth - 1, found);
            }
        }
    }
}

impl Trace {
    fn of(words: &str) -> Self {
        let cases = [words.to_owned(), words.to_lowercase(), words.to_uppercase()];
        let lower = words.to_lowercase();
        let mut folded = vec![
            lower.clone().into_bytes(),
            escaped(&lower, |b| format!("%{b:02x}")),
            escaped(&lower, |b| format!("%{b:02x}")).iter().map(|&b| if b == b'+' { b' ' } else { b }).collect(),
            escaped(&lower, |b| format!("={b:02x}")),
            lower.replace(' ', "+").into_bytes(),
            lower.replace(' ', "_").into_bytes(),
        ];
        folded.push(json_escaped(&lower));
        folded.dedup();
        let exact = cases.iter().flat_map(|words| in_base64(words.as_bytes())).collect();
        Self { words: words.to_owned(), folded, exact }
    }
}

/// Everything but letters and digits written as `code` says.
fn escaped(words: &str, code: impl Fn(u8) -> String) -> Vec<u8> {
    let written = words.bytes().map(|b| if b.is_ascii_alphanumeric() || b == b'.' { char::from(b).into() } else { code(b) });
    written.collect::<String>().into_bytes()
}

fn json_escaped(words: &str) -> Vec<u8> {
    let written = words.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) });
    written.collect::<String>().into_bytes()
}

/// As it looks inside of something longer, wherever it begins there; digits that its neighbours have a part in are left out.
fn in_base64(words: &[u8]) -> Vec<Vec<u8>> {
    (0..3)
        .filter_map(|before| {
            let padded = [&vec![b'-'; before][..], words].concat();
            let written = STANDARD_NO_PAD.encode(&padded).into_bytes();
            let first = (before * 8).div_ceil(6);
            let last = padded.len() * 8 / 6;
            written.get(first..last).map(<[u8]>::to_vec).filter(|form| form.len() >= 6)
        })
        .collect()
}

fn runs(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> Vec<&[u8]> {
    bytes.split(|b| !belongs(*b)).filter(|run| run.len() >= RUN_MIN).collect()
}

fn holds(bytes: &[u8], form: &[u8]) -> bool {
    !form.is_empty() && memchr_like(bytes, form)
}
