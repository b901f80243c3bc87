//! What is known of one setting, and `.env.example`, which is printed from that.

use std::fmt::Write as _;

use super::SETTINGS;

/// One setting, as documentation and error messages describe it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable's name; in lower case the key under `[settings]`.
    pub name: &'static str,
    /// Where `.env.example` lists it.
    pub group: Group,
    /// Whether it must be given, and what holds when it is not.
    pub need: Need,
    /// What it is for, in one sentence.
    pub meaning: &'static str,
    /// Which values it takes.
    pub accepts: &'static str,
    /// A value that it takes, or nothing when an example would end up in production.
    pub example: &'static str,
    /// A secret, an address or a phone number: no message ever repeats its value.
    pub private: bool,
}

/// Whether a setting must be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// There is no start without it.
    Required,
    /// Without it something is left out.
    Optional,
    /// Without it this value holds.
    Default(&'static str),
}

/// The headings of `.env.example`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// RabbitMQ.
    Broker,
    /// PostgreSQL.
    Database,
    /// The relay, and how it is spoken to.
    Relay,
    /// What every mail carries.
    Mail,
    /// Signatures, unsubscribing, and headers for mail providers.
    Manners,
    /// What may be attached.
    Attachments,
    /// The rules of sending.
    Rules,
    /// How long what is kept.
    Retention,
    /// The HTTP listeners.
    Sidecar,
    /// Amazon SNS.
    Feedback,
    /// Traces and metrics that are pushed.
    Telemetry,
    /// The process: logs, shutdown, the settings file.
    Process,
}

impl Group {
    /// The heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Broker => "RabbitMQ",
            Self::Database => "PostgreSQL",
            Self::Relay => "SMTP relay",
            Self::Mail => "Mails",
            Self::Manners => "Signatures, unsubscribing, headers for mail providers",
            Self::Attachments => "Attachments",
            Self::Rules => "Rules of sending",
            Self::Retention => "Audit and retention",
            Self::Sidecar => "Sidecar HTTP server",
            Self::Feedback => "Feedback of Amazon SES through SNS",
            Self::Telemetry => "OpenTelemetry: traces and metrics that are pushed",
            Self::Process => "Process",
        }
    }
}

impl Setting {
    /// One that must be given.
    pub(super) const fn required(group: Group, name: &'static str, example: &'static str) -> Self {
        Self { name, group, need: Need::Required, meaning: "", accepts: "", example, private: false }
    }

    /// One that may be left out.
    pub(super) const fn optional(group: Group, name: &'static str, example: &'static str) -> Self {
        Self { need: Need::Optional, ..Self::required(group, name, example) }
    }

    /// One with a default, which is its example too.
    pub(super) const fn preset(group: Group, name: &'static str, default: &'static str) -> Self {
        Self { need: Need::Default(default), ..Self::required(group, name, default) }
    }

    pub(super) const fn meaning(self, meaning: &'static str) -> Self {
        Self { meaning, ..self }
    }

    pub(super) const fn accepts(self, accepts: &'static str) -> Self {
        Self { accepts, ..self }
    }

    pub(super) const fn private(self) -> Self {
        Self { private: true, ..self }
    }

    /// The setting of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// What a message says when its value is wrong or missing.
    pub(super) fn help(&self) -> String {
        if self.example.is_empty() {
            format!("accepts {}", self.accepts)
        } else {
            format!("accepts {}; example: {}={}", self.accepts, self.name, self.example)
        }
    }
}

/// The text of `.env.example`: every setting, the required ones to be filled in, the others commented out.
#[must_use]
pub fn env_example() -> String {
    let mut text = String::from(
        "# Settings of postrider. What is commented out shows its default, or an example where there is none.\n\
         # NAME_FILE=/path reads the setting NAME from a file; a variable set to nothing counts as unset.\n",
    );
    let mut group = None;
    for setting in SETTINGS {
        if group != Some(setting.group) {
            group = Some(setting.group);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\n# --- {} ---", setting.group.title());
        }
        let (need, off) = match setting.need {
            Need::Required => ("Required: ", ""),
            Need::Optional => ("Optional: ", "#"),
            Need::Default(_) => ("Accepts: ", "#"),
        };
        let Setting { name, meaning, accepts, example, .. } = setting;
        let _ = writeln!(text, "\n# {meaning} {need}{accepts}.\n{off}{name}={example}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_example_lists_every_setting() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/.env.example");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, env_example()).expect("writable");
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == env_example(),
            ".env.example is not what the table of settings says; write it again with:\n\n    UPDATE=1 cargo test env_example\n"
        );
    }

    #[test]
    fn each_setting_is_described_once() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            let Setting { name, meaning, accepts, .. } = setting;
            assert!(!SETTINGS[..at].iter().any(|other| other.name == *name), "{name} is there twice");
            assert!(meaning.ends_with('.') && !meaning.contains('\n'), "{name}: {meaning}");
            assert!(!accepts.is_empty() && !accepts.ends_with('.'), "{name}: {accepts}");
        }
    }
}
