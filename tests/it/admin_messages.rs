//! Mails by the API: page by page, by what is asked for, and one with all that is known of it, to whoever may see it.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::{
    daemon::{ADMIN_TOKEN, VIEWER_TOKEN},
    description::ask,
    installation::Installation,
    requests::{attach, invoice, pdf, set},
};

const LIST: &str = "/api/v1/email/messages";

/// Mails that were published one every third of a millisecond before `newest`: three of them share the beginning of their ids.
pub(crate) async fn fill(post: &Installation, count: i32, newest: DateTime<Utc>) {
    let mut tx = post.database.pool.begin().await.expect("a transaction");
    for statement in [
        // There is nobody to hear of them.
        "select set_config('postrider.events', 'off', true), $1::int, $2::timestamptz",
        "insert into email_requests (id, payload_hash, source, template_key, priority, lane, published_at)
         select md5('request' || n)::uuid, sha256(n::text::bytea), case n % 5 when 0 then 'billing' else 'support' end, 't',
            1, 'standard', $2 - (n / 3) * interval '1 ms'
         from generate_series(0, $1 - 1) as n",
        "insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, recipient_email, status,
            message_id, source_endpoint)
         select (lpad(to_hex((extract(epoch from r.published_at) * 1000)::bigint), 12, '0')
                || substr(md5(n::text), 1, 20))::uuid,
            r.id, sha256('nobody'), 0, case n % 4 when 0 then 'rma' else 't' end, 'ada.lovelace@example.bj',
            case when n % 7 = 0 or n >= 50100 then 'failed' else 'sent' end, '<x>', r.source
         from generate_series(0, $1 - 1) as n join email_requests r on r.id = md5('request' || n)::uuid
         where $2 is not null",
    ] {
        sqlx::query(statement).bind(count).bind(newest).execute(&mut *tx).await.expect("filled in");
    }
    tx.commit().await.expect("filled in");
}

/// Every id of a list, in its order, and how many pages it took.
async fn walk(post: &Installation, query: &str) -> (Vec<String>, usize) {
    let (mut ids, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let (status, page) = post.daemon().get(&format!("{LIST}?{query}{cursor}"), ADMIN_TOKEN).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let items = page["items"].as_array().expect("items");
        ids.extend(items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (ids, pages),
        }
    }
}

