//! Files that go with a mail: which kinds there are, and whether a file is what it says it is.
//!
//! Invariant: declared type, extension and content agree, or the file is refused. A file name that passed
//! `clean_file_name` is safe to write into a header and to show.

use std::fmt;

/// Longest file name, in characters.
const FILE_NAME_MAX: usize = 255;
/// What a file is called that has no usable name.
const NAMELESS: &str = "attachment";
/// Names that Windows keeps for devices, whatever stands behind their first dot; and these with a digit behind them.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];
const NUMBERED_DEVICES: [&str; 2] = ["com", "lpt"];

/// The kinds of files that can be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileType {
    /// `application/pdf`.
    Pdf,
    /// `image/png`.
    Png,
    /// `image/jpeg`.
    Jpeg,
    /// `application/json`.
    Json,
    /// `text/csv`.
    Csv,
}

impl FileType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pdf, Self::Png, Self::Jpeg, Self::Json, Self::Csv];

    /// As in settings and manifests: `pdf`, `png`, `jpg`, `json`, `csv`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pdf => "pdf",
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Json => "json",
            Self::Csv => "csv",
        }
    }

    /// The type of this name; `jpeg` is `jpg`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "jpeg" => Some(Self::Jpeg),
            _ => Self::ALL.into_iter().find(|kind| kind.name() == name),
        }
    }

    /// What the mail declares it as.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Pdf => "application/pdf",
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Json => "application/json",
            Self::Csv => "text/csv",
        }
    }

    /// The type of a declared content type: lower case, without parameters.
    #[must_use]
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type {
            "image/jpg" => Some(Self::Jpeg),
            "application/csv" => Some(Self::Csv),
            _ => Self::ALL.into_iter().find(|kind| kind.content_type() == content_type),
        }
    }

    /// The type that a file name's ending promises.
    #[must_use]
    pub fn from_file_name(file_name: &str) -> Option<Self> {
        let (_, extension) = file_name.rsplit_once('.')?;
        Self::from_name(&extension.to_ascii_lowercase())
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a file may not go with a mail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadAttachment {
    /// Its declared type is none that is allowed.
    #[error(
        "attachment \"{file_name}\": type {declared} is not allowed here (allowed by EMAIL_ALLOWED_ATTACHMENT_TYPES: {allowed})"
    )]
    NotAllowed {
        /// Which file.
        file_name: String,
        /// What it says it is.
        declared: String,
        /// What it could be.
        allowed: String,
    },
    /// Its name says something else than its declared type.
    #[error("attachment \"{file_name}\": its name does not end as {declared} does (allowed: {allowed})")]
    NameDisagrees {
        /// Which file.
        file_name: String,
        /// What it says it is.
        declared: String,
        /// What it could be.
        allowed: String,
    },
    /// Its content is something else than its declared type.
    #[error("attachment \"{file_name}\": declared as {declared}, but the content is {found} (allowed: {allowed})")]
    ContentDisagrees {
        /// Which file.
        file_name: String,
        /// What it says it is.
        declared: String,
        /// What it is.
        found: String,
        /// What it could be.
        allowed: String,
    },
    /// There is nothing in it.
    #[error("attachment \"{file_name}\" ({declared}) is empty")]
    Empty {
        /// Which file.
        file_name: String,
        /// What it says it is.
        declared: String,
    },
    /// It is larger than the limit.
    #[error(
        "attachment \"{file_name}\" ({declared}) has {size} bytes; the limit is {limit} (EMAIL_MAX_ATTACHMENT_SIZE_MB): make it smaller, or link to it"
    )]
    TooLarge {
        /// Which file.
        file_name: String,
        /// What it says it is.
        declared: String,
        /// How large it is.
        size: u64,
        /// How large it may be.
        limit: usize,
    },
}

/// Whether a file may go with a mail as far as it is described: of an allowed type, with a name that agrees with it, neither
/// empty nor too large. What cannot go is not worth fetching.
///
/// `file_name` is a cleaned one, `content_type` is lower case and has no parameters.
///
/// # Errors
/// The first thing that is wrong, with the file's name.
pub fn check_description(
    file_name: &str,
    content_type: &str,
    size: u64,
    allowed: &[FileType],
    bytes_max: usize,
) -> Result<FileType, BadAttachment> {
    let (file_name, declared) = (file_name.to_owned(), content_type.to_owned());
    let Some(kind) = FileType::from_content_type(content_type).filter(|kind| allowed.contains(kind)) else {
        return Err(BadAttachment::NotAllowed { file_name, declared, allowed: names_of(allowed) });
    };
    if FileType::from_file_name(&file_name) != Some(kind) {
        return Err(BadAttachment::NameDisagrees { file_name, declared, allowed: names_of(allowed) });
    }
    if size > bytes_max as u64 {
        return Err(BadAttachment::TooLarge { file_name, declared, size, limit: bytes_max });
    }
    if size == 0 {
        return Err(BadAttachment::Empty { file_name, declared });
    }
    Ok(kind)
}

