//! Priorities (P0 to P3) and the three lanes they travel in.

use std::{fmt, str::FromStr};

/// How urgent a request is. P0 is an incident, P3 can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Incidents: the fast lane.
    P0,
    /// The standard lane; before P2 where the broker knows priorities.
    P1,
    /// The standard lane.
    P2,
    /// Reminders and marketing: the bulk lane.
    P3,
}

impl Priority {
    /// All of them, most urgent first.
    pub const ALL: [Self; 4] = [Self::P0, Self::P1, Self::P2, Self::P3];

    /// The lane that carries this priority.
    #[must_use]
    pub const fn lane(self) -> Lane {
        match self {
            Self::P0 => Lane::Fast,
            Self::P1 | Self::P2 => Lane::Standard,
            Self::P3 => Lane::Bulk,
        }
    }

    /// The AMQP `priority` property: P0 9, P1 6, P2 3, P3 0.
    #[must_use]
    pub const fn amqp(self) -> u8 {
        match self {
            Self::P0 => 9,
            Self::P1 => 6,
            Self::P2 => 3,
            Self::P3 => 0,
        }
    }

    /// As a number for the database: 0 to 3.
    #[must_use]
    pub const fn number(self) -> i16 {
        match self {
            Self::P0 => 0,
            Self::P1 => 1,
            Self::P2 => 2,
            Self::P3 => 3,
        }
    }

    /// As the second word of a routing key: `p0` to `p3`.
    #[must_use]
    pub const fn routing_word(self) -> &'static str {
        match self {
            Self::P0 => "p0",
            Self::P1 => "p1",
            Self::P2 => "p2",
            Self::P3 => "p3",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P0 => "P0",
            Self::P1 => "P1",
            Self::P2 => "P2",
            Self::P3 => "P3",
        })
    }
}

/// The text was not one of P0, P1, P2, P3.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a priority: use P0, P1, P2 or P3")]
pub struct PriorityError(String);

impl FromStr for Priority {
    type Err = PriorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|p| p.routing_word().eq_ignore_ascii_case(text))
            .ok_or_else(|| PriorityError(text.chars().take(20).collect()))
    }
}

/// A lane: a queue with its own consumer, SMTP connections, database slots and retry ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// P0.
    Fast,
    /// P1 and P2.
    Standard,
    /// P3.
    Bulk,
}

impl Lane {
    /// All of them, fastest first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Standard, Self::Bulk];

    /// `fast`, `standard` or `bulk`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Standard => "standard",
            Self::Bulk => "bulk",
        }
    }

    /// The lane of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.name() == name)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value for each lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerLane<T> {
    /// The fast lane's.
    pub fast: T,
    /// The standard lane's.
    pub standard: T,
    /// The bulk lane's.
    pub bulk: T,
}

impl<T> PerLane<T> {
    /// Makes one for each lane.
    pub fn from_fn(mut make: impl FnMut(Lane) -> T) -> Self {
        Self { fast: make(Lane::Fast), standard: make(Lane::Standard), bulk: make(Lane::Bulk) }
    }

    /// The value of this lane.
    #[must_use]
    pub const fn get(&self, lane: Lane) -> &T {
        match lane {
            Lane::Fast => &self.fast,
            Lane::Standard => &self.standard,
            Lane::Bulk => &self.bulk,
        }
    }

    /// The value of this lane, to change it.
    #[must_use]
    pub const fn get_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Fast => &mut self.fast,
            Lane::Standard => &mut self.standard,
            Lane::Bulk => &mut self.bulk,
        }
    }
}
