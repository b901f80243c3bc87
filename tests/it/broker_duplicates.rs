//! A request is sent once, however often it is published.

use crate::support::{
    installation::Installation,
    requests::{id, set, ticket},
    wait::until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_published_three_times_is_sent_once() {
    let post = Installation::start().await;
    let request = ticket("once@example.bj");
    // Before it is sent, while it is being sent, and after.
    post.relay.hold_final_dots();
    tokio::join!(post.broker.publish(&request), post.broker.publish(&request));
    post.relay.wait_until("one is on the wire", |log| log.mails.len() == 1).await;
    post.broker.publish(&request).await;
    post.relay.release_final_dots();
    post.database.wait_for(id(&request), "sent").await;
    post.broker.publish(&request).await;
    until("three duplicates are dropped", async || {
        post.daemon().metric("email_settled_total", &["standard", "duplicate"]).await >= 3.0
    })
    .await;
    let row = post.database.row(id(&request)).await;
    assert_eq!(row.attempts, 1);
    let log = post.relay.log();
    assert_eq!(log.mails.len(), 1);
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_comes_again_with_another_payload_is_not_sent_and_not_lost() {
    let post = Installation::start().await;
    let mut request = ticket("first@example.bj");
    let published = post.publish(&request).await;
    post.database.wait_for(published, "sent").await;
    set(&mut request, "title", "something else");
    post.publish(&request).await;
    let letter = post.database.wait_for_letter(published).await;
    assert_eq!(letter.reason, "idempotency_conflict");
    let first: Vec<u8> = sqlx::query_scalar("select payload_hash from email_requests where id = $1")
        .bind(published)
        .fetch_one(&post.database.pool)
        .await
        .expect("the request");
    let error = letter.error.expect("an error");
    let hashes: Vec<_> = error.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).collect();
    assert_eq!(hashes.len(), 2, "{error}");
    assert!(hashes[0] == hex::encode(first) && hashes[1] != hashes[0], "{error}");
    assert_eq!(post.relay.log().mails.len(), 1);
    assert_eq!(post.database.row(published).await.status, "sent", "the first one is none the worse for it");
    post.finish().await;
}
