//! Draws messages from a queue a few at a time, for work that must see its end: the journal.
//!
//! Invariant: what was drawn and not acknowledged goes back to the queue when its channel is closed, and each draw has its own.

use std::sync::Arc;

use bytes::Bytes;
use lapin::{
    Acker, Channel,
    options::{BasicAckOptions, BasicGetOptions},
    types::{AMQPValue, FieldTable},
};

use super::{BrokerError, Link, Topology, count::count};

/// A draw ends when it holds this much, whatever the number of messages.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// Takes from a queue by hand (`basic.get`).
pub struct Drawer {
    link: Arc<Link>,
    topology: Topology,
}

/// One message that was drawn.
pub struct Drawn {
    /// The content.
    pub body: Bytes,
    headers: FieldTable,
    acker: Acker,
    /// The channel must live until the last message drawn over it is settled.
    _channel: Arc<Channel>,
}

impl Drawer {
    /// Draws over this connection, which must not be one that publishes.
    #[must_use]
    pub const fn new(link: Arc<Link>, topology: Topology) -> Self {
        Self { link, topology }
    }

    /// How many messages of a queue nobody holds.
    ///
    /// # Errors
    /// When the broker is away, or the queue cannot be declared.
    pub async fn depth(&self, queue: &str) -> Result<u32, BrokerError> {
        let look = async || {
            let channel = self.link.get().await.create_channel().await?;
            let counted = count(&channel, queue).await;
            drop(channel.close(200, "seen".into()).await);
            counted
        };
        match look().await {
            Err(error) if error.is_missing_object() => {
                self.topology.restore_queue(&*self.link.get().await, queue).await?;
                Ok(look().await?.ready)
            }
            counted => Ok(counted?.ready),
        }
    }

    /// Draws at most this many, and fewer if they are large.
    ///
    /// # Errors
    /// When the broker goes away; what was drawn goes back.
    pub async fn draw(&self, queue: &str, most: usize) -> Result<Vec<Drawn>, BrokerError> {
        let channel = Arc::new(self.link.get().await.create_channel().await?);
        let (mut drawn, mut bytes) = (Vec::new(), 0);
        while drawn.len() < most && bytes < BYTES_MAX {
            let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await? else { break };
            let delivery = got.delivery;
            bytes += delivery.data.len();
            drawn.push(Drawn {
                body: Bytes::from(delivery.data),
                headers: delivery.properties.headers().clone().unwrap_or_default(),
                acker: delivery.acker,
                _channel: Arc::clone(&channel),
            });
        }
        Ok(drawn)
    }
}

impl Drawn {
    /// Whether a header says yes.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.headers.inner().get(name), Some(AMQPValue::Boolean(true)))
    }

    /// Tells the broker that it is dealt with.
    ///
    /// # Errors
    /// When the broker was not told: it comes again.
    pub async fn ack(self) -> Result<(), BrokerError> {
        match self.acker.ack(BasicAckOptions::default()).await? {
            true => Ok(()),
            false => Err(BrokerError::NotTaken("the channel is gone".to_owned())),
        }
    }
}
