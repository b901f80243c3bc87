//! What a signing certificate must satisfy before its key counts, and what that key signed. No network here.
//!
//! Invariant: a key that was fetched has a name of SNS in the topic's region, dates that hold, and a chain to an authority
//! that this system trusts.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256, RsaParameters, UnparsedPublicKey,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS,
    prelude::FromDer,
    public_key::PublicKey,
};

use super::{sns::SignatureVersion, topic::Place};

/// Certificates in one file or answer; beyond this it is not what it should be.
const CERTIFICATES_MAX: usize = 16;
/// Where Amazon publishes the certificates of its authorities: `http://crt.<authority>.amazontrust.com/<file>`.
const ISSUER_HOST: (&str, &str) = ("crt.", ".amazontrust.com");

/// Why a certificate's key does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not PEM, or no certificate in it.
    #[error("holds no PEM certificate")]
    NotPem,
    /// PEM, but not X.509.
    #[error("holds a certificate that cannot be read")]
    Unreadable,
    /// SNS signs with RSA only.
    #[error("has a key that is not RSA")]
    NotRsa,
    /// The chain leads to nobody whom this system trusts, or a part of it is not at hand.
    #[error(
        "is not signed by an authority that is trusted here; put the certificate of its issuer ({issuer}) into SNS_CA_FILE"
    )]
    UnknownIssuer {
        /// The issuer's name, as the certificate tells it.
        issuer: String,
    },
    /// It is somebody else's.
    #[error("has none of the names {}", .names.join(", "))]
    WrongName {
        /// The names of SNS in that region.
        names: Vec<String>,
    },
    /// Something else about it: dates, extensions, an authority's limits.
    #[error("is not acceptable ({0})")]
    Untrusted(String),
}

/// A public key that SNS signs with, while its certificate is valid.
#[derive(Debug, Clone)]
pub struct SigningKey {
    rsa: Vec<u8>,
    not_before: DateTime<Utc>,
    not_after: DateTime<Utc>,
}

impl SigningKey {
    /// The key of this certificate, whoever vouches for it.
    ///
    /// # Errors
    /// When it cannot be read, or is not an RSA key.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::Unreadable)?;
        let key = parsed.public_key();
        if !matches!(key.parsed(), Ok(PublicKey::RSA(_))) {
            return Err(CertificateError::NotRsa);
        }
        let at = |time: x509_parser::time::ASN1Time| DateTime::from_timestamp(time.timestamp(), 0);
        let validity = parsed.validity();
        Ok(Self {
            rsa: key.subject_public_key.data.to_vec(),
            not_before: at(validity.not_before).ok_or(CertificateError::Unreadable)?,
            not_after: at(validity.not_after).ok_or(CertificateError::Unreadable)?,
        })
    }

    /// Whether its certificate's dates hold.
    #[must_use]
    pub fn is_valid_at(&self, now: DateTime<Utc>) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// When its certificate ends.
    #[must_use]
    pub const fn not_after(&self) -> DateTime<Utc> {
        self.not_after
    }

    /// Whether this key signed the text. Keys below 2048 bits sign nothing.
    #[must_use]
    pub fn signed(&self, text: &[u8], version: SignatureVersion, signature: &[u8]) -> bool {
        let scheme: &RsaParameters = match version {
            SignatureVersion::V1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            SignatureVersion::V2 => &RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(scheme, &self.rsa).verify(text, signature).is_ok()
    }
}

/// The certificates of a PEM file, in its order; at least one.
///
/// # Errors
/// When there is none, or more than anybody needs.
pub fn read_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(CERTIFICATES_MAX + 1)
        .collect::<Result<_, _>>()
        .map_err(|_| CertificateError::NotPem)?;
    if certificates.is_empty() || certificates.len() > CERTIFICATES_MAX {
        return Err(CertificateError::NotPem);
    }
    Ok(certificates)
}

/// Checks chain, dates and name of a signing certificate.
///
/// # Errors
/// When it is not SNS's, as far as one can know from here.
pub fn check(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    names: &[String],
    now: DateTime<Utc>,
) -> Result<(), CertificateError> {
    let parsed = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::Unreadable)?;
    let is_named = |name: &String| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok())
    };
    if !names.iter().any(is_named) {
        return Err(CertificateError::WrongName { names: names.to_vec() });
    }
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    parsed
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &roots.roots,
            intermediates,
            time,
            // SNS's certificates are web servers' certificates.
            KeyUsage::server_auth(),
            None,
            None,
        )
        .map(drop)
        .map_err(|error| match error {
            webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer { issuer: issuer_name(leaf) },
            other => CertificateError::Untrusted(other.to_string()),
        })
}

fn issuer_name(certificate: &CertificateDer<'_>) -> String {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, parsed)| parsed.issuer().to_string()).unwrap_or_default()
}

/// Where the issuer's own certificate is published, if that is a place of Amazon's authorities. SNS publishes its
/// certificates without their issuers'.
#[must_use]
pub fn issuer_place(certificate: &CertificateDer<'_>) -> Option<Place> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    parsed
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityInfoAccess(access) => Some(access),
            _ => None,
        })
        .flat_map(|access| &access.accessdescs)
        .filter(|place| place.access_method == OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS)
        .find_map(|place| match place.access_location {
            GeneralName::URI(uri) => amazons(uri),
            _ => None,
        })
}

