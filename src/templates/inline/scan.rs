//! Reading: handlebars tags out of a template, start tags out of what css-inline wrote, selectors out of CSS.

use std::ops::Range;

/// A piece of a file.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// Everything between tags.
    Text(Range<usize>),
    /// A tag that prints, a comment.
    Print(Range<usize>),
    /// `{{#if}}`, `{{#each}}` ...
    Open(Range<usize>),
    /// `{{else}}`.
    Else(Range<usize>),
    /// `{{/if}}`.
    Close(Range<usize>),
    /// `{{> name}}`, and `{{#> name}} {{/name}}` with its block.
    Partial { at: usize, name: String, block: Option<Vec<Self>> },
}

/// Where a partial block begins, and whose it is; nothing: the file itself.
type PartialBlock = Option<(usize, String)>;

/// Takes a file apart. The engine has parsed it before: blocks are closed.
///
/// # Errors
/// Where there is something that cannot be followed, and what.
pub(super) fn nodes(text: &str) -> Result<Vec<Node>, (usize, &'static str)> {
    // The lists that are being filled, each but the first with the partial block that it belongs to, if it does.
    let mut lists: Vec<(PartialBlock, Vec<Node>)> = vec![(None, Vec::new())];
    let mut partial_blocks: Vec<bool> = Vec::new();
    let mut position = 0;
    while let Some(found) = text[position..].find("{{") {
        let start = position + found;
        if text[..start].ends_with('\\') {
            return Err((start, "a tag is escaped with a backslash"));
        }
        let rest = &text[start + 2..];
        let (body, end) = tag(rest).ok_or((start, "a tag is not closed"))?;
        let range = start..start + 2 + end;
        let list = &mut lists.last_mut().ok_or((start, "a block is closed twice"))?.1;
        if start > position {
            list.push(Node::Text(position..start));
        }
        position = range.end;
        let body = body.trim_start_matches('~').trim_end_matches('~').trim();
        let name = |after: &str| {
            after.split([' ', '\n', '\t', '~']).find(|word| !word.is_empty()).unwrap_or_default().to_owned()
        };
        if let Some(after) = body.strip_prefix("#>") {
            partial_blocks.push(true);
            lists.push((Some((start, name(after))), Vec::new()));
        } else if body.starts_with('#') {
            partial_blocks.push(false);
            list.push(Node::Open(range));
        } else if let Some(after) = body.strip_prefix('>') {
            list.push(Node::Partial { at: start, name: name(after), block: None });
        } else if body.starts_with('/') {
            match partial_blocks.pop() {
                Some(false) => list.push(Node::Close(range)),
                Some(true) => {
                    let closed = lists.pop().and_then(|(of, nodes)| Some((of?, nodes)));
                    let ((at, name), nodes) = closed.ok_or((start, "a block is closed twice"))?;
                    let outer = &mut lists.last_mut().ok_or((start, "a block is closed twice"))?.1;
                    outer.push(Node::Partial { at, name, block: Some(nodes) });
                }
                None => return Err((start, "a block is closed twice")),
            }
        } else if body == "else" || body.starts_with("else ") || body == "^" {
            list.push(Node::Else(range));
        } else if body.starts_with(['^', '{', '&']) {
            return Err((start, "this kind of tag cannot be followed"));
        } else {
            list.push(Node::Print(range));
        }
    }
    let (_, mut nodes) = lists.pop().filter(|_| lists.is_empty()).ok_or((0, "a block is not closed"))?;
    if position < text.len() {
        nodes.push(Node::Text(position..text.len()));
    }
    Ok(nodes)
}

/// What is in a tag, and where it ends; `rest` follows its `{{`. Ends where the engine's parser ends it.
fn tag(rest: &str) -> Option<(&str, usize)> {
    if let Some(comment) = rest.strip_prefix('!') {
        let long = comment.starts_with("--").then(|| comment.find("--}}")).flatten();
        let end = long.map(|end| end + 4).or_else(|| comment.find("}}").map(|end| end + 2))?;
        return Some(("!", end + 1));
    }
    let (bytes, mut quote) = (rest.as_bytes(), None);
    for (at, &byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (Some(open), _) if byte == open && bytes[at - 1] != b'\\' => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some((&rest[..at], at + 2)),
            _ => {}
        }
    }
    None
}

