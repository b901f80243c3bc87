mod import;

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use postrider::{broker::topology, publish, wire};
use reqwest::StatusCode;
use serde_json::{Value, json};
use url::Url;

use super::{clean_up, service, unique_name, wait::until};

pub use import::Import;

/// Published side by side.
const AT_ONCE: usize = 64;

/// The user of every daemon and command of a test, with the rights that deploy/rabbitmq/README.md gives a daemon that declares.
const DAEMON_USER: &str = "it-daemon";
/// Its rights: configure, write, read.
pub const DAEMON_RIGHTS: [&str; 3] = [r"^email\.", r"^(email\..*|amq\.default)$", r"^email\."];

/// A virtual host, deleted at the end.
pub struct Broker {
    vhost: String,
    /// Of whoever may do anything.
    amqp_url: String,
    daemon_url: String,
    api: Url,
    http: reqwest::Client,
    connection: Connection,
    channel: Channel,
}

/// A queue as the broker counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages that nobody holds.
    pub ready: u32,
    /// Consumers on it.
    pub consumers: u32,
}

impl Broker {
    /// A fresh virtual host without exchanges and queues of ours.
    pub async fn start() -> Self {
        let vhost = unique_name();
        let api = Url::parse(&service("TEST_RABBITMQ_API")).expect("TEST_RABBITMQ_API is a URL");
        let mut amqp_url = Url::parse(&service("TEST_AMQP_URL")).expect("TEST_AMQP_URL is a URL");
        amqp_url.set_path(&vhost);
        // A connection for each question: RabbitMQ closes those that lie idle, and may do so while one is being asked.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("a client");
        put(&http, &api, &format!("vhosts/{vhost}"), &json!({})).await;
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        put(&http, &api, &format!("permissions/{vhost}/{}", amqp_url.username()), &all).await;
        let known = json!({ "password": amqp_url.password(), "tags": "" });
        allow(&http, &api, &vhost, DAEMON_USER, &known, DAEMON_RIGHTS).await;
        let mut daemon_url = amqp_url.clone();
        daemon_url.set_username(DAEMON_USER).expect("a URL with a host");
        let connection = Connection::connect(amqp_url.as_str(), ConnectionProperties::default())
            .await
            .unwrap_or_else(|error| panic!("RabbitMQ cannot be reached ({error}): run ./deploy/dev test"));
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { vhost, amqp_url: amqp_url.into(), daemon_url: daemon_url.into(), api, http, connection, channel }
    }

    /// What `AMQP_URL` is set to.
    pub fn url(&self) -> &str {
        &self.daemon_url
    }

    /// The same for a user who may do anything: producers and listeners, who have queues of their own.
    pub fn admin_url(&self) -> &str {
        &self.amqp_url
    }

    /// Its virtual host.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Lets a user in who has no password, with a daemon's rights: one whom a certificate stands for.
    pub async fn let_in(&self, user: &str) {
        allow(&self.http, &self.api, &self.vhost, user, &json!({ "password_hash": "", "tags": "" }), DAEMON_RIGHTS)
            .await;
    }

    /// `AMQP_URL` of a user with these rights: configure, write, read. There is one of that name for all tests.
    pub async fn user(&self, name: &str, rights: [&str; 3]) -> String {
        let mut url = Url::parse(&self.amqp_url).expect("a URL");
        let known = json!({ "password": url.password(), "tags": "" });
        allow(&self.http, &self.api, &self.vhost, name, &known, rights).await;
        url.set_username(name).expect("a URL with a host");
        url.into()
    }

    /// Connects anew, after the node or the line was away.
    pub async fn reconnect(&mut self) {
        let properties = ConnectionProperties::default();
        self.connection = Connection::connect(&self.amqp_url, properties).await.expect("RabbitMQ is back");
        self.channel = self.connection.create_channel().await.expect("a channel");
        self.channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    }

