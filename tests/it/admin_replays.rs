//! Replays by the API: planned without leaving anything behind, made, steered and followed, and no person in any of it.

use std::time::{Duration, Instant};

use postrider::email::Phase;
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    daemon::{ADMIN_TOKEN, VIEWER_TOKEN},
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, invoice, ticket},
    wait::until,
};

const LETTERS: &str = "/api/v1/email/dead-letters";
const REPLAYS: &str = "/api/v1/email/replays";

/// Letters of mails that the relay refused: four tickets and an invoice; then the relay is mended.
async fn refused(post: &Installation) -> Vec<Uuid> {
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not to ada@example.bj")));
    let mut all: Vec<_> = ["ada", "grace", "joan", "mary"].map(|name| ticket(&format!("{name}@example.bj"))).into();
    all.push(invoice("ada@example.bj"));
    let mut letters = Vec::new();
    for request in &all {
        post.publish(request).await;
        letters.push(post.database.wait_for_letter(id(request)).await.id);
    }
    post.wait_until_settled().await;
    post.relay.behave();
    letters
}

async fn post_ok(post: &Installation, path: &str, token: &str, body: &Value) -> Value {
    let (status, said) = post.daemon().post(path, token, body).await;
    assert!(status.is_success(), "{path}: {status} {said}");
    said
}

async fn get_ok(post: &Installation, path: &str) -> Value {
    let (status, said) = post.daemon().get(path, VIEWER_TOKEN).await;
    assert_eq!(status, StatusCode::OK, "{path}: {said}");
    said
}