/// A start tag of a document that a serialiser wrote: quoted values, nothing left open.
#[derive(Debug)]
pub(super) struct WrittenTag<'a> {
    pub(super) name: &'a str,
    pub(super) attributes: Vec<(&'a str, &'a str)>,
    /// Its `<`.
    pub(super) start: usize,
    /// Behind its `>`.
    pub(super) end: usize,
}

/// Its start tags, in order.
pub(super) fn written_tags(html: &str) -> Vec<WrittenTag<'_>> {
    let (mut tags, mut at) = (Vec::new(), 0);
    while let Some(found) = html[at..].find('<') {
        let start = at + found;
        let rest = &html[start..];
        let skip = |end: &str| rest.find(end).map_or(html.len(), |found| start + found + end.len());
        if rest.starts_with("<!--") {
            at = skip("-->");
        } else if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            let tag = written_tag(html, start);
            // What these hold is not escaped.
            at = match tag.name {
                "style" | "script" | "noscript" | "xmp" | "iframe" | "noembed" | "noframes" => {
                    html[tag.end..].find("</").map_or(html.len(), |found| tag.end + found)
                }
                _ => tag.end,
            };
            tags.push(tag);
        } else {
            at = skip(">");
        }
    }
    tags
}

fn written_tag(html: &str, start: usize) -> WrittenTag<'_> {
    let is_end = |c: char| c.is_ascii_whitespace() || c == '>' || c == '/' || c == '=';
    let word = |at: usize| html[at..].find(is_end).map_or(html.len(), |found| at + found);
    let mut at = word(start + 1);
    let (name, mut attributes) = (&html[start + 1..at], Vec::new());
    loop {
        at += html[at..].len() - html[at..].trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/').len();
        if html[at..].starts_with('>') || at >= html.len() {
            return WrittenTag { name, attributes, start, end: (at + 1).min(html.len()) };
        }
        let end = word(at).max(at + 1);
        let attribute = &html[at..end];
        at = end;
        let mut value = "";
        if let Some(quoted) = html[at..].strip_prefix("=\"") {
            value = quoted.split('"').next().unwrap_or_default();
            at = (at + 3 + value.len()).min(html.len());
        }
        attributes.push((attribute, value));
    }
}

/// What there is to move in a style sheet, and what must not be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// Only `@`-rules, if anything.
    None,
    Some,
    /// A selector that asks for siblings or for what an element holds: the branches of a template are no siblings.
    AboutOthers(String),
}

/// Looks through the selectors outside of `@`-rules.
pub(super) fn rules(css: &str) -> Rules {
    let mut plain = String::with_capacity(css.len());
    let mut rest = css;
    while let Some((before, comment)) = rest.split_once("/*") {
        plain.push_str(before);
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    let (mut found, mut depth, mut begin, mut at_rule) = (Rules::None, 0_usize, 0, false);
    for (at, c) in plain.char_indices() {
        match c {
            '{' => {
                if depth == 0 {
                    let selector = plain[begin..at].trim();
                    at_rule = selector.starts_with('@');
                    let others = ["+", "~", "-child", "-of-type", ":empty", ":has(", ":not("];
                    if !at_rule && others.iter().any(|other| selector.contains(other)) {
                        return Rules::AboutOthers(selector.to_owned());
                    }
                    // Layers and the like hold rules that are moved, and selectors that are not looked at here.
                    if selector.starts_with("@layer") {
                        return Rules::AboutOthers("@layer".to_owned());
                    }
                }
                depth += 1;
            }
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    if !at_rule {
                        found = Rules::Some;
                    }
                    begin = at + 1;
                }
            }
            ';' if depth == 0 => begin = at + 1,
            _ => {}
        }
    }
    found
}

/// What is worth keeping of what css-inline leaves in a style block: `@`-rules, and rules about states and attributes. A plain
/// selector that found nothing in a document with every branch taken never will.
pub(super) fn leftovers(css: &str) -> String {
    let (mut kept, mut depth, mut begin) = (Vec::new(), 0_usize, 0);
    let mut keep = |item: &str| {
        let selector = item.split('{').next().unwrap_or_default();
        if item.starts_with('@') || selector.contains([':', '[']) {
            kept.extend(item.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        }
    };
    for (at, c) in css.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && matches!(c, '}' | ';') {
            keep(css[begin..=at].trim());
            begin = at + 1;
        }
    }
    keep(css[begin..].trim());
    if kept.is_empty() { String::new() } else { format!("\n{}\n", kept.join("\n")) }
}
