//! A folder of templates on disk: `<key>/` with its files, and `_shared/` with the partials of all.
//!
//! Parts and partials may have variants for other locales: `html.en.hbs`, `_shared/html/layout.en.hbs`. A variant of a template
//! is made of its own parts and, of each partial, the closest: `layout.en-GB.hbs`, else `layout.en.hbs`, else `layout.hbs`.
//!
//! Invariant: a file that means nothing is a fault. A misspelt `htlm.hbs` must not go unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use super::{
    Part, TemplateSource, Variant,
    compile::partials_named,
    locale::{file_in, from_general, is_locale},
    parse_manifest,
    source::is_key,
    syntax::SOURCE_BYTES_MAX,
};

/// Where shared partials lie.
const SHARED: &str = "_shared";

/// One thing that is wrong with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderFault {
    /// The file or folder, from the templates folder on.
    pub file: String,
    /// What is wrong with it.
    pub words: String,
}

/// Everything that is wrong with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderFaults(pub Vec<FolderFault>);

impl fmt::Display for FolderFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(|fault| format!("{}: {}", fault.file, fault.words)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for FolderFaults {}

/// Reads every template of a folder, in the order of their keys. What the files say is not judged here: see [`lint`](super::lint()).
///
/// # Errors
/// Everything that is missing, superfluous or unreadable, at once.
pub fn read_folder(folder: &Path) -> Result<Vec<TemplateSource>, FolderFaults> {
    let mut reader = Reader { folder, faults: Vec::new() };
    let shared_html = reader.shared("html");
    let shared_text = reader.shared("text");
    let mut sources = Vec::new();
    for (name, is_folder) in reader.entries("") {
        match (name.as_str(), is_folder) {
            (SHARED, true) => {}
            (_, true) if is_key(&name) => sources.extend(reader.template(&name, &shared_html, &shared_text)),
            (_, true) => reader.fault(&name, "a template's folder has lower-case letters, digits and _ only"),
            (_, false) => reader.fault(&name, "a file that belongs to no template"),
        }
    }
    if reader.faults.is_empty() { Ok(sources) } else { Err(FolderFaults(reader.faults)) }
}

/// Partials of one kind.
#[derive(Default)]
struct Shared {
    plain: BTreeMap<String, String>,
    /// By locale.
    variants: BTreeMap<String, BTreeMap<String, String>>,
}

impl Shared {
    /// Each as a locale has it.
    fn in_locale(&self, locale: &str) -> BTreeMap<String, String> {
        let mut all = self.plain.clone();
        for locale in from_general(locale) {
            all.extend(self.variants.get(locale).cloned().unwrap_or_default());
        }
        all
    }
}

struct Reader<'a> {
    folder: &'a Path,
    faults: Vec<FolderFault>,
}

