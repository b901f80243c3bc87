//! A daemon that is killed in the middle of mails: what was not on its way is sent once, what was may be sent again.

use std::collections::{HashMap, HashSet};

use crate::support::{installation::Installation, process::DaemonProcess, requests::ticket, wait::until};

const MAILS: usize = 200;
/// Sent when it is killed.
const BEFORE: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_loses_no_mail_and_only_what_was_on_its_way_is_repeated() {
    let mut post = Installation::prepare(&[("EMAIL_LEASE_SECONDS", "2")]).await;
    post.declare_queues().await;
    let requests: Vec<_> = (0..MAILS).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.relay.hold_final_dots();
    post.relay.let_through(BEFORE);
    let mut first = DaemonProcess::start(&post.variables);
    post.relay.wait_until("the next ones are on the wire", |log| log.mails.len() >= BEFORE + 4).await;
    post.relay.wait_for_mails(BEFORE).await;
    first.kill();
    let rows = post.database.all_rows().await;
    let on_their_way: HashSet<_> =
        rows.iter().filter(|r| r.status == "sending").map(|r| r.message_id.clone()).collect();
    assert!(on_their_way.len() >= 4, "{on_their_way:?}");
    // The relay takes what it has; nobody is there to hear it.
    post.relay.release_final_dots();
    post.relay.wait_until("nobody is connected", |log| log.connections_open == 0).await;

    post.start_daemon().await;
    // What is taken and not claimed yet has no row that could be waited for.
    until("every mail is sent", async || post.database.count("sent").await == MAILS).await;
    post.wait_until_settled().await;
    let mut times: HashMap<String, usize> = HashMap::new();
    for mail in post.mails(MAILS).await {
        *times.entry(format!("<{}>", mail.message_id)).or_default() += 1;
    }
    assert_eq!(times.len(), MAILS, "nothing is lost");
    let repeated: HashSet<_> = times.into_iter().filter(|(_, times)| *times > 1).map(|(id, _)| id).collect();
    assert!(!repeated.is_empty(), "the relay had taken some that nobody could know of");
    assert!(repeated.is_subset(&on_their_way), "{repeated:?} were not all on their way: {on_their_way:?}");
    // What is repeated is told, and is a crash, not a try.
    for row in post.database.all_rows().await.iter().filter(|row| repeated.contains(&row.message_id)) {
        let lines = post.database.timeline(row.id).await;
        let kinds: Vec<_> = lines.iter().map(|line| line.kind.as_str()).collect();
        assert_eq!((kinds, row.attempts), (vec!["unknown", "sent"], 1));
    }
    post.finish().await;
}
