//! While the database is away an incident goes out all the same, once, and the audit is whole when it is back.

use std::{collections::HashSet, time::Duration};

use lapin::{options::BasicConsumeOptions, types::FieldTable};
use postrider::{broker::topology, email::Phase, publish};

use crate::support::{
    audit::Row,
    daemon::{ADMIN_TOKEN, Daemon},
    database::HASH_KEY,
    installation::Installation,
    proxy::Proxy,
    relay::{Act, RelayLog, Rule},
    requests::{copy_folder, id, incident, reminder, sample, templates_dir, ticket},
    wait::until,
};

/// The usual installation with a line to the database that can be cut.
async fn with_line(settings: &[(&str, &str)]) -> (Installation, Proxy) {
    let mut post = Installation::prepare(settings).await;
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    (post, line)
}

/// Cuts the line, and waits until the daemon has noticed. A pool in use notices by its next statement.
async fn lose_the_database(post: &Installation, line: &Proxy) {
    line.cut().await;
    post.daemon().wait_until_not_ready("database").await;
}

fn whole(rows: &[Row]) {
    for row in rows {
        assert_eq!((row.status.as_str(), row.attempts), ("sent", 1), "{row:?}");
        assert!(row.subject.is_some() && row.sent_at.is_some() && row.latency_ms.is_some(), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_goes_out_once_and_its_audit_follows() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    let alert = incident("duty@example.bj");
    // Published twice, by a producer that was not sure.
    post.publish(&alert).await;
    post.relay.wait_for_mails(2).await;
    post.publish(&alert).await;
    let behind = ticket("behind@example.bj");
    post.publish(&behind).await;
    until("the duplicate is gone and the other lane holds nothing", async || {
        let (fast, standard) = (post.broker.depth("email.fast").await, post.broker.depth("email.standard").await);
        fast.is_some_and(|fast| fast.ready == 0 && fast.consumers == 1)
            && standard.is_some_and(|standard| standard.ready == 1 && standard.consumers == 0)
    })
    .await;
    assert!(post.database.rows(id(&alert)).await.is_empty(), "the audit cannot know yet");
    assert_eq!(post.daemon().metric("email_sent_without_database_total", &["first"]).await, 2.0);

    line.mend().await;
    let rows = post.database.wait_for(id(&alert), "sent").await;
    assert_eq!(rows.len(), 2, "the one on duty, and the NOC");
    whole(&rows);
    for row in &rows {
        let lines = post.database.timeline(row.id).await;
        let told: Vec<_> = lines.iter().map(|line| (line.kind.as_str(), line.reply_code)).collect();
        assert_eq!(told, [("sent", Some(250))]);
    }
    post.database.wait_for(id(&behind), "sent").await;
    let mails = post.mails(3).await;
    assert_eq!(mails.len(), 3, "nobody got two");
    let names: HashSet<_> = mails.iter().map(|mail| format!("<{}>", mail.message_id)).collect();
    assert!(rows.iter().all(|row| names.contains(&row.message_id)), "the mails are those of the rows");
    // Published once more it is known by its rows.
    post.publish(&alert).await;
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 3);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_that_is_put_off_without_a_database_climbs_its_ladder_and_spares_who_has_it() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("duty").times(2));
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let (patient, gone) = (incident("duty@example.bj"), incident("gone@example.bj"));
    post.broker.publish_all(&[patient.clone(), gone.clone()]).await;
    // Three tries for one, one for the other, and the NOC once for each.
    post.relay.wait_for_mails(3).await;
    until("the refusal is in its queue", async || {
        post.broker.depth("email.dead").await.is_some_and(|depth| depth.ready == 1)
    })
    .await;

    line.mend().await;
    let rows = post.database.wait_for(id(&patient), "sent").await;
    let tried: Vec<_> = rows.iter().map(|row| (row.recipient_email.as_str(), row.attempts)).collect();
    assert_eq!(tried, [("duty@example.bj", 3), ("noc@rgz.bj", 1)]);
    let kinds: Vec<_> = post.database.timeline(rows[0].id).await.iter().map(|line| line.kind.clone()).collect();
    assert_eq!(kinds, ["deferred", "deferred", "sent"]);
    let letter = post.database.wait_for_letter(id(&gone)).await;
    assert_eq!(letter.reason, "rejected");
    assert_eq!(letter.header("x-recipients")[0]["address"], "gone@example.bj");
    post.wait_until_settled().await;
    let rows = post.database.rows(id(&gone)).await;
    let ended: Vec<_> = rows.iter().map(|row| (row.recipient_email.as_str(), row.status.as_str())).collect();
    assert_eq!(ended, [("gone@example.bj", "failed"), ("noc@rgz.bj", "sent")]);
    assert_eq!(post.relay.log().accepted().count(), 3, "nobody got two");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_cannot_be_written_goes_into_the_journal_and_the_lane_goes_on() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    post.relay.hold_final_dots();
    let alert = incident("duty@example.bj");
    post.publish(&alert).await;
    post.relay.wait_until("both are on the wire", |log| log.mails.len() == 2).await;
    line.cut().await;
    post.relay.release_final_dots();
    post.relay.wait_for_mails(2).await;
    until("the message left its queue", async || {
        post.broker.depth("email.audit").await.is_some_and(|depth| depth.ready >= 2)
    })
    .await;
    assert_eq!(post.database.count("sending").await, 2, "the audit cannot know yet");
    line.mend().await;
    whole(&post.database.wait_for(id(&alert), "sent").await);
    assert_eq!(post.relay.log().mails.len(), 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_daemon_sent_without_its_database_is_known_to_those_that_have_theirs() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    let alert = incident("duty@example.bj");
    post.publish(&alert).await;
    post.relay.wait_for_mails(2).await;
    // The first one never gets its database back. Stopping, it ends what it has begun.
    assert_eq!(post.stop_daemon().await, std::process::ExitCode::SUCCESS);
    let direct = post.database.url().to_owned();
    post.variables.insert("DATABASE_URL".to_owned(), direct);
    post.start_daemon().await;
    // The journal was written before anything was consumed.
    whole(&post.database.rows(id(&alert)).await);
    post.publish(&alert).await;
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 2);
    post.finish().await;
}

