//! A replay that is killed anywhere is finished by the next one, and sends once.

use lapin::types::AMQPValue;
use postrider::{
    broker::delivery::{COPY, ROUTING_KEY},
    email::{Lane, PayloadHash, Phase, settlement_id},
    publish, wire,
};
use uuid::Uuid;

use crate::support::{
    installation::Installation,
    process::postrider,
    relay::{Act, Rule},
    requests::{id, set, ticket},
    wait::until,
};

async fn refused(post: &Installation, request: &wire::EmailRequest) {
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")));
    post.publish(request).await;
    post.database.wait_for_letter(id(request)).await;
    post.wait_until_settled().await;
    post.relay.behave();
}

async fn state_and_generation(post: &Installation, request: Uuid) -> (String, i32) {
    sqlx::query_as(
        "select d.state, r.generation from dead_letters d join email_requests r on r.id = d.request_id
         where d.request_id = $1",
    )
    .bind(request)
    .fetch_one(&post.database.pool)
    .await
    .expect("one letter")
}

async fn replay_killed_at(post: &Installation, point: &str, request: &wire::EmailRequest) {
    let mut variables = post.variables.clone();
    variables.insert("POSTRIDER_DIE_AT".to_owned(), point.to_owned());
    let said = postrider(&variables, &["dead", "replay", &request.request_id]).await;
    assert_eq!(said.code, -1, "it was killed: {said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_its_copy_was_published_it_is_finished_by_the_next() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    refused(&post, &request).await;
    replay_killed_at(&post, "replay_committed", &request).await;
    assert_eq!(state_and_generation(&post, id(&request)).await, ("replaying".to_owned(), 1));
    assert_eq!(post.database.row(id(&request)).await.status, "queued");
    // Older copies, the first one and a late one, come while the row waits: it does not wait for them.
    let older = publish::outgoing(&request, "").expect("a request");
    let mut headers = older.properties.headers().clone().unwrap_or_default();
    headers.insert(ROUTING_KEY.into(), AMQPValue::LongString("support.p1".into()));
    headers.insert(COPY.into(), AMQPValue::LongInt(7));
    let late = older.properties.clone().with_headers(headers);
    for properties in [older.properties, late] {
        post.broker.publish_raw("support.p1", properties, &older.body).await;
    }
    until("both are duplicates", async || post.daemon().metric("email_settled_total", &["duplicate"]).await >= 2.0)
        .await;
    assert_eq!(post.database.row(id(&request)).await.status, "queued");
    assert!(post.relay.log().mails.is_empty(), "nothing was published, and nothing sent");
    // By filter, as an operator does who does not know where it was cut off.
    let said = post.run(&["dead", "replay", "--reason", "rejected", "--json"]).await.json();
    assert_eq!(said["replayed"], 1, "{said}");
    post.database.wait_for(id(&request), "sent").await;
    assert_eq!(state_and_generation(&post, id(&request)).await, ("replayed".to_owned(), 1), "raised once");
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_its_copy_was_published_the_next_sends_nothing_more() {
    let post = Installation::start().await;
    let on_the_wire = ticket("wire@example.bj");
    refused(&post, &on_the_wire).await;
    post.relay.hold_final_dots();
    replay_killed_at(&post, "replay_confirmed", &on_the_wire).await;
    post.relay.wait_until("it is on the wire", |log| log.mails.len() == 1).await;
    // The copy cannot be told to have come: it is published again, and is a duplicate.
    let said = post.run(&["dead", "replay", &on_the_wire.request_id, "--json"]).await.json();
    assert_eq!(said["replayed"], 1, "{said}");
    post.relay.release_final_dots();
    post.database.wait_for(id(&on_the_wire), "sent").await;
    post.wait_until_idle().await;
    assert_eq!(state_and_generation(&post, id(&on_the_wire)).await, ("replayed".to_owned(), 1));
    assert_eq!(post.relay.log().mails.len(), 1);

    let arrived = ticket("arrived@example.bj");
    refused(&post, &arrived).await;
    replay_killed_at(&post, "replay_confirmed", &arrived).await;
    post.database.wait_for(id(&arrived), "sent").await;
    let said = post.run(&["dead", "replay", &arrived.request_id, "--json"]).await.json();
    assert_eq!((&said["skipped"], &said["items"][0]["why"]), (&1.into(), &"replayed".into()), "{said}");
    assert_eq!(post.relay.log().mails.len(), 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_before_that_confirms_late_does_not_make_the_replayed_copy_an_old_one() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    refused(&post, &request).await;
    replay_killed_at(&post, "replay_committed", &request).await;
    // It had published a retry copy, and a dead letter, and tells so only now.
    let store = post.database.store();
    store.settled_retry(Lane::Standard, id(&request), 0, 7).await.expect("told");
    store.settled_dead(Lane::Standard, id(&request), 0).await.expect("told");
    store.close().await;
    assert_eq!(post.run(&["dead", "replay", &request.request_id]).await.code, 0);
    post.database.wait_for(id(&request), "sent").await;
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_crashed_its_readers_is_reopened_only_if_it_is_the_request_that_it_claims_to_be() {
    let post = Installation::start().await;
    let (true_one, liar) = (ticket("true@example.bj"), ticket("liar@example.bj"));
    for request in [&true_one, &liar] {
        refused(&post, request).await;
        // Parked without having been read: nothing but the message_id told whose it is.
        let key = settlement_id(id(request), PayloadHash::UNREAD, 0).to_string();
        sqlx::query("update dead_letters set reason = 'poison', settlement_key = $2 where request_id = $1")
            .bind(id(request))
            .bind(key)
            .execute(&post.database.pool)
            .await
            .expect("changed");
    }
    let mut other = liar.clone();
    set(&mut other, "title", "another payload");
    sqlx::query("update dead_letters set body = $2 where request_id = $1")
        .bind(id(&liar))
        .bind(wire::to_protobuf(&other).to_vec())
        .execute(&post.database.pool)
        .await
        .expect("changed");
    let said = post.run(&["dead", "replay", "--reason", "poison", "--json"]).await.json();
    assert_eq!(said["items"][0]["result"], "replayed", "{said}");
    assert_eq!(said["items"][1]["why"], "unreadable", "{said}");
    post.database.wait_for(id(&true_one), "sent").await;
    assert_eq!(post.database.row(id(&liar)).await.status, "failed", "nothing waits for what never comes");
    post.finish().await;
}
