//! Reads single settings and gathers what is wrong with them, so that one bad value does not hide the next.
//!
//! Invariant: whoever gets [`Recorded`] need not report anything: the fault is in the list already.

use secrecy::SecretString;

use super::{
    Fault, Faults, Need, SETTINGS, Setting,
    parse::Parsed,
    source::{Found, Settings},
};
use crate::email::{Lane, PerLane};

/// Longest part of a value that a message repeats.
const SHOWN_CHARS_MAX: usize = 60;

/// There is no value, and the reader has noted why.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recorded;

/// Settings on their way to being typed.
pub(super) struct Reader<'a> {
    pub(super) settings: &'a Settings,
    faults: Vec<Fault>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self { settings, faults: settings.file.faults.clone(), warnings: Vec::new() }
    }

    /// What was read, or all that was noted meanwhile, in the order of [`SETTINGS`].
    pub(super) fn finish<T>(mut self, value: Result<T, Recorded>) -> Result<T, Faults> {
        let place = |fault: &Fault| {
            let name = fault.setting.split(' ').next().unwrap_or_default();
            SETTINGS.iter().position(|setting| setting.name == name)
        };
        // The file's own faults have no place and come first: they may explain the others.
        self.faults.sort_by_key(place);
        match (Faults::of(self.faults), value) {
            (Some(faults), _) => Err(faults),
            (None, Ok(value)) => Ok(value),
            (None, Err(Recorded)) => unreachable!("a value is only missing when a fault says why"),
        }
    }

    /// A setting that is required or has a default.
    pub(super) fn read<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Result<T, Recorded> {
        match self.read_optional(name, parse)? {
            Some(value) => Ok(value),
            None => {
                // In a file that cannot be read it may well be there.
                if !self.settings.file.broken {
                    self.fault(name, "is missing");
                }
                Err(Recorded)
            }
        }
    }

    /// A setting that may be left out.
    pub(super) fn read_optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Result<Option<T>, Recorded> {
        let setting = named(name);
        match (self.settings.find(setting), setting.need) {
            (Err(fault), _) => Err(self.record(fault)),
            (Ok(Some(found)), _) => self.judge(&found, setting.help(), parse).map(Some),
            (Ok(None), Need::Default(text)) => {
                let found = Found { text: text.to_owned().into(), label: name.to_owned(), printable: true };
                self.judge(&found, setting.help(), parse).map(Some)
            }
            (Ok(None), Need::Required | Need::Optional) => Ok(None),
        }
    }

    /// `STEM_FAST`, `STEM_STANDARD` and `STEM_BULK`.
    pub(super) fn read_lanes<T>(
        &mut self,
        stem: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<PerLane<T>, Recorded> {
        let values = PerLane::from_fn(|lane| self.read(&lane_name(stem, lane), &parse));
        Ok(PerLane { fast: values.fast?, standard: values.standard?, bulk: values.bulk? })
    }

    /// The value if it is sound; whether it is, is another reading's concern.
    pub(super) fn peek<T>(&self, name: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Option<T> {
        let setting = named(name);
        match (self.settings.find(setting).ok()?, setting.need) {
            (Some(found), _) => parse(&found.text).ok(),
            (None, Need::Default(text)) => parse(text).ok(),
            (None, Need::Required | Need::Optional) => None,
        }
    }

    /// Parses one value; its fault names the value only where that cannot give anything away.
    pub(super) fn judge<T>(
        &mut self,
        found: &Found,
        help: String,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Result<T, Recorded> {
        parse(&found.text).map_err(|problem| {
            let problem = if found.printable { format!("{}{problem}", shown(&found.text)) } else { problem };
            self.record(Fault { setting: found.label.clone(), problem, accepts: help })
        })
    }

    /// Notes what is wrong with a setting that was read, or is missing.
    pub(super) fn fault(&mut self, name: &str, problem: impl Into<String>) -> Recorded {
        let setting = named(name);
        let label = match self.settings.find(setting) {
            Ok(Some(found)) => found.label,
            Ok(None) | Err(_) => name.to_owned(),
        };
        self.record(Fault { setting: label, problem: problem.into(), accepts: setting.help() })
    }

    pub(super) fn record(&mut self, fault: Fault) -> Recorded {
        self.faults.push(fault);
        Recorded
    }

    pub(super) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }
}

/// A value that must not be printed.
pub(super) fn secret(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

/// `EMAIL_PREFETCH_FAST` of `EMAIL_PREFETCH` and the fast lane.
pub(super) fn lane_name(stem: &str, lane: Lane) -> String {
    format!("{stem}_{}", lane.name().to_uppercase())
}

fn named(name: &str) -> &'static Setting {
    Setting::named(name).unwrap_or_else(|| unreachable!("{name} is not in the table of settings"))
}

/// The value in quotes and a space, cut short; nothing when it looks as if a password or an address strayed into it.
fn shown(text: &str) -> String {
    if text.contains('@') || text.contains("://") {
        return String::new();
    }
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    let dots = if text.chars().count() > SHOWN_CHARS_MAX { "..." } else { "" };
    format!("\"{cut}{dots}\" ")
}
