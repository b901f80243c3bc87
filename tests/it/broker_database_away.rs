//! A database that is away stops the lanes, and neither loses a mail nor makes one twice.

use crate::support::{
    installation::Installation,
    proxy::Proxy,
    requests::{id, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_cannot_be_written_waits_for_the_database() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    post.start_daemon().await;
    post.relay.hold_final_dots();
    let requests: Vec<_> = (0..4).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.relay.wait_until("all are on the wire", |log| log.mails.len() == 4).await;
    line.cut().await;
    let behind = ticket("behind@example.bj");
    post.publish(&behind).await;
    post.relay.release_final_dots();
    post.relay.wait_for_mails(4).await;
    let reason = post.daemon().wait_until_not_ready("database").await;
    assert!(!reason.contains("postgres://"), "no secrets in {reason}");
    assert_eq!(post.database.count("sending").await, 4, "the relay has them, and the audit does not know yet");
    assert_eq!(post.relay.log().mails.len(), 4, "what could not be claimed is not sent");

    line.mend().await;
    for request in requests.iter().chain([&behind]) {
        let row = post.database.wait_for(id(request), "sent").await.remove(0);
        assert_eq!(row.attempts, 1);
    }
    assert_eq!(post.relay.log().mails.len(), 5, "nobody got two");
    post.daemon_mut().wait_until_ready().await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_at_the_start_is_waited_for() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    line.cut().await;
    let request = post.publish(&ticket("early@example.bj")).await;
    post.launch_daemon().await;
    post.daemon().wait_until_not_ready("starting").await;
    line.mend().await;
    post.database.wait_for(request, "sent").await;
    post.finish().await;
}
