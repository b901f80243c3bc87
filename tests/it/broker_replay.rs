//! A dead letter whose cause is mended is sent when it is replayed, and once, however often it is replayed.

use lapin::types::AMQPValue;
use postrider::{
    broker::delivery::{GENERATION, PUBLISHED_AT},
    email::Phase,
    publish, wire,
};
use uuid::Uuid;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, sample, set, ticket},
    wait::until,
};

/// A request that the relay refuses, and its letter; then the relay is mended.
async fn refused(post: &Installation, request: &wire::EmailRequest) -> Uuid {
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")));
    post.publish(request).await;
    let letter = post.database.wait_for_letter(id(request)).await;
    post.wait_until_settled().await;
    post.relay.behave();
    letter.id
}

async fn state(post: &Installation, letter: Uuid) -> String {
    sqlx::query_scalar("select state from dead_letters where id = $1")
        .bind(letter)
        .fetch_one(&post.database.pool)
        .await
        .expect("the letter")
}

async fn duplicates(post: &Installation) -> f64 {
    post.daemon().metric("email_settled_total", &["duplicate"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_mail_is_sent_once_after_the_relay_is_mended() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    let letter = refused(&post, &request).await;
    let before = post.database.row(id(&request)).await;

    let said = post.run(&["dead", "replay", &letter.to_string()]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("Replayed: 1 of 1") && said.out.contains(&request.request_id), "{said:?}");
    let row = post.database.wait_for(id(&request), "sent").await.remove(0);
    assert_eq!((row.attempts, row.reason, row.error_message), (1, None, None), "its tries begin anew");
    assert_eq!(row.message_id, before.message_id);
    let lines = post.database.timeline(row.id).await;
    let told: Vec<_> = lines.iter().map(|line| (line.kind.as_str(), line.attempt)).collect();
    assert_eq!(told, [("rejected", 1), ("replayed", 0), ("sent", 1)], "nothing of its history is lost");
    assert_eq!(state(&post, letter).await, "replayed");
    assert!((post.daemon().metric("email_replayed_total", &["standard"]).await - 1.0).abs() < f64::EPSILON);

    // Again, by either id: it is over.
    for id in [letter.to_string(), request.request_id.clone()] {
        let said = post.run(&["dead", "replay", &id, "--json"]).await.json();
        assert_eq!((&said["replayed"], &said["skipped"]), (&0.into(), &1.into()), "{said}");
        assert_eq!(said["items"][0]["why"], "replayed", "{said}");
    }
    let listed = post.run(&["dead", "list", "--state", "replayed", "--to", "ADA@example.bj", "--json"]).await.json();
    assert_eq!((&listed["total"], &listed["items"][0]["recipients"][0]), (&1.into(), &"ada@example.bj".into()));
    assert_eq!(post.run(&["dead", "list", "--state", "waiting", "--json"]).await.json()["total"], 0);
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().accepted().count(), 1);
    assert_eq!(post.database.letters().await.len(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_at_the_same_moment_and_a_third_while_it_is_on_the_wire_send_it_once() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    let letter = refused(&post, &request).await.to_string();
    post.relay.hold_final_dots();
    let replay = ["dead", "replay", letter.as_str(), "--json"];
    let (one, two) = tokio::join!(post.run(&replay), post.run(&replay));
    let replayed = [one.json(), two.json()].iter().filter(|said| said["replayed"] == 1).count();
    assert!(replayed >= 1, "{one:?} {two:?}");
    post.relay.wait_until("it is on the wire", |log| log.mails.len() == 1).await;
    let third = post.run(&replay).await.json();
    assert_eq!(third["items"][0]["why"], "replayed", "{third}");
    post.relay.release_final_dots();
    post.database.wait_for(id(&request), "sent").await;
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 1);
    let row = post.database.row(id(&request)).await;
    let lines = post.database.timeline(row.id).await;
    assert_eq!(lines.iter().filter(|line| line.kind == "replayed").count(), 1, "it was reopened once: {lines:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_again_is_a_new_letter_and_can_be_replayed_again() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    let first = refused(&post, &request).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 still not")));
    assert_eq!(post.run(&["dead", "replay", &request.request_id]).await.code, 0);
    let letters = post.database.wait_for_letters(2).await;
    assert_eq!(letters[0].id, first);
    post.wait_until_settled().await;
    post.relay.behave();
    // Both are asked for by the request's id; the older one is dealt with.
    let said = post.run(&["dead", "replay", &request.request_id, "--json"]).await.json();
    assert_eq!((&said["replayed"], &said["skipped"]), (&1.into(), &1.into()), "{said}");
    assert_eq!(said["items"][1]["id"], letters[1].id.to_string(), "{said}");
    post.database.wait_for(id(&request), "sent").await;
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_was_held_goes_out_under_the_same_message_id() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).once());
    let request = sample("reseller_announcement", &["reseller@example.bj"]);
    post.publish(&request).await;
    post.database.wait_for_letter(id(&request)).await;
    post.wait_until_settled().await;
    assert_eq!(post.run(&["dead", "replay", &request.request_id]).await.code, 0);
    let row = post.database.wait_for(id(&request), "sent").await.remove(0);
    let mails = post.mails(2).await;
    assert!(mails.iter().all(|mail| format!("<{}>", mail.message_id) == row.message_id), "{mails:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_recipients_only_those_that_failed_get_it() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")).to("gone"));
    let mut request = ticket("one@example.bj");
    for address in ["gone@example.bj", "nowhere", "two@example.bj"] {
        request.recipients.push(wire::Recipient { address: address.to_owned(), display_name: String::new() });
    }
    post.publish(&request).await;
    post.database.wait_for_letter(id(&request)).await;
    post.wait_until_settled().await;
    post.relay.behave();
    assert_eq!(post.run(&["dead", "replay", &request.request_id]).await.code, 0);
    // The address that is none fails again, and says so again.
    let letters = post.database.wait_for_letters(2).await;
    assert_eq!(letters[1].reason, "bad_address");
    let named = letters[1].header("x-recipients");
    assert_eq!((named.as_array().map(Vec::len), &named[0]["address"]), (Some(1), &"nowhere".into()));
    post.wait_until_settled().await;
    let mut got: Vec<_> = post.relay.log().accepted().map(|mail| mail.to[0].clone()).collect();
    got.sort();
    assert_eq!(got, ["gone@example.bj", "one@example.bj", "two@example.bj"]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_mail_has_its_tries_anew_and_older_copies_are_duplicates() {
    // The second rung leaves time to see that it waits, and to publish older copies.
    let post = Installation::start_with(&[("EMAIL_LADDER_STANDARD", "1s,10s")]).await;
    let request = ticket("ada@example.bj");
    refused_later(&post, &request).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).times(2));
    assert_eq!(post.run(&["dead", "replay", &request.request_id]).await.code, 0);
    // The original comes once more while the replay waits for another try.
    until("it waits for another try", async || post.broker.retry_copies().await > 0).await;
    let before = duplicates(&post).await;
    post.broker.publish(&request).await;
    let mut older = publish::outgoing(&request, "email.requests").expect("a request");
    let mut headers = older.properties.headers().clone().unwrap_or_default();
    headers.insert(GENERATION.into(), AMQPValue::LongInt(0));
    headers.insert("x-copy".into(), AMQPValue::LongInt(7));
    headers.insert("x-routing-key".into(), AMQPValue::LongString("support.p1".into()));
    older.properties = older.properties.with_headers(headers);
    post.broker.publish_raw(&older.routing_key, older.properties, &older.body).await;
    until("both are dropped", async || duplicates(&post).await >= before + 2.0).await;
    let row = post.database.wait_for(id(&request), "sent").await.remove(0);
    assert_eq!(row.attempts, 3, "all of its tries are there again");
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

