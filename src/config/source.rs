//! Where settings come from: the environment, files named by `NAME_FILE`, the TOML file, in that order.
//!
//! Invariants: nothing here knows what a value means; nothing here can be printed with a value in it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    io::Read as _,
    mem,
    path::{Path, PathBuf},
};

use secrecy::zeroize::{Zeroize, Zeroizing};

use super::{Fault, Setting, file::SettingsFile, parse};

/// Longest content of a file named by `NAME_FILE`; a device or a log named by mistake must not fill the memory.
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// What ends the name of a variable that names a file.
const FILE_SUFFIX: &str = "_FILE";
/// Names that look like ours are ours, or misspelt.
const PREFIXES: [&str; 13] = [
    "ADMIN_",
    "AMQP_",
    "ATTACHMENT_",
    "DATABASE_",
    "DEAD_LETTER_",
    "DKIM_",
    "EMAIL_",
    "POSTRIDER_",
    "SES_",
    "SHUTDOWN_",
    "SMTP_",
    "SNS_",
    "WEBHOOK_",
];

/// Environment variables. A map, so that a test or an embedding program need not change the process's own.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// Those of this process. A name that is not UTF-8 cannot be a setting's and is left out.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect()
    }

    /// Whether `POSTRIDER_CORE_DUMPS` says so: asked before anything else is read, so that the settings file does not count.
    #[must_use]
    pub fn allows_core_dumps(&self) -> bool {
        let text = self.get("POSTRIDER_CORE_DUMPS").and_then(|value| value.to_str());
        // What is wrong with it is told with all other faults.
        text.is_some_and(|text| parse::flag(text) == Ok(true))
    }

    /// A variable that is set to nothing counts as unset: an empty line in an env file means that.
    fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name).filter(|value| !value.is_empty())
    }
}

impl<N: Into<String>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        for value in self.0.values_mut() {
            mem::take(value).into_encoded_bytes().zeroize();
        }
    }
}

impl fmt::Debug for Environment {
    /// Counts only: the environment is full of secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}

/// A value as it was written, and what may be said about it.
pub(super) struct Found {
    /// The value.
    pub(super) text: Zeroizing<String>,
    /// The setting's name, with the place when that is not the environment.
    pub(super) label: String,
    /// Whether a message may repeat it.
    pub(super) printable: bool,
}

/// The settings as they were written. Each method reads one part, so that a command asks only for what it needs.
pub struct Settings {
    environment: Environment,
    pub(super) file: SettingsFile,
}

impl fmt::Debug for Settings {
    /// Names the file only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("file", &self.file.path).finish_non_exhaustive()
    }
}

impl Settings {
    /// Gathers what was written. `file` is what `--config` names; without it `POSTRIDER_CONFIG` may name one.
    /// A file that cannot be read is a fault of every part that is read later.
    #[must_use]
    pub fn read(environment: &Environment, file: Option<&Path>) -> Self {
        let file = match (file, environment.get("POSTRIDER_CONFIG")) {
            (Some(path), _) => SettingsFile::read("--config", path),
            (None, Some(path)) => SettingsFile::read("POSTRIDER_CONFIG", &PathBuf::from(path)),
            (None, None) => SettingsFile::default(),
        };
        Self { environment: environment.clone(), file }
    }

    /// Whether the environment gives this setting, directly or by a file.
    pub(super) fn environment_has(&self, name: &str) -> bool {
        self.environment.get(name).is_some() || self.environment.get(&format!("{name}{FILE_SUFFIX}")).is_some()
    }

