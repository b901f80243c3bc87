//! A recorded mail goes out again as it was: once however often it is asked for, linked on both sides, and nobody but an operator
//! can make it so.

use postrider::{email::Phase, publish};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    daemon::{ADMIN_TOKEN, VIEWER_TOKEN},
    installation::Installation,
    process::postrider,
    relay::{Act, Rule},
    requests::{attach, id, incident, invoice, pdf, set, ticket},
    wait::until,
};

fn path(message: Uuid) -> String {
    format!("/api/v1/email/messages/{message}/resend")
}

async fn resend(post: &Installation, message: Uuid, body: &Value) -> (StatusCode, Value) {
    post.daemon().post(&path(message), ADMIN_TOKEN, body).await
}

fn uuid(said: &Value, name: &str) -> Uuid {
    said[name].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name}: {said}"))
}

async fn change(post: &Installation, statement: &'static str, message: Uuid) {
    sqlx::query(statement).bind(message).execute(&post.database.pool).await.expect("changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_out_with_the_recorded_words_and_files_whatever_has_become_of_its_template() {
    let post = Installation::start().await;
    let mut request = invoice("ada@example.bj");
    request.recipients[0].display_name = "Ada".to_owned();
    request.reply_to = "comptes@rgz.bj".to_owned();
    // Not in the order of their names.
    attach(&mut request, "facture.pdf", "application/pdf", pdf());
    attach(&mut request, "annexe.pdf", "application/pdf", pdf());
    post.publish(&request).await;
    let old = post.database.wait_for(id(&request), "sent").await.remove(0);
    // The words are another version's by now, and one that takes no files and that is gone is none's.
    change(&post, "update email_messages set subject = 'Facture d''alors' where id = $1", old.id).await;
    for statement in [
        "delete from email_template_activations where template_key = $1",
        "delete from email_template_versions where template_key = $1",
        "delete from email_templates where key = $1",
    ] {
        sqlx::query(statement).bind("billing_invoice_monthly").execute(&post.database.pool).await.expect("deleted");
    }
    let (status, said) = resend(&post, old.id, &json!({})).await;
    assert_eq!((status, &said["is_new"], &said["is_published"]), (StatusCode::ACCEPTED, &json!(true), &json!(true)));
    let new = post.database.wait_for(uuid(&said, "request_id"), "sent").await.remove(0);
    assert_eq!(new.id, uuid(&said, "message_id"));
    let mails = post.mails(2).await;
    assert_eq!(mails[1].subject, "Facture d'alors");
    assert_eq!((&mails[1].html, &mails[1].text), (&mails[0].html, &mails[0].text));
    assert_eq!((&mails[1].to, &mails[1].reply_to), (&mails[0].to, &mails[0].reply_to));
    assert_eq!(mails[1].files, mails[0].files, "as they were, in their order");
    assert_eq!(mails[1].files.len(), 2);
    assert_eq!(format!("<{}>", mails[1].message_id), new.message_id);
    assert_ne!(new.message_id, old.message_id);
    assert_eq!(new.template_version, old.template_version);

    // Each knows of the other.
    let (_, shown) = post.daemon().get(&format!("/api/v1/email/messages/{}", new.id), ADMIN_TOKEN).await;
    assert_eq!(shown["retransmission_of"], json!(old.id), "{shown}");
    let (_, looked) = post.daemon().get(&path(old.id), VIEWER_TOKEN).await;
    assert_eq!(looked["retransmissions"][0]["message_id"], json!(new.id), "{looked}");
    let kinds = async |message| {
        let lines = post.database.timeline(message).await;
        lines.into_iter().map(|line| line.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(old.id).await, ["sent", "retransmitted"]);
    assert_eq!(kinds(new.id).await, ["retransmission", "sent"]);
    let words = post.run(&["messages", "show", &old.id.to_string()]).await;
    assert!(words.out.contains(&new.id.to_string()), "{words:?}");
    let words = post.run(&["messages", "show", &new.id.to_string()]).await;
    assert!(words.out.contains("Repeats") && words.out.contains(&old.id.to_string()), "{words:?}");
    let changes: (String, String) = sqlx::query_as("select action, changed_by from operator_changes where target = $1")
        .bind(old.id.to_string())
        .fetch_one(&post.database.pool)
        .await
        .expect("one line");
    assert_eq!(changes, ("message.resend".to_owned(), "operator:test-admin".to_owned()));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_for_twice_it_goes_out_once_and_with_another_key_once_more() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    post.publish(&request).await;
    let old = post.database.wait_for(id(&request), "sent").await.remove(0).id;
    let with_key = async |key: &str| resend(&post, old, &json!({ "key": key })).await.1;
    // At the same moment.
    let (one, two) = tokio::join!(with_key("a"), with_key("a"));
    assert_eq!(one["request_id"], two["request_id"], "{one} {two}");
    assert_eq!([&one, &two].iter().filter(|said| said["is_new"] == true).count(), 1, "{one} {two}");
    post.database.wait_for(uuid(&one, "request_id"), "sent").await;
    // Without a key, just after: whoever presses twice means one.
    let (status, said) = resend(&post, old, &json!({})).await;
    assert_eq!((status, &said["is_new"]), (StatusCode::ACCEPTED, &json!(false)), "{said}");
    assert_eq!(said["request_id"], one["request_id"]);
    let said = post.run(&["messages", "resend", &old.to_string(), "--json"]).await.json();
    assert_eq!((&said["is_new"], &said["request_id"]), (&json!(false), &one["request_id"]), "{said}");
    let said = post.run(&["messages", "resend", &old.to_string(), "--key", "b", "--by", "grace"]).await;
    assert!(said.code == 0 && said.out.contains("It goes out again"), "{said:?}");
    assert_eq!(post.mails(3).await.len(), 3);
    // What was sent again can itself be.
    let (status, said) = resend(&post, uuid(&one, "message_id"), &json!({ "key": "a" })).await;
    assert_eq!((status, &said["is_new"]), (StatusCode::ACCEPTED, &json!(true)), "{said}");
    post.mails(4).await;
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().accepted().count(), 4);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_go_or_is_not_recorded_is_refused_with_the_reason() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    post.publish(&request).await;
    let old = post.database.wait_for(id(&request), "sent").await.remove(0).id;
    let refused = async |why: &str| {
        let (status, said) = resend(&post, old, &json!({})).await;
        assert_eq!((status, &said["why"]), (StatusCode::CONFLICT, &json!(why)), "{said}");
        let (_, looked) = post.daemon().get(&path(old), VIEWER_TOKEN).await;
        assert_eq!((&looked["is_possible"], &looked["why"]), (&json!(false), &json!(why)), "{looked}");
        let said = post.run(&["messages", "resend", &old.to_string()]).await;
        assert!(said.code == 1 && said.err.contains("not sent again"), "{said:?}");
    };
    for (statement, why) in [
        ("update email_messages set status = 'sending' where id = $1", "on_its_way"),
        ("update email_messages set status = 'unknown', held = true where id = $1", "unknown"),
        ("update email_messages set status = 'failed', held = false where id = $1", "failed"),
        ("update email_messages set status = 'expired' where id = $1", "expired"),
    ] {
        change(&post, statement, old).await;
        refused(why).await;
    }
    change(&post, "update email_messages set status = 'delivered' where id = $1", old).await;
    let suppress = "insert into suppressions (address_hash, reason, source)
        select recipient_hash, 'hard_bounce', 'test' from email_messages where id = $1";
    change(&post, suppress, old).await;
    refused("suppressed").await;
    change(&post, "delete from suppressions where $1::uuid is not null", old).await;
    let (_, looked) = post.daemon().get(&path(old), VIEWER_TOKEN).await;
    assert_eq!(looked["is_possible"], true, "{looked}");
    let anonymise = "update email_messages set recipient_email = null, subject = null, html_content = null,
        text_content = null where id = $1";
    change(&post, anonymise, old).await;
    refused("no_content").await;

    let nobody = Uuid::nil();
    assert_eq!(post.daemon().post(&path(old), VIEWER_TOKEN, &json!({})).await.0, StatusCode::FORBIDDEN);
    assert_eq!(resend(&post, nobody, &json!({})).await.0, StatusCode::NOT_FOUND);
    assert_eq!(resend(&post, old, &json!({ "key": "" })).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(resend(&post, old, &json!({ "to": "x@example.bj" })).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let bare = reqwest::Client::new().post(post.daemon().url(&path(old))).send().await.expect("an answer");
    assert_eq!(bare.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(post.relay.log().accepted().count(), 1);
    let written: i64 =
        sqlx::query_scalar("select count(*) from retransmissions").fetch_one(&post.database.pool).await.expect("none");
    assert_eq!(written, 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_who_takes_its_id_changes_nothing_of_it() {
    let post = Installation::start().await;
    let request = ticket("ada@example.bj");
    post.publish(&request).await;
    let old = post.database.wait_for(id(&request), "sent").await.remove(0);
    let again = killed_before_publishing(&post, old.id, "a").await;
    // Somebody else's mail under that id: before the true message, and as if it were that message.
    let mut forged = ticket("mallory@example.bj");
    forged.request_id = again.to_string();
    let plain = publish::outgoing(&forged, "").expect("a request");
    let mut headers = plain.properties.headers().clone().unwrap_or_default();
    headers.insert("x-generation".into(), lapin::types::AMQPValue::LongInt(1));
    headers.insert("x-routing-key".into(), lapin::types::AMQPValue::LongString("support.p1".into()));
    for properties in [plain.properties.clone(), plain.properties.clone().with_headers(headers)] {
        post.broker.publish_raw("support.p1", properties, &plain.body).await;
    }
    let letters = post.database.wait_for_letters(2).await;
    assert!(letters.iter().all(|letter| letter.reason == "idempotency_conflict"), "{letters:?}");
    let (status, said) = resend(&post, old.id, &json!({ "key": "a" })).await;
    assert_eq!((status, uuid(&said, "request_id")), (StatusCode::ACCEPTED, again), "{said}");
    post.database.wait_for(again, "sent").await;
    let mails = post.mails(2).await;
    assert_eq!((&mails[1].envelope_to, &mails[1].subject), (&mails[0].envelope_to, &mails[0].subject));
    post.finish().await;
}

/// An operator's command that dies when the rows are committed and nothing is published. Answers the request.
async fn killed_before_publishing(post: &Installation, message: Uuid, key: &str) -> Uuid {
    let mut variables = post.variables.clone();
    variables.insert("POSTRIDER_DIE_AT".to_owned(), "replay_committed".to_owned());
    let said = postrider(&variables, &["messages", "resend", &message.to_string(), "--key", key]).await;
    assert_eq!(said.code, -1, "it was killed: {said:?}");
    sqlx::query_scalar("select request_id from retransmissions where published_at is null")
        .fetch_one(&post.database.pool)
        .await
        .expect("one is owed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asked_may_die_a_daemon_publishes_what_is_owed_once() {
    let post = Installation::start().await;
    let request = incident("ada@example.bj");
    post.publish(&request).await;
    let rows = post.database.wait_for(id(&request), "sent").await;
    let old = rows.iter().find(|row| row.recipient_email == "ada@example.bj").expect("her mail").id;
    let again = killed_before_publishing(&post, old, "a").await;
    assert_eq!(post.database.row(again).await.status, "queued");
    change(&post, "update retransmissions set at = at - interval '1 hour' where repeats = $1", old).await;
    let row = post.database.wait_for(again, "sent").await.remove(0);
    assert_eq!((row.lane.as_str(), row.recipient_email.as_str()), ("fast", "ada@example.bj"), "she, and not the NOC");
    until("it is owed no more", async || {
        let owed: i64 = sqlx::query_scalar("select count(*) from retransmissions where published_at is null")
            .fetch_one(&post.database.pool)
            .await
            .expect("an answer");
        owed == 0
    })
    .await;
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().accepted().count(), 3);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_by_the_relay_it_is_a_dead_letter_whose_replay_says_the_same_words() {
    let post = Installation::start().await;
    let mut request = ticket("ada@example.bj");
    set(&mut request, "title", "Plus de signal");
    post.publish(&request).await;
    let old = post.database.wait_for(id(&request), "sent").await.remove(0);
    change(&post, "update email_messages set subject = 'Comme alors' where id = $1", old.id).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")));
    let (_, said) = resend(&post, old.id, &json!({})).await;
    let again = uuid(&said, "request_id");
    let letter = post.database.wait_for_letter(again).await;
    assert_eq!(letter.reason, "rejected");
    post.wait_until_settled().await;
    post.relay.behave();
    assert_eq!(post.run(&["dead", "replay", &letter.id.to_string(), "--json"]).await.json()["replayed"], 1);
    post.database.wait_for(again, "sent").await;
    let mails = post.mails(2).await;
    assert_eq!((mails[1].subject.as_str(), &mails[1].html), ("Comme alors", &mails[0].html));
    post.finish().await;
}
