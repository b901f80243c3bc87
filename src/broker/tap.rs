//! A look at what passes an exchange: a temporary queue of one's own.
//!
//! Invariant: it leaves nothing behind. The queue belongs to its connection, and goes with it.

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::{
    Connection, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::{BrokerError, Link, topology};

/// Messages on their way to whoever looks.
const PREFETCH: u16 = 200;
/// Messages that wait in the queue at most, while whoever looks is busy or asleep; then the oldest go.
const WAITING_MAX: i64 = 100_000;

/// A temporary queue, and what comes out of it.
pub struct Tap {
    connection: Connection,
    consumer: Consumer,
}

impl Tap {
    /// Binds a queue to an exchange with each of these keys.
    ///
    /// # Errors
    /// When the broker cannot be reached, or has no such exchange.
    pub async fn open(link: &Link, exchange: &str, keys: &[String]) -> Result<Self, BrokerError> {
        let connection = link.connect_once().await?;
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(WAITING_MAX));
        let queue = channel.queue_declare("".into(), options, arguments).await?.name().clone();
        for key in keys {
            channel
                .queue_bind(
                    queue.clone(),
                    exchange.into(),
                    key.as_str().into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
                .map_err(|error| topology::explain("exchange", exchange, error))?;
        }
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer =
            channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
        Ok(Self { connection, consumer })
    }

    /// The next message; waits for it.
    ///
    /// # Errors
    /// When the broker goes away: what passes from then on is not seen.
    pub async fn next(&mut self) -> Result<Bytes, BrokerError> {
        let delivery = self.consumer.next().await.transpose()?;
        let gone = || BrokerError::Unreachable("the connection was closed".to_owned());
        let delivery = delivery.ok_or_else(gone)?;
        delivery.acker.ack(BasicAckOptions::default()).await?;
        Ok(delivery.data.into())
    }

    /// Says goodbye.
    pub async fn close(self) {
        drop(self.connection.close(200, "seen".into()).await);
    }
}
