//! Sources made ready to render: parsed once for each version, walked, and kept for as long as the version is used.
//!
//! Two registries, because what is escaped is a property of a registry: HTML escapes everything, subject and text
//! nothing. Each sees only its own partials.

use std::collections::{BTreeMap, BTreeSet};

use handlebars::{Handlebars, Template, TemplateError, html_escape, no_escape};

use super::{
    LintFault, Part, TemplateSource, helpers,
    manifest::parse_manifest,
    source::is_key,
    syntax,
    walk::{Usage, partials_of, walk},
};
use crate::email::Manifest;

/// Most partials of one part.
const PARTIALS_MAX: usize = 100;
/// Most bytes of one part and its partials together.
const PART_SOURCE_BYTES_MAX: usize = 1024 * 1024;

/// One version of a template, ready to render. Shared by `Arc`; rendering clones nothing of it.
pub struct CompiledTemplate {
    key: String,
    version: i32,
    checksum: [u8; 32],
    manifest: Manifest,
    subject: CompiledPart,
    html: CompiledPart,
    text: CompiledPart,
    escaping: Handlebars<'static>,
    plain: Handlebars<'static>,
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
        let parsed = Part::ALL.map(|part| parse(source, part, &mut faults));
        let (Some(manifest), [Some(subject), Some(html), Some(text)]) = (manifest, parsed) else {
            return Err(faults.into_iter().collect());
        };
        let declared: BTreeSet<&str> = manifest.required.iter().chain(&manifest.optional).map(String::as_str).collect();
        let usages = [(Part::Subject, &subject), (Part::Html, &html), (Part::Text, &text)].map(|(part, parsed)| {
            let partials = parsed.partials.iter().map(|(name, template)| (name.as_str(), template)).collect();
            walk(part, &parsed.template, &partials, &declared).map_err(|found| faults.extend(found)).ok()
        });
        let [Some(subject_usage), Some(html_usage), Some(text_usage)] = usages else {
            return Err(faults.into_iter().collect());
        };
        for name in &declared {
            if ![&subject_usage, &html_usage, &text_usage].iter().any(|usage| usage.variables.contains(*name)) {
                let words = format!("variable \"{name}\" is declared, but no part uses it");
                faults.insert(LintFault::new("manifest.toml", None, words));
            }
        }
        if !faults.is_empty() {
            return Err(faults.into_iter().collect());
        }
        Ok(Self {
            key: source.key.clone(),
            version,
            checksum: source.checksum(),
            escaping: registry(html_escape, html.partials),
            plain: registry(no_escape, text.partials),
            subject: CompiledPart { template: subject.template, usage: subject_usage },
            html: CompiledPart { template: html.template, usage: html_usage },
            text: CompiledPart { template: text.template, usage: text_usage },
            manifest,
        })
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

    pub(super) const fn part(&self, part: Part) -> (&CompiledPart, &Handlebars<'static>) {
        match part {
            Part::Subject => (&self.subject, &self.plain),
            Part::Html => (&self.html, &self.escaping),
            Part::Text => (&self.text, &self.plain),
        }
    }
}

/// One part and the partials that it may include, parsed.
struct Parsed {
    template: Template,
    partials: BTreeMap<String, Template>,
}

fn parse(source: &TemplateSource, part: Part, faults: &mut BTreeSet<LintFault>) -> Option<Parsed> {
    let sources = source.partials(part);
    if sources.len() > PARTIALS_MAX {
        faults.insert(LintFault::new(part.file_name(), None, format!("it has more than {PARTIALS_MAX} partials")));
        return None;
    }
    let bytes: usize = sources.values().map(String::len).sum::<usize>() + source.part(part).len();
    if bytes > PART_SOURCE_BYTES_MAX {
        let words = format!("with its partials it has {bytes} bytes; at most {PART_SOURCE_BYTES_MAX} are allowed");
        faults.insert(LintFault::new(part.file_name(), None, words));
        return None;
    }
    let before = faults.len();
    let mut template = parse_file(part.file_name(), source.part(part), faults);
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
        if let Some(mut template) = parse_file(&file, text, faults) {
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

fn registry(escape: fn(&str) -> String, partials: BTreeMap<String, Template>) -> Handlebars<'static> {
    let mut registry = Handlebars::new();
    registry.set_strict_mode(true);
    registry.register_escape_fn(escape);
    helpers::register(&mut registry);
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
