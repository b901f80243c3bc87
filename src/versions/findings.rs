//! What stands against a version: faults of its own, and what producers send that it would not take.
//!
//! Producers' variables come here as shapes, with a word for its kind in place of each value, so nothing that is said here can
//! repeat a value.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use chrono::DateTime;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    store::{StoreError, templates::recent::Shape},
    templates::{CompiledTemplate, LintFault, RenderError, System},
};

/// Most undeclared variables that are remarked upon.
const REMARKS_MAX: usize = 20;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot be saved.
    Fault,
    /// Requests as they are sent now would fail or read wrongly; it becomes active only when somebody accepts that.
    Risk,
    /// Worth a look.
    Remark,
}

/// One thing that stands against a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// What, and where.
    pub fault: LintFault,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

impl Finding {
    /// A fault of the version itself.
    #[must_use]
    pub const fn fault(fault: LintFault) -> Self {
        Self { severity: Severity::Fault, fault }
    }

    /// Something of the version itself that does no harm.
    #[must_use]
    pub const fn worth_a_look(fault: LintFault) -> Self {
        Self { severity: Severity::Remark, fault }
    }

    /// What producers sent lately is not known.
    #[must_use]
    pub fn not_looked_at(error: &StoreError) -> Self {
        let words = format!("it could not be checked against what producers sent lately ({error})");
        Self::risk("manifest.toml", None, words)
    }

    fn risk(part: &str, line: Option<usize>, words: String) -> Self {
        Self { severity: Severity::Risk, fault: LintFault::new(part, line, words) }
    }

    fn remark(words: String) -> Self {
        Self { severity: Severity::Remark, fault: LintFault::new("manifest.toml", None, words) }
    }
}

/// What stands against a sound template by what producers sent lately.
#[must_use]
pub fn against(template: &CompiledTemplate, sample: &Map<String, Value>, shapes: &[Shape]) -> Vec<Finding> {
    let all: i64 = shapes.iter().map(|shape| shape.requests).sum();
    if all == 0 {
        return vec![Finding::remark("no recent request for this template was found to check it against".to_owned())];
    }
    let of_all = |some: i64| format!("{some} of the {all} newest requests");
    let manifest = template.manifest();
    let mut findings = Vec::new();
    for name in &manifest.required {
        let lacking = count(shapes, |variables| is_absent(variables.get(name)));
        if lacking > 0 {
            let words =
                format!("required variable \"{name}\" is missing or null in {}: they would fail", of_all(lacking));
            findings.push(Finding::risk("manifest.toml", None, words));
        }
    }
    for name in manifest.required.iter().chain(&manifest.optional) {
        let Some(expected) = sample.get(name).and_then(Form::of_value) else { continue };
        for form in [Form::Single, Form::List, Form::Object] {
            let odd = count(shapes, |variables| variables.get(name).and_then(Form::of_shape) == Some(form));
            if form != expected && odd > 0 {
                let words = format!("variable \"{name}\" is {form} in {}, and {expected} in the sample", of_all(odd));
                findings.push(Finding::risk("sample.json", None, words));
            }
        }
    }
    for (error, requests) in failures(template, shapes) {
        let (part, line, words) = words_of(&error);
        findings.push(Finding::risk(&part, line, format!("{} would not render: {words}", of_all(requests))));
    }
    findings.extend(undeclared(template, shapes).into_iter().take(REMARKS_MAX).map(|(name, requests)| {
        Finding::remark(format!("variable \"{name}\" comes with {}, but is not declared", of_all(requests)))
    }));
    findings
}

fn count(shapes: &[Shape], is_so: impl Fn(&Map<String, Value>) -> bool) -> i64 {
    shapes.iter().filter(|shape| shape.variables.as_object().is_some_and(&is_so)).map(|shape| shape.requests).sum()
}

fn is_absent(shape: Option<&Value>) -> bool {
    shape.is_none_or(|shape| shape == "null")
}

/// What templates tell apart: they print one thing, go through a list, or look into an object. A number may come as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    List,
    Object,
}

impl Form {
    fn of_shape(shape: &Value) -> Option<Self> {
        match shape {
            Value::String(kind) if kind == "null" => None,
            other => Self::of_value(other),
        }
    }

    const fn of_value(value: &Value) -> Option<Self> {
        match value {
            Value::Null => None,
            Value::Bool(_) | Value::Number(_) | Value::String(_) => Some(Self::Single),
            Value::Array(_) => Some(Self::List),
            Value::Object(_) => Some(Self::Object),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "a single value",
            Self::List => "a list",
            Self::Object => "an object",
        })
    }
}

/// How requests fail to render that lack nothing, and how many of them.
fn failures(template: &CompiledTemplate, shapes: &[Shape]) -> Vec<(RenderError, i64)> {
    let mut failures: Vec<(RenderError, i64)> = Vec::new();
    for (shape, locale) in shapes.iter().flat_map(|shape| template.locales().map(move |locale| (shape, locale))) {
        let Value::Object(variables) = synthesised(&shape.variables) else { continue };
        let system = System {
            request_date: DateTime::UNIX_EPOCH,
            attachments: &[],
            support_email: None,
            support_phone: None,
            timezone: chrono_tz::Africa::PortoNovo,
            locale,
            unsubscribe_url: None,
        };
        match template.render(&variables, &system) {
            Ok(_) | Err(RenderError::MissingVariable { .. }) => {}
            Err(error) => match failures.iter_mut().find(|(known, _)| *known == error) {
                Some((_, requests)) => *requests += shape.requests,
                None => failures.push((error, shape.requests)),
            },
        }
    }
    failures
}

