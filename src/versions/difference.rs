//! What changed between two versions, line by line.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use similar::{ChangeTag, TextDiff};

use crate::templates::{Part, TemplateSource, Variant, source::Words};

/// Unchanged lines shown around each change.
const CONTEXT_LINES: usize = 3;
/// Longest search for the shortest difference of one part; what is found by then is a difference as well.
const PATIENCE: Duration = Duration::from_millis(200);

/// What changed in one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartDifference {
    /// The file: `html.hbs`, `_shared/text/layout.hbs`, `manifest.toml`, `sample.json`.
    pub part: String,
    /// In unified form.
    pub unified: String,
    /// Lines that came.
    pub added: usize,
    /// Lines that went.
    pub removed: usize,
}

/// What changed from one version to another, part by part; parts that are the same are left out.
#[must_use]
pub fn between(from: &TemplateSource, to: &TemplateSource) -> Vec<PartDifference> {
    let mut parts = vec![part("manifest.toml", &from.manifest_toml, &to.manifest_toml)];
    parts.extend(words(&from.words(), &to.words(), str::to_owned));
    let locales: BTreeSet<&String> = from.variants.keys().chain(to.variants.keys()).collect();
    for locale in locales {
        let nothing = Variant::default();
        let of = |source: &'_ TemplateSource| source.variants.get(locale).cloned().unwrap_or_else(|| nothing.clone());
        let in_locale =
            |file: &str| file.strip_suffix("hbs").map_or_else(|| file.to_owned(), |stem| format!("{stem}{locale}.hbs"));
        parts.extend(words(&of(from).words(), &of(to).words(), in_locale));
    }
    let sample = |source: &TemplateSource| serde_json::to_string_pretty(&source.sample).unwrap_or_default() + "\n";
    parts.push(part("sample.json", &sample(from), &sample(to)));
    parts.into_iter().flatten().collect()
}

/// The parts and partials of one locale, under the names that `file` makes of theirs.
fn words(from: &Words<'_>, to: &Words<'_>, file: impl Fn(&str) -> String) -> Vec<Option<PartDifference>> {
    let mut parts: Vec<Option<PartDifference>> =
        Part::ALL.into_iter().map(|kind| part(&file(kind.file_name()), from.part(kind), to.part(kind))).collect();
    for (kind, folder) in [(Part::Html, "html"), (Part::Text, "text")] {
        let (old, new) = (from.partials(kind), to.partials(kind));
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let text = |partials: &BTreeMap<String, String>| partials.get(name).cloned().unwrap_or_default();
            parts.push(part(&file(&format!("_shared/{folder}/{name}.hbs")), &text(old), &text(new)));
        }
    }
    parts
}

fn part(name: &str, from: &str, to: &str) -> Option<PartDifference> {
    if from == to {
        return None;
    }
    let difference = TextDiff::configure().timeout(PATIENCE).diff_lines(from, to);
    let count = |tag| difference.iter_all_changes().filter(|change| change.tag() == tag).count();
    Some(PartDifference {
        part: name.to_owned(),
        unified: difference.unified_diff().context_radius(CONTEXT_LINES).header(name, name).to_string(),
        added: count(ChangeTag::Insert),
        removed: count(ChangeTag::Delete),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_changed_is_shown() {
        let source = |text: &str, partials: serde_json::Value, sample: serde_json::Value| -> TemplateSource {
            serde_json::from_value(json!({
                "key": "a", "manifest_toml": "m\n", "subject": "s\n", "html": "h\n", "text": text,
                "partials_html": partials, "sample": sample
            }))
            .expect("a source")
        };
        let old = source("a\nb\nc\n", json!({"layout": "x\n"}), json!({"n": 1}));
        assert_eq!(between(&old, &old), []);
        let new = source("a\nB\nc\nd\n", json!({"button": "y\n"}), json!({"n": 2}));
        let found = between(&old, &new);
        let names: Vec<&str> = found.iter().map(|part| part.part.as_str()).collect();
        assert_eq!(names, ["text.hbs", "_shared/html/button.hbs", "_shared/html/layout.hbs", "sample.json"]);
        assert_eq!((found[0].added, found[0].removed), (2, 1));
        assert_eq!(found[0].unified, "--- text.hbs\n+++ text.hbs\n@@ -1,3 +1,4 @@\n a\n-b\n+B\n c\n+d\n");
        assert_eq!((found[1].added, found[1].removed, found[2].added, found[2].removed), (1, 0, 0, 1));
        let mut english = old.clone();
        let variant = Variant { subject: "s\n".into(), text: "t\n".into(), ..Variant::default() };
        english.variants.insert("en".into(), variant);
        let found = between(&old, &english);
        let names: Vec<&str> = found.iter().map(|part| part.part.as_str()).collect();
        assert_eq!(names, ["subject.en.hbs", "text.en.hbs"]);
    }
}
