//! Templates: anything somebody could save, compiled, linted and rendered with any variables.
//!
//! Holds: nothing panics, recurses without end or takes long; what is refused is refused in words for people; what is rendered
//! stays within its bounds, has no element that a variable made, and no error repeats a variable.

use chrono::DateTime;
use postrider::templates::{AttachedFile, CompiledTemplate, System, TemplateSource, inspect};
use proptest::{collection::vec, prelude::*, sample::Index, sample::select};
use serde_json::{Map, Value};

use crate::{
    change::{changed_json, changed_text, odd_text},
    drive::{Came, Subject},
    support::requests,
};

/// What templates are made of.
const WORDS: &[&str] = &[
    "{{",
    "}}",
    "{{{",
    "}}}",
    "{{#",
    "{{/",
    "{{else}}",
    "{{^",
    "{{!--",
    "--}}",
    "{{~",
    "~}}",
    "{{{{",
    "\\{{",
    "{{#if title}}",
    "{{/if}}",
    "{{#unless title}}",
    "{{/unless}}",
    "{{#each title}}",
    "{{/each}}",
    "{{#each (lines title)}}",
    "{{#with title}}",
    "{{/with}}",
    "{{> one}}",
    "{{> two}}",
    "{{#> one}}",
    "{{/one}}",
    "{{> @partial-block}}",
    "{{> (lookup a b)}}",
    "{{#> layout}}",
    "{{/layout}}",
    "{{#*inline \"x\"}}",
    "{{/inline}}",
    "{{this}}",
    "{{../title}}",
    "{{@root.title}}",
    "{{@index}}",
    "{{@last}}",
    "{{title}}",
    "{{{title}}}",
    "{{&title}}",
    "{{url title}}",
    "{{money title}}",
    "{{number title}}",
    "{{percent title}}",
    "{{date title}}",
    "{{datetime postrider.request_date}}",
    "{{month_name title}}",
    "{{plural title \"a\" \"b\"}}",
    "{{percent_of title title}}",
    "{{lookup title 0}}",
    "{{len title}}",
    "{{default title \"x\"}}",
    "{{eq title 1}}",
    "{{#if (and title (or title (not title)))}}",
    "{{postrider.subject}}",
    "{{postrider.attachments.[0].filename}}",
    "as |item at|",
    "{{#each title as |a b|}}",
    "<a href=\"{{title}}\">",
    "<a href=\"{{url title}}\">",
    "<style>p{color:red}</style>",
    "<p>",
    "</p>",
    "<style>",
    "</style>",
    "<table><tr><td>",
    "<!--",
    "\"",
    "'",
    "=",
    "(",
    ")",
    "[",
    "]",
    "|",
];

/// A source, and variables for it.
#[derive(Debug, Clone)]
pub struct Trial {
    source: TemplateSource,
    variables: Map<String, Value>,
    locale: String,
}

/// What makes mails of them.
pub struct Templates {
    planted: bool,
    sources: Vec<TemplateSource>,
}

impl Templates {
    pub fn new(planted: bool) -> Self {
        let written: Vec<TemplateSource> =
            serde_json::from_str(include_str!("../corpus/templates/sources.json")).expect("sources");
        let sources = written.into_iter().chain(requests::templates().iter().cloned()).collect();
        Self { planted, sources }
    }
}

impl Subject for Templates {
    type Input = Trial;

