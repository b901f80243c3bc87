//! Texts as headers write them: one line, encoded words where a text could be mistaken for one, plain file names.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};

/// Most octets of text in one encoded word: in base64, with its frame and a header's name before it, it stays within the
/// 76 characters of a line (RFC 2047 §2).
const ENCODED_WORD_BYTES: usize = 39;
/// Longest plain stand-in for a name: longer ones would be split, and the pieces mixed up with the encoded name's.
const ASCII_NAME_MAX: usize = 60;

/// The same text on one line: control characters and line separators are a blank, none at the ends.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    let is_odd = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if !text.contains(is_odd) {
        return Cow::Borrowed(text.trim_matches(' '));
    }
    let words: Vec<&str> = text.split(|c| c == ' ' || is_odd(c)).filter(|word| !word.is_empty()).collect();
    Cow::Owned(words.join(" "))
}

/// Whether a plain text would be decoded by its reader, so that it says something else than what was written.
pub(super) fn is_encoded_word_like(text: &str) -> bool {
    text.is_ascii() && text.contains("=?")
}

/// `=?utf-8?B?...?=`, as many as it takes, a blank between them to fold at.
pub(super) fn encoded_words(text: &str) -> String {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.floor_char_boundary(ENCODED_WORD_BYTES));
        words.push(format!("=?utf-8?B?{}?=", BASE64_STANDARD.encode(word)));
        rest = after;
    }
    words.join(" ")
}

/// A name in ASCII that stands in for one that is not: accents are dropped, what has no likeness becomes `_`.
pub(super) fn ascii_file_name(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '"' | '\\' => plain.push('_'),
            ' '..='~' => plain.push(c),
            'À'..='Å' => plain.push('A'),
            'Ç' => plain.push('C'),
            'È'..='Ë' => plain.push('E'),
            'Ì'..='Ï' => plain.push('I'),
            'Ñ' => plain.push('N'),
            'Ò'..='Ö' => plain.push('O'),
            'Ù'..='Ü' => plain.push('U'),
            'à'..='å' => plain.push('a'),
            'ç' => plain.push('c'),
            'è'..='ë' => plain.push('e'),
            'ì'..='ï' => plain.push('i'),
            'ñ' => plain.push('n'),
            'ò'..='ö' => plain.push('o'),
            'ù'..='ü' => plain.push('u'),
            'Œ' => plain.push_str("OE"),
            'œ' => plain.push_str("oe"),
            'Æ' => plain.push_str("AE"),
            'æ' => plain.push_str("ae"),
            '\u{2019}' => plain.push('\''),
            '\u{2013}' | '\u{2014}' => plain.push('-'),
            '\u{A0}' | '\u{202F}' => plain.push(' '),
            '\u{300}'..='\u{36F}' => {}
            _ => plain.push('_'),
        }
    }
    if plain.len() > ASCII_NAME_MAX {
        let extension = plain.rfind('.').filter(|&at| plain.len() - at <= 20).map_or("", |at| &plain[at..]);
        plain = format!("{}{extension}", &plain[..ASCII_NAME_MAX - extension.len()]);
    }
    plain.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_for_names() {
        for (name, want) in [
            ("Relevé — œuvre d’août.pdf", "Releve - oeuvre d'aout.pdf"),
            ("Ça\u{301} \"x\".csv", "Ca _x_.csv"),
            ("発票.pdf", "__.pdf"),
        ] {
            assert_eq!(ascii_file_name(name), want);
        }
        let long = ascii_file_name(&format!("{}.pdf", "é".repeat(200)));
        assert_eq!((long.len(), long.ends_with("e.pdf")), (ASCII_NAME_MAX, true));
    }

    #[test]
    fn one_line_whatever_is_in_it() {
        for (text, want) in
            [(" a  b ", "a  b"), ("a\r\nBcc: b", "a Bcc: b"), ("\0\u{2028}", ""), ("é\u{A0}!", "é\u{A0}!")]
        {
            assert_eq!(one_line(text), want);
        }
    }

    #[test]
    fn encoded_words_fit_and_split_between_characters() {
        let words = encoded_words(&"é".repeat(100));
        assert!(
            words.split(' ').all(|word| word.len() <= 75 && word.starts_with("=?utf-8?B?") && word.ends_with("?="))
        );
        assert_eq!(encoded_words(""), "");
    }
}