async fn runs(post: &Installation) -> i64 {
    sqlx::query_scalar("select count(*) from replay_runs").fetch_one(&post.database.pool).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_whoever_may_look_what_would_happen_and_leaves_nothing_behind() {
    let post = Installation::start().await;
    let letters = refused(&post).await;
    sqlx::query(
        "insert into suppressions (address_hash, reason, source)
         select recipient_hash, 'complaint', 'test' from email_messages where recipient_email = 'joan@example.bj'",
    )
    .execute(&post.database.pool)
    .await
    .expect("suppressed");
    let plan = async |filter: Value| {
        post_ok(&post, &format!("{LETTERS}/plan"), VIEWER_TOKEN, &json!({ "filter": filter })).await
    };
    let all = plan(json!({})).await;
    assert_eq!((&all["letters"], &all["open"], &all["skipped"]), (&json!(5), &json!(4), &json!(1)), "{all}");
    let group = |n: usize, name: &str| all["groups"][n][name].clone();
    assert_eq!((group(0, "template_key"), group(0, "letters")), (json!("support_ticket_created"), json!(3)), "{all}");
    assert_eq!((group(1, "template_version"), group(1, "reason")), (json!(1), json!("rejected")), "{all}");
    assert_eq!((&all["skips"][0]["why"], &all["skips"][0]["letters"]), (&json!("suppressed"), &json!(1)), "{all}");
    for (filter, open) in [
        (json!({ "template": "billing_invoice_monthly" }), 1),
        (json!({ "to": "ADA@example.bj" }), 2),
        (json!({ "reason": "malformed" }), 0),
        (json!({ "until": "2020-01-01" }), 0),
        (json!({ "ids": [letters[0], letters[4]] }), 2),
    ] {
        assert_eq!(plan(filter.clone()).await["open"], open, "{filter}");
    }
    assert_eq!(runs(&post).await, 0);
    let groups = get_ok(&post, &format!("{LETTERS}/groups")).await;
    assert_eq!((&groups["total"], &groups["items"][0]["letters"]), (&json!(5), &json!(4)), "{groups}");
    assert_eq!(groups["items"][1]["template_key"], "billing_invoice_monthly", "{groups}");
    assert_eq!(post.relay.log().accepted().count(), 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_made_looked_at_started_and_followed_to_its_end() {
    let post = Installation::start().await;
    let letters = refused(&post).await;
    let new = json!({ "filter": { "to": "ada@example.bj", "since": "2026-01-01" }, "rate": 50 });
    let (status, _) = post.daemon().post(REPLAYS, VIEWER_TOKEN, &new).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let made = post_ok(&post, REPLAYS, ADMIN_TOKEN, &new).await;
    assert_eq!((&made["state"], &made["letters"], &made["open"]), (&json!("planned"), &json!(2), &json!(2)), "{made}");
    assert_eq!((&made["filter"]["recipient"], &made["created_by"]), (&json!(true), &json!("operator:test-admin")));
    // What is kept names nobody.
    let kept: String = sqlx::query_scalar("select filter::text || plan::text from replay_runs")
        .fetch_one(&post.database.pool)
        .await
        .expect("the run");
    assert!(!kept.contains("ada") && kept.contains("recipient_hash"), "{kept}");
    let path = format!("{REPLAYS}/{}", made["id"].as_str().expect("an id"));
    let shown = get_ok(&post, &path).await.to_string();
    assert!(!shown.contains("recipient_hash") && !shown.contains("ada"), "{shown}");
    let open = get_ok(&post, &format!("{path}/items?result=open")).await;
    assert_eq!((&open["total"], &open["items"][0]["dead_letter_id"]), (&json!(2), &json!(letters[0])), "{open}");
    assert_eq!(post.relay.log().accepted().count(), 0, "it is only planned");

    assert_eq!(post.daemon().post(&format!("{path}/start"), VIEWER_TOKEN, &json!({})).await.0, StatusCode::FORBIDDEN);
    assert_eq!(post.daemon().post(&format!("{path}/pause"), ADMIN_TOKEN, &json!({})).await.0, StatusCode::CONFLICT);
    assert_eq!(post_ok(&post, &format!("{path}/start"), ADMIN_TOKEN, &json!({})).await["state"], "running");
    until("it is done", async || get_ok(&post, &path).await["state"] == "done").await;
    post_ok(&post, &format!("{path}/start"), ADMIN_TOKEN, &json!({})).await;
    assert_eq!(post.daemon().post(&format!("{path}/cancel"), ADMIN_TOKEN, &json!({})).await.0, StatusCode::CONFLICT);
    post.mails(2).await;
    let done = get_ok(&post, &format!("{path}/items?result=replayed&limit=1")).await;
    assert_eq!(
        (&done["total"], &done["items"][0]["position"], &done["next"]),
        (&json!(2), &json!(0), &json!(0)),
        "{done}"
    );
    let rest = get_ok(&post, &format!("{path}/items?result=replayed&limit=1&cursor=0")).await;
    assert_eq!((&rest["items"][0]["position"], &rest["next"]), (&json!(1), &json!(null)), "{rest}");
    assert_eq!(get_ok(&post, &format!("{LETTERS}/groups")).await["total"], 3);

    // The rest at once, and then once more: nothing is left of it.
    let all = json!({ "filter": { "ids": letters }, "start": true });
    let second = post_ok(&post, REPLAYS, ADMIN_TOKEN, &all).await;
    assert_eq!((&second["letters"], &second["skipped"]), (&json!(5), &json!(2)), "{second}");
    let path = format!("{REPLAYS}/{}", second["id"].as_str().expect("an id"));
    until("it is done", async || get_ok(&post, &path).await["state"] == "done").await;
    let end = get_ok(&post, &path).await;
    assert_eq!((&end["replayed"], &end["results"][0]["why"]), (&json!(3), &json!("replayed")), "{end}");
    post.mails(5).await;
    let listed = get_ok(&post, &format!("{REPLAYS}?limit=1")).await;
    assert_eq!(
        (&listed["total"], &listed["items"][0]["id"], &listed["next"]),
        (&json!(2), &second["id"], &second["id"])
    );
    let next = get_ok(&post, &format!("{REPLAYS}?limit=1&cursor={}", second["id"].as_str().expect("an id"))).await;
    assert_eq!((&next["items"][0]["id"], &next["next"]), (&made["id"], &json!(null)), "{next}");
    assert_eq!(get_ok(&post, &format!("{REPLAYS}?state=planned")).await["total"], 0);
    let changes = get_ok(&post, "/api/v1/email/changes?action=replay").await;
    assert_eq!(changes["total"], 4, "planned and started, twice: {changes}");
    assert!(!changes.to_string().contains("ada@"), "{changes}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_paused_by_the_api_stands_still_within_a_moment() {
    let post = Installation::start().await;
    // So many that a slow machine is not through with them before it is paused.
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not today")));
    let all: Vec<_> = (0..30).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&all).await;
    post.database.wait_for_letters(all.len()).await;
    post.wait_until_settled().await;
    post.relay.behave();
    let made = post_ok(&post, REPLAYS, ADMIN_TOKEN, &json!({ "rate": 1, "start": true })).await;
    let path = format!("{REPLAYS}/{}", made["id"].as_str().expect("an id"));
    let replayed = async || get_ok(&post, &path).await["replayed"].as_u64().expect("a count");
    // How long it took, and how many went out after it: one may have been at hand. A machine that stood still may have
    // another go.
    let mut rounds: Vec<(Duration, u64)> = Vec::new();
    let mut still = 0;
    while !rounds.iter().any(|(took, more)| *took < Duration::from_secs(2) && *more <= 1) {
        assert!(rounds.len() < 3, "{rounds:?}");
        if !rounds.is_empty() {
            post_ok(&post, &format!("{path}/resume"), ADMIN_TOKEN, &json!({})).await;
        }
        until("it goes on", async || replayed().await > still).await;
        let begun = Instant::now();
        let paused = post_ok(&post, &format!("{path}/pause"), ADMIN_TOKEN, &json!({})).await;
        until("nobody is at it", async || get_ok(&post, &path).await["has_runner"] == false).await;
        let took = begun.elapsed();
        still = replayed().await;
        rounds.push((took, still - paused["replayed"].as_u64().expect("a count")));
    }
    assert_eq!(get_ok(&post, &path).await["state"], "paused");
    post_ok(&post, &format!("{path}/cancel"), ADMIN_TOKEN, &json!({})).await;
    let end = get_ok(&post, &path).await;
    assert_eq!(end["replayed"], still, "it stood still: {end}");
    assert_eq!((&end["state"], end["finished_at"].is_string()), (&json!("cancelled"), true), "{end}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_wrongly_is_told_by_its_name_and_makes_no_run() {
    let post = Installation::start().await;
    let letter = refused(&post).await[0];
    let nobody = Uuid::nil();
    for (path, body, status, word) in [
        (format!("{LETTERS}/plan"), json!({ "filter": { "reason": "bad" } }), 400, "reason: it is one of"),
        (format!("{LETTERS}/plan"), json!({ "filter": { "to": "x" } }), 400, "to: "),
        (format!("{LETTERS}/plan"), json!({ "filter": { "why": 1 } }), 422, "why"),
        (format!("{LETTERS}/plan"), json!({ "filter": { "ids": [nobody] } }), 404, "no dead letter"),
        (format!("{LETTERS}/plan"), json!({ "filter": { "ids": [letter], "to": "a@b.bj" } }), 400, "ids: "),
        (format!("{LETTERS}/plan"), json!({ "filter": { "ids": [] } }), 400, "ids: "),
        (REPLAYS.to_owned(), json!({ "rate": 0 }), 400, "rate must be 1 to 1000"),
        (REPLAYS.to_owned(), json!({ "rate": 1001 }), 400, "rate must be 1 to 1000"),
        (REPLAYS.to_owned(), json!({ "begin": true }), 422, "begin"),
        (format!("{REPLAYS}/{nobody}/start"), json!({}), 404, "no such replay"),
        (format!("{REPLAYS}/{nobody}/stop"), json!({}), 404, "an action is one of"),
        (format!("{REPLAYS}/x/start"), json!({}), 400, "id: "),
    ] {
        let url = post.daemon().url(&path);
        let bare = reqwest::Client::new().post(url).json(&body).send().await.expect("an answer");
        assert_eq!(bare.status(), StatusCode::UNAUTHORIZED, "{path}");
        let (given, said) = post.daemon().post(&path, ADMIN_TOKEN, &body).await;
        assert_eq!(given.as_u16(), status, "{path} {body}: {said}");
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{path}: {said}");
    }
    for (path, status, word) in [
        (format!("{REPLAYS}/{nobody}"), 404, "no such replay"),
        (format!("{REPLAYS}/{nobody}/items"), 404, "no such replay"),
        (format!("{REPLAYS}?state=x"), 400, "state: it is one of planned"),
        (format!("{REPLAYS}?cursor=x"), 400, "cursor: "),
        (format!("{REPLAYS}/{nobody}/items?result=x"), 400, "result: it is one of open"),
        (format!("{REPLAYS}/{nobody}/items?cursor=-1"), 400, "cursor: "),
    ] {
        let (given, said) = post.daemon().get(&path, VIEWER_TOKEN).await;
        assert_eq!(given.as_u16(), status, "{path}: {said}");
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{path}: {said}");
    }
    assert_eq!(runs(&post).await, 0);
    assert_eq!(post.relay.log().accepted().count(), 0);
    post.finish().await;
}
