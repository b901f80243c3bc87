//! Who is still to get a request, as a retry copy says it: the database may be away when the copy comes back.
//!
//! Pure. `<first 8 bytes of the recipient's hash, hex>:<attempts>:<deferrals>`, comma-separated; no address, no key.

use std::collections::HashMap;

/// Bytes of a hash that tell at most a hundred recipients of one request apart.
const HASH_BYTES: usize = 8;

/// Tries so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tries {
    /// Those that counted.
    pub(super) attempts: i32,
    /// How often it was put off.
    pub(super) deferrals: i32,
}

/// The recipients that a copy still waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pending {
    by_hash: HashMap<String, Tries>,
}

impl Pending {
    /// What the header says; nothing when it is not one of ours.
    pub(super) fn read(text: &str) -> Option<Self> {
        let entries = text.split(',').map(|entry| {
            let mut parts = entry.split(':');
            let (hash, attempts, deferrals) = (parts.next()?, parts.next()?, parts.next()?);
            let is_sound = hash.len() == 2 * HASH_BYTES && hash.bytes().all(|b| b.is_ascii_hexdigit());
            let tries = Tries { attempts: attempts.parse().ok()?, deferrals: deferrals.parse().ok()? };
            (is_sound && parts.next().is_none()).then(|| (hash.to_owned(), tries))
        });
        Some(Self { by_hash: entries.collect::<Option<_>>()? })
    }

    /// As a header.
    pub(super) fn write<'a>(recipients: impl Iterator<Item = (&'a [u8; 32], Tries)>) -> String {
        let entries = recipients.map(|(hash, tries)| format!("{}:{}:{}", short(hash), tries.attempts, tries.deferrals));
        entries.collect::<Vec<_>>().join(",")
    }

    /// The tries of a recipient that is still to get it; nothing: it is over for this one.
    pub(super) fn tries(&self, hash: &[u8; 32]) -> Option<Tries> {
        self.by_hash.get(&short(hash)).copied()
    }
}

fn short(hash: &[u8; 32]) -> String {
    hex::encode(&hash[..HASH_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_tells_who_is_left_and_how_often_they_were_tried() {
        let (ada, bob, eve) = ([1; 32], [2; 32], [3; 32]);
        let tries = Tries { attempts: 2, deferrals: 3 };
        let text = Pending::write([(&ada, tries), (&bob, Tries::default())].into_iter());
        let read = Pending::read(&text).expect("it reads back");
        assert_eq!((read.tries(&ada), read.tries(&bob)), (Some(tries), Some(Tries::default())));
        assert_eq!(read.tries(&eve), None, "it is over for her");
        for wrong in
            ["", "x", "0101010101010101", "0101010101010101:1", "zz01010101010101:1:2", "0101010101010101:1:2:3"]
        {
            assert_eq!(Pending::read(wrong), None, "{wrong}");
        }
    }
}
