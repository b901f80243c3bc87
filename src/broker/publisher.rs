//! Confirmed publishing: a message counts as published only when the broker said so.
//!
//! Invariant: at most one unconfirmed message a channel. With more, lapin may attach a returned message to the wrong
//! confirmation, and a message that no queue took would count as published.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::sync::{Mutex, Semaphore};

use super::{BrokerError, Link, Topology};

/// How long the broker may take to confirm. A blocked broker (memory or disk alarm) exceeds it.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a channel is looked at over which an answer is awaited.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// An answer, for as long as its channel lives: lapin can leave one open for ever that was asked for in the very moment in
/// which the connection died.
///
/// # Errors
/// What was answered, or that the channel is gone.
pub(super) async fn answered<T>(
    channel: &Channel,
    asking: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    tokio::pin!(asking);
    loop {
        match tokio::time::timeout(LOOK_EVERY, &mut asking).await {
            Ok(answer) => return Ok(answer?),
            Err(_) if channel.status().connected() => {}
            Err(_) => return Err(BrokerError::Unreachable("the channel died before the broker answered".to_owned())),
        }
    }
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Empty: the default exchange, whose routing key is the name of a queue.
    pub exchange: String,
    /// Where to.
    pub routing_key: String,
    /// Properties and headers.
    pub properties: BasicProperties,
    /// The content.
    pub body: Bytes,
}

/// A few channels over one connection, each with at most one message under way.
pub struct Publisher {
    link: Arc<Link>,
    idle: Mutex<Vec<Channel>>,
    slots: Semaphore,
}

impl Publisher {
    /// A publisher with this many channels at most.
    #[must_use]
    pub fn new(link: Arc<Link>, channels_max: usize) -> Self {
        Self { link, idle: Mutex::new(Vec::new()), slots: Semaphore::new(channels_max.max(1)) }
    }

    /// Publishes and waits until the broker has taken the message over.
    ///
    /// # Errors
    /// When the broker is away, refuses the message, has no queue for it, or does not answer in time. In the last case
    /// it may have taken it all the same: publishing again can make a second copy.
    pub async fn publish(&self, message: &Outgoing) -> Result<(), BrokerError> {
        // The semaphore is never closed, so acquiring fails only if that changes.
        let _slot = self.slots.acquire().await.map_err(|_| BrokerError::NotTaken("the publisher is closed".into()))?;
        match tokio::time::timeout(CONFIRM_TIMEOUT, self.publish_once(message)).await {
            Ok(result) => result,
            Err(_) => Err(BrokerError::TimedOut { limit: CONFIRM_TIMEOUT, doing: "publishing" }),
        }
    }

    async fn publish_once(&self, message: &Outgoing) -> Result<(), BrokerError> {
        let channel = self.channel().await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publishing = async {
            let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
            channel.basic_publish(exchange, key, options, &message.body, message.properties.clone()).await?.await
        };
        let confirmation = answered(&channel, publishing).await?;
        match confirmation {
            Confirmation::Ack(None) => {
                // Only a channel whose last message was confirmed in full is used again.
                self.idle.lock().await.push(channel);
                Ok(())
            }
            Confirmation::Ack(Some(returned)) => {
                Err(BrokerError::Unroutable(format!("{} {}", returned.reply_code, returned.reply_text)))
            }
            Confirmation::Nack(_) => Err(BrokerError::NotTaken("refused: the queue is full or failing".to_owned())),
            Confirmation::NotRequested => Err(BrokerError::NotTaken("the channel does not confirm".to_owned())),
        }
    }

    /// Declares again what a message could not be published for want of.
    ///
    /// # Errors
    /// When the broker is away, or what is there does not fit the settings.
    pub async fn restore(
        &self,
        topology: &Topology,
        message: &Outgoing,
        error: &BrokerError,
    ) -> Result<(), BrokerError> {
        let connection = self.link.get().await;
        match (error, message.exchange.as_str()) {
            (BrokerError::Unroutable(_), "") => topology.restore_queue(&connection, &message.routing_key).await,
            // Our fanout exchanges are called as their queues are.
            (BrokerError::Unroutable(_), exchange) => topology.restore_queue(&connection, exchange).await,
            _ => topology.establish(&connection).await,
        }
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        loop {
            let idle = self.idle.lock().await.pop();
            match idle {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => break,
            }
        }
        let channel = self.link.get().await.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }
}