/// One daemon sends what it can without the database; the copies for the rest go to another that has it, while somebody else
/// holds what the first one told the journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_with_the_database_takes_a_copys_word_for_who_is_over_until_the_journal_is_written() {
    // Long enough that the first daemon takes no copy again before it is stopped.
    let (mut post, line) = with_line(&[("EMAIL_LADDER_FAST", "5s,6s,7s,8s")]).await;
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    let hands = post.broker.channel().await;
    let (queue, tag) = ("email.audit".into(), "another-daemon".into());
    let held = hands.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default()).await;
    let held = held.expect("it is consumed");
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("noc"));
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let (patient, gone) = (incident("duty@example.bj"), incident("gone@example.bj"));
    post.broker.publish_all(&[patient.clone(), gone.clone()]).await;
    until("the NOC waits for both", async || post.broker.retry_copies().await == 2).await;
    assert_eq!(post.stop_daemon().await, std::process::ExitCode::SUCCESS);
    // Whoever has failed would get it now.
    post.relay.behave();
    let direct = post.database.url().to_owned();
    post.variables.insert("DATABASE_URL".to_owned(), direct);
    // A version that says other things, and not to the NOC.
    let changed = tempfile::tempdir().expect("a folder");
    copy_folder(&templates_dir(), changed.path());
    let folder = changed.path().join("incident_alert_critical");
    let manifest = std::fs::read_to_string(folder.join("manifest.toml")).expect("a manifest");
    std::fs::write(folder.join("manifest.toml"), manifest.replace("\"noc@rgz.bj\"", "")).expect("written");
    std::fs::write(folder.join("subject.hbs"), "Autre sujet {{incident_number}}\n").expect("written");
    let said = post.run(&["templates", "sync", "--activate", changed.path().to_str().expect("UTF-8")]).await;
    assert_eq!(said.code, 0, "{}", said.err);
    post.start_daemon().await;
    let has_both = |log: &RelayLog| log.accepted().filter(|mail| mail.to == ["noc@rgz.bj"]).count() == 2;
    post.relay.wait_until("the NOC has both", has_both).await;
    // The relay has the mail before the row says so.
    until("the NOC's row is written, and the first is for the journal to tell", async || {
        let rows = post.database.rows(id(&patient)).await;
        rows.iter().map(|row| row.status.as_str()).eq(["queued", "sent"])
    })
    .await;

    // It gives back what it held, and the journal is written.
    drop(held);
    hands.close(200, "done".into()).await.expect("it closes");
    let rows = post.database.wait_for(id(&patient), "sent").await;
    assert!(rows.iter().all(|row| row.sent_at.is_some()), "{rows:?}");
    let letter = post.database.wait_for_letter(id(&gone)).await;
    assert_eq!(letter.reason, "rejected");
    assert_eq!(letter.header("x-recipients")[0]["address"], "gone@example.bj");
    post.wait_until_settled().await;
    let rows = post.database.rows(id(&gone)).await;
    let ended: Vec<_> = rows.iter().map(|row| row.status.as_str()).collect();
    assert_eq!(ended, ["failed", "sent"]);
    let mails = post.mails(3).await;
    assert_eq!(mails.len(), 3, "nobody got two, and whoever had failed got none");
    assert!(mails.iter().all(|mail| !mail.subject.starts_with("Autre")), "the words of the daemon that took it on");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_complained_gets_no_incident_without_the_database_either() {
    let (mut post, line) = with_line(&[]).await;
    let hash = {
        use hmac::{Hmac, Mac};
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(HASH_KEY.as_bytes()).expect("any key");
        mac.update(b"complained@example.bj");
        mac.finalize().into_bytes().to_vec()
    };
    sqlx::query("insert into suppressions (address_hash, reason, source) values ($1, 'complaint', 'test')")
        .bind(hash)
        .execute(&post.database.pool)
        .await
        .expect("suppressed");
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    let alert = incident("complained@example.bj");
    post.publish(&alert).await;
    post.relay.wait_for_mails(1).await;
    line.mend().await;
    until("the audit has both", async || post.database.rows(id(&alert)).await.len() == 2).await;
    post.wait_until_settled().await;
    let rows = post.database.rows(id(&alert)).await;
    let ended: Vec<_> = rows.iter().map(|row| (row.recipient_email.as_str(), row.status.as_str())).collect();
    assert_eq!(ended, [("complained@example.bj", "suppressed"), ("noc@rgz.bj", "sent")]);
    assert_eq!(post.relay.log().mails.len(), 1);
    post.finish().await;
}

