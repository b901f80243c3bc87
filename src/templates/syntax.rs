//! What can be told of a source before it is parsed: its size, its tags, and how deep its blocks lie.
//!
//! Handlebars' parser works by recursion and in quadratic time: a few kilobytes of nested blocks would end the process,
//! and a file full of tags would keep it busy for half a minute.
//! Invariant: this scan never counts less nesting than the parser will find.

use super::LintFault;

/// Largest file of a template.
pub(super) const SOURCE_BYTES_MAX: usize = 256 * 1024;
/// Most tags and comments in one file: the parser's time grows with their square.
const TAGS_MAX: usize = 2_000;
/// Deepest nesting: blocks in one file, and blocks and partials together when they are expanded.
pub(super) const DEPTH_MAX: usize = 64;
/// Deepest nesting of parentheses, lists and objects within one tag.
const TAG_DEPTH_MAX: usize = 16;

/// Refuses what must not reach the parser.
pub(super) fn check(file: &str, source: &str) -> Result<(), LintFault> {
    if source.len() > SOURCE_BYTES_MAX {
        let words = format!("{} bytes; at most {SOURCE_BYTES_MAX} are allowed", source.len());
        return Err(LintFault::new(file, None, words));
    }
    let fault = |at: usize, words: &str| {
        let line = 1 + source.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count();
        Err(LintFault::new(file, line, words))
    };
    // One entry for each open block: an `else if` is a block within the block that it continues.
    let mut blocks: Vec<usize> = Vec::new();
    let mut depth = 0_usize;
    let mut position = 0;
    let mut tags = 0;
    while let Some(found) = source[position..].find("{{") {
        let start = position + found;
        let rest = &source[start + 2..];
        tags += 1;
        if tags > TAGS_MAX {
            return fault(start, "too many tags: at most 2000 are allowed in a file");
        }
        if rest.starts_with("{{") {
            return fault(start, "raw blocks ({{{{ }}}}) are not allowed");
        }
        if let Some(comment) = rest.strip_prefix('!') {
            // The parser knows no ~ in comments: what ends with --~}} goes on to the next --}}, if there is one.
            let (end, close) = match comment.starts_with("--").then(|| comment.find("--}}")).flatten() {
                Some(end) if comment[..end].contains("--~}}") => {
                    return fault(
                        start,
                        "a comment must end with --}}, not with --~}}: it runs on to the next one's end",
                    );
                }
                Some(end) => (end, "--}}"),
                None => match comment.find("}}") {
                    Some(end) => (end, "}}"),
                    None => return fault(start, "a comment that is never closed"),
                },
            };
            position = start + 3 + end + close.len();
            continue;
        }
        let tag = rest.strip_prefix('~').unwrap_or(rest).trim_start();
        // A backslash turns a tag into text. What opens counts all the same, what closes does not: never too little.
        let escaped = source[..start].ends_with('\\');
        if tag.starts_with('#') {
            blocks.push(1);
            depth += 1;
        } else if tag.starts_with('/') && !escaped {
            depth -= blocks.pop().unwrap_or(0);
        } else if (tag.starts_with("else") || tag.starts_with('^'))
            && let Some(block) = blocks.last_mut()
        {
            *block += 1;
            depth += 1;
        }
        if depth > 2 * DEPTH_MAX || blocks.len() > DEPTH_MAX {
            return fault(start, &format!("blocks are nested more than {DEPTH_MAX} deep: make partials of them"));
        }
        if tag_depth(tag) > TAG_DEPTH_MAX {
            return fault(start, &format!("parentheses are nested more than {TAG_DEPTH_MAX} deep"));
        }
        position = start + 2;
    }
    Ok(())
}

/// How deep parentheses, lists and objects lie in a tag that starts here.
fn tag_depth(tag: &str) -> usize {
    let (mut depth, mut deepest, mut quote) = (0_usize, 0, None);
    let bytes = tag.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (Some(open), _) => {
                if byte == open && bytes[at - 1] != b'\\' {
                    quote = None;
                }
            }
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(' | b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (None, b')' | b']') => depth = depth.saturating_sub(1),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') && depth == 0 => break,
            (None, b'}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        if deepest > TAG_DEPTH_MAX {
            break;
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Option<String> {
        check("html.hbs", source).err().map(|fault| fault.to_string())
    }

    #[test]
    fn ordinary_sources_pass() {
        for source in [
            "",
            "{{a}} {{#if a}}x{{else if b}}y{{else}}z{{/if}} {{> p a=(f (g \"((((((((((((((((((((\"))}}",
            "{{!-- {{#if}} --}}{{! {{#if }}{{!-- a --~}}",
            &"{{#if a}}x{{/if}}".repeat(900),
            &"{{#if a}}x{{else if b}}y{{else}}z{{/if}}".repeat(100),
            "a { b } c",
        ] {
            assert_eq!(words(source), None, "{source}");
        }
    }

    #[test]
    fn what_would_overflow_the_parser_is_refused() {
        for (source, want) in [
            ("x".repeat(SOURCE_BYTES_MAX + 1), "html.hbs: 262145 bytes"),
            ("{{#if a}}".repeat(5000), "html.hbs:1: blocks are nested"),
            ("\n{{~ #if a}}{{/if}}".to_owned() + &"\\{{/if}}{{#if a}}".repeat(65), "html.hbs:2: blocks are nested"),
            (format!("{{{{#if a}}}}{}{{{{/if}}}}", "{{else if a}}".repeat(5000)), "blocks are nested"),
            (format!("{{{{f {}a}}}}", "(f ".repeat(5000)), "parentheses are nested"),
            (format!("{{{{f {}}}}}", "[".repeat(5000)), "parentheses are nested"),
            ("\n{{{{raw}}}}x{{{{/raw}}}}".into(), "html.hbs:2: raw blocks"),
            ("{{a}}".repeat(2001), "too many tags"),
            ("{{!-- a".into(), "never closed"),
            ("{{!-- a --~}} b {{!-- c --}}".into(), "must end with --}}"),
        ] {
            let found = words(&source).unwrap_or_default();
            assert!(found.contains(want), "{want}: {found}");
        }
    }
}
