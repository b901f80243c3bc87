//! Dead letters by the API: found, looked at by whoever may, and put away so that nothing sends them again.

use postrider::email::Phase;
use reqwest::{StatusCode, header};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    daemon::{ADMIN_TOKEN, VIEWER_TOKEN},
    description::ask,
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, invoice, ticket},
};

const LIST: &str = "/api/v1/email/dead-letters";

/// Letters of mails that the relay refused, two of one template, then one of another; and one that could not be read.
async fn refused(post: &Installation) -> Vec<Uuid> {
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not to ada.lovelace@example.bj")));
    let all = [ticket("ada.lovelace@example.bj"), ticket("grace@example.bj"), invoice("ada.lovelace@example.bj")];
    let mut letters = Vec::new();
    for request in &all {
        post.publish(request).await;
        letters.push(post.database.wait_for_letter(id(request)).await.id);
    }
    post.broker.publish_raw("support.p1", lapin::BasicProperties::default(), b"garbage").await;
    letters.push(post.database.wait_for_letters(4).await.remove(3).id);
    post.wait_until_settled().await;
    post.relay.behave();
    letters
}

async fn get(post: &Installation, path: &str, token: &str) -> Value {
    let (status, said) = post.daemon().get(&format!("{LIST}{path}"), token).await;
    assert_eq!(status, StatusCode::OK, "{path}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_found_by_whatever_is_asked_and_read_page_by_page() {
    let post = Installation::start().await;
    let letters = refused(&post).await;
    for (query, found) in [
        ("", vec![3, 2, 1, 0]),
        ("reason=rejected", vec![2, 1, 0]),
        ("reason=malformed", vec![3]),
        ("template=support_ticket_created", vec![1, 0]),
        ("source=billing", vec![2]),
        ("to=ADA.lovelace@example.bj", vec![2, 0]),
        ("to=ada.lovelace@example.bj&source=support", vec![0]),
        ("since=2020-01-01&state=waiting", vec![3, 2, 1, 0]),
        ("until=2020-01-01", vec![]),
        ("state=discarded", vec![]),
    ] {
        let expected: Vec<Value> = found.iter().map(|n: &usize| json!(letters[*n])).collect();
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = get(&post, &format!("?limit=1&{query}{cursor}"), ADMIN_TOKEN).await;
            assert_eq!((&page["total"], &page["total_is_exact"]), (&json!(expected.len()), &json!(true)), "{query}");
            ids.extend(page["items"].as_array().expect("items").iter().map(|item| item["id"].clone()));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(ids, expected, "{query}: newest first, each once");
    }
    // Hundreds that were archived at one moment.
    sqlx::query(
        "insert into dead_letters (id, settlement_key, reason, properties, headers, body_bytes, archived_at)
         select gen_random_uuid(), n::text, 'expired_key', '{}', '{}', 0, '2026-01-01'::timestamptz
         from generate_series(1, 420) as n",
    )
    .execute(&post.database.pool)
    .await
    .expect("filled in");
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&post, &format!("?limit=50{cursor}"), ADMIN_TOKEN).await;
        ids.extend(page["items"].as_array().expect("items").iter().map(|item| item["id"].to_string()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(ids.len(), 424);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 424, "each once");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_is_told_whole_to_an_operator_who_is_noted_and_without_its_person_to_a_viewer() {
    let post = Installation::start().await;
    let letter = refused(&post).await[0];
    let path = format!("/{letter}");
    for path in ["", &path] {
        let seen = get(&post, path, VIEWER_TOKEN).await.to_string();
        assert!(!seen.contains("lovelace") && seen.contains("a***@***.bj"), "{path}: {seen}");
        assert!(!seen.contains("not to") && seen.contains("rejected"), "{path}: {seen}");
    }
    let seen = get(&post, &path, VIEWER_TOKEN).await;
    for name in ["content", "headers", "properties", "error"] {
        assert_eq!(seen[name], Value::Null, "{name}");
    }
    assert_eq!((&seen["history"][0]["kind"], &seen["history"][0]["code"]), (&json!("rejected"), &json!(550)), "{seen}");
    let views = async || {
        sqlx::query_as::<_, (String, String)>("select viewed_by, what from operator_views where dead_letter_id = $1")
            .bind(letter)
            .fetch_all(&post.database.pool)
            .await
            .expect("the views")
    };
    assert_eq!(views().await, []);
    let told = get(&post, &path, ADMIN_TOKEN).await;
    assert_eq!(told["recipients"][0], "ada.lovelace@example.bj", "{told}");
    assert_eq!(told["content"]["recipients"][0]["address"], "ada.lovelace@example.bj", "{told}");
    assert_eq!(told["headers"]["x-reason"], "rejected", "{told}");
    assert!(told["history"][0]["error"].as_str().is_some_and(|error| error.contains("not to")), "{told}");
    let said = post.run(&["dead", "show", &letter.to_string(), "--by", "grace"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let expected = ["operator:test-admin", "operator:grace"].map(|by| (by.to_owned(), "dead_letter".to_owned()));
    assert_eq!(views().await, expected);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_letter_is_never_replayed_and_who_discarded_it_stays_known() {
    let post = Installation::start().await;
    let letters = refused(&post).await;
    let discard = async |letter: Uuid, token: &str, note: &str| {
        post.daemon().post(&format!("{LIST}/{letter}/discard"), token, &json!({ "note": note })).await
    };
    assert_eq!(discard(letters[0], VIEWER_TOKEN, "x").await.0, StatusCode::FORBIDDEN);
    assert_eq!(get(&post, "?state=discarded", ADMIN_TOKEN).await["total"], 0);
    let (status, said) = discard(letters[0], ADMIN_TOKEN, "she has moved").await;
    assert_eq!(
        (status, &said["is_new"], &said["state"]),
        (StatusCode::OK, &json!(true), &json!("discarded")),
        "{said}"
    );
    let (status, again) = discard(letters[0], ADMIN_TOKEN, "another reason").await;
    assert_eq!((status, &again["is_new"]), (StatusCode::OK, &json!(false)));
    assert_eq!(again["discard"], said["discard"], "it stays as it was");
    let (who, why) = (&json!("operator:test-admin"), &json!("she has moved"));
    let shown = get(&post, &format!("/{}", letters[0]), ADMIN_TOKEN).await;
    assert_eq!((&shown["state"], &shown["discard"]["by"], &shown["discard"]["note"]), (&json!("discarded"), who, why));
    let shown = get(&post, &format!("/{}", letters[0]), VIEWER_TOKEN).await;
    assert_eq!((&shown["discard"]["by"], &shown["discard"]["note"]), (who, &Value::Null));

    let said = post.run(&["dead", "discard", &letters[1].to_string(), "--note", "a test", "--by", "grace"]).await;
    assert!(said.code == 0 && said.out.contains("discarded"), "{said:?}");
    let said = post.run(&["dead", "show", &letters[1].to_string()]).await;
    assert!(said.out.contains("operator:grace: a test"), "{said:?}");

    let said = post.run(&["dead", "replay", "--reason", "rejected", "--json"]).await.json();
    assert_eq!((&said["replayed"], said["items"].as_array().map(Vec::len)), (&json!(1), Some(1)), "{said}");
    let said = post.run(&["dead", "replay", &letters[0].to_string(), &letters[1].to_string(), "--json"]).await.json();
    assert_eq!((&said["replayed"], &said["items"][0]["why"]), (&json!(0), &json!("discarded")), "{said}");
    assert_eq!(post.mails(1).await.len(), 1);
    let (status, said) = discard(letters[2], ADMIN_TOKEN, "too late").await;
    assert_eq!(status, StatusCode::CONFLICT, "{said}");
    assert!(said["detail"].as_str().is_some_and(|detail| detail.contains("replayed")), "{said}");
    let (late, nobody) = (letters[2].to_string(), Uuid::nil().to_string());
    let said = post.run(&["dead", "discard", &late, &nobody, "--json"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    let said: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!((&said["items"][0]["result"], &said["items"][1]["result"]), (&json!("replayed"), &json!("unknown")));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_wrongly_is_told_by_its_name_and_nothing_is_told_without_a_token() {
    let post = Installation::start().await;
    let letter = refused(&post).await[0];
    let nobody = Uuid::nil();
    let http = reqwest::Client::new();
    for (path, body, status, word) in [
        ("?limit=501".to_owned(), None, 400, "limit"),
        ("?reason=bad".to_owned(), None, 400, "reason: it is one of malformed"),
        ("?state=gone".to_owned(), None, 400, "state: it is one of waiting"),
        ("?since=x".to_owned(), None, 400, "since: "),
        ("?to=x".to_owned(), None, 400, "to: "),
        ("?cursor=x".to_owned(), None, 400, "cursor: "),
        ("?too=x".to_owned(), None, 400, "too"),
        ("/x".to_owned(), None, 400, "id: "),
        (format!("/{nobody}"), None, 404, "no such dead letter"),
        (format!("/{nobody}/discard"), Some(json!({})), 404, "no such dead letter"),
        (format!("/{letter}/discard"), Some(json!({ "note": "x".repeat(501) })), 400, "note: "),
        (format!("/{letter}/discard"), Some(json!({ "why": "x" })), 422, "why"),
    ] {
        let url = post.daemon().url(&format!("{LIST}{path}"));
        let request = || body.as_ref().map_or_else(|| http.get(&url), |body| http.post(&url).json(body));
        assert_eq!(ask(request()).await.status, StatusCode::UNAUTHORIZED, "{path}");
        let answer = ask(request().bearer_auth(ADMIN_TOKEN)).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json", "{path}");
        let said = answer.json();
        assert_eq!(said["status"], status, "{path}: {said}");
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{path}: {said}");
    }
    // Without a word why is a way to discard too.
    let url = post.daemon().url(&format!("{LIST}/{letter}/discard"));
    assert_eq!(ask(http.post(url).bearer_auth(ADMIN_TOKEN)).await.status, StatusCode::OK);
    post.finish().await;
}
