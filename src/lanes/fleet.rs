//! All daemons together: what their rows say, what this one knows of itself, and what the broker counts.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{DaemonReport, Pauses, Reporter, report::CONSUMING};
use crate::{
    broker::depths::{DepthGauge, Depths},
    email::{Lane, PerLane},
    metrics::figures::LaneFigures,
    store::{
        Store, StoreError,
        lanes::{DaemonRow, LanePause},
    },
};

/// How long the database may take for what is only to be looked at.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What is known at one moment.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// When.
    pub at: DateTime<Utc>,
    /// Which lanes operators have paused.
    pub pauses: PerLane<Option<LanePause>>,
    /// The daemons that are alive, those that started first first.
    pub daemons: Vec<Daemon>,
    /// What the broker counts, or why it cannot be asked.
    pub depths: Result<Arc<Depths>, String>,
    /// Why the database cannot be asked: other daemons are not shown then, and pauses are those known last.
    pub database_error: Option<String>,
}

/// A daemon that is alive.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// A new one at every start.
    pub id: Uuid,
    /// When; not known of one that could not write it down.
    pub started_at: Option<DateTime<Utc>>,
    /// When it told what is shown of it; nothing: it has not told anything.
    pub reported_at: Option<DateTime<Utc>>,
    /// Whether it is the one that was asked.
    pub is_this: bool,
    /// What it tells.
    pub report: DaemonReport,
}

/// Whether a lane carries mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneState {
    /// At least one daemon consumes it.
    Running,
    /// An operator has paused it.
    Paused,
    /// No daemon consumes it, and no operator wanted that.
    NotConsumed,
}

impl LaneState {
    /// `running`, `paused` or `not_consumed`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::NotConsumed => "not_consumed",
        }
    }
}

impl Fleet {
    /// As a running daemon sees it.
    pub async fn seen_by(store: &Store, pauses: &Pauses, gauge: &DepthGauge, reporter: &Reporter) -> Self {
        let (rows, depths) = tokio::join!(read(store), gauge.now());
        let at = Utc::now();
        let (rows, pauses, database_error) = match rows {
            Ok((rows, paused)) => (rows, paused, None),
            Err(error) => (Vec::new(), pauses.by_operator(), Some(error.to_string())),
        };
        let own_id = store.worker_id();
        let mut daemons: Vec<Daemon> = rows.into_iter().map(|row| Daemon::of(row, own_id)).collect();
        if !daemons.iter().any(|daemon| daemon.is_this) {
            daemons.push(Daemon {
                id: own_id,
                started_at: None,
                reported_at: None,
                is_this: true,
                report: DaemonReport::default(),
            });
        }
        // What it knows of itself is newer than what it wrote down.
        for own in daemons.iter_mut().filter(|daemon| daemon.is_this) {
            (own.report, own.reported_at) = (reporter.now(), Some(at));
        }
        Self { at, pauses, daemons, depths, database_error }
    }

    /// As somebody sees it who is no daemon.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn seen_from_outside(store: &Store, depths: Result<Depths, String>) -> Result<Self, StoreError> {
        let (rows, pauses) = read(store).await?;
        let own_id = store.worker_id();
        let daemons = rows.into_iter().map(|row| Daemon::of(row, own_id)).collect();
        Ok(Self { at: Utc::now(), pauses, daemons, depths: depths.map(Arc::new), database_error: None })
    }

    /// Whether this lane carries mail.
    #[must_use]
    pub fn state(&self, lane: Lane) -> LaneState {
        if self.pauses.get(lane).is_some() {
            LaneState::Paused
        } else if self.daemons.iter().any(|daemon| daemon.report.lane(lane).state == CONSUMING) {
            LaneState::Running
        } else {
            LaneState::NotConsumed
        }
    }

    /// How this lane fares at all daemons together.
    #[must_use]
    pub fn figures(&self, lane: Lane) -> LaneFigures {
        let mut sum = LaneFigures::default();
        self.daemons.iter().for_each(|daemon| sum.add(&daemon.report.lane(lane).figures));
        sum
    }
}

impl Daemon {
    fn of(row: DaemonRow, own_id: Uuid) -> Self {
        // One that cannot be read is another version's, and the daemon is alive all the same.
        let report = row.figures.and_then(|figures| serde_json::from_value(figures).ok()).unwrap_or_default();
        Self {
            id: row.id,
            started_at: Some(row.started_at),
            reported_at: row.reported_at,
            is_this: row.id == own_id,
            report,
        }
    }
}

async fn read(store: &Store) -> Result<(Vec<DaemonRow>, PerLane<Option<LanePause>>), StoreError> {
    if !store.is_up() {
        return Err(StoreError::Away("it is waited for".to_owned()));
    }
    let reading = async { tokio::try_join!(store.live_daemons(), store.lane_pauses()) };
    tokio::time::timeout(ANSWER_MAX, reading).await.unwrap_or_else(|_| Err(StoreError::silent(ANSWER_MAX)))
}
