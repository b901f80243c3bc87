//! Styles moved from `<style>` to the elements, where every mail program heeds them: once, when a version is compiled.
//!
//! css-inline reads and writes whole documents, and would tear a template apart: `{{#if}}` between rows of a table, tags
//! within attributes. So it never sees the template. It sees a stand-in: the part with its partials in place, every branch
//! taken, tags replaced by comments and tokens, and each element numbered. What it makes of each element's `style` is
//! then written into the template's own text, which stays as it was everywhere else.
//!
//! Invariant: rendering the result is inlining what the template as written renders. What could break that is refused,
//! with the reason and the line, and the template then keeps its `<style>`: classes that are computed, rules about siblings,
//! blocks that open an element and do not close it. Compiling proves it on the sample as well (`same`).

use std::collections::{BTreeMap, HashMap};

use css_inline::CSSInliner;

use super::{LintFault, Part, source::Words};

/// How the stand-in is made.
mod scan;
/// The stand-in.
mod stand_in;

use stand_in::StandIn;

/// A style block with this attribute stays as it is: `<style data-css-inline="ignore">`.
const IGNORED: &str = "data-css-inline";
/// Numbers the elements of the stand-in.
const NUMBER: &str = "data-postrider";
/// Most rules to be moved, in bytes: the work grows with rules times elements.
const CSS_BYTES_MAX: usize = 32 * 1024;
/// Most elements, every inclusion of a partial counted.
const ELEMENTS_MAX: usize = 3_000;
/// Deepest nesting of elements: css-inline works by recursion.
const DEPTH_MAX: usize = 100;

/// An HTML part and its partials with their styles moved.
#[derive(Debug)]
pub(super) struct Inlined {
    pub(super) html: String,
    pub(super) partials: BTreeMap<String, String>,
}

/// Moves the styles of an HTML part; nothing: there are no rules to move.
///
/// The part must have passed the walk: partials end, and names of partials are known.
///
/// # Errors
/// Why they stay where they are.
pub(super) fn inline(words: &Words<'_>) -> Result<Option<Inlined>, LintFault> {
    if !words
        .partials(Part::Html)
        .values()
        .chain([&words.part(Part::Html).to_owned()])
        .any(|text| text.contains("<style"))
    {
        return Ok(None);
    }
    let stand_in = StandIn::of(words)?;
    if !stand_in.has_rules {
        return Ok(None);
    }
    let fault = |words: String| LintFault::new(Part::Html.file_name(), None, words);
    let styled =
        inliner(true).inline(&stand_in.html).map_err(|error| fault(format!("its CSS cannot be read: {error}")))?;
    let found = styles_of(&styled, &stand_in)?;
    let mut edits: HashMap<Option<&str>, Vec<(std::ops::Range<usize>, String)>> = HashMap::new();
    for (number, element) in stand_in.elements.iter().enumerate() {
        let Some(found) = found.get(&number) else {
            return Err(element.fault(words, "no browser would find this element where it stands"));
        };
        if let (Some(range), Some(rules)) = (&element.rules, &found.rules) {
            edits.entry(element.file).or_default().push((range.clone(), scan::leftovers(rules)));
        }
        let style = found.style.as_deref().unwrap_or_default();
        if style == element.style_seen {
            continue;
        }
        let style = stand_in.restored(style, element).ok_or_else(|| {
            element.fault(words, "its rules and its own style, which is computed, cannot be put together")
        })?;
        edits.entry(element.file).or_default().push(match &element.style {
            Some(range) => (range.clone(), format!("\"{style}\"")),
            None => (element.insert_at..element.insert_at, format!(" style=\"{style}\"")),
        });
    }
    for (file, range) in stand_in.blanks {
        edits.entry(file).or_default().push((range, "\n".to_owned()));
    }
    let edited = |file: Option<&str>, text: &str| apply(text, edits.get(&file).cloned().unwrap_or_default());
    Ok(Some(Inlined {
        html: edited(None, words.part(Part::Html)),
        partials: words
            .partials(Part::Html)
            .iter()
            .map(|(name, text)| (name.clone(), edited(Some(name), text)))
            .collect(),
    }))
}

/// Whether two documents are the same but for blanks, the order of attributes, and what is left in `<style>`: `written`, with its styles moved now, and
/// `moved`, whose styles were moved before it was rendered.
///
/// # Errors
/// When one of them cannot be read.
pub(super) fn same(written: &str, moved: &str) -> Result<bool, css_inline::InlineError> {
    Ok(essence(&inliner(true).inline(written)?) == essence(&inliner(false).inline(moved)?))
}

fn inliner(moves: bool) -> CSSInliner<'static> {
    CSSInliner::options()
        .inline_style_tags(moves)
        .remove_inlined_selectors(moves)
        .keep_style_tags(true)
        .keep_link_tags(true)
        .keep_at_rules(moves)
        .minify_css(true)
        .load_remote_stylesheets(false)
        .build()
}

/// A document without blanks and without what its style blocks hold, and with the attributes of each tag in order.
fn essence(html: &str) -> String {
    let (mut out, mut at) = (String::with_capacity(html.len()), 0);
    for mut tag in scan::written_tags(html) {
        out.push_str(&html[at..tag.start]);
        tag.attributes.sort_unstable();
        out.extend(["<", tag.name]);
        for (name, value) in tag.attributes {
            out.extend([" ", name, "=\"", value, "\""]);
        }
        out.push('>');
        at = match tag.name {
            "style" => html[tag.end..].find("</style>").map_or(html.len(), |end| tag.end + end),
            _ => tag.end,
        };
    }
    out.push_str(&html[at..]);
    out.retain(|c| !c.is_ascii_whitespace());
    out
}

/// What css-inline made of one element.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    style: Option<String>,
    /// What is left in a style block.
    rules: Option<String>,
}

fn styles_of(html: &str, stand_in: &StandIn<'_>) -> Result<HashMap<usize, Found>, LintFault> {
    let mut all: HashMap<usize, Found> = HashMap::new();
    for tag in scan::written_tags(html) {
        let attribute = |name: &str| tag.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let Some(number) = attribute(NUMBER).and_then(|number| number.parse().ok()) else { continue };
        let rules =
            (tag.name == "style").then(|| html[tag.end..].split("</style").next().unwrap_or_default().to_owned());
        let found = Found { style: attribute("style").map(str::to_owned), rules };
        match all.get(&number) {
            Some(known) if *known != found => {
                let words = "its style depends on where the partial is included: use a rule of its own class";
                return Err(stand_in.elements[number].fault(&stand_in.words, words));
            }
            Some(_) => {}
            None => drop(all.insert(number, found)),
        }
    }
    Ok(all)
}

fn apply(text: &str, mut edits: Vec<(std::ops::Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let (mut out, mut at) = (String::with_capacity(text.len() * 2), 0);
    for (range, new) in edits {
        // What lies within an earlier edit went with it.
        if range.start >= at {
            out.push_str(&text[at..range.start]);
            out.push_str(&new);
            at = range.end;
        }
    }
    out.push_str(&text[at..]);
    out
}

#[cfg(test)]
mod tests;
