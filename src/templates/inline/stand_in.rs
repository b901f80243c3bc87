//! The document that css-inline sees instead of the template.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use super::{
    super::{LintFault, Part, source::Words},
    CSS_BYTES_MAX, DEPTH_MAX, ELEMENTS_MAX, IGNORED, NUMBER,
    scan::{Node, Rules, nodes, rules},
};

/// Elements that hold nothing and are never closed.
const VOID: [&str; 14] =
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"];
/// Elements whose content is text only.
const RAW: [&str; 4] = ["style", "title", "script", "textarea"];

/// An element as the template has it. The same element of a partial that is included twice is one.
#[derive(Debug)]
pub(super) struct Element<'a> {
    /// The partial; nothing: the part itself.
    pub(super) file: Option<&'a str>,
    /// The end of its start tag.
    pub(super) insert_at: usize,
    /// The value of its style attribute, with the quotes.
    pub(super) style: Option<Range<usize>>,
    /// The same as the stand-in has it, without quotes.
    pub(super) style_seen: String,
    /// The tokens in it.
    tokens: Vec<usize>,
    /// What a style block holds.
    pub(super) rules: Option<Range<usize>>,
}

impl Element<'_> {
    /// Something that is wrong with it.
    pub(super) fn fault(&self, words: &Words<'_>, what: &str) -> LintFault {
        fault(words, self.file, self.insert_at, what)
    }
}

fn fault(words: &Words<'_>, file: Option<&str>, at: usize, what: &str) -> LintFault {
    let text = text_of(words, file);
    let line = 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&b| b == b'\n').count();
    let name = file.map_or_else(|| Part::Html.file_name().to_owned(), |name| Part::Html.partial_file_name(name));
    LintFault::new(name, line, what)
}

fn text_of<'a>(words: &Words<'a>, file: Option<&str>) -> &'a str {
    match file {
        None => words.part(Part::Html),
        Some(name) => words.partials(Part::Html).get(name).map(String::as_str).unwrap_or_default(),
    }
}

/// A part with its partials in place and its elements numbered.
#[derive(Debug)]
pub(super) struct StandIn<'a> {
    pub(super) words: Words<'a>,
    pub(super) html: String,
    pub(super) elements: Vec<Element<'a>>,
    /// Whether there is anything to move.
    pub(super) has_rules: bool,
    /// Blanks at the ends and beginnings of lines, which a line feed stands for as well.
    pub(super) blanks: Vec<(Option<&'a str>, Range<usize>)>,
    /// The tags in style attributes, by token.
    tags: Vec<&'a str>,
}

impl<'a> StandIn<'a> {
    /// Of an HTML part.
    pub(super) fn of(words: &Words<'a>) -> Result<Self, LintFault> {
        let mut files = BTreeMap::new();
        let partials = words.partials(Part::Html);
        for file in [None].into_iter().chain(partials.keys().map(|name| Some(name.as_str()))) {
            let nodes = nodes(text_of(words, file)).map_err(|(at, what)| fault(words, file, at, what))?;
            files.insert(file, nodes);
        }
        let mut maker = Maker {
            words: *words,
            files: &files,
            stand_in: Self {
                words: *words,
                html: String::new(),
                elements: Vec::new(),
                has_rules: false,
                blanks: Vec::new(),
                tags: Vec::new(),
            },
            numbers: HashMap::new(),
            tokens: HashMap::new(),
            seen_blanks: HashSet::new(),
            elements: 0,
            css_bytes: 0,
            state: State::Content,
            open: Vec::new(),
            branches: Vec::new(),
        };
        maker.file(None, &[])?;
        match maker.state {
            State::Content => Ok(maker.stand_in),
            _ => Err(fault(words, None, usize::MAX, "a tag or comment is not closed")),
        }
    }

    /// A style as the template has it: tags instead of tokens; nothing when one was lost or moved.
    pub(super) fn restored(&self, style: &str, element: &Element<'_>) -> Option<String> {
        let (mut out, mut rest, mut tokens) = (String::with_capacity(style.len()), style, element.tokens.iter());
        while let Some((before, after)) = rest.split_once(TOKEN) {
            let (number, after) = after.split_once('z')?;
            let number: usize = number.parse().ok()?;
            if tokens.next() != Some(&number) {
                return None;
            }
            out.push_str(before);
            out.push_str(self.tags.get(number)?);
            rest = after;
        }
        out.push_str(rest);
        tokens.next().is_none().then_some(out)
    }
}

/// Begins a token: letters and digits, as a value or in one. Ends with `z`.
const TOKEN: &str = "zpostriderz";

