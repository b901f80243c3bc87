//! `deploy/rabbitmq/definitions.json` is what the daemon declares, and its users may do what they must, and no more.

use std::collections::BTreeMap;

use postrider::email::Phase;
use serde_json::{Value, json};

use crate::support::{
    broker::{Broker, Import},
    daemon::Daemon,
    installation::Installation,
    process::postrider,
    producers::Language,
    proxy::Proxy,
    relay::{Act, Rule},
    requests::{incident, ticket},
    wait::until,
};

/// Ladders are those of the definitions: the default ones.
const DEFAULT_LADDERS: [(&str, &str); 3] =
    [("EMAIL_LADDER_FAST", ""), ("EMAIL_LADDER_STANDARD", ""), ("EMAIL_LADDER_BULK", "")];

fn read(name: &str) -> Value {
    let path = format!("{}/deploy/rabbitmq/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("the file")).expect("JSON")
}

/// Names and arguments, of what counts.
fn objects(definitions: &Value, kind: &str) -> BTreeMap<String, Value> {
    let listed = definitions[kind].as_array().into_iter().flatten();
    let named = listed.map(|object| match kind {
        "bindings" => {
            let name = format!("{} -{}-> {}", object["source"], object["routing_key"], object["destination"]);
            (name, json!({ "to": object["destination_type"], "arguments": object["arguments"] }))
        }
        _ => {
            let looks = json!({
                "type": object.get("type").filter(|_| kind == "exchanges"),
                "durable": object["durable"], "auto_delete": object["auto_delete"], "arguments": object["arguments"],
            });
            (object["name"].to_string(), looks)
        }
    });
    named.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_definitions_are_what_the_daemon_declares() {
    let mut post = Installation::prepare(&DEFAULT_LADDERS).await;
    post.declare_queues().await;
    let (declared, committed) = (post.broker.definitions().await, read("definitions.json"));
    for kind in ["exchanges", "queues", "bindings"] {
        assert_eq!(objects(&committed, kind), objects(&declared, kind), "{kind}");
    }
    // And the broker takes them for the same.
    let mut imported = Installation::prepare(&DEFAULT_LADDERS).await;
    let _import = imported.broker.import(&committed).await;
    imported.set(&[("AMQP_TOPOLOGY", "verify")]);
    imported.start_daemon().await;
    imported.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_for_newer_brokers_are_taken_by_one() {
    let broker = Broker::start().await;
    let Some(group) = broker.import_policies(&read("policies-4.json")).await else { return };
    assert_eq!(group["target-group-size"], 3);
}

/// A daemon with no more rights than the definitions give it.
async fn limited() -> (Installation, Import) {
    let mut post = Installation::prepare(&DEFAULT_LADDERS).await;
    let import = post.broker.import(&read("definitions.json")).await;
    post.set(&[("AMQP_URL", &import.url("postrider")), ("AMQP_TOPOLOGY", "verify")]);
    post.start_daemon().await;
    (post, import)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_user_may_carry_retry_bury_replay_and_tell() {
    let (mut post, import) = limited().await;
    let listener = Language::Python.listen(&import.url("support"), 2);
    until("it listens", async || {
        post.broker.depth("support.email-events").await.is_some_and(|depth| depth.consumers == 1)
    })
    .await;
    // A retry copy, in the shortest rung.
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("later").times(1));
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.6.0 no")).to("ada").times(1));
    let later = post.publish(&incident("later@example.bj")).await;
    assert!(post.database.wait_for(later, "sent").await.iter().any(|row| row.attempts == 2));
    // A dead letter, told to the service, and replayed.
    let said = Language::Python.run(&import.url("support"), &[], &["publish", "ada@example.bj", "4711"]).await;
    let request = said.out.trim().parse().expect("an id");
    assert_eq!(post.database.wait_for_letter(request).await.reason, "rejected");
    let replayed = post.run(&["dead", "replay", &request.to_string()]).await;
    assert_eq!(replayed.code, 0, "{replayed:?}");
    post.database.wait_for(request, "sent").await;
    let kinds: Vec<_> = listener.events().await.iter().map(|event| event["kind"].clone()).collect();
    assert_eq!(kinds, ["failed", "sent"]);
    // What no binding matches.
    post.broker.publish_to("support.p9", &ticket("nowhere@example.bj")).await;
    let letters = post.database.wait_for_letters(2).await;
    assert!(letters.iter().any(|letter| letter.reason == "unrouted"), "{letters:?}");
    let depths = post.run(&["lanes", "--json"]).await.json();
    assert_eq!(depths["broker_error"], Value::Null, "{depths}");
    let checked = post.run(&["check"]).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    post.stop_daemon().await;

    // A queue is missing: it may not make one, and says which.
    post.broker.delete_queue("email.audit").await;
    let said = Daemon::launch(&post.variables).await.end().await.expect_err("it does not start").to_string();
    assert!(said.contains("email.audit"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_user_may_keep_the_journal_of_incidents() {
    let (mut post, _import) = limited().await;
    post.stop_daemon().await;
    let line = Proxy::start(post.database.url()).await;
    let url = line.url(post.database.url());
    post.set(&[("DATABASE_URL", &url)]);
    post.start_daemon().await;
    line.cut().await;
    post.daemon().wait_until_not_ready("database").await;
    let request = post.publish(&incident("urgent@example.bj")).await;
    post.relay.wait_for_mails(2).await;
    line.mend().await;
    post.database.wait_for(request, "sent").await;
    post.wait_until_idle().await;
    post.stop_daemon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_services_user_may_not_speak_for_another_nor_read_what_is_not_its_own() {
    let (post, import) = limited().await;
    let (connection, properties) = (import.connect("support").await, lapin::BasicProperties::default());
    for key in ["support.p0", "billing.p2"] {
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(Default::default()).await.expect("confirms");
        let sent =
            channel.basic_publish("email.requests".into(), key.into(), Default::default(), b"x", properties.clone());
        let refused = match sent.await {
            Ok(confirm) => confirm.await.expect_err("refused"),
            Err(error) => error,
        };
        assert!(refused.to_string().contains("403") || refused.to_string().contains("ACCESS"), "{key}: {refused}");
    }
    for queue in ["email.dead", "email.standard", "billing.email-events"] {
        let channel = connection.create_channel().await.expect("a channel");
        let got = channel.basic_get(queue.into(), Default::default()).await;
        let refused = got.expect_err("refused");
        assert!(refused.to_string().contains("ACCESS") || refused.to_string().contains("403"), "{queue}: {refused}");
    }
    // An operator hears everybody's events, and that is all.
    let mut variables = post.variables.clone();
    variables.insert("AMQP_URL".to_owned(), import.url("operator"));
    let tail = tokio::spawn(async move { postrider(&variables, &["events", "tail", "--count", "1"]).await });
    until("it listens", async || post.broker.listeners().await == 1).await;
    post.publish(&ticket("heard@example.bj")).await;
    let said = tail.await.expect("it ends");
    assert!(said.code == 0 && said.out.contains("sent"), "{said:?}");
    post.finish().await;
}
