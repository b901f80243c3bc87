//! What the admin API shows, to whom, and what it refuses.

use reqwest::{Method, StatusCode, header};
use serde_json::json;

use crate::support::{
    daemon::{ADMIN_TOKEN, VIEWER_TOKEN},
    description::{Answer, ask},
    installation::Installation,
    requests::{templates, ticket},
};

const EMAIL: &str = "/api/v1/email";

/// A problem's status and words.
fn problem(answer: &Answer) -> (StatusCode, String) {
    let status = answer.status;
    assert_eq!(answer.content_type(), "application/problem+json", "{status}");
    let body = answer.json();
    assert_eq!(body["status"], status.as_u16(), "{body}");
    assert!(body["title"].is_string(), "{body}");
    (status, body["detail"].as_str().expect("a detail").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_token_sees_nothing_but_health() {
    let post = Installation::start().await;
    let http = reqwest::Client::new();
    for path in ["/templates", "/templates/rma_confirmation", "/messages", "/messages?to=a@example.bj"] {
        let url = post.daemon().url(&format!("{EMAIL}{path}"));
        for request in [
            http.get(&url),
            http.get(&url).bearer_auth("an-admin-of-these-test"),
            http.get(&url).bearer_auth(""),
            http.get(&url).basic_auth("test-admin", Some(ADMIN_TOKEN)),
        ] {
            let answer = ask(request).await;
            assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
            let (status, detail) = problem(&answer);
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
            assert!(detail.contains("Bearer"), "{detail}");
        }
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = ask(http.get(post.daemon().url(path))).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_sends_a_mail_around_the_broker() {
    let post = Installation::start().await;
    let http = reqwest::Client::new();
    let body = json!({ "to": "a@example.bj", "template_key": "rma_confirmation", "variables": {} });
    let sent = http.post(post.daemon().url(&format!("{EMAIL}/send"))).bearer_auth(ADMIN_TOKEN).json(&body);
    assert_eq!(problem(&ask(sent).await).0, StatusCode::NOT_FOUND);
    let url = post.daemon().url(&format!("{EMAIL}/messages"));
    let posted = http.request(Method::POST, url).bearer_auth(ADMIN_TOKEN).json(&body);
    assert_eq!(problem(&ask(posted).await).0, StatusCode::METHOD_NOT_ALLOWED);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_shown_and_tried_without_a_mail_going_out_unasked() {
    let post = Installation::start().await;
    let daemon = post.daemon();
    let (status, list) = daemon.get(&format!("{EMAIL}/templates"), VIEWER_TOKEN).await;
    assert_eq!((status, &list["total"]), (StatusCode::OK, &json!(templates().len())));
    let keys: Vec<_> = list["items"].as_array().expect("items").iter().map(|item| item["key"].clone()).collect();
    assert_eq!(keys, templates().iter().map(|template| json!(template.key)).collect::<Vec<_>>());
    for item in list["items"].as_array().expect("items") {
        assert!(item["subject"].is_string() && item["category"].is_string() && item["version"] == 1, "{item}");
    }

    let (status, shown) = daemon.get(&format!("{EMAIL}/templates/billing_invoice_monthly"), VIEWER_TOKEN).await;
    assert_eq!((status, &shown["priority"]), (StatusCode::OK, &json!("P2")));
    assert!(shown["required_variables"].as_array().is_some_and(|names| names.contains(&json!("amount_fcfa"))));
    let (status, _) = daemon.get(&format!("{EMAIL}/templates/no_such"), VIEWER_TOKEN).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    // The original's own body.
    let mut body = json!({
        "to": "test@rgz.bj",
        "variables": {
            "reseller_name": "Test Company", "month": "février", "year": "2026", "amount_fcfa": "450000",
            "link_portal": "https://admin-rgz.duckdns.org", "invoice_number": "TEST-001"
        }
    });
    let test = format!("{EMAIL}/templates/billing_invoice_monthly/test");
    let (status, tried) = daemon.post(&test, VIEWER_TOKEN, &body).await;
    assert_eq!((status, &tried["sent"]), (StatusCode::OK, &json!(false)));
    assert_eq!(tried["subject"], "Facture RGZ — février 2026");
    assert!(tried["text"].as_str().is_some_and(|text| text.contains("TEST-001")), "{tried}");
    assert!(tried["html"].as_str().is_some_and(|html| html.contains("Test Company")), "{tried}");

    body["send"] = json!(true);
    let (status, refused) = daemon.post(&test, VIEWER_TOKEN, &body).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{refused}");
    assert!(post.relay.log().mails.is_empty());
    let (status, sent) = daemon.post(&test, ADMIN_TOKEN, &body).await;
    assert_eq!((status, &sent["sent"]), (StatusCode::OK, &json!(true)));
    let mails = post.mails(1).await;
    assert_eq!(mails[0].envelope_to, "test@rgz.bj");

    body["variables"].as_object_mut().expect("variables").remove("amount_fcfa");
    let (status, missing) = daemon.post(&test, ADMIN_TOKEN, &body).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(missing["detail"].as_str().is_some_and(|detail| detail.contains("amount_fcfa")), "{missing}");
    let (status, _) = daemon.post(&test, ADMIN_TOKEN, &json!({ "variabels": {} })).await;
    assert!(status.is_client_error(), "a misspelt name is told: {status}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_mails_is_bounded_and_shows_persons_to_those_who_may_see_them() {
    let post = Installation::start().await;
    let daemon = post.daemon();
    for to in ["ada.lovelace@example.bj", "ada.lovelace@example.bj", "grace@example.bj"] {
        let request = post.publish(&ticket(to)).await;
        post.database.wait_for(request, "sent").await;
    }
    let (status, all) = daemon.get(&format!("{EMAIL}/messages"), ADMIN_TOKEN).await;
    assert_eq!((status, &all["total"], &all["total_is_exact"]), (StatusCode::OK, &json!(3), &json!(true)));
    assert_eq!(all["items"][0]["to"], "grace@example.bj", "newest first");
    let (_, hers) = daemon.get(&format!("{EMAIL}/messages?to=ada.lovelace@example.bj&limit=1"), ADMIN_TOKEN).await;
    assert_eq!((&hers["total"], hers["items"].as_array().map(Vec::len)), (&json!(2), Some(1)));
    let item = &hers["items"][0];
    assert_eq!((&item["to"], &item["status"]), (&json!("ada.lovelace@example.bj"), &json!("sent")));
    assert!(item["id"].is_string() && item["subject"].is_string() && item["sent_at"].is_string(), "{item}");

    let (_, masked) = daemon.get(&format!("{EMAIL}/messages?to=ada.lovelace@example.bj"), VIEWER_TOKEN).await;
    assert_eq!(masked["total"], 2);
    let text = masked.to_string();
    assert!(!text.contains("lovelace") && masked["items"][0]["subject"].is_null(), "{text}");

    let http = reqwest::Client::new();
    for (query, word) in [
        ("limit=0", "1 to 500"),
        ("limit=501", "1 to 500"),
        ("limit=-1", "1 to 500"),
        ("limit=many", "limit"),
        ("to=nobody", "to: "),
        ("too=a@example.bj", "too"),
    ] {
        let url = daemon.url(&format!("{EMAIL}/messages?{query}"));
        let (status, detail) = problem(&ask(http.get(url).bearer_auth(ADMIN_TOKEN)).await);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
        assert!(detail.contains(word), "{query}: {detail}");
    }
    post.finish().await;
}
