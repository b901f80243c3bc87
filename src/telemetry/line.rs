//! Lines of the log for people: what a value holds cannot end one, nor steer a terminal.
//!
//! JSON escapes by itself. Text does not: a line break in what a relay or a library said would begin a line that looks like one
//! of ours.
//!
//! Invariant: what is written at once is one event, with a line break at its end: so the formatter of events writes.

use std::io::{self, Write};

/// Writes events to `out`, control characters in them as `\n` or `\u{1b}`.
#[derive(Debug)]
pub(super) struct Lines<W> {
    out: W,
    /// Whether the formatter colours what it writes: then its own escape sequences pass, and nobody else's do.
    colours: bool,
}

impl<W> Lines<W> {
    pub(super) const fn new(out: W, colours: bool) -> Self {
        Self { out, colours }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        let mut line = String::with_capacity(text.len() + 1);
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let colour = if self.colours { colour_at(rest) } else { 0 };
            let length = if colour > 0 { colour } else { c.len_utf8() };
            match c {
                _ if colour > 0 => line.push_str(&rest[..length]),
                '\t' => line.push(c),
                _ if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => line.extend(c.escape_default()),
                _ => line.push(c),
            }
            rest = &rest[length..];
        }
        self.out.write_all((line + end).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// How many bytes at the beginning of a text only change its colour: ESC, `[`, digits and semicolons, `m`.
fn colour_at(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\u{1b}[") else { return 0 };
    let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
    if rest[digits..].starts_with('m') { 2 + digits + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a daemon with this format logs of a value that a stranger wrote, as a field and as words.
    fn logged(json: bool, colours: bool, value: &str) -> String {
        let kept = Kept::default();
        let out = kept.clone();
        let layer = tracing_subscriber::fmt().with_target(false);
        let subscriber: Box<dyn tracing::Subscriber + Send + Sync> = if json {
            Box::new(layer.json().flatten_event(true).with_writer(move || out.clone()).finish())
        } else {
            Box::new(layer.with_ansi(colours).with_writer(move || Lines::new(out.clone(), colours)).finish())
        };
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(field = value, shown = %value, "a message with {value}");
        });
        let bytes = kept.0.lock().expect("nobody panics").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_value_makes_no_line_of_its_own_in_either_format() {
        let forged = "x\r\n2026-11-27T00:00:00Z  INFO postrider: signed in operator=\"admin\"\u{2028}\0\u{85}";
        for (json, colours) in [(false, false), (false, true), (true, false)] {
            let logged = logged(json, colours, forged);
            assert_eq!(logged.lines().count(), 1, "{logged}");
            let breaks: &[char] = if json { &['\r', '\0'] } else { &['\r', '\0', '\u{85}', '\u{2028}'] };
            assert!(logged.ends_with('\n') && !logged.trim_end().contains(breaks), "{logged}");
            assert_eq!(logged.matches("signed in").count(), 3, "nothing is lost: {logged}");
        }
    }

    #[test]
    fn a_value_does_not_steer_a_terminal() {
        let steering = "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{8}";
        for (json, colours) in [(false, false), (false, true), (true, false)] {
            let logged = logged(json, colours, steering);
            for sequence in ["\u{1b}[2J", "\u{1b}]", "\u{7}", "\u{8}"] {
                assert!(!logged.contains(sequence), "{logged:?}");
            }
            assert!(json || !logged.contains('\u{9b}'), "{logged:?}");
        }
        assert!(logged(false, true, "x").contains("\u{1b}["), "our own colours are left");
    }
}
