//! What is refused at save time: everything that compiling finds, and what only shows in a rendered mail.
//!
//! In every locale, the sample is rendered three ways: with everything, with nothing that is optional, and once for each
//! variable with an address in it that no link may lead to. Invariant: a template that passed has shown that it renders.

use chrono::DateTime;
use serde_json::{Map, Value};

use super::{
    AttachedFile, CompiledTemplate, LintFault, Part, RenderError, System, TemplateSource, compile::Wording,
    manifest::RESERVED,
};
use crate::email::{RenderedEmail, attachment::FileType};

/// Gmail shows 102 kB of a message's HTML, and a link to the rest.
pub const HTML_BYTES_MAX: usize = 102_000;
/// From here on it is told: a longer name, or a longer list, and it is too much.
const HTML_BYTES_WARN: usize = 80_000;
/// An address that must not become a link.
const HOSTILE: &str = "javascript:postrider";
/// Where faults of the sample are said to be.
const SAMPLE: &str = "sample.json";

/// What there is to say about a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What is wrong with it. None: it can be saved and activated.
    pub faults: Vec<LintFault>,
    /// What is worth a look.
    pub remarks: Vec<LintFault>,
}

/// Everything that is wrong with a source. An empty list: it can be saved and activated.
#[must_use]
pub fn lint(source: &TemplateSource) -> Vec<LintFault> {
    inspect(source).faults
}

/// The same, with what is merely worth a look.
#[must_use]
pub fn inspect(source: &TemplateSource) -> Inspection {
    // Version and tries play no part in what is checked.
    match CompiledTemplate::compile(source, 0, 1) {
        Ok(template) => inspect_compiled(&template, source),
        Err(faults) => Inspection { faults, remarks: Vec::new() },
    }
}

/// Compiles a source and checks the result, so that who needs both pays for one. `tries_default` as in
/// [`CompiledTemplate::compile`]; the version is not known yet, and 0.
///
/// # Errors
/// Everything that is wrong with it, as [`lint()`] says it.
pub fn compile_sound(source: &TemplateSource, tries_default: i32) -> Result<CompiledTemplate, Vec<LintFault>> {
    let template = CompiledTemplate::compile(source, 0, tries_default)?;
    let faults = inspect_compiled(&template, source).faults;
    if faults.is_empty() { Ok(template) } else { Err(faults) }
}

fn inspect_compiled(template: &CompiledTemplate, source: &TemplateSource) -> Inspection {
    let mut found = Inspection::default();
    check_sample(template, &source.sample, &mut found.faults);
    if !found.faults.is_empty() {
        return found;
    }
    for wording in template.wordings() {
        let in_locale = inspect_wording(template, wording, &source.sample);
        found.faults.extend(in_locale.faults.into_iter().map(|fault| wording.named(fault)));
        found.remarks.extend(in_locale.remarks.into_iter().map(|remark| wording.named(remark)));
        found.remarks.extend(wording.not_moved.clone());
    }
    for list in [&mut found.faults, &mut found.remarks] {
        list.sort();
        list.dedup();
    }
    found
}

/// Under the names of the files in the template's own locale.
fn inspect_wording(template: &CompiledTemplate, wording: &Wording, sample: &Map<String, Value>) -> Inspection {
    let manifest = template.manifest();
    let files: Vec<(String, &str)> = manifest
        .attachments
        .iter()
        .filter_map(|name| FileType::from_name(name))
        .map(|kind| (format!("exemple.{kind}"), kind.content_type()))
        .collect();
    let attachments: Vec<AttachedFile<'_>> =
        files.iter().map(|(file_name, content_type)| AttachedFile { file_name, content_type }).collect();
    let full = System {
        request_date: DateTime::UNIX_EPOCH,
        attachments: &attachments,
        support_email: Some("support@example.com"),
        support_phone: Some("+229 01 00 00 00 00"),
        timezone: chrono_tz::Africa::PortoNovo,
        locale: &wording.locale,
        unsubscribe_url: manifest.example_unsubscribe_url(),
    };
    let bare = System { attachments: &[], support_email: None, support_phone: None, unsubscribe_url: None, ..full };
    let mut least = sample.clone();
    least.retain(|name, _| manifest.required.contains(name));
    let mut found = Inspection::default();
    for (variables, system, how) in [(sample, &full, "with the sample"), (&least, &bare, "without what is optional")] {
        match template.render_in(wording, variables, system) {
            Ok(mail) => Mail { template, wording, variables, system, mail: &mail, how }.check(&mut found),
            Err(error) => found.faults.push(fault_of(&error, how)),
        }
    }
    if found.faults.is_empty() {
        probe_links(template, wording, sample, &full, &mut found.faults);
    }
    found
}

