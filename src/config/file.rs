//! The TOML file: its structure becomes the flat names that the environment uses, so that both are read alike.
//!
//! Invariant: a message names keys and lines, never values: the file may hold passwords.

use std::{collections::BTreeMap, path::Path};

use secrecy::zeroize::Zeroizing;
use toml::{Table, Value};

use super::{
    Fault,
    source::{known_name, suggestion},
};
use crate::email::Lane;

/// Keys of `[lanes.<lane>]`, and the names they stand for, less the lane.
const LANE_KEYS: [(&str, &str); 4] = [
    ("prefetch", "EMAIL_PREFETCH"),
    ("connections", "SMTP_CONNECTIONS"),
    ("ladder", "EMAIL_LADDER"),
    ("age_max", "EMAIL_AGE_MAX"),
];
/// Keys of `[[relays]]`.
const RELAY_KEYS: [&str; 11] = [
    "name",
    "host",
    "port",
    "tls",
    "ca_file",
    "user",
    "password",
    "password_file",
    "connections_fast",
    "connections_standard",
    "connections_bulk",
];
/// Keys of `[[dkim]]`.
const DKIM_KEYS: [&str; 3] = ["domain", "selector", "key_file"];
/// Asked before the file is read.
const NOT_IN_A_FILE: [&str; 2] = ["POSTRIDER_CONFIG", "POSTRIDER_CORE_DUMPS"];
/// What the file may hold.
const SHAPE: &str = "a TOML file of [settings], [lanes.fast], [lanes.standard], [lanes.bulk], [[relays]] and [[dkim]]";

/// What the file says. Empty when there is none.
#[derive(Default)]
pub(super) struct SettingsFile {
    /// As it was named.
    pub(super) path: String,
    /// By the environment's name, which may end in `_FILE`.
    pub(super) values: BTreeMap<String, FileValue>,
    /// In the file's order.
    pub(super) relays: Vec<ListedTable>,
    /// In the file's order.
    pub(super) dkim: Vec<ListedTable>,
    /// What is wrong with the file, apart from values.
    pub(super) faults: Vec<Fault>,
    /// It could not be read at all: what is missing may well stand in it.
    pub(super) broken: bool,
}

/// One value, as the environment would have it.
pub(super) struct FileValue {
    /// The value.
    pub(super) text: Zeroizing<String>,
    /// Where it stands: `settings.smtp_port`.
    pub(super) key: String,
}

/// One `[[relays]]` or `[[dkim]]`.
pub(super) struct ListedTable {
    /// By key; only keys that such a table has.
    pub(super) values: BTreeMap<String, FileValue>,
    /// `relays[1]`, counted from 1.
    pub(super) key: String,
}

impl SettingsFile {
    /// Reads the file; `named_by` is the option or variable that named it.
    pub(super) fn read(named_by: &str, path: &Path) -> Self {
        let mut file = Self { path: path.display().to_string(), ..Self::default() };
        let parsed = std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .map_err(|error| format!("the file {} cannot be read: {error}", path.display()))
            .and_then(|text| parse(&text).map_err(|problem| format!("the file {} {problem}", path.display())));
        match parsed {
            Ok(table) => file.take(table),
            Err(problem) => {
                file.broken = true;
                file.fault(named_by, &problem, format!("accepts {SHAPE}"));
            }
        }
        file
    }

    fn take(&mut self, table: Table) {
        for (key, value) in table {
            match (key.as_str(), value) {
                ("settings", Value::Table(settings)) => self.take_settings(settings),
                ("lanes", Value::Table(lanes)) => self.take_lanes(lanes),
                ("relays", Value::Array(relays)) => self.relays = self.listed("relays", relays, &RELAY_KEYS),
                ("dkim", Value::Array(keys)) => self.dkim = self.listed("dkim", keys, &DKIM_KEYS),
                ("settings" | "lanes" | "relays" | "dkim", _) => self.fault_in(&key, "has another shape", SHAPE),
                _ if known_name(&key.to_uppercase()).is_some() => {
                    self.fault_in(&key, "stands outside of [settings]", SHAPE);
                }
                _ => self.unknown(&key, &key, &["settings", "lanes", "relays", "dkim"]),
            }
        }
    }

