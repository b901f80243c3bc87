//! Draws messages from a queue a few at a time, for work that must see its end: the journal.
//!
//! Invariant: what was drawn and not acknowledged goes back to the queue when its channel is closed, and each draw has its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use lapin::{
    Acker, Channel,
    options::{BasicAckOptions, BasicGetOptions},
    types::{AMQPValue, FieldTable},
};

use super::{BrokerError, Link, Topology, count::count};

/// A draw ends when it holds this much, whatever the number of messages.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Channels of one draw: a queue that is replicated writes down who has a message before it gives it away, and a channel asks for
/// one at a time. When all of them get a large one, a draw holds that many more than its bytes.
const HANDS_MAX: usize = 4;
/// A draw asks for no more when it has taken this long: what came is better than what comes.
const ASKING_MAX: Duration = Duration::from_secs(3);
/// Fewer messages than this are not worth a channel.
const PER_HAND: usize = 4;

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

    /// Draws at most this many, and fewer if they are large or slow to come; in no particular order.
    ///
    /// # Errors
    /// When the broker goes away; what was drawn goes back.
    pub async fn draw(&self, queue: &str, most: usize) -> Result<Vec<Drawn>, BrokerError> {
        let taken =
            Taken { until: Instant::now() + ASKING_MAX, messages: AtomicUsize::new(0), bytes: AtomicUsize::new(0) };
        let hands = HANDS_MAX.min(most.div_ceil(PER_HAND));
        let drawn = try_join_all((0..hands).map(|_| self.draw_with_one(queue, most, &taken))).await?;
        Ok(drawn.into_iter().flatten().collect())
    }

    /// Over a channel of its own, one by one, until there is nothing left.
    async fn draw_with_one(&self, queue: &str, most: usize, taken: &Taken) -> Result<Vec<Drawn>, BrokerError> {
        let channel = Arc::new(self.link.get().await.create_channel().await?);
        let mut drawn = Vec::new();
        // Each asks once, however long a channel took: a draw that brings nothing says that there is nothing.
        while (drawn.is_empty() || taken.may_go_on()) && taken.messages.fetch_add(1, Ordering::Relaxed) < most {
            let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await? else { break };
            let delivery = got.delivery;
            taken.bytes.fetch_add(delivery.data.len(), Ordering::Relaxed);
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

/// How far a draw is.
struct Taken {
    until: Instant,
    /// Messages that were asked for.
    messages: AtomicUsize,
    /// What those that came hold.
    bytes: AtomicUsize,
}

impl Taken {
    fn may_go_on(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < BYTES_MAX && Instant::now() < self.until
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