/// Deferred once, then refused: it fails as a retry copy, so its copies have been counted. Then the relay is mended.
async fn refused_later(post: &Installation, request: &wire::EmailRequest) {
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).once());
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.7.1 not from you")));
    post.publish(request).await;
    let letter = post.database.wait_for_letter(id(request)).await;
    assert_eq!((letter.reason.as_str(), letter.attempts), ("rejected", Some(2)));
    post.wait_until_settled().await;
    post.relay.behave();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_whose_mails_are_sent_meanwhile_is_left_alone() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    let letter = refused(&post, &request).await;
    // As feedback does that comes late.
    sqlx::query("update email_messages set status = 'delivered' where request_id = $1")
        .bind(id(&request))
        .execute(&post.database.pool)
        .await
        .expect("changed");
    let said = post.run(&["dead", "replay", &letter.to_string(), "--json"]).await.json();
    assert_eq!((&said["skipped"], &said["items"][0]["why"]), (&1.into(), &"delivered".into()), "{said}");
    assert_eq!(state(&post, letter).await, "waiting");
    assert_eq!(post.relay.log().accepted().count(), 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_does_not_exist_or_no_choice_at_all_replays_nothing() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    let letter = refused(&post, &request).await;
    let nobody = Uuid::new_v4().to_string();
    let said = post.run(&["dead", "replay", &letter.to_string(), &nobody]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains(&nobody) && said.err.contains("nothing was replayed"), "{said:?}");
    for arguments in
        [&["dead", "replay"][..], &["dead", "replay", "--dry-run"], &["dead", "replay", "--all", "--to", "a@b.bj"]]
    {
        let said = post.run(arguments).await;
        assert_eq!(said.code, 2, "{said:?}");
    }
    assert_eq!(state(&post, letter).await, "waiting");
    assert_eq!(post.relay.log().accepted().count(), 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_read_or_never_routed_is_processed_again_and_fails_as_a_new_letter() {
    let post = Installation::start().await;
    let mut unreadable = ticket("nul@example.bj");
    set(&mut unreadable, "title", "a\0b");
    post.publish(&unreadable).await;
    let stray = ticket("stray@example.bj");
    post.broker.publish_to("support.urgent", &stray).await;
    let mut other = ticket("other@example.bj");
    post.publish(&other).await;
    post.database.wait_for(id(&other), "sent").await;
    set(&mut other, "title", "another payload");
    post.publish(&other).await;
    post.database.wait_for_letters(3).await;

    let said = post.run(&["dead", "replay", "--all", "--json"]).await.json();
    assert_eq!((&said["replayed"], &said["skipped"]), (&2.into(), &1.into()), "{said}");
    let conflict = said["items"].as_array().expect("items").iter().find(|item| item["result"] == "skipped");
    assert_eq!(conflict.map(|item| &item["why"]), Some(&"idempotency_conflict".into()), "{said}");
    post.database.wait_for(id(&stray), "sent").await;
    let letters = post.database.wait_for_letters(4).await;
    assert_eq!((letters[3].reason.as_str(), letters[3].request_id), ("malformed", Some(id(&unreadable))));
    assert_eq!(letters[3].body, wire::to_protobuf(&unreadable), "nothing of it is lost");
    assert_eq!(post.relay.log().accepted().count(), 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_put_aside_goes_back_to_its_lane_and_a_mail_that_waits_for_it_goes_on() {
    // Rungs that leave time to take a copy away.
    let post = Installation::start_with(&[("EMAIL_LADDER_STANDARD", "20s,40s")]).await;
    let (unseen, waits) = (ticket("unseen@example.bj"), ticket("waits@example.bj"));
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("waits").once());
    post.publish(&waits).await;
    until("its copy waits for another try", async || post.broker.retry_copies().await == 1).await;
    until("its row knows of that copy", async || post.database.row(id(&waits)).await.settlement == "done").await;
    let channel = post.broker.channel().await;
    let copy = channel.basic_get("email.retry.standard.20s".into(), Default::default()).await.expect("a look");
    let copy = copy.expect("the only copy of it");
    publish_dead(&channel, copy.properties.clone(), &copy.data).await;
    copy.acker.ack(Default::default()).await.expect("taken");
    let message = publish::outgoing(&unseen, "").expect("a request");
    publish_dead(&channel, message.properties, &message.body).await;
    let letters = post.database.wait_for_letters(2).await;
    assert!(letters.iter().all(|letter| letter.reason == "broker"), "{letters:?}");
    // Its time has come meanwhile.
    sqlx::query("update email_messages set due_at = now()").execute(&post.database.pool).await.expect("due");

    let said = post.run(&["dead", "replay", "--reason", "broker", "--json"]).await.json();
    assert_eq!(said["replayed"], 2, "{said}");
    for request in [&unseen, &waits] {
        post.database.wait_for(id(request), "sent").await;
    }
    assert_eq!(post.database.row(id(&waits)).await.attempts, 2, "it goes on where it was");
    assert_eq!(post.relay.log().accepted().count(), 2);
    post.finish().await;
}

async fn publish_dead(channel: &lapin::Channel, properties: lapin::BasicProperties, body: &[u8]) {
    let options = lapin::options::BasicPublishOptions::default();
    let published = channel.basic_publish("email.dead".into(), "support.p1".into(), options, body, properties).await;
    published.expect("it is sent").await.expect("it is taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_mail_is_as_young_as_its_replay() {
    let post = Installation::start_with(&[("EMAIL_AGE_MAX_STANDARD", "1h")]).await;
    let request = ticket("ada@example.bj");
    let mut message = publish::outgoing(&request, "").expect("a request");
    let mut headers = message.properties.headers().clone().unwrap_or_default();
    let two_hours_ago = chrono::Utc::now() - chrono::TimeDelta::hours(2);
    headers.insert(PUBLISHED_AT.into(), AMQPValue::LongLongInt(two_hours_ago.timestamp_millis()));
    message.properties = message.properties.with_headers(headers);
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).times(2));
    post.broker.publish_raw("support.p1", message.properties, &message.body).await;
    let letter = post.database.wait_for_letter(id(&request)).await;
    assert_eq!(letter.reason, "age_exhausted");
    post.wait_until_settled().await;
    // Deferred once more, which its age since the publish would not allow.
    assert_eq!(post.run(&["dead", "replay", &request.request_id]).await.code, 0);
    let row = post.database.wait_for(id(&request), "sent").await.remove(0);
    assert_eq!(row.attempts, 2);
    let published: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("select published_at from email_requests")
        .fetch_one(&post.database.pool)
        .await
        .expect("the request");
    assert_eq!(published.timestamp_millis(), two_hours_ago.timestamp_millis(), "when it was published is kept");
    post.finish().await;
}
