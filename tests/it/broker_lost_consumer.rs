//! A consumer that the broker has dropped without our hearing of it is noticed, and made again.

use crate::support::{
    broker::Broker,
    frames::{Frames, Method},
    installation::Installation,
    requests::ticket,
    wait::until,
};

async fn consumers(broker: &Broker, queue: &str) -> u32 {
    broker.depth(queue).await.map_or(0, |depth| depth.consumers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_that_never_arrives_is_found_out_by_asking() {
    let mut post = Installation::prepare(&[]).await;
    let line = Frames::start(post.broker.url()).await;
    post.variables.insert("AMQP_URL".to_owned(), line.url(post.broker.url()));
    post.start_daemon().await;
    // From here on the broker's word that it has cancelled a consumer gets lost.
    line.swallow(Method::BASIC_CANCEL);
    post.broker.delete_queue("email.standard").await;
    let reason = post.daemon().wait_until_not_ready("lane standard").await;
    assert!(reason.contains("lost the consumer"), "{reason}");
    until("it is consumed again", async || consumers(&post.broker, "email.standard").await == 1).await;
    assert!(line.swallowed() >= 1, "nobody was told");
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    post.daemon_mut().wait_until_ready().await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_starves_beside_a_full_queue_is_made_again() {
    let mut post = Installation::prepare(&[]).await;
    let line = Frames::start(post.broker.url()).await;
    post.variables.insert("AMQP_URL".to_owned(), line.url(post.broker.url()));
    post.start_daemon().await;
    // What the broker delivers gets lost; it still counts us as a consumer. One is lost, the others are never asked for.
    line.swallow(Method::BASIC_DELIVER);
    let requests: Vec<_> = (0..80).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    let reason = post.daemon().wait_until_not_ready("lane standard").await;
    assert!(reason.contains("none is delivered"), "{reason}");
    line.pass_everything();
    for request in &requests {
        post.database.wait_for(crate::support::requests::id(request), "sent").await;
    }
    assert_eq!(post.relay.log().mails.len(), requests.len());
    post.finish().await;
}
