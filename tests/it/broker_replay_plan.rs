//! What a replay's plan says is what its run does: which letters, and whose words.

use std::fs;

use postrider::email::Phase;
use serde_json::Value;

use crate::support::{
    daemon::ADMIN_TOKEN,
    installation::Installation,
    relay::{Act, Rule},
    requests::{copy_folder, id, incident, invoice, templates_dir, ticket},
    wait::until,
};

fn counts(said: &Value) -> (u64, u64, u64) {
    let count = |name: &str| said[name].as_u64().expect("a count");
    (count("open") + count("replayed"), count("skipped"), count("failed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_counts_what_its_run_then_does_and_changes_nothing() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")));
    let all =
        [ticket("one@example.bj"), ticket("two@example.bj"), ticket("three@example.bj"), invoice("four@example.bj")];
    for request in &all {
        post.publish(request).await;
        post.database.wait_for_letter(id(request)).await;
    }
    post.wait_until_settled().await;
    post.relay.behave();
    // One of them complained since, one is past its time.
    sqlx::query(
        "insert into suppressions (address_hash, reason, source)
         select recipient_hash, 'complaint', 'test' from email_messages where request_id = $1",
    )
    .bind(id(&all[1]))
    .execute(&post.database.pool)
    .await
    .expect("suppressed");
    sqlx::query("update email_requests set expires_at = now() where id = $1")
        .bind(id(&all[2]))
        .execute(&post.database.pool)
        .await
        .expect("expired");

    let filter = ["dead", "replay", "--template", "support_ticket_created", "--reason", "rejected", "--since", "1h"];
    let run = async |more: &[&str]| post.run(&[&filter, more].concat()).await;
    let planned = run(&["--dry-run", "--json"]).await.json();
    assert_eq!(counts(&planned), (1, 2, 0), "{planned}");
    let whys: Vec<_> = planned["items"].as_array().expect("items").iter().map(|item| &item["why"]).collect();
    assert_eq!(whys, [&Value::Null, &"suppressed".into(), &"expired".into()], "oldest first: {planned}");
    assert_eq!(planned["items"][0]["template_version"], 1);
    let for_people = run(&["--dry-run"]).await;
    for words in ["Would be replayed: 1 of 3", "Skipped: 2", "suppression list", "expires_at"] {
        assert!(for_people.out.contains(words), "{words}: {for_people:?}");
    }
    assert_eq!(post.database.count("failed").await, 4, "nothing is changed by a plan");
    // Of one person only.
    let hers = post.run(&["dead", "replay", "--to", "four@example.bj", "--dry-run", "--json"]).await.json();
    assert_eq!((counts(&hers), &hers["items"][0]["template_key"]), ((1, 0, 0), &"billing_invoice_monthly".into()));
    assert_eq!(post.run(&["dead", "replay", "--until", "1h", "--dry-run", "--json"]).await.json()["total"], 0);

    let done = run(&["--json"]).await;
    assert_eq!(counts(&done.json()), counts(&planned), "{done:?}");
    post.database.wait_for(id(&all[0]), "sent").await;
    assert_eq!(post.database.count("failed").await, 3, "what is skipped stays as it is");
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_says_it_in_the_active_words_or_in_the_old_ones_when_told_so() {
    let post = Installation::start().await;
    // Refused only at the end, so that the words of the first time are known.
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.7.1 not like this")));
    let requests = [incident("new@example.bj"), incident("old@example.bj")];
    for request in &requests {
        post.publish(request).await;
        post.database.wait_for_letter(id(request)).await;
    }
    post.wait_until_settled().await;
    let old_subject = post.database.rows(id(&requests[1])).await[0].subject.clone().expect("a subject");
    post.relay.behave();

    // The new version no longer writes to the NOC; those who failed get it all the same.
    let changed = tempfile::tempdir().expect("a folder");
    copy_folder(&templates_dir(), changed.path());
    let folder = changed.path().join("incident_alert_critical");
    let manifest = fs::read_to_string(folder.join("manifest.toml")).expect("a manifest");
    fs::write(folder.join("manifest.toml"), manifest.replace("\"noc@rgz.bj\"", "")).expect("written");
    fs::write(folder.join("subject.hbs"), "Autre sujet {{incident_number}}\n").expect("written");
    let said = post.run(&["templates", "sync", "--activate", changed.path().to_str().expect("UTF-8")]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    until("the new version is in use", async || {
        let (_, shown) = post.daemon().get("/api/v1/email/templates/incident_alert_critical", ADMIN_TOKEN).await;
        shown["version_in_use"] == 2
    })
    .await;

    let replay =
        async |request: &str, more: &[&str]| post.run(&[&["dead", "replay", request, "--json"], more].concat()).await;
    let said = replay(&requests[0].request_id, &[]).await.json();
    assert_eq!(said["items"][0]["template_version"], 2, "{said}");
    let rows = post.database.wait_for(id(&requests[0]), "sent").await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    for row in rows {
        assert!(row.subject.as_deref().is_some_and(|subject| subject.starts_with("Autre sujet")), "{row:?}");
        assert_eq!(row.template_version, Some(2));
    }
    let said = replay(&requests[1].request_id, &["--keep-version"]).await.json();
    assert_eq!(said["items"][0]["template_version"], 1, "{said}");
    for row in post.database.wait_for(id(&requests[1]), "sent").await {
        assert_eq!((row.subject.as_ref(), row.template_version), (Some(&old_subject), Some(1)));
    }
    let mut subjects: Vec<_> = post.mails(4).await.iter().map(|mail| mail.subject.clone()).collect();
    subjects.sort();
    assert_eq!(subjects.iter().filter(|subject| **subject == old_subject).count(), 2, "{subjects:?}");
    post.finish().await;
}
