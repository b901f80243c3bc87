//! Each recipient of a request has a mail, attempts and an outcome of their own.

use postrider::{email::Phase, wire};

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::ticket,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_and_a_refused_recipient_cost_the_others_nothing() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("later").times(2));
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let mut request = ticket("one@example.bj");
    for address in ["gone@example.bj", "later@example.bj", "two@example.bj", "ONE@example.bj"] {
        request.recipients.push(wire::Recipient { address: address.to_owned(), display_name: String::new() });
    }
    let request = post.publish(&request).await;

    let letter = post.database.wait_for_letter(request).await;
    let rows = post.database.rows(request).await;
    let fates: Vec<_> =
        rows.iter().map(|row| (row.recipient_email.as_str(), row.status.as_str(), row.attempts)).collect();
    assert_eq!(
        fates,
        [
            ("one@example.bj", "sent", 1),
            ("gone@example.bj", "failed", 1),
            ("later@example.bj", "sent", 3),
            ("two@example.bj", "sent", 1)
        ],
        "and the one who was named twice counts once"
    );
    let mut got: Vec<_> = post.relay.log().accepted().map(|mail| mail.to[0].clone()).collect();
    got.sort();
    assert_eq!(got, ["later@example.bj", "one@example.bj", "two@example.bj"], "nobody gets two");

    assert_eq!(letter.reason, "rejected");
    let named = letter.header("x-recipients");
    assert_eq!(named.as_array().map(Vec::len), Some(1), "{named}");
    assert_eq!(named[0]["address"], "gone@example.bj");
    // One letter, and only when nobody was pending any more. Its clock counts milliseconds.
    let last_sent = rows.iter().filter_map(|row| row.sent_at).max().expect("some were sent");
    let written = letter.last_at.expect("it says when");
    assert!(written.timestamp_millis() >= last_sent.timestamp_millis(), "{written} is before {last_sent}");
    post.finish().await;
}
