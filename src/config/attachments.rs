//! Where attachments may come from, and where their bytes are kept.
//!
//! Invariant: nothing is fetched from anywhere that is not named here.

use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;
use url::{Host, Url};

use super::{
    parse::{self, Parsed},
    read::{Reader, Recorded, secret},
};

/// All files of one mail, unless one file may be larger: in base64 what Amazon SES still takes.
const TOTAL_MB: usize = 25;
const MB: u64 = 1024 * 1024;

/// Where attachments may come from, and where their bytes are kept.
#[derive(Debug, Clone)]
pub struct AttachmentConfig {
    /// `ATTACHMENT_HTTPS_HOSTS`: `host` or `host:port`, lower case; empty: no https references.
    pub https_hosts: Vec<String>,
    /// `ATTACHMENT_S3_BUCKETS`; empty: no s3 references.
    pub s3_buckets: Vec<String>,
    /// `ATTACHMENT_FOLDER`; nothing: no file references.
    pub folder: Option<PathBuf>,
    /// `ATTACHMENT_CA_FILE`: certificates to trust besides the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// `ATTACHMENT_FETCH_TIMEOUT_SECONDS`: from the connection to the last byte of one file (30 s).
    pub fetch_timeout: Duration,
    /// `ATTACHMENT_FETCHES_MAX`: at once, in the fast lane and in the others together (8).
    pub fetches_max: usize,
    /// `EMAIL_ATTACHMENT_STORE`.
    pub kept_in: KeptIn,
    /// How buckets are reached.
    pub s3: S3Config,
}

/// Where the bytes of attachments are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KeptIn {
    /// In the database.
    #[default]
    Postgres,
    /// In a bucket.
    S3 {
        /// Its name.
        bucket: String,
        /// What all keys begin with; without slashes at its ends, may be empty.
        prefix: String,
    },
    /// In a folder, absolute.
    Folder(PathBuf),
}

/// How buckets are reached.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// `AWS_REGION`.
    pub region: String,
    /// `AWS_ENDPOINT_URL_S3`; nothing: Amazon's.
    pub endpoint: Option<String>,
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; nothing: the role of the machine, pod or task.
    pub credentials: Option<S3Credentials>,
}

/// A key for S3.
#[derive(Debug, Clone)]
pub struct S3Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub key_id: SecretString,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret: SecretString,
    /// `AWS_SESSION_TOKEN`, of temporary keys.
    pub token: Option<SecretString>,
}

impl Default for AttachmentConfig {
    /// Nothing can be fetched, and bytes are kept in the database.
    fn default() -> Self {
        Self {
            https_hosts: Vec::new(),
            s3_buckets: Vec::new(),
            folder: None,
            ca_file: None,
            fetch_timeout: Duration::from_secs(30),
            fetches_max: 8,
            kept_in: KeptIn::Postgres,
            s3: S3Config { region: "us-east-1".to_owned(), endpoint: None, credentials: None },
        }
    }
}

pub(super) fn attachments(r: &mut Reader<'_>) -> Result<AttachmentConfig, Recorded> {
    let https_hosts = r.read_optional("ATTACHMENT_HTTPS_HOSTS", https_hosts);
    let s3_buckets = r.read_optional("ATTACHMENT_S3_BUCKETS", buckets);
    let folder = r.read_optional("ATTACHMENT_FOLDER", folder);
    let ca_file = r.read_optional("ATTACHMENT_CA_FILE", parse::ca_file);
    let fetch_timeout = r.read("ATTACHMENT_FETCH_TIMEOUT_SECONDS", parse::seconds(1..=300));
    let fetches_max = r.read("ATTACHMENT_FETCHES_MAX", parse::number(1..=100_usize));
    let kept_in = r.read("EMAIL_ATTACHMENT_STORE", kept_in);
    let s3 = s3(r);
    Ok(AttachmentConfig {
        https_hosts: https_hosts?.unwrap_or_default(),
        s3_buckets: s3_buckets?.unwrap_or_default(),
        folder: folder?,
        ca_file: ca_file?,
        fetch_timeout: fetch_timeout?,
        fetches_max: fetches_max?,
        kept_in: kept_in?,
        s3: s3?,
    })
}