impl Reader<'_> {
    fn fault(&mut self, file: impl Into<String>, words: impl Into<String>) {
        self.faults.push(FolderFault { file: file.into(), words: words.into() });
    }

    /// Names in a folder and whether they are folders, in order. Hidden ones are left out: editors and systems put them there.
    fn entries(&mut self, path: &str) -> Vec<(String, bool)> {
        let read = fs::read_dir(self.folder.join(path)).and_then(|entries| {
            entries
                .map(|entry| {
                    entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path().is_dir()))
                })
                .collect::<Result<Vec<_>, _>>()
        });
        match read {
            Ok(mut entries) => {
                entries.retain(|(name, _)| !name.starts_with('.'));
                entries.sort();
                entries
            }
            Err(error) => {
                let name = if path.is_empty() { self.folder.display().to_string() } else { path.to_owned() };
                self.fault(name, format!("cannot be read ({error})"));
                Vec::new()
            }
        }
    }

    fn shared(&mut self, kind: &str) -> Shared {
        let path = format!("{SHARED}/{kind}");
        let mut shared = Shared::default();
        if !self.folder.join(&path).is_dir() {
            return shared;
        }
        for (name, is_folder) in self.entries(&path) {
            let file = format!("{path}/{name}");
            let stem = name.strip_suffix(".hbs").filter(|_| !is_folder);
            let (stem, locale) = match stem.and_then(|stem| stem.split_once('.')) {
                Some((stem, locale)) => (Some(stem), Some(locale)),
                None => (stem, None),
            };
            let Some(stem) = stem.filter(|stem| is_key(stem) && locale.is_none_or(is_locale)) else {
                let words =
                    "no partial: use <name>.hbs or <name>.<locale>.hbs, names with lower-case letters, digits and _";
                self.fault(file, words);
                continue;
            };
            let Some(text) = self.text(&file) else { continue };
            let partials = match locale {
                Some(locale) => shared.variants.entry(locale.to_owned()).or_default(),
                None => &mut shared.plain,
            };
            partials.insert(stem.to_owned(), text);
        }
        shared
    }

    fn template(&mut self, key: &str, shared_html: &Shared, shared_text: &Shared) -> Option<TemplateSource> {
        let known = ["manifest.toml", "sample.json"].into_iter().chain(Part::ALL.map(Part::file_name));
        let known: BTreeSet<&str> = known.collect();
        let mut locales = BTreeSet::new();
        for (name, _) in self.entries(key) {
            if known.contains(name.as_str()) {
                continue;
            }
            let locale = Part::ALL.into_iter().find_map(|part| {
                let (stem, end) = part.file_name().split_once('.')?;
                name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(end)?.strip_suffix('.')
            });
            match locale.filter(|locale| is_locale(locale)) {
                Some(locale) => drop(locales.insert(locale.to_owned())),
                None => {
                    let known = known.iter().copied().collect::<Vec<_>>().join(", ");
                    let words = format!("not a file of a template ({known}; in another locale: html.en.hbs)");
                    self.fault(format!("{key}/{name}"), words);
                }
            }
        }
        let manifest_toml = self.text(&format!("{key}/manifest.toml"));
        // A manifest that cannot be read is told of later.
        let own =
            manifest_toml.as_deref().and_then(|toml| parse_manifest(toml, 1).ok()).map(|manifest| manifest.locale);
        let words = self.variant(key, None, own.as_deref(), shared_html, shared_text);
        let mut variants = BTreeMap::new();
        for locale in locales {
            if let Some(variant) = self.variant(key, Some(&locale), Some(&locale), shared_html, shared_text) {
                variants.insert(locale, variant);
            }
        }
        let sample_file = format!("{key}/sample.json");
        let sample = self.text(&sample_file).and_then(|sample| {
            serde_json::from_str(&sample)
                .map_err(|error| self.fault(sample_file, format!("not an object of variables ({error})")))
                .ok()
        });
        let Variant { subject, html, text, partials_html, partials_text } = words?;
        Some(TemplateSource {
            key: key.to_owned(),
            manifest_toml: manifest_toml?,
            subject,
            html,
            text,
            partials_html,
            partials_text,
            variants,
            sample: sample?,
        })
    }

    /// A template's parts, with partials as `partials` has them.
    fn variant(
        &mut self,
        key: &str,
        locale: Option<&str>,
        partials: Option<&str>,
        shared_html: &Shared,
        shared_text: &Shared,
    ) -> Option<Variant> {
        let [subject, html, text] = Part::ALL.map(|part| {
            let name = locale.map_or_else(|| part.file_name().to_owned(), |locale| file_in(part.file_name(), locale));
            let file = format!("{key}/{name}");
            if locale.is_some() && !self.folder.join(&file).exists() {
                self.fault(file, "missing: a mail is in one language, so a locale has all three parts");
                return None;
            }
            self.text(&file)
        });
        let (html, text) = (html?, text?);
        let of = |shared: &Shared| partials.map_or_else(|| shared.plain.clone(), |locale| shared.in_locale(locale));
        Some(Variant {
            subject: subject?,
            partials_html: reachable(&html, &of(shared_html)),
            partials_text: reachable(&text, &of(shared_text)),
            html,
            text,
        })
    }

    /// A file's text, with LF at the ends of lines whatever the checkout made of them.
    fn text(&mut self, file: &str) -> Option<String> {
        let path = self.folder.join(file);
        let read = fs::metadata(&path).and_then(|data| {
            if data.len() > SOURCE_BYTES_MAX as u64 {
                return Err(std::io::Error::other(format!("larger than {SOURCE_BYTES_MAX} bytes")));
            }
            fs::read_to_string(&path)
        });
        match read {
            Ok(text) => Some(text.trim_start_matches('\u{FEFF}').replace("\r\n", "\n")),
            Err(error) => {
                self.fault(file, format!("cannot be read ({error})"));
                None
            }
        }
    }
}