/// What takes a journey of its own for each entry is never done here: nothing of a batch counts that is not written in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_lanes_go_on_soon_after_a_long_outage_though_the_database_is_far_away() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    let count = 80;
    let alerts: Vec<_> = (0..count).map(|nr| incident(&format!("duty-{nr}@example.bj"))).collect();
    post.broker.publish_all(&alerts).await;
    let behind = ticket("behind@example.bj");
    post.publish(&behind).await;
    post.relay.wait_for_mails(2 * alerts.len()).await;
    until("each mail has told both of its steps", async || {
        post.broker.depth("email.audit").await.is_some_and(|depth| depth.ready == 4 * count)
    })
    .await;

    line.slow(Duration::from_millis(25));
    line.mend().await;
    whole(&post.database.wait_for(id(&behind), "sent").await);
    line.free();
    for alert in &alerts {
        whole(&post.database.wait_for(id(alert), "sent").await);
    }
    post.wait_until_idle().await;
    assert_eq!(post.relay.log().mails.len(), 2 * alerts.len() + 1, "nobody got two");
    post.finish().await;
}

/// A producer in doubt publishes twice, to two daemons, one of which has lost its database: the one door for a second mail that
/// no try ended `unknown` before. Its timeline says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incident_that_two_daemons_send_has_a_line_of_each() {
    let mut post = Installation::prepare(&[]).await;
    post.start_daemon().await;
    post.relay.hold_final_dots();
    let alert = incident("duty@example.bj");
    // Published again it is the same message, its time included.
    let message = publish::outgoing(&alert, topology::REQUESTS).expect("a request that can be published");
    let publish = || post.broker.publish_raw(&message.routing_key, message.properties.clone(), &message.body);
    publish().await;
    post.relay.wait_until("both are on the wire", |log| log.mails.len() == 2).await;
    assert_eq!(post.database.count("sending").await, 2);
    let line = Proxy::start(post.database.url()).await;
    let mut variables = post.variables.clone();
    variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    let second = Daemon::start(&variables).await;
    line.cut().await;
    second.wait_until_not_ready("database").await;
    // Sooner or later it is the other one that takes it: the first one knows it, and throws it away.
    let mut published = 0;
    until("the second daemon has sent it too", async || {
        if published < 20 && post.broker.depth("email.fast").await.is_some_and(|depth| depth.ready == 0) {
            publish().await;
            published += 1;
        }
        post.relay.look(|log| log.mails.len()) == 4
    })
    .await;
    post.relay.release_final_dots();
    line.mend().await;
    let rows = post.database.wait_for(id(&alert), "sent").await;
    until("both have told", async || {
        let mut told = 0;
        for row in &rows {
            told += post.database.timeline(row.id).await.len();
        }
        told == 4
    })
    .await;
    for row in &post.database.rows(id(&alert)).await {
        let kinds: Vec<_> = post.database.timeline(row.id).await.iter().map(|line| line.kind.clone()).collect();
        assert_eq!(kinds, ["sent", "sent"]);
        assert_eq!((row.status.as_str(), row.attempts), ("sent", 1), "{row:?}");
    }
    let names: HashSet<_> = post.mails(4).await.into_iter().map(|mail| mail.message_id).collect();
    assert_eq!(names.len(), 2, "each twice under one name");
    assert_eq!(second.stop().await, std::process::ExitCode::SUCCESS);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_lanes_hold_nothing_meanwhile_and_lose_nothing() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    let waiting =
        [ticket("a@example.bj"), reminder("b@example.bj"), sample("reseller_announcement", &["c@example.bj"])];
    post.broker.publish_all(&waiting).await;
    until("nobody holds them", async || {
        let (standard, bulk) = (post.broker.depth("email.standard").await, post.broker.depth("email.bulk").await);
        standard.is_some_and(|lane| (lane.ready, lane.consumers) == (1, 0))
            && bulk.is_some_and(|lane| (lane.ready, lane.consumers) == (2, 0))
    })
    .await;
    assert!(post.relay.log().mails.is_empty());
    line.mend().await;
    for request in &waiting {
        whole(&post.database.wait_for(id(request), "sent").await);
    }
    post.daemon_mut().wait_until_ready().await;
    assert_eq!(post.relay.log().mails.len(), 3);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_id_with_another_payload_is_a_conflict_without_the_database_too() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    lose_the_database(&post, &line).await;
    let first = incident("duty@example.bj");
    post.publish(&first).await;
    post.relay.wait_for_mails(2).await;
    let mut second = incident("somebody-else@example.bj");
    second.request_id.clone_from(&first.request_id);
    post.publish(&second).await;
    until("its dead letter waits", async || {
        post.broker.depth("email.dead").await.is_some_and(|depth| depth.ready == 1)
    })
    .await;
    line.mend().await;
    let letter = post.database.wait_for_letter(id(&first)).await;
    assert_eq!(letter.reason, "idempotency_conflict");
    assert_eq!(post.relay.log().mails.len(), 2);
    post.daemon_mut().wait_until_ready().await;
    let (status, _) = post.daemon().get("/api/v1/email/messages?limit=1", ADMIN_TOKEN).await;
    assert_eq!(status, reqwest::StatusCode::OK);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_without_its_database_leaves_a_journal_that_tells_what_was_on_its_way() {
    let (mut post, line) = with_line(&[("EMAIL_LEASE_SECONDS", "1")]).await;
    post.declare_queues().await;
    let mut dying = crate::support::process::DaemonProcess::start(&post.variables);
    until("it consumes", async || post.broker.depth("email.fast").await.is_some_and(|depth| depth.consumers == 1))
        .await;
    line.cut().await;
    post.relay.hold_final_dots();
    let alert = incident("duty@example.bj");
    post.publish(&alert).await;
    post.relay.wait_until("both are on the wire", |log| log.mails.len() == 2).await;
    assert!(post.broker.depth("email.audit").await.is_some_and(|depth| depth.ready == 2), "before the first byte");
    dying.kill();
    post.relay.release_final_dots();
    post.relay.wait_for_mails(2).await;

    let direct = post.database.url().to_owned();
    post.variables.insert("DATABASE_URL".to_owned(), direct);
    let second = Daemon::start(&post.variables).await;
    // The relay has them, nobody could know: they are sent again, under the same names, and the timeline says why.
    let rows = post.database.wait_for(id(&alert), "sent").await;
    for row in &rows {
        let kinds: Vec<_> = post.database.timeline(row.id).await.iter().map(|line| line.kind.clone()).collect();
        assert_eq!(kinds, ["unknown", "sent"]);
    }
    let names: HashSet<_> = post.mails(4).await.into_iter().map(|mail| mail.message_id).collect();
    assert_eq!(names.len(), 2, "each twice under one name");
    until("the queues are empty", async || post.broker.not_empty().await.is_empty()).await;
    assert_eq!(second.stop().await, std::process::ExitCode::SUCCESS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_was_owed_when_the_database_went_is_written_when_it_is_back() {
    let (mut post, line) = with_line(&[("EMAIL_LADDER_FAST", "8s,12s")]).await;
    post.start_daemon().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("noc").once());
    let alert = incident("gone@example.bj");
    post.publish(&alert).await;
    until("one has failed and the other waits", async || {
        let rows = post.database.rows(id(&alert)).await;
        rows.iter().map(|row| row.status.as_str()).eq(["failed", "queued"])
    })
    .await;
    lose_the_database(&post, &line).await;
    post.relay.wait_for_mails(1).await;
    line.mend().await;
    let letter = post.database.wait_for_letter(id(&alert)).await;
    assert_eq!(letter.reason, "rejected");
    assert_eq!(letter.header("x-recipients")[0]["address"], "gone@example.bj");
    post.wait_until_settled().await;
    let rows = post.database.rows(id(&alert)).await;
    assert!(rows.iter().map(|row| row.status.as_str()).eq(["failed", "sent"]), "{rows:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_put_on_the_list_or_refused_a_moment_ago_gets_no_incident_without_the_database() {
    let (mut post, line) = with_line(&[]).await;
    post.start_daemon().await;
    let list = "/api/v1/email/suppressions";
    let new = serde_json::json!({ "address": "complained@example.bj", "reason": "complaint" });
    let (status, said) = post.daemon().post(list, ADMIN_TOKEN, &new).await;
    assert_eq!(status, reqwest::StatusCode::CREATED, "{said}");
    lose_the_database(&post, &line).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let first = [incident("complained@example.bj"), incident("gone@example.bj")];
    post.broker.publish_all(&first).await;
    // The NOC has both; and the letter comes when both recipients are dealt with.
    post.relay.wait_for_mails(2).await;
    until("the refusal is in its queue", async || {
        post.broker.depth("email.dead").await.is_some_and(|depth| depth.ready == 1)
    })
    .await;
    post.relay.behave();
    let second = incident("gone@example.bj");
    post.publish(&second).await;
    post.relay.wait_for_mails(3).await;

    line.mend().await;
    for (request, status) in [(&first[0], "suppressed"), (&first[1], "failed"), (&second, "suppressed")] {
        until("the audit has both", async || post.database.rows(id(request)).await.len() == 2).await;
        post.wait_until_settled().await;
        let rows = post.database.rows(id(request)).await;
        let ended: Vec<_> = rows.iter().map(|row| row.status.as_str()).collect();
        assert_eq!(ended, [status, "sent"]);
    }
    assert_eq!(post.relay.log().mails.len(), 3);
    let listed: Vec<(String, String)> = sqlx::query_as("select reason, source from suppressions order by reason")
        .fetch_all(&post.database.pool)
        .await
        .expect("an answer");
    assert_eq!(
        listed,
        [("complaint".into(), "operator:test-admin".into()), ("hard_bounce".into(), "smtp".into())],
        "the journal has put the refusal on the list"
    );
    post.finish().await;
}
