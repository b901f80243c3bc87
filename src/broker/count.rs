//! A queue's messages and consumers, as the broker counts them: a passive `queue.declare`.

use lapin::{Channel, options::QueueDeclareOptions, types::FieldTable};

use super::BrokerError;

/// A queue as the broker counts it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count {
    pub(super) ready: u32,
    pub(super) consumers: u32,
}

/// Counts a queue's messages and consumers. A refusal closes the channel.
pub(super) async fn count(channel: &Channel, queue: &str) -> Result<Count, BrokerError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(Count { ready: found.message_count(), consumers: found.consumer_count() })
}