fn check_sample(template: &CompiledTemplate, sample: &Map<String, Value>, faults: &mut Vec<LintFault>) {
    let manifest = template.manifest();
    for name in manifest.required.iter().chain(&manifest.optional) {
        if sample.get(name).is_none_or(Value::is_null) {
            faults.push(LintFault::new(SAMPLE, None, format!("variable \"{name}\" is missing or null")));
        }
    }
    for name in sample.keys() {
        if !manifest.required.contains(name) && !manifest.optional.contains(name) {
            let words = format!("variable \"{name}\" is not declared in manifest.toml");
            faults.push(LintFault::new(SAMPLE, None, words));
        }
    }
}

/// A mail that was rendered to be looked at.
struct Mail<'a> {
    template: &'a CompiledTemplate,
    wording: &'a Wording,
    variables: &'a Map<String, Value>,
    system: &'a System<'a>,
    mail: &'a RenderedEmail,
    how: &'a str,
}

impl Mail<'_> {
    fn check(&self, found: &mut Inspection) {
        let Self { mail, how, .. } = self;
        let bytes = mail.html.len();
        if (HTML_BYTES_WARN + 1..=HTML_BYTES_MAX).contains(&bytes) {
            let words = format!("{bytes} bytes {how}: Gmail cuts it at {HTML_BYTES_MAX}");
            found.remarks.push(LintFault::new(Part::Html.file_name(), None, words));
        }
        self.check_parts(&mut found.faults);
        check_addresses(&mail.html, how, &mut found.faults);
    }

    fn check_parts(&self, faults: &mut Vec<LintFault>) {
        let Self { template, wording, variables, system, mail, how } = self;
        let mut add = |part: Part, words: String| faults.push(LintFault::new(part.file_name(), None, words));
        for (part, text) in [(Part::Subject, &mail.subject), (Part::Html, &mail.html), (Part::Text, &mail.text)] {
            if let Some(found) = placeholder(text) {
                add(part, format!("a placeholder is left {how}: {found}"));
            }
        }
        let written = template
            .context(variables, wording, system)
            .and_then(|(context, largest)| wording.render(Part::Subject, &context, largest, system.timezone));
        if written.is_ok_and(|subject| subject.trim().contains(['\n', '\r'])) {
            add(Part::Subject, "it is more than one line".into());
        }
        if mail.text.trim().is_empty() {
            add(Part::Text, format!("it is empty {how}"));
        }
        let tag = tag_of(&mail.html, "html").unwrap_or_default();
        let language = |locale: &str| locale.split('-').next().unwrap_or_default().to_ascii_lowercase();
        match attribute_values(tag, "lang").next().flatten().filter(|lang| !lang.is_empty()) {
            None => add(Part::Html, "<html> needs lang=\"...\": screen readers choose their voice by it".into()),
            Some(lang) if language(lang) != language(&wording.locale) => {
                let words =
                    format!("<html lang=\"{lang}\">, but this is {}: use {{{{postrider.locale}}}}", wording.locale);
                add(Part::Html, words);
            }
            Some(_) => {}
        }
        let title = mail.html.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        if title.is_none_or(|(title, _)| title.trim().is_empty()) {
            add(Part::Html, "<title> is missing or empty".into());
        }
        if mail.html.len() > HTML_BYTES_MAX {
            add(Part::Html, format!("{} bytes {how}: mailboxes cut it at {HTML_BYTES_MAX}", mail.html.len()));
        }
    }
}

/// That addresses lead where mail programs go.
fn check_addresses(html: &str, how: &str, faults: &mut Vec<LintFault>) {
    let mut add = |words: String| faults.push(LintFault::new(Part::Html.file_name(), None, words));
    for (name, schemes) in
        [("href", &["http://", "https://", "mailto:"][..]), ("src", &["http://", "https://", "cid:"][..])]
    {
        for value in attribute_values(html, name) {
            let Some(value) = value else {
                add(format!("{name} needs quotes around its value"));
                continue;
            };
            if !schemes.iter().any(|scheme| value.trim_start().to_ascii_lowercase().starts_with(scheme)) {
                add(format!("{name}=\"{value}\" {how}: use {}", schemes.join(", ")));
            }
        }
    }
}

/// Puts a hostile address into every variable in turn: it must stop the rendering, or stay out of links.
fn probe_links(
    template: &CompiledTemplate,
    wording: &Wording,
    sample: &Map<String, Value>,
    system: &System<'_>,
    faults: &mut Vec<LintFault>,
) {
    for name in sample.keys() {
        let mut variables = sample.clone();
        variables.insert(name.clone(), Value::from(HOSTILE));
        // Only this part: that another one stops at the address is no protection to build on.
        let html = template.context(&variables, wording, system).and_then(|(mut context, largest)| {
            context.data_mut()[RESERVED]["subject"] = Value::from("x");
            wording.render(Part::Html, &context, largest, system.timezone)
        });
        let Ok(html) = html else { continue };
        let reached = ["href", "src", "action", "background"].into_iter().any(|attribute| {
            attribute_values(&html, attribute).flatten().any(|value| value.trim_start().starts_with(HOSTILE))
        });
        if reached {
            let words = format!("variable \"{name}\" becomes a link unchecked: write {{{{url {name}}}}}");
            faults.push(LintFault::new(Part::Html.file_name(), None, words));
        }
    }
}