/// Values of these kinds.
fn synthesised(shape: &Value) -> Value {
    match shape {
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(name, shape)| (name.clone(), synthesised(shape))).collect())
        }
        Value::Array(kinds) => Value::Array(kinds.iter().map(synthesised).collect()),
        Value::String(kind) => match kind.as_str() {
            "url" => Value::from("https://example.com/x"),
            "string" => Value::from("x"),
            "empty" => Value::from(""),
            "number" => Value::from(1),
            "boolean" => Value::from(true),
            _ => Value::Null,
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => Value::Null,
    }
}

fn words_of(error: &RenderError) -> (String, Option<usize>, String) {
    match error {
        RenderError::NotAUrl { part, line } => (part.clone(), *line, "what shall be a link is no web address".into()),
        RenderError::Failed { part, line, words } => (part.clone(), *line, words.clone()),
        other => ("sample.json".to_owned(), None, other.to_string()),
    }
}

/// Variables that come and are not declared, the most frequent first.
fn undeclared(template: &CompiledTemplate, shapes: &[Shape]) -> Vec<(String, i64)> {
    let manifest = template.manifest();
    let declared: BTreeSet<&String> = manifest.required.iter().chain(&manifest.optional).collect();
    let mut found: BTreeMap<&String, i64> = BTreeMap::new();
    for shape in shapes {
        for name in shape.variables.as_object().into_iter().flat_map(Map::keys).filter(|name| !declared.contains(name))
        {
            *found.entry(name).or_default() += shape.requests;
        }
    }
    let mut found: Vec<(String, i64)> = found.into_iter().map(|(name, requests)| (name.clone(), requests)).collect();
    found.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template() -> (CompiledTemplate, Map<String, Value>) {
        let manifest = "description = \"x\"\ncategory = \"billing\"\npriority = \"P1\"\ndeadline_seconds = 60\n\
                        locale = \"fr\"\nrequired = [\"name\", \"link\", \"items\"]\noptional = [\"note\"]";
        let source = serde_json::from_value(json!({
            "key": "a", "manifest_toml": manifest, "subject": "{{name}}\n",
            "html": "{{url link}}\n{{#each items}}{{this.label}}{{/each}}", "text": "{{note}}",
        }))
        .expect("a source");
        let sample = json!({"name": "n", "link": "https://a.bj", "items": [{"label": "l"}], "note": "n"});
        (CompiledTemplate::compile(&source, 1, 3).expect("compiles"), sample.as_object().cloned().expect("a map"))
    }

    fn found(shapes: &[(i64, Value)]) -> Vec<String> {
        let (template, sample) = template();
        let shapes: Vec<Shape> = shapes
            .iter()
            .map(|(requests, variables)| Shape { variables: variables.clone(), requests: *requests })
            .collect();
        against(&template, &sample, &shapes).iter().map(|f| format!("{:?} {f}", f.severity)).collect()
    }

    #[test]
    fn what_fits_is_not_told() {
        let shape = json!({"name": "number", "link": "url", "items": [{"label": "string"}], "note": "empty"});
        assert_eq!(found(&[(5, shape)]), [""; 0]);
        let least = json!({"name": "string", "link": "url", "items": [], "note": "null"});
        assert_eq!(found(&[(1, least)]), [""; 0]);
        assert!(found(&[])[0].starts_with("Remark manifest.toml: no recent request"));
    }

    #[test]
    fn what_would_fail_is_counted() {
        let good = json!({"name": "string", "link": "url", "items": [{"label": "string"}]});
        for (odd, want) in [
            (
                json!({"link": "url", "items": []}),
                "Risk manifest.toml: required variable \"name\" is missing or null in 3 of the 10 newest requests: they \
                 would fail",
            ),
            (json!({"name": "null", "link": "url", "items": []}), "\"name\" is missing or null in 3 of the 10"),
            (
                json!({"name": "string", "link": "string", "items": []}),
                "Risk html.hbs:1: 3 of the 10 newest requests would not render: what shall be a link is no web address",
            ),
            (
                json!({"name": "string", "link": "url", "items": [{"title": "string"}]}),
                "Risk html.hbs:2: 3 of the 10 newest requests would not render: this.label has no value",
            ),
            (
                json!({"name": {"first": "string"}, "link": "url", "items": []}),
                "Risk sample.json: variable \"name\" is an object in 3 of the 10 newest requests, and a single value in \
                 the sample",
            ),
            (
                json!({"name": "string", "link": "url", "items": [], "more": "string"}),
                "Remark manifest.toml: variable \"more\" comes with 3 of the 10 newest requests, but is not declared",
            ),
        ] {
            let found = found(&[(7, good.clone()), (3, odd.clone())]);
            assert!(found.len() == 1 && found[0].contains(want), "{odd}: {found:?}");
        }
    }
}