    fn take_settings(&mut self, settings: Table) {
        for (key, value) in settings {
            let at = format!("settings.{key}");
            let name = key.to_uppercase();
            if NOT_IN_A_FILE.contains(&name.as_str())
                || key.chars().any(char::is_uppercase)
                || known_name(&name).is_none()
            {
                let known: Vec<String> = super::SETTINGS.iter().map(|setting| setting.name.to_lowercase()).collect();
                self.unknown(&at, &key, &known.iter().map(String::as_str).collect::<Vec<_>>());
            } else {
                self.put(name, &at, value);
            }
        }
    }

    fn take_lanes(&mut self, lanes: Table) {
        for (lane, value) in lanes {
            let at = format!("lanes.{lane}");
            match (Lane::from_name(&lane), value) {
                (Some(_), Value::Table(table)) => {
                    for (key, value) in table {
                        let at = format!("{at}.{key}");
                        match LANE_KEYS.iter().find(|(known, _)| *known == key) {
                            Some((_, stem)) => self.put(format!("{stem}_{}", lane.to_uppercase()), &at, value),
                            None => self.unknown(&at, &key, &LANE_KEYS.map(|(known, _)| known)),
                        }
                    }
                }
                (Some(_), _) => self.fault_in(&at, "has another shape", SHAPE),
                (None, _) => self.unknown(&at, &lane, &Lane::ALL.map(Lane::name)),
            }
        }
    }

    fn listed(&mut self, list: &str, tables: Vec<Value>, known: &[&str]) -> Vec<ListedTable> {
        let mut listed = Vec::with_capacity(tables.len());
        for (index, table) in tables.into_iter().enumerate() {
            let at = format!("{list}[{}]", index + 1);
            let Value::Table(table) = table else {
                self.fault_in(&at, "has another shape", SHAPE);
                continue;
            };
            let mut values = BTreeMap::new();
            for (key, value) in table {
                let at = format!("{at}.{key}");
                if !known.contains(&key.as_str()) {
                    self.unknown(&at, &key, known);
                } else if let Some(text) = self.text(&at, value) {
                    values.insert(key, FileValue { text, key: at });
                }
            }
            listed.push(ListedTable { values, key: at });
        }
        listed
    }

    fn put(&mut self, name: String, at: &str, value: Value) {
        let Some(text) = self.text(at, value) else { return };
        if let Some(other) = self.values.get(&name) {
            let problem = format!("says the same as {}", other.key);
            self.fault_in(at, &problem, "one of the two");
        } else {
            self.values.insert(name, FileValue { text, key: at.to_owned() });
        }
    }

    /// The value as the environment would have it; lists are joined by commas. Empty text counts as unset.
    fn text(&mut self, at: &str, value: Value) -> Option<Zeroizing<String>> {
        let is_empty_list = matches!(&value, Value::Array(items) if items.is_empty());
        let text = match value {
            Value::Array(_) if is_empty_list => {
                self.fault_in(at, "is an empty list", "a list with values; leave the key out for the default");
                None
            }
            Value::Array(items) => {
                let items: Option<Vec<_>> = items.into_iter().map(scalar).collect();
                items.map(|items| Zeroizing::new(items.iter().map(|item| item.as_str()).collect::<Vec<_>>().join(",")))
            }
            value => scalar(value),
        };
        if text.is_none() && !is_empty_list {
            self.fault_in(at, "is not a single value", "a string, a number, true or false, or a list of such");
        }
        text.filter(|text| !text.is_empty())
    }

    fn unknown(&mut self, at: &str, key: &str, known: &[&str]) {
        let problem = format!("is not a known key{}", suggestion(key, known.iter().copied()));
        // The settings are too many to list; the others are few.
        let accepts = if known.len() > 10 { "the settings' names in lower case".to_owned() } else { known.join(", ") };
        self.fault_in(at, &problem, &accepts);
    }

    fn fault_in(&mut self, key: &str, problem: &str, accepts: &str) {
        let label = format!("{key} (in {})", self.path);
        self.fault(&label, problem, format!("accepts {accepts}"));
    }

    fn fault(&mut self, setting: &str, problem: &str, accepts: String) {
        self.faults.push(Fault { setting: setting.to_owned(), problem: problem.to_owned(), accepts });
    }
}

fn scalar(value: Value) -> Option<Zeroizing<String>> {
    match value {
        Value::String(text) => Some(Zeroizing::new(text)),
        Value::Integer(number) => Some(number.to_string().into()),
        Value::Float(number) => Some(number.to_string().into()),
        Value::Boolean(flag) => Some(flag.to_string().into()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

/// The parser's own `Display` quotes the line, which may hold a password: only its place is told.
fn parse(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        format!("is not TOML, line {line}")
    })
}