/// The same of a file that is at hand: its content must agree as well.
///
/// # Errors
/// The first thing that is wrong, with the file's name.
pub fn check_attachment(
    file_name: &str,
    content_type: &str,
    bytes: &[u8],
    allowed: &[FileType],
    bytes_max: usize,
) -> Result<FileType, BadAttachment> {
    let kind = check_description(file_name, content_type, bytes.len() as u64, allowed, bytes_max)?;
    match content_found(kind, bytes) {
        None => Ok(kind),
        Some(found) => Err(BadAttachment::ContentDisagrees {
            file_name: file_name.to_owned(),
            declared: content_type.to_owned(),
            found: found.to_owned(),
            allowed: names_of(allowed),
        }),
    }
}

fn names_of(allowed: &[FileType]) -> String {
    match allowed {
        [] => "none".to_owned(),
        _ => allowed.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", "),
    }
}

/// What the bytes are if they are not what `kind` says.
fn content_found(kind: FileType, bytes: &[u8]) -> Option<&'static str> {
    let sniffed = infer::get(bytes).map(|found| found.mime_type());
    match kind {
        FileType::Pdf | FileType::Png | FileType::Jpeg => match sniffed {
            Some(mime) if mime == kind.content_type() => None,
            Some(mime) => Some(mime),
            None => Some("of no known type"),
        },
        FileType::Json if serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() => None,
        FileType::Json => Some(sniffed.unwrap_or("not JSON")),
        FileType::Csv => match (sniffed, std::str::from_utf8(bytes)) {
            (Some(mime), _) => Some(mime),
            (None, Err(_)) => Some("not UTF-8 text"),
            (None, Ok(text)) if text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\r' | '\n')) => {
                Some("not text (it holds control characters)")
            }
            (None, Ok(_)) => None,
        },
    }
}

/// A file name without a path, without characters that headers or file systems stumble over, of at most 255 characters.
#[must_use]
pub fn clean_file_name(name: &str) -> String {
    let mut cleaned = cleaned_once(name);
    // What was cut off may leave another ending, and that other blanks and dots before it: each round leaves less.
    loop {
        let again = cleaned_once(&cleaned);
        if again == cleaned {
            return cleaned;
        }
        cleaned = again;
    }
}

fn cleaned_once(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let kept: String = name
        .chars()
        .filter(|&c| !c.is_control() && !is_invisible(c))
        .map(|c| if "<>:\"|?*".contains(c) { '_' } else { c })
        .collect();
    let kept = kept.trim_matches(|c: char| c.is_whitespace() || c == '.');
    let (stem, extension) = match kept.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && (1..=20).contains(&extension.chars().count()) => {
            (stem, Some(extension))
        }
        _ => (kept, None),
    };
    let room = FILE_NAME_MAX - extension.map_or(0, |extension| 1 + extension.chars().count());
    let mark = if is_device(kept) { "_" } else { "" };
    let stem = if stem.is_empty() { NAMELESS } else { stem };
    let mut cleaned: String = mark.chars().chain(stem.chars()).take(room).collect();
    cleaned.truncate(cleaned.trim_end_matches(|c: char| c.is_whitespace() || c == '.').len());
    if let Some(extension) = extension {
        cleaned.push('.');
        cleaned.push_str(extension);
    }
    cleaned
}

/// Whether Windows would take a file of this name for a device.
fn is_device(name: &str) -> bool {
    let base = name.split('.').next().unwrap_or_default().trim_end();
    let is = |device: &&str| device.eq_ignore_ascii_case(base);
    let numbered =
        base.split_at_checked(3).filter(|(_, digit)| digit.len() == 1 && digit.as_bytes()[0].is_ascii_digit());
    DEVICES.iter().any(is)
        || numbered.is_some_and(|(name, _)| NUMBERED_DEVICES.iter().any(|device| device.eq_ignore_ascii_case(name)))
}

/// Whether an inline image can be called this: printable ASCII without blanks and angle brackets, at most 250 octets.
#[must_use]
pub fn is_content_id(text: &str) -> bool {
    (1..=250).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'<' && b != b'>')
}

