//! An incident does not wait behind invoices.

use crate::support::{
    installation::Installation,
    requests::{incident, invoice, reminder},
};

/// Mails in each of the other lanes; many more where time is no object.
fn flood_size() -> usize {
    if std::env::var_os("TEST_FULL").is_some() { 10_000 } else { 300 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_is_sent_while_the_flood_before_it_still_waits() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let mut flood = Vec::new();
    for n in 0..flood_size() {
        flood.push(invoice(&format!("invoice-{n}@example.bj")));
        flood.push(reminder(&format!("reminder-{n}@example.bj")));
    }
    post.broker.publish_all(&flood).await;
    // A relay that is slow with everything but what it must be quick with.
    post.relay.hold_final_dots_but_to(&["oncall@example.bj", "noc@rgz.bj"]);
    post.start_daemon().await;
    // Both lanes are full to the brim: every connection of theirs is held.
    post.relay.wait_until("the flood is on the wire", |log| log.mails.len() >= 12).await;

    let request = post.publish(&incident("oncall@example.bj")).await;
    let rows = post.database.wait_for(request, "sent").await;
    assert_eq!(rows.len(), 2, "with the NOC");
    assert!(rows.iter().all(|row| row.lane == "fast"), "{rows:?}");
    let slowest = rows.iter().filter_map(|row| row.latency_ms).max().expect("it says how long it took");
    assert!(slowest < 5000, "{slowest} ms from publish to the relay's 250");
    let sent = post.database.count("sent").await;
    assert!((sent - 2) * 10 <= flood.len(), "nine in ten of the others still wait: {sent} were sent");

    post.relay.release_final_dots();
    // A large flood takes its time, but never stands still.
    for count in (500..flood.len()).step_by(500).chain([flood.len() + 2]) {
        post.relay.wait_until(&format!("{count} mails accepted"), |log| log.accepted().count() >= count).await;
    }
    post.wait_until_settled().await;
    assert_eq!(post.database.count("sent").await, flood.len() + 2);
    let mut to: Vec<_> = post.relay.log().mails.iter().map(|mail| mail.to[0].clone()).collect();
    to.sort();
    to.dedup();
    assert_eq!(to.len(), flood.len() + 2, "nobody got two");
    post.finish().await;
}