    /// A channel for what this has no words for.
    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("a channel")
    }

    /// Publishes as a producer does; returns when the broker has it.
    pub async fn publish(&self, request: &wire::EmailRequest) {
        let message = publish::outgoing(request, topology::REQUESTS).expect("a request that can be published");
        self.publish_raw(&message.routing_key, message.properties, &message.body).await;
    }

    /// The same with this routing key instead of the one that the request asks for.
    pub async fn publish_to(&self, routing_key: &str, request: &wire::EmailRequest) {
        let message = publish::outgoing(request, topology::REQUESTS).expect("a request that can be published");
        self.publish_raw(routing_key, message.properties, &message.body).await;
    }

    /// Publishes as a person does from the RabbitMQ console: JSON, and little else.
    pub async fn publish_json(&self, routing_key: &str, text: &str) {
        let properties = BasicProperties::default().with_content_type(wire::JSON.into()).with_delivery_mode(2);
        self.publish_raw(routing_key, properties, text.as_bytes()).await;
    }

    /// Publishes anything.
    pub async fn publish_raw(&self, routing_key: &str, properties: BasicProperties, body: &[u8]) {
        let confirmation = self
            .channel
            .basic_publish(
                topology::REQUESTS.into(),
                routing_key.into(),
                BasicPublishOptions::default(),
                body,
                properties,
            )
            .await
            .expect("it is sent")
            .await
            .expect("it is confirmed");
        assert!(confirmation.is_ack(), "the broker refused a message");
    }

    /// Publishes many; returns when the broker has them all.
    pub async fn publish_all(&self, requests: &[wire::EmailRequest]) {
        let publishing = stream::iter(requests).map(|request| async move {
            self.publish(request).await;
            Ok::<(), ()>(())
        });
        publishing.buffer_unordered(AT_ONCE).try_collect::<()>().await.expect("all are confirmed");
    }

    /// How many messages of a queue nobody holds, and who consumes it; nothing if there is no such queue.
    pub async fn depth(&self, queue: &str) -> Option<Depth> {
        // A refusal closes the channel, so each look has its own.
        let channel = self.channel().await;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await.ok()?;
        channel.close(200, "seen".into()).await.expect("the channel closes");
        Some(Depth { ready: found.message_count(), consumers: found.consumer_count() })
    }

    /// What each consumer of a queue may hold unacknowledged.
    pub async fn prefetches(&self, queue: &str) -> Vec<u64> {
        let listed = self.get(&format!("consumers/{}", self.vhost)).await;
        let of_queue = listed.as_array().into_iter().flatten().filter(|consumer| consumer["queue"]["name"] == queue);
        of_queue.filter_map(|consumer| consumer["prefetch_count"].as_u64()).collect()
    }

    /// Consumers of queues that the broker has named: people and tests who listen.
    pub async fn listeners(&self) -> usize {
        let listed = self.get(&format!("consumers/{}", self.vhost)).await;
        let named = listed.as_array().into_iter().flatten().filter_map(|consumer| consumer["queue"]["name"].as_str());
        named.filter(|name| name.starts_with("amq.gen")).count()
    }

    /// The names of all queues.
    pub async fn queues(&self) -> Vec<String> {
        let listed = self.get(&format!("queues/{}?columns=name", self.vhost)).await;
        let named = listed.as_array().into_iter().flatten().filter_map(|queue| queue["name"].as_str());
        named.map(str::to_owned).collect()
    }

    /// `classic` or `quorum`.
    pub async fn queue_type(&self, queue: &str) -> String {
        let found = self.get(&format!("queues/{}/{queue}?columns=type,arguments", self.vhost)).await;
        found["type"].as_str().or(found["arguments"]["x-queue-type"].as_str()).unwrap_or_default().to_owned()
    }

    /// How many retry copies wait, over all lanes and delays.
    pub async fn retry_copies(&self) -> u32 {
        let mut waiting = 0;
        for queue in self.queues().await.iter().filter(|name| name.starts_with("email.retry.")) {
            waiting += self.depth(queue).await.map_or(0, |depth| depth.ready);
        }
        waiting
    }

    /// Queues with messages in them.
    pub async fn not_empty(&self) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        for queue in self.queues().await {
            let ready = self.depth(&queue).await.map_or(0, |depth| depth.ready);
            if ready > 0 {
                found.insert(queue, ready);
            }
        }
        found
    }

    /// Deletes a queue, whoever consumes it.
    pub async fn delete_queue(&self, queue: &str) {
        self.channel().await.queue_delete(queue.into(), Default::default()).await.expect("the queue is deleted");
    }

    /// Closes the daemon's connections, as an operator does in the console. Returns how many there were.
    pub async fn close_connections(&self, name: &str) -> usize {
        let mut closed = 0;
        until(&format!("a connection named {name}"), async || {
            let listed = self.get(&format!("vhosts/{}/connections", self.vhost)).await;
            for connection in listed.as_array().into_iter().flatten() {
                let given = connection["client_properties"]["connection_name"].as_str().unwrap_or_default();
                if let (true, Some(id)) = (given.starts_with(name), connection["name"].as_str()) {
                    let mut url = self.api.join("/api/connections/").expect("a URL");
                    url.path_segments_mut().expect("an http URL").pop_if_empty().push(id);
                    let answer = self.http.delete(url).send().await.expect("the management API answers");
                    closed += usize::from(answer.status().is_success());
                }
            }
            closed > 0
        })
        .await;
        closed
    }

    /// All that lies in the queues, with what came with it: looked at through the management API, and put back.
    pub async fn contents(&self) -> String {
        let mut all = String::new();
        let look = json!({ "count": 10_000, "ackmode": "ack_requeue_true", "encoding": "base64" });
        for queue in self.queues().await {
            let url = self.api.join(&format!("/api/queues/{}/{queue}/get", self.vhost)).expect("a URL");
            let answer = self.http.post(url).json(&look).send().await.expect("the management API answers");
            for message in answer.json::<Value>().await.expect("JSON").as_array().into_iter().flatten() {
                all.push_str(&message.to_string());
                all.push('\n');
            }
        }
        all
    }

    async fn get(&self, path: &str) -> Value {
        let url = self.api.join(&format!("/api/{path}")).expect("a URL");
        let answer = self.http.get(url).send().await.expect("the management API answers");
        answer.error_for_status().expect("it knows that").json().await.expect("JSON")
    }
}