/// Where in the HTML we are.
#[derive(Debug)]
enum State<'a> {
    Content,
    /// In `<! ... >`.
    Declaration,
    Comment,
    /// In the text of this element, which is the one of this number; whether its rules are moved.
    Raw {
        name: String,
        number: usize,
        moved: Option<usize>,
    },
    /// In a start or end tag.
    Tag(Box<Tag<'a>>),
}

#[derive(Debug)]
struct Tag<'a> {
    file: Option<&'a str>,
    start: usize,
    name: String,
    is_end: bool,
    named: bool,
    number: usize,
    attribute: String,
    value: Value,
    value_start: usize,
    seen: String,
    tokens: Vec<usize>,
    style: Option<Range<usize>>,
    style_seen: String,
    style_tokens: Vec<usize>,
    ignored: bool,
    last: char,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// Not in one.
    Outside,
    /// Behind a `=`.
    Expected,
    Quoted(char),
    Bare,
}

struct Maker<'a, 'f> {
    words: Words<'a>,
    files: &'f BTreeMap<Option<&'a str>, Vec<Node>>,
    stand_in: StandIn<'a>,
    numbers: HashMap<(Option<&'a str>, usize), usize>,
    tokens: HashMap<(Option<&'a str>, usize), usize>,
    seen_blanks: HashSet<(Option<&'a str>, usize)>,
    elements: usize,
    css_bytes: usize,
    state: State<'a>,
    /// Names of the elements that are open.
    open: Vec<String>,
    /// Blocks that are open, and how many elements were when they began; nothing within attributes and comments.
    branches: Vec<Option<usize>>,
}

/// A partial's block, and the file that it stands in.
type Block<'a, 'f> = (Option<&'a str>, &'f [Node]);

impl<'a, 'f> Maker<'a, 'f> {
    fn fault<T>(&self, file: Option<&str>, at: usize, what: &str) -> Result<T, LintFault> {
        Err(fault(&self.words, file, at, what))
    }

    /// `blocks`: those of the partials that are being included, the innermost last.
    fn file(&mut self, file: Option<&'a str>, blocks: &[Block<'a, 'f>]) -> Result<(), LintFault> {
        let files = self.files;
        let begins_in_content = matches!(self.state, State::Content);
        if let Some(nodes) = files.get(&file) {
            self.nodes(file, nodes, blocks)?;
        }
        if begins_in_content != matches!(self.state, State::Content) {
            return self.fault(file, 0, "a tag or comment begins in one file and ends in another");
        }
        Ok(())
    }

    fn nodes(&mut self, file: Option<&'a str>, nodes: &'f [Node], blocks: &[Block<'a, 'f>]) -> Result<(), LintFault> {
        for node in nodes {
            match node {
                Node::Text(range) => self.text(file, range.clone())?,
                Node::Print(range) => self.tag(file, range)?,
                Node::Open(range) => {
                    let content = matches!(self.state, State::Content);
                    self.branches.push(content.then_some(self.open.len()));
                    self.tag(file, range)?;
                }
                Node::Else(range) => {
                    self.check_branch(file, range.start)?;
                    self.tag(file, range)?;
                }
                Node::Close(range) => {
                    self.check_branch(file, range.start)?;
                    self.branches.pop();
                    self.tag(file, range)?;
                }
                Node::Partial { at, name, block } if name == "@partial-block" => {
                    let Some(((of, nodes), outer)) = blocks.split_last() else { continue };
                    if block.is_some() || !matches!(self.state, State::Content) {
                        return self.fault(file, *at, "a partial's block is included within a tag or comment");
                    }
                    self.nodes(*of, nodes, outer)?;
                }
                Node::Partial { at, name, block } => self.partial(file, *at, name, block.as_deref(), blocks)?,
            }
        }
        Ok(())
    }

    fn partial(
        &mut self,
        file: Option<&'a str>,
        at: usize,
        name: &str,
        block: Option<&'f [Node]>,
        blocks: &[Block<'a, 'f>],
    ) -> Result<(), LintFault> {
        let partials = self.words.partials(Part::Html);
        let Some((name, text)) = partials.get_key_value(name) else { return Ok(()) };
        if !matches!(self.state, State::Content) {
            // It can only be text there; whatever it prints, it prints there as before.
            if text.contains('<') || block.is_some() {
                return self.fault(file, at, "a partial with elements is included within a tag or comment");
            }
            return self.tag(file, &(at..at));
        }
        let mut inner = Vec::from(blocks);
        if let Some(block) = block {
            inner.push((file, block));
        }
        self.file(Some(name), &inner)
    }

    fn check_branch(&self, file: Option<&str>, at: usize) -> Result<(), LintFault> {
        let is_content = matches!(self.state, State::Content);
        match self.branches.last() {
            Some(Some(open)) if is_content && *open == self.open.len() => Ok(()),
            Some(None) if !is_content => Ok(()),
            _ => self.fault(file, at, "a block opens or closes an element that it does not close or open"),
        }
    }

    /// A handlebars tag.
    fn tag(&mut self, file: Option<&'a str>, range: &Range<usize>) -> Result<(), LintFault> {
        let source = text_of(&self.words, file);
        let next = self.stand_in.tags.len();
        match &mut self.state {
            State::Content => self.stand_in.html.push_str("<!--t-->"),
            State::Declaration | State::Comment | State::Raw { moved: None, .. } => {}
            State::Raw { moved: Some(_), .. } => {
                return self.fault(file, range.start, "rules to be moved are computed");
            }
            State::Tag(tag) => {
                if !matches!(tag.value, Value::Quoted(_)) {
                    return self.fault(file, range.start, "attributes are computed");
                }
                match tag.attribute.as_str() {
                    "class" | "id" | IGNORED => {
                        return self.fault(file, range.start, "classes are computed: no rule can be moved by them");
                    }
                    "style" if range.is_empty() => {
                        return self.fault(file, range.start, "a partial makes a part of a style");
                    }
                    "style" => {
                        let number = *self.tokens.entry((file, range.start)).or_insert(next);
                        if number == next {
                            self.stand_in.tags.push(&source[range.clone()]);
                        }
                        let token = format!("{TOKEN}{number}z");
                        tag.tokens.push(number);
                        tag.seen.push_str(&token);
                        self.stand_in.html.push_str(&token);
                    }
                    _ => self.stand_in.html.push('t'),
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, file: Option<&'a str>, range: Range<usize>) -> Result<(), LintFault> {
        let source = text_of(&self.words, file);
        let mut at = range.start;
        while at < range.end {
            let rest = &source[at..range.end];
            let Some(c) = rest.chars().next() else { break };
            let mut length = c.len_utf8();
            match &mut self.state {
                State::Content => {
                    if rest.starts_with("<!--") {
                        (self.state, length) = (State::Comment, 4);
                    } else if rest.starts_with("<!") || rest.starts_with("<?") {
                        self.state = State::Declaration;
                    } else if c == '<' && rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') {
                        self.state = State::Tag(Box::new(Tag::new(file, at, rest[1..].starts_with('/'))));
                        length = if rest[1..].starts_with('/') { 2 } else { 1 };
                    } else if c.is_ascii_whitespace() {
                        length = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_whitespace()).len();
                        let keeps = self.open.iter().any(|name| name == "pre");
                        let is_new = !keeps && self.seen_blanks.insert((file, at));
                        if is_new && length > 1 && rest[..length].contains('\n') {
                            self.stand_in.blanks.push((file, at..at + length));
                        }
                    }
                }
                State::Declaration if c == '>' => self.state = State::Content,
                State::Declaration => {}
                State::Comment => {
                    if rest.starts_with("-->") {
                        (self.state, length) = (State::Content, 3);
                    }
                }
                State::Raw { name, number, moved } => {
                    let is_end = rest
                        .strip_prefix("</")
                        .is_some_and(|end| end.get(..name.len()).is_some_and(|end| end.eq_ignore_ascii_case(name)));
                    if is_end {
                        let (number, moved) = (*number, *moved);
                        if let Some(begin) = moved {
                            self.style_block(file, number, begin..at)?;
                        }
                        self.state = State::Tag(Box::new(Tag::new(file, at, true)));
                        length = 2;
                    }
                }
                State::Tag(_) => {
                    self.in_tag(file, at, c)?;
                    at += length;
                    continue;
                }
            }
            self.stand_in.html.push_str(&source[at..at + length]);
            at += length;
        }
        Ok(())
    }

    fn style_block(&mut self, file: Option<&'a str>, number: usize, range: Range<usize>) -> Result<(), LintFault> {
        let css = &text_of(&self.words, file)[range.clone()];
        self.css_bytes += css.len();
        match rules(css) {
            Rules::None => {}
            Rules::Some => self.stand_in.has_rules = true,
            Rules::AboutOthers(selector) => {
                let what = format!("the rule \"{selector}\" asks for more than an element and those around it");
                return self.fault(file, range.start, &what);
            }
        }
        if self.css_bytes > CSS_BYTES_MAX {
            return self.fault(file, range.start, &format!("more than {CSS_BYTES_MAX} bytes of rules"));
        }
        self.stand_in.elements[number].rules = Some(range);
        Ok(())
    }

    /// One character of a start or end tag.
    fn in_tag(&mut self, file: Option<&'a str>, at: usize, c: char) -> Result<(), LintFault> {
        let State::Tag(tag) = &mut self.state else { return Ok(()) };
        if tag.file != file {
            return self.fault(file, at, "a tag begins in one file and ends in another");
        }
        if !tag.named {
            if c.is_ascii_alphanumeric() || c == '-' || c == ':' {
                tag.name.push(c.to_ascii_lowercase());
                self.stand_in.html.push(c);
                return Ok(());
            }
            tag.named = true;
            if !tag.is_end {
                let next = self.stand_in.elements.len();
                tag.number = *self.numbers.entry((file, tag.start)).or_insert(next);
                self.stand_in.html.push_str(&format!(" {NUMBER}=\"{}\"", tag.number));
                if tag.number == next {
                    self.stand_in.elements.push(Element {
                        file,
                        insert_at: at,
                        style: None,
                        style_seen: String::new(),
                        tokens: Vec::new(),
                        rules: None,
                    });
                }
            }
        }
        if c == '>' && matches!(tag.value, Value::Outside | Value::Bare) {
            return self.end_of_tag(file, at);
        }
        match (tag.value, c) {
            (Value::Outside, '=') => tag.value = Value::Expected,
            (Value::Outside, c) if c.is_ascii_whitespace() || c == '/' => {}
            (Value::Outside, c) => {
                if tag.last.is_ascii_whitespace() || tag.last == '/' || tag.last == '"' || tag.last == '\'' {
                    tag.attribute.clear();
                }
                tag.attribute.push(c.to_ascii_lowercase());
            }
            (Value::Expected, '"' | '\'') => {
                tag.value = Value::Quoted(c);
                tag.value_start = at;
                tag.seen.clear();
                tag.tokens.clear();
            }
            (Value::Expected, c) if c.is_ascii_whitespace() => {}
            (Value::Expected, _) => tag.value = Value::Bare,
            (Value::Quoted(open), c) if c == open => {
                tag.value = Value::Outside;
                match tag.attribute.as_str() {
                    "style" => {
                        tag.style = Some(tag.value_start..at + 1);
                        tag.style_seen = tag.seen.clone();
                        tag.style_tokens = tag.tokens.clone();
                    }
                    IGNORED => tag.ignored = tag.seen == "ignore",
                    _ => {}
                }
            }
            (Value::Quoted(_), c) => tag.seen.push(c),
            (Value::Bare, c) if c.is_ascii_whitespace() => tag.value = Value::Outside,
            (Value::Bare, _) => {}
        }
        if tag.value == Value::Bare && matches!(tag.attribute.as_str(), "style" | "class" | "id") {
            return self.fault(file, at, "a style or class has no quotes");
        }
        tag.last = c;
        self.stand_in.html.push(c);
        Ok(())
    }

    fn end_of_tag(&mut self, file: Option<&'a str>, at: usize) -> Result<(), LintFault> {
        self.stand_in.html.push('>');
        let State::Tag(tag) = std::mem::replace(&mut self.state, State::Content) else { return Ok(()) };
        if tag.is_end {
            return self.close(file, tag.start, &tag.name);
        }
        self.elements += 1;
        if self.elements > ELEMENTS_MAX {
            return self.fault(file, at, &format!("more than {ELEMENTS_MAX} elements"));
        }
        let element = &mut self.stand_in.elements[tag.number];
        element.insert_at = if tag.last == '/' { at - 1 } else { at };
        element.style = tag.style;
        element.style_seen = tag.style_seen;
        element.tokens = tag.style_tokens;
        if VOID.contains(&tag.name.as_str()) || tag.last == '/' {
            return Ok(());
        }
        self.open.push(tag.name.clone());
        if self.open.len() > DEPTH_MAX {
            return self.fault(file, at, &format!("elements are nested more than {DEPTH_MAX} deep"));
        }
        if RAW.contains(&tag.name.as_str()) {
            let moved = (tag.name == "style" && !tag.ignored).then_some(at + 1);
            self.state = State::Raw { name: tag.name, number: tag.number, moved };
        }
        Ok(())
    }

    fn close(&mut self, file: Option<&'a str>, at: usize, name: &str) -> Result<(), LintFault> {
        let Some(found) = self.open.iter().rposition(|open| open == name) else { return Ok(()) };
        self.open.truncate(found);
        if self.branches.iter().flatten().any(|open| *open > found) {
            return self.fault(file, at, "a block closes an element that it did not open");
        }
        Ok(())
    }
}

impl<'a> Tag<'a> {
    fn new(file: Option<&'a str>, start: usize, is_end: bool) -> Self {
        Self {
            file,
            start,
            name: String::new(),
            is_end,
            named: false,
            number: 0,
            attribute: String::new(),
            value: Value::Outside,
            value_start: 0,
            seen: String::new(),
            tokens: Vec::new(),
            style: None,
            style_seen: String::new(),
            style_tokens: Vec::new(),
            ignored: false,
            last: ' ',
        }
    }
}
