//! SIGTERM in the middle of a thousand mails.

use std::collections::HashSet;

use crate::support::{installation::Installation, process::DaemonProcess, requests::ticket};

const MAILS: usize = 1000;
/// Sent when the signal comes.
const BEFORE: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_told_to_stop_in_the_middle_loses_no_mail_and_sends_none_twice() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let requests: Vec<_> = (0..MAILS).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;

    post.relay.hold_final_dots();
    post.relay.let_through(BEFORE);
    let mut first = DaemonProcess::start(&post.variables);
    post.relay.wait_until("the next ones are on the wire", |log| log.mails.len() > BEFORE).await;
    post.relay.wait_for_mails(BEFORE).await;
    first.terminate();
    // Those on the wire get their answer, and are finished.
    post.relay.release_final_dots();
    let status = first.wait().await;
    assert_eq!(status.code(), Some(0), "{}", first.log());
    let sent = post.relay.log().accepted().count();
    assert!((BEFORE..MAILS).contains(&sent), "{sent}");
    assert_eq!(post.database.count("sent").await, sent, "what the relay has, the audit has");
    assert_eq!(post.database.count("sending").await, 0);

    post.start_daemon().await;
    post.relay.wait_for_mails(MAILS).await;
    post.wait_until_settled().await;
    let log = post.relay.log();
    let people: HashSet<_> = log.mails.iter().map(|mail| &mail.to[0]).collect();
    assert_eq!((log.mails.len(), people.len()), (MAILS, MAILS), "a thousand mails, none twice");
    assert_eq!(post.database.count("sent").await, MAILS);
    assert!(post.database.all_rows().await.iter().all(|row| row.attempts == 1));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_relay_does_not_answer_stops_after_its_grace_and_says_so() {
    let mut post = Installation::prepare(&[("SHUTDOWN_GRACE_SECONDS", "1"), ("EMAIL_LEASE_SECONDS", "1")]).await;
    post.declare_queues().await;
    post.relay.hold_final_dots();
    post.broker.publish_all(&[ticket("held@example.bj")]).await;
    let mut first = DaemonProcess::start(&post.variables);
    post.relay.wait_until("it is on the wire", |log| log.mails.len() == 1).await;
    first.terminate();
    let status = first.wait().await;
    assert_eq!(status.code(), Some(1), "{}", first.log());
    assert!(first.log().contains("SHUTDOWN_GRACE_SECONDS"), "{}", first.log());
    assert_eq!(post.database.count("sending").await, 1);
    // The relay never took it; only the next daemon can find out, by sending it again.
    post.relay.cut_connections();
    post.relay.release_final_dots();
    post.start_daemon().await;
    post.relay.wait_for_mails(1).await;
    post.finish().await;
}
