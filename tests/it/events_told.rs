//! Producers hear what became of what they sent: once, under its key, with what they gave to be echoed.

use std::process::ExitCode;

use postrider::email::Phase;

use crate::support::{
    events::{Subscriber, metadata},
    installation::Installation,
    proxy::Proxy,
    relay::{Act, Rule},
    requests::{id, incident, ticket},
    wait::until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_was_sent_is_told_with_all_that_its_producer_needs() {
    let post = Installation::start().await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    let mut request = ticket("ada@example.bj");
    request.metadata = metadata(&[("order", "4711"), ("é", "ü")]);
    post.publish(&request).await;
    let heard = subscriber.wait_for(&post.database, 1).await.remove(0);
    let row = post.database.row(id(&request)).await;
    assert_eq!(heard.key, "support.sent");
    let event = heard.event;
    assert_eq!((event.kind.as_str(), event.source.as_str(), event.attempt), ("sent", "support", 1));
    assert_eq!((&event.request_id, event.message_id), (&request.request_id, row.id.to_string()));
    assert_eq!((event.template_key.as_str(), event.recipient.as_str()), ("support_ticket_created", "ada@example.bj"));
    assert_eq!((event.metadata, event.reason.as_str()), (request.metadata, ""));
    let (at, sent_at) = (event.occurred_at.expect("a time"), row.sent_at.expect("a time"));
    assert_eq!(
        (at.seconds, i64::from(at.nanos) / 1000),
        (sent_at.timestamp(), sent_at.timestamp_subsec_micros().into())
    );
    let properties = heard.properties;
    let text = |given: &Option<lapin::types::ShortString>| given.as_ref().map(ToString::to_string).unwrap_or_default();
    assert_eq!(text(properties.message_id()), event.event_id);
    assert_eq!(text(properties.kind()), "postrider.v1.EmailEvent");
    assert_eq!(text(properties.content_type()), "application/x-protobuf");
    assert_eq!((*properties.delivery_mode(), properties.timestamp().is_some()), (Some(2), true));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_suppressed_or_went_nowhere_is_told_with_the_reason() {
    let post = Installation::start().await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let gone = post.publish(&ticket("gone@example.bj")).await;
    let heard = subscriber.wait_for(&post.database, 1).await.remove(0);
    assert_eq!((heard.key.as_str(), heard.event.reason.as_str()), ("support.failed", "rejected"));
    assert_eq!((heard.event.request_id, heard.event.attempt), (gone.to_string(), 1));

    sqlx::query(
        "insert into suppressions (address_hash, reason, source) select recipient_hash, 'hard_bounce', 'test'
         from email_messages on conflict do nothing",
    )
    .execute(&post.database.pool)
    .await
    .expect("suppressed");
    let suppressed = post.publish(&ticket("gone@example.bj")).await;
    let heard = subscriber.wait_for(&post.database, 2).await.remove(1);
    assert_eq!((heard.key.as_str(), heard.event.reason.as_str()), ("support.suppressed", "hard_bounce"));
    assert_eq!((heard.event.request_id, heard.event.attempt), (suppressed.to_string(), 0));

    let mut nowhere = ticket("nowhere@example.bj");
    nowhere.metadata = metadata(&[("order", "12")]);
    post.broker.publish_to("support.urgent", &nowhere).await;
    let heard = subscriber.wait_for(&post.database, 3).await.remove(2);
    assert_eq!(heard.key, "support.unrouted");
    assert!(heard.event.reason.contains("support.urgent"), "{heard:?}");
    assert_eq!((&heard.event.request_id, heard.event.message_id.as_str()), (&nowhere.request_id, ""));
    assert_eq!((heard.event.template_key, heard.event.metadata), (nowhere.template_key, nowhere.metadata));
    // Nobody can say who asked for what cannot even be read: not who it claims to be either.
    post.broker.publish_raw("Odd Key!.x", lapin::BasicProperties::default(), b"garbage").await;
    let heard = subscriber.wait_for(&post.database, 4).await.remove(3);
    assert_eq!((heard.key.as_str(), heard.event.request_id.as_str()), ("unknown.unrouted", ""));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_is_told_in_order_to_whoever_asks_for_all() {
    let post = Installation::start_with(&[("EMAIL_EVENTS", "all")]).await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("later").once());
    let later = post.publish(&ticket("later@example.bj")).await;
    subscriber.wait_for(&post.database, 4).await;
    assert_eq!(subscriber.kinds_of(later), ["sending", "deferred", "sending", "sent"]);
    let attempts: Vec<_> = subscriber.heard().iter().map(|heard| heard.event.attempt).collect();
    assert_eq!(attempts, [0, 1, 1, 2]);

    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 refused by policy")).to("again").once());
    let again = post.publish(&ticket("again@example.bj")).await;
    post.database.wait_for_letter(again).await;
    post.wait_until_settled().await;
    assert_eq!(post.run(&["dead", "replay", &again.to_string()]).await.code, 0);
    subscriber.wait_for(&post.database, 9).await;
    assert_eq!(subscriber.kinds_of(again), ["sending", "failed", "replayed", "sending", "sent"]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_may_have_been_accepted_is_called_unknown_and_not_deferred() {
    let post = Installation::start_with(&[("EMAIL_EVENTS", "all")]).await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).to("maybe").once());
    let maybe = post.publish(&ticket("maybe@example.bj")).await;
    subscriber.wait_for(&post.database, 4).await;
    assert_eq!(subscriber.kinds_of(maybe), ["sending", "unknown", "sending", "sent"]);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_a_failed_mail_is_no_news_by_default() {
    let post = Installation::start().await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("again").once());
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 refused by policy")).to("again").once());
    let again = post.publish(&ticket("again@example.bj")).await;
    post.database.wait_for_letter(again).await;
    post.wait_until_settled().await;
    assert_eq!(post.run(&["dead", "replay", &again.to_string()]).await.code, 0);
    subscriber.wait_for(&post.database, 2).await;
    assert_eq!(subscriber.kinds_of(again), ["failed", "sent"]);
    assert_eq!(post.database.events_ever().await, 2, "nothing else was even written");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_is_bound_means_nothing_published_and_nothing_left_behind() {
    let mut post = Installation::start().await;
    let requests: Vec<_> = (0..40).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.wait_until_idle().await;
    until("all are sent", async || post.database.count("sent").await == 40).await;
    post.database.wait_until_told().await;
    let unbound = async || post.daemon().metric("email_events_unbound_total", &[]).await;
    // They are counted once their rows are gone.
    until("all are counted", async || unbound().await >= 40.0).await;
    assert_eq!(unbound().await, 40.0);
    assert_eq!(post.daemon().metric("email_events_published_total", &[]).await, 0.0);
    // Who comes late hears of what comes later, and of that only.
    let subscriber = Subscriber::to(&post.broker, &["incident.*"]).await;
    let alert = incident("duty@example.bj");
    post.publish(&ticket("unheard@example.bj")).await;
    post.publish(&alert).await;
    let heard = subscriber.wait_for(&post.database, 2).await;
    assert!(heard.iter().all(|heard| heard.key == "incident.sent" && heard.event.request_id == alert.request_id));
    let mut to: Vec<_> = heard.into_iter().map(|heard| heard.event.recipient).collect();
    to.sort();
    assert_eq!(to, ["duty@example.bj", "noc@rgz.bj"], "each recipient is a mail of its own");
    until("the others were sent too", async || post.database.count("sent").await == 43).await;
    // That a daemon tells of its last mails before its end is another test's: it has three seconds for that.
    post.database.wait_until_told().await;
    assert_eq!(post.stop_daemon().await, ExitCode::SUCCESS);
    assert_eq!(post.database.owed_events().await, 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fits_no_routing_key_is_nobodys_and_stops_nobody() {
    let post = Installation::start().await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    let mut request = ticket("nowhere@example.bj");
    request.source = "a".repeat(1000);
    post.broker.publish_to(&"a".repeat(250), &request).await;
    let told = subscriber.wait_for(&post.database, 1).await;
    assert_eq!(told[0].event.kind, "unrouted");
    assert!(told[0].key.len() < 100, "{}", told[0].key);
    // A row that is there all the same is dropped, and what is behind it comes through.
    sqlx::query("insert into outbox (source, kind, attempt, occurred_at) values (repeat('a', 251), 'sent', 1, now())")
        .execute(&post.database.pool)
        .await
        .expect("written");
    let sent = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(sent, "sent").await;
    subscriber.wait_for(&post.database, 2).await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_switched_off_are_not_even_written() {
    let post = Installation::start_with(&[("EMAIL_EVENTS", "off")]).await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let gone = post.publish(&ticket("gone@example.bj")).await;
    let sent = post.publish(&ticket("ada@example.bj")).await;
    post.broker.publish_to("support.urgent", &ticket("nowhere@example.bj")).await;
    post.database.wait_for_letters(2).await;
    post.database.wait_for(gone, "failed").await;
    post.database.wait_for(sent, "sent").await;
    assert_eq!(post.database.events_ever().await, 0);
    assert!(subscriber.heard().is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_sent_without_a_database_is_told_when_its_journal_is_written() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    post.start_daemon().await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    line.cut().await;
    post.daemon().wait_until_not_ready("database").await;
    let alert = incident("duty@example.bj");
    post.publish(&alert).await;
    post.relay.wait_for_mails(2).await;
    assert!(subscriber.heard().is_empty());
    line.mend().await;
    let heard = subscriber.wait_for(&post.database, 2).await;
    for one in heard {
        assert_eq!((one.key.as_str(), one.event.attempt), ("incident.sent", 1));
        let row =
            post.database.rows(id(&alert)).await.into_iter().find(|row| row.id.to_string() == one.event.message_id);
        let sent_at = row.and_then(|row| row.sent_at).expect("a time");
        assert_eq!(one.event.occurred_at.map(|at| at.seconds), Some(sent_at.timestamp()), "when it was sent, not told");
    }
    post.finish().await;
}
