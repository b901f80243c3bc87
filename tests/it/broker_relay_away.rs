//! A relay that is away is the platform's fault: it burns no try and loses no mail.

use crate::support::{
    installation::Installation,
    requests::{id, incident, reminder, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_down_at_the_start_burns_no_try_and_loses_no_mail() {
    let mut post = Installation::prepare(&[]).await;
    post.relay.refuse_connections().await;
    post.start_daemon().await;
    let requests = [ticket("a@example.bj"), incident("b@example.bj"), reminder("c@example.bj")];
    post.broker.publish_all(&requests).await;
    let reason = post.daemon().wait_until_not_ready("relay").await;
    assert!(reason.contains("refused"), "{reason}");
    assert!(post.database.all_rows().await.iter().all(|row| row.attempts == 0 && row.status == "queued"));

    post.relay.take_connections().await;
    for request in &requests {
        for row in post.database.wait_for(id(request), "sent").await {
            assert_eq!(row.attempts, 1);
            assert_eq!(post.database.timeline(row.id).await.len(), 1);
        }
    }
    post.daemon_mut().wait_until_ready().await;
    assert_eq!(post.relay.log().mails.len(), 4);
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}