/// The partials that a part reaches, directly or through others. Of a text that cannot be parsed: all, so that
/// compiling can tell what is wrong with it.
fn reachable(text: &str, shared: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut reached = BTreeMap::new();
    let mut waiting = vec![text];
    while let Some(text) = waiting.pop() {
        let Some(names) = partials_named(text) else { return shared.clone() };
        for name in names {
            if let Some((name, text)) = shared.get_key_value(&name)
                && reached.insert(name.clone(), text.clone()).is_none()
            {
                waiting.push(text);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, text).expect("a file");
        }
        folder
    }

    const WHOLE: [(&str, &str); 9] = [
        ("a/manifest.toml", "m"),
        ("a/subject.hbs", "s"),
        ("a/html.hbs", "{{#> layout}}\r\n{{#if x}}{{> one}}{{/if}}{{/layout}}"),
        ("a/text.hbs", "{{> two}}"),
        ("a/sample.json", "{\"x\": 1}"),
        ("_shared/html/layout.hbs", "{{> two}}"),
        ("_shared/html/one.hbs", "1"),
        ("_shared/html/two.hbs", "2"),
        ("_shared/html/unused.hbs", "3"),
    ];

    #[test]
    fn a_source_holds_the_partials_it_reaches_and_no_others() {
        let folder = folder(&WHOLE);
        let sources = read_folder(folder.path()).expect("it reads");
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].partials_html.keys().collect::<Vec<_>>(), ["layout", "one", "two"]);
        assert!(sources[0].partials_text.is_empty(), "the text part has partials of its own");
        assert!(!sources[0].html.contains('\r'));
    }

    #[test]
    fn every_fault_is_reported_with_its_file() {
        let mut files = WHOLE.to_vec();
        files[1].0 = "a/sujbect.hbs";
        files[4].1 = "[1]";
        files.extend([
            ("readme.txt", ""),
            ("B c/html.hbs", ""),
            ("b/html.fr_BJ.hbs", ""),
            ("b/subject.en.hbs", ""),
            ("_shared/html/x.txt", ""),
            (".git/x", ""),
        ]);
        let faults = read_folder(folder(&files).path()).expect_err("faults").to_string();
        for want in [
            "a/sujbect.hbs: not a file of a template (html.hbs, manifest.toml, sample.json, subject.hbs, text.hbs; ",
            "a/subject.hbs: cannot be read",
            "a/sample.json: not an object of variables",
            "readme.txt: a file that belongs to no template",
            "B c: a template's folder has lower-case",
            "b/html.fr_BJ.hbs: not a file",
            "b/html.en.hbs: missing: a mail is in one language",
            "b/text.en.hbs: missing",
            "b/manifest.toml: cannot be read",
            "_shared/html/x.txt: no partial",
        ] {
            assert!(faults.contains(want), "{want}\n{faults}");
        }
        assert!(!faults.contains(".git"));
        assert!(
            read_folder(Path::new("/nowhere/at/all"))
                .expect_err("faults")
                .to_string()
                .contains("/nowhere/at/all: cannot be read")
        );
    }

    #[test]
    fn a_variant_has_its_own_partials_and_shares_the_others() {
        let mut files = WHOLE.to_vec();
        files.extend([
            ("a/subject.en-GB.hbs", "s"),
            ("a/html.en-GB.hbs", "{{#> layout}}{{> one}}{{/layout}}"),
            ("a/text.en-GB.hbs", "t"),
            ("_shared/html/layout.en.hbs", "{{> two}}{{> only}}"),
            ("_shared/html/two.en-GB.hbs", "two"),
            ("_shared/html/two.en.hbs", "not so close"),
            ("_shared/html/one.pt.hbs", "um"),
            ("_shared/html/only.en.hbs", "in English"),
        ]);
        let sources = read_folder(folder(&files).path()).expect("it reads");
        assert_eq!(sources[0].partials_html.keys().collect::<Vec<_>>(), ["layout", "one", "two"]);
        let variant = &sources[0].variants["en-GB"];
        let partials: Vec<_> =
            variant.partials_html.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let want = [("layout", "{{> two}}{{> only}}"), ("one", "1"), ("only", "in English"), ("two", "two")];
        assert_eq!(partials, want);
    }
}
