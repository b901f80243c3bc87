//! How much waits, as the broker counts it: asked when somebody looks, and not more often than once a second.
//!
//! Invariant: looking takes nothing out of a queue and declares none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lapin::{Channel, Connection};
use tokio::sync::Mutex;

use super::{
    BrokerError, Link, Topology,
    count::{self, Count},
    link::LinkState,
    topology,
};
use crate::email::{Lane, PerLane};

/// For so long an answer is good enough for whoever else asks.
const FRESH: Duration = Duration::from_secs(1);
/// How long the broker may take to count everything.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// What waits.
#[derive(Debug, Clone)]
pub struct Depths {
    /// In each lane; nothing: its queue is not there.
    pub lanes: PerLane<Option<LaneDepth>>,
    /// Failures that no archivist has moved yet; nothing: there is no such queue.
    pub dead: Option<u32>,
    /// Likewise what no binding matched.
    pub unrouted: Option<u32>,
}

/// What waits in one lane.
#[derive(Debug, Clone)]
pub struct LaneDepth {
    /// Messages that nobody holds.
    pub ready: u32,
    /// Consumers, of all daemons and of anybody else.
    pub consumers: u32,
    /// Copies that wait for their next try, by the ladder's rungs.
    pub retrying: Vec<(Duration, u32)>,
}

impl LaneDepth {
    /// Copies on all rungs.
    #[must_use]
    pub fn retrying_in_all(&self) -> u32 {
        self.retrying.iter().fold(0, |sum, (_, ready)| sum.saturating_add(*ready))
    }
}

/// What waits, or in words why it cannot be told.
pub type Answer = Result<Arc<Depths>, String>;

/// Asks for everybody who looks.
pub struct DepthGauge {
    link: Arc<Link>,
    topology: Topology,
    last: Mutex<Option<(Instant, Answer)>>,
}

impl DepthGauge {
    /// Asks over this connection, which must not be one that publishes: that may be blocked.
    #[must_use]
    pub fn new(link: Arc<Link>, topology: Topology) -> Self {
        Self { link, topology, last: Mutex::new(None) }
    }

    /// What waits now, or did within the last second. The error says in words why it cannot be told.
    ///
    /// # Errors
    /// When the broker is away, or does not answer in time.
    pub async fn now(&self) -> Answer {
        // Who comes while somebody asks waits for that answer.
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = self.ask().await.map(Arc::new);
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn ask(&self) -> Result<Depths, String> {
        // A connection that is being made is not waited for: whoever needs it is at it.
        match self.link.state() {
            LinkState::Up => {}
            LinkState::Down(why) => return Err(why),
            LinkState::Untried => return Err("broker: not connected yet".to_owned()),
        }
        let asking = async { look(&*self.link.get().await, &self.topology).await };
        let answer = tokio::time::timeout(ANSWER_MAX, asking).await;
        answer
            .unwrap_or(Err(BrokerError::TimedOut { limit: ANSWER_MAX, doing: "counting what waits" }))
            .map_err(|error| error.to_string())
    }
}

/// Counts what waits.
///
/// # Errors
/// When the broker goes away.
pub async fn look(connection: &Connection, topology: &Topology) -> Result<Depths, BrokerError> {
    let mut counter = Counter { connection, channel: None };
    let mut lanes = PerLane::from_fn(|_| None);
    for lane in Lane::ALL {
        let Some(Count { ready, consumers }) = counter.count(&topology::lane_queue(lane)).await? else { continue };
        let mut retrying = Vec::new();
        for rung in topology.ladder(lane) {
            if let Some(count) = counter.count(&topology::retry_queue(lane, *rung)).await? {
                retrying.push((*rung, count.ready));
            }
        }
        *lanes.get_mut(lane) = Some(LaneDepth { ready, consumers, retrying });
    }
    let dead = counter.count(topology::DEAD).await?.map(|count| count.ready);
    let unrouted = counter.count(topology::UNROUTED).await?.map(|count| count.ready);
    if let Some(channel) = counter.channel {
        drop(channel.close(200, "seen".into()).await);
    }
    Ok(Depths { lanes, dead, unrouted })
}

/// Counts one queue after the other.
struct Counter<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl Counter<'_> {
    /// Nothing: there is no such queue.
    async fn count(&mut self, queue: &str) -> Result<Option<Count>, BrokerError> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.connection.create_channel().await?,
        };
        match count::count(&channel, queue).await {
            Ok(count) => {
                self.channel = Some(channel);
                Ok(Some(count))
            }
            // The refusal has closed the channel.
            Err(error) if error.is_missing_object() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
