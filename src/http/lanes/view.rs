//! Lanes and daemons as the API and `--json` show them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    broker::{
        depths::LaneDepth,
        topology::{delay_word, lane_queue, retry_queue},
    },
    email::Lane,
    lanes::{Daemon, Fleet, LaneReport, RelayReport},
    metrics::figures::{Latency, Rates, STEP_SECONDS, STEPS},
    store::lanes::LanePause,
};

/// All lanes.
#[derive(Debug, Serialize, ToSchema)]
pub struct LanesView {
    /// Fastest first
    items: Vec<LaneView>,
    total: usize,
    total_is_exact: bool,
    /// Always null: there are no further pages
    next: Option<String>,
    /// When
    at: DateTime<Utc>,
    /// Why depths and consumers are null
    broker_error: Option<String>,
    /// Why figures are those of one daemon only
    database_error: Option<String>,
}

impl LanesView {
    /// Fastest first.
    #[must_use]
    pub fn lanes(&self) -> &[LaneView] {
        &self.items
    }

    /// What could not be asked, and why.
    pub(crate) fn unasked(&self) -> impl Iterator<Item = &str> {
        [&self.broker_error, &self.database_error].into_iter().flatten().map(String::as_str)
    }
}

/// One lane, at all daemons together.
#[derive(Debug, Serialize, ToSchema)]
pub struct LaneView {
    /// `fast`, `standard` or `bulk`
    pub lane: &'static str,
    /// Where it waits
    pub queue: String,
    /// `running`, `paused` (by an operator) or `not_consumed`
    pub state: &'static str,
    /// By whom, and why
    pub paused: Option<PauseView>,
    /// Messages in the queue that no consumer holds
    pub depth: Option<u32>,
    /// Copies that wait for their next try, on all rungs of the ladder
    pub retry_depth: Option<u32>,
    /// The same by rung
    pub retry_queues: Vec<RetryView>,
    /// As the broker counts them: one for each daemon that consumes the lane, or has cancelled its consumer and finishes what
    /// it had in hand
    pub consumers: Option<u32>,
    /// Deliveries being worked on
    pub in_flight: u64,
    /// What happens a second
    pub rates: RatesView,
    /// From publish to taking, in milliseconds: the greatest age of what was taken in the last seconds, retry copies left out.
    /// It stands in for the age of the oldest message in the queue, which AMQP tells nobody without taking it; null: nothing was
    /// taken
    pub taken_age_ms: Option<u64>,
    /// From publish to the relay's 250; the fast lane only
    pub latency: Option<LatencyView>,
    /// The last five minutes
    pub history: HistoryView,
    /// What each daemon adds to this
    pub daemons: Vec<ShareView>,
}

/// That an operator has paused a lane.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PauseView {
    /// `operator:<name>`
    pub by: String,
    /// Why
    pub note: Option<String>,
    /// Since when
    pub at: DateTime<Utc>,
}

impl PauseView {
    pub(in crate::http) fn of(pause: &LanePause) -> Self {
        Self { by: pause.by.clone(), note: pause.note.clone(), at: pause.at }
    }
}

/// One rung of a lane's ladder.
#[derive(Debug, Serialize, ToSchema)]
pub struct RetryView {
    pub queue: String,
    /// How long copies wait there, such as `5m`
    pub delay: String,
    pub depth: u32,
}

/// What happened a second, averaged over the last five.
#[derive(Debug, Serialize, ToSchema)]
pub struct RatesView {
    /// Deliveries taken from the queue
    pub taken: f64,
    /// Mails that the relay took
    pub sent: f64,
    /// Tries that the relay put off
    pub deferred: f64,
    /// Dead letters
    pub dead: f64,
}

/// How long mails took in the last five minutes, to within a fifth.
#[derive(Debug, Serialize, ToSchema)]
pub struct LatencyView {
    pub mails: u64,
    /// In milliseconds; null: there were no mails
    pub p50_ms: Option<f64>,
    /// In milliseconds; null: there were no mails
    pub p99_ms: Option<f64>,
}

/// The last five minutes.
#[derive(Debug, Serialize, ToSchema)]
pub struct HistoryView {
    pub step_seconds: i64,
    /// End of the last step
    pub until: DateTime<Utc>,
    /// Mails that the relay took in each step, oldest first
    #[schema(min_items = 60, max_items = 60)]
    pub sent: Vec<u32>,
    /// Deferrals and dead letters in each step
    #[schema(min_items = 60, max_items = 60)]
    pub troubled: Vec<u32>,
}

/// One daemon's part of a lane.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShareView {
    pub daemon: Uuid,
    /// Of its consumer: `starting`, `consuming`, `paused`, `lost` or `stopped`; empty: it has not told
    pub state: String,
    pub in_flight: u64,
    pub rates: RatesView,
}

/// The daemons that are alive.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DaemonsView {
    items: Vec<DaemonView>,
    total: usize,
    total_is_exact: bool,
    /// Always null: there are no further pages
    next: Option<String>,
    /// Why only one is shown
    database_error: Option<String>,
}

impl DaemonsView {
    /// Those that started first first.
    pub(crate) fn daemons(&self) -> &[DaemonView] {
        &self.items
    }
}

/// A daemon that is alive.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DaemonView {
    /// A new one at every start
    pub id: Uuid,
    /// Whether it is the one that answers
    pub is_this: bool,
    pub host: String,
    pub version: String,
    pub started_at: Option<DateTime<Utc>>,
    /// Of what is shown here
    pub reported_at: Option<DateTime<Utc>>,
    /// `up`, `away` (the fast lane goes on without it) or `catching_up`
    pub database: String,
    pub lanes: Vec<DaemonLaneView>,
    /// In order of preference
    pub relays: Vec<RelayView>,
}