fn s3(r: &mut Reader<'_>) -> Result<S3Config, Recorded> {
    let region = r.read("AWS_REGION", region);
    let endpoint = r.read_optional("AWS_ENDPOINT_URL_S3", endpoint);
    let key_id = r.read_optional("AWS_ACCESS_KEY_ID", |text| Ok(secret(text.trim())));
    let key_secret = r.read_optional("AWS_SECRET_ACCESS_KEY", |text| Ok(secret(text.trim())));
    let token = r.read_optional("AWS_SESSION_TOKEN", |text| Ok(secret(text.trim())));
    let credentials = match (key_id, key_secret, token) {
        (Ok(Some(key_id)), Ok(Some(secret)), Ok(token)) => Ok(Some(S3Credentials { key_id, secret, token })),
        (Ok(None), Ok(None), Ok(None)) => Ok(None),
        (Ok(Some(_)), Ok(None), _) => {
            Err(r.fault("AWS_SECRET_ACCESS_KEY", "is missing although AWS_ACCESS_KEY_ID is set"))
        }
        (Ok(None), Ok(Some(_)), _) => {
            Err(r.fault("AWS_ACCESS_KEY_ID", "is missing although AWS_SECRET_ACCESS_KEY is set"))
        }
        (Ok(None), Ok(None), Ok(Some(_))) => Err(r.fault("AWS_SESSION_TOKEN", "is set without AWS_ACCESS_KEY_ID")),
        (Err(recorded), _, _) | (_, Err(recorded), _) | (_, _, Err(recorded)) => Err(recorded),
    };
    Ok(S3Config { region: region?, endpoint: endpoint?, credentials: credentials? })
}

/// The limit of all files of a mail, in bytes; `one_mb` is that of each.
pub(super) fn total_max(r: &mut Reader<'_>, one_mb: Option<usize>) -> Result<u64, Recorded> {
    let total = r.read_optional("EMAIL_MAX_ATTACHMENTS_TOTAL_MB", parse::number(1..=200_usize))?;
    let one_mb = one_mb.unwrap_or_default();
    match total {
        Some(total) if total < one_mb => Err(
            r.fault("EMAIL_MAX_ATTACHMENTS_TOTAL_MB", format!("is less than EMAIL_MAX_ATTACHMENT_SIZE_MB, {one_mb}"))
        ),
        total => Ok(total.unwrap_or_else(|| TOTAL_MB.max(one_mb)) as u64 * MB),
    }
}

