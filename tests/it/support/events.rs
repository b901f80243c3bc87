use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel,
    options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
};
use postrider::{broker::topology, wire};

use super::{broker::Broker, database::Database, wait::until};

/// An event as a subscriber gets it.
#[derive(Debug, Clone)]
pub struct Heard {
    pub key: String,
    pub properties: BasicProperties,
    pub event: wire::EmailEvent,
}

/// Somebody who listens to events, through a queue that goes with the test.
pub struct Subscriber {
    heard: Arc<Mutex<Vec<Heard>>>,
    _channel: Channel,
}

impl Subscriber {
    /// Hears what is published under these keys from now on.
    pub async fn to(broker: &Broker, keys: &[&str]) -> Self {
        let channel = broker.channel().await;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, Default::default()).await.expect("a queue");
        let queue = queue.name().clone();
        for key in keys {
            let bound = channel.queue_bind(
                queue.clone(),
                topology::EVENTS.into(),
                (*key).into(),
                QueueBindOptions::default(),
                Default::default(),
            );
            bound.await.expect("bound");
        }
        let options = BasicConsumeOptions::default();
        let mut deliveries =
            channel.basic_consume(queue, "".into(), options, Default::default()).await.expect("a consumer");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                let event = wire::event_from_protobuf(delivery.data.clone().into()).expect("an event");
                let key = delivery.routing_key.to_string();
                let properties = delivery.properties.clone();
                into.lock().expect("no test panics here").push(Heard { key, properties, event });
                let _ = delivery.ack(BasicAckOptions::default()).await;
            }
        });
        Self { heard, _channel: channel }
    }

    /// What it has heard so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no test panics here").clone()
    }

    /// Waits until it has heard this many, and nothing more is owed to anybody.
    pub async fn wait_for(&self, database: &Database, count: usize) -> Vec<Heard> {
        until(&format!("{count} events"), async || self.heard().len() >= count).await;
        database.wait_until_told().await;
        let heard = self.heard();
        assert_eq!(heard.len(), count, "{heard:#?}");
        heard
    }

    /// The kinds of a request's events, in the order in which they came.
    pub fn kinds_of(&self, request: uuid::Uuid) -> Vec<String> {
        let id = request.to_string();
        self.heard().into_iter().filter(|heard| heard.event.request_id == id).map(|heard| heard.event.kind).collect()
    }
}

impl Database {
    /// Events that wait to be published.
    pub async fn owed_events(&self) -> i64 {
        let counting = sqlx::query_scalar("select count(*) from outbox");
        counting.fetch_one(&self.pool).await.expect("the database answers")
    }

    /// Events that were ever written.
    pub async fn events_ever(&self) -> i64 {
        let counting = sqlx::query_scalar("select case when is_called then last_value else 0 end from outbox_id_seq");
        counting.fetch_one(&self.pool).await.expect("the database answers")
    }

    /// Waits until no event waits to be published.
    pub async fn wait_until_told(&self) {
        until("no event is owed", async || self.owed_events().await == 0).await;
    }
}

/// Metadata of a request.
pub fn metadata(entries: &[(&str, &str)]) -> HashMap<String, String> {
    entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
