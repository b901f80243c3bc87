//! Who is still to get a request, as a retry copy says it: the database may be away when the copy comes back.
//!
//! Pure. `x-pending` is `<first 8 bytes of the recipient's hash, hex>:<attempts>:<deferrals>`, comma-separated, and `:!` behind
//! it for one that has failed and whose dead letter is owed once nobody is pending; `x-over` is the hashes of those that are
//! over. No address, no key.

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
    /// It got its mail, or policy said no: over.
    Over,
}

/// Where the recipients stand, as far as a copy's writer knew them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pending {
    by_hash: HashMap<String, Left>,
    /// Whether those that are over are named. Earlier versions did not: whom they are silent about is over.
    names_all: bool,
}

impl Pending {
    /// What the headers say; nothing when they are not ours.
    pub(super) fn read(pending: &str, over: Option<&str>) -> Option<Self> {
        let is_sound = |hash: &str| hash.len() == 2 * HASH_BYTES && hash.bytes().all(|b| b.is_ascii_hexdigit());
        let entries = pending.split(',').map(|entry| {
            let mut parts = entry.split(':');
            let (hash, attempts, deferrals) = (parts.next()?, parts.next()?, parts.next()?);
            let tries = Tries { attempts: attempts.parse().ok()?, deferrals: deferrals.parse().ok()? };
            let left = match (parts.next(), parts.next()) {
                (None, _) => Left::Pending(tries),
                (Some("!"), None) => Left::Owed(tries),
                (Some(_), _) => return None,
            };
            is_sound(hash).then(|| (hash.to_owned(), left))
        });
        let mut by_hash = entries.collect::<Option<HashMap<_, _>>>()?;
        for hash in over.unwrap_or_default().split(',').filter(|hash| !hash.is_empty()) {
            if !is_sound(hash) {
                return None;
            }
            by_hash.entry(hash.to_owned()).or_insert(Left::Over);
        }
        Some(Self { by_hash, names_all: over.is_some() })
    }

    /// As the two headers: `x-pending` and `x-over`.
    pub(super) fn write<'a>(recipients: impl Iterator<Item = (&'a [u8; 32], Left)>) -> (String, String) {
        let (mut pending, mut over) = (Vec::new(), Vec::new());
        for (hash, left) in recipients {
            let (tries, mark) = match left {
                Left::Pending(tries) => (tries, ""),
                Left::Owed(tries) => (tries, ":!"),
                Left::Over => {
                    over.push(short(hash));
                    continue;
                }
            };
            pending.push(format!("{}:{}:{}{mark}", short(hash), tries.attempts, tries.deferrals));
        }
        (pending.join(","), over.join(","))
    }

    /// Where a recipient stands; nothing: the copy's writer did not know it.
    pub(super) fn left(&self, hash: &[u8; 32]) -> Option<Left> {
        self.by_hash.get(&short(hash)).copied()
    }

    /// Whether somebody whom it does not name was not known to its writer, and is not over.
    pub(super) const fn names_all(&self) -> bool {
        self.names_all
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
        let (ada, bob, eve, joe, new) = ([1; 32], [2; 32], [3; 32], [4; 32], [5; 32]);
        let tries = Tries { attempts: 2, deferrals: 3 };
        let all = [
            (&ada, Left::Pending(tries)),
            (&bob, Left::Pending(Tries::default())),
            (&joe, Left::Owed(Tries { attempts: 1, deferrals: 0 })),
            (&eve, Left::Over),
        ];
        let (pending, over) = Pending::write(all.into_iter());
        let read = Pending::read(&pending, Some(&over)).expect("it reads back");
        for (hash, left) in all {
            assert_eq!(read.left(hash), Some(left));
        }
        assert_eq!((read.left(&new), read.names_all()), (None, true), "its writer did not know this one");
        let earlier = Pending::read(&pending, None).expect("it reads back");
        assert_eq!((earlier.left(&eve), earlier.names_all()), (None, false), "an earlier version says so by silence");
        let nobody = Pending::read(&pending, Some("")).expect("it reads back");
        assert_eq!((nobody.left(&eve), nobody.names_all()), (None, true));
        let wrong = ["", "x", "0101010101010101", "0101010101010101:1", "zz01010101010101:1:2"];
        for wrong in wrong.into_iter().chain(["0101010101010101:1:2:3", "0101010101010101:1:2:!:"]) {
            assert_eq!(Pending::read(wrong, None), None, "{wrong}");
        }
        assert_eq!(Pending::read(&pending, Some("0101")), None);
    }
}
