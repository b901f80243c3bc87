//! What one daemon tells of itself: written into its row with its lease, so that any daemon can show all of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    broker::ConsumerState,
    email::{Lane, PerLane},
    metrics::figures::{Figures, LaneFigures},
    smtp::{RelayHealth, RelayState, Relays},
    store::{Store, StoreHealth},
};

/// Collects what a daemon tells.
pub struct Reporter {
    /// Whose health is told.
    pub store: Arc<Store>,
    /// What is counted.
    pub figures: Arc<Figures>,
    /// The lanes' consumers.
    pub lanes: PerLane<watch::Receiver<ConsumerState>>,
    /// Where mails go.
    pub relays: Arc<Relays>,
}

/// What a daemon tells of itself. Another version's may lack some of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonReport {
    /// Of postrider.
    pub version: String,
    /// Of the machine.
    pub host: String,
    /// `up`, `away`: the fast lane goes on without it, or `catching_up`.
    pub database: String,
    /// P0.
    pub fast: LaneReport,
    /// P1 and P2.
    pub standard: LaneReport,
    /// P3.
    pub bulk: LaneReport,
    /// In order of preference.
    pub relays: Vec<RelayReport>,
}

/// How one of its lanes fares.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LaneReport {
    /// Of the consumer: `starting`, `consuming`, `paused`, `lost` or `stopped`.
    pub state: String,
    /// What was counted.
    #[serde(flatten)]
    pub figures: LaneFigures,
}

/// How a relay fares, as this daemon sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayReport {
    /// Its name in the settings.
    pub name: String,
    /// `untried`, `up`, `paced`, `down` or `on_trial`.
    pub state: String,
    /// Name of the fault that keeps it from being used.
    pub fault: Option<String>,
}

impl DaemonReport {
    /// How this lane fares.
    #[must_use]
    pub const fn lane(&self, lane: Lane) -> &LaneReport {
        match lane {
            Lane::Fast => &self.fast,
            Lane::Standard => &self.standard,
            Lane::Bulk => &self.bulk,
        }
    }
}

impl Reporter {
    /// How this daemon fares now.
    #[must_use]
    pub fn now(&self) -> DaemonReport {
        let lane = |lane| LaneReport {
            state: self.lanes.get(lane).borrow().name().to_owned(),
            figures: self.figures.of(lane),
        };
        DaemonReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: hostname::get().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
            database: match &*self.store.health().borrow() {
                StoreHealth::Up => "up",
                StoreHealth::Away(_) => "away",
                StoreHealth::CatchingUp => "catching_up",
            }
            .to_owned(),
            fast: lane(Lane::Fast),
            standard: lane(Lane::Standard),
            bulk: lane(Lane::Bulk),
            relays: self.relays.health().iter().map(RelayReport::of).collect(),
        }
    }
}

impl RelayReport {
    fn of(health: &RelayHealth) -> Self {
        let fault = match &health.state {
            RelayState::Untried | RelayState::Up => None,
            RelayState::Down { error, .. } | RelayState::OnTrial { error, .. } => Some(error.fault.name().to_owned()),
        };
        Self { name: health.name.clone(), state: health.state_name().to_owned(), fault }
    }
}

/// Deliveries come in.
pub(super) const CONSUMING: &str = "consuming";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_another_version_is_read_as_far_as_it_goes() {
        let text = r#"{"version":"9.9","new":[1],"fast":{"state":"consuming","in_flight":3,"later":1}}"#;
        let report: DaemonReport = serde_json::from_str(text).expect("it reads");
        assert_eq!((report.version.as_str(), report.fast.figures.in_flight), ("9.9", 3));
        assert_eq!(report.bulk, LaneReport::default());
    }
}
