//! A lane that an operator pauses takes nothing, at no daemon, and loses nothing; and what is said of lanes is true.

use std::time::{Duration, Instant};

use postrider::email::Phase;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    daemon::{ADMIN_TOKEN, Daemon, VIEWER_TOKEN},
    installation::Installation,
    process::postrider,
    proxy::Proxy,
    relay::{Act, Rule},
    requests::{edited_templates, id, incident, reminder, ticket},
    wait::{until, until_some},
};

const EMAIL: &str = "/api/v1/email";
const BULK: &str = "email.bulk";
const FAST: &str = "email.fast";

async fn lane(daemon: &Daemon, name: &str) -> Value {
    let (status, lane) = daemon.get(&format!("{EMAIL}/lanes/{name}"), VIEWER_TOKEN).await;
    assert_eq!(status, StatusCode::OK, "{lane}");
    lane
}

async fn steer(daemon: &Daemon, name: &str, what: &str, note: &str) -> Value {
    let path = format!("{EMAIL}/lanes/{name}/{what}");
    let (status, said) = daemon.post(&path, ADMIN_TOKEN, &json!({ "note": note })).await;
    assert_eq!(status, StatusCode::OK, "{said}");
    said
}

async fn wait_for_consumers(post: &Installation, queue: &str, count: u32) {
    until(&format!("{queue} has {count} consumers"), async || {
        post.broker.depth(queue).await.is_some_and(|depth| depth.consumers == count)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_lane_is_left_alone_by_all_daemons_while_incidents_go_on() {
    let mut post = Installation::start().await;
    let mut other = Daemon::start(&post.variables).await;
    wait_for_consumers(&post, BULK, 2).await;
    let said = steer(post.daemon(), "bulk", "pause", "wrong prices").await;
    assert_eq!((&said["is_new"], &said["warning"]), (&json!(true), &Value::Null), "{said}");
    wait_for_consumers(&post, BULK, 0).await;

    let requests: Vec<_> = (0..20).map(|n| reminder(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.publish(&incident("duty@example.bj")).await;
    post.publish(&ticket("ada@example.bj")).await;
    post.relay.wait_for_mails(3).await;
    for daemon in [post.daemon(), &other] {
        let shown = until_some("the broker counts them", async || {
            let shown = lane(daemon, "bulk").await;
            (shown["depth"] == 20).then_some(shown)
        })
        .await;
        assert_eq!((&shown["state"], &shown["consumers"]), (&json!("paused"), &json!(0)), "{shown}");
        let pause = &shown["paused"];
        assert_eq!((&pause["by"], &pause["note"]), (&json!("operator:test-admin"), &json!("wrong prices")));
        assert_eq!(lane(daemon, "standard").await["state"], "running");
        let (status, ready) = daemon.readiness().await;
        assert_eq!((status, &ready["paused"]), (StatusCode::OK, &json!(["bulk"])), "that is no fault: {ready}");
    }
    assert_eq!(post.relay.log().mails.len(), 3, "nobody took one of them");
    let again = steer(&other, "bulk", "pause", "me too").await;
    assert_eq!((&again["is_new"], &again["paused"]["note"]), (&json!(false), &json!("wrong prices")), "{again}");

    let said = steer(&other, "bulk", "resume", "").await;
    assert_eq!((&said["is_new"], &said["paused"]), (&json!(true), &Value::Null), "{said}");
    for request in &requests {
        assert_eq!(post.database.wait_for(id(request), "sent").await[0].attempts, 1);
    }
    wait_for_consumers(&post, BULK, 2).await;
    assert_eq!(post.relay.log().mails.len(), 23, "each once");
    assert_eq!(steer(&other, "bulk", "resume", "").await["is_new"], false);
    let (_, changes) = post.daemon().get(&format!("{EMAIL}/changes?action=lane"), VIEWER_TOKEN).await;
    let lines: Vec<_> = changes["items"].as_array().expect("items").iter().rev().collect();
    assert_eq!(lines.len(), 2, "what changed nothing is not told: {changes}");
    for (line, action, was_paused) in [(lines[0], "lane.pause", false), (lines[1], "lane.resume", true)] {
        assert_eq!((&line["action"], &line["target"]), (&json!(action), &json!("bulk")));
        assert_eq!((&line["before"]["paused"], &line["after"]["paused"]), (&json!(was_paused), &json!(!was_paused)));
    }
    other.wait_until_ready().await;
    assert_eq!(other.stop().await, std::process::ExitCode::SUCCESS);
    post.daemon_mut().wait_until_ready().await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_sent_is_finished_and_what_waits_for_a_connection_goes_back() {
    let settings = [("SMTP_CONNECTIONS_BULK", "1"), ("EMAIL_PREFETCH_BULK", "10")];
    let post = Installation::start_with(&settings).await;
    post.relay.hold_final_dots();
    let requests: Vec<_> = (0..30).map(|n| reminder(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.relay.wait_until("one is on the wire", |log| !log.mails.is_empty()).await;
    let in_flight = async || lane(post.daemon(), "bulk").await["in_flight"].as_u64();
    until("the lane holds what it may", async || in_flight().await >= Some(10)).await;
    steer(post.daemon(), "bulk", "pause", "").await;
    // One on the wire, one following: the connection has them.
    until("the others are back in the queue", async || {
        // A quorum queue counts a cancelled consumer for as long as it has something in hand.
        post.broker.depth(BULK).await.expect("the queue is there").ready == 28
    })
    .await;
    post.relay.release_final_dots();
    until("what had begun is over", async || in_flight().await == Some(0)).await;
    assert_eq!((post.database.count("sent").await, post.database.count("sending").await), (2, 0));
    wait_for_consumers(&post, BULK, 0).await;
    assert_eq!(post.broker.depth(BULK).await.expect("the queue is there").ready, 28);

    steer(post.daemon(), "bulk", "resume", "").await;
    post.relay.wait_for_mails(30).await;
    assert_eq!(post.daemon().metric("email_dead_letters_total", &[]).await, 0.0, "nobody is suspected of anything");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_copy_comes_back_to_a_paused_lane_and_waits_there() {
    // However long it takes to pause the lane, there is a copy that comes back after that.
    let folder = edited_templates(&[("cutover_reminder", "tries = 2", "tries = 20")]);
    let settings = [
        ("EMAIL_LADDER_BULK", "3s,4s,5s,6s,7s,8s,9s,10s,11s,12s"),
        ("EMAIL_TEMPLATES_DIR", folder.path().to_str().expect("UTF-8")),
    ];
    let post = Installation::start_with(&settings).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 try later")));
    let request = post.publish(&reminder("later@example.bj")).await;
    until("it waits for its next try", async || lane(post.daemon(), "bulk").await["retry_depth"] == 1).await;
    steer(post.daemon(), "bulk", "pause", "").await;
    until("it waits in the lane", async || {
        post.broker.depth(BULK).await.is_some_and(|depth| (depth.ready, depth.consumers) == (1, 0))
    })
    .await;
    post.relay.behave();
    steer(post.daemon(), "bulk", "resume", "").await;
    assert!(post.database.wait_for(request, "sent").await[0].attempts >= 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_starts_while_a_lane_is_paused_starts_without_it() {
    let mut post = Installation::prepare(&[]).await;
    // Whoever pauses needs a database and nothing else.
    let only = [("DATABASE_URL".to_owned(), post.database.url().to_owned())].into();
    let said = postrider(&only, &["lanes", "pause", "bulk", "--note", "not today", "--by", "ada"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    post.start_daemon().await;
    let request = reminder("grace@example.bj");
    post.publish(&request).await;
    post.publish(&ticket("ada@example.bj")).await;
    post.relay.wait_for_mails(1).await;
    let depth = post.broker.depth(BULK).await.expect("the queue is there");
    assert_eq!((depth.ready, depth.consumers), (1, 0));
    assert_eq!(post.daemon().metric("email_settled_total", &["bulk"]).await, 0.0, "it never had one in hand");
    assert_eq!(lane(post.daemon(), "bulk").await["paused"]["by"], "operator:ada");

    let shown = post.run(&["lanes"]).await;
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.out.contains("not today") && shown.out.contains("paused"), "{shown:?}");
    let shown = post.run(&["lanes", "--json"]).await.json();
    assert_eq!((&shown["items"][2]["lane"], &shown["items"][2]["depth"]), (&json!("bulk"), &json!(1)), "{shown}");
    let said = post.run(&["lanes", "resume", "bulk", "--json"]).await.json();
    assert_eq!((&said["is_new"], &said["paused"]), (&json!(true), &Value::Null), "{said}");
    post.database.wait_for(id(&request), "sent").await;
    let said = post.run(&["lanes", "pause", "slow"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_are_told_at_once_and_look_for_themselves_if_they_are_not() {
    let post = Installation::start().await;
    // Six times, of which each look that nobody was told to have takes up to five seconds. A machine that stood
    // still may have another go.
    let mut rounds: Vec<Duration> = Vec::new();
    while rounds.iter().all(|took| *took >= Duration::from_secs(6)) {
        assert!(rounds.len() < 3, "{rounds:?}");
        let begun = Instant::now();
        for _ in 0..3 {
            steer(post.daemon(), "bulk", "pause", "").await;
            wait_for_consumers(&post, BULK, 0).await;
            steer(post.daemon(), "bulk", "resume", "").await;
            wait_for_consumers(&post, BULK, 1).await;
        }
        rounds.push(begun.elapsed());
    }

    // Somebody who tells nobody.
    let pausing = "insert into lane_pauses (lane, paused_by) values ('bulk', 'operator:nobody')";
    sqlx::query(pausing).execute(&post.database.pool).await.expect("it is paused");
    wait_for_consumers(&post, BULK, 0).await;
    sqlx::query("delete from lane_pauses").execute(&post.database.pool).await.expect("it is resumed");
    wait_for_consumers(&post, BULK, 1).await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_fast_lane_stays_paused_while_the_database_is_away() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    post.start_daemon().await;
    let said = steer(post.daemon(), "fast", "pause", "the relay repeats itself").await;
    assert!(said["warning"].as_str().is_some_and(|words| words.contains("incidents")), "{said}");
    wait_for_consumers(&post, FAST, 0).await;
    line.cut().await;
    post.daemon().wait_until_not_ready("database").await;
    let alert = incident("duty@example.bj");
    post.publish(&alert).await;
    wait_for_consumers(&post, "email.standard", 0).await;
    let depth = post.broker.depth(FAST).await.expect("the queue is there");
    assert_eq!((depth.ready, depth.consumers), (1, 0));
    let shown = until_some("the broker counts it", async || {
        let shown = lane(post.daemon(), "fast").await;
        (shown["depth"] == 1).then_some(shown)
    })
    .await;
    assert_eq!(shown["state"], "paused", "what was known last: {shown}");
    let all = until_some("the broker counts them all", async || {
        let (_, all) = post.daemon().get(&format!("{EMAIL}/lanes"), VIEWER_TOKEN).await;
        all["broker_error"].is_null().then_some(all)
    })
    .await;
    assert!(all["database_error"].is_string(), "{all}");
    let (_, daemons) = post.daemon().get(&format!("{EMAIL}/daemons"), VIEWER_TOKEN).await;
    assert_eq!(daemons["items"][0]["database"], "away", "{daemons}");
    let (status, _) = post.daemon().post(&format!("{EMAIL}/lanes/fast/resume"), ADMIN_TOKEN, &json!({})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "nobody would know of it");

    line.mend().await;
    post.daemon_mut().wait_until_ready().await;
    assert_eq!(post.relay.log().mails.len(), 0, "not even now");
    steer(post.daemon(), "fast", "resume", "").await;
    post.database.wait_for(id(&alert), "sent").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_was_cut_off_hears_of_a_pause_before_it_takes_anything() {
    let post = Installation::start().await;
    let line = Proxy::start(post.database.url()).await;
    let mut variables = post.variables.clone();
    variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    let mut other = Daemon::start(&variables).await;
    wait_for_consumers(&post, BULK, 2).await;
    line.cut().await;
    other.wait_until_not_ready("database").await;
    wait_for_consumers(&post, BULK, 1).await;
    steer(post.daemon(), "bulk", "pause", "").await;
    wait_for_consumers(&post, BULK, 0).await;
    let request = reminder("grace@example.bj");
    post.publish(&request).await;
    line.mend().await;
    other.wait_until_ready().await;
    wait_for_consumers(&post, "email.standard", 2).await;
    let depth = post.broker.depth(BULK).await.expect("the queue is there");
    assert_eq!((depth.ready, depth.consumers), (1, 0));
    assert_eq!(other.metric("email_settled_total", &["bulk"]).await, 0.0, "it never had it in hand");
    steer(post.daemon(), "bulk", "resume", "").await;
    post.database.wait_for(id(&request), "sent").await;
    other.stop().await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_operators_steer_and_what_is_wrong_is_said() {
    let post = Installation::start().await;
    let daemon = post.daemon();
    for what in ["pause", "resume"] {
        let path = format!("{EMAIL}/lanes/bulk/{what}");
        assert_eq!(daemon.post(&path, VIEWER_TOKEN, &json!({})).await.0, StatusCode::FORBIDDEN);
        assert_eq!(daemon.post(&path, "nobody", &json!({})).await.0, StatusCode::UNAUTHORIZED);
        let unknown = daemon.post(&format!("{EMAIL}/lanes/slow/{what}"), ADMIN_TOKEN, &json!({})).await;
        assert_eq!(unknown.0, StatusCode::NOT_FOUND, "{}", unknown.1);
        for wrong in [json!({ "note": "x".repeat(501) }), json!({ "note": "a\u{0}b" })] {
            let (status, said) = daemon.post(&path, ADMIN_TOKEN, &wrong).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
            assert!(said["detail"].as_str().is_some_and(|words| words.contains("note")), "{said}");
        }
    }
    for path in ["lanes", "lanes/bulk", "daemons"] {
        assert_eq!(daemon.get(&format!("{EMAIL}/{path}"), "nobody").await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(daemon.get(&format!("{EMAIL}/lanes/slow"), VIEWER_TOKEN).await.0, StatusCode::NOT_FOUND);
    assert_eq!(post.broker.depth(BULK).await.expect("the queue is there").consumers, 1);
    assert_eq!(lane(daemon, "bulk").await["state"], "running");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_all_daemons_add_up_to_what_the_relay_got() {
    let post = Installation::start().await;
    let other = Daemon::start(&post.variables).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("550 5.7.1 no")).to("refused@example.bj"));
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("later@example.bj").once());
    let tickets: Vec<_> = (0..30).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&tickets).await;
    post.publish(&incident("duty@example.bj")).await;
    post.publish(&ticket("refused@example.bj")).await;
    post.publish(&ticket("later@example.bj")).await;
    post.wait_until_idle().await;
    post.relay.wait_for_mails(33).await;
    let sum = |shown: &Value, series: &str| -> u64 {
        let steps = shown["history"][series].as_array().expect("steps");
        assert_eq!(steps.len(), 60);
        steps.iter().filter_map(Value::as_u64).sum()
    };
    for daemon in [post.daemon(), &other] {
        until("both daemons have told", async || {
            let (fast, standard) = (lane(daemon, "fast").await, lane(daemon, "standard").await);
            (sum(&fast, "sent"), sum(&standard, "sent"), sum(&standard, "troubled")) == (2, 31, 2)
        })
        .await;
        let fast = lane(daemon, "fast").await;
        assert_eq!(fast["latency"]["mails"], 2, "{fast}");
        let (p50, p99) = (fast["latency"]["p50_ms"].as_f64(), fast["latency"]["p99_ms"].as_f64());
        assert!(p50.is_some_and(|ms| (1.0..30_000.0).contains(&ms)) && p99 >= p50, "{fast}");
        let (_, daemons) = daemon.get(&format!("{EMAIL}/daemons"), VIEWER_TOKEN).await;
        let items = daemons["items"].as_array().expect("items");
        assert_eq!((items.len(), items.iter().filter(|one| one["is_this"] == true).count()), (2, 1), "{daemons}");
        for one in items {
            assert_eq!((&one["database"], &one["version"]), (&json!("up"), &json!(env!("CARGO_PKG_VERSION"))), "{one}");
            assert_eq!(one["relays"].as_array().map(Vec::len), Some(1), "{one}");
            assert!(one["started_at"].is_string() && one["reported_at"].is_string(), "{one}");
            assert!(one["lanes"].as_array().expect("lanes").iter().all(|lane| lane["state"] == "consuming"), "{one}");
        }
    }
    let size: i32 = sqlx::query_scalar("select max(octet_length(figures::text)) from email_workers")
        .fetch_one(&post.database.pool)
        .await
        .expect("an answer");
    assert!(size < 2000, "{size} bytes: the row must stay in its page");
    other.stop().await;
    until("who stops is gone at once", async || {
        let (_, daemons) = post.daemon().get(&format!("{EMAIL}/daemons"), VIEWER_TOKEN).await;
        daemons["total"] == 1
    })
    .await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_leaves_the_rest_of_the_answer() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.broker.url()).await;
    post.variables.insert("AMQP_URL".to_owned(), line.url(post.broker.url()));
    post.start_daemon().await;
    until("the broker counts", async || lane(post.daemon(), "bulk").await["depth"] == 0).await;
    line.cut().await;
    let all = until_some("the broker cannot be asked", async || {
        let (_, all) = post.daemon().get(&format!("{EMAIL}/lanes"), VIEWER_TOKEN).await;
        all["broker_error"].is_string().then_some(all)
    })
    .await;
    assert!(all["items"][0]["depth"].is_null() && all["items"][0]["history"]["sent"].is_array(), "{all}");
    assert!(!all.to_string().contains("amqp://"), "no secrets in {all}");
    let said = post.run(&["lanes"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("bulk") && said.err.contains("cannot be counted"), "{said:?}");
    line.mend().await;
    post.daemon_mut().wait_until_ready().await;
    post.finish().await;
}
