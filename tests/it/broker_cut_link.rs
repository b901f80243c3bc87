//! A link that dies around the final dot: before it nothing was accepted, after it nobody knows.

use postrider::email::Phase;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::{sample, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_may_have_been_accepted_is_repeated_under_the_same_message_id() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).to("ada").once());
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let lines = post.database.timeline(row.id).await;
    let told: Vec<_> = lines.iter().map(|line| (line.kind.as_str(), line.attempt)).collect();
    assert_eq!(told, [("unknown", 1), ("sent", 2)]);
    let mails = post.mails(2).await;
    assert!(mails.iter().all(|mail| format!("<{}>", mail.message_id) == row.message_id), "{mails:?}");
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announcement_that_may_have_been_accepted_is_left_to_an_operator() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).to("reseller").once());
    let request = post.publish(&sample("reseller_announcement", &["reseller@example.bj"])).await;
    let letter = post.database.wait_for_letter(request).await;
    assert_eq!(letter.reason, "outcome_unknown");
    let named = letter.header("x-recipients");
    assert_eq!((&named[0]["address"], &named[0]["reason"]), (&"reseller@example.bj".into(), &"outcome_unknown".into()));
    post.wait_until_settled().await;
    let row = post.database.row(request).await;
    assert_eq!((row.status.as_str(), row.held, row.settlement.as_str()), ("unknown", true, "done"));
    // Published again it is a duplicate, and stays with the operator.
    let again = post.publish(&ticket("behind@example.bj")).await;
    post.database.wait_for(again, "sent").await;
    assert_eq!(post.relay.log().accepted().filter(|mail| mail.to[0] == "reseller@example.bj").count(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_cannot_have_been_accepted_is_simply_tried_again() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Data, Act::Disconnect).to("reseller").once());
    let request = post.publish(&sample("reseller_announcement", &["reseller@example.bj"])).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let lines = post.database.timeline(row.id).await;
    let told: Vec<_> = lines.iter().map(|line| (line.kind.as_str(), line.phase.as_deref())).collect();
    assert_eq!(told, [("deferred", Some("data")), ("sent", Some("final_dot"))]);
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}
