//! `manifest.toml`: what a template says of itself.
//!
//! Invariant: an unknown key is refused. A misspelt `optionnal` that is silently ignored would show as a broken mail.

use std::{collections::HashSet, time::Duration};

use serde::Deserialize;

use super::{LintFault, helpers, locale::is_locale};
use crate::email::{EmailAddress, Manifest, OverCap, TemplateKind, UnknownPolicy, attachment::FileType};

/// Where faults are said to be.
const FILE: &str = "manifest.toml";
/// The subjects a template can be about; statistics are kept by them.
const CATEGORIES: [&str; 8] = ["billing", "incident", "onboarding", "cutover", "rma", "sla", "support", "marketing"];
/// No ladder has more delays than this.
const TRIES_MAX: i32 = 20;
/// No mail is older than this when it is given up.
const DEADLINE_SECONDS_MAX: u64 = 24 * 3600;
/// The variable that the daemon sets.
pub(super) const RESERVED: &str = "postrider";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    description: String,
    category: String,
    #[serde(default = "transactional")]
    kind: String,
    priority: String,
    tries: Option<i32>,
    deadline_seconds: u64,
    locale: String,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    optional: Vec<String>,
    #[serde(default)]
    attachments: Vec<String>,
    #[serde(default)]
    always_to: Vec<String>,
    unknown_policy: Option<String>,
    over_cap: Option<String>,
}

fn transactional() -> String {
    "transactional".to_owned()
}

/// Reads a manifest; `tries_default` is what a manifest without `tries` gets.
///
/// # Errors
/// Everything that is wrong with it at once, but for what stops it from being read at all.
pub fn parse_manifest(toml: &str, tries_default: i32) -> Result<Manifest, Vec<LintFault>> {
    let raw: Raw = toml::from_str(toml).map_err(|error| {
        let line = error.span().map(|span| 1 + toml.as_bytes()[..span.start].iter().filter(|&&b| b == b'\n').count());
        vec![LintFault::new(FILE, line, error.message())]
    })?;
    let mut faults = Faults::default();
    let kind = match raw.kind.as_str() {
        "transactional" => TemplateKind::Transactional,
        "marketing" => TemplateKind::Marketing,
        other => {
            faults.add(format!("kind is \"{other}\": use transactional or marketing"));
            TemplateKind::Transactional
        }
    };
    let unknown_policy = match (raw.unknown_policy.as_deref(), kind) {
        (Some("resend"), _) | (None, TemplateKind::Transactional) => UnknownPolicy::Resend,
        (Some("hold"), _) | (None, TemplateKind::Marketing) => UnknownPolicy::Hold,
        (Some(other), _) => {
            faults.add(format!("unknown_policy is \"{other}\": use resend or hold"));
            UnknownPolicy::Hold
        }
    };
    let over_cap = match raw.over_cap.as_deref() {
        None => None,
        Some("drop") => Some(OverCap::Drop),
        Some("defer") => Some(OverCap::Defer),
        Some(other) => {
            faults.add(format!("over_cap is \"{other}\": use drop or defer"));
            None
        }
    };
    let priority = raw.priority.parse().map_err(|error| faults.add(format!("priority: {error}"))).ok();
    if raw.description.trim().is_empty() || raw.description.contains(['\n', '\r']) {
        faults.add("description must be one line that is not empty");
    }
    if !CATEGORIES.contains(&raw.category.as_str()) {
        faults.add(format!("category is \"{}\": use one of {}", raw.category, CATEGORIES.join(", ")));
    }
    let tries = raw.tries.unwrap_or(tries_default);
    if !(1..=TRIES_MAX).contains(&tries) {
        faults.add(format!("tries is {tries}: use 1 to {TRIES_MAX}"));
    }
    if !(1..=DEADLINE_SECONDS_MAX).contains(&raw.deadline_seconds) {
        faults.add(format!("deadline_seconds is {}: use 1 to {DEADLINE_SECONDS_MAX}", raw.deadline_seconds));
    }
    if !is_locale(&raw.locale) {
        faults.add(format!("locale is \"{}\": use a BCP 47 tag, for instance fr or fr-BJ", raw.locale));
    }
    faults.variables(&raw.required, &raw.optional);
    for name in &raw.attachments {
        if FileType::from_name(name).is_none() {
            let known = FileType::ALL.map(FileType::name).join(", ");
            faults.add(format!("attachments has \"{name}\": use {known}"));
        }
    }
    let mut always_to = Vec::with_capacity(raw.always_to.len());
    for text in &raw.always_to {
        match EmailAddress::parse(text) {
            Ok(address) if always_to.contains(&address) => faults.add("always_to has the same address twice"),
            Ok(address) => always_to.push(address),
            Err(error) => faults.add(format!("always_to: {error}")),
        }
    }
    match priority {
        Some(priority) if faults.0.is_empty() => Ok(Manifest {
            description: raw.description.trim().to_owned(),
            category: raw.category,
            kind,
            priority,
            tries,
            deadline: Duration::from_secs(raw.deadline_seconds),
            locale: raw.locale,
            required: raw.required,
            optional: raw.optional,
            attachments: raw.attachments,
            always_to,
            unknown_policy,
            over_cap,
        }),
        _ => Err(faults.0),
    }
}

