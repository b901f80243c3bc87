//! Consumers: one channel each, subscribed for as long as the daemon runs and nobody has paused them.
//!
//! A stream that ends, an error on it, a channel that is gone, and a broker that no longer knows our consumer all mean the
//! same: what we hold is no longer ours, and it is time to subscribe again.
//! Invariant: a paused consumer is cancelled and holds nothing but what is being finished.
//! Invariant: what is being worked on is bounded in bytes (`window`); a consumer that must hold more or less than it
//! subscribed for does so anew, over the same channel, and finishes what it has begun.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    BrokerError, Delivery, Link, Topology,
    acks::Acks,
    held::{Held, Pulse},
    publisher::{LOOK_EVERY, answered},
    watchdog,
    window::Window,
};
use crate::email::Lane;

/// Longest pause before subscribing again.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long the broker may take to give or take back a subscription, connecting to it included.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Whether a queue is being consumed, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerState {
    /// Not subscribed yet.
    Starting,
    /// Deliveries come in.
    Consuming,
    /// Cancelled on purpose; the words say why.
    Paused(String),
    /// Subscribing again; the words say why.
    Lost(String),
    /// Taking no more: the daemon stops.
    Stopped,
}

impl ConsumerState {
    /// All names.
    pub const NAMES: [&str; 5] = ["starting", "consuming", "paused", "lost", "stopped"];

    /// `starting`, `consuming`, `paused`, `lost` or `stopped`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Consuming => "consuming",
            Self::Paused(_) => "paused",
            Self::Lost(_) => "lost",
            Self::Stopped => "stopped",
        }
    }
}

/// Why a queue shall not be consumed at the moment; nothing: it shall.
pub type Pause = watch::Receiver<Option<String>>;

/// What a consumer takes from.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The queue.
    pub queue: String,
    /// The lane that deliveries are said to come from.
    pub lane: Lane,
    /// Deliveries that a subscription holds unacknowledged at most; fewer while they are large.
    pub prefetch: u16,
    /// Whether it shall be consumed.
    pub pause: Pause,
}

/// Makes consumers over one connection.
pub struct Consumers {
    link: Arc<Link>,
    topology: Topology,
    /// The connection on which the topology was established last.
    established: Mutex<Weak<Connection>>,
}

/// A channel to consume over, and everything that lives and dies with it.
struct Line {
    channel: Channel,
    acks: Acks,
    /// Cancelled when what was taken over it is not ours any more.
    gone: CancellationToken,
    _gone: DropGuard,
}

/// What all subscriptions of one consumer have in common.
struct Work<'a, F> {
    handle: &'a F,
    stop: &'a CancellationToken,
    tasks: TaskTracker,
    held: Arc<Held>,
}

/// How a subscription ended.
enum End {
    Stopped,
    Paused,
    /// It is to go on with another window.
    Resized,
    Lost(String),
}

impl Consumers {
    /// Consumers over this connection; the topology is established on it before the first subscription.
    #[must_use]
    pub fn new(link: Arc<Link>, topology: Topology) -> Arc<Self> {
        Arc::new(Self { link, topology, established: Mutex::new(Weak::new()) })
    }

