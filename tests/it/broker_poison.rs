//! A message that takes the daemon down is found out and parked; those that were beside it lose nothing.

use std::collections::HashSet;

use postrider::wire;
use uuid::Uuid;

use crate::support::{
    installation::Installation,
    process::DaemonProcess,
    requests::{id, ticket},
    wait::until,
};

const NEIGHBOURS: usize = 40;
/// More lives than it takes: two in company, three alone, one that parks it, and those in which somebody came beside it.
const LIVES_MAX: usize = 30;

/// Publishes a message that kills whoever works on it, in the middle of others.
async fn publish(post: &mut Installation) -> (Uuid, Vec<wire::EmailRequest>) {
    post.declare_queues().await;
    let deadly = ticket("deadly@example.bj");
    let mut neighbours: Vec<_> = (0..NEIGHBOURS).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&neighbours[..NEIGHBOURS / 2]).await;
    post.publish(&deadly).await;
    post.broker.publish_all(&neighbours[NEIGHBOURS / 2..]).await;
    neighbours.sort_by_key(id);
    (id(&deadly), neighbours)
}

/// Starts one daemon after the other for as long as they die, and returns how many did.
async fn live_and_die(post: &Installation, deadly: Uuid, variables: &[(&str, String)]) -> (usize, DaemonProcess) {
    let mut settings = post.variables.clone();
    settings.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    for lives in 0..LIVES_MAX {
        let mut daemon = DaemonProcess::start(&settings);
        let mut is_parked = false;
        until("it dies, or parks what kills it", async || {
            let letters = post.database.letters().await;
            is_parked = letters.iter().any(|letter| letter.request_id == Some(deadly));
            is_parked || daemon.has_ended()
        })
        .await;
        if is_parked {
            return (lives, daemon);
        }
    }
    panic!("nobody found out what it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_every_daemon_is_parked_after_three_crashes_of_its_own() {
    let mut post = Installation::prepare(&[("EMAIL_LEASE_SECONDS", "1")]).await;
    let (deadly, neighbours) = publish(&mut post).await;
    let dies = [("POSTRIDER_DIE_AT", format!("rendered@{deadly}"))];
    let (lives, mut last) = live_and_die(&post, deadly, &dies).await;
    // The first delivery and the first redelivery in company, three alone.
    assert_eq!(lives, 5, "{}", last.log());
    let letter = post.database.wait_for_letter(deadly).await;
    assert_eq!(letter.reason, "poison");
    let words = letter.error.expect("words");
    assert!(words.contains("died 3 times") && words.contains("nothing else"), "{words}");
    for request in &neighbours {
        post.database.wait_for(id(request), "sent").await;
    }
    let log = post.relay.log();
    let people: HashSet<_> = log.accepted().map(|mail| mail.to[0].clone()).collect();
    assert_eq!(people.len(), NEIGHBOURS, "nobody lost anything");
    assert!(!people.contains("deadly@example.bj"));
    assert_eq!(post.database.letters().await.len(), 1, "and nobody else was blamed");
    until("what was held against the others is forgotten", async || {
        let left: i64 = sqlx::query_scalar(
            "select (select count(*) from email_crashes) + (select count(*) from email_crash_marks)",
        )
        .fetch_one(&post.database.pool)
        .await
        .expect("the audit answers");
        left == 0
    })
    .await;
    last.terminate();
    assert_eq!(last.wait().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_panics_is_parked_with_the_panics_words_and_no_daemon_dies() {
    let mut post = Installation::prepare(&[]).await;
    let (deadly, neighbours) = publish(&mut post).await;
    let panics = [("POSTRIDER_PANIC_AT", format!("rendered@{deadly}"))];
    let (lives, mut daemon) = live_and_die(&post, deadly, &panics).await;
    assert_eq!(lives, 0, "{}", daemon.log());
    let letter = post.database.wait_for_letter(deadly).await;
    assert_eq!(letter.reason, "poison");
    let words = letter.error.expect("words");
    assert!(words.contains("panicked 3 times") && words.contains("told to panic"), "{words}");
    for request in &neighbours {
        let row = post.database.wait_for(id(request), "sent").await.remove(0);
        assert_eq!(row.attempts, 1);
    }
    assert_eq!(post.relay.log().mails.len(), NEIGHBOURS);
    daemon.terminate();
    assert_eq!(daemon.wait().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_once_costs_a_mail_no_try() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let request = ticket("ada@example.bj");
    post.publish(&request).await;
    let mut settings = post.variables.clone();
    settings.insert("POSTRIDER_PANIC_AT".to_owned(), "claimed#1".to_owned());
    let mut daemon = DaemonProcess::start(&settings);
    let row = post.database.wait_for(id(&request), "sent").await.remove(0);
    assert_eq!(row.attempts, 1);
    assert_eq!(post.relay.log().mails.len(), 1);
    daemon.terminate();
    assert_eq!(daemon.wait().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_whose_sending_kills_every_daemon_is_sent_alone_and_parked() {
    let mut post = Installation::prepare(&[("EMAIL_LEASE_SECONDS", "2")]).await;
    let (deadly, neighbours) = publish(&mut post).await;
    let dies = [("POSTRIDER_DIE_AT", format!("send@{deadly}"))];
    let (lives, mut last) = live_and_die(&post, deadly, &dies).await;
    assert!(lives >= 4, "one in company, three alone: {lives}: {}", last.log());
    let letter = post.database.wait_for_letter(deadly).await;
    assert_eq!(letter.reason, "poison");
    for request in &neighbours {
        post.database.wait_for(id(request), "sent").await;
    }
    post.wait_until_settled().await;
    let row = post.database.row(deadly).await;
    assert_eq!((row.status.as_str(), row.reason.as_deref()), ("failed", Some("poison")));
    assert_eq!(post.database.letters().await.len(), 1);
    last.terminate();
    assert_eq!(last.wait().await.code(), Some(0));
}
