//! A queue that somebody deletes is noticed, and made again.

use postrider::email::Phase;

use crate::support::{
    broker::Broker,
    installation::Installation,
    relay::{Act, Rule},
    requests::{incident, reminder, ticket},
    wait::until,
};

async fn wait_for_consumer(broker: &Broker, queue: &str) {
    until(&format!("somebody consumes {queue}"), async || {
        broker.depth(queue).await.is_some_and(|depth| depth.consumers == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_deleted_under_its_consumer_is_declared_and_consumed_again() {
    let post = Installation::start().await;
    let lanes = ["email.fast", "email.standard", "email.bulk", "email.dead"];
    // In quick succession: each consumer hears of its own queue while the others' are being made again.
    for queue in lanes {
        post.broker.delete_queue(queue).await;
    }
    for queue in lanes {
        wait_for_consumer(&post.broker, queue).await;
    }
    // Bound as before, and all the way to the archive.
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    for request in [incident("a@example.bj"), ticket("b@example.bj"), reminder("c@example.bj")] {
        let request = post.publish(&request).await;
        post.database.wait_for(request, "sent").await;
    }
    let refused = post.publish(&ticket("gone@example.bj")).await;
    assert_eq!(post.database.wait_for_letter(refused).await.reason, "rejected");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_queue_that_is_gone_does_not_hold_a_mail_for_ever() {
    let post = Installation::start().await;
    post.broker.delete_queue("email.retry.standard.200ms").await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("ada").once());
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    assert_eq!(row.attempts, 2);
    post.finish().await;
}
