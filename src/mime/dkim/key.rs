//! Private keys of a domain: read from PEM, and the DNS record that lets others verify with them.
//!
//! Invariant: nothing here prints a private key.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

/// `rsaEncryption`, as it stands in DER.
const RSA_OID: [u8; 11] = [0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
/// `id-Ed25519`.
const ED25519_OID: [u8; 5] = [0x06, 0x03, 0x2B, 0x65, 0x70];
/// Characters of one string of a TXT record (RFC 1035 §3.3).
const TXT_CHARS_MAX: usize = 255;

/// A key that signs the mails of a domain.
pub struct SigningKey {
    domain: String,
    selector: String,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Ed25519KeyPair),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("record", &self.record_name())
            .field("algorithm", &self.algorithm())
            .finish_non_exhaustive()
    }
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No private key in PEM.
    #[error("holds no private key in PEM (PKCS#8 or PKCS#1)")]
    NoKey,
    /// A pass phrase is needed.
    #[error("holds a private key that is encrypted; decrypt it (openssl pkey -in FILE -out FILE)")]
    Encrypted,
    /// Of another kind.
    #[error("holds a private key that is neither RSA nor Ed25519")]
    OtherKind,
    /// RSA of another size.
    #[error("holds an RSA key that is not of 2048, 3072 or 4096 bits: shorter ones are no protection any more")]
    Size,
    /// Something is wrong in it.
    #[error("holds a private key that is damaged ({0})")]
    Damaged(String),
    /// It cannot sign.
    #[error("cannot sign")]
    Signing,
}

impl SigningKey {
    /// A key of `domain`, published under `selector`.
    ///
    /// # Errors
    /// When `pem` holds no key that can sign: see [`KeyError`].
    pub fn from_pem(domain: String, selector: String, pem: &str) -> Result<Self, KeyError> {
        if pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || pem.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        let pair = match PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::NoKey)? {
            PrivateKeyDer::Pkcs1(der) => rsa(RsaKeyPair::from_der(der.secret_pkcs1_der()))?,
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                // The algorithm stands before the key itself.
                let holds = |oid: &[u8]| der.windows(oid.len()).take(40).any(|window| window == oid);
                if holds(&RSA_OID) {
                    rsa(RsaKeyPair::from_pkcs8(der))?
                } else if holds(&ED25519_OID) {
                    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der);
                    Pair::Ed25519(pair.map_err(|error| KeyError::Damaged(error.to_string()))?)
                } else {
                    return Err(KeyError::OtherKind);
                }
            }
            _ => return Err(KeyError::OtherKind),
        };
        Ok(Self { domain, selector, pair })
    }

    /// The domain that answers for the mail (`d=`).
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Which of its keys (`s=`).
    #[must_use]
    pub fn selector(&self) -> &str {
        &self.selector
    }

    /// `rsa-sha256` or `ed25519-sha256` (`a=`).
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "rsa-sha256",
            Pair::Ed25519(_) => "ed25519-sha256",
        }
    }

    /// For people: `RSA, 2048 bits` or `Ed25519`.
    #[must_use]
    pub fn kind(&self) -> String {
        match &self.pair {
            Pair::Rsa(pair) => format!("RSA, {} bits", pair.public().modulus_len() * 8),
            Pair::Ed25519(_) => "Ed25519".to_owned(),
        }
    }

    /// Whether this domain's mails are signed with it: its own, and those of domains below it.
    #[must_use]
    pub fn signs_for(&self, sender_domain: &str) -> bool {
        let rest = sender_domain.strip_suffix(&self.domain);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Where verifiers look for the public key.
    #[must_use]
    pub fn record_name(&self) -> String {
        format!("{}._domainkey.{}", self.selector, self.domain)
    }

    /// What must stand there, as one text; longer than 255 characters it is several strings of one TXT record.
    #[must_use]
    pub fn record(&self) -> String {
        let (kind, public) = match &self.pair {
            Pair::Rsa(pair) => ("rsa", subject_public_key_info(pair.public().as_ref())),
            Pair::Ed25519(pair) => ("ed25519", pair.public_key().as_ref().to_vec()),
        };
        format!("v=DKIM1; k={kind}; p={}", BASE64_STANDARD.encode(public))
    }

    /// The record as a zone file has it: strings in quotes, each as long as one may be.
    #[must_use]
    pub fn zone_line(&self) -> String {
        let record = self.record();
        let strings: Vec<String> = record
            .as_bytes()
            .chunks(TXT_CHARS_MAX)
            .map(|piece| format!("\"{}\"", String::from_utf8_lossy(piece)))
            .collect();
        format!("{}. TXT {}", self.record_name(), strings.join(" "))
    }

    /// Signs: RSA the text (hashing it itself), Ed25519 its digest (RFC 8463 §3).
    pub(super) fn sign(&self, digest: &[u8], text: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature)
                    .map_err(|_| KeyError::Signing)?;
                Ok(signature)
            }
            Pair::Ed25519(pair) => Ok(pair.sign(digest).as_ref().to_vec()),
        }
    }
}

fn rsa(read: Result<RsaKeyPair, ring::error::KeyRejected>) -> Result<Pair, KeyError> {
    let pair = read.map_err(|error| match error.to_string().as_str() {
        "TooSmall" | "TooLarge" | "PrivateModulusLenNotMultipleOf512Bits" => KeyError::Size,
        other => KeyError::Damaged(other.to_owned()),
    })?;
    Ok(Pair::Rsa(Box::new(pair)))
}

/// An RSA public key with the name of its algorithm before it (RFC 5280 §4.1), as everybody publishes it.
fn subject_public_key_info(key: &[u8]) -> Vec<u8> {
    let mut algorithm = RSA_OID.to_vec();
    algorithm.extend_from_slice(&[0x05, 0x00]);
    let mut bits = vec![0x00];
    bits.extend_from_slice(key);
    let content = [der(0x30, &algorithm), der(0x03, &bits)].concat();
    der(0x30, &content)
}

/// Tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().position(|&b| b != 0).unwrap_or(length.len() - 1)..];
    let mut out = vec![tag];
    if let &[short @ 0..=0x7F] = significant {
        out.push(short);
    } else {
        // Never more than eight.
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(content);
    out
}
