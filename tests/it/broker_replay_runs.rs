//! A replay is a run that outlives whoever began it: killed, stopped, paused or cut off from the broker, it goes on where it was,
//! its plan's numbers are what happens, and every mail goes out once.

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use postrider::{email::Phase, wire};
use serde_json::Value;
use uuid::Uuid;

use crate::support::{
    installation::Installation,
    process::{DaemonProcess, postrider},
    proxy::Proxy,
    relay::{Act, Rule},
    requests::{id, incident, invoice, reminder, sample, set, ticket},
    wait::{WAIT_MAX, until},
};

/// Dead letters of the large case; `TEST_FULL` asks for as many as operators talk of.
fn many() -> usize {
    if std::env::var_os("TEST_FULL").is_some() { 5000 } else { 300 }
}

async fn count(post: &Installation, query: &'static str) -> usize {
    let count: i64 = sqlx::query_scalar(query).fetch_one(&post.database.pool).await.expect("an answer");
    usize::try_from(count).expect("a count")
}

/// Waits until it is so many, for as long as it becomes more.
async fn until_all(what: &str, goal: usize, mut look: impl AsyncFnMut() -> usize) {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        let now = look().await;
        if now >= goal {
            assert_eq!(now, goal, "{what}");
            return;
        }
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < WAIT_MAX, "{what}: {now} of {goal}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn run(post: &Installation, id: &str) -> Value {
    post.run(&["dead", "run", "show", id, "--json"]).await.json()
}

/// The one run that there is.
async fn the_run(post: &Installation) -> String {
    let all: Vec<Uuid> =
        sqlx::query_scalar("select id from replay_runs").fetch_all(&post.database.pool).await.expect("an answer");
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].to_string()
}

async fn until_done(post: &Installation, id: &str) -> Value {
    until(&format!("the run {id} is done"), async || run(post, id).await["state"] == "done").await;
    run(post, id).await
}

/// This many tickets that the relay refuses, and their letters; then the relay is mended.
async fn refused(post: &Installation, tickets: usize) -> Vec<wire::EmailRequest> {
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")));
    let all: Vec<_> = (0..tickets).map(|n| ticket(&format!("refused{n}@example.bj"))).collect();
    post.broker.publish_all(&all).await;
    until_all("letters", tickets, async || count(post, "select count(*) from dead_letters").await).await;
    post.wait_until_settled().await;
    post.relay.behave();
    all
}

/// How often the relay took a mail for each address.
fn accepted(post: &Installation) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for mail in post.relay.log().accepted() {
        *all.entry(mail.to[0].clone()).or_default() += 1;
    }
    all
}

fn assert_each_once(post: &Installation, expected: usize) {
    let got = accepted(post);
    let twice: Vec<_> = got.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "sent more than once: {twice:?}");
    assert_eq!(got.len(), expected);
}

