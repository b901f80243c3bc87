//! Consumers: one channel each, subscribed for as long as the daemon runs.
//!
//! A stream that ends, an error on it, and a channel that is gone all mean the same: what we hold is no longer ours, and
//! it is time to subscribe again.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::sync::{Mutex, watch};
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{BrokerError, Delivery, Link, Topology};
use crate::email::Lane;

/// Longest pause before subscribing again.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether a queue is being consumed, for readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerState {
    /// Not subscribed yet.
    Starting,
    /// Deliveries come in.
    Consuming,
    /// Subscribing again; the words say why.
    Lost(String),
    /// Taking no more: the daemon stops.
    Stopped,
}

/// What a consumer takes from.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The queue.
    pub queue: String,
    /// The lane that deliveries are said to come from.
    pub lane: Lane,
    /// Deliveries held unacknowledged at most.
    pub prefetch: u16,
}

/// Makes consumers over one connection.
pub struct Consumers {
    link: Arc<Link>,
    topology: Topology,
    /// The connection on which the topology was established last.
    established: Mutex<Weak<Connection>>,
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
        subscription: Subscription,
        state: watch::Sender<ConsumerState>,
        stop: CancellationToken,
        handle: F,
    ) where
        F: Fn(Delivery) -> Fut + Send,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let tasks = TaskTracker::new();
        let fresh_pauses = || ExponentialBackoff::from_millis(2).factor(50).max_delay(PAUSE_MAX).map(jitter);
        let mut pauses = fresh_pauses();
        // The last channel is kept until its tasks have settled: dropping it would close it under them.
        let mut last_channel = None;
        while !stop.is_cancelled() {
            let subscribed = tokio::select! {
                () = stop.cancelled() => break,
                subscribed = self.subscribe(&subscription) => subscribed,
            };
            let lost = match subscribed {
                Ok((channel, consumer)) => {
                    state.send_replace(ConsumerState::Consuming);
                    tracing::info!(queue = subscription.queue, prefetch = subscription.prefetch, "consuming");
                    pauses = fresh_pauses();
                    let lost = pump(&channel, consumer, subscription.lane, &stop, &tasks, &handle).await;
                    last_channel = Some(channel);
                    lost
                }
                Err(error) => Some(error.to_string()),
            };
            let Some(why) = lost else { break };
            tracing::warn!(queue = subscription.queue, error = why, "lost the consumer");
            state.send_replace(ConsumerState::Lost(why));
            let pause = pauses.next().unwrap_or(PAUSE_MAX);
            tokio::select! { () = stop.cancelled() => break, () = tokio::time::sleep(pause) => {} }
        }
        state.send_replace(ConsumerState::Stopped);
        tasks.close();
        tasks.wait().await;
        drop(last_channel);
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<(Channel, Consumer), BrokerError> {
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
        let consumer = channel
            .basic_consume(
                subscription.queue.as_str().into(),
                // The broker makes up a tag.
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
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
}

/// Takes deliveries until the stream ends (the reason why) or `stop` (nothing).
async fn pump<F, Fut>(
    channel: &Channel,
    mut consumer: Consumer,
    lane: Lane,
    stop: &CancellationToken,
    tasks: &TaskTracker,
    handle: &F,
) -> Option<String>
where
    F: Fn(Delivery) -> Fut + Send,
    Fut: Future<Output = ()> + Send + 'static,
{
    let gone = CancellationToken::new();
    let lost = gone.clone().drop_guard();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = consumer.next() => next,
        };
        match next {
            Some(Ok(delivery)) => {
                tasks.spawn(handle(Delivery::new(lane, delivery, gone.clone())));
            }
            Some(Err(error)) => return Some(error.to_string()),
            None => return Some("the broker cancelled the consumer (was its queue deleted?)".to_owned()),
        }
    }
    // An orderly stop: what has begun goes on, and its acknowledgement still counts.
    let gone = lost.disarm();
    if let Err(error) = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await {
        tracing::debug!(%error, "could not cancel the consumer; the broker hands its messages to others");
        return None;
    }
    // What the broker had sent already and nobody has started: back to the queue at once, in its old place.
    while let Some(Ok(delivery)) = consumer.next().await {
        if let Err(error) = Delivery::new(lane, delivery, gone.clone()).requeue().await {
            tracing::debug!(%error, "could not hand a message back; the broker does so itself");
        }
    }
    None
}
