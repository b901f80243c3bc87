//! Queues that are not as they should be are told by name; classic lanes work as quorum ones do.

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use postrider::email::Phase;

use crate::support::{
    daemon::Daemon,
    installation::Installation,
    relay::{Act, Rule},
    requests::{incident, ticket},
};

async fn declare_queue(post: &Installation, name: &str, arguments: &[(&str, &str)]) {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    post.broker.channel().await.queue_declare(name.into(), options, table).await.expect("it is declared");
}

/// Starts a daemon that cannot, and returns what it says.
async fn refusal(post: &Installation) -> String {
    let daemon = Daemon::launch(&post.variables).await;
    daemon.end().await.expect_err("it does not start").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_one_error_that_names_it() {
    let mut post = Installation::prepare(&[]).await;
    declare_queue(&post, "email.standard", &[("x-queue-type", "classic")]).await;
    let said = refusal(&post).await;
    for word in ["queue email.standard", "x-dead-letter-exchange", "'email.dead'", "none"] {
        assert!(said.contains(word), "no {word} in: {said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    let checked = post.run(&["check"]).await;
    assert!(checked.code == 1 && checked.out.contains("queue email.standard"), "{checked:?}");

    // The same broker after a change of the settings.
    post.broker.delete_queue("email.standard").await;
    post.declare_queues().await;
    post.variables.insert("AMQP_QUEUE_TYPE".to_owned(), "classic".to_owned());
    let said = refusal(&post).await;
    for word in ["queue email.unrouted", "'quorum'", "AMQP_QUEUE_TYPE"] {
        assert!(said.contains(word), "no {word} in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_of_another_kind_is_one_error_that_names_it() {
    let post = Installation::prepare(&[]).await;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    post.broker
        .channel()
        .await
        .exchange_declare("email.requests".into(), ExchangeKind::Fanout, options, FieldTable::default())
        .await
        .expect("it is declared");
    let said = refusal(&post).await;
    for word in ["exchange email.requests", "topic", "fanout"] {
        assert!(said.contains(word), "no {word} in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_only_verifies_names_what_is_missing_and_declares_nothing() {
    let mut post = Installation::prepare(&[("AMQP_TOPOLOGY", "verify")]).await;
    let said = refusal(&post).await;
    assert!(said.contains("does not exist") && said.contains("AMQP_TOPOLOGY=declare"), "{said}");
    assert!(post.broker.queues().await.is_empty());

    post.variables.insert("AMQP_TOPOLOGY".to_owned(), "declare".to_owned());
    post.declare_queues().await;
    post.broker.delete_queue("email.retry.bulk.800ms").await;
    post.variables.insert("AMQP_TOPOLOGY".to_owned(), "verify".to_owned());
    let said = refusal(&post).await;
    assert!(said.contains("queue email.retry.bulk.800ms"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_only_verifies_sees_other_arguments_too() {
    let mut post = Installation::prepare(&[("AMQP_QUEUE_TYPE", "classic")]).await;
    post.declare_queues().await;
    post.variables.insert("AMQP_TOPOLOGY".to_owned(), "verify".to_owned());
    post.start_daemon().await;
    let request = post.publish(&ticket("verified@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    post.stop_daemon().await;
    post.variables.insert("AMQP_QUEUE_TYPE".to_owned(), "quorum".to_owned());
    let said = refusal(&post).await;
    assert!(said.contains("x-queue-type"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_trusts_declares_nothing_and_works() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    post.variables.insert("AMQP_TOPOLOGY".to_owned(), "none".to_owned());
    post.start_daemon().await;
    let request = post.publish(&ticket("trusting@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classic_lanes_lose_no_retry_no_dead_letter_and_nothing_unrouted() {
    let post = Installation::start_with(&[("AMQP_QUEUE_TYPE", "classic")]).await;
    assert_eq!(post.broker.queue_type("email.standard").await, "classic");
    // A classic queue hands over at most once when a message runs out, so what waits is in quorum queues.
    assert_eq!(post.broker.queue_type("email.retry.standard.200ms").await, "quorum");
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("later").times(2));
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let later = post.publish(&ticket("later@example.bj")).await;
    let gone = post.publish(&ticket("gone@example.bj")).await;
    let urgent = post.publish(&incident("urgent@example.bj")).await;
    post.broker.publish_to("support.p9", &ticket("nowhere@example.bj")).await;
    assert_eq!(post.database.wait_for(later, "sent").await[0].attempts, 3);
    post.database.wait_for(urgent, "sent").await;
    assert_eq!(post.database.wait_for_letter(gone).await.reason, "rejected");
    let letters = post.database.wait_for_letters(2).await;
    assert!(letters.iter().any(|letter| letter.reason == "unrouted"), "{letters:?}");
    post.finish().await;
}
