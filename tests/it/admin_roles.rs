//! Who may only look changes nothing, by no route of the API and by no form, and who shows no token is told nothing.
//!
//! What is refused here is what somebody with the role then does: it was refused for who asked, and for nothing else.

use std::collections::BTreeSet;

use postrider::email::Phase;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    pages_templates::written,
    support::{
        daemon::{ADMIN_TOKEN, OPERATOR_TOKEN, VIEWER_TOKEN},
        description::{DOCUMENT, ask},
        installation::Installation,
        pages::Visitor,
        relay::{Act, Rule},
        requests::{id, templates, ticket},
    },
};

const EMAIL: &str = "/api/v1/email";
const KEY: &str = "support_ticket_created";

/// What an operator can lay hands on.
struct Things {
    mail: Uuid,
    letter: Uuid,
    suppression: String,
    run: String,
}

/// A mail that was sent, two dead letters, somebody on the suppression list, a replay that is planned, a draft.
async fn things(post: &Installation) -> Things {
    let sent = post.publish(&ticket("ada@example.bj")).await;
    let mail = post.database.wait_for(sent, "sent").await[0].id;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not today")));
    let mut letters = Vec::new();
    for name in ["grace", "joan"] {
        let request = ticket(&format!("{name}@example.bj"));
        post.publish(&request).await;
        letters.push(post.database.wait_for_letter(id(&request)).await.id);
    }
    post.wait_until_settled().await;
    post.relay.behave();
    let made = async |path: &str, body: Value| {
        let (status, said) = post.daemon().post(&format!("{EMAIL}{path}"), OPERATOR_TOKEN, &body).await;
        assert_eq!(status, StatusCode::CREATED, "{path}: {said}");
        said["id"].as_str().expect("an id").to_owned()
    };
    let suppression = made("/suppressions", json!({ "address": "alan@example.bj" })).await;
    let run = made("/replays", json!({ "filter": { "ids": [letters[0]] } })).await;
    let draft = json!({ "subject": "Number {{ticket_number}}" });
    let (status, said) = post.daemon().put(&format!("{EMAIL}/templates/{KEY}?draft=true"), ADMIN_TOKEN, &draft).await;
    assert_eq!(status, StatusCode::CREATED, "{said}");
    // What is owed to listeners goes by itself, and would be a change.
    post.database.wait_until_told().await;
    Things { mail, letter: letters[1], suppression, run }
}

/// All that is kept of what operators do, and of mails: each table in a word. Whoever looks is noted and has a session, and a
/// daemon tells that it is alive.
async fn kept(post: &Installation) -> Vec<(String, Option<String>)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select tablename::text from pg_tables where schemaname = 'public'
           and tablename not in ('operators', 'operator_views', 'operator_sessions', 'email_workers', 'retention_steps')
         order by 1",
    )
    .fetch_all(&post.database.pool)
    .await
    .expect("tables");
    assert!(tables.len() > 20, "{tables:?}");
    let mut all = Vec::new();
    for table in tables {
        let statement = format!("select md5(string_agg(t::text, ',' order by t::text)) from {table} t");
        let word = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&post.database.pool).await;
        all.push((table, word.expect("a word")));
    }
    all
}

/// What somebody with the role does with an operation that changes something.
struct Deed {
    operation: &'static str,
    path: String,
    role: &'static str,
    body: Value,
}

/// Every operation that changes something, in an order in which all of them can be done.
fn deeds(of: &Things) -> Vec<Deed> {
    let Things { mail, letter, suppression, run } = of;
    let sample = &templates().iter().find(|template| template.key == KEY).expect("it is there").sample;
    let deed =
        |operation: &'static str, role: &'static str, path: String, body: Value| Deed { operation, path, role, body };
    let template = |rest: &str| format!("/templates/{KEY}{rest}");
    vec![
        deed("post /lanes/{lane}/pause", "operator", "/lanes/bulk/pause".to_owned(), json!({ "note": "prices" })),
        deed("post /lanes/{lane}/resume", "operator", "/lanes/bulk/resume".to_owned(), json!({})),
        deed("post /suppressions", "operator", "/suppressions".to_owned(), json!({ "address": "mary@example.bj" })),
        deed(
            "post /suppressions/import",
            "operator",
            "/suppressions/import".to_owned(),
            json!("address\nx@example.bj\n"),
        ),
        deed("delete /suppressions/{id}", "operator", format!("/suppressions/{suppression}"), Value::Null),
        deed("post /messages/{id}/resend", "operator", format!("/messages/{mail}/resend"), json!({})),
        deed("post /dead-letters/{id}/discard", "operator", format!("/dead-letters/{letter}/discard"), json!({})),
        deed("post /replays", "operator", "/replays".to_owned(), json!({ "filter": { "ids": [letter] } })),
        deed("post /replays/{id}/{action}", "operator", format!("/replays/{run}/start"), json!({})),
        deed(
            "post /templates/{key}/test",
            "operator",
            template("/test"),
            json!({ "variables": sample, "to": "noc@example.bj", "send": true }),
        ),
        deed("put /templates/{key}", "admin", template(""), json!({ "subject": "Ticket {{ticket_number}}" })),
        deed("post /templates/{key}/versions/{version}/activate", "admin", template("/versions/2/activate"), json!({})),
        deed("post /templates/{key}/rollback", "admin", template("/rollback"), json!({})),
        deed("post /templates/{key}/deactivate", "admin", template("/deactivate"), json!({})),
    ]
}

