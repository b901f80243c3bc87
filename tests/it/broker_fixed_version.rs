//! The first claim of a request fixes its template's version: a later activation changes neither its words nor who gets it.

use std::fs;

use postrider::email::Phase;

use crate::support::{
    daemon::ADMIN_TOKEN,
    installation::Installation,
    relay::{Act, Rule},
    requests::{copy_folder, incident, templates_dir},
    wait::until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_keeps_its_words_and_its_recipients_when_the_template_changes_meanwhile() {
    let post = Installation::start_with(&[("EMAIL_LADDER_FAST", "8s,12s")]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("noc@rgz.bj").once());
    let request = post.publish(&incident("ops@example.bj")).await;
    until("the second recipient waits", async || {
        let rows = post.database.rows(request).await;
        rows.iter().any(|row| row.recipient_email == "noc@rgz.bj" && row.status == "queued" && row.attempts == 1)
    })
    .await;

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

    let mails = post.mails(2).await;
    assert_eq!(mails[1].envelope_to, "noc@rgz.bj");
    assert_eq!(mails[1].subject, mails[0].subject);
    let next = post.publish(&incident("next@example.bj")).await;
    let rows = post.database.wait_for(next, "sent").await;
    assert_eq!(rows.len(), 1, "nobody else gets what is published now");
    assert!(post.mails(3).await[2].subject.starts_with("Autre sujet"));
    post.finish().await;
}
