//! Who must not get mail does not get it, also when that is known only after the first try.

use postrider::email::Phase;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::ticket,
    wait::until,
};

async fn suppress(post: &Installation, request: uuid::Uuid) {
    sqlx::query(
        "insert into suppressions (address_hash, reason, source)
         select recipient_hash, 'complaint', 'test' from email_messages where request_id = $1",
    )
    .bind(request)
    .execute(&post.database.pool)
    .await
    .expect("suppressed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suppression_that_comes_between_two_tries_stops_the_second_and_every_later_mail() {
    let post = Installation::start_with(&[("EMAIL_LADDER_STANDARD", "1500ms,3s")]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).once());
    let first = post.publish(&ticket("complained@example.bj")).await;
    until("it waits for its second try", async || {
        post.database.rows(first).await.iter().any(|row| row.status == "queued" && row.attempts == 1)
    })
    .await;
    suppress(&post, first).await;
    post.database.wait_for(first, "suppressed").await;
    let later = post.publish(&ticket("complained@example.bj")).await;
    post.database.wait_for(later, "suppressed").await;
    assert_eq!(post.relay.log().accepted().count(), 0);
    assert!(post.database.letters().await.is_empty(), "policy is no failure");
    post.finish().await;
}
