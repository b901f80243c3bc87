//! Sound input, changed: as bytes, as text, and as JSON.

use proptest::{collection::vec, prelude::*, sample::Index, sample::select};
use serde_json::{Map, Value};

/// Longest input that repetition makes, in bytes.
const BYTES_MAX: usize = 512 * 1024;

/// What readers stumble over: ends of lines, headers, markup, paths, formulas, quotes of every kind, and odd characters.
pub const WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    "\t",
    "\r\nBcc: victim@example.com\r\n",
    "\r\n.\r\nMAIL FROM:<x@example.com>\r\n",
    "\n.\n",
    "=?utf-8?B?eA==?=",
    "=?utf-8?Q?a=0D=0ABcc:_x?=",
    "<x-pwn>",
    "\"><x-pwn>",
    "' x-pwn=1 '",
    "</title><x-pwn>",
    "<!--",
    "-->",
    "]]>",
    "<script>",
    "javascript:alert(1)",
    " javascript:alert(1)",
    "java\nscript:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "https://a.bj/\"onload=x",
    "https://a.bj/?a=1&b=<x-pwn>",
    "{{x}}",
    "{{{x}}}",
    "{{> x}}",
    "../../etc/passwd",
    "..\\..\\x",
    "file:///etc/passwd",
    "C:\\x",
    "=1+1",
    "@SUM(1)",
    "' or 1=1 --",
    "%",
    "%00",
    "%2e%2e%2f",
    "a@b.cc",
    "a@b.cc,",
    "<a@b.cc>",
    "\"a b\"@b.cc",
    "@",
    "\u{202E}",
    "\u{200B}",
    "\u{2028}",
    "\u{85}",
    "\u{FEFF}",
    "\u{A0}",
    "\u{1F4A9}",
    "é",
    "e\u{301}",
    "ẞ",
    "İ",
    "Σ",
    "0",
    "-1",
    "1e308",
    "NaN",
    "9007199254740993",
    "18446744073709551616",
    "2026-02-30T25:61:61Z",
    "9999-12-31T23:59:59.999999999Z",
    "-0001-01-01T00:00:00Z",
    "null",
    "true",
    "[]",
    "{}",
];

/// A text that is hostile, odd, or long.
pub fn odd_text() -> BoxedStrategy<String> {
    let piece = prop_oneof![
        6 => select(WORDS).prop_map(str::to_owned),
        2 => any::<String>(),
        2 => "[ -~]{0,40}",
        1 => "[a-z0-9]{1,12}",
    ];
    prop_oneof![
        8 => vec(piece, 0..4).prop_map(|pieces| pieces.concat()),
        1 => (select(WORDS), 1_usize..600).prop_map(|(word, times)| word.repeat(times)),
    ]
    .boxed()
}

#[derive(Debug, Clone)]
enum Cut {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Word(Index, &'static str),
    Remove(Index, usize),
    Double(Index, usize),
    Repeat(Index, usize, usize),
    Splice(Index, Index, usize),
    Keep(Index),
}

/// Some of these texts, changed as bytes. `words` are put in besides the usual ones.
pub fn changed_bytes(corpus: Vec<Vec<u8>>, words: &'static [&'static str]) -> BoxedStrategy<Vec<u8>> {
    let word = if words.is_empty() {
        select(WORDS).boxed()
    } else {
        prop_oneof![3 => select(words), 1 => select(WORDS)].boxed()
    };
    let cut = prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Cut::Set(at, byte)),
        2 => (any::<Index>(), vec(any::<u8>(), 1..6)).prop_map(|(at, bytes)| Cut::Insert(at, bytes)),
        6 => (any::<Index>(), word).prop_map(|(at, word)| Cut::Word(at, word)),
        3 => (any::<Index>(), 1_usize..40).prop_map(|(at, bytes)| Cut::Remove(at, bytes)),
        2 => (any::<Index>(), 1_usize..80).prop_map(|(at, bytes)| Cut::Double(at, bytes)),
        1 => (any::<Index>(), 1_usize..30, 2_usize..2000).prop_map(|(at, bytes, times)| Cut::Repeat(at, bytes, times)),
        2 => (any::<Index>(), any::<Index>(), 1_usize..200).prop_map(|(at, from, bytes)| Cut::Splice(at, from, bytes)),
        1 => any::<Index>().prop_map(Cut::Keep),
    ];
    (any::<Index>(), vec(cut, 0..7))
        .prop_map(move |(which, cuts)| {
            let mut bytes = corpus[which.index(corpus.len())].clone();
            for cut in &cuts {
                apply(&mut bytes, cut, &corpus);
            }
            bytes
        })
        .boxed()
}

/// The same of texts; what is not UTF-8 afterwards is replaced.
pub fn changed_text(corpus: Vec<String>, words: &'static [&'static str]) -> BoxedStrategy<String> {
    let corpus = corpus.into_iter().map(String::into_bytes).collect();
    changed_bytes(corpus, words).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).boxed()
}