fn fault_of(error: &RenderError, how: &str) -> LintFault {
    match error {
        RenderError::NotAUrl { part, line } => {
            LintFault::new(part, *line, format!("does not render {how}: not an http(s) URL"))
        }
        RenderError::Failed { part, line, words } => {
            LintFault::new(part, *line, format!("does not render {how}: {words}"))
        }
        other => LintFault::new(SAMPLE, None, format!("does not render {how}: {other}")),
    }
}

/// What somebody meant to replace: `XXXXX`, `[LIEN]`, `{{`.
fn placeholder(text: &str) -> Option<String> {
    if let Some(plain) = ["XXXXX", "{{"].into_iter().find(|plain| text.contains(plain)) {
        return Some(plain.to_owned());
    }
    text.match_indices('[').find_map(|(at, _)| {
        let (inside, _) = text[at + 1..].split_once(']')?;
        let capitals = inside.chars().filter(|c| c.is_uppercase()).count();
        let only = inside.chars().all(|c| c.is_uppercase() || matches!(c, ' ' | '\'' | '’' | '_' | '-'));
        (only && capitals >= 2).then(|| format!("[{inside}]"))
    })
}

/// The first tag of this name, from its `<` to its `>`.
fn tag_of<'a>(html: &'a str, name: &str) -> Option<&'a str> {
    let start = html.find(&format!("<{name}"))?;
    html[start..].split_inclusive('>').next()
}

