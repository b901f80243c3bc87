//! What no binding matches is not dropped.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use crate::support::{installation::Installation, requests::ticket};

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
    assert_eq!(letter.body, postrider::wire::to_protobuf(&request), "nothing of it is lost");
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
