//! `not_before` is waited for, and past `expires_at` nothing is sent.

use std::time::{Duration, Instant};

use postrider::email::Phase;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::{in_seconds, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_is_not_sent_before_its_time_and_its_wait_counts_no_try() {
    let post = Installation::start().await;
    let mut request = ticket("patient@example.bj");
    let published = Instant::now();
    request.not_before = Some(in_seconds(6.0));
    let request = post.publish(&request).await;
    let waiting = post.database.wait_for(request, "queued").await.remove(0);
    assert_eq!(waiting.attempts, 0);
    let row = post.database.wait_for(request, "sent").await.remove(0);
    assert_eq!(row.attempts, 1);
    let log = post.relay.log();
    assert_eq!(log.mails.len(), 1);
    let waited = log.mails[0].begun_at - published;
    assert!(waited >= Duration::from_millis(5990), "{waited:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_past_its_expiry_is_never_sent() {
    // The second try comes after the end of the one that waits for it.
    let post = Installation::start_with(&[("EMAIL_LADDER_STANDARD", "10s,20s")]).await;
    let mut late = ticket("late@example.bj");
    late.expires_at = Some(in_seconds(-1.0));
    let late = post.publish(&late).await;
    // This one runs out while it waits for another try.
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("waiting"));
    let mut waiting = ticket("waiting@example.bj");
    waiting.expires_at = Some(in_seconds(8.0));
    let waiting = post.publish(&waiting).await;

    let row = post.database.wait_for(late, "expired").await.remove(0);
    assert_eq!(row.attempts, 0);
    let row = post.database.wait_for(waiting, "expired").await.remove(0);
    assert!((1..=2).contains(&row.attempts), "{row:?}");
    let lines = post.database.timeline(row.id).await;
    assert_eq!(lines.last().map(|line| line.kind.as_str()), Some("expired"), "{lines:?}");
    let log = post.relay.log();
    assert!(log.mails.iter().all(|mail| mail.to[0] == "waiting@example.bj") && log.accepted().count() == 0);
    assert!(post.database.letters().await.is_empty(), "policy is no failure");
    post.finish().await;
}
