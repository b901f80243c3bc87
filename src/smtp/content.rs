//! The content as it travels: CRLF line ends, doubled leading dots, and the terminator behind it (RFC 5321 §4.5.2).
//!
//! Invariant: whatever the mail's bytes are, the terminator appears in what is written once, and last. A lone CR or LF
//! becomes CRLF, because a relay that takes one for a line end would see our next line as a command.

/// Cuts a mail into pieces ready to be written; the last one carries the terminator.
#[derive(Debug)]
pub(super) struct ContentEncoder<'a> {
    rest: &'a [u8],
    at_line_start: bool,
}

impl<'a> ContentEncoder<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self { rest: message, at_line_start: true }
    }

    /// Fills `out` up to about `bytes_max`; true when the terminator is in it.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        loop {
            let Some(first) = self.rest.first() else {
                out.extend_from_slice(if self.at_line_start { b".\r\n" } else { b"\r\n.\r\n" });
                return true;
            };
            if out.len() >= bytes_max {
                return false;
            }
            if self.at_line_start && *first == b'.' {
                out.push(b'.');
            }
            let room = self.rest.len().min(bytes_max - out.len().min(bytes_max - 1));
            let run = self.rest[..room].iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let (text, rest) = self.rest.split_at(run.unwrap_or(room));
            out.extend_from_slice(text);
            self.at_line_start = run.is_some();
            self.rest = rest;
            if run.is_some() {
                out.extend_from_slice(b"\r\n");
                self.rest = rest.strip_prefix(b"\r\n").unwrap_or(&rest[1..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(message: &[u8], piece: usize) -> Vec<u8> {
        let (mut encoder, mut whole) = (ContentEncoder::new(message), Vec::new());
        loop {
            let mut out = Vec::new();
            let is_last = encoder.fill(&mut out, piece);
            whole.extend_from_slice(&out);
            if is_last {
                return whole;
            }
        }
    }

    #[test]
    fn dots_are_doubled_and_line_ends_made_whole() {
        for (message, want) in [
            ("", ".\r\n"),
            ("a", "a\r\n.\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("a\r\n.\r\nMAIL FROM:<x@y.z>\r\n", "a\r\n..\r\nMAIL FROM:<x@y.z>\r\n.\r\n"),
            ("a\n.\nMAIL", "a\r\n..\r\nMAIL\r\n.\r\n"),
            ("a\r.\rMAIL", "a\r\n..\r\nMAIL\r\n.\r\n"),
            ("a\n\r.b", "a\r\n\r\n..b\r\n.\r\n"),
            ("a\r\r\n..b.", "a\r\n\r\n...b.\r\n.\r\n"),
        ] {
            for piece in [1, 2, 3, 7, 1000] {
                let got = encode(message.as_bytes(), piece);
                assert_eq!(String::from_utf8_lossy(&got), want, "{message:?} in pieces of {piece}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_content_can_end_itself(message in prop::collection::vec(prop::sample::select(&b"a.\r\n"[..]), 0..60), piece in 1_usize..20) {
            let sent = encode(&message, piece);
            prop_assert!(sent.ends_with(b".\r\n"));
            let framed = [b"\r\n".as_slice(), &sent].concat();
            let first_end = framed.windows(5).position(|w| w == b"\r\n.\r\n").expect("there is a terminator");
            prop_assert_eq!(first_end + 5, framed.len());
            // No CR or LF stands alone.
            for (i, byte) in sent.iter().enumerate() {
                match byte {
                    b'\r' => prop_assert_eq!(sent.get(i + 1), Some(&b'\n')),
                    b'\n' => prop_assert!(i > 0 && sent[i - 1] == b'\r'),
                    _ => {}
                }
            }
        }
    }
}
