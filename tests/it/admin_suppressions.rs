//! The suppression list by the API: who may see and change what, page by page, and as a file.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    daemon::{ADMIN_TOKEN, VIEWER_TOKEN},
    description,
    installation::Installation,
    requests::ticket,
};

const LIST: &str = "/api/v1/email/suppressions";

fn ask(post: &Installation, method: Method, path: &str, token: &str) -> RequestBuilder {
    reqwest::Client::new().request(method, post.daemon().url(&format!("{LIST}{path}"))).bearer_auth(token)
}

async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = description::ask(request).await;
    (answer.status, answer.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_adds_and_lifts_and_a_viewer_only_looks() {
    let post = Installation::start().await;
    let new = json!({ "address": "Ada@Example.bj", "reason": "complaint", "note": "by telephone" });
    for (method, path) in
        [(Method::POST, ""), (Method::DELETE, "/00"), (Method::GET, "/export"), (Method::POST, "/import")]
    {
        let (status, said) = answer(ask(&post, method.clone(), path, VIEWER_TOKEN).json(&new)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {said}");
    }
    let add = async |body: &Value| answer(ask(&post, Method::POST, "", ADMIN_TOKEN).json(body)).await;
    let (status, item) = add(&new).await;
    assert_eq!((status, &item["source"]), (StatusCode::CREATED, &json!("operator:test-admin")), "{item}");
    assert_eq!(add(&new).await.0, StatusCode::OK, "it was there already");
    assert_eq!(add(&json!({ "address": "ada@example.bj" })).await.1["reason"], "operator");
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "suppressed").await;

    let (_, seen) = answer(ask(&post, Method::GET, "?address=ADA@example.bj", VIEWER_TOKEN)).await;
    assert_eq!((&seen["total"], &seen["items"][0]["address"]), (&json!(2), &json!("a***@***.bj")), "{seen}");
    assert!(!seen.to_string().contains("telephone"), "{seen}");

    let path = format!("/{}", item["id"].as_str().expect("an id"));
    let (status, said) = answer(ask(&post, Method::DELETE, &format!("{path}?reason=complaint"), ADMIN_TOKEN)).await;
    assert_eq!((status, &said["lifted"][0]["reason"]), (StatusCode::OK, &json!("complaint")), "{said}");
    assert_eq!(said["left"][0]["reason"], "operator", "{said}");
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    let (status, _) = answer(ask(&post, Method::DELETE, &format!("{path}?reason=complaint"), ADMIN_TOKEN)).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "nothing left to lift");

    let (_, shown) = answer(ask(&post, Method::GET, &path, ADMIN_TOKEN)).await;
    let history: Vec<_> = shown["history"].as_array().expect("history").iter().map(|line| &line["change"]).collect();
    assert_eq!(history, ["added", "added", "lifted"], "{shown}");

    for (body, word) in [
        (json!({ "address": "nobody" }), "address: "),
        (json!({ "address": "a@example.bj", "reason": "bounced" }), "hard_bounce"),
        (json!({ "address": "a@example.bj", "expires_at": "2020-01-01T00:00:00Z" }), "expires_at"),
        (json!({ "address": "a@example.bj", "note": "x".repeat(501) }), "500"),
        (json!({ "adress": "a@example.bj" }), "adress"),
    ] {
        let (status, said) = add(&body).await;
        assert!(status.is_client_error() && said["detail"].as_str().is_some_and(|d| d.contains(word)), "{said}");
    }
    let (status, _) = answer(ask(&post, Method::DELETE, "/ada@example.bj", ADMIN_TOKEN)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "an address is no id");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_read_page_by_page_and_its_total_has_an_end() {
    let post = Installation::start().await;
    // Several of one moment, so that the place in the list is more than a time.
    sqlx::query(
        "insert into suppressions (address_hash, reason, source, created_at)
         select sha256(n::text::bytea), case when n % 2 = 0 then 'complaint' else 'hard_bounce' end,
            case when n % 2 = 0 then 'ses' else 'smtp' end, now() - make_interval(secs => n / 3)
         from generate_series(1, 25) as n",
    )
    .execute(&post.database.pool)
    .await
    .expect("filled in");
    let page = async |query: &str| answer(ask(&post, Method::GET, query, ADMIN_TOKEN)).await.1;
    let (mut ids, mut next, mut pages) = (Vec::new(), String::new(), 0_u8);
    loop {
        let said = page(&format!("?limit=10{next}")).await;
        assert_eq!((&said["total"], &said["total_is_exact"]), (&json!(25), &json!(true)), "{said}");
        ids.extend(said["items"].as_array().expect("items").iter().map(|item| item["id"].to_string()));
        pages += 1;
        // What is added meanwhile is newer, and moves nothing.
        sqlx::query("insert into suppressions (address_hash, reason, source) values (sha256($1), 'unsubscribe', 'x')")
            .bind(vec![pages])
            .execute(&post.database.pool)
            .await
            .expect("added");
        sqlx::query("delete from suppressions where source = 'x'").execute(&post.database.pool).await.expect("gone");
        match said["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!((pages, ids.len()), (3, 25));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 25, "each once");
    assert_eq!(page("?reason=complaint").await["total"], 12);
    assert_eq!(page("?source=smtp&limit=1").await["total"], 13);

    sqlx::query(
        "insert into suppressions (address_hash, reason, source)
         select sha256(n::text::bytea), 'unsubscribe', 'x' from generate_series(1, 10001) as n",
    )
    .execute(&post.database.pool)
    .await
    .expect("filled in");
    let said = page("?limit=1").await;
    assert_eq!((&said["total"], &said["total_is_exact"]), (&json!(10_000), &json!(false)));
    assert_eq!(page("?limit=1&reason=complaint").await["total_is_exact"], true);

    for (query, word) in [
        ("?limit=0", "1 to 500"),
        ("?limit=501", "1 to 500"),
        ("?cursor=x", "cursor"),
        ("?reason=bounced", "hard_bounce"),
        ("?address=a+b@example.bj", "%2B"),
        ("?adress=x", "adress"),
    ] {
        let (status, said) = answer(ask(&post, Method::GET, query, ADMIN_TOKEN)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{query}: {said}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_in_and_out_and_one_that_is_not_sound_or_too_large_is_told() {
    let post = Installation::start().await;
    let import = |query: &str, file: String| {
        ask(&post, Method::POST, &format!("/import{query}"), ADMIN_TOKEN).header("content-type", "text/csv").body(file)
    };
    let mut file = "address,note\r\n".to_owned();
    for n in 0..2500 {
        file.push_str(&format!("n{n}@example.bj,'=note {n}\r\n"));
    }
    let (status, said) = answer(import("?dry_run=true", file.clone())).await;
    assert_eq!((status, &said["entries"], &said["added"]), (StatusCode::OK, &json!(2500), &json!(0)), "{said}");
    let (_, said) = answer(import("", file)).await;
    assert_eq!((&said["added"], &said["imported"]), (&json!(2500), &json!(true)), "{said}");

    let answered = description::ask(ask(&post, Method::GET, "/export", ADMIN_TOKEN)).await;
    assert_eq!(answered.content_type(), "text/csv");
    let out = answered.text();
    assert_eq!(out.lines().count(), 2501);
    assert!(out.starts_with("address,reason,category,source,note,expires_at,created_at,address_hash\r\n"));
    assert!(out.contains("n7@example.bj,operator,,import:test-admin,'=note 7,,"), "the note is no formula");
    let (_, said) = answer(import("", out)).await;
    assert_eq!(said["unchanged"], 2500, "{said}");

    let bad = "address,reason\nsecret@nowhere,\nsound@example.bj,\n".to_owned();
    let (status, said) = answer(import("", bad.clone())).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!((&said["faults"][0]["line"], &said["faults"][0]["field"]), (&json!(2), &json!("address")), "{said}");
    assert!(!said.to_string().contains("secret"), "{said}");
    let (status, said) = answer(import("?skip_bad=true", bad)).await;
    assert_eq!((status, &said["added"], &said["skipped"]), (StatusCode::OK, &json!(1), &json!(1)), "{said}");

    let (status, said) = answer(import("", "x".repeat(16 * 1024 * 1024 + 1))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(said["detail"].as_str().is_some_and(|detail| detail.contains("16 MiB")), "{said}");
    let unnamed = ask(&post, Method::POST, "/import", ADMIN_TOKEN).body("address\n");
    assert_eq!(answer(unnamed).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    post.finish().await;
}
