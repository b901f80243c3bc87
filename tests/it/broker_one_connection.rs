//! A request never holds a place on a connection that it does not use while it waits for another.

use postrider::email::Phase;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::sample,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_with_one_connection_does_not_stand_still_when_the_first_recipient_is_settled_already() {
    let post = Installation::start_with(&[("SMTP_CONNECTIONS_STANDARD", "1")]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("second@example.bj").once());
    let request = sample("support_ticket_created", &["first@example.bj", "second@example.bj", "third@example.bj"]);
    let request = post.publish(&request).await;
    let rows = post.database.wait_for(request, "sent").await;
    assert_eq!(rows.len(), 3);
    assert_eq!(post.mails(3).await.last().map(|mail| mail.envelope_to.as_str()), Some("second@example.bj"));
    post.finish().await;
}