/// Characters that change how a name reads without being seen: they can make `fdp.exe` look like `exe.pdf`.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PDF: &[u8] = b"%PDF-1.7\n%\xE2\xE3\xCF\xD3\n";
    const PNG: &[u8] = b"\x89PNG\r\n\x1A\n\0\0\0\rIHDR";
    const JPEG: &[u8] = b"\xFF\xD8\xFF\xE0\0\x10JFIF";

    fn check(name: &str, declared: &str, bytes: &[u8]) -> Result<FileType, String> {
        check_attachment(name, declared, bytes, &FileType::ALL, 1000).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_that_is_what_it_says_is_taken() {
        for (name, declared, bytes, kind) in [
            ("Facture.PDF", "application/pdf", PDF, FileType::Pdf),
            ("logo.png", "image/png", PNG, FileType::Png),
            ("photo.jpeg", "image/jpeg", JPEG, FileType::Jpeg),
            ("photo.jpg", "image/jpg", JPEG, FileType::Jpeg),
            ("data.json", "application/json", br#" {"a": [1, "\u00e9"]} "#, FileType::Json),
            ("rapport.csv", "text/csv", "\u{FEFF}mois;débit\r\nfévrier;1\t2\r\n".as_bytes(), FileType::Csv),
        ] {
            assert_eq!(check(name, declared, bytes), Ok(kind), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_something_else_is_refused_by_name() {
        for (name, declared, bytes, want) in [
            (
                "a.exe",
                "application/x-msdownload",
                b"MZ".as_slice(),
                "\"a.exe\": type application/x-msdownload is not allowed here (allowed by EMAIL_ALLOWED_ATTACHMENT_TYPES: pdf, png, jpg, json, csv)",
            ),
            ("a.exe", "application/pdf", PDF, "does not end as application/pdf"),
            ("pdf", "application/pdf", PDF, "does not end as application/pdf"),
            ("a.pdf", "application/pdf", PNG, "declared as application/pdf, but the content is image/png"),
            ("a.pdf", "application/pdf", b"MZ\x90\0", "but the content is application/"),
            ("a.pdf", "application/pdf", b"hello", "of no known type"),
            ("a.json", "application/json", b"{\"a\": 1", "not JSON"),
            ("a.json", "application/json", PDF, "application/pdf"),
            ("a.csv", "text/csv", b"a;b\0c", "control characters"),
            ("a.csv", "text/csv", b"a;\xE9\xE9", "not UTF-8"),
            ("a.csv", "text/csv", PDF, "application/pdf"),
            ("a.csv", "text/csv", b"", "is empty"),
        ] {
            let error = check(name, declared, bytes).expect_err(name);
            assert!(error.contains(want), "{error}");
        }
        let error = check_attachment("a.pdf", "application/pdf", &[b'x'; 11], &FileType::ALL, 10).expect_err("large");
        let words = "attachment \"a.pdf\" (application/pdf) has 11 bytes; the limit is 10 (EMAIL_MAX_ATTACHMENT_SIZE_MB): \
                     make it smaller, or link to it";
        assert_eq!(error.to_string(), words);
        let error = check_attachment("a.csv", "text/csv", b"x", &[FileType::Pdf], 10).expect_err("type");
        assert!(error.to_string().ends_with(": pdf)"));
        let error = check_attachment("a.csv", "text/csv", b"x", &[], 10).expect_err("type");
        assert!(error.to_string().ends_with(": none)"));
    }

    #[test]
    fn names_are_cleaned() {
        for (given, want) in [
            ("Facture février.pdf", "Facture février.pdf"),
            ("../../etc/passwd", "passwd"),
            ("C:\\temp\\a.pdf", "a.pdf"),
            ("a\r\nBcc: x@y.z\0.pdf", "aBcc_ x@y.z.pdf"),
            ("\u{202E}fdp.exe", "fdp.exe"),
            (" . ", "attachment"),
            ("", "attachment"),
            (".htaccess", "htaccess"),
            ("NUL.pdf", "_NUL.pdf"),
            ("nul.tar.gz", "_nul.tar.gz"),
            ("COM1.csv", "_COM1.csv"),
            ("lpt9", "_lpt9"),
            ("console.csv", "console.csv"),
            ("com.pdf", "com.pdf"),
            ("a\"b.csv", "a_b.csv"),
            ("dir/", "attachment"),
        ] {
            assert_eq!(clean_file_name(given), want, "{given:?}");
        }
        let cut = clean_file_name(&format!("{}.=?utf-8..?Q?a=0D=0ABcc:_x?=htaccess", "1844".repeat(62)));
        assert_eq!(clean_file_name(&cut), cut);
        let long = clean_file_name(&format!("{}.pdf", "é".repeat(400)));
        assert_eq!((long.chars().count(), long.ends_with("é.pdf")), (255, true));
    }

    #[test]
    fn content_ids() {
        for (text, want) in
            [("logo@rgz", true), ("logo", true), ("", false), ("a b", false), ("a>\r\nX: y", false), ("é", false)]
        {
            assert_eq!(is_content_id(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_cleaned_name_is_clean(name in any::<String>()) {
            let cleaned = clean_file_name(&name);
            prop_assert!(!cleaned.is_empty() && cleaned.chars().count() <= FILE_NAME_MAX);
            prop_assert!(!cleaned.chars().any(|c| c.is_control() || "/\\\"".contains(c)));
            prop_assert_eq!(clean_file_name(&cleaned), cleaned);
        }
    }
}
