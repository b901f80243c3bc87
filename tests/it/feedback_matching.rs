//! What providers tell finds its mail, whenever it comes, and leaves it where all of it together says.

use chrono::{DateTime, TimeDelta, Utc};
use lapin::types::AMQPValue;
use postrider::{
    broker::topology,
    email::{EmailAddress, Phase, identity::row_id},
    publish,
};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::Row as _;
use uuid::Uuid;

use crate::support::{
    database::Database,
    events::Subscriber,
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, sample, ticket},
    ses::{FEEDBACK_SETTINGS, SesMail, store_event},
    sns::SnsSigner,
    wait::until,
    webhook::TOPIC,
};

async fn start() -> Installation {
    Installation::start_with(&FEEDBACK_SETTINGS).await
}

async fn kinds(database: &Database, row: Uuid) -> Vec<String> {
    database.timeline(row).await.into_iter().map(|line| line.kind).collect()
}

/// A fixed order that looks like none: each test that needs one has its own seed.
fn shuffled<T: Clone>(items: &[T], seed: u64) -> Vec<T> {
    let mut items = items.to_vec();
    let mut state = seed;
    for n in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(n, usize::try_from(state >> 33).expect("31 bits") % (n + 1));
    }
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_of_event_signed_in_any_order_with_repeats_leaves_each_recipient_where_it_belongs() {
    let sns = SnsSigner::start();
    let certificate = sns.certificate();
    let signed_by = [("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8"))];
    let post = Installation::start_with(&[&FEEDBACK_SETTINGS[..], &signed_by].concat()).await;
    let people: Vec<String> = (0..12).map(|n| format!("person-{n}@example.bj")).collect();
    let addresses: Vec<&str> = people.iter().map(String::as_str).collect();
    let request = post.publish(&sample("support_ticket_created", &addresses)).await;
    let rows = post.database.wait_for(request, "sent").await;
    let mail = |n: usize| SesMail::of(rows[n].id, &people[n]);
    let told = [
        (vec![mail(0).send()], "sent", None),
        (vec![mail(1).send(), mail(1).delivery(2)], "delivered", None),
        (vec![mail(2).delay("MailboxFull", 1), mail(2).delivery(9)], "delivered", None),
        (
            vec![mail(3).delivery(1), mail(3).bounce("Permanent", "General", 60)],
            "bounced",
            Some(("permanent", "General")),
        ),
        (vec![mail(4).bounce("Transient", "MailboxFull", 5)], "bounced", Some(("temporary", "MailboxFull"))),
        (
            // Out of office: SES calls it a transient bounce, and the mail was delivered.
            vec![mail(5).bounce("Transient", "General", 1), mail(5).delivery(3)],
            "delivered",
            Some(("temporary", "General")),
        ),
        (
            vec![mail(6).bounce("Permanent", "OnAccountSuppressionList", 1)],
            "bounced",
            Some(("permanent", "OnAccountSuppressionList")),
        ),
        (
            vec![mail(7).bounce("Undetermined", "Undetermined", 1), mail(7).send()],
            "bounced",
            Some(("temporary", "Undetermined")),
        ),
        (
            vec![mail(8).delivery(1), mail(8).complaint("abuse", 600), mail(8).bounce("Permanent", "General", 300)],
            "complaint",
            Some(("permanent", "General")),
        ),
        (vec![mail(9).delivery(1), mail(9).complaint("not-spam", 60)], "delivered", None),
        (
            vec![mail(10).event("Reject", "reject", &json!({"reason": "Bad content"})), mail(10).send()],
            "bounced",
            Some(("permanent", "Reject")),
        ),
        (
            vec![
                mail(11).event("Open", "open", &json!({"timestamp": "2026-11-25T10:00:00.000Z"})),
                mail(11).event(
                    "Click",
                    "click",
                    &json!({"timestamp": "2026-11-25T10:00:01.000Z", "link": "https://x.bj"}),
                ),
                mail(11).event("Subscription", "subscription", &json!({"contactList": "all"})),
                mail(11).event("Brand New", "brandNew", &json!({})),
                mail(11).event("Rendering Failure", "failure", &json!({"errorMessage": "no attribute"})),
            ],
            "bounced",
            Some(("permanent", "RenderingFailure")),
        ),
    ];
    let once: Vec<String> = told.iter().flat_map(|(events, ..)| events.clone()).collect();
    // Each under two MessageIds, as with both of SES's formats, and each of those twice, as SNS repeats what was not answered.
    let envelopes: Vec<_> = once.iter().chain(&once).map(|body| sns.notify(TOPIC, body)).collect();
    for envelope in shuffled(&[envelopes.clone(), envelopes].concat(), 7) {
        assert_eq!(post.daemon().post_webhook(&envelope).await, StatusCode::OK);
    }
    assert_eq!(post.database.receipts().await as usize, 2 * once.len());
    post.database.wait_until_applied().await;
    for (n, (events, status, bounce)) in told.iter().enumerate() {
        let row = sqlx::query("select status, bounce_type, bounce_subtype, attempts from email_messages where id = $1")
            .bind(rows[n].id)
            .fetch_one(&post.database.pool)
            .await
            .expect("a row");
        let bounce_type: Option<String> = row.get("bounce_type");
        let subtype: Option<String> = row.get("bounce_subtype");
        assert_eq!(
            (row.get::<String, _>("status").as_str(), bounce_type.as_deref().zip(subtype.as_deref())),
            (*status, *bounce),
            "{events:#?}"
        );
        assert_eq!(row.get::<i32, _>("attempts"), 1);
        // Each is told once, however often it came; what is not understood is not told.
        let understood = events.iter().filter(|body| !body.contains("Brand New")).count();
        assert_eq!(kinds(&post.database, rows[n].id).await.len(), 1 + understood, "{events:#?}");
    }
    let suppressed: Vec<(String, String)> =
        sqlx::query_as("select address, reason from suppressions order by address, reason")
            .fetch_all(&post.database.pool)
            .await
            .expect("the audit answers");
    let suppressed: Vec<_> = suppressed.iter().map(|(address, reason)| (address.as_str(), reason.as_str())).collect();
    let expected = [
        ("person-3@example.bj", "hard_bounce"),
        ("person-6@example.bj", "hard_bounce"),
        ("person-8@example.bj", "complaint"),
        ("person-8@example.bj", "hard_bounce"),
    ];
    assert_eq!(suppressed, expected);
    let told: i64 = sqlx::query_scalar("select count(*) from email_timeline where reply_text like '%person-%'")
        .fetch_one(&post.database.pool)
        .await
        .expect("the audit answers");
    assert_eq!(told, 0, "far servers repeat whom they refuse; the timeline does not");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounce_that_names_the_person_otherwise_keeps_mail_from_the_address_that_we_know() {
    let post = start().await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let mail = SesMail::of(row.id, "forwarded@example.org");
    store_event(&post.database.store(), &mail.bounce("Permanent", "General", 0)).await;
    post.database.wait_for(request, "bounced").await;
    let next = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(next, "suppressed").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_back_for_now_and_then_for_good_is_told_twice() {
    let post = start().await;
    let subscriber = Subscriber::to(&post.broker, &["*.bounced", "*.delivered"]).await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let (store, mail) = (post.database.store(), SesMail::of(row.id, "ada@example.bj"));
    store_event(&store, &mail.bounce("Transient", "MailboxFull", 5)).await;
    post.database.wait_for(request, "bounced").await;
    subscriber.wait_for(&post.database, 1).await;
    store_event(&store, &mail.bounce("Permanent", "General", 9)).await;
    // Later still, and weaker than what is known.
    store_event(&store, &mail.delivery(7)).await;
    let told = subscriber.wait_for(&post.database, 2).await;
    let told: Vec<_> = told
        .iter()
        .map(|heard| {
            (heard.event.reason.as_str(), heard.event.occurred_at.map_or(0, |at| at.seconds) - mail.at.timestamp())
        })
        .collect();
    assert_eq!(told, [("temporary/MailboxFull", 5), ("permanent/General", 9)]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_somebody_elses_mails_are_looked_at_twice_and_wait_for_nothing() {
    let post = start().await;
    let store = post.database.store();
    let foreign = SesMail { row: None, ..SesMail::of(Uuid::now_v7(), "stranger@example.org") };
    let tagged = foreign.delivery(1).replace("\"ses:configuration-set\"", "\"campaign\"");
    store_event(&store, &tagged).await;
    // One without marks may be ours, and is waited for.
    store_event(&store, &foreign.delivery(2)).await;
    store_event(&store, "{ \"eventType\": \"Bounce\", \"mail\": ").await;
    until("the foreign ones are given up", async || {
        let looks: Vec<(i32, bool)> =
            sqlx::query_as("select looks, next_look_at is not null from webhook_events order by id")
                .fetch_all(&post.database.pool)
                .await
                .expect("the audit answers");
        looks[0] == (2, false) && looks[2] == (2, false) && looks[1].0 >= 2 && looks[1].1
    })
    .await;
    let report = post.run(&["feedback", "report", "--json"]).await.json();
    let types: Vec<_> =
        report["for_nobody"].as_array().expect("a list").iter().map(|e| e["event_type"].clone()).collect();
    assert_eq!(types, [json!("Delivery"), json!("Delivery"), json!("unreadable")]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_about_several_recipients_tells_each_of_them() {
    let post = start().await;
    let request = post.publish(&sample("support_ticket_created", &["ama@example.bj", "Kofi@Example.BJ"])).await;
    let rows = post.database.wait_for(request, "sent").await;
    let both = SesMail {
        to: ["kofi@example.bj", "AMA@example.bj", "stranger@example.bj"].map(str::to_owned).to_vec(),
        ..SesMail::of(rows[0].id, "")
    };
    store_event(&post.database.store(), &both.delivery(1)).await;
    post.database.wait_for(request, "delivered").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_own_id_is_enough() {
    let post = start().await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let relay_id: String = sqlx::query_scalar("select relay_message_id from email_timeline where message_id = $1")
        .bind(row.id)
        .fetch_one(&post.database.pool)
        .await
        .expect("the relay named it");
    // No headers, and the far server calls the person by another name.
    let mail = SesMail {
        row: None,
        message_id: relay_id,
        is_published: false,
        ..SesMail::of(row.id, "a.lovelace@example.bj")
    };
    store_event(&post.database.store(), &mail.delivery(1)).await;
    post.database.wait_for(request, "delivered").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_comes_before_its_row_waits_for_it() {
    let post = start().await;
    let request = ticket("ada@example.bj");
    let message = publish::outgoing(&request, topology::REQUESTS).expect("a request that can be published");
    let headers = message.properties.headers().as_ref().expect("headers").inner();
    let Some(AMQPValue::LongLongInt(milliseconds)) = headers.get("x-published-at-ms") else { panic!("{headers:?}") };
    let published_at = DateTime::from_timestamp_millis(*milliseconds).expect("a time");
    let store = post.database.store();
    let hash = store.address_hash(&EmailAddress::parse("ada@example.bj").expect("an address").key());
    let mail = SesMail::of(row_id(published_at, id(&request), &hash), "ada@example.bj");
    store_event(&store, &mail.bounce("Permanent", "NoEmail", 1)).await;
    store_event(&store, &mail.delivery(0)).await;
    post.database.wait_until_applied().await;
    // Whoever is not there gets nothing more, even before it is known which mail came back. This one is let through.
    sqlx::query("delete from suppressions").execute(&post.database.pool).await.expect("lifted");
    post.broker.publish_raw(&message.routing_key, message.properties, &message.body).await;
    let row = post.database.wait_for(id(&request), "bounced").await.remove(0);
    assert_eq!(Some(row.id), mail.row.map(|(id, _)| id));
    // The two may be looked at apart.
    until("both have found it", async || {
        sqlx::query_scalar("select not exists (select 1 from webhook_events where matched_at is null)")
            .fetch_one(&post.database.pool)
            .await
            .expect("the audit answers")
    })
    .await;
    let report = post.run(&["feedback", "report", "--json"]).await;
    assert_eq!(report.json()["for_nobody"], json!([]));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_during_the_final_dot_settles_the_mail_and_the_late_answer_is_told() {
    let post = start().await;
    post.relay.hold_final_dots();
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.relay.wait_until("it is on the wire", |log| log.mails.len() == 1).await;
    let row = post.database.row(request).await;
    assert_eq!(row.status, "sending");
    store_event(&post.database.store(), &SesMail::of(row.id, "ada@example.bj").delivery(1)).await;
    post.database.wait_for(request, "delivered").await;
    post.relay.release_final_dots();
    until("the relay's answer is told", async || kinds(&post.database, row.id).await.len() == 2).await;
    assert_eq!(kinds(&post.database, row.id).await, ["delivered", "sent"]);
    let row = post.database.row(request).await;
    assert_eq!((row.status.as_str(), row.attempts, row.settlement.as_str()), ("delivered", 1, "none"));
    assert!(row.latency_ms.is_some() && row.sent_at.is_some(), "{row:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_dies_after_the_event_has_told_more_than_the_link() {
    let post = start().await;
    post.relay.hold_final_dots();
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.relay.wait_until("it is on the wire", |log| log.mails.len() == 1).await;
    let row = post.database.row(request).await;
    store_event(&post.database.store(), &SesMail::of(row.id, "ada@example.bj").send()).await;
    post.database.wait_for(request, "sent").await;
    post.relay.cut_connections();
    until("its end is told", async || kinds(&post.database, row.id).await.len() == 2).await;
    assert_eq!(kinds(&post.database, row.id).await, ["accepted", "unknown"]);
    assert_eq!(post.database.row(request).await.status, "sent");
    assert_eq!(post.relay.log().mails.len(), 1, "nobody sends it again");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_settled_by_an_event_before_anything_is_sent_again() {
    let post =
        Installation::start_with(&[&FEEDBACK_SETTINGS[..], &[("EMAIL_UNKNOWN_WAIT_SECONDS", "600")]].concat()).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).once());
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "unknown").await.remove(0);
    assert!(!row.held);
    store_event(&post.database.store(), &SesMail::of(row.id, "ada@example.bj").delivery(2)).await;
    let row = post.database.wait_for(request, "delivered").await.remove(0);
    assert_eq!((row.reason.as_deref(), row.settlement.as_str(), row.attempts), (None, "none", 1));
    // The copy that would have sent it again comes back, and finds that there is nothing to do.
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 1);
    let resolved = async || post.daemon().metric("email_feedback_resolved_total", &[]).await;
    // It is counted once the database has it.
    until("it is counted", async || resolved().await >= 1.0).await;
    assert!((resolved().await - 1.0).abs() < f64::EPSILON);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_was_held_for_an_operator_needs_none_once_an_event_came() {
    let post = start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).once());
    let request = post.publish(&sample("reseller_announcement", &["reseller@example.bj"])).await;
    let letter = post.database.wait_for_letter(request).await;
    post.wait_until_settled().await;
    let row = post.database.row(request).await;
    store_event(&post.database.store(), &SesMail::of(row.id, "reseller@example.bj").delivery(2)).await;
    post.database.wait_for(request, "delivered").await;
    let replayed = post.run(&["dead", "replay", &letter.id.to_string()]).await;
    assert_eq!(post.relay.log().mails.len(), 1, "{replayed:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_failed_after_it_may_have_been_accepted_is_not_replayed_once_an_event_came() {
    let settings = [&FEEDBACK_SETTINGS[..], &[("EMAIL_UNKNOWN_WAIT_SECONDS", "1")]].concat();
    let post = Installation::start_with(&settings).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).once());
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")).nth(2).once());
    let request = post.publish(&ticket("ada@example.bj")).await;
    let letter = post.database.wait_for_letter(request).await;
    post.wait_until_settled().await;
    let row = post.database.wait_for(request, "failed").await.remove(0);
    assert_eq!(kinds(&post.database, row.id).await, ["unknown", "rejected"], "both tries are told");
    store_event(&post.database.store(), &SesMail::of(row.id, "ada@example.bj").delivery(2)).await;
    post.database.wait_for(request, "delivered").await;
    let replayed = post.run(&["dead", "replay", &letter.id.to_string()]).await;
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 1, "{replayed:?}");
    assert_eq!(post.database.row(request).await.status, "delivered", "{replayed:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_about_somebody_who_was_forgotten_brings_nobody_back() {
    let post = start().await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    sqlx::query("update email_messages set recipient_email = null, subject = null where id = $1")
        .bind(row.id)
        .execute(&post.database.pool)
        .await
        .expect("anonymised");
    store_event(&post.database.store(), &SesMail::of(row.id, "ada@example.bj").bounce("Permanent", "General", 1)).await;
    until("it bounced", async || post.database.count("bounced").await == 1).await;
    let left: i64 = sqlx::query_scalar(
        "select (select count(*) from webhook_events where body like '%ada@%')
              + (select count(*) from email_timeline where concat(reply_text, error) like '%ada@%')
              + (select count(*) from suppressions where address is not null)",
    )
    .fetch_one(&post.database.pool)
    .await
    .expect("the audit answers");
    assert_eq!(left, 0, "the address is nowhere");
    let hashes: i64 = sqlx::query_scalar("select count(*) from suppressions")
        .fetch_one(&post.database.pool)
        .await
        .expect("an answer");
    assert_eq!(hashes, 1, "and yet nothing more is sent there");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_a_year_late_is_one_for_nobody_and_its_complaint_counts() {
    let post = start().await;
    let store = post.database.store();
    let late = SesMail { at: Utc::now() - TimeDelta::days(366), ..SesMail::of(Uuid::now_v7(), "ada@example.bj") };
    store_event(&store, &late.complaint("abuse", 1)).await;
    post.database.wait_until_applied().await;
    let report = post.run(&["feedback", "report"]).await;
    assert!(report.out.contains("1 events for nobody") && report.out.contains("Complaint"), "{report:?}");
    assert!(!report.out.contains("ada@"), "{report:?}");
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "suppressed").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_of_which_nothing_is_told_is_reported_as_silent() {
    let post = start().await;
    let silent = post.publish(&ticket("ada@example.bj")).await;
    let told = post.publish(&ticket("kofi@example.bj")).await;
    let silent = post.database.wait_for(silent, "sent").await.remove(0);
    let row = post.database.wait_for(told, "sent").await.remove(0);
    store_event(&post.database.store(), &SesMail::of(row.id, "kofi@example.bj").delivery(1)).await;
    post.database.wait_for(told, "delivered").await;
    let report = post.run(&["feedback", "report", "--silent-hours", "0", "--json"]).await.json();
    let listed: Vec<_> = report["silent"].as_array().expect("a list").iter().map(|mail| mail["id"].clone()).collect();
    assert_eq!(listed, [json!(silent.id)]);
    assert_eq!(post.run(&["feedback", "report", "--json"]).await.json()["silent"], json!([]), "not for a day yet");
    post.finish().await;
}
