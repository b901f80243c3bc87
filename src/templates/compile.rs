//! Sources made ready to render: parsed once for each version, walked, and kept for as long as the version is used.
//!
//! Two registries for each locale, because what is escaped is a property of a registry: HTML escapes everything, subject and
//! text nothing. Each sees only its own partials. The HTML part is there twice where styles were moved: as it is sent, and as
//! it was written, which is what errors speak of.

/// Partials that were parsed before.
mod partials;

use std::collections::{BTreeMap, BTreeSet};

use chrono::DateTime;
use handlebars::{Handlebars, Template, TemplateError, html_escape, no_escape};
use serde_json::{Map, Value};

use super::{
    AttachedFile, LintFault, Part, System, TemplateSource,
    figures::Style,
    helpers, inline,
    locale::{self, is_locale},
    manifest::{RESERVED, parse_manifest},
    source::{Words, is_key},
    syntax,
    walk::{Usage, partials_of, walk},
};
use crate::email::Manifest;

/// Most partials of one part.
const PARTIALS_MAX: usize = 100;
/// Most bytes of one part and its partials together.
const PART_SOURCE_BYTES_MAX: usize = 1024 * 1024;
/// Most locales of one template besides its own.
const VARIANTS_MAX: usize = 20;

/// One version of a template, ready to render. Shared by `Arc`; rendering clones nothing of it.
pub struct CompiledTemplate {
    key: String,
    version: i32,
    checksum: [u8; 32],
    manifest: Manifest,
    own: Wording,
    variants: Vec<Wording>,
}

/// A template in one locale.
pub(super) struct Wording {
    pub(super) locale: String,
    is_own: bool,
    /// Partials that are not of this locale but the same as in the template's own.
    shared: BTreeSet<(Part, String)>,
    pub(super) style: Style,
    subject: CompiledPart,
    text: CompiledPart,
    plain: Handlebars<'static>,
    html: Document,
    moved: Option<Document>,
    /// Why styles were not moved.
    pub(super) not_moved: Option<LintFault>,
}

struct Document {
    part: CompiledPart,
    registry: Handlebars<'static>,
}

pub(super) struct CompiledPart {
    pub(super) template: Template,
    pub(super) usage: Usage,
}

impl std::fmt::Debug for CompiledTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompiledTemplate({}/{})", self.key, self.version)
    }
}