    fn inputs(&self) -> BoxedStrategy<Trial> {
        let of =
            |part: fn(&TemplateSource) -> &str| self.sources.iter().map(|s| part(s).to_owned()).collect::<Vec<_>>();
        let partials = self.sources.iter().flat_map(|s| s.partials_html.values()).cloned().collect::<Vec<_>>();
        let changed = |texts: Vec<String>| proptest::option::weighted(0.4, changed_text(texts, WORDS));
        let sources = self.sources.clone();
        let samples = self.sources.iter().map(|source| Value::Object(source.sample.clone())).collect();
        // The small ones, that are compiled in no time, more often.
        let which = prop_oneof![6 => 0..4_usize, 1 => 0..sources.len()];
        let html = prop_oneof![
            2 => changed(of(|s| &s.html)),
            2 => vec(prop_oneof![6 => select(WORDS).prop_map(str::to_owned), 1 => odd_text()], 0..16)
                .prop_map(|words| Some(words.concat())),
        ];
        let manifest = proptest::option::weighted(
            0.1,
            changed_text(of(|s| &s.manifest_toml), &["\n", "\"", "[", "]", "=", "required"]),
        );
        (
            which,
            html,
            changed(of(|s| &s.subject)),
            changed(of(|s| &s.text)),
            manifest,
            vec((any::<Index>(), changed(partials)), 0..3),
            proptest::option::of(changed_json(samples)),
            prop_oneof![4 => Just("fr".to_owned()), 1 => Just("en-GB".to_owned()), 1 => odd_text()],
        )
            .prop_map(move |(which, html, subject, text, manifest, partials, variables, locale)| {
                let mut source = sources[which].clone();
                for (place, new) in [
                    (&mut source.html, html),
                    (&mut source.subject, subject),
                    (&mut source.text, text),
                    (&mut source.manifest_toml, manifest),
                ] {
                    if let Some(new) = new {
                        *place = new;
                    }
                }
                for (at, partial) in partials {
                    let count = source.partials_html.len();
                    if let Some(partial) = partial.filter(|_| count > 0)
                        && let Some(place) = source.partials_html.values_mut().nth(at.index(count))
                    {
                        *place = partial;
                    }
                }
                let variables = variables.and_then(|variables| variables.as_object().cloned());
                Trial { variables: variables.unwrap_or_else(|| source.sample.clone()), source, locale }
            })
            .boxed()
    }

    fn judge(&mut self, trial: &Trial) -> Result<Came, String> {
        let source = &trial.source;
        let template = match CompiledTemplate::compile(source, 1, 3) {
            Ok(template) => template,
            Err(faults) => {
                holds(!faults.is_empty(), "what is refused is refused for something")?;
                // Some for each part of each locale.
                holds(faults.len() <= 60 * 4 * (1 + source.variants.len()) + 200, "faults have an end")?;
                holds(faults.iter().all(|fault| !fault.words.is_empty()), "in words")?;
                return Ok(Came::Refused);
            }
        };
        let found = inspect(source);
        holds(found.remarks.len() < 1000 && found.faults.len() < 1000, "what an inspection finds has an end")?;
        let files = [AttachedFile { file_name: "<x-pwn>.pdf", content_type: "application/pdf" }];
        let system = System {
            request_date: DateTime::UNIX_EPOCH,
            attachments: &files,
            support_email: Some("support@rgz.bj"),
            support_phone: None,
            timezone: chrono_tz::Africa::PortoNovo,
            locale: &trial.locale,
            unsubscribe_url: template.manifest().example_unsubscribe_url(),
        };
        match template.render(&trial.variables, &system) {
            Ok(mail) => {
                if self.planted && source.html.matches("{{#each").count() > 1 && mail.html.contains("&lt;") {
                    return Err("planted: loops and a bracket".to_owned());
                }
                holds(mail.subject.len() <= 998 && !mail.subject.contains(['\r', '\n']), "a subject of one line")?;
                holds(mail.html.len() <= 1024 * 1024 && mail.text.len() <= 1024 * 1024, "parts of at most 1 MiB")?;
                let written = [&source.html].into_iter().chain(source.partials_html.values());
                let by_template = written
                    .chain(source.variants.values().map(|variant| &variant.html))
                    .any(|html| html.contains("<x-pwn") || html.contains("x-pwn>"));
                holds(by_template || !mail.html.contains("<x-pwn"), "no element that a variable made")?;
                Ok(Came::AllTheWay)
            }
            Err(error) => {
                let words = error.to_string();
                holds(words.chars().count() < 2000, "an error has an end")?;
                let given = trial.variables.values().filter_map(Value::as_str).filter(|text| text.len() > 12);
                let texts =
                    || [&source.html, &source.subject, &source.text].into_iter().chain(source.partials_html.values());
                for text in given {
                    let is_source = texts().any(|written| written.contains(text));
                    holds(is_source || !words.contains(text), "an error repeats no variable")?;
                }
                Ok(Came::Refused)
            }
        }
    }
}

fn holds(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("does not hold: {what}")) }
}