#[derive(Default)]
struct Faults(Vec<LintFault>);

impl Faults {
    fn add(&mut self, words: impl Into<String>) {
        self.0.push(LintFault::new(FILE, None, words));
    }

    fn variables(&mut self, required: &[String], optional: &[String]) {
        let mut seen = HashSet::new();
        for name in required.iter().chain(optional) {
            if !super::source::is_key(name) {
                self.add(format!("variable \"{name}\": use lower-case letters, digits and _, a letter first"));
            } else if name == RESERVED {
                self.add(format!("variable \"{name}\" is set by the daemon: choose another name"));
            } else if helpers::find(name).is_some() || name == "this" {
                self.add(format!("variable \"{name}\" has the name of a helper: choose another name"));
            }
            if !seen.insert(name) {
                self.add(format!("variable \"{name}\" is declared twice"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::email::Priority;

    const WHOLE: &str = r#"
description = "Facture mensuelle"
category = "billing"
kind = "transactional"
priority = "P2"
tries = 3
deadline_seconds = 60
locale = "fr"
required = ["reseller_name"]
optional = ["invoice_date"]
attachments = ["pdf"]
always_to = ["noc@rgz.bj"]
unknown_policy = "resend"
over_cap = "defer"
"#;

    #[test]
    fn a_whole_manifest_is_read() {
        let manifest = parse_manifest(WHOLE, 7).expect("a manifest");
        assert_eq!((manifest.priority, manifest.tries, manifest.deadline.as_secs()), (Priority::P2, 3, 60));
        assert_eq!(manifest.always_to[0].as_str(), "noc@rgz.bj");
        assert_eq!((manifest.required.len(), manifest.optional.len(), manifest.attachments.len()), (1, 1, 1));
        assert_eq!(manifest.over_cap, Some(OverCap::Defer));
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let least = "description = \"x\"\ncategory = \"marketing\"\nkind = \"marketing\"\npriority = \"P3\"\n\
                     deadline_seconds = 3600\nlocale = \"fr\"";
        let manifest = parse_manifest(least, 7).expect("a manifest");
        assert_eq!((manifest.tries, manifest.unknown_policy), (7, UnknownPolicy::Hold));
        assert!(manifest.attachments.is_empty() && manifest.always_to.is_empty() && manifest.over_cap.is_none());
        let transactional = least.replace("kind = \"marketing\"\n", "");
        assert_eq!(parse_manifest(&transactional, 7).expect("a manifest").unknown_policy, UnknownPolicy::Resend);
    }

    #[test]
    fn every_fault_is_named() {
        for (from, to, want) in [
            ("tries = 3", "retries = 3", "unknown field `retries`"),
            ("tries = 3", "tries = \"3\"", "invalid type"),
            ("tries = 3", "tries = 0", "tries is 0: use 1 to 20"),
            ("deadline_seconds = 60", "", "missing field `deadline_seconds`"),
            ("\"P2\"", "\"P9\"", "\"P9\" is not a priority"),
            ("\"billing\"", "\"bills\"", "category is \"bills\""),
            ("\"transactional\"", "\"both\"", "kind is \"both\""),
            ("\"resend\"", "\"retry\"", "unknown_policy is \"retry\""),
            ("\"defer\"", "\"later\"", "over_cap is \"later\": use drop or defer"),
            ("[\"pdf\"]", "[\"exe\"]", "attachments has \"exe\": use pdf, png, jpg, json, csv"),
            ("noc@rgz.bj", "noc", "always_to: the address has no @"),
            ("\"fr\"", "\"français\"", "locale is \"français\""),
            ("[\"invoice_date\"]", "[\"reseller_name\"]", "\"reseller_name\" is declared twice"),
            ("[\"invoice_date\"]", "[\"Date\"]", "variable \"Date\""),
            ("[\"invoice_date\"]", "[\"date\"]", "name of a helper"),
            ("[\"invoice_date\"]", "[\"postrider\"]", "set by the daemon"),
        ] {
            assert!(WHOLE.contains(from), "{from}");
            let faults = parse_manifest(&WHOLE.replace(from, to), 3).expect_err(to);
            assert!(faults.iter().any(|fault| fault.words.contains(want)), "{to}: {faults:?}");
        }
        let line = parse_manifest(&WHOLE.replace("tries = 3", "retries = 3"), 3).expect_err("a fault")[0].line;
        assert_eq!(line, Some(6));
    }
}
