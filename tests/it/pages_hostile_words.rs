//! Whatever others have written is shown and does nothing: what a producer, a relay or a colleague put into a mail, an answer or a note.

use postrider::email::Phase;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{
    daemon::{ADMIN_TOKEN, OPERATOR_TOKEN},
    installation::Installation,
    pages::Visitor,
    relay::{Act, Rule},
    requests::{set, ticket},
    wait::until,
};

/// Turns the text behind it, closes what it stands in, and would run.
const HOSTILE: &str = "\u{202e}gnp.exe\u{2066}'\"></textarea></title></script><script>hostile()</script><img src=x onerror=hostile()>{{7*7}}";

/// Fails where a page holds any of it as anything but text.
fn is_inert(path: &str, html: &str) {
    assert!(html.contains("hostile()"), "{path} does not show it, so this shows nothing: {html}");
    for part in ["<script>hostile", "<img src=x", "</textarea></title>", "onerror=hostile()>", "\u{202e}", "\u{2066}"] {
        assert!(!html.contains(part), "{path} holds {part:?}: {html}");
    }
    // The only scripts are files of ours.
    for script in html.split("<script").skip(1) {
        assert!(script.starts_with(" src=\"/assets/"), "{path}: {script}");
    }
    for part in html.split('<').skip(1) {
        let tag = part.split('>').next().unwrap_or_default();
        assert!(!tag.contains("javascript:"), "{path}: {tag}");
        // What stands between quotes is a value.
        let outside: String = tag.split('"').step_by(2).collect();
        for attribute in outside.split_whitespace().skip(1) {
            assert!(!attribute.starts_with("on") && !attribute.starts_with("style="), "{path}: {tag}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_words_are_shown_as_words() {
    let post = Installation::start().await;
    post.relay.script(
        Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 <script>hostile()</script><img src=x onerror=hostile()>"))
            .to("refused@example.bj"),
    );
    let hostile = |to: &str| {
        let mut request = ticket(to);
        set(&mut request, "title", HOSTILE);
        for recipient in &mut request.recipients {
            recipient.display_name = format!("Ada {}", HOSTILE.replace(['\u{202e}', '\u{2066}'], ""));
        }
        request
    };
    let sent = post.publish(&hostile("ada@example.bj")).await;
    post.database.wait_for(sent, "sent").await;
    let refused = post.publish(&hostile("refused@example.bj")).await;
    post.database.wait_for(refused, "failed").await;
    until("the letter is archived", async || {
        let count: i64 = sqlx::query_scalar("select count(*) from dead_letters")
            .fetch_one(&post.database.pool)
            .await
            .expect("a count");
        count > 0
    })
    .await;
    let letter: uuid::Uuid =
        sqlx::query_scalar("select id from dead_letters").fetch_one(&post.database.pool).await.expect("a row");
    let rows: Vec<uuid::Uuid> =
        sqlx::query_scalar("select id from email_messages").fetch_all(&post.database.pool).await.expect("rows");

    let admin = Visitor::sign_in(post.daemon(), ADMIN_TOKEN).await;
    let (status, _) = post
        .daemon()
        .post("/api/v1/email/suppressions", OPERATOR_TOKEN, &json!({ "address": "noted@example.bj", "note": HOSTILE }))
        .await;
    assert!(status.is_success(), "{status}");
    let id: Vec<u8> = sqlx::query_scalar("select address_hash from suppressions where reason = 'operator'")
        .fetch_one(&post.database.pool)
        .await
        .expect("a row");
    for row in rows {
        is_inert("a message", &admin.page(&format!("/messages/{row}")).await);
        // The mail itself stands in a world of its own.
        let mail = admin.look(&format!("/messages/{row}/mail")).await;
        if mail.status() == StatusCode::OK {
            let policy = mail.headers()["content-security-policy"].to_str().expect("text").to_owned();
            assert!(policy.starts_with("sandbox; default-src 'none';"), "{policy}");
            let html = mail.text().await.expect("text");
            assert!(!html.contains("<script>hostile") && !html.contains("<img src=x"), "{html}");
        }
    }
    let hash = hex::encode(id);
    for path in [format!("/dead-letters/{letter}"), format!("/suppressions/{hash}")] {
        is_inert(&path, &admin.page(&path).await);
    }
    // Whatever is asked for stands in the page that answers.
    let asked: String = url::form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
    for path in [
        "/messages?to=",
        "/messages?template=",
        "/suppressions?address=",
        "/dead-letters?template=",
        "/sign-in?next=/",
        "/templates/",
    ] {
        let answer = admin.send(Method::GET, &format!("{path}{asked}")).send().await.expect("an answer");
        let html = answer.text().await.expect("text");
        for part in ["<script>hostile", "<img src=x", "\u{202e}"] {
            assert!(!html.contains(part), "{path} holds {part:?}: {html}");
        }
    }
    post.relay.behave();
    post.finish().await;
}