async fn allow(http: &reqwest::Client, api: &Url, vhost: &str, user: &str, known: &Value, rights: [&str; 3]) {
    let user_path = format!("users/{user}");
    // Of two tests that make the same user at once, RabbitMQ 3.10 tells the second one 400: it exists by then, and is changed.
    if ask_for(http, api, &user_path, known).await.status() == StatusCode::BAD_REQUEST {
        put(http, api, &user_path, known).await;
    }
    let [configure, write, read] = rights;
    let rights = json!({ "configure": configure, "write": write, "read": read });
    put(http, api, &format!("permissions/{vhost}/{user}"), &rights).await;
}

async fn put(http: &reqwest::Client, api: &Url, path: &str, body: &Value) {
    ask_for(http, api, path, body).await.error_for_status().expect("the management API does it");
}

async fn ask_for(http: &reqwest::Client, api: &Url, path: &str, body: &Value) -> reqwest::Response {
    let url = api.join(&format!("/api/{path}")).expect("a URL");
    http.put(url)
        .json(body)
        .send()
        .await
        .unwrap_or_else(|error| panic!("RabbitMQ's management API cannot be reached ({error}): run ./deploy/dev test"))
}

impl Drop for Broker {
    fn drop(&mut self) {
        let (api, path) = (self.api.clone(), format!("/api/vhosts/{}", self.vhost));
        clean_up(|| async move {
            if let Ok(url) = api.join(&path) {
                let _ = reqwest::Client::new().delete(url).send().await;
            }
        });
    }
}
