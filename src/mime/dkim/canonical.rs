//! The relaxed canonical forms of a mail's header and body (RFC 6376 §3.4): what a relay may change without harm is gone.

use ring::digest::{Context, Digest, SHA256};

/// One header as it stands: name, colon, value, with its folds and without its last CRLF.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'m> {
    name: &'m [u8],
    value: &'m [u8],
}

impl<'m> Field<'m> {
    /// Reads one. Without a colon all of it is the name.
    pub(super) fn new(text: &'m [u8]) -> Self {
        match text.iter().position(|&b| b == b':') {
            Some(at) => Self { name: &text[..at], value: &text[at + 1..] },
            None => Self { name: text, value: &[] },
        }
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name.trim_ascii_end().eq_ignore_ascii_case(name.as_bytes())
    }

    /// `name:value`: the name in lower case, on one line, runs of blanks as one, none at the ends.
    pub(super) fn write_relaxed(&self, out: &mut Vec<u8>) {
        out.extend(self.name.trim_ascii_end().iter().map(u8::to_ascii_lowercase));
        out.push(b':');
        let begun = out.len();
        for &byte in self.value {
            match byte {
                b'\r' | b'\n' => {}
                b' ' | b'\t' if out.len() == begun || out.last() == Some(&b' ') => {}
                b' ' | b'\t' => out.push(b' '),
                _ => out.push(byte),
            }
        }
        if out.len() > begun && out.last() == Some(&b' ') {
            out.pop();
        }
    }
}

/// Head and body of a message, without the empty line between them.
pub(super) fn split(message: &[u8]) -> (&[u8], &[u8]) {
    match message.windows(4).position(|four| four == b"\r\n\r\n") {
        Some(at) => (&message[..at + 2], &message[at + 4..]),
        None => (message, &[]),
    }
}

/// The headers, in order.
pub(super) fn fields(head: &[u8]) -> Vec<Field<'_>> {
    let (mut fields, mut begun, mut at) = (Vec::new(), 0, 0);
    while let Some(end) = head[at..].windows(2).position(|two| two == b"\r\n") {
        at += end + 2;
        // A line that begins with a blank belongs to the one before it.
        if !matches!(head.get(at), Some(b' ' | b'\t')) {
            if at - 2 > begun {
                fields.push(Field::new(&head[begun..at - 2]));
            }
            begun = at;
        }
    }
    if head.len() > begun {
        fields.push(Field::new(&head[begun..]));
    }
    fields
}

/// SHA-256 of the body: runs of blanks as one, none at the ends of lines, no empty lines at the end of it all.
pub(super) fn body_digest(body: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    relaxed_body(body, |piece| context.update(piece));
    context.finish()
}

/// The canonical body, piece by piece.
pub(super) fn relaxed_body(body: &[u8], mut write: impl FnMut(&[u8])) {
    let mut empty_lines = 0_usize;
    let mut line = Vec::with_capacity(128);
    let mut rest = body;
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'\n');
        let (text, after) = end.map_or((rest, &rest[rest.len()..]), |end| (&rest[..end], &rest[end + 1..]));
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        rest = after;
        line.clear();
        for &byte in text {
            match byte {
                b' ' | b'\t' if line.last() == Some(&b' ') => {}
                b' ' | b'\t' => line.push(b' '),
                _ => line.push(byte),
            }
        }
        if line.last() == Some(&b' ') {
            line.pop();
        }
        if line.is_empty() {
            empty_lines += 1;
            continue;
        }
        for _ in 0..std::mem::take(&mut empty_lines) {
            write(b"\r\n");
        }
        line.extend_from_slice(b"\r\n");
        write(&line);
    }
}