impl CompiledTemplate {
    /// Makes a version ready to render. `tries_default` is what a manifest without `tries` gets.
    ///
    /// # Errors
    /// Every fault that can be found without rendering: see [`lint`](super::lint()) for the rest.
    pub fn compile(source: &TemplateSource, version: i32, tries_default: i32) -> Result<Self, Vec<LintFault>> {
        let mut faults = BTreeSet::new();
        if !is_key(&source.key) {
            let words = "the key must be lower-case letters, digits and _, a letter first, at most 100 characters";
            faults.insert(LintFault::new("manifest.toml", None, words));
        }
        let manifest = parse_manifest(&source.manifest_toml, tries_default).map_err(|found| faults.extend(found)).ok();
        let own_locale = manifest.as_ref().map(|manifest| manifest.locale.clone()).unwrap_or_default();
        check_locales(source, &own_locale, &mut faults);
        let words: Vec<(&str, Words<'_>)> = [(own_locale.as_str(), source.words())]
            .into_iter()
            .chain(source.variants.iter().map(|(locale, variant)| (locale.as_str(), variant.words())))
            .collect();
        let names = |manifest: &Manifest| manifest.required.iter().chain(&manifest.optional).cloned().collect();
        let names: Option<BTreeSet<String>> = manifest.as_ref().map(names);
        let declared: Option<BTreeSet<&str>> = names.as_ref().map(|names| names.iter().map(String::as_str).collect());
        let mut wordings = Vec::with_capacity(words.len());
        for (at, (locale, words)) in words.iter().enumerate() {
            let shared = if at == 0 { BTreeSet::new() } else { same_partials(words, &source.words()) };
            match Wording::compile(locale, at == 0, words, shared, declared.as_ref()) {
                Ok(wording) => wordings.extend(wording),
                Err(found) => faults.extend(found),
            }
        }
        let Some(manifest) = manifest.filter(|_| faults.is_empty()) else { return Err(faults.into_iter().collect()) };
        for name in manifest.required.iter().chain(&manifest.optional) {
            if !wordings.iter().any(|wording| wording.uses(name)) {
                let words = format!("variable \"{name}\" is declared, but no part uses it");
                faults.insert(LintFault::new("manifest.toml", None, words));
            }
        }
        if !faults.is_empty() || wordings.is_empty() {
            return Err(faults.into_iter().collect());
        }
        let own = wordings.remove(0);
        let checksum = source.checksum();
        let mut template = Self { key: source.key.clone(), version, checksum, own, variants: wordings, manifest };
        template.move_styles(&words, &source.sample);
        Ok(template)
    }

    /// The template's name.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Which version of it this is.
    #[must_use]
    pub const fn version(&self) -> i32 {
        self.version
    }

    /// The same under the number that the database gave it.
    #[must_use]
    pub fn as_version(self, version: i32) -> Self {
        Self { version, ..self }
    }

    /// SHA-256 over the source.
    #[must_use]
    pub const fn checksum(&self) -> [u8; 32] {
        self.checksum
    }

    /// What it says of itself.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The locales that it is written in, its own first.
    pub fn locales(&self) -> impl Iterator<Item = &str> {
        self.wordings().map(|wording| wording.locale.as_str())
    }

    pub(super) fn wordings(&self) -> impl Iterator<Item = &Wording> + Clone {
        [&self.own].into_iter().chain(&self.variants)
    }

    /// The words for a reader who asked for this locale: the closest there are, else the template's own.
    pub(super) fn wording(&self, asked: &str) -> &Wording {
        let best = locale::best(asked, &self.wordings().map(|wording| wording.locale.as_str()));
        self.wordings().find(|wording| best == Some(wording.locale.as_str())).unwrap_or(&self.own)
    }

    /// Sends the HTML part with its styles moved to the elements, where that is proved to be the same.
    fn move_styles(&mut self, words: &[(&str, Words<'_>)], sample: &Map<String, Value>) {
        let declared: BTreeSet<&str> =
            self.manifest.required.iter().chain(&self.manifest.optional).map(String::as_str).collect();
        let moved: Vec<Result<Option<Document>, LintFault>> = self
            .wordings()
            .zip(words)
            .map(|(wording, (_, words))| {
                let Some(inlined) = inline::inline(words)? else { return Ok(None) };
                let not = |why: &str| LintFault::new(Part::Html.file_name(), None, why);
                let parsed = parse(Part::Html, &inlined.html, &inlined.partials, &mut BTreeSet::new());
                let parsed = parsed.ok_or_else(|| not("with its styles moved it would be too large"))?;
                let usage = parsed.usage(Part::Html, &declared);
                let usage = usage.map_err(|_| not("with its styles moved it would be too large"))?;
                let document = Document {
                    registry: registry(html_escape, wording.style, parsed.partials),
                    part: CompiledPart { template: parsed.template, usage },
                };
                self.prove(wording, &document, sample).map_err(not)?;
                Ok(Some(document))
            })
            .collect();
        for (wording, moved) in [&mut self.own].into_iter().chain(&mut self.variants).zip(moved) {
            match moved {
                Ok(document) => wording.moved = document,
                Err(fault) => {
                    let words =
                        format!("styles stay in <style>, where some mail programs ignore them: {}", fault.words);
                    wording.not_moved = Some(wording.named(LintFault { words, ..fault }));
                }
            }
        }
    }

    /// That the sample looks the same with the styles moved before it is rendered and afterwards.
    fn prove(&self, wording: &Wording, moved: &Document, sample: &Map<String, Value>) -> Result<(), &'static str> {
        let system = System {
            request_date: DateTime::UNIX_EPOCH,
            attachments: &[AttachedFile { file_name: "a.pdf", content_type: "application/pdf" }],
            support_email: Some("support@example.com"),
            support_phone: Some("+229 01 00 00 00 00"),
            timezone: chrono_tz::Africa::PortoNovo,
            locale: &wording.locale,
            unsubscribe_url: self.manifest().example_unsubscribe_url(),
        };
        let no_render = |_| "its sample does not render";
        let (mut context, largest) = self.context(sample, wording, &system).map_err(no_render)?;
        context.data_mut()[RESERVED]["subject"] = Value::from("x");
        let render = |document: &Document| {
            wording
                .render_with(Part::Html, &document.part, &document.registry, &context, largest, system.timezone)
                .map_err(no_render)
        };
        match inline::same(&render(&wording.html)?, &render(moved)?) {
            Ok(true) => Ok(()),
            Ok(false) => Err("its sample would look different"),
            Err(_) => Err("its CSS cannot be read"),
        }
    }
}

/// That every locale is one, is there once, and is not the template's own.
fn check_locales(source: &TemplateSource, own: &str, faults: &mut BTreeSet<LintFault>) {
    let mut seen = vec![own.to_ascii_lowercase()];
    for locale in source.variants.keys() {
        let file = locale::file_in(Part::Html.file_name(), locale);
        if !is_locale(locale) {
            let words = "what stands before .hbs is no locale: use a BCP 47 tag, for instance en or fr-BJ";
            faults.insert(LintFault::new(file, None, words));
        } else if seen.contains(&locale.to_ascii_lowercase()) {
            let words = format!("there are two variants for {locale}; that of manifest.toml is html.hbs itself");
            faults.insert(LintFault::new(file, None, words));
        }
        seen.push(locale.to_ascii_lowercase());
    }
    if source.variants.len() > VARIANTS_MAX {
        let words = format!("there are {} variants; at most {VARIANTS_MAX} are allowed", source.variants.len());
        faults.insert(LintFault::new("manifest.toml", None, words));
    }
}

fn same_partials(words: &Words<'_>, own: &Words<'_>) -> BTreeSet<(Part, String)> {
    let of = |part| {
        let same = words.partials(part).iter().filter(move |(name, text)| own.partials(part).get(*name) == Some(*text));
        same.map(move |(name, _)| (part, name.clone()))
    };
    [Part::Html, Part::Text].into_iter().flat_map(of).collect()
}

impl Wording {
    /// Nothing, where it could not be walked for want of a manifest.
    fn compile(
        locale: &str,
        is_own: bool,
        words: &Words<'_>,
        shared: BTreeSet<(Part, String)>,
        declared: Option<&BTreeSet<&str>>,
    ) -> Result<Option<Self>, BTreeSet<LintFault>> {
        let mut faults = BTreeSet::new();
        let name = |faults: BTreeSet<LintFault>| -> BTreeSet<LintFault> {
            faults.into_iter().map(|fault| named(fault, locale, is_own, &shared)).collect()
        };
        let parsed = Part::ALL.map(|part| parse(part, words.part(part), words.partials(part), &mut faults));
        let [Some(subject), Some(html), Some(text)] = parsed else { return Err(name(faults)) };
        let Some(declared) = declared else { return Ok(None) };
        let usages = [(Part::Subject, &subject), (Part::Html, &html), (Part::Text, &text)]
            .map(|(part, parsed)| parsed.usage(part, declared).map_err(|found| faults.extend(found)).ok());
        let [Some(subject_usage), Some(html_usage), Some(text_usage)] = usages else { return Err(name(faults)) };
        let style = Style::of(locale);
        Ok(Some(Self {
            locale: locale.to_owned(),
            is_own,
            style,
            plain: registry(no_escape, style, text.partials),
            subject: CompiledPart { template: subject.template, usage: subject_usage },
            text: CompiledPart { template: text.template, usage: text_usage },
            html: Document {
                registry: registry(html_escape, style, html.partials),
                part: CompiledPart { template: html.template, usage: html_usage },
            },
            moved: None,
            not_moved: None,
            shared,
        }))
    }

    fn uses(&self, variable: &str) -> bool {
        [&self.subject, &self.html.part, &self.text].iter().any(|part| part.usage.variables.contains(variable))
    }

    /// A fault under the name of this locale's file.
    pub(super) fn named(&self, fault: LintFault) -> LintFault {
        named(fault, &self.locale, self.is_own, &self.shared)
    }

    /// A part's file, or a partial's, in this locale.
    pub(super) fn file(&self, base: &str) -> String {
        file_of(base, &self.locale, self.is_own, &self.shared)
    }

    /// The part as it is written.
    pub(super) const fn part(&self, part: Part) -> (&CompiledPart, &Handlebars<'static>) {
        match part {
            Part::Subject => (&self.subject, &self.plain),
            Part::Html => (&self.html.part, &self.html.registry),
            Part::Text => (&self.text, &self.plain),
        }
    }

    /// The HTML part with its styles moved, if they were.
    pub(super) fn moved(&self) -> Option<(&CompiledPart, &Handlebars<'static>)> {
        self.moved.as_ref().map(|document| (&document.part, &document.registry))
    }
}

fn named(fault: LintFault, locale: &str, is_own: bool, shared: &BTreeSet<(Part, String)>) -> LintFault {
    LintFault { part: file_of(&fault.part, locale, is_own, shared), ..fault }
}

fn file_of(base: &str, locale: &str, is_own: bool, shared: &BTreeSet<(Part, String)>) -> String {
    let is_shared = || shared.iter().any(|(part, name)| part.partial_file_name(name) == base);
    if is_own || is_shared() { base.to_owned() } else { locale::file_in(base, locale) }
}

/// One part and the partials that it may include, parsed.
struct Parsed {
    template: Template,
    partials: BTreeMap<String, Template>,
}

impl Parsed {
    fn usage(&self, part: Part, declared: &BTreeSet<&str>) -> Result<Usage, BTreeSet<LintFault>> {
        let partials = self.partials.iter().map(|(name, template)| (name.as_str(), template)).collect();
        walk(part, &self.template, &partials, declared)
    }
}

fn parse(
    part: Part,
    text: &str,
    sources: &BTreeMap<String, String>,
    faults: &mut BTreeSet<LintFault>,
) -> Option<Parsed> {
    if sources.len() > PARTIALS_MAX {
        faults.insert(LintFault::new(part.file_name(), None, format!("it has more than {PARTIALS_MAX} partials")));
        return None;
    }
    let bytes: usize = sources.values().map(String::len).sum::<usize>() + text.len();
    if bytes > PART_SOURCE_BYTES_MAX {
        let words = format!("with its partials it has {bytes} bytes; at most {PART_SOURCE_BYTES_MAX} are allowed");
        faults.insert(LintFault::new(part.file_name(), None, words));
        return None;
    }
    let before = faults.len();
    let mut template = parse_file(part.file_name(), text, faults);
    // A name that no partial can have: the engine refuses a partial of the name that is being rendered.
    if let Some(template) = &mut template {
        template.name = Some(part.file_name().to_owned());
    }
    let mut partials = BTreeMap::new();
    for (name, text) in sources {
        let file = part.partial_file_name(name);
        if !is_key(name) {
            faults.insert(LintFault::new(&file, None, "a partial's name has lower-case letters, digits and _ only"));
        }
        if let Some(mut template) = partials::parsed(text, || parse_file(&file, text, faults)) {
            template.name = Some(name.clone());
            partials.insert(name.clone(), template);
        }
    }
    template.filter(|_| faults.len() == before).map(|template| Parsed { template, partials })
}

fn parse_file(file: &str, text: &str, faults: &mut BTreeSet<LintFault>) -> Option<Template> {
    let parsed = syntax::check(file, text).and_then(|()| {
        Template::compile(text).map_err(|error: TemplateError| {
            LintFault::new(file, error.pos().map(|(line, _)| line), one_line(&error.reason().to_string()))
        })
    });
    parsed.map_err(|fault| faults.insert(fault)).ok()
}

fn one_line(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The partials that a text names, whether they exist or not; nothing when it cannot be parsed.
pub(super) fn partials_named(text: &str) -> Option<BTreeSet<String>> {
    syntax::check("", text).ok()?;
    let template = Template::compile(text).ok()?;
    let mut names = BTreeSet::new();
    partials_of(&template, &mut names);
    Some(names)
}

fn registry(escape: fn(&str) -> String, style: Style, partials: BTreeMap<String, Template>) -> Handlebars<'static> {
    let mut registry = Handlebars::new();
    registry.set_strict_mode(true);
    registry.register_escape_fn(escape);
    helpers::register(&mut registry, style);
    for (name, template) in partials {
        registry.register_template(&name, template);
    }
    registry
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MANIFEST: &str = "description = \"x\"\ncategory = \"billing\"\npriority = \"P1\"\ndeadline_seconds = 60\n\
                            locale = \"fr\"\nrequired = [\"name\", \"items\"]\noptional = [\"note\"]";

    /// Compiles a template with this HTML part; the other parts use every variable.
    fn html(html: &str, partials: &[(&str, &str)]) -> Result<CompiledTemplate, String> {
        let partials: BTreeMap<&str, &str> = partials.iter().copied().collect();
        let source: TemplateSource = serde_json::from_value(json!({
            "key": "a", "manifest_toml": MANIFEST, "subject": "{{name}}", "html": html,
            "text": "{{note}}{{#each items}}{{this}}{{/each}}", "partials_html": partials
        }))
        .expect("a source");
        CompiledTemplate::compile(&source, 1, 3)
            .map_err(|faults| faults.iter().map(|fault| format!("{fault}\n")).collect())
    }

    #[test]
    fn what_is_declared_may_be_used() {
        for (source, partials) in [
            ("{{name}} {{this.name}} {{./name}} {{@root.name}} {{items.[0]}}", &[][..]),
            (
                "{{#each items}}{{this}} {{this.x}} {{x.y}} {{../name}} {{@root/name}} {{@index}}{{else}}{{name}}{{/each}}",
                &[],
            ),
            ("{{#each items as |item at|}}{{item}} {{item.x}} {{at}}{{/each}}", &[]),
            ("{{#with note as |n|}}{{n}}{{x}}{{../name}}{{/with}}", &[]),
            ("{{#if (or name (gt (len (lines items)) 0))}}{{default note \"x\"}}{{/if}}", &[]),
            ("{{postrider.subject}}{{#each postrider.attachments}}{{filename}}{{/each}}", &[]),
            ("{{> p label=name tone=\"x\"}}", &[("p", "{{label}} {{tone}} {{name}}")]),
            ("{{#> p label=\"x\"}}{{label}} {{name}}{{/p}}", &[("p", "<b>{{> @partial-block}}</b>")]),
            ("{{#each items}}{{> p}}{{> p a=1}}{{/each}}", &[("p", "{{x}} {{@index}} {{../../name}}")]),
            ("{{> p note}}", &[("p", "{{anything}}")]),
            (
                "{{#> outer}}{{#> inner}}x{{/inner}}{{/outer}}",
                &[("outer", "{{> inner}}{{> @partial-block}}"), ("inner", "i")],
            ),
            ("{{#> p}}{{#> p}}x{{/p}}{{/p}}", &[("p", "{{> @partial-block}}")]),
        ] {
            html(source, partials).unwrap_or_else(|faults| panic!("{source}: {faults}"));
        }
    }

    #[test]
    fn faults_are_found_before_anything_renders() {
        for (source, partials, want) in [
            ("a\n{{nam}}", &[][..], "html.hbs:2: variable \"nam\" is not declared"),
            ("{{#if (eq nam 1)}}{{/if}}", &[], "variable \"nam\""),
            ("{{#if nam}}{{/if}}", &[], "variable \"nam\""),
            ("{{#each items}}{{../nam}}{{/each}}", &[], "variable \"nam\""),
            ("{{#each items}}{{@root.nam}}{{/each}}", &[], "variable \"nam\""),
            ("{{#each items}}{{else}}{{x}}{{/each}}", &[], "variable \"x\""),
            ("{{#each items}}{{../../name}}{{/each}}", &[], "goes up further"),
            ("{{#each items as |item|}}{{/each}}{{item}}", &[], "variable \"item\""),
            ("{{this}}", &[], "this is all the variables here"),
            ("{{#each this}}{{/each}}", &[], "this is all the variables here"),
            ("{{#each items}}{{#with ../this}}{{/with}}{{/each}}", &[], "is all the variables here"),
            ("{{@index}}", &[], "@index has no value here"),
            ("{{postrider.secret}}", &[], "postrider has subject, request_date"),
            ("{{postrider}}", &[], "postrider has subject"),
            ("{{{name}}}", &[], "without escaping"),
            ("{{&name}}", &[], "without escaping"),
            ("{{name note}}", &[], "there is no helper \"name\""),
            ("{{log name}}", &[], "there is no helper \"log\""),
            ("{{money}}", &[], "money takes 1 parameters, not 0"),
            ("{{url name name name}}", &[], "url takes 1 to 2 parameters, not 3"),
            ("{{money name style=1}}", &[], "money has no parameter called style"),
            ("{{#money name}}{{/money}}", &[], "money is no block: write {{money"),
            ("{{if name 1}}", &[], "if is a block: write {{#if"),
            ("{{money (foo name)}}", &[], "there is no helper \"foo\""),
            ("{{(lookup name name)}}", &[], "cannot begin with a parenthesis"),
            ("{{> (lookup name name)}}", &[], "name of a partial cannot be computed"),
            ("{{> q}}", &[], "no partial \"q\" (_shared/html/q.hbs)"),
            ("{{#> q}}fallback{{/q}}", &[], "no partial \"q\""),
            ("{{#*inline \"q\"}}{{/inline}}", &[], "inline partials and decorators are not allowed"),
            ("{{> @partial-block}}", &[], "without a block"),
            ("{{> p}}", &[("p", "{{> @partial-block}}")], "_shared/html/p.hbs:1: @partial-block is used"),
            ("{{> p note=name}}", &[("p", "{{note}}")], "the parameter note hides the variable"),
            ("{{> p}}", &[("p", "\n{{label}}")], "_shared/html/p.hbs:2: variable \"label\""),
            ("{{> p}}", &[("p", "{{> p}}")], "the partial \"p\" includes itself"),
            (
                "{{> p}}",
                &[("p", "{{> q}}"), ("q", "{{#if name}}{{> p}}{{/if}}")],
                "_shared/html/q.hbs:1: the partial \"p\" includes itself",
            ),
            ("{{#if name}}", &[], "html.hbs:1: "),
            ("{{#if name}}{{/each}}", &[], "html.hbs:1: "),
            ("{{", &[], "html.hbs"),
        ] {
            let faults = html(source, partials).expect_err(source);
            assert!(faults.contains(want), "{source}: {faults}");
        }
    }

    #[test]
    fn partials_cannot_multiply_without_end() {
        let names: Vec<String> = (0..9).map(|n| format!("p{n}")).collect();
        let bodies: Vec<String> = (0..9).map(|n| format!("{{{{> p{}}}}}", n + 1).repeat(10)).collect();
        let mut partials: Vec<(&str, &str)> =
            names.iter().map(String::as_str).zip(bodies.iter().map(String::as_str)).collect();
        partials.push(("p9", "x"));
        assert!(html("{{> p0}}", &partials).expect_err("too much").contains("more than 5000 elements"));
        let deep: Vec<(String, String)> = (0..80).map(|n| (format!("p{n}"), format!("{{{{> p{}}}}}", n + 1))).collect();
        let mut partials: Vec<(&str, &str)> = deep.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        partials.push(("p80", "x"));
        assert!(html("{{> p0}}", &partials).expect_err("too deep").contains("nested more than 64 deep"));
    }

    #[test]
    fn every_declared_variable_is_used() {
        let source: TemplateSource = serde_json::from_value(json!({
            "key": "a", "manifest_toml": MANIFEST, "subject": "{{name}} {{postrider.subject}}", "html": "x", "text": "{{note}}"
        }))
        .expect("a source");
        let faults = CompiledTemplate::compile(&source, 1, 3).expect_err("a fault");
        assert_eq!(faults.len(), 1);
        assert!(faults[0].words.contains("postrider.subject is what is being made here"));
        let source = TemplateSource { subject: "{{name}}".into(), ..source };
        let faults = CompiledTemplate::compile(&source, 1, 3).expect_err("a fault");
        assert_eq!(faults[0].to_string(), "manifest.toml: variable \"items\" is declared, but no part uses it");
    }
}
