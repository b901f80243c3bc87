//! `postrider events tail` shows what happens, and says clearly when it cannot.

use std::process::{Command, Stdio};

use serde_json::Value;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::support::{
    daemon::Variables,
    events::metadata,
    installation::Installation,
    process::{Said, postrider},
    requests::{invoice, ticket},
    wait::until,
};

/// The settings of somebody who may have a queue of their own, as a daemon may not.
fn of_a_listener(post: &Installation) -> Variables {
    let mut variables = post.variables.clone();
    variables.insert("AMQP_URL".to_owned(), post.broker.admin_url().to_owned());
    variables
}

/// Runs it beside the test, and returns once it listens.
async fn tail(post: &Installation, arguments: &[&str]) -> JoinHandle<Said> {
    let (variables, arguments) = (of_a_listener(post), arguments.iter().map(|&a| a.to_owned()).collect::<Vec<_>>());
    let running = tokio::spawn(async move {
        let all: Vec<&str> = ["events", "tail"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        postrider(&variables, &all).await
    });
    until("it listens", async || post.broker.listeners().await == 1).await;
    running
}

/// Whether a process has a handler for SIGINT, which is the second signal: before that it is just killed.
fn catches_interrupts(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("the signals that it catches");
    u64::from_str_radix(caught.trim(), 16).expect("a mask") & 0x2 != 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_shown_as_they_come_and_addresses_only_to_whoever_asks() {
    let post = Installation::start().await;
    let shown = tail(&post, &["--count", "1", "--source", "support", "--kind", "sent"]).await;
    post.publish(&invoice("other@example.bj")).await;
    let request = ticket("ada@example.bj");
    post.publish(&request).await;
    let said = shown.await.expect("it ends");
    assert_eq!((said.code, said.out.lines().count()), (0, 1), "{said:?}");
    for word in ["sent", "support", "support_ticket_created", &request.request_id, "attempt 1"] {
        assert!(said.out.contains(word), "{word}: {said:?}");
    }
    assert!(!said.out.contains("ada@"), "{said:?}");

    // Or the next one would seem to listen already.
    until("its queue is gone", async || post.broker.listeners().await == 0).await;
    let shown = tail(&post, &["--count", "1", "--recipients", "--json"]).await;
    let mut request = ticket("ada@example.bj");
    request.metadata = metadata(&[("order", "4711")]);
    post.publish(&request).await;
    let said = shown.await.expect("it ends");
    let event: Value = serde_json::from_str(said.out.trim()).expect("one line of JSON");
    assert_eq!((&event["recipient"], &event["kind"]), (&"ada@example.bj".into(), &"sent".into()));
    assert_eq!((&event["requestId"], &event["metadata"]["order"]), (&request.request_id.into(), &"4711".into()));
    until("its queue is gone", async || post.broker.listeners().await == 0).await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_interrupted_has_done_its_work_and_one_that_is_cut_off_has_not() {
    let post = Installation::start().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(["events", "tail"]).env_clear().envs(of_a_listener(&post)).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    until("it listens", async || post.broker.listeners().await == 1).await;
    until("it can be interrupted", async || catches_interrupts(child.id())).await;
    let told = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(told.success());
    let ended = spawn_blocking(move || child.wait()).await.expect("it was waited for").expect("it ended");
    assert_eq!(ended.code(), Some(0));

    until("its queue is gone", async || post.broker.listeners().await == 0).await;
    let shown = tail(&post, &[]).await;
    post.broker.close_connections("postrider tail").await;
    let said = shown.await.expect("it ends");
    assert!(said.code == 1 && said.err.contains("no more events are seen"), "{said:?}");
    post.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_are_no_events_it_says_why() {
    let post = Installation::prepare(&[]).await;
    let said = postrider(&of_a_listener(&post), &["events", "tail"]).await;
    assert!(said.code == 1 && said.err.contains("email.events") && said.err.contains("postrider run"), "{said:?}");
    let mut away = post.variables.clone();
    away.insert("AMQP_URL".to_owned(), "amqp://someone:secret@127.0.0.1:1/%2f".to_owned());
    let said = postrider(&away, &["events", "tail"]).await;
    assert!(said.code == 1 && said.err.contains("AMQP_URL") && said.err.contains("127.0.0.1:1"), "{said:?}");
    assert!(!said.err.contains("secret"), "{said:?}");
    let said = post.run(&["events", "tail", "--kind", "nonsense"]).await;
    assert!(said.code == 2 && said.err.contains("unrouted"), "{said:?}");
}