/// The values of an attribute wherever it occurs; nothing for one without quotes.
fn attribute_values<'a>(html: &'a str, name: &'a str) -> impl Iterator<Item = Option<&'a str>> {
    let starts = html
        .match_indices(name)
        .filter(move |(at, _)| html[..*at].ends_with(|c: char| c.is_ascii_whitespace() || c == '"' || c == '\''));
    starts.filter_map(move |(at, _)| {
        let value = html[at + name.len()..].trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        Some(quote.and_then(|quote| value[1..].split_once(quote)).map(|(value, _)| value))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::templates::read_folder;

    const HTML: &str = "<!DOCTYPE html><html lang=\"fr\"><head><title>{{postrider.subject}}</title></head>\
                        <body><p>{{name}}</p><a href=\"{{url link}}\">x</a>{{#if note}}{{note}}{{/if}}</body></html>";

    fn source() -> TemplateSource {
        let manifest = "description = \"x\"\ncategory = \"billing\"\npriority = \"P1\"\ndeadline_seconds = 60\n\
                        locale = \"fr\"\nrequired = [\"name\", \"link\"]\noptional = [\"note\"]\nattachments = [\"pdf\"]";
        let sample = json!({"name": "Tech Connect SA", "link": "https://a.bj/?a=1&b=2", "note": "n"});
        serde_json::from_value(json!({
            "key": "a", "manifest_toml": manifest, "subject": "Bonjour {{name}}\n", "html": HTML,
            "text": "{{name}} {{note}}\n{{url link}}\n", "sample": sample
        }))
        .expect("a source")
    }

    fn faults(change: impl FnOnce(&mut TemplateSource)) -> String {
        let mut source = source();
        change(&mut source);
        lint(&source).iter().map(|fault| format!("{fault}\n")).collect()
    }

    #[test]
    fn a_sound_template_has_no_faults() {
        assert_eq!(faults(|_| {}), "");
    }

    #[test]
    fn placeholders_do_not_survive() {
        for (left, want) in [
            ("+229-XXXXX", "subject.hbs: a placeholder is left with the sample: XXXXX"),
            ("[LIEN]", "[LIEN]"),
            ("[BARRE PROGRESS]", "[BARRE PROGRESS]"),
            ("[TÉLÉPHONE]", "[TÉLÉPHONE]"),
            ("\\{{name}}", "placeholder is left with the sample: {{"),
        ] {
            let found = faults(|source| source.subject.insert_str(0, left));
            assert!(found.contains(want), "{left}: {found}");
        }
        for fine in ["[a]", "[A]", "[12]", "[####----]", "[if mso]", "[]", "a [b", "XXXX"] {
            assert_eq!(faults(|source| source.subject.insert_str(0, fine)), "", "{fine}");
        }
    }

    #[test]
    fn what_only_shows_when_rendered_is_found() {
        for (from, to, want) in [
            ("lang=\"fr\"", "", "html.hbs: <html> needs lang"),
            ("{{postrider.subject}}", "", "html.hbs: <title> is missing or empty"),
            ("{{url link}}", "{{link}}", "html.hbs: variable \"link\" becomes a link unchecked: write {{url link}}"),
            ("{{url link}}", "#top", "html.hbs: href=\"#top\" with the sample: use http://, https://, mailto:"),
            ("\"{{url link}}\"", "{{url link}}", "href needs quotes"),
            ("<p>", "<img src='x.png'><p>", "html.hbs: src=\"x.png\""),
            (
                "<p>",
                "{{#each (lines name)}}<p>{{this.x}}{{/each}}",
                "html.hbs:1: does not render with the sample: this.x has no value",
            ),
            (
                "{{#if note}}{{note}}{{/if}}",
                "{{url note}}",
                "html.hbs:1: does not render without what is optional: not an http(s) URL",
            ),
        ] {
            let found = faults(|source| source.html = source.html.replace(from, to));
            assert!(found.contains(want), "{to}: {found}");
        }
        assert_eq!(faults(|source| source.html = source.html.replace("<p>", "<a href=\"mailto:a@b.bj\">m</a><p>")), "");
        let two_lines = faults(|source| source.subject = "a\n{{name}}".into());
        assert_eq!(two_lines, "subject.hbs: it is more than one line\n");
        assert!(
            faults(|source| source.subject = "{{#if postrider.has_pdf}}{{/if}}".into())
                .contains("the subject is empty")
        );
        assert!(faults(|source| source.html.push_str(&"x".repeat(HTML_BYTES_MAX))).contains("mailboxes cut it"));
        assert!(faults(|source| source.subject.push_str(&"x".repeat(1000))).contains("subject.hbs: more than 998"));
    }

    #[test]
    fn every_language_is_looked_at() {
        let english = |html: &str| crate::templates::Variant {
            subject: "Hello {{name}}".into(),
            html: html.into(),
            text: "{{name}} {{url link}} {{note}}".into(),
            ..crate::templates::Variant::default()
        };
        let in_english = |html: &str| {
            let variant = english(html);
            faults(|source| drop(source.variants.insert("en".into(), variant)))
        };
        assert_eq!(in_english(&HTML.replace("\"fr\"", "\"en-GB\"")), "");
        assert_eq!(in_english(&HTML.replace("\"fr\"", "\"{{postrider.locale}}\"")), "");
        let wrong = in_english(HTML);
        assert_eq!(wrong, "html.en.hbs: <html lang=\"fr\">, but this is en: use {{postrider.locale}}\n");
        let wrong = in_english(&HTML.replace("\"fr\"", "\"en\"").replace("{{url link}}", "{{link}}"));
        assert!(wrong.starts_with("html.en.hbs: variable \"link\" becomes a link unchecked"), "{wrong}");
    }

    #[test]
    fn what_does_no_harm_is_a_remark() {
        let remarks = |html: String| {
            let found = inspect(&TemplateSource { html, ..source() });
            assert_eq!(found.faults, []);
            found.remarks.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(remarks(HTML.to_owned()), [""; 0]);
        let large = remarks(format!("{HTML}{}", "x".repeat(HTML_BYTES_WARN)));
        assert!(
            large.len() == 2
                && large.iter().any(|words| words.contains("bytes with the sample: Gmail cuts it at 102000")),
            "{large:?}"
        );
        let computed = HTML.replace("<p>", "<style>p{color:red}</style>\n<p class=\"{{name}}\">");
        let want = "html.hbs:2: styles stay in <style>, where some mail programs ignore them: classes are computed: no rule \
                    can be moved by them";
        assert_eq!(remarks(computed), [want]);
    }

    #[test]
    fn the_sample_is_complete() {
        for (change, want) in [
            (json!({"name": "a", "link": "https://a.bj"}), "variable \"note\" is missing or null"),
            (json!({"name": null, "link": "https://a.bj", "note": ""}), "variable \"name\" is missing or null"),
            (json!({"name": "a", "link": "https://a.bj", "note": "", "more": 1}), "\"more\" is not declared"),
        ] {
            let sample = serde_json::from_value(change).expect("a map");
            let found = faults(|source| source.sample = sample);
            assert!(found.starts_with("sample.json: ") && found.contains(want), "{found}");
        }
    }

    #[test]
    fn the_project_s_own_templates_are_sound() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/templates"));
        let sources = read_folder(folder).expect("the folder reads");
        let faults: Vec<String> = sources
            .iter()
            .flat_map(|source| lint(source).into_iter().map(|fault| format!("{}/{fault}", source.key)))
            .collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        assert!(sources.len() >= 11, "{} templates", sources.len());
    }
}
