//! E-mail addresses: parsed once, compared by a normalised key, never printed in full by accident.
//!
//! Invariant: `Debug` and `Display` mask the address. Only [`EmailAddress::as_str`] and [`EmailAddress::key`] reveal it.

use std::fmt;

use unicode_normalization::UnicodeNormalization;

/// Longest local part, in octets (RFC 5321 §4.5.3.1.1).
const LOCAL_BYTES_MAX: usize = 64;
/// Longest address in a path, in octets (RFC 5321 §4.5.3.1.3, less the angle brackets).
const ADDRESS_BYTES_MAX: usize = 254;
/// Longest label of a domain, in octets (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// An address that a relay can be given: `local@domain`, the domain in lower-case ASCII (IDNA).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EmailAddress {
    text: String,
    at: usize,
}

/// Why a text is not an address that mail can be sent to. The text itself is never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is nothing there.
    #[error("the address is empty")]
    Empty,
    /// There is no `@`.
    #[error("the address has no @")]
    NoAt,
    /// A control character, a space or an angle bracket.
    #[error("the address holds a character that is not allowed (U+{0:04X})")]
    Character(u32),
    /// What is before the `@` is empty, has misplaced dots, is quoted, or looks like an encoded word.
    #[error("the part before the @ is not valid")]
    Local,
    /// More than 64 octets before the `@`.
    #[error("the part before the @ is longer than 64 octets")]
    LocalTooLong,
    /// What is after the `@` is not a domain name with at least one dot.
    #[error("the part after the @ is not a domain name with a dot")]
    Domain,
    /// More than 254 octets in all.
    #[error("the address is longer than 254 octets")]
    TooLong,
}

impl EmailAddress {
    /// Reads an address. Blanks around it are dropped; the domain is brought to lower-case ASCII.
    ///
    /// # Errors
    /// When it cannot be an address of a mailbox on the Internet: see [`AddressError`]. Quoted local parts and
    /// address literals (`user@[192.0.2.1]`) are refused: no relay of ours has a mailbox there.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if let Some(c) = text.chars().find(|c| c.is_control() || c.is_whitespace() || "<>()[]\\,;:\"".contains(*c)) {
            return Err(AddressError::Character(u32::from(c)));
        }
        let (local, domain) = text.rsplit_once('@').ok_or(AddressError::NoAt)?;
        // What looks like an encoded word (RFC 2047) is another address to readers who decode it.
        if local.is_empty() || local.contains('@') || local.contains("=?") || local.split('.').any(str::is_empty) {
            return Err(AddressError::Local);
        }
        if local.len() > LOCAL_BYTES_MAX {
            return Err(AddressError::LocalTooLong);
        }
        let domain = idna::domain_to_ascii_strict(domain).map_err(|_| AddressError::Domain)?;
        let labels_are_sound = domain.contains('.')
            && domain.split('.').all(|label| !label.is_empty() && label.len() <= LABEL_BYTES_MAX)
            && !domain.rsplit('.').next().is_none_or(|top| top.bytes().all(|b| b.is_ascii_digit()));
        if !labels_are_sound {
            return Err(AddressError::Domain);
        }
        let text = format!("{local}@{domain}");
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        Ok(Self { at: local.len(), text })
    }

    /// The address as it goes to the relay. Personal: not for logs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What is before the `@`.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.text[..self.at]
    }

    /// What is after the `@`, in ASCII.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.text[self.at + 1..]
    }

    /// What two spellings of one mailbox have in common: all of it in lower case, and in composed characters (NFC, RFC 6530
    /// §10.1), because one keyboard writes `é` and another `e` and an accent. Personal: not for logs.
    #[must_use]
    pub fn key(&self) -> String {
        let key = self.text.to_lowercase();
        if key.is_ascii() { key } else { key.nfc().collect() }
    }

    /// Whether the relay must offer SMTPUTF8 (RFC 6531) to take it.
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        !self.text.is_ascii()
    }

    /// First letter and domain's last label: enough to recognise in a log, not enough to write to.
    #[must_use]
    pub fn masked(&self) -> String {
        let first = self.text.chars().next().unwrap_or('*');
        let top = self.domain().rsplit('.').next().unwrap_or("");
        format!("{first}***@***.{top}")
    }
}

/// Masks every address in a text: far servers like to repeat whom they refuse, by whatever name.
#[must_use]
pub fn mask_all(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        match address_around(before, after) {
            Some((shown, local, domain)) => {
                masked.push_str(&before[..at - local]);
                masked.push_str(&shown);
                rest = &after[domain..];
                // Two grown together: what follows the second @ is as personal as what stands before it.
                while let Some(grown) = rest.strip_prefix('@') {
                    rest = grown.trim_start_matches(|c: char| c.is_alphanumeric() || matches!(c, '.' | '-'));
                }
            }
            None => {
                masked.push_str(&rest[..=at]);
                rest = after;
            }
        }
    }
    masked.push_str(rest);
    masked
}