/// Dead letters of many kinds. Answers those addresses that are to get no mail, ever.
async fn mixed(post: &Installation, letters: usize) -> Vec<String> {
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")).whose_address_begins("refused"));
    // The relay does not take it, and nobody can know: an announcement is then left to an operator.
    post.relay.script(Rule::at(Phase::FinalDot, Act::Disconnect).whose_address_begins("held"));
    let (mut sent, mut held, mut made) = (0, 0, 0);
    for first in (0..letters).step_by(500) {
        let numbers = first..letters.min(first + 500);
        let mut all = Vec::new();
        for n in numbers {
            match n % 20 {
                0..12 => all.push(ticket(&format!("refused{n}@example.bj"))),
                12..15 => all.push(invoice(&format!("refused{n}@example.bj"))),
                15..17 => all.push(reminder(&format!("refused{n}@example.bj"))),
                17 => {
                    // One by one: a relay that did this to several mails in a row would be thought to be in trouble.
                    post.publish(&sample("reseller_announcement", &[&format!("held{n}@example.bj")])).await;
                    held += 1;
                    let held_back = "select count(*) from dead_letters where reason = 'outcome_unknown'";
                    until("it is held", async || count(post, held_back).await == held).await;
                }
                18 => {
                    let stray = ticket(&format!("stray{n}@example.bj"));
                    post.broker.publish_to("support.urgent", &stray).await;
                }
                _ => {
                    let mut first = ticket(&format!("sent{n}@example.bj"));
                    post.publish(&first).await;
                    post.database.wait_for(id(&first), "sent").await;
                    set(&mut first, "title", "another payload under the same id");
                    all.push(first);
                    sent += 1;
                }
            }
            made += 1;
        }
        post.broker.publish_all(&all).await;
        until_all("letters", made, async || count(post, "select count(*) from dead_letters").await).await;
    }
    post.wait_until_settled().await;
    post.relay.behave();
    assert_eq!(post.relay.log().accepted().count(), sent);
    // Some of them complained since, some are past their time, of some the provider has told since that they came.
    let mut never = Vec::new();
    for (pick, change) in [
        (
            "n % 25 = 1",
            "insert into suppressions (address_hash, reason, source)
             select recipient_hash, 'complaint', 'test' from email_messages where recipient_email = any($1)",
        ),
        (
            "n % 25 = 2",
            "update email_requests r set expires_at = now() from email_messages m
             where m.request_id = r.id and m.recipient_email = any($1)",
        ),
        ("n % 25 = 3", "update email_messages set status = 'delivered' where recipient_email = any($1)"),
    ] {
        let which: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "select recipient_email from (
                select recipient_email, row_number() over (order by recipient_email) as n
                from email_messages where status = 'failed') as failed where {pick}"
        )))
        .fetch_all(&post.database.pool)
        .await
        .expect("an answer");
        assert!(!which.is_empty());
        sqlx::query(change).bind(&which).execute(&post.database.pool).await.expect("changed");
        never.extend(which);
    }
    never
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_letters_of_mixed_reasons_are_planned_killed_half_way_and_replayed_twice_and_go_out_once() {
    // Long enough to look at what was killed before a daemon takes it up.
    let post = Installation::start_with(&[("EMAIL_LEASE_SECONDS", "15")]).await;
    let letters = many();
    let begun = Instant::now();
    let never = mixed(&post, letters).await;
    let made = begun.elapsed();

    let begun = Instant::now();
    let plan = post.run(&["dead", "replay", "--all", "--dry-run", "--json"]).await.json();
    let planned = begun.elapsed();
    assert_eq!(plan["total"], letters, "{}", plan["skipped"]);
    let open = plan["open"].as_u64().and_then(|open| usize::try_from(open).ok()).expect("a count");
    // The same id came with another payload, each twentieth time.
    assert_eq!(open, letters - letters / 20 - never.len());

    let mut variables = post.variables.clone();
    variables.insert("POSTRIDER_DIE_AT".to_owned(), format!("replay_confirmed#{}", open / 2));
    let begun = Instant::now();
    let said = postrider(&variables, &["dead", "replay", "--all", "--yes", "--rate", "1000"]).await;
    let killed = begun.elapsed();
    assert_eq!(said.code, -1, "it was killed: {said:?}");
    let id = the_run(&post).await;
    let half = run(&post, &id).await;
    let done = half["replayed"].as_u64().and_then(|done| usize::try_from(done).ok()).expect("a count");
    assert!(done < open, "{half}");
    // A daemon takes it up once the lease has run out.
    let begun = Instant::now();
    until_all("replayed", open, async || count(&post, "select replayed::bigint from replay_runs limit 1").await).await;
    let resumed = begun.elapsed();
    let end = until_done(&post, &id).await;
    for name in ["replayed", "skipped", "failed", "open"] {
        let expected = match name {
            "replayed" => &plan["open"],
            "skipped" => &plan["skipped"],
            _ => &Value::from(0),
        };
        assert_eq!(&end[name], expected, "{name}: {end}");
    }
    assert_eq!(end["plan"]["open"], plan["open"]);
    until_all("sent", letters / 20 + open, async || post.relay.look(|log| log.accepted().count())).await;

    // By everybody, once more: those that were skipped still are, and the others have been dealt with.
    let again = post.run(&["dead", "replay", "--all", "--json"]).await.json();
    assert_eq!((&again["replayed"], &again["total"], &again["failed"]), (&0.into(), &plan["skipped"], &0.into()));
    post.wait_until_settled().await;
    post.wait_until_idle().await;
    assert_each_once(&post, letters / 20 + open);
    assert!(never.iter().all(|address| !accepted(&post).contains_key(address)));
    let left = count(&post, "select count(*) from dead_letters where state not in ('waiting', 'replayed')").await;
    assert_eq!(left, 0, "nothing is half done");
    tracing::info!(
        "{letters} letters made in {made:.1?}, planned in {planned:.1?}; {done} of {open} replayed before the kill after \
         {killed:.1?}, the others {resumed:.1?} after it"
    );
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_in_the_middle_of_a_run_is_followed_by_another_that_goes_on() {
    let mut post = Installation::start_with(&[("EMAIL_LEASE_SECONDS", "2")]).await;
    refused(&post, 30).await;
    assert_eq!(post.stop_daemon().await, ExitCode::SUCCESS);
    // One that can reach no relay: what it sends is nothing, so that nothing but its run is cut off.
    let mut variables = post.variables.clone();
    variables.insert("SMTP_PORT".to_owned(), "1".to_owned());
    let mut doomed = DaemonProcess::start(&variables);
    // Slow enough to be found in the middle of it, here and below.
    let said = post.run(&["dead", "replay", "--all", "--detach", "--rate", "2", "--json"]).await.json();
    let id = said["run"].as_str().expect("a run").to_owned();
    until("it has begun", async || run(&post, &id).await["replayed"].as_u64() >= Some(2)).await;
    doomed.kill();
    let half = run(&post, &id).await;
    assert_eq!(half["state"], "running", "{half}");
    assert!(half["open"].as_u64() > Some(0), "{half}");
    post.start_daemon().await;
    let end = until_done(&post, &id).await;
    assert_eq!((&end["replayed"], &end["skipped"], &end["failed"]), (&30.into(), &0.into(), &0.into()), "{end}");
    post.wait_until_settled().await;
    post.wait_until_idle().await;
    assert_each_once(&post, 30);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_stopped_gives_its_run_to_the_next_one_at_once() {
    let mut post = Installation::start().await;
    refused(&post, 14).await;
    let said = post.run(&["dead", "replay", "--all", "--detach", "--rate", "1", "--json"]).await.json();
    let id = said["run"].as_str().expect("a run").to_owned();
    until("it has begun", async || run(&post, &id).await["replayed"].as_u64() >= Some(2)).await;
    assert_eq!(post.stop_daemon().await, ExitCode::SUCCESS);
    let left = run(&post, &id).await;
    assert_eq!((&left["state"], &left["has_runner"]), (&"running".into(), &false.into()), "{left}");
    assert!(left["open"].as_u64() > Some(0), "{left}");
    post.start_daemon().await;
    let end = until_done(&post, &id).await;
    assert_eq!(end["replayed"], 14, "{end}");
    post.wait_until_idle().await;
    assert_each_once(&post, 14);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_broker_is_away_says_so_waits_and_goes_on() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.broker.url()).await;
    let through = line.url(post.broker.url());
    post.set(&[("AMQP_URL", &through)]);
    post.start_daemon().await;
    refused(&post, 14).await;
    let said = post.run(&["dead", "replay", "--all", "--detach", "--rate", "1", "--json"]).await.json();
    let id = said["run"].as_str().expect("a run").to_owned();
    until("it has begun", async || run(&post, &id).await["replayed"].as_u64() >= Some(2)).await;
    line.cut().await;
    until("it says what it waits for", async || {
        run(&post, &id).await["waits_for"].as_str().is_some_and(|words| words.contains("broker"))
    })
    .await;
    assert_eq!(run(&post, &id).await["state"], "running");
    line.mend().await;
    let end = until_done(&post, &id).await;
    assert_eq!((&end["replayed"], &end["waits_for"]), (&14.into(), &Value::Null), "{end}");
    post.wait_until_settled().await;
    post.wait_until_idle().await;
    assert_each_once(&post, 14);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_paused_resumed_and_given_up_from_the_command_line() {
    let post = Installation::start().await;
    refused(&post, 30).await;
    let said = post.run(&["dead", "replay", "--all", "--detach", "--rate", "1", "--json"]).await.json();
    let id = said["run"].as_str().expect("a run").to_owned();
    let act = async |action: &str| post.run(&["dead", "run", action, &id, "--by", "grace", "--json"]).await;
    until("it has begun", async || run(&post, &id).await["replayed"].as_u64() >= Some(1)).await;
    assert_eq!(act("pause").await.json()["state"], "paused");
    until("nobody is at it", async || run(&post, &id).await["has_runner"] == false).await;
    let paused = run(&post, &id).await["replayed"].clone();
    assert_eq!(act("pause").await.json()["state"], "paused", "asked for twice it is no fault");
    assert_eq!(act("start").await.code, 1);
    assert_eq!(act("resume").await.json()["replayed"], paused, "nothing went out meanwhile");
    until("it goes on", async || run(&post, &id).await["replayed"].as_u64() > paused.as_u64()).await;
    assert_eq!(act("cancel").await.json()["state"], "cancelled");
    until("nobody is at it", async || run(&post, &id).await["has_runner"] == false).await;
    let end = run(&post, &id).await;
    let (gone, open) = (end["replayed"].as_u64().expect("a count"), end["open"].as_u64().expect("a count"));
    assert!(gone > 0 && open > 0 && gone + open == 30, "{end}");
    assert_eq!(act("resume").await.code, 1, "it does not come back");
    let waiting = post.run(&["dead", "list", "--state", "waiting", "--json"]).await.json();
    assert_eq!(waiting["total"], open, "they wait as before");

    let listed = post.run(&["dead", "runs"]).await;
    assert!(listed.out.contains(&id) && listed.out.contains("cancelled"), "{listed:?}");
    let shown = post.run(&["dead", "run", "show", &id]).await;
    assert!(shown.out.contains("cancelled") && shown.out.contains("Open"), "{shown:?}");
    assert_eq!(post.run(&["dead", "run", "show", &Uuid::nil().to_string()]).await.code, 1);
    let changes: Vec<(String, String)> =
        sqlx::query_as("select action, changed_by from operator_changes where target = $1 order by id")
            .bind(&id)
            .fetch_all(&post.database.pool)
            .await
            .expect("the change log");
    let actions: Vec<&str> = changes.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions, ["replay.plan", "replay.start", "replay.pause", "replay.resume", "replay.cancel"]);
    assert!(changes[2..].iter().all(|(_, by)| by == "operator:grace"), "{changes:?}");
    post.wait_until_idle().await;
    assert_each_once(&post, usize::try_from(gone).expect("a count"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_queue_took_goes_to_the_lane_that_it_asks_for_once_however_often_it_was_published() {
    let post = Installation::start().await;
    let (urgent, bulk, often) =
        (incident("urgent@example.bj"), reminder("bulk@example.bj"), ticket("often@example.bj"));
    for (n, request) in [&urgent, &bulk, &often, &often, &often].into_iter().enumerate() {
        post.broker.publish_to("nowhere.at.all", request).await;
        // Equal in every byte, of one millisecond too, two of them would be one.
        post.database.wait_for_letters(n + 1).await;
    }
    let plan = post.run(&["dead", "replay", "--reason", "unrouted", "--dry-run", "--json"]).await.json();
    assert_eq!((&plan["open"], &plan["skipped"]), (&3.into(), &2.into()), "{plan}");
    let said = post.run(&["dead", "replay", "--reason", "unrouted", "--json"]).await.json();
    assert_eq!((&said["replayed"], &said["skipped"]), (&3.into(), &2.into()), "{said}");
    let whys: Vec<_> =
        said["items"].as_array().expect("items").iter().filter_map(|item| item["why"].as_str()).collect();
    assert_eq!(whys, ["same_request", "same_request"], "{said}");
    for (request, lane) in [(&urgent, "fast"), (&bulk, "bulk"), (&often, "standard")] {
        let rows = post.database.wait_for(id(request), "sent").await;
        assert!(rows.iter().all(|row| row.lane == lane), "{rows:?}");
    }
    post.wait_until_idle().await;
    // The NOC gets every incident.
    assert_each_once(&post, 4);
    // What was left out says so when it is asked for again.
    let again = post.run(&["dead", "replay", "--reason", "unrouted", "--json"]).await.json();
    assert_eq!((&again["replayed"], &again["skipped"]), (&0.into(), &2.into()), "{again}");
    assert_eq!(again["items"][0]["why"], "sent", "{again}");
    post.finish().await;
}