/// A form: the route that takes it, the path that it is sent to, its fields.
type Form<'a> = (&'a str, String, Vec<(&'a str, &'a str)>);

/// What looks only like a change: it keeps nothing.
const LOOKING: [&str; 3] = ["post /dead-letters/plan", "post /templates/{key}/lint", "post /templates/{key}/preview"];

fn of_the_api(post: &Installation, deed: &Deed) -> RequestBuilder {
    let (method, _) = deed.operation.split_once(' ').expect("a method");
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
    let request = reqwest::Client::new().request(method, post.daemon().url(&format!("{EMAIL}{}", deed.path)));
    match &deed.body {
        Value::Null => request,
        Value::String(file) => request.header("content-type", "text/csv").body(file.clone()),
        body => request.json(body),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_lets_who_may_only_look_change_anything() {
    let post = Installation::start().await;
    let all = deeds(&things(&post).await);
    let mut described = BTreeSet::new();
    for (path, methods) in DOCUMENT["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys().filter(|method| *method != "get") {
            described.insert(format!("{method} {}", path.strip_prefix(EMAIL).expect("a path of the API")));
        }
    }
    let known = all.iter().map(|deed| deed.operation).chain(LOOKING).map(str::to_owned).collect();
    assert_eq!(described, known, "every operation that is no GET is tried");

    let before = kept(&post).await;
    for deed in &all {
        let status = ask(of_the_api(&post, deed)).await.status;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{} without a token", deed.operation);
        let tokens: &[&str] = if deed.role == "admin" { &[VIEWER_TOKEN, OPERATOR_TOKEN] } else { &[VIEWER_TOKEN] };
        for token in tokens {
            let answer = ask(of_the_api(&post, deed).bearer_auth(token)).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", deed.operation);
            assert!(
                answer.json()["detail"].as_str().is_some_and(|words| words.contains(deed.role)),
                "{}",
                deed.operation
            );
        }
    }
    let mut last = kept(&post).await;
    assert_eq!(last, before, "nothing was changed");
    for deed in &all {
        let token = if deed.role == "admin" { ADMIN_TOKEN } else { OPERATOR_TOKEN };
        let answer = ask(of_the_api(&post, deed).bearer_auth(token)).await;
        assert!(answer.status.is_success(), "{}: {}", deed.operation, answer.text());
        let after = kept(&post).await;
        assert_ne!(after, last, "{}", deed.operation);
        last = after;
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_form_lets_who_may_only_look_change_anything() {
    let post = Installation::start().await;
    let Things { mail, letter, suppression, run } = things(&post).await;
    let sample = &templates().iter().find(|template| template.key == KEY).expect("it is there").sample;
    let (letter, key, sample) = (letter.to_string(), Uuid::new_v4().to_string(), json!(sample).to_string());
    let edited = written(&[("do", "draft"), ("subject", "Another {{ticket_number}}")]);
    let edited: Vec<(&str, &str)> = edited.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let template = |rest: &str| format!("/templates/{KEY}/{rest}");
    let forms: Vec<Form<'_>> = vec![
        ("/lanes/{lane}/pause", "/lanes/bulk/pause".to_owned(), vec![("note", "prices")]),
        ("/lanes/{lane}/resume", "/lanes/bulk/resume".to_owned(), vec![]),
        (
            "/suppressions/add",
            "/suppressions/add".to_owned(),
            vec![("address", "mary@example.bj"), ("reason", "operator")],
        ),
        ("/suppressions/{id}/lift", format!("/suppressions/{suppression}/lift"), vec![("reason", "operator")]),
        ("/messages/{id}/resend", format!("/messages/{mail}/resend"), vec![("key", &key)]),
        ("/replays", "/replays".to_owned(), vec![("id", &letter), ("rate", "5")]),
        ("/dead-letters/{id}/discard", format!("/dead-letters/{letter}/discard"), vec![("note", "")]),
        ("/replays/{id}/{action}", format!("/replays/{run}/start"), vec![]),
        (
            "/templates/{key}/test",
            template("test"),
            vec![("to", "noc@example.bj"), ("version", "1"), ("variables", &sample)],
        ),
        ("/templates/{key}/edit", template("edit"), edited),
        ("/templates/{key}/activate", template("activate"), vec![("version", "2"), ("expected_active", "1")]),
        ("/templates/{key}/rollback", template("rollback"), vec![("expected_active", "2")]),
        ("/templates/{key}/deactivate", template("deactivate"), vec![("expected_active", "1")]),
    ];
    let (viewer, admin) =
        (Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await, Visitor::sign_in(post.daemon(), ADMIN_TOKEN).await);

    // A page without a form in this list takes none.
    let known: Vec<&str> = forms.iter().map(|(path, ..)| *path).collect();
    for path in postrider::http::paths() {
        let is_page = !path.starts_with("/api/") && !["/sign-in", "/sign-out"].contains(&path.as_str());
        if is_page && !known.contains(&path.as_str()) && path != "/templates/{key}/frame" {
            let status = admin.post(&path, &[]).await.status();
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
    let before = kept(&post).await;
    for (_, path, fields) in &forms {
        assert_eq!(viewer.post(path, fields).await.status(), StatusCode::FORBIDDEN, "{path}");
    }
    let mut last = kept(&post).await;
    assert_eq!(last, before, "nothing was changed");
    for (_, path, fields) in &forms {
        admin.submit(path, fields).await;
        let after = kept(&post).await;
        assert_ne!(after, last, "{path}");
        last = after;
    }
    post.finish().await;
}
