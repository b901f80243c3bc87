//! A reference's URI, and whether it may be followed. Pure, but that a file's real place is looked up when it is read.
//!
//! Invariant: what is refused here is refused for ever by the same settings: the same bytes fail again.

use std::path::{Component, PathBuf};

use object_store::path::Path;
use url::Url;

use crate::config::AttachmentConfig;

/// Longest URI, in bytes.
const URI_BYTES_MAX: usize = 2048;
/// What our own messages refer to: a file of the mail that they repeat, in the audit.
pub const ARCHIVE: &str = "archive:";

/// Where a reference points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On an allowed host.
    Https {
        /// `host` or `host:port`.
        host: String,
        /// The whole address, without a fragment.
        url: Url,
    },
    /// In an allowed bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The object.
        key: Path,
    },
    /// Under the allowed folder.
    File {
        /// Absolute; links in it are not resolved yet.
        path: PathBuf,
    },
    /// In the audit, beside the mail that is sent again.
    Archive,
}

impl Source {
    /// What metrics call it.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        match self {
            Self::Https { .. } => "https",
            Self::S3 { .. } => "s3",
            Self::File { .. } => "file",
            Self::Archive => "archive",
        }
    }

    /// For people: the place without its path.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Https { host, .. } => format!("https://{host}"),
            Self::S3 { bucket, .. } => format!("s3://{bucket}"),
            Self::File { .. } => "the file".to_owned(),
            Self::Archive => "the archive".to_owned(),
        }
    }
}

/// Why a reference is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReference {
    /// No URI, or one with parts that are not allowed.
    #[error("its reference {0}: use s3://bucket/key, https://host/path or file:///folder/file")]
    Uri(&'static str),
    /// Another scheme.
    #[error("its reference begins with {0}:, which is not fetched: use s3://, https:// or file://")]
    Scheme(String),
    /// A host that is not allowed.
    #[error("its reference points to the host {0}, which is none of ATTACHMENT_HTTPS_HOSTS")]
    Host(String),
    /// A bucket that is not allowed.
    #[error("its reference points to the bucket {0}, which is none of ATTACHMENT_S3_BUCKETS")]
    Bucket(String),
    /// A file elsewhere.
    #[error("its reference points to a file that is not under ATTACHMENT_FOLDER")]
    Folder,
}

/// Where a URI points, if that is allowed.
///
/// # Errors
/// [`BadReference`]: final, and for people.
pub fn source_of(uri: &str, allowed: &AttachmentConfig) -> Result<Source, BadReference> {
    if uri.len() > URI_BYTES_MAX {
        return Err(BadReference::Uri("is longer than 2048 bytes"));
    }
    if uri.chars().any(char::is_control) {
        return Err(BadReference::Uri("holds control characters"));
    }
    if uri == ARCHIVE {
        return Ok(Source::Archive);
    }
    let Some((scheme, rest)) = uri.split_once(':') else { return Err(BadReference::Uri("is not a URI")) };
    match scheme.to_ascii_lowercase().as_str() {
        // Keys are taken as they stand, as the tools of S3 do: neither decoded nor normalised.
        "s3" => s3(rest, allowed),
        "https" => https(uri, allowed),
        "file" => file(uri, allowed),
        other => {
            let is_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
            let shown: String = other.chars().take(20).collect();
            if other.is_empty() || !other.bytes().all(is_scheme) {
                return Err(BadReference::Uri("is not a URI"));
            }
            Err(BadReference::Scheme(shown))
        }
    }
}

fn s3(rest: &str, allowed: &AttachmentConfig) -> Result<Source, BadReference> {
    let named = rest.strip_prefix("//").and_then(|rest| rest.split_once('/')).filter(|(_, key)| !key.is_empty());
    let Some((bucket, key)) = named else { return Err(BadReference::Uri("names no bucket and key")) };
    if !allowed.s3_buckets.iter().any(|known| known == bucket) {
        return Err(BadReference::Bucket(shown(bucket)));
    }
    // No empty part, no `.` and no `..`; a slash at the end would be lost.
    let key = if key.ends_with('/') { None } else { Path::parse(key).ok() };
    let key = key.ok_or(BadReference::Uri("has a key with an empty part, . or .."))?;
    Ok(Source::S3 { bucket: bucket.to_owned(), key })
}

fn https(uri: &str, allowed: &AttachmentConfig) -> Result<Source, BadReference> {
    let mut url = Url::parse(uri).map_err(|_| BadReference::Uri("is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadReference::Uri("holds a user or password"));
    }
    let host = crate::config::host_of(&url).ok_or(BadReference::Uri("names no host"))?;
    if !allowed.https_hosts.contains(&host) {
        return Err(BadReference::Host(shown(&host)));
    }
    // The dot of the root is another way to write the name: whoever is asked, and whose certificate is checked, has one name.
    let bare = url.domain().and_then(|name| name.strip_suffix('.')).map(str::to_owned);
    if bare.is_some() && url.set_host(bare.as_deref()).is_err() {
        return Err(BadReference::Uri("names no host"));
    }
    url.set_fragment(None);
    Ok(Source::Https { host, url })
}

fn file(uri: &str, allowed: &AttachmentConfig) -> Result<Source, BadReference> {
    // The parser resolves `..` also where it is percent-encoded, so that what is compared is what is opened.
    let url = Url::parse(uri).map_err(|_| BadReference::Uri("is not a URL"))?;
    let path = url.to_file_path().map_err(|()| BadReference::Uri("names no file of this machine"))?;
    // A slash that is percent-encoded is none to the parser, and one in the path.
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(BadReference::Folder);
    }
    match &allowed.folder {
        Some(folder) if path.starts_with(folder) && path != *folder => Ok(Source::File { path }),
        Some(_) | None => Err(BadReference::Folder),
    }
}