fn apply(bytes: &mut Vec<u8>, cut: &Cut, corpus: &[Vec<u8>]) {
    let place = |at: &Index, length: usize| at.index(length + 1);
    match cut {
        Cut::Set(at, byte) => {
            if let Some(last) = bytes.len().checked_sub(1) {
                bytes[place(at, last)] = *byte;
            }
        }
        Cut::Insert(at, what) => {
            let at = place(at, bytes.len());
            bytes.splice(at..at, what.iter().copied());
        }
        Cut::Word(at, word) => {
            let at = place(at, bytes.len());
            bytes.splice(at..at, word.bytes());
        }
        Cut::Remove(at, count) => {
            let at = place(at, bytes.len());
            bytes.drain(at..bytes.len().min(at + count));
        }
        Cut::Double(at, count) => {
            let at = place(at, bytes.len());
            let again = bytes[at..bytes.len().min(at + count)].to_vec();
            bytes.splice(at..at, again);
        }
        Cut::Repeat(at, count, times) => {
            let at = place(at, bytes.len());
            let once = bytes[at..bytes.len().min(at + count)].to_vec();
            let times = (*times).min(BYTES_MAX.saturating_sub(bytes.len()) / once.len().max(1));
            bytes.splice(at..at, once.repeat(times));
        }
        Cut::Splice(at, from, count) => {
            let at = place(at, bytes.len());
            let other = &corpus[from.index(corpus.len())];
            let from = place(from, other.len());
            bytes.splice(at..at, other[from..other.len().min(from + count)].iter().copied());
        }
        Cut::Keep(length) => bytes.truncate(place(length, bytes.len())),
    }
}

#[derive(Debug, Clone)]
enum Turn {
    Text(String),
    Number(f64),
    Whole(i64),
    Null,
    Flag(bool),
    Wrap,
    Nest(usize),
    Remove,
    Repeat(usize),
    Many(usize),
    Rename(String),
    Other(Index),
}

/// Some of these values, with some of their parts replaced by others.
pub fn changed_json(corpus: Vec<Value>) -> BoxedStrategy<Value> {
    let turn = prop_oneof![
        10 => odd_text().prop_map(Turn::Text),
        1 => any::<f64>().prop_map(Turn::Number),
        2 => prop_oneof![any::<i64>(), -2_i64..100, Just(i64::from(i32::MAX) + 1)].prop_map(Turn::Whole),
        1 => Just(Turn::Null),
        1 => any::<bool>().prop_map(Turn::Flag),
        1 => Just(Turn::Wrap),
        1 => prop_oneof![4 => 1_usize..40, 1 => 40_usize..200].prop_map(Turn::Nest),
        2 => Just(Turn::Remove),
        2 => prop_oneof![4 => 1_usize..5, 1 => 5_usize..300].prop_map(Turn::Repeat),
        1 => prop_oneof![4 => 1_usize..200, 1 => 200_usize..20_000].prop_map(Turn::Many),
        1 => odd_text().prop_map(Turn::Rename),
        2 => any::<Index>().prop_map(Turn::Other),
    ];
    (any::<Index>(), vec((any::<Index>(), turn), 0..6))
        .prop_map(move |(which, turns)| {
            let mut value = corpus[which.index(corpus.len())].clone();
            for (at, turn) in &turns {
                change(&mut value, *at, turn);
            }
            value
        })
        .boxed()
}

fn change(root: &mut Value, at: Index, turn: &Turn) {
    let mut places = Vec::new();
    pointers(root, &mut String::new(), &mut places);
    let place = places[at.index(places.len())].clone();
    let (parent, name) = place.rsplit_once('/').unwrap_or(("", ""));
    let name = name.replace("~1", "/").replace("~0", "~");
    let other = match turn {
        Turn::Other(which) => root.pointer(&places[which.index(places.len())]).cloned(),
        _ => None,
    };
    match turn {
        Turn::Remove => match root.pointer_mut(parent) {
            Some(Value::Object(members)) => drop(members.remove(&name)),
            Some(Value::Array(items)) => {
                if let Some(index) = name.parse().ok().filter(|index| *index < items.len()) {
                    items.remove(index);
                }
            }
            _ => {}
        },
        Turn::Repeat(times) => {
            if let Some(Value::Array(items)) = root.pointer_mut(&place)
                && let Some(first) = items.first().cloned()
            {
                items.extend(std::iter::repeat_n(first, *times));
            }
        }
        Turn::Rename(to) => {
            if let Some(Value::Object(members)) = root.pointer_mut(parent)
                && let Some(value) = members.remove(&name)
            {
                members.insert(to.clone(), value);
            }
        }
        Turn::Text(_)
        | Turn::Number(_)
        | Turn::Whole(_)
        | Turn::Null
        | Turn::Flag(_)
        | Turn::Wrap
        | Turn::Nest(_)
        | Turn::Many(_)
        | Turn::Other(_) => {
            let Some(target) = root.pointer_mut(&place) else { return };
            let old = target.take();
            *target = match turn {
                Turn::Text(text) => Value::from(text.as_str()),
                Turn::Number(number) => Value::from(*number),
                Turn::Whole(number) => Value::from(*number),
                Turn::Flag(flag) => Value::from(*flag),
                Turn::Wrap => Value::Array(vec![old]),
                Turn::Nest(depth) => (0..*depth).fold(old, |inner, level| match level % 2 {
                    0 => Value::Array(vec![inner]),
                    _ => Value::Object(Map::from_iter([("a".to_owned(), inner)])),
                }),
                // Long lists in one text, as some producers write them.
                Turn::Many(count) => Value::from((0..*count).map(|n| format!("p{n}@b.cc,")).collect::<String>()),
                Turn::Other(_) => other.unwrap_or_default(),
                _ => Value::Null,
            };
        }
    }
}

fn pointers(value: &Value, path: &mut String, places: &mut Vec<String>) {
    places.push(path.clone());
    let length = path.len();
    let mut below = |name: &str, inner: &Value| {
        path.push('/');
        path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        pointers(inner, path, places);
        path.truncate(length);
    };
    match value {
        Value::Object(members) => members.iter().for_each(|(name, inner)| below(name, inner)),
        // Of a long list the first ones stand for the others.
        Value::Array(items) => items.iter().take(8).enumerate().for_each(|(at, inner)| below(&at.to_string(), inner)),
        _ => {}
    }
}
