//! Somebody who listens to all events: a consumer in the benchmark's own process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
};
use postrider::broker::topology;
use tokio::task::JoinHandle;

/// After the daemons have ended, what they published last may still be on its way.
const LAST_LIMIT: Duration = Duration::from_secs(10);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A queue bound to everything, emptied as it fills.
pub(crate) struct Subscriber {
    // Held, because the queue goes with it.
    connection: Connection,
    heard: Arc<AtomicU64>,
    listening: JoinHandle<()>,
}

impl Subscriber {
    /// Listens from now on.
    pub(crate) async fn start(amqp_url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), exclusive, Default::default()).await?.name().clone();
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.clone(), topology::EVENTS.into(), "#".into(), options, Default::default()).await?;
        // The broker counts a message as consumed once it is written: the cheapest way there is.
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut deliveries = channel.basic_consume(queue, "".into(), options, Default::default()).await?;
        let heard = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&heard);
        let listening = tokio::spawn(async move {
            while let Some(Ok(_)) = deliveries.next().await {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { connection, heard, listening })
    }

    /// An error unless it hears of exactly this many mails.
    pub(crate) async fn end(self, mails: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.heard.load(Ordering::Relaxed) < mails && begun.elapsed() < LAST_LIMIT {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        let heard = self.heard.load(Ordering::Relaxed);
        self.listening.abort();
        self.connection.close(200, "heard".into()).await?;
        ensure!(heard == mails, "{mails} mails, {heard} events");
        Ok(())
    }
}