/// `host` or `host:port`, each once; 443 is left out.
fn https_hosts(text: &str) -> Parsed<Vec<String>> {
    let mut hosts = Vec::new();
    for (index, entry) in text.split(',').map(str::trim).enumerate() {
        let wrong =
            || format!("has an entry ({}) that is not a host name or address, with or without a port", index + 1);
        // A scheme, a path or a wildcard would be taken for something that is not checked.
        if entry.is_empty() || entry.contains(['/', '*', '@', '?', '#']) {
            return Err(wrong());
        }
        let url = Url::parse(&format!("https://{entry}/")).map_err(|_| wrong())?;
        let host = host_of(&url).ok_or_else(wrong)?;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

/// As [`AttachmentConfig::https_hosts`] writes the host of a URL.
#[must_use]
pub(crate) fn host_of(url: &Url) -> Option<String> {
    let host = match url.host()? {
        // The dot of the root is another way to write the same name; two are no name at all.
        Host::Domain(name) => name.strip_suffix('.').unwrap_or(name).to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => format!("[{address}]"),
    };
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}

fn buckets(text: &str) -> Parsed<Vec<String>> {
    let mut buckets: Vec<String> = Vec::new();
    for (index, name) in text.split(',').map(str::trim).enumerate() {
        if !is_bucket(name) {
            return Err(format!("has an entry ({}) that is not the name of a bucket", index + 1));
        }
        if !buckets.iter().any(|known| known == name) {
            buckets.push(name.to_owned());
        }
    }
    Ok(buckets)
}

/// As S3 names them: 3 to 63 of a-z, 0-9, `-` and `.`.
fn is_bucket(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && !name.contains("..")
}

/// A folder that is there, as it is written: links in its own path are the operator's.
fn folder(text: &str) -> Parsed<PathBuf> {
    let path = Path::new(text.trim());
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err("is not the absolute path of a folder".to_owned());
    }
    let found = path.canonicalize().map_err(|error| format!("cannot be looked at: {}", error.kind()))?;
    if !found.is_dir() {
        return Err("is not a folder".to_owned());
    }
    if found == Path::new("/") {
        return Err("is the root of the file system: name the folder that the files lie in".to_owned());
    }
    Ok(path.components().collect())
}

fn kept_in(text: &str) -> Parsed<KeptIn> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("postgres") {
        return Ok(KeptIn::Postgres);
    }
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_bucket(bucket) {
            return Err("does not name a bucket as s3://bucket/prefix".to_owned());
        }
        let prefix = prefix.trim_matches('/');
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if prefix.len() > 200
            || !prefix.bytes().all(sound)
            || !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | ".."))
        {
            return Err("has a prefix that is not of letters, digits, - _ . and / between them".to_owned());
        }
        return Ok(KeptIn::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
    }
    match text.strip_prefix("file://") {
        Some(path) => folder(path).map(KeptIn::Folder),
        None => Err("is neither postgres nor s3://bucket/prefix nor file:///folder".to_owned()),
    }
}

fn region(text: &str) -> Parsed<String> {
    let text = text.trim();
    let sound = (1..=40).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if sound { Ok(text.to_owned()) } else { Err("is not the name of a region".to_owned()) }
}

fn endpoint(text: &str) -> Parsed<String> {
    let url = Url::parse(text.trim()).map_err(|_| "is not a URL".to_owned())?;
    let is_bare = matches!(url.scheme(), "https" | "http")
        && url.host().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none();
    if is_bare {
        Ok(url.as_str().trim_end_matches('/').to_owned())
    } else {
        Err("is not an https:// or http:// URL without user, path and query".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_exactly() {
        let hosts = https_hosts("Files.RGZ.bj, files.rgz.bj:443,[::1]:8443,127.0.0.1:9").expect("sound");
        assert_eq!(hosts, ["files.rgz.bj", "[::1]:8443", "127.0.0.1:9"]);
        for wrong in ["", "https://a.bj", "*.rgz.bj", "a.bj/x", "user@a.bj", "a.bj,", "a b.bj"] {
            assert!(https_hosts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_are_kept_where_it_says() {
        assert_eq!(kept_in("Postgres"), Ok(KeptIn::Postgres));
        let s3 = |bucket: &str, prefix: &str| Ok(KeptIn::S3 { bucket: bucket.into(), prefix: prefix.into() });
        assert_eq!(kept_in("s3://mails"), s3("mails", ""));
        assert_eq!(kept_in("s3://mails/kept/files/"), s3("mails", "kept/files"));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().canonicalize().expect("it is there");
        assert_eq!(kept_in(&format!("file://{}", path.display())), Ok(KeptIn::Folder(path)));
        for wrong in [
            "s3://A",
            "s3://mails/../x",
            "s3://mails/a//b",
            "file://relative",
            "file:///not/there",
            "file:///",
            "gs://x",
        ] {
            assert!(kept_in(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_endpoint_is_a_bare_url() {
        assert_eq!(endpoint("http://127.0.0.1:9000/").as_deref(), Ok("http://127.0.0.1:9000"));
        for wrong in ["minio", "ftp://x", "https://u:p@x", "https://x/path", "https://x?q"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
