//! The command line says what it did, and what is wrong.

use std::fs;

use postrider::wire;
use serde_json::{Value, json};

use crate::support::{
    daemon::Variables,
    installation::Installation,
    process::{at_a_terminal, postrider},
    requests::{id, pdf, ticket},
    wait::until_some,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_are_missing_or_wrong_are_all_told_at_once() {
    let mut variables = Variables::new();
    for (name, value) in [("AMQP_URL", "http://localhost"), ("SMTP_PORT", "0"), ("EMAIL_HASH_KEY", "a-short-secret")] {
        variables.insert(name.to_owned(), value.to_owned());
    }
    for command in ["run", "check"] {
        let said = postrider(&variables, &[command]).await;
        assert_eq!(said.code, 78, "{said:?}");
        for name in ["AMQP_URL", "DATABASE_URL", "EMAIL_HASH_KEY", "SMTP_HOST", "SMTP_PORT", "SMTP_FROM_EMAIL"] {
            assert!(said.err.contains(name), "{name}: {said:?}");
        }
        assert!(!said.err.contains("a-short-secret"), "{said:?}");
    }
}

/// Exit code and words of `check`; where the machine was too slow for one of the services, it is asked again.
async fn check(post: &Installation) -> (i32, Value) {
    until_some("all services answer in time", async || {
        let said = post.run(&["check", "--json"]).await;
        let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        let items = report["items"].as_array().expect("items");
        let is_late = |item: &Value| item["words"].as_str().is_some_and(|words| words.contains("no answer within"));
        (!items.iter().any(is_late)).then_some((said.code, report))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_service_is_told_by_check() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let (code, said) = check(&post).await;
    assert_eq!((code, &said["ok"]), (0, &json!(true)), "{said}");
    post.relay.refuse_connections().await;
    let (code, said) = check(&post).await;
    assert_eq!(code, 1, "{said}");
    let wrong: Vec<_> = said["items"].as_array().expect("items").iter().filter(|item| item["ok"] == false).collect();
    assert_eq!(wrong.len(), 1, "{said}");
    assert_eq!(wrong[0]["what"], "relay");
    assert!(wrong[0]["words"].as_str().is_some_and(|words| words.contains("refused")), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_publishes_is_sent_and_found_again() {
    let post = Installation::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(path("invoice.pdf"), pdf()).expect("a file");
    let to = ["--to", "one@example.bj,two@example.bj"];
    let mut flags = vec!["publish", "--template", "billing_invoice_monthly", "--sample", "--json"];
    let attach = path("invoice.pdf");
    flags.extend(to);
    flags.extend(["--attach", &attach, "--var", "invoice_number=INV-CLI"]);
    let said = post.run(&flags).await.json();
    assert_eq!(said["routing_key"], "billing.p2");
    let request = said["request_id"].as_str().expect("an id").to_owned();
    let mails = post.mails(2).await;
    assert!(mails.iter().all(|mail| mail.text.contains("INV-CLI") && mail.files[0].2 == pdf()), "{mails:?}");

    let one = ticket("file@example.bj");
    fs::write(path("one.json"), wire::to_json(&one).to_string()).expect("a file");
    let file = path("one.json");
    let said = post.run(&["publish", "--request", &file]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains(&one.request_id), "{said:?}");
    // Published again: sent once.
    assert_eq!(post.run(&["publish", "--request", &file]).await.code, 0);

    let many: Vec<_> = (0..20).map(|n| ticket(&format!("line-{n}@example.bj"))).collect();
    let lines: Vec<_> = many.iter().map(|request| wire::to_json(request).to_string()).collect();
    fs::write(path("many.jsonl"), lines.join("\n")).expect("a file");
    let said = post.run(&["publish", "--lines", &path("many.jsonl")]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("20"), "{said:?}");
    for request in many.iter().chain([&one]) {
        post.database.wait_for(id(request), "sent").await;
    }
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 23);

    let found = post.run(&["messages", "--request", &request, "--json"]).await.json();
    assert_eq!(found["total"], 2);
    let found = post.run(&["messages", "--to", "ONE@example.bj"]).await;
    assert!(found.out.contains("sent") && found.out.contains("billing_invoice_monthly"), "{found:?}");
    let nobody = post.run(&["messages", "--to", "nobody@example.bj", "--json"]).await.json();
    assert_eq!(nobody["total"], 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_at_a_terminal_sees_how_far_it_is_and_a_program_does_not() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("many.jsonl");
    let lines: Vec<_> = (0..300).map(|n| wire::to_json(&ticket(&format!("line-{n}@example.bj"))).to_string()).collect();
    fs::write(&path, lines.join("\n")).expect("a file");
    let arguments = ["publish", "--lines", path.to_str().expect("UTF-8")];

    let seen = at_a_terminal(&post.variables, &arguments).await;
    assert_eq!(seen.code, 0, "{seen:?}");
    // How often it is drawn is the machine's doing; that it is there, and that the last line is no bar, is not.
    assert!(seen.out.contains("/300 "), "{seen:?}");
    assert!(seen.out.trim_end().ends_with("Published 300 requests; the broker has confirmed them all."), "{seen:?}");

    let read = post.run(&arguments).await;
    assert_eq!((read.code, read.err.as_str()), (0, ""), "{read:?}");
    assert_eq!(read.out, "Published 300 requests; the broker has confirmed them all.\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_lane_would_get_is_not_published() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("request.json");
    let file = path.to_str().expect("UTF-8");
    for (field, value, word) in [
        ("source", json!("Support Desk"), "source"),
        ("priority", json!("PRIORITY_UNSPECIFIED"), "priority"),
        ("templateKee", json!("x"), "templateKee"),
    ] {
        let mut request = wire::to_json(&ticket("a@example.bj"));
        request[field] = value;
        fs::write(&path, request.to_string()).expect("a file");
        let said = post.run(&["publish", "--request", file]).await;
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains(word), "{word}: {said:?}");
    }
    assert!(post.broker.not_empty().await.is_empty());
    let said = post.run(&["publish", "--request", "/does/not/exist"]).await;
    assert!(said.code == 1 && said.err.contains("/does/not/exist"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_not_searched_with_another_hash_key() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let mut other = post.variables.clone();
    other.insert("EMAIL_HASH_KEY".to_owned(), "another key of tests, which is long enough".to_owned());
    let said = postrider(&other, &["messages", "--to", "a@example.bj"]).await;
    assert!(said.code == 1 && said.err.contains("EMAIL_HASH_KEY"), "{said:?}");
}