/// How one lane fares at one daemon.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DaemonLaneView {
    /// `fast`, `standard` or `bulk`
    pub lane: &'static str,
    /// Of its consumer: `starting`, `consuming`, `paused`, `lost` or `stopped`; empty: it has not told
    pub state: String,
    pub in_flight: u64,
    pub rates: RatesView,
    pub taken_age_ms: Option<u64>,
}

/// How a relay fares, as one daemon sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RelayView {
    pub name: String,
    /// `untried`, `up`, `paced`, `down` (its breaker is open) or `on_trial`
    pub state: String,
    /// Name of the fault that keeps it from being used
    pub fault: Option<String>,
}

/// All lanes.
#[must_use]
pub fn lanes_view(fleet: &Fleet) -> LanesView {
    let items: Vec<LaneView> = Lane::ALL.into_iter().map(|lane| lane_view(fleet, lane)).collect();
    LanesView {
        total: items.len(),
        total_is_exact: true,
        next: None,
        items,
        at: fleet.at,
        broker_error: fleet.depths.as_ref().err().cloned(),
        database_error: fleet.database_error.clone(),
    }
}

/// One lane.
#[must_use]
pub(crate) fn lane_view(fleet: &Fleet, lane: Lane) -> LaneView {
    let figures = fleet.figures(lane);
    let depth = fleet.depths.as_ref().ok().and_then(|depths| depths.lanes.get(lane).as_ref());
    // The last whole step.
    let step = fleet.at.timestamp().div_euclid(STEP_SECONDS) - 1;
    LaneView {
        lane: lane.name(),
        queue: lane_queue(lane),
        state: fleet.state(lane).name(),
        paused: fleet.pauses.get(lane).as_ref().map(PauseView::of),
        depth: depth.map(|depth| depth.ready),
        retry_depth: depth.map(LaneDepth::retrying_in_all),
        retry_queues: depth.map(|depth| retry_views(lane, depth)).unwrap_or_default(),
        consumers: depth.map(|depth| depth.consumers),
        in_flight: figures.in_flight,
        rates: RatesView::of(&figures.rates),
        taken_age_ms: figures.taken_age_ms,
        latency: (lane == Lane::Fast).then(|| LatencyView::of(&figures.latency)),
        history: HistoryView {
            step_seconds: STEP_SECONDS,
            until: DateTime::from_timestamp((step + 1) * STEP_SECONDS, 0).unwrap_or(fleet.at),
            sent: figures.history.sent_until(step).to_vec(),
            troubled: figures.history.troubled_until(step).to_vec(),
        },
        daemons: fleet.daemons.iter().map(|daemon| ShareView::of(daemon, lane)).collect(),
    }
}

/// The daemons that are alive.
#[must_use]
pub(crate) fn daemons_view(fleet: &Fleet) -> DaemonsView {
    DaemonsView {
        items: fleet.daemons.iter().map(DaemonView::of).collect(),
        total: fleet.daemons.len(),
        total_is_exact: true,
        next: None,
        database_error: fleet.database_error.clone(),
    }
}

fn retry_views(lane: Lane, depth: &LaneDepth) -> Vec<RetryView> {
    let views = depth.retrying.iter().map(|(delay, ready)| RetryView {
        queue: retry_queue(lane, *delay),
        delay: delay_word(*delay),
        depth: *ready,
    });
    views.collect()
}

impl RatesView {
    fn of(rates: &Rates) -> Self {
        // A sum of rounded figures is none.
        let round = |rate: f64| (rate * 10.0).round() / 10.0;
        Self {
            taken: round(rates.taken),
            sent: round(rates.sent),
            deferred: round(rates.deferred),
            dead: round(rates.dead),
        }
    }
}

impl LatencyView {
    fn of(latency: &Latency) -> Self {
        let quantile = |part| latency.quantile_ms(part).map(|ms| (ms * 10.0).round() / 10.0);
        Self { mails: latency.mails(), p50_ms: quantile(0.5), p99_ms: quantile(0.99) }
    }
}

impl ShareView {
    fn of(daemon: &Daemon, lane: Lane) -> Self {
        let LaneReport { state, figures } = daemon.report.lane(lane);
        Self {
            daemon: daemon.id,
            state: state.clone(),
            in_flight: figures.in_flight,
            rates: RatesView::of(&figures.rates),
        }
    }
}

impl DaemonView {
    fn of(daemon: &Daemon) -> Self {
        let report = &daemon.report;
        let lane = |lane: Lane| {
            let LaneReport { state, figures } = report.lane(lane);
            DaemonLaneView {
                lane: lane.name(),
                state: state.clone(),
                in_flight: figures.in_flight,
                rates: RatesView::of(&figures.rates),
                taken_age_ms: figures.taken_age_ms,
            }
        };
        Self {
            id: daemon.id,
            is_this: daemon.is_this,
            host: report.host.clone(),
            version: report.version.clone(),
            started_at: daemon.started_at,
            reported_at: daemon.reported_at,
            database: report.database.clone(),
            lanes: Lane::ALL.into_iter().map(lane).collect(),
            relays: report.relays.iter().map(RelayView::of).collect(),
        }
    }
}

impl RelayView {
    fn of(relay: &RelayReport) -> Self {
        let RelayReport { name, state, fault } = relay.clone();
        Self { name, state, fault }
    }
}

// The description above says so.
const _: () = assert!(STEPS == 60);
