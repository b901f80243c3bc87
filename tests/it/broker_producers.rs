//! The programs of deploy/producers work as they are given away.

use std::collections::HashMap;

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use postrider::{broker::topology, wire};

use crate::support::{
    broker::Broker,
    events::metadata,
    installation::Installation,
    producers::Language,
    wait::{WAIT_MAX, until},
};

/// A trace that was begun elsewhere.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// What all three programs make of ticket 4711: RFC 9562's version 5 in the same namespace.
const TICKET: &str = "4711";

/// Sees what producers publish, beside the lanes.
struct Spy {
    deliveries: Consumer,
    _channel: Channel,
}

impl Spy {
    async fn on(broker: &Broker) -> Self {
        let channel = broker.channel().await;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a queue");
        let (queue, options) = (queue.name().clone(), QueueBindOptions::default());
        let (from, key) = (topology::REQUESTS.into(), "#".into());
        channel.queue_bind(queue.clone(), from, key, options, FieldTable::default()).await.expect("bound");
        let options = BasicConsumeOptions::default();
        let deliveries =
            channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.expect("a consumer");
        Self { deliveries, _channel: channel }
    }

    async fn next(&mut self) -> Delivery {
        let next = tokio::time::timeout(WAIT_MAX, self.deliveries.next()).await.expect("it was published");
        let delivery = next.expect("a consumer").expect("a delivery");
        delivery.ack(BasicAckOptions::default()).await.expect("acknowledged");
        delivery
    }
}

fn text(value: &str) -> wire::Value {
    wire::Value { kind: Some(wire::ValueKind::StringValue(value.to_owned())) }
}

/// What each of them is to say.
fn expected(request_id: &str) -> wire::EmailRequest {
    let number = wire::Value { kind: Some(wire::ValueKind::NumberValue(4711.0)) };
    let fields = [
        ("ticket_number", number),
        ("title", text("No signal since this morning")),
        ("priority", text("P2")),
        ("support_link", text("https://support.example.bj/4711")),
    ];
    wire::EmailRequest {
        request_id: request_id.to_owned(),
        source: "support".to_owned(),
        template_key: "support_ticket_created".to_owned(),
        recipients: vec![wire::Recipient { address: "ada@example.bj".to_owned(), display_name: "Ada".to_owned() }],
        variables: Some(wire::Struct { fields: fields.map(|(name, value)| (name.to_owned(), value)).into() }),
        priority: wire::Priority::P1.into(),
        metadata: metadata(&[("ticket", TICKET)]),
        ..wire::EmailRequest::default()
    }
}

async fn publishes_and_hears(language: Language) {
    let post = Installation::start().await;
    let mut spy = Spy::on(&post.broker).await;
    let listener = language.listen(post.broker.admin_url(), 1);
    until("it listens", async || {
        post.broker.depth("support.email-events").await.is_some_and(|depth| depth.consumers == 1)
    })
    .await;

    let arguments = ["publish", "ada@example.bj", TICKET];
    let said = language.run(post.broker.admin_url(), &[("TRACEPARENT", TRACEPARENT)], &arguments).await;
    assert_eq!(said.code, 0, "{said:?}");
    let request_id = said.out.trim().to_owned();
    let id: uuid::Uuid = request_id.parse().expect("a UUID");
    assert_eq!(id.get_version_num(), 5, "made from what the mail is about");

    let published = spy.next().await;
    assert_eq!(published.routing_key.as_str(), "support.p1");
    assert_eq!(wire::from_protobuf(published.data.clone().into()).expect("a request"), expected(&request_id));
    let properties = &published.properties;
    assert_eq!(properties.content_type().as_ref().map(lapin::types::ShortString::as_str), Some(wire::PROTOBUF));
    assert_eq!(properties.kind().as_ref().map(lapin::types::ShortString::as_str), Some(wire::REQUEST_TYPE));
    assert_eq!(properties.message_id().as_ref().map(lapin::types::ShortString::as_str), Some(request_id.as_str()));
    assert_eq!((*properties.delivery_mode(), *properties.priority()), (Some(2), Some(6)));
    let headers: HashMap<String, AMQPValue> = properties
        .headers()
        .as_ref()
        .expect("headers")
        .inner()
        .iter()
        .map(|(name, value)| (name.to_string(), value.clone()))
        .collect();
    assert_eq!(headers["traceparent"], AMQPValue::LongString(TRACEPARENT.into()));
    let AMQPValue::LongLongInt(ms) = headers["x-published-at-ms"] else { panic!("{headers:?}") };
    assert_eq!(u64::try_from(ms / 1000).ok(), *properties.timestamp(), "the same moment twice");

    let mails = post.mails(1).await;
    assert_eq!(mails[0].envelope_to, "ada@example.bj");
    assert!(mails[0].text.contains("#4711") && mails[0].text.contains("No signal since this morning"));

    let told = listener.events().await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["request_id"], &told[0]["kind"]), (&request_id.as_str().into(), &"sent".into()));
    assert_eq!((&told[0]["recipient"], &told[0]["metadata"]["ticket"]), (&"ada@example.bj".into(), &TICKET.into()));

    // Said again, because somebody was not sure: the same request, and no second mail.
    let again = language.run(post.broker.admin_url(), &[], &arguments).await;
    assert_eq!((again.code, again.out.trim()), (0, request_id.as_str()));
    let published = spy.next().await;
    let headers = published.properties.headers().clone().expect("headers");
    let trace = headers.inner().get("traceparent").and_then(AMQPValue::as_long_string).expect("a trace of its own");
    let trace = trace.to_string();
    assert!(trace.len() == TRACEPARENT.len() && trace.starts_with("00-") && trace != TRACEPARENT, "{trace}");
    until("both are settled", async || post.daemon().metric("email_settled_total", &[]).await >= 2.0).await;
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

/// A broker that does not know the exchange says so at once, and the program does, too.
async fn says_what_the_broker_does_not_know(language: Language) {
    let broker = Broker::start().await;
    let said = language.run(broker.admin_url(), &[], &["publish", "ada@example.bj", TICKET]).await;
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.err.contains("email.requests"), "{said:?}");
    let said = language.run(broker.admin_url(), &[], &["publish"]).await;
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.err.contains("events [COUNT]"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_producer_publishes_and_hears_what_became_of_it() {
    publishes_and_hears(Language::Python).await;
    says_what_the_broker_does_not_know(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_producer_publishes_and_hears_what_became_of_it() {
    publishes_and_hears(Language::Node).await;
    says_what_the_broker_does_not_know(Language::Node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rust_producer_publishes_and_hears_what_became_of_it() {
    publishes_and_hears(Language::Rust).await;
    says_what_the_broker_does_not_know(Language::Rust).await;
}