fn in_a_url(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_mails_are_read_page_by_page_each_once_and_by_whatever_is_asked() {
    let post = Installation::start().await;
    let newest = DateTime::from_timestamp(Utc::now().timestamp() - 60, 0).expect("a time");
    fill(&post, 620, newest).await;
    let total = async |query: &str| {
        let page = post.daemon().get(&format!("{LIST}?limit=1&{query}"), ADMIN_TOKEN).await.1;
        assert_eq!(page["total_is_exact"], true, "{query}: {page}");
        page["total"].as_u64().unwrap_or_else(|| panic!("{query}: {page}"))
    };
    for (query, pages) in [("limit=50", 13), ("limit=7&since=1970-01-01", 89), ("limit=500", 2), ("limit=310", 2)] {
        let (ids, read) = walk(&post, query).await;
        let mut sorted = ids.clone();
        sorted.sort_unstable_by(|one, other| other.cmp(one));
        assert_eq!(ids, sorted, "newest first");
        assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len(), read), (620, 620, pages), "{query}");
    }
    let (some_time, later) = (in_a_url(newest - TimeDelta::milliseconds(100)), in_a_url(newest));
    let request = "request_id=".to_owned()
        + &sqlx::query_scalar::<_, String>("select md5('request8')::uuid::text")
            .fetch_one(&post.database.pool)
            .await
            .expect("an id");
    for (query, count) in [
        ("status=failed", 89),
        ("status=sent&template=rma", 155 - 23),
        ("template=rma", 155),
        ("source=billing", 124),
        ("source=billing&template=rma&status=failed", 5),
        ("status=queued", 0),
        // Three a millisecond; the end is not part of it.
        (&format!("since={some_time}"), 303),
        (&format!("since={some_time}&until={later}"), 300),
        (&format!("until={some_time}&source=billing"), 124 - 61),
        (&request, 1),
        (&format!("{request}&status=failed"), 0),
        ("to=ada.lovelace@example.bj", 0),
    ] {
        assert_eq!(total(query).await, count, "{query}");
        assert_eq!(walk(&post, &format!("limit=100&{query}")).await.0.len() as u64, count, "{query}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_without_an_index_has_an_end_and_says_how_far_it_came() {
    let post = Installation::start().await;
    let newest = DateTime::from_timestamp(Utc::now().timestamp() - 60, 0).expect("a time");
    fill(&post, 50_200, newest).await;
    // What is asked for is only among the oldest hundred.
    sqlx::query("update email_messages set status = 'expired' where status = 'failed' and id >= $1")
        .bind(postrider::email::identity::first_row_id(newest - TimeDelta::milliseconds(50_099 / 3)))
        .execute(&post.database.pool)
        .await
        .expect("changed");
    let (_, first) = post.daemon().get(&format!("{LIST}?status=failed"), ADMIN_TOKEN).await;
    assert_eq!((&first["items"], &first["total"], &first["total_is_exact"]), (&json!([]), &json!(0), &json!(false)));
    let since: DateTime<Utc> = first["searched_since"].as_str().expect("a time").parse().expect("a time");
    assert_eq!(since, newest - TimeDelta::milliseconds(49_999 / 3 - 1), "of that millisecond some were not looked at");
    let (ids, pages) = walk(&post, "status=failed").await;
    assert_eq!((ids.len(), pages), (100, 3), "what is further back is on later pages");
    let (_, all) = post.daemon().get(&format!("{LIST}?limit=1"), ADMIN_TOKEN).await;
    assert_eq!((&all["total"], &all["total_is_exact"]), (&json!(10_000), &json!(false)));

    let said = post.run(&["messages", "--status", "failed"]).await;
    assert!(said.out.contains("--until") && said.out.contains(&in_a_url(since)), "{said:?}");
    let said = post.run(&["messages", "--status", "failed", "--until", &in_a_url(since), "--json"]).await.json();
    assert_eq!((&said["total"], &said["total_is_exact"]), (&json!(100), &json!(true)));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_mail_is_told_whole_to_an_operator_who_is_noted_and_without_its_person_to_a_viewer() {
    let post = Installation::start().await;
    let mut request = invoice("ada.lovelace@example.bj");
    attach(&mut request, "facture-lovelace.pdf", "application/pdf", pdf());
    set(&mut request, "reseller_name", "Analytical Engines");
    let request = post.publish(&request).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let path = format!("{LIST}/{}", row.id);

    let (status, seen) = post.daemon().get(&path, VIEWER_TOKEN).await;
    assert_eq!((status, &seen["to"], &seen["status"]), (StatusCode::OK, &json!("a***@***.bj"), &json!("sent")));
    for personal in ["lovelace", "Analytical", "Facture"] {
        assert!(!seen.to_string().contains(personal), "{personal}: {seen}");
    }
    for name in ["subject", "variables", "metadata", "name", "reply_to", "error"] {
        assert_eq!(seen[name], Value::Null, "{name}");
    }
    assert_eq!((&seen["timeline"][0]["kind"], &seen["timeline"][0]["reply_text"]), (&json!("sent"), &Value::Null));
    let body = format!("{path}/body?part=html");
    assert_eq!(post.daemon().get(&body, VIEWER_TOKEN).await.0, StatusCode::FORBIDDEN);
    assert_eq!(views(&post).await, [], "a viewer has seen nobody");

    let (_, told) = post.daemon().get(&path, ADMIN_TOKEN).await;
    assert_eq!(
        (&told["to"], &told["source"], &told["lane"]),
        (&json!("ada.lovelace@example.bj"), &json!("billing"), &json!("standard"))
    );
    assert_eq!((&told["priority"], &told["template_version"]), (&json!("P2"), &json!(1)));
    assert_eq!(told["variables"]["reseller_name"], "Analytical Engines", "{told}");
    let line = &told["timeline"][0];
    assert_eq!((&line["kind"], &line["attempt"], &line["reply_code"]), (&json!("sent"), &json!(1), &json!(250)));
    assert!(line["latency_ms"].is_i64() && line["relay"].is_string() && line["reply_text"].is_string(), "{line}");
    let file = &told["attachments"][0];
    assert_eq!((&file["filename"], &file["content_type"]), (&json!("facture-lovelace.pdf"), &json!("application/pdf")));
    assert_eq!(file["size_bytes"], pdf().len());
    assert_eq!(file["sha256"].as_str().map(str::len), Some(64));

    let http = reqwest::Client::new();
    for (part, words) in [("html", "<html"), ("text", "Analytical Engines")] {
        let url = post.daemon().url(&format!("{path}/body?part={part}"));
        let answer = ask(http.get(url).bearer_auth(ADMIN_TOKEN)).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "text/plain; charset=utf-8", "no browser runs it");
        assert_eq!(answer.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let text = answer.text();
        assert!(text.contains(words), "{part}: {text}");
    }
    let said = post.run(&["messages", "show", &row.id.to_string(), "--by", "grace"]).await;
    for words in ["ada.lovelace@example.bj", "facture-lovelace.pdf", "billing_invoice_monthly v1", "sent"] {
        assert!(said.out.contains(words), "{words}: {said:?}");
    }
    let (admin, grace) = ("operator:test-admin", "operator:grace");
    let expected = [(admin, "details"), (admin, "html"), (admin, "text"), (grace, "details")];
    assert_eq!(views(&post).await, expected.map(|(by, what)| (by.to_owned(), what.to_owned(), Some(row.id))));
    let rewritten = sqlx::query("update operator_views set viewed_by = 'nobody'").execute(&post.database.pool).await;
    assert!(rewritten.is_err(), "what was noted stays as it is");
    let request = request.to_string();
    let said = post.run(&["messages", "--request", &request, "--status", "sent", "--since", "1h", "--json"]).await;
    assert_eq!(said.json()["items"][0]["id"], row.id.to_string());
    post.finish().await;
}

type View = (String, String, Option<uuid::Uuid>);

async fn views(post: &Installation) -> Vec<View> {
    sqlx::query_as("select viewed_by, what, message_id from operator_views order by id")
        .fetch_all(&post.database.pool)
        .await
        .expect("the views")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_wrongly_is_told_by_its_name_and_nothing_is_told_without_a_token() {
    let post = Installation::start().await;
    let nobody = "00000000-0000-8000-8000-000000000000";
    let http = reqwest::Client::new();
    for (path, status, word) in [
        ("?limit=0".to_owned(), 400, "limit"),
        ("?limit=x".to_owned(), 400, "limit"),
        ("?status=lost".to_owned(), 400, "status: it is one of queued"),
        ("?since=yesterday".to_owned(), 400, "since: "),
        ("?until=2026-11-24T18:00:00+01:00".to_owned(), 400, "%2B"),
        ("?since=9999-01-01".to_owned(), 400, "since: "),
        ("?template=a%00b".to_owned(), 400, "template: "),
        (format!("?source={}", "x".repeat(101)), 400, "source: "),
        ("?request_id=7".to_owned(), 400, "request_id: "),
        ("?cursor=7".to_owned(), 400, "cursor: "),
        ("?to=nobody".to_owned(), 400, "to: "),
        ("?form=x".to_owned(), 400, "form"),
        ("/7".to_owned(), 400, "id: "),
        (format!("/{nobody}"), 404, "no such mail"),
        (format!("/{nobody}/body?part=html"), 404, "no such mail"),
        (format!("/{nobody}/body"), 400, "part: "),
        (format!("/{nobody}/body?part=all"), 400, "part: it is one of html, text"),
    ] {
        let url = post.daemon().url(&format!("{LIST}{path}"));
        assert_eq!(ask(http.get(&url)).await.status, StatusCode::UNAUTHORIZED, "{path}");
        let answer = ask(http.get(&url).bearer_auth(ADMIN_TOKEN)).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json", "{path}");
        let said = answer.json();
        assert_eq!(said["status"], status, "{path}: {said}");
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{path}: {said}");
    }
    let url = post.daemon().url(&format!("{LIST}/{nobody}"));
    let answer = ask(http.request(Method::DELETE, url).bearer_auth(ADMIN_TOKEN)).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    post.finish().await;
}
