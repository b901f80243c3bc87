//! The head of a request, judged before the HTTP library sees a byte of it.
//!
//! Two programs that read one request differently are how a second request is smuggled in its body (RFC 9112 §11.2). So what can
//! be read in two ways is refused here, and what is left has one reading: lines end in CRLF, nothing is folded, and there is one
//! length or none.
//!
//! Invariant: pure. Whatever is accepted is read by the library in the same way; whatever is refused ends its connection.

use axum::http::StatusCode;

use super::refusal::{Refusal, Refused};

/// Longest request target: the longest page of ours, with a cursor and every filter, has a tenth of it.
pub(super) const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Largest head: request line and headers.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of one request at most.
pub(super) const HEADERS_MAX: usize = 64;
/// Longest name of a method; the longest that is registered has 17 letters.
const METHOD_BYTES_MAX: usize = 20;

/// Where a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After this many bytes, often none.
    Length(u64),
    /// Where its last chunk says so; the connection serves nothing after it.
    Chunked,
}

/// What has been received of a head.
#[derive(Debug)]
pub(super) enum Received {
    /// Not all of it.
    Part,
    /// All of it, in this many bytes.
    Whole(usize, Framing),
    /// What will not become a request.
    Refused(Refusal),
}

/// Judges what has been received so far. The bytes up to `scanned` were looked at before; it is moved on.
pub(super) fn judge(bytes: &[u8], scanned: &mut usize) -> Received {
    if bytes.first().is_some_and(|first| !is_token(*first)) {
        return Received::Refused(malformed(
            "a request begins with a method; if this was TLS, the listener speaks plain HTTP",
        ));
    }
    for at in *scanned..bytes.len() {
        if bytes[at] != b'\n' {
            continue;
        }
        if at == 0 || bytes[at - 1] != b'\r' {
            return Received::Refused(malformed("lines of a head end in CR LF, not in LF alone"));
        }
        if bytes[..=at].ends_with(b"\r\n\r\n") {
            return match at + 1 {
                length if length > HEAD_BYTES_MAX => Received::Refused(head_too_large()),
                length => read(&bytes[..length - 4]).map_or_else(Received::Refused, |it| Received::Whole(length, it)),
            };
        }
    }
    *scanned = bytes.len();
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    if line > TARGET_BYTES_MAX + METHOD_BYTES_MAX + " HTTP/1.1 \r".len() {
        Received::Refused(target_too_long())
    } else if bytes.len() > HEAD_BYTES_MAX {
        Received::Refused(head_too_large())
    } else {
        Received::Part
    }
}

/// A whole head, without the empty line at its end.
fn read(head: &[u8]) -> Result<Framing, Refusal> {
    let mut lines = Lines(Some(head));
    let is_1_0 = request_line(lines.next().unwrap_or_default())?;
    let target = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let (mut count, mut length, mut is_chunked, mut host) = (0, None, false, None);
    for line in lines {
        count += 1;
        if count > HEADERS_MAX {
            return Err(Refusal::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                Refused::HeadTooLarge,
                format!("a request has at most {HEADERS_MAX} headers here"),
            ));
        }
        let (name, value) = header(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(malformed("there is more than one Content-Length"));
            }
            length = Some(content_length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if is_chunked || is_1_0 {
                return Err(malformed("Transfer-Encoding stands once, and not in HTTP/1.0"));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::new(
                    StatusCode::NOT_IMPLEMENTED,
                    Refused::Malformed,
                    "the only Transfer-Encoding here is chunked",
                ));
            }
            is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            if host.is_some() {
                return Err(malformed("there is more than one Host"));
            }
            if !value.iter().all(|byte| is_of_authority(*byte)) {
                return Err(malformed("Host is not a name or an address, with a port or without"));
            }
            host = Some(value);
        } else if name.eq_ignore_ascii_case(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Refusal::new(
                StatusCode::EXPECTATION_FAILED,
                Refused::Malformed,
                "the only expectation here is 100-continue",
            ));
        }
    }
    match (host, authority(target)) {
        (None, _) if !is_1_0 => return Err(malformed("a request of HTTP/1.1 names its Host")),
        (host, Some(authority)) if !authority.eq_ignore_ascii_case(host.unwrap_or_default()) => {
            return Err(malformed("Host and the request target name different hosts"));
        }
        _ => {}
    }
    match (length, is_chunked) {
        (Some(_), true) => Err(malformed("there are both Content-Length and Transfer-Encoding")),
        (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        (None, true) => Ok(Framing::Chunked),
    }
}

/// Whether it is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(malformed("the request line is not a method, a target and a version, each after one space"));
    };
    if method.is_empty() || method.len() > METHOD_BYTES_MAX || !method.iter().all(|byte| is_token(*byte)) {
        return Err(malformed("the method is not a word"));
    }
    let is_1_0 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        other if other.starts_with(b"HTTP/") => {
            return Err(Refusal::new(
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                Refused::Malformed,
                "this listener speaks HTTP/1.1 and HTTP/1.0",
            ));
        }
        _ => return Err(malformed("the request line does not end in a version of HTTP")),
    };
    if target.len() > TARGET_BYTES_MAX {
        return Err(target_too_long());
    }
    if method == b"CONNECT" {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Refused::Malformed, "this is no proxy"));
    }
    let has_form = target.starts_with(b"/") || authority(target).is_some() || (target == b"*" && method == b"OPTIONS");
    if !has_form || !target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#') {
        return Err(malformed("the request target is not a path or a URL in visible ASCII characters"));
    }
    Ok(is_1_0)
}