/// What is shown of the longest address around an `@`, and how many bytes of it stand on either side. What stands beside it may
/// look like a part of it: `<ada@example.bj>:`, `ada@example.bj/x`, `...ada@example.bj.5.1.1`.
fn address_around(before: &str, after: &str) -> Option<(String, usize, usize)> {
    let ends_local = |c: char| c.is_whitespace() || c.is_control() || "<>()[]\\,;:\"".contains(c);
    let local = before.rsplit(ends_local).next()?.rsplit("..").next()?.trim_start_matches('.');
    let local = &local[local.ceil_char_boundary(local.len().saturating_sub(LOCAL_BYTES_MAX))..].trim_start_matches('.');
    let first = local.chars().next()?;
    let is_ascii = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let is_any = |c: char| is_ascii(c) || (!c.is_ascii() && !c.is_whitespace() && !c.is_control());
    let domain = |ends: &dyn Fn(char) -> bool| {
        let end = after.find(ends).unwrap_or(after.len()).min(ADDRESS_BYTES_MAX);
        let domain = after[..after.floor_char_boundary(end)].split("..").next()?;
        Some(domain.trim_end_matches(['.', '-']))
    };
    let ends: [&dyn Fn(char) -> bool; 2] = [&|c| !is_any(c), &|c| !is_ascii(c)];
    let found = ends.into_iter().find_map(|ends| {
        let mut domain = domain(ends)?;
        loop {
            if let Ok(address) = EmailAddress::parse(&format!("{local}@{domain}")) {
                return Some((address.masked(), local.len(), domain.len()));
            }
            // Without what may be a number behind it, or the beginning of another sentence.
            domain = domain.rsplit_once('.')?.0.trim_end_matches(['.', '-']);
        }
    });
    found.or_else(|| {
        // No mail goes there, but it names somebody all the same: an address that has grown together with a word.
        let domain = domain(&|c| !is_any(c)).filter(|domain| domain.trim_start_matches('.').contains('.'))?;
        Some((format!("{first}***@***"), local.len(), domain.len()))
    })
}

impl fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Display for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_a_text_are_masked_and_nothing_else_is_touched() {
        let table = [
            ("smtp; 550 5.1.1 <ada@example.bj>: unknown", "smtp; 550 5.1.1 <a***@***.bj>: unknown"),
            ("User Ada.L@mail.example.org. is not here", "User A***@***.org. is not here"),
            ("(kofi@example.bj) forwarded to ama@example.bj", "(k***@***.bj) forwarded to a***@***.bj"),
            ("250 2.6.0 ... taken @ 10:00", "250 2.6.0 ... taken @ 10:00"),
            ("ada@example.bj/x ada@example.bj! (ada@example.bj|y)", "a***@***.bj/x a***@***.bj! (a***@***.bj|y)"),
            ("to ada@example.bj.5.1.1 ...ada@example.bj...", "to a***@***.bj.5.1.1 ...a***@***.bj..."),
            ("for ada@example.ada@example.bjbj, ada@example.bj@x", "for a***@***.ada, a***@***.bj"),
            ("o'neil@example.bj and o'@example.bj'", "o***@***.bj and o***@***.bj'"),
            ("ada@example.bj\u{FFFD}x", "a***@***.bj\u{FFFD}x"),
            ("=?utf-8?B?eA==?=ada@example.bj, ada@192.0.2.1", "=***@***, a***@***"),
            ("x@ada@example.bj- @ada@example.bj_", "x@a***@***.bj- @a***@***.bj_"),
            ("", ""),
            ("...", "..."),
        ];
        for (text, expected) in table {
            assert_eq!(mask_all(text), expected);
        }
        let grown = format!("to ada@example.bj{}: 5.1.1", "s".repeat(300));
        assert_eq!(mask_all(&grown), format!("to a***@***{}: 5.1.1", "s".repeat(300 + "example.bj".len() - 254)));
    }

    #[test]
    fn one_mailbox_has_one_key() {
        let plain = EmailAddress::parse(" Ada@Example.BJ ").expect("valid");
        assert_eq!(plain.as_str(), "Ada@example.bj");
        assert_eq!(plain.key(), EmailAddress::parse("ada@EXAMPLE.bj").expect("valid").key());
        let idn = EmailAddress::parse("contact@bücher.example").expect("valid");
        assert_eq!(idn.domain(), "xn--bcher-kva.example");
        assert_eq!(idn.key(), EmailAddress::parse("contact@xn--bcher-kva.example").expect("valid").key());
        // Composed and not, in either case; and what goes to the relay stays as it was written.
        let composed = EmailAddress::parse("am\u{e9}lie@example.bj").expect("valid");
        for text in ["ame\u{301}lie@example.bj", "AME\u{301}LIE@Example.bj", "AM\u{c9}LIE@example.bj"] {
            let other = EmailAddress::parse(text).expect("valid");
            assert_eq!((other.key(), other.local()), (composed.key(), text.split('@').next().unwrap_or_default()));
        }
        assert_ne!(composed.key(), EmailAddress::parse("amelie@example.bj").expect("valid").key());
    }

    #[test]
    fn what_is_not_a_mailbox_is_refused() {
        for (text, want) in [
            ("", AddressError::Empty),
            ("nobody", AddressError::NoAt),
            ("a b@example.bj", AddressError::Character(0x20)),
            ("a\r\nRCPT@example.bj", AddressError::Character(0x0D)),
            ("a\0@example.bj", AddressError::Character(0)),
            ("a@b@example.bj", AddressError::Local),
            (".a@example.bj", AddressError::Local),
            ("=?utf-8?B?eA==?=a@example.bj", AddressError::Local),
            ("a@localhost", AddressError::Domain),
            ("a@127.0.0.1", AddressError::Domain),
            ("a@-x..bj", AddressError::Domain),
            ("a@[127.0.0.1]", AddressError::Character(0x5B)),
        ] {
            assert_eq!(EmailAddress::parse(text), Err(want), "{text:?}");
        }
        assert_eq!(EmailAddress::parse(&format!("{}@example.bj", "a".repeat(65))), Err(AddressError::LocalTooLong));
    }

    #[test]
    fn printing_masks() {
        let address = EmailAddress::parse("reseller@techconnect.bj").expect("valid");
        assert_eq!(format!("{address} {address:?}"), "r***@***.bj r***@***.bj");
    }
}
