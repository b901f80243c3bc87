//! A folder of templates on disk: `<key>/` with its files, and `_shared/` with the partials of all.
//!
//! Invariant: a file that means nothing is a fault. A misspelt `htlm.hbs` must not go unnoticed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use super::{Part, TemplateSource, compile::partials_named, source::is_key, syntax::SOURCE_BYTES_MAX};

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

    fn shared(&mut self, kind: &str) -> BTreeMap<String, String> {
        let path = format!("{SHARED}/{kind}");
        let mut partials = BTreeMap::new();
        if !self.folder.join(&path).is_dir() {
            return partials;
        }
        for (name, is_folder) in self.entries(&path) {
            let file = format!("{path}/{name}");
            match name.strip_suffix(".hbs").filter(|stem| !is_folder && is_key(stem)) {
                Some(stem) => {
                    if let Some(text) = self.text(&file) {
                        partials.insert(stem.to_owned(), text);
                    }
                }
                None => self.fault(file, "no partial: use <name>.hbs, with lower-case letters, digits and _"),
            }
        }
        partials
    }

    fn template(
        &mut self,
        key: &str,
        shared_html: &BTreeMap<String, String>,
        shared_text: &BTreeMap<String, String>,
    ) -> Option<TemplateSource> {
        let known = ["manifest.toml", "sample.json"].into_iter().chain(Part::ALL.map(Part::file_name));
        let known: BTreeSet<&str> = known.collect();
        for (name, _) in self.entries(key) {
            if !known.contains(name.as_str()) {
                let known = known.iter().copied().collect::<Vec<_>>().join(", ");
                self.fault(format!("{key}/{name}"), format!("not a file of a template ({known})"));
            }
        }
        let manifest_toml = self.text(&format!("{key}/manifest.toml"));
        let [subject, html, text] = Part::ALL.map(|part| self.text(&format!("{key}/{part}")));
        let sample_file = format!("{key}/sample.json");
        let sample = self.text(&sample_file).and_then(|sample| {
            serde_json::from_str(&sample)
                .map_err(|error| self.fault(sample_file, format!("not an object of variables ({error})")))
                .ok()
        });
        let (html, text) = (html?, text?);
        Some(TemplateSource {
            key: key.to_owned(),
            manifest_toml: manifest_toml?,
            subject: subject?,
            partials_html: reachable(&html, shared_html),
            partials_text: reachable(&text, shared_text),
            html,
            text,
            sample: sample?,
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
            ("b/html.fr.hbs", ""),
            ("_shared/html/x.txt", ""),
            (".git/x", ""),
        ]);
        let faults = read_folder(folder(&files).path()).expect_err("faults").to_string();
        for want in [
            "a/sujbect.hbs: not a file of a template (html.hbs, manifest.toml, sample.json, subject.hbs, text.hbs)",
            "a/subject.hbs: cannot be read",
            "a/sample.json: not an object of variables",
            "readme.txt: a file that belongs to no template",
            "B c: a template's folder has lower-case",
            "b/html.fr.hbs: not a file",
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
}