/// The host and port of a target in absolute form.
fn authority(target: &[u8]) -> Option<&[u8]> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme)))?;
    let rest = &target[scheme.len()..];
    let authority = rest.split(|byte| matches!(byte, b'/' | b'?')).next()?;
    (!authority.is_empty() && authority.iter().all(|byte| is_of_authority(*byte))).then_some(authority)
}

fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line.first().is_some_and(|first| matches!(first, b' ' | b'\t')) {
        return Err(malformed("a header is folded over several lines"));
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| malformed("a header has no colon"))?;
    let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(malformed("a header's name is not a word that a colon follows"));
    }
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(malformed("a header's value has a control character in it"));
    }
    Ok((name, value))
}

/// Without the spaces and tabs around it, and with whatever else is there.
fn trimmed(value: &[u8]) -> &[u8] {
    let is_shown = |byte: &u8| !matches!(byte, b' ' | b'\t');
    match (value.iter().position(is_shown), value.iter().rposition(is_shown)) {
        (Some(first), Some(last)) => &value[first..=last],
        _ => &[],
    }
}

/// Digits alone: no sign, no list, nothing that overflows.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or_else(|| malformed("Content-Length is not a number of bytes"))
}

/// The lines of a head, which all end in CRLF but the last, whose end is cut off.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0.take()?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        self.0 = end.map(|end| &rest[end + 2..]);
        Some(&rest[..end.unwrap_or(rest.len())])
    }
}

/// RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// Of a name, an address, or the port after it; nothing that hides another host, such as `user@`.
const fn is_of_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']')
}

fn malformed(detail: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, Refused::Malformed, detail)
}

fn head_too_large() -> Refusal {
    Refusal::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Refused::HeadTooLarge,
        format!("the head of a request has at most {HEAD_BYTES_MAX} bytes here"),
    )
}

fn target_too_long() -> Refusal {
    Refusal::new(
        StatusCode::URI_TOO_LONG,
        Refused::TargetTooLong,
        format!("a request target has at most {TARGET_BYTES_MAX} bytes here"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The framing, or the status of the refusal; nothing while more is to come.
    fn judged(text: &[u8]) -> Option<Result<Framing, u16>> {
        match judge(text, &mut 0) {
            Received::Part => None,
            Received::Whole(length, framing) => {
                assert!(text[..length].ends_with(b"\r\n\r\n"));
                Some(Ok(framing))
            }
            Received::Refused(refusal) => Some(Err(refusal.status().as_u16())),
        }
    }

    #[test]
    fn what_has_one_reading_is_taken() {
        for (text, wanted) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0\r\n\r\n", Framing::Length(0)),
            ("POST /a?b=%2e%2e HTTP/1.1\r\nhost:a:80\r\ncontent-length:\t7 \r\n\r\nGET / HT", Framing::Length(7)),
            ("POST / HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
            ("GET http://a/b HTTP/1.1\r\nHost: A\r\n\r\n", Framing::Length(0)),
            ("OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n", Framing::Length(0)),
            ("BREW / HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\nExpect: 100-Continue\r\n\r\n", Framing::Length(0)),
        ] {
            assert_eq!(judged(text.as_bytes()), Some(Ok(wanted)), "{text:?}");
        }
        let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..whole.len() {
            assert_eq!(judged(&whole[..end]), None, "{end}");
        }
    }

    #[test]
    fn what_is_scanned_in_pieces_is_found_as_in_one() {
        let text = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let mut scanned = 0;
        let found = (1..=text.len()).find_map(|end| match judge(&text[..end], &mut scanned) {
            Received::Whole(length, framing) => Some((end, length, framing)),
            Received::Part => None,
            Received::Refused(refusal) => panic!("{refusal:?}"),
        });
        assert_eq!(found, Some((text.len() - 3, text.len() - 3, Framing::Length(3))));
    }

    #[test]
    fn limits_are_kept_to_the_byte() {
        let target = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(length - 1));
        assert_eq!(judged(target(TARGET_BYTES_MAX).as_bytes()), Some(Ok(Framing::Length(0))));
        assert_eq!(judged(target(TARGET_BYTES_MAX + 1).as_bytes()), Some(Err(414)));
        assert_eq!(judged("A".repeat(TARGET_BYTES_MAX + 100).as_bytes()), Some(Err(414)), "without an end");
        let headers = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
        assert_eq!(judged(headers(HEADERS_MAX).as_bytes()), Some(Ok(Framing::Length(0))));
        assert_eq!(judged(headers(HEADERS_MAX + 1).as_bytes()), Some(Err(431)));
        let head = |length: usize| {
            let frame = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(length - frame))
        };
        assert_eq!(judged(head(HEAD_BYTES_MAX).as_bytes()), Some(Ok(Framing::Length(0))));
        assert_eq!(judged(head(HEAD_BYTES_MAX + 1).as_bytes()), Some(Err(431)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = judged(&bytes);
            let mut after = b"POST / HTTP/1.1\r\n".to_vec();
            after.extend(&bytes);
            after.extend(b"\r\n\r\n");
            let _ = judged(&after);
        }
    }
}