/// Short enough to be read.
fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> AttachmentConfig {
        AttachmentConfig {
            https_hosts: vec!["files.rgz.bj".to_owned(), "127.0.0.1:8443".to_owned()],
            s3_buckets: vec!["invoices".to_owned()],
            folder: Some(PathBuf::from("/srv/files")),
            ..AttachmentConfig::default()
        }
    }

    #[test]
    fn what_is_named_may_be_followed() {
        let place = |uri: &str| source_of(uri, &allowed()).map(|source| (source.scheme(), source.place()));
        let is = |scheme: &'static str, place: &str| Ok((scheme, place.to_owned()));
        assert_eq!(place("https://files.rgz.bj/a.pdf?X-Amz-Signature=s3cret#x"), is("https", "https://files.rgz.bj"));
        assert_eq!(place("HTTPS://Files.RGZ.bj.:443/a.pdf"), is("https", "https://files.rgz.bj"));
        let Ok(Source::Https { url, .. }) = source_of("https://files.rgz.bj.:443/a.pdf?b#c", &allowed()) else {
            panic!("the dot of the root is no other name")
        };
        assert_eq!(url.as_str(), "https://files.rgz.bj/a.pdf?b");
        assert_eq!(place("https://127.0.0.1:8443/a"), is("https", "https://127.0.0.1:8443"));
        assert_eq!(place("s3://invoices/2026/11/F 1%20.pdf"), is("s3", "s3://invoices"));
        assert_eq!(place("file:///srv/files/a%20b.pdf"), is("file", "the file"));
        assert_eq!(
            source_of("s3://invoices/2026/F 1%20.pdf", &allowed()),
            Ok(Source::S3 { bucket: "invoices".to_owned(), key: Path::parse("2026/F 1%20.pdf").expect("a path") })
        );
    }

    #[test]
    fn nothing_else_may_be() {
        for (uri, want) in [
            ("http://files.rgz.bj/a.pdf", "begins with http:"),
            ("ftp://files.rgz.bj/a.pdf", "begins with ftp:"),
            ("a.pdf", "is not a URI"),
            ("", "is not a URI"),
            ("https://evil.example/files.rgz.bj", "ATTACHMENT_HTTPS_HOSTS"),
            ("https://files.rgz.bj.evil.example/a", "ATTACHMENT_HTTPS_HOSTS"),
            ("https://files.rgz.bj:8443/a", "ATTACHMENT_HTTPS_HOSTS"),
            ("https://files.rgz.bj@evil.example/a", "user or password"),
            ("https://127.0.0.1/a", "ATTACHMENT_HTTPS_HOSTS"),
            ("https://2130706433/a", "ATTACHMENT_HTTPS_HOSTS"),
            ("s3://others/a", "ATTACHMENT_S3_BUCKETS"),
            ("s3://invoices", "names no bucket and key"),
            ("s3://invoices/", "names no bucket and key"),
            ("s3://invoices/../others/a", ". or .."),
            ("s3://invoices/a//b", "empty part"),
            ("s3://invoices/a/", "empty part"),
            ("file:///etc/passwd", "ATTACHMENT_FOLDER"),
            ("file:///srv/files", "ATTACHMENT_FOLDER"),
            ("file:///srv/files-of-others/a", "ATTACHMENT_FOLDER"),
            ("file:///srv/files/../../etc/passwd", "ATTACHMENT_FOLDER"),
            ("file:///srv/files/%2e%2e%2f%2e%2e%2fetc/passwd", "ATTACHMENT_FOLDER"),
            ("file:///srv/files/%2e%2e/%2E%2E/etc/passwd", "ATTACHMENT_FOLDER"),
            ("file://elsewhere/srv/files/a", "no file of this machine"),
            ("https://files.rgz.bj/\r\nHost: x", "control characters"),
            ("https://files.rgz.bj../a.pdf", "ATTACHMENT_HTTPS_HOSTS"),
        ] {
            let error = source_of(uri, &allowed()).expect_err(uri).to_string();
            assert!(error.contains(want), "{uri}: {error}");
        }
        let none = AttachmentConfig::default();
        for uri in ["https://files.rgz.bj/a", "s3://invoices/a", "file:///srv/files/a"] {
            assert!(source_of(uri, &none).is_err(), "{uri}");
        }
        assert!(source_of(&format!("https://files.rgz.bj/{}", "a".repeat(2048)), &allowed()).is_err());
    }
}
