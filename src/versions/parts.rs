//! A person's changes, laid over the version that they began from.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::templates::{TemplateSource, Variant};

/// What is given of a version. What is not comes from the version that it is based on.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// `manifest.toml`.
    pub manifest: Option<String>,
    /// `subject.hbs`.
    pub subject: Option<String>,
    /// `html.hbs`.
    pub html: Option<String>,
    /// `text.hbs`.
    pub text: Option<String>,
    /// The partials of the HTML part, all of them.
    pub partials_html: Option<BTreeMap<String, String>>,
    /// The partials of the text part, all of them.
    pub partials_text: Option<BTreeMap<String, String>>,
    /// The same in other locales, all of them.
    pub variants: Option<BTreeMap<String, Variant>>,
    /// Variables to show and to check it with.
    pub sample: Option<Map<String, Value>>,
}

impl Parts {
    /// The whole version. Lines end with LF, whatever a browser made of them.
    ///
    /// # Errors
    /// The names of what is missing, when there is no version that it is based on. Partials may be missing: a template needs none.
    pub fn onto(self, key: &str, base: Option<TemplateSource>) -> Result<TemplateSource, Vec<&'static str>> {
        let Some(base) = base else { return self.whole(key) };
        Ok(TemplateSource {
            key: key.to_owned(),
            manifest_toml: self.manifest.map_or(base.manifest_toml, lines),
            subject: self.subject.map_or(base.subject, lines),
            html: self.html.map_or(base.html, lines),
            text: self.text.map_or(base.text, lines),
            partials_html: self.partials_html.map_or(base.partials_html, all_lines),
            partials_text: self.partials_text.map_or(base.partials_text, all_lines),
            variants: self.variants.map_or(base.variants, all_variants),
            sample: self.sample.unwrap_or(base.sample),
        })
    }

    fn whole(self, key: &str) -> Result<TemplateSource, Vec<&'static str>> {
        match (self.manifest, self.subject, self.html, self.text, self.sample) {
            (Some(manifest), Some(subject), Some(html), Some(text), Some(sample)) => Ok(TemplateSource {
                key: key.to_owned(),
                manifest_toml: lines(manifest),
                subject: lines(subject),
                html: lines(html),
                text: lines(text),
                partials_html: self.partials_html.map(all_lines).unwrap_or_default(),
                partials_text: self.partials_text.map(all_lines).unwrap_or_default(),
                variants: self.variants.map(all_variants).unwrap_or_default(),
                sample,
            }),
            (manifest, subject, html, text, sample) => Err([
                ("manifest", manifest.is_none()),
                ("subject", subject.is_none()),
                ("html_content", html.is_none()),
                ("text_content", text.is_none()),
                ("sample", sample.is_none()),
            ]
            .into_iter()
            .filter_map(|(name, is_missing)| is_missing.then_some(name))
            .collect()),
        }
    }
}

fn lines(text: String) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text }
}

fn all_lines(partials: BTreeMap<String, String>) -> BTreeMap<String, String> {
    partials.into_iter().map(|(name, text)| (name, lines(text))).collect()
}

fn all_variants(variants: BTreeMap<String, Variant>) -> BTreeMap<String, Variant> {
    let whole = |variant: Variant| Variant {
        subject: lines(variant.subject),
        html: lines(variant.html),
        text: lines(variant.text),
        partials_html: all_lines(variant.partials_html),
        partials_text: all_lines(variant.partials_text),
    };
    variants.into_iter().map(|(locale, variant)| (locale, whole(variant))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole() -> Parts {
        Parts {
            manifest: Some("m".into()),
            subject: Some("s".into()),
            html: Some("h".into()),
            text: Some("t\r\nu".into()),
            sample: Some(Map::new()),
            ..Parts::default()
        }
    }

    #[test]
    fn a_new_template_needs_all_parts() {
        let source = whole().onto("a", None).expect("whole");
        assert_eq!((source.text.as_str(), source.partials_html.len()), ("t\nu", 0), "as a folder would be read");
        let missing = Parts { subject: Some("s".into()), ..Parts::default() }.onto("a", None).expect_err("not whole");
        assert_eq!(missing, ["manifest", "html_content", "text_content", "sample"]);
    }

    #[test]
    fn what_is_not_given_stays() {
        let base = whole().onto("a", None).expect("whole");
        let same = Parts::default().onto("a", Some(base.clone())).expect("whole");
        assert_eq!(same, base);
        let sample = json!({"x": 1}).as_object().cloned();
        let parts = Parts { sample: sample.clone(), text: Some("u".into()), ..Parts::default() };
        let changed = parts.onto("a", Some(base.clone())).expect("whole");
        assert_eq!((changed.text.as_str(), Some(&changed.sample)), ("u", sample.as_ref()));
        assert_eq!(changed.html, base.html);
    }
}
