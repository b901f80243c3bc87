//! What an error of an object store means for the file that is wanted.

use std::{error::Error, fmt, io};

use object_store::client::HttpError;

/// Why a file is not at hand. Both are tried again; they end at different times.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchFault {
    /// The place is away, slow, or has no time for us: a fault of the platform.
    #[error("{0}")]
    Unavailable(String),
    /// The place answered, and what it has is not what was announced.
    #[error("{0}")]
    Wrong(String),
}

impl FetchFault {
    /// As metrics call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Wrong(_) => "wrong",
        }
    }
}

/// An answer that is not the file: what its status says, and the code in the body by which S3 says more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) code: Option<String>,
}

impl Answered {
    /// S3 writes `<Error><Code>NoSuchKey</Code>`.
    pub(super) fn new(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
        let is_code = |code: &&str| (1..=60).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric());
        Self { status, code: code.filter(is_code).map(str::to_owned) }
    }

    const fn is_passing(&self) -> bool {
        matches!(self.status, 408 | 425 | 429 | 500..)
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        if (300..400).contains(&self.status) {
            f.write_str(", and redirects are not followed")?;
        }
        Ok(())
    }
}

impl Error for Answered {}

/// What this error of `place` means.
pub(super) fn fault_of(place: &str, error: &object_store::Error) -> FetchFault {
    if let Some(answered) = find::<Answered>(error) {
        let words = format!("{place} {answered}");
        return if answered.is_passing() { FetchFault::Unavailable(words) } else { FetchFault::Wrong(words) };
    }
    if let Some(http) = find::<HttpError>(error) {
        return FetchFault::Unavailable(format!("{place} cannot be reached ({})", root_of(http)));
    }
    if matches!(error, object_store::Error::NotFound { .. }) {
        return FetchFault::Wrong(format!("{place} is not there"));
    }
    match find::<io::Error>(error) {
        Some(io) if io.kind() == io::ErrorKind::PermissionDenied => {
            FetchFault::Wrong(format!("{place} may not be read by this process"))
        }
        Some(io) => FetchFault::Unavailable(format!("{place} cannot be read ({})", io.kind())),
        None => FetchFault::Wrong(format!("{place} gave an answer that cannot be used")),
    }
}

/// Whether it says that there is no such object.
pub(super) fn is_missing(error: &object_store::Error) -> bool {
    // A bucket that is gone answers 404 as well, and is no reason to think that a file is.
    match find::<Answered>(error) {
        Some(answered) => answered.status == 404 && answered.code.as_deref() != Some("NoSuchBucket"),
        None => matches!(error, object_store::Error::NotFound { .. }),
    }
}

/// The first of this kind among an error's causes.
pub(super) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The words of the last cause: those before it repeat themselves.
fn root_of(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_s3_is_found_and_nothing_else_is_repeated() {
        let answered = |status, body: &str| Answered::new(status, body.as_bytes()).to_string();
        let s3 = "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Key>ada@example.bj.pdf</Key></Error>";
        assert_eq!(answered(404, s3), "answered 404 (NoSuchKey)");
        assert_eq!(answered(500, "<Code>ada@example.bj</Code>"), "answered 500");
        assert_eq!(answered(302, ""), "answered 302, and redirects are not followed");
        for (status, passing) in
            [(404, false), (403, false), (302, false), (429, true), (408, true), (500, true), (503, true)]
        {
            assert_eq!(Answered::new(status, b"").is_passing(), passing, "{status}");
        }
    }
}
