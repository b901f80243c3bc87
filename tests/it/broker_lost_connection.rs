//! A broker that hangs up, or is away, costs no mail and makes none twice.

use crate::support::{
    installation::Installation,
    proxy::Proxy,
    requests::{id, ticket},
    wait::until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_broker_closes_in_the_middle_of_mails_are_made_again() {
    let post = Installation::start().await;
    post.relay.hold_final_dots();
    let requests: Vec<_> = (0..5).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.relay.wait_until("all are on the wire", |log| log.mails.len() == 5).await;
    assert!(post.broker.close_connections("postrider").await >= 1);
    // Everything that was held comes again; whoever takes it finds that somebody is at it.
    until("the copies wait", async || post.broker.retry_copies().await > 0).await;
    let behind = ticket("behind@example.bj");
    post.publish(&behind).await;
    post.relay.release_final_dots();
    for request in requests.iter().chain([&behind]) {
        let row = post.database.wait_for(id(request), "sent").await.remove(0);
        assert_eq!(row.attempts, 1);
    }
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 6, "nobody got two");
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_is_waited_for_and_readiness_says_so() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.broker.url()).await;
    post.variables.insert("AMQP_URL".to_owned(), line.url(post.broker.url()));
    post.start_daemon().await;
    let before = post.publish(&ticket("before@example.bj")).await;
    post.database.wait_for(before, "sent").await;

    line.cut().await;
    let reason = post.daemon().wait_until_not_ready("broker").await;
    assert!(!reason.contains("dev:") && !reason.contains("amqp://"), "no secrets in {reason}");
    let meanwhile = post.publish(&ticket("meanwhile@example.bj")).await;
    line.mend().await;
    post.database.wait_for(meanwhile, "sent").await;
    post.daemon_mut().wait_until_ready().await;
    assert_eq!(post.relay.log().mails.len(), 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_at_the_start_is_waited_for() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let line = Proxy::start(post.broker.url()).await;
    post.variables.insert("AMQP_URL".to_owned(), line.url(post.broker.url()));
    line.cut().await;
    post.launch_daemon().await;
    post.daemon().wait_until_not_ready("broker").await;
    let request = post.publish(&ticket("early@example.bj")).await;
    line.mend().await;
    post.database.wait_for(request, "sent").await;
    post.finish().await;
}
