//! Links by which people take themselves off marketing mail (RFC 8058). Pure.
//!
//! ```text
//! version (1)  address hash (32)  row id (16)  category (0 to 50)  signature (16)     in base64url: the link's last part
//! ```
//!
//! Invariant: a link holds no address, and all that is needed to honour it: it works when the mail's row is anonymised, or gone.
//! Invariant: nobody without `EMAIL_HASH_KEY` makes a link, or changes one. It has no end: a mail may be opened years later.
//! Invariant: bodies are rendered and recorded with a placeholder; the link is put in when a mail is made for one recipient. The
//! placeholder is derived from the key, so that no variable of a producer can stand in for it, and it leads nowhere.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use uuid::Uuid;

/// Path of the links under the public URL.
pub const PATH: &str = "/api/v1/email/unsubscribe";
/// What every placeholder begins with: a name that can never lead anywhere (RFC 2606).
pub const NOWHERE: &str = "https://unsubscribe.invalid/";
/// What stands for a link where no mail is sent, as in previews.
pub const EXAMPLE: &str = "https://unsubscribe.invalid/example";
/// What the pair of headers says, and what a mail provider posts (RFC 8058 §3.1).
pub const ONE_CLICK: (&str, &str) = ("List-Unsubscribe", "One-Click");

/// First byte of a link's content.
const VERSION: u8 = 1;
/// Of the HMAC: 128 bits cannot be guessed.
const SIGNATURE_BYTES: usize = 16;
/// Version, hash and row.
const HEAD_BYTES: usize = 1 + 32 + 16;
/// Longest category, as the suppression list has it.
const CATEGORY_BYTES_MAX: usize = 50;

/// Who unsubscribes from what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscription {
    /// Keyed hash of the address.
    pub address_hash: [u8; 32],
    /// The row of the mail that held the link.
    pub message_id: Uuid,
    /// The category of its template; nothing: not known, so that everything is meant.
    pub category: Option<String>,
}

/// Makes links and reads them.
#[derive(Clone)]
pub struct UnsubscribeLinks {
    base: String,
    key: [u8; 32],
    placeholder: String,
}

// The key is a secret.
impl std::fmt::Debug for UnsubscribeLinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnsubscribeLinks").field("base", &self.base).finish_non_exhaustive()
    }
}

impl UnsubscribeLinks {
    /// Links under this public URL (`EMAIL_PUBLIC_URL`, without a slash at its end), signed with what is derived from the key.
    #[must_use]
    pub fn new(public_url: &str, hash_key: &SecretString) -> Self {
        let derived = |purpose: &[u8]| mac(hash_key.expose_secret().as_bytes(), &[purpose]);
        let placeholder = derived(b"postrider: the placeholder of unsubscribe links, 1");
        Self {
            base: format!("{public_url}{PATH}"),
            key: derived(b"postrider: unsubscribe links, 1"),
            placeholder: format!("{NOWHERE}{}", hex::encode(&placeholder[..16])),
        }
    }

    /// What bodies are rendered with: the system variable `postrider.unsubscribe_url`.
    #[must_use]
    pub fn placeholder(&self) -> &str {
        &self.placeholder
    }

    /// Where this person takes herself off.
    #[must_use]
    pub fn link(&self, told: &Unsubscription) -> String {
        let category = told.category.as_deref().unwrap_or_default();
        let mut content = Vec::with_capacity(HEAD_BYTES + category.len() + SIGNATURE_BYTES);
        content.push(VERSION);
        content.extend_from_slice(&told.address_hash);
        content.extend_from_slice(told.message_id.as_bytes());
        content.extend_from_slice(category.as_bytes());
        let signature = mac(&self.key, &[&content]);
        content.extend_from_slice(&signature[..SIGNATURE_BYTES]);
        format!("{}/{}", self.base, URL_SAFE_NO_PAD.encode(content))
    }

    /// What a link's last part says; nothing: it is none of ours.
    #[must_use]
    pub fn read(&self, token: &str) -> Option<Unsubscription> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (content, signature) = bytes.split_at_checked(bytes.len().checked_sub(SIGNATURE_BYTES)?)?;
        let mut expected = hmac_of(&self.key);
        expected.update(content);
        expected.verify_truncated_left(signature).ok()?;
        let (head, category) = content.split_at_checked(HEAD_BYTES)?;
        let (version, head) = head.split_first()?;
        let (hash, row) = head.split_at_checked(32)?;
        if *version != VERSION || category.len() > CATEGORY_BYTES_MAX {
            return None;
        }
        let category = std::str::from_utf8(category).ok()?;
        Some(Unsubscription {
            address_hash: hash.try_into().ok()?,
            message_id: Uuid::from_slice(row).ok()?,
            category: Some(category.to_owned()).filter(|category| !category.is_empty()),
        })
    }
}

fn hmac_of(key: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = hmac_of(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn links(key: &str) -> UnsubscribeLinks {
        UnsubscribeLinks::new("https://mail.rgz.bj", &SecretString::from(key))
    }

    fn told(category: Option<&str>) -> Unsubscription {
        Unsubscription { address_hash: [7; 32], message_id: Uuid::from_u128(9), category: category.map(str::to_owned) }
    }

    fn token(link: &str) -> &str {
        link.rsplit_once('/').expect("a path").1
    }

    #[test]
    fn a_link_says_what_it_was_made_for_and_fits_into_a_header() {
        let links = links("0123456789abcdef0123456789abcdef");
        for category in [None, Some("marketing"), Some(&*"c".repeat(CATEGORY_BYTES_MAX))] {
            let link = links.link(&told(category));
            assert!(link.starts_with("https://mail.rgz.bj/api/v1/email/unsubscribe/"), "{link}");
            assert!(link.len() < 300 && link.bytes().all(|b| b.is_ascii_graphic()), "{link}");
            assert_eq!(links.read(token(&link)), Some(told(category)));
        }
    }

    #[test]
    fn nobody_else_makes_one() {
        let (ours, theirs) = (links("0123456789abcdef0123456789abcdef"), links("fedcba9876543210fedcba9876543210"));
        let link = theirs.link(&told(Some("marketing")));
        assert_eq!(ours.read(token(&link)), None);
        assert_ne!(ours.placeholder(), theirs.placeholder());
        for none in ["", "AAAA", "é", &"A".repeat(5000), "example"] {
            assert_eq!(ours.read(none), None);
        }
        assert!(!format!("{ours:?}").contains(&hex::encode(ours.key)) && !format!("{ours:?}").contains("key"));
    }

    proptest! {
        #[test]
        fn whatever_is_changed_in_one_makes_it_worthless(at in 0_usize..100, bit in 0_u8..8) {
            let links = links("0123456789abcdef0123456789abcdef");
            let link = links.link(&told(Some("marketing")));
            let mut bytes = URL_SAFE_NO_PAD.decode(token(&link)).expect("base64url");
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(links.read(&URL_SAFE_NO_PAD.encode(&bytes)), None);
            bytes[at] ^= 1 << bit;
            bytes.truncate(at);
            prop_assert_eq!(links.read(&URL_SAFE_NO_PAD.encode(&bytes)), None);
        }

        #[test]
        fn what_is_no_link_is_read_without_harm(token in ".{0,200}") {
            prop_assert_eq!(links("0123456789abcdef0123456789abcdef").read(&token), None);
        }
    }
}
