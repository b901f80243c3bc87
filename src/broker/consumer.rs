//! Consumers: one channel each, subscribed for as long as the daemon runs and nobody has paused them.
//!
//! A stream that ends, an error on it, a channel that is gone, and a broker that no longer knows our consumer all mean the
//! same: what we hold is no longer ours, and it is time to subscribe again.
//! Invariant: a paused consumer is cancelled and holds nothing but what is being finished.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
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
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{BrokerError, Delivery, Link, Topology, watchdog};
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

/// Why a queue shall not be consumed at the moment; nothing: it shall.
pub type Pause = watch::Receiver<Option<String>>;

/// What a consumer takes from.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The queue.
    pub queue: String,
    /// The lane that deliveries are said to come from.
    pub lane: Lane,
    /// Deliveries held unacknowledged at most.
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

/// What a consumer's deliveries have come to, for the watchdog.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Deliveries so far.
    pub(super) taken: AtomicU64,
    /// Those being worked on.
    pub(super) at_work: AtomicUsize,
}

/// How a subscription ended.
enum End {
    Stopped,
    Paused,
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
    /// Every delivery runs in a task of its own; there are never more than `prefetch` of them.
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
        let tasks = TaskTracker::new();
        let fresh_pauses = || ExponentialBackoff::from_millis(2).factor(50).max_delay(PAUSE_MAX).map(jitter);
        let mut pauses = fresh_pauses();
        // The last channel is kept until its tasks have settled: dropping it would close it under them.
        let mut channel: Option<Channel> = None;
        while !stop.is_cancelled() {
            let paused = subscription.pause.borrow_and_update().clone();
            if let Some(why) = paused {
                tracing::info!(queue = subscription.queue, why, "paused");
                state.send_replace(ConsumerState::Paused(why));
                tokio::select! {
                    () = stop.cancelled() => break,
                    // Whoever could end the pause is gone, and so will we be.
                    resumed = subscription.pause.wait_for(Option::is_none) => if resumed.is_err() { break },
                }
                continue;
            }
            let subscribed = tokio::select! {
                () = stop.cancelled() => break,
                subscribed = timeout(ANSWER_MAX, self.subscribe(&subscription, channel.take())) => subscribed
                    .unwrap_or(Err(BrokerError::TimedOut { limit: ANSWER_MAX, doing: "subscribing" })),
            };
            let end = match subscribed {
                Ok((fresh, consumer)) => {
                    state.send_replace(ConsumerState::Consuming);
                    tracing::info!(queue = subscription.queue, prefetch = subscription.prefetch, "consuming");
                    pauses = fresh_pauses();
                    let end = self.pump(&fresh, consumer, &subscription, &stop, &tasks, &handle).await;
                    channel = Some(fresh);
                    end
                }
                Err(error) => End::Lost(error.to_string()),
            };
            let why = match end {
                End::Stopped => break,
                End::Paused => continue,
                End::Lost(why) => why,
            };
            tracing::warn!(queue = subscription.queue, error = why, "lost the consumer");
            state.send_replace(ConsumerState::Lost(why));
            let pause = pauses.next().unwrap_or(PAUSE_MAX);
            tokio::select! { () = stop.cancelled() => break, () = tokio::time::sleep(pause) => {} }
            // What was taken over it is not ours any more.
            channel = None;
        }
        state.send_replace(ConsumerState::Stopped);
        tasks.close();
        tasks.wait().await;
        drop(channel);
    }

    /// `kept`: the channel of a subscription that was paused, over which deliveries may still be settled.
    async fn subscribe(
        &self,
        subscription: &Subscription,
        kept: Option<Channel>,
    ) -> Result<(Channel, Consumer), BrokerError> {
        if let Some(channel) = kept.filter(|channel| channel.status().connected())
            && let Ok(consumer) = consume(&channel, &subscription.queue).await
        {
            return Ok((channel, consumer));
        }
        let connection = self.link.get().await;
        match self.subscribe_on(&connection, subscription).await {
            // The queue was deleted since: declare it again and try once more.
            Err(error) if error.is_missing_object() => {
                self.topology.restore_queue(&connection, &subscription.queue).await?;
                self.subscribe_on(&connection, subscription).await
            }
            other => other,
        }
    }

    async fn subscribe_on(
        &self,
        connection: &Arc<Connection>,
        subscription: &Subscription,
    ) -> Result<(Channel, Consumer), BrokerError> {
        self.establish(connection).await?;
        let channel = connection.create_channel().await?;
        // Without a prefetch the broker sends everything it has, into our memory.
        channel.basic_qos(subscription.prefetch.max(1), BasicQosOptions::default()).await?;
        let consumer = consume(&channel, &subscription.queue).await?;
        Ok((channel, consumer))
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

    /// Takes deliveries until the stream ends, the watchdog barks, somebody pauses it, or `stop`.
    async fn pump<F, Fut>(
        &self,
        channel: &Channel,
        mut consumer: Consumer,
        subscription: &Subscription,
        stop: &CancellationToken,
        tasks: &TaskTracker,
        handle: &F,
    ) -> End
    where
        F: Fn(Delivery) -> Fut + Send + Sync,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let lane = subscription.lane;
        let gone = CancellationToken::new();
        let lost = gone.clone().drop_guard();
        let pulse = Arc::new(Pulse::default());
        let mut pause = subscription.pause.clone();
        let watching = watchdog::watch(&self.link, channel, &subscription.queue, &pulse);
        tokio::pin!(watching);
        let end = loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => break End::Stopped,
                _ = pause.wait_for(Option::is_some) => break End::Paused,
                why = &mut watching => return End::Lost(why),
                next = consumer.next() => next,
            };
            match next {
                Some(Ok(delivery)) => {
                    pulse.taken.fetch_add(1, Ordering::Relaxed);
                    pulse.at_work.fetch_add(1, Ordering::Relaxed);
                    let work = handle(Delivery::new(lane, delivery, gone.clone()));
                    let at_work = AtWork(Arc::clone(&pulse));
                    tasks.spawn(async move {
                        let _at_work = at_work;
                        work.await;
                    });
                }
                Some(Err(error)) => return End::Lost(error.to_string()),
                None => return End::Lost("the broker cancelled the consumer (was its queue deleted?)".to_owned()),
            }
        };
        // An orderly end: what has begun goes on, and its acknowledgement still counts.
        let gone = lost.disarm();
        let cancelling = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        match timeout(ANSWER_MAX, cancelling).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "could not cancel the consumer; the broker hands its messages to others");
                return end;
            }
            Err(_) => return end,
        }
        // What the broker had sent already and nobody has started: back to the queue at once, in its old place.
        while let Some(Ok(delivery)) = consumer.next().await {
            if let Err(error) = Delivery::new(lane, delivery, gone.clone()).requeue().await {
                tracing::debug!(%error, "could not hand a message back; the broker does so itself");
            }
        }
        end
    }
}

/// One delivery being worked on.
struct AtWork(Arc<Pulse>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer, BrokerError> {
    // The broker makes up a tag.
    Ok(channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?)
}
