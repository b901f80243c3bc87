//! Who is still to get a request, as a retry copy says it: the database may be away when the copy comes back.
//!
//! Pure. `<first 8 bytes of the recipient's hash, hex>:<attempts>:<deferrals>`, comma-separated, and `:!` behind it for one
//! that has failed and whose dead letter is owed once nobody is pending; no address, no key.

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

/// Where a recipient stands that a copy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Still to get it.
    Pending(Tries),
    /// Failed; only the rows know why, and the dead letter is owed.
    Owed(Tries),
}

/// The recipients that a copy still waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pending {
    by_hash: HashMap<String, Left>,
}

impl Pending {
    /// What the header says; nothing when it is not one of ours.
    pub(super) fn read(text: &str) -> Option<Self> {
        let entries = text.split(',').map(|entry| {
            let mut parts = entry.split(':');
            let (hash, attempts, deferrals) = (parts.next()?, parts.next()?, parts.next()?);
            let is_sound = hash.len() == 2 * HASH_BYTES && hash.bytes().all(|b| b.is_ascii_hexdigit());
            let tries = Tries { attempts: attempts.parse().ok()?, deferrals: deferrals.parse().ok()? };
            let left = match (parts.next(), parts.next()) {
                (None, _) => Left::Pending(tries),
                (Some("!"), None) => Left::Owed(tries),
                (Some(_), _) => return None,
            };
            is_sound.then(|| (hash.to_owned(), left))
        });
        Some(Self { by_hash: entries.collect::<Option<_>>()? })
    }

    /// As a header.
    pub(super) fn write<'a>(recipients: impl Iterator<Item = (&'a [u8; 32], Left)>) -> String {
        let entries = recipients.map(|(hash, left)| {
            let (tries, mark) = match left {
                Left::Pending(tries) => (tries, ""),
                Left::Owed(tries) => (tries, ":!"),
            };
            format!("{}:{}:{}{mark}", short(hash), tries.attempts, tries.deferrals)
        });
        entries.collect::<Vec<_>>().join(",")
    }

    /// Where a recipient stands; nothing: it is over for this one.
    pub(super) fn left(&self, hash: &[u8; 32]) -> Option<Left> {
        self.by_hash.get(&short(hash)).copied()
    }

    /// Whether it speaks of any of these recipients. One that does not was written under another key of the addresses'
    /// hashes, and says nothing of who has got the request.
    pub(super) fn speaks_of<'a>(&self, mut hashes: impl Iterator<Item = &'a [u8; 32]>) -> bool {
        hashes.any(|hash| self.left(hash).is_some())
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
        let (ada, bob, eve, joe) = ([1; 32], [2; 32], [3; 32], [4; 32]);
        let tries = Tries { attempts: 2, deferrals: 3 };
        let all = [
            (&ada, Left::Pending(tries)),
            (&bob, Left::Pending(Tries::default())),
            (&joe, Left::Owed(Tries { attempts: 1, deferrals: 0 })),
        ];
        let read = Pending::read(&Pending::write(all.into_iter())).expect("it reads back");
        for (hash, left) in all {
            assert_eq!(read.left(hash), Some(left));
        }
        assert_eq!(read.left(&eve), None, "it is over for her");
        assert!(read.speaks_of([&eve, &joe].into_iter()));
        assert!(!read.speaks_of([&eve, &[9; 32]].into_iter()), "another key's");
        let wrong = ["", "x", "0101010101010101", "0101010101010101:1", "zz01010101010101:1:2"];
        for wrong in wrong.into_iter().chain(["0101010101010101:1:2:3", "0101010101010101:1:2:!:"]) {
            assert_eq!(Pending::read(wrong), None, "{wrong}");
        }
    }
}