    /// Consumes until `stop`, then hands back what was not started, waits for what was, and returns.
    ///
    /// Every delivery runs in a task of its own.
    pub async fn run<F, Fut>(
        self: Arc<Self>,
        mut subscription: Subscription,
        state: watch::Sender<ConsumerState>,
        stop: CancellationToken,
        handle: F,
    ) where
        F: Fn(Delivery) -> Fut + Send + Sync,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let work = Work { handle: &handle, stop: &stop, tasks: TaskTracker::new(), held: Arc::default() };
        let fresh_pauses = || ExponentialBackoff::from_millis(2).factor(50).max_delay(PAUSE_MAX).map(jitter);
        let mut pauses = fresh_pauses();
        let mut window = Window::new(subscription.prefetch);
        // The last line is kept until its tasks have settled: dropping it would close the channel under them.
        let mut line: Option<Line> = None;
        while !stop.is_cancelled() {
            let paused = subscription.pause.borrow_and_update().clone();
            if let Some(why) = paused {
                tracing::info!(queue = subscription.queue, why, "paused");
                state.send_replace(ConsumerState::Paused(why));
                tokio::select! {
                    () = stop.cancelled() => break,
                    // Over, or for another reason. Whoever could end the pause is gone, and so will we be.
                    changed = subscription.pause.changed() => if changed.is_err() { break },
                }
                continue;
            }
            let subscribed = tokio::select! {
                () = stop.cancelled() => break,
                subscribed = timeout(ANSWER_MAX, self.subscribe(&subscription, window.now(), line.take())) => subscribed
                    .unwrap_or(Err(BrokerError::TimedOut { limit: ANSWER_MAX, doing: "subscribing" })),
            };
            let end = match subscribed {
                Ok((fresh, consumer)) => {
                    state.send_replace(ConsumerState::Consuming);
                    tracing::info!(queue = subscription.queue, prefetch = window.now(), "consuming");
                    pauses = fresh_pauses();
                    let fresh = line.insert(fresh);
                    self.pump(fresh, consumer, &subscription, &mut window, &work).await
                }
                Err(error) => End::Lost(error.to_string()),
            };
            let why = match end {
                End::Stopped => break,
                End::Paused | End::Resized => continue,
                End::Lost(why) => why,
            };
            tracing::warn!(queue = subscription.queue, error = why, "lost the consumer");
            state.send_replace(ConsumerState::Lost(why));
            if let Some(line) = &line {
                line.gone.cancel();
            }
            let pause = pauses.next().unwrap_or(PAUSE_MAX);
            tokio::select! { () = stop.cancelled() => break, () = tokio::time::sleep(pause) => {} }
            // What was taken over it is not ours any more.
            line = None;
        }
        state.send_replace(ConsumerState::Stopped);
        work.tasks.close();
        work.tasks.wait().await;
        drop(line);
    }

    /// `kept`: the line of a subscription that was paused or resized, over which deliveries may still be settled.
    async fn subscribe(
        &self,
        subscription: &Subscription,
        window: u16,
        kept: Option<Line>,
    ) -> Result<(Line, Consumer), BrokerError> {
        if let Some(line) = kept.filter(|line| line.channel.status().connected())
            && let Ok(consumer) = consume(&line, &subscription.queue, window).await
        {
            return Ok((line, consumer));
        }
        let connection = self.link.get().await;
        match self.subscribe_on(&connection, subscription, window).await {
            // The queue was deleted since: declare it again and try once more.
            Err(error) if error.is_missing_object() => {
                self.topology.restore_queue(&connection, &subscription.queue).await?;
                self.subscribe_on(&connection, subscription, window).await
            }
            other => other,
        }
    }

    async fn subscribe_on(
        &self,
        connection: &Arc<Connection>,
        subscription: &Subscription,
        window: u16,
    ) -> Result<(Line, Consumer), BrokerError> {
        self.establish(connection).await?;
        let gone = CancellationToken::new();
        let channel = connection.create_channel().await?;
        let line = Line { channel, acks: Acks::start(), gone: gone.clone(), _gone: gone.drop_guard() };
        let consumer = consume(&line, &subscription.queue, window).await?;
        Ok((line, consumer))
    }

    async fn establish(&self, connection: &Arc<Connection>) -> Result<(), BrokerError> {
        let mut established = self.established.lock().await;
        if established.upgrade().is_some_and(|last| Arc::ptr_eq(&last, connection)) {
            return Ok(());
        }
        self.topology.establish(connection).await?;
        *established = Arc::downgrade(connection);
        Ok(())
    }

    /// Takes deliveries until the stream ends, the watchdog barks, somebody pauses it, the window is to change, or `stop`.
    async fn pump<F, Fut>(
        &self,
        line: &Line,
        mut consumer: Consumer,
        subscription: &Subscription,
        window: &mut Window,
        work: &Work<'_, F>,
    ) -> End
    where
        F: Fn(Delivery) -> Fut + Send + Sync,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let pulse = Arc::new(Pulse::default());
        let mut pause = subscription.pause.clone();
        let watching = watchdog::watch(&self.link, &line.channel, &subscription.queue, &pulse);
        tokio::pin!(watching);
        let (end, in_hand) = loop {
            let next = tokio::select! {
                biased;
                () = work.stop.cancelled() => break (End::Stopped, None),
                _ = pause.wait_for(Option::is_some) => break (End::Paused, None),
                why = &mut watching => return End::Lost(why),
                next = consumer.next() => next,
            };
            let delivery = match next {
                Some(Ok(delivery)) => line.delivery(subscription.lane, delivery),
                Some(Err(error)) => return End::Lost(error.to_string()),
                None => return End::Lost("the broker cancelled the consumer (was its queue deleted?)".to_owned()),
            };
            pulse.taken.fetch_add(1, Ordering::Relaxed);
            if window.observe(delivery.body.len()) {
                break (End::Resized, Some(delivery));
            }
            tokio::select! {
                biased;
                () = work.stop.cancelled() => break (End::Stopped, Some(delivery)),
                _ = pause.wait_for(Option::is_some) => break (End::Paused, Some(delivery)),
                why = &mut watching => return End::Lost(why),
                () = work.held.room(delivery.body.len()) => work.begin(&pulse, delivery),
            }
        };
        // An orderly end: what has begun goes on, and its acknowledgement still counts.
        let is_resized = matches!(end, End::Resized);
        // Nothing is begun that the daemon may not finish, or has no room for.
        let unbegun = |delivery: Delivery| {
            if !is_resized || work.stop.is_cancelled() || !work.held.has_room(delivery.body.len()) {
                return Some(delivery);
            }
            work.begin(&pulse, delivery);
            None
        };
        hand_back(in_hand.and_then(unbegun)).await;
        match line.cancel(consumer, subscription.lane, unbegun).await {
            Ok(()) => end,
            Err(why) if is_resized => End::Lost(why),
            Err(why) => {
                tracing::debug!(why, "could not cancel the consumer; the broker hands its messages to others");
                end
            }
        }
    }
}

