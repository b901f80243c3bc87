//! What is wrong with the settings, told at once and in words that help.
//!
//! Invariant: a fault never repeats a private value (see [`super::Setting::private`]), so it can be printed and logged.

use std::fmt;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's name, and where it was found when that was not the environment.
    pub setting: String,
    /// What is wrong with it.
    pub problem: String,
    /// What it accepts, with an example or a remedy.
    pub accepts: String,
}

/// Everything that is wrong: at least one fault, each only once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Nothing when there is no fault. The order is kept.
    #[must_use]
    pub fn of(faults: impl IntoIterator<Item = Fault>) -> Option<Self> {
        let mut once = Vec::new();
        for fault in faults {
            if !once.contains(&fault) {
                once.push(fault);
            }
        }
        (!once.is_empty()).then_some(Self(once))
    }

    /// The faults, in the order of [`super::SETTINGS`] as far as they have one.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// Both lists as one, for a command that reads several parts of the settings.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::of(self.0.into_iter().chain(other.0)).unwrap_or(Self(Vec::new()))
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "1 setting is wrong:")?,
            count => writeln!(f, "{count} settings are wrong:")?,
        }
        for fault in &self.0 {
            write!(f, "\n  {}: {}\n      {}", fault.setting, fault.problem, fault.accepts)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(setting: &str) -> Fault {
        Fault { setting: setting.to_owned(), problem: "is missing".to_owned(), accepts: "accepts a URL".to_owned() }
    }

    #[test]
    fn a_list_fit_for_a_terminal() {
        assert!(Faults::of([]).is_none());
        let one = Faults::of([fault("AMQP_URL")]).expect("one");
        let two = Faults::of([fault("DATABASE_URL"), fault("AMQP_URL")]).expect("two");
        assert_eq!(
            one.and(two).to_string(),
            "2 settings are wrong:\n\n  AMQP_URL: is missing\n      accepts a URL\n  DATABASE_URL: is missing\n      accepts a URL"
        );
    }
}
