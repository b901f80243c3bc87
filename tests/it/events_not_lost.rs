//! No event is lost, whoever is away or dies; what may be told twice says so by its id.

use std::collections::HashSet;

use lapin::options::ExchangeDeclareOptions;
use postrider::broker::topology;

use crate::support::{
    daemon::Daemon,
    events::Subscriber,
    installation::Installation,
    process::DaemonProcess,
    proxy::Proxy,
    requests::{id, ticket},
    wait::until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_before_it_was_told_is_told_when_it_is_back() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.broker.url()).await;
    post.variables.insert("AMQP_URL".to_owned(), line.url(post.broker.url()));
    post.start_daemon().await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    post.relay.hold_final_dots();
    let requests: Vec<_> = (0..4).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.relay.wait_until("all are on the wire", |log| log.mails.len() == 4).await;
    line.cut().await;
    post.daemon().wait_until_not_ready("broker").await;
    post.relay.release_final_dots();
    for request in &requests {
        post.database.wait_for(id(request), "sent").await;
    }
    assert_eq!((post.database.owed_events().await, subscriber.heard().len()), (4, 0));
    let age = async || post.daemon().metric("email_events_waiting_seconds", &[]).await;
    until("the oldest is seen to wait", async || age().await > 0.0).await;
    line.mend().await;
    let heard = subscriber.wait_for(&post.database, 4).await;
    let told: HashSet<_> = heard.iter().map(|heard| heard.event.request_id.clone()).collect();
    assert_eq!(told, requests.iter().map(|request| request.request_id.clone()).collect());
    until("nothing is seen to wait", async || age().await == 0.0).await;
    // The requests come again, for their acknowledgements were lost with the line.
    until("they are known", async || post.daemon().metric("email_settled_total", &["duplicate"]).await >= 4.0).await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_before_it_deletes_an_event_tells_it_again_under_the_same_id() {
    let mut post = Installation::prepare(&[("EMAIL_LEASE_SECONDS", "1")]).await;
    post.declare_queues().await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    let mut dying = post.variables.clone();
    dying.insert("POSTRIDER_DIE_AT".to_owned(), "events_confirmed".to_owned());
    let mut daemon = DaemonProcess::start(&dying);
    daemon.wait().await;
    until("it was told", async || !subscriber.heard().is_empty()).await;
    assert_eq!(post.database.owed_events().await, 1, "as far as the database knows it is owed");
    post.start_daemon().await;
    let heard = subscriber.wait_for(&post.database, 2).await;
    assert_eq!(heard[0].event, heard[1].event, "the same event, with the same id");
    assert_eq!(heard[0].event.request_id, request.to_string());
    assert_eq!(post.relay.log().mails.len(), 1, "told twice, sent once");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_told_to_stop_tells_of_its_last_mails_first() {
    // The last events have three seconds, which are soon over on a machine that stalls: then it is tried again.
    for _ in 0..3 {
        let mut post = Installation::prepare(&[]).await;
        post.declare_queues().await;
        let subscriber = Subscriber::to(&post.broker, &["#"]).await;
        let mut daemon = DaemonProcess::start(&post.variables);
        post.relay.hold_final_dots();
        let requests: Vec<_> = (0..8).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
        post.broker.publish_all(&requests).await;
        post.relay.wait_until("all are on the wire", |log| log.mails.len() == 8).await;
        daemon.terminate();
        until("it knows", async || daemon.log().contains("stopping")).await;
        post.relay.release_final_dots();
        assert!(daemon.wait().await.success(), "{}", daemon.log());
        if daemon.log().contains("events are left in the outbox") {
            continue;
        }
        assert_eq!(post.database.owed_events().await, 0, "nothing is left for another daemon");
        assert_eq!(subscriber.wait_for(&post.database, 8).await.len(), 8);
        return;
    }
    panic!("three daemons have left events in the outbox");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_tell_each_event_once() {
    const MAILS: usize = 300;
    let post = Installation::start().await;
    let second = Daemon::start(&post.variables).await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    let requests: Vec<_> = (0..MAILS).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    let heard = subscriber.wait_for(&post.database, MAILS).await;
    let ids: HashSet<_> = heard.iter().map(|heard| heard.event.event_id.clone()).collect();
    let told: HashSet<_> = heard.iter().map(|heard| heard.event.request_id.clone()).collect();
    assert_eq!((ids.len(), told.len()), (MAILS, MAILS));
    let published = async || {
        let mut sum = 0.0;
        for daemon in [post.daemon(), &second] {
            sum += daemon.metric("email_events_published_total", &[]).await;
        }
        sum
    };
    // They are counted once their rows are gone.
    until("all are counted", async || published().await >= MAILS as f64).await;
    assert_eq!(published().await, MAILS as f64);
    post.wait_until_idle().await;
    second.stop().await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_somebody_deleted_is_declared_again() {
    let post = Installation::start().await;
    let channel = post.broker.channel().await;
    channel.exchange_delete(topology::EVENTS.into(), Default::default()).await.expect("deleted");
    let sent = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(sent, "sent").await;
    post.database.wait_until_told().await;
    let options = ExchangeDeclareOptions { passive: true, durable: true, ..ExchangeDeclareOptions::default() };
    let kind = lapin::ExchangeKind::Topic;
    let channel = post.broker.channel().await;
    channel.exchange_declare(topology::EVENTS.into(), kind, options, Default::default()).await.expect("it is back");
    post.finish().await;
}