    /// The value as written, if there is one.
    pub(super) fn find(&self, setting: &Setting) -> Result<Option<Found>, Fault> {
        let file_name = format!("{}{FILE_SUFFIX}", setting.name);
        let fault =
            |label: &str, problem: String| Fault { setting: label.to_owned(), problem, accepts: setting.help() };

        let value = self.environment.get(setting.name);
        let path = self.environment.get(&file_name);
        match (value, path) {
            (Some(_), Some(_)) => {
                return Err(fault(setting.name, format!("is set twice: also {file_name} is set, keep one")));
            }
            (Some(value), None) => {
                let label = setting.name.to_owned();
                return match value.to_str() {
                    Some(text) => Ok(Some(Found { text: text.to_owned().into(), label, printable: !setting.private })),
                    None => Err(fault(&label, "is not UTF-8".to_owned())),
                };
            }
            (None, Some(path)) => {
                let label = format!("{} (from {file_name})", setting.name);
                return match content(Path::new(path)) {
                    Ok(text) => Ok(Some(Found { text, label, printable: false })),
                    Err(problem) => Err(fault(&label, format!("the file{} {problem}", named(Path::new(path))))),
                };
            }
            (None, None) => {}
        }

        match (self.file.values.get(setting.name), self.file.values.get(&file_name)) {
            (Some(_), Some(_)) => {
                Err(fault(setting.name, format!("is set twice in the file: also {file_name} is set, keep one")))
            }
            (Some(value), None) => {
                let label = format!("{} ({} in {})", setting.name, value.key, self.file.path);
                Ok(Some(Found { text: value.text.clone(), label, printable: !setting.private }))
            }
            (None, Some(path)) => {
                let label = format!("{} ({} in {})", setting.name, path.key, self.file.path);
                match content(Path::new(&*path.text)) {
                    Ok(text) => Ok(Some(Found { text, label, printable: false })),
                    Err(problem) => Err(fault(&label, format!("the file{} {problem}", named(Path::new(&*path.text))))),
                }
            }
            (None, None) => Ok(None),
        }
    }

    /// Variables that look like settings and are none. Not faults: other programs have such names too.
    pub(super) fn unknown_variables(&self) -> Vec<String> {
        let unknown = |name: &&String| PREFIXES.iter().any(|p| name.starts_with(p)) && known_name(name).is_none();
        self.environment
            .0
            .keys()
            .filter(unknown)
            .map(|name| format!("{name} is not a setting{}", suggestion(name, super::SETTINGS.iter().map(|s| s.name))))
            .collect()
    }
}

/// The setting that a name stands for, directly or with `_FILE`.
pub(super) fn known_name(name: &str) -> Option<&'static Setting> {
    Setting::named(name).or_else(|| Setting::named(name.strip_suffix(FILE_SUFFIX)?))
}

/// The content of a file that holds one value, without the newline that editors end it with. What is wrong does not
/// repeat the path: see [`named`].
pub(super) fn content(path: &Path) -> Result<Zeroizing<String>, String> {
    // Never grown, which would leave what it held before in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(VALUE_BYTES_MAX + 1));
    std::fs::File::open(path)
        .and_then(|file| file.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(format!("is longer than {VALUE_BYTES_MAX} bytes"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(Zeroizing::new(text.to_owned())) }
}

/// A blank and the path, where it is one: `SMTP_PASSWORD_FILE` set to the password itself is a common slip, and that lies below
/// no folder that is there.
pub(super) fn named(path: &Path) -> String {
    let is_below_a_folder = path.ancestors().skip(1).any(|folder| folder.parent().is_some() && folder.is_dir());
    if path.is_absolute() && is_below_a_folder { format!(" {}", path.display()) } else { String::new() }
}

/// `; did you mean X?` for the nearest of the known names, or nothing when none is near.
pub(super) fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(4))
        .min_by_key(|(distance, _)| *distance)
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean {candidate}?"))
}

/// Levenshtein's distance: how many characters must be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        let known = ["SMTP_HOST", "SMTP_PORT", "EMAIL_EVENTS"];
        assert_eq!(suggestion("SMTP_HSOT", known.into_iter()), "; did you mean SMTP_HOST?");
        assert_eq!(suggestion("EMAIL_EVENT", known.into_iter()), "; did you mean EMAIL_EVENTS?");
        assert_eq!(suggestion("WHATEVER", known.into_iter()), "");
        assert_eq!((distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")), (3, 0, 3));
    }
}