impl Line {
    fn delivery(&self, lane: Lane, delivery: lapin::message::Delivery) -> Delivery {
        Delivery::new(lane, delivery, self.gone.clone(), self.acks.clone())
    }

    /// Cancels a consumer. What the broker had sent already comes before its answer, which may be a whole window of large
    /// messages: each is begun or handed back as it comes, not after all have piled up.
    async fn cancel(
        &self,
        mut consumer: Consumer,
        lane: Lane,
        unbegun: impl Fn(Delivery) -> Option<Delivery>,
    ) -> Result<(), String> {
        let cancelling = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        tokio::pin!(cancelling);
        let mut is_answered = false;
        let mut patience = ANSWER_MAX;
        loop {
            let step = async {
                tokio::select! {
                    answer = &mut cancelling, if !is_answered => Err(answer),
                    next = consumer.next() => Ok(next),
                }
            };
            let step = match timeout(LOOK_EVERY, step).await {
                Ok(step) => step,
                Err(_) if !self.channel.status().connected() => return Err("the channel died".to_owned()),
                Err(_) => {
                    patience = patience.saturating_sub(LOOK_EVERY);
                    if patience.is_zero() { break } else { continue }
                }
            };
            patience = ANSWER_MAX;
            match step {
                Ok(Some(Ok(delivery))) => hand_back(unbegun(self.delivery(lane, delivery))).await,
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(None) if is_answered => return Ok(()),
                Ok(None) => match timeout(ANSWER_MAX, answered(&self.channel, &mut cancelling)).await {
                    Ok(answer) => return answer.map_err(|error| error.to_string()),
                    Err(_) => break,
                },
                Err(Ok(())) => is_answered = true,
                Err(Err(error)) => return Err(error.to_string()),
            }
        }
        Err(format!("the broker did not cancel the consumer within {} s", ANSWER_MAX.as_secs()))
    }
}

impl<F, Fut> Work<'_, F>
where
    F: Fn(Delivery) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn begin(&self, pulse: &Arc<Pulse>, delivery: Delivery) {
        let at_work = self.held.begin(pulse, delivery.body.len());
        // Boxed, or the task would hold it twice: as what it was given, and as what it waits for.
        let work = Box::pin((self.handle)(delivery));
        self.tasks.spawn(async move {
            let _at_work = at_work;
            work.await;
        });
    }
}

/// What nobody has begun: back to the queue at once, in its old place.
async fn hand_back(delivery: Option<Delivery>) {
    if let Some(delivery) = delivery
        && let Err(error) = delivery.requeue().await
    {
        tracing::debug!(%error, "could not hand a message back; the broker does so itself");
    }
}

/// The broker makes up a tag. Without a prefetch it sends everything it has, into our memory.
async fn consume(line: &Line, queue: &str, window: u16) -> Result<Consumer, BrokerError> {
    line.acks.set_window(window);
    line.channel.basic_qos(window, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    Ok(line.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?)
}
