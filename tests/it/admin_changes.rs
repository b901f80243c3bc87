//! The change log: who did what, by whichever way, and nothing of a person in it.

use postrider::store::told::{Topic, tell};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    daemon::{ADMIN_TOKEN, Daemon, VIEWER_TOKEN},
    installation::Installation,
    wait::until,
};

const EMAIL: &str = "/api/v1/email";

async fn changes(daemon: &Daemon, query: &str) -> Value {
    let (status, page) = daemon.get(&format!("{EMAIL}/changes{query}"), VIEWER_TOKEN).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    page
}

fn actions(page: &Value) -> Vec<&str> {
    page["items"].as_array().expect("items").iter().filter_map(|line| line["action"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changed_the_suppression_list_is_told_without_a_person() {
    let post = Installation::start().await;
    let daemon = post.daemon();
    assert_eq!(changes(daemon, "?action=suppression").await["total"], 0);
    let list = format!("{EMAIL}/suppressions");
    let new = json!({ "address": "ada.lovelace@example.bj", "reason": "complaint", "note": "by telephone" });
    let (_, item) = daemon.post(&list, ADMIN_TOKEN, &new).await;
    let (_, again) = daemon.post(&list, ADMIN_TOKEN, &new).await;
    assert_eq!(again["id"], item["id"]);
    let id = item["id"].as_str().expect("an id");
    let lifted = daemon.ask(Method::DELETE, &format!("{list}/{id}"), ADMIN_TOKEN, |request| request).await;
    assert_eq!(lifted.status, StatusCode::OK);

    let page = changes(daemon, "?action=suppression").await;
    assert_eq!(actions(&page), ["suppression.lift", "suppression.add"], "the second time changed nothing: {page}");
    for line in page["items"].as_array().expect("items") {
        assert_eq!((&line["changed_by"], &line["target"]), (&json!("operator:test-admin"), &json!(id)), "{line}");
    }
    assert_eq!(page["items"][0]["before"]["reason"], "complaint", "{page}");
    assert_eq!(page["items"][1]["after"]["reason"], "complaint", "{page}");
    assert!(!page.to_string().contains("lovelace") && !page.to_string().contains("telephone"), "{page}");

    let first = changes(daemon, "?limit=1&action=suppression").await;
    assert_eq!((actions(&first), &first["total"]), (vec!["suppression.lift"], &json!(2)));
    let next = first["next"].as_str().expect("a cursor");
    let second = changes(daemon, &format!("?limit=1&action=suppression&cursor={next}")).await;
    assert_eq!((actions(&second), &second["next"]), (vec!["suppression.add"], &Value::Null));
    assert_eq!(actions(&changes(daemon, "?action=suppression").await).len(), 2, "a family of actions");
    assert_eq!(actions(&changes(daemon, "?action=suppression.add&by=test-admin").await), ["suppression.add"]);
    for query in ["?action=suppress", "?by=somebody", "?target=00", "?until=2020-01-01"] {
        assert_eq!(changes(daemon, query).await["total"], 0, "{query}");
    }
    for (query, word) in [("?cursor=x", "cursor"), ("?since=x", "since"), ("?limit=0", "limit"), ("?who=x", "who")] {
        let (status, said) = daemon.get(&format!("{EMAIL}/changes{query}"), VIEWER_TOKEN).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {said}");
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{query}: {said}");
    }
    let rewritten = sqlx::query("update operator_changes set changed_by = 'nobody'").execute(&post.database.pool).await;
    assert!(rewritten.is_err(), "lines are never changed");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_in_a_transaction_reaches_every_daemon_when_it_commits_and_after_a_lost_connection() {
    let post = Installation::start().await;
    let store = post.database.store();
    let end = tokio_util::sync::CancellationToken::new();
    let listening = tokio::spawn(std::sync::Arc::clone(&store).listen(end.clone()));
    let mut templates = store.told(Topic::Templates);
    let mut lanes = store.told(Topic::Lanes);
    // The first connection counts as one that may have missed something.
    templates.changed().await.expect("told");
    lanes.changed().await.expect("told");
    let before = (*templates.borrow_and_update(), *lanes.borrow());

    let mut tx = post.database.pool.begin().await.expect("a transaction");
    tell(&mut tx, Topic::Templates).await.expect("told");
    tx.rollback().await.expect("rolled back");
    let mut tx = post.database.pool.begin().await.expect("a transaction");
    tell(&mut tx, Topic::Templates).await.expect("told");
    tx.commit().await.expect("committed");
    templates.changed().await.expect("told");
    assert_eq!((*templates.borrow_and_update(), *lanes.borrow()), (before.0 + 1, before.1), "once, and nobody else");

    let killed = sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and query like 'LISTEN%'",
    );
    killed.execute(&post.database.pool).await.expect("killed");
    until("every topic counts as told after a new connection", async || {
        *templates.borrow() > before.0 + 1 && *lanes.borrow() > before.1
    })
    .await;
    end.cancel();
    listening.await.expect("it ends");
    post.finish().await;
}
