//! What no binding matches is not dropped.

use lapin::{
    BasicProperties,
    options::{BasicGetOptions, BasicNackOptions},
    types::{AMQPValue, FieldTable},
};
use postrider::{
    broker::topology,
    email::Lane,
    wire::{self, EmailRequest},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::support::{
    installation::Installation,
    requests::{id, ticket},
    wait::{until, until_some},
};

/// A request that nobody binds waits in `email.unrouted`, and has been taken and handed back. With it, what its crashes are
/// counted under.
async fn unrouted_that_came_back() -> (Installation, EmailRequest, [u8; 32]) {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let request = ticket("nowhere@example.bj");
    post.broker.publish_to("support.urgent", &request).await;
    let channel = post.broker.channel().await;
    let got = until_some("an unrouted message", async || {
        channel.basic_get(topology::UNROUTED.into(), BasicGetOptions::default()).await.expect("an answer")
    })
    .await;
    got.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.expect("it is handed back");
    let message_id = got.properties.message_id().clone().expect("producers give one");
    let key = Sha256::digest(message_id.as_str()).into();
    (post, request, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_routing_key_that_nobody_binds_is_kept_and_told() {
    let post = Installation::start().await;
    let request = ticket("nowhere@example.bj");
    post.broker.publish_to("support.urgent", &request).await;
    let letter = post.database.wait_for_letters(1).await.remove(0);
    assert_eq!(letter.reason, "unrouted");
    assert_eq!(letter.routing_key.as_deref(), Some("support.urgent"));
    let error = letter.error.expect("an error");
    assert!(error.contains("email.requests") && error.contains("<source>.<p0|p1|p2|p3>"), "{error}");
    // Whose it was and what it was about is read from the message itself.
    assert_eq!(letter.request_id.map(|id| id.to_string()).as_deref(), Some(request.request_id.as_str()));
    assert_eq!(letter.template_key.as_deref(), Some("support_ticket_created"));
    assert_eq!(letter.source.as_deref(), Some("support"));
    assert_eq!(letter.body, wire::to_protobuf(&request), "nothing of it is lost");
    assert!(post.relay.log().mails.is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_database_can_store_beside_a_message_does_not_stop_the_archive() {
    let post = Installation::start().await;
    let mut headers = FieldTable::default();
    headers.insert("x-published-at-ms".into(), AMQPValue::LongLongInt(-8_000_000_000_000_000));
    headers.insert("x-settlement-id".into(), AMQPValue::LongString("a producer's own".into()));
    headers.insert("odd\0name".into(), AMQPValue::LongString("a\0b".into()));
    let odd = BasicProperties::default().with_message_id("a\0b".into()).with_type("c\0d".into()).with_headers(headers);
    // One that nobody reads, and two that nobody binds and that claim to be the same.
    post.broker.publish_raw("support.p1", odd.clone(), b"garbage").await;
    post.broker.publish_raw("nowhere.x", odd.clone(), b"one").await;
    post.broker.publish_raw("nowhere.x", odd, b"another").await;
    let letters = post.database.wait_for_letters(3).await;
    let mut bodies: Vec<&[u8]> = letters.iter().map(|letter| letter.body.as_ref()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, [b"another".as_slice(), b"garbage", b"one"]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_came_back_is_archived_as_what_it_is() {
    let (mut post, request, key) = unrouted_that_came_back().await;
    post.start_daemon().await;
    let letter = post.database.wait_for_letters(1).await.remove(0);
    assert_eq!(letter.request_id, Some(id(&request)), "whoever looks for the request finds it");
    assert_eq!(letter.template_key.as_deref(), Some("support_ticket_created"));
    assert_eq!(letter.source.as_deref(), Some("support"));
    until("nothing is held against it any more", async || {
        let left = "select exists (select from email_crashes where key = $1)
            or exists (select from email_crash_marks where key = $1)";
        let left = sqlx::query_scalar::<_, bool>(left).bind(key.as_slice()).fetch_one(&post.database.pool).await;
        !left.expect("an answer")
    })
    .await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_died_reading_is_archived_unread() {
    let (mut post, request, key) = unrouted_that_came_back().await;
    // What a daemon leaves behind that died over it.
    post.database.store().mark_alone(Lane::Standard, &key, Uuid::new_v4()).await.expect("a mark");
    post.start_daemon().await;
    let letter = post.database.wait_for_letters(1).await.remove(0);
    assert_eq!((letter.request_id, letter.template_key), (None, None));
    assert_eq!(letter.body, wire::to_protobuf(&request), "nothing of it is lost");
    post.finish().await;
}