fn amazons(uri: &str) -> Option<Place> {
    let (host, file) = uri.strip_prefix("http://")?.split_once('/')?;
    let label = host.strip_prefix(ISSUER_HOST.0)?.strip_suffix(ISSUER_HOST.1)?;
    let is_label =
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let in_file = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    let is_file = (1..=100).contains(&file.len()) && file.bytes().all(in_file);
    (is_label && is_file).then(|| Place { host: host.to_owned(), target: format!("/{file}") })
}

/// Whom this system trusts, and whom `SNS_CA_FILE` adds.
#[must_use]
pub fn authorities(added: Vec<CertificateDer<'static>>) -> (Arc<RootCertStore>, usize) {
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(added);
    // A system store may hold certificates that are old beyond reading; the others still count.
    let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (Arc::new(roots), usable)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, IsCa, KeyPair, date_time_ymd};

    use super::*;

    const NAME: &str = "sns.amazonaws.com";

    struct Chain {
        root: CertificateDer<'static>,
        intermediate: CertificateDer<'static>,
        leaf: CertificateDer<'static>,
    }

    fn chain(change: impl FnOnce(&mut CertificateParams)) -> Chain {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let root =
            CertifiedIssuer::self_signed(authority("Root"), KeyPair::generate().expect("a key")).expect("a root");
        let intermediate =
            CertifiedIssuer::signed_by(authority("Between"), KeyPair::generate().expect("a key"), &root).expect("one");
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        change(&mut params);
        let leaf = params.signed_by(&KeyPair::generate().expect("a key"), &intermediate).expect("a leaf");
        Chain { root: root.der().clone(), intermediate: intermediate.der().clone(), leaf: leaf.der().clone() }
    }

    fn trusting(root: &CertificateDer<'static>) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).expect("a root");
        roots
    }

    fn check_now(chain: &Chain, intermediates: &[CertificateDer<'_>]) -> Result<(), CertificateError> {
        check(&chain.leaf, intermediates, &trusting(&chain.root), &[NAME.to_owned()], Utc::now())
    }

    #[test]
    fn a_chain_must_be_whole_and_end_at_somebody_trusted() {
        let sound = chain(|_| {});
        assert_eq!(check_now(&sound, std::slice::from_ref(&sound.intermediate)), Ok(()));
        assert!(
            matches!(check_now(&sound, &[]), Err(CertificateError::UnknownIssuer { issuer }) if issuer.contains("Between"))
        );
        let other = chain(|_| {});
        assert!(check_now(&Chain { root: other.root, ..sound }, &[other.intermediate]).is_err());
    }

    #[test]
    fn name_and_dates_must_hold() {
        let other = chain(|params| *params = CertificateParams::new(vec!["sns.example".to_owned()]).expect("a name"));
        let found = check_now(&other, std::slice::from_ref(&other.intermediate));
        assert!(matches!(found, Err(CertificateError::WrongName { .. })), "{found:?}");
        for (from, to) in [(2020, 2021), (2098, 2099)] {
            let dated = chain(|params| {
                (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
            });
            let found = check_now(&dated, std::slice::from_ref(&dated.intermediate));
            assert!(matches!(found, Err(CertificateError::Untrusted(_))), "{found:?}");
        }
        let (now, second) = (Utc::now(), TimeDelta::seconds(1));
        let key = SigningKey { rsa: Vec::new(), not_before: now, not_after: now + second };
        assert!(key.is_valid_at(now) && key.is_valid_at(key.not_after()));
        assert!(!key.is_valid_at(now - second) && !key.is_valid_at(key.not_after() + second));
    }

    #[test]
    fn only_rsa_keys_sign() {
        assert_eq!(SigningKey::of(&chain(|_| {}).leaf).expect_err("an elliptic curve"), CertificateError::NotRsa);
        assert_eq!(
            SigningKey::of(&CertificateDer::from(vec![0; 8])).expect_err("nothing"),
            CertificateError::Unreadable
        );
        assert_eq!(read_pem(b"<html>").expect_err("no PEM"), CertificateError::NotPem);
    }

    #[test]
    fn an_issuer_is_only_looked_for_at_amazons() {
        // AuthorityInformationAccess with one caIssuers entry; all lengths stay below 128.
        let with = |uri: &str| {
            let location: Vec<u8> = [&[0x86, u8::try_from(uri.len()).expect("short")], uri.as_bytes()].concat();
            let method = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x02];
            let length = u8::try_from(method.len() + location.len()).expect("short");
            let content = [&[0x30, length + 2, 0x30, length], method.as_slice(), &location].concat();
            let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], content);
            issuer_place(&chain(|params| params.custom_extensions.push(extension)).leaf)
        };
        let place = with("http://crt.r2m01.amazontrust.com/r2m01.cer").expect("Amazon's");
        assert_eq!(place.to_string(), "crt.r2m01.amazontrust.com/r2m01.cer");
        for uri in [
            "http://crt.r2m01.amazontrust.com.evil.example/r2m01.cer",
            "http://crt.evil.example/.amazontrust.com/r2m01.cer",
            "http://crt.a@evil.example#.amazontrust.com/r2m01.cer",
            "http://crt.r2m01.amazontrust.com:81/r2m01.cer",
            "http://169.254.169.254/latest",
            "https://crt.r2m01.amazontrust.com/r2m01.cer",
            "http://crt..amazontrust.com/",
        ] {
            assert_eq!(with(uri), None, "{uri}");
        }
        assert_eq!(issuer_place(&chain(|_| {}).leaf), None);
    }
}
