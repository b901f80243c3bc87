//! Who may see the pages, and which forms count.

use reqwest::{
    Method, StatusCode,
    header::{CONTENT_SECURITY_POLICY, HeaderValue, LOCATION, RETRY_AFTER, SET_COOKIE},
};

use crate::support::{
    daemon::{ADMIN_TOKEN, OPERATOR_TOKEN, VIEWER_TOKEN},
    installation::Installation,
    pages::Visitor,
    requests::ticket,
};

const PAGES: [&str; 5] = ["/", "/messages", "/suppressions", "/feedback", "/changes"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_not_signed_in_sees_only_the_way_in() {
    let post = Installation::start().await;
    let stranger = Visitor::stranger(post.daemon());
    for path in PAGES {
        let answer = stranger.look(path).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER, "{path}");
        let to = answer.headers()[LOCATION].to_str().expect("text").to_owned();
        assert!(to.starts_with("/sign-in"), "{path} leads to {to}");
        assert!(answer.text().await.expect("text").is_empty(), "{path}");
    }
    let answer = stranger.look("/messages?to=a%40example.bj").await;
    assert_eq!(answer.headers()[LOCATION], "/sign-in?next=%2Fmessages%3Fto%3Da%2540example.bj");
    let wrong = stranger.send(Method::POST, "/sign-in").form(&[("token", "nobody's")]).send().await.expect("an answer");
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(wrong.headers().get(SET_COOKIE).is_none());

    let way_in = stranger.page("/sign-in?next=/messages").await;
    for asset in way_in.split('"').filter(|word| word.starts_with("/assets/")) {
        let answer = stranger.look(asset).await;
        assert_eq!(answer.status(), StatusCode::OK, "{asset}");
    }
    let policy = &stranger.look("/sign-in").await.headers()[CONTENT_SECURITY_POLICY].clone();
    let policy = policy.to_str().expect("text");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    // A cookie that nobody gave.
    let made_up = stranger.send(Method::GET, "/messages").header("cookie", "postrider_session=abc").send().await;
    assert_eq!(made_up.expect("an answer").status(), StatusCode::SEE_OTHER);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_leads_back_ends_when_it_is_told_to_and_with_its_token() {
    let mut post = Installation::start().await;
    let stranger = Visitor::stranger(post.daemon());
    let fields = [("token", VIEWER_TOKEN), ("next", "/messages?status=sent")];
    let answer = stranger.send(Method::POST, "/sign-in").form(&fields).send().await.expect("an answer");
    assert_eq!(answer.headers()[LOCATION], "/messages?status=sent");
    let cookie = answer.headers()[SET_COOKIE].to_str().expect("text").to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let fields = [("token", VIEWER_TOKEN), ("next", "//evil.example/")];
    let answer = stranger.send(Method::POST, "/sign-in").form(&fields).send().await.expect("an answer");
    assert_eq!(answer.headers()[LOCATION], "/", "nobody is led elsewhere");

    let visitor = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
    for path in PAGES.into_iter().skip(1) {
        assert!(visitor.page(path).await.contains("test-viewer"), "{path}");
    }
    assert_eq!(visitor.submit("/sign-out", &[]).await, "/sign-in");
    assert_eq!(visitor.look("/messages").await.status(), StatusCode::SEE_OTHER, "it is over");

    let stored: Vec<Vec<u8>> =
        sqlx::query_scalar("select id from operator_sessions").fetch_all(&post.database.pool).await.expect("rows");
    assert!(!stored.is_empty() && stored.iter().all(|id| !cookie.contains(&hex::encode(id))), "only hashes are kept");
    let visitor = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    visitor.page("/messages").await;
    post.stop_daemon().await;
    let tokens = format!("test-operator:operator:another-{OPERATOR_TOKEN},test-admin:admin:{ADMIN_TOKEN}");
    post.set(&[("ADMIN_TOKENS", &tokens)]);
    post.start_daemon().await;
    let again = visitor.at(post.daemon());
    assert_eq!(again.look("/messages").await.status(), StatusCode::SEE_OTHER, "its token is another one now");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_nobody_uses_ends() {
    let post = Installation::start().await;
    for ended in ["seen_at = now() - interval '121 minutes'", "expires_at = now() - interval '1 second'"] {
        let visitor = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
        visitor.page("/messages").await;
        let statement = format!("update operator_sessions set {ended}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&post.database.pool).await.expect("updated");
        assert_eq!(visitor.look("/messages").await.status(), StatusCode::SEE_OTHER, "{ended}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_tries_many_tokens_must_wait() {
    let post = Installation::start().await;
    let stranger = Visitor::stranger(post.daemon());
    let mut refused = None;
    for n in 0..20 {
        let tried = format!("a-token-that-is-none-{n}");
        let answer =
            stranger.send(Method::POST, "/sign-in").form(&[("token", &tried)]).send().await.expect("an answer");
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some((n, answer.headers().get(RETRY_AFTER).cloned()));
            break;
        }
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    let (after, wait) = refused.expect("it is limited");
    assert_eq!(after, 10);
    assert!(wait.and_then(|wait| wait.to_str().ok()?.parse::<u64>().ok()).is_some_and(|s| (1..=60).contains(&s)));
    // The right one does not help now, or whoever tries would know it by that.
    let right =
        stranger.send(Method::POST, "/sign-in").form(&[("token", ADMIN_TOKEN)]).send().await.expect("an answer");
    assert_eq!(right.status(), StatusCode::TOO_MANY_REQUESTS);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_of_another_site_or_of_another_session_changes_nothing() {
    let post = Installation::start().await;
    let visitor = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    let csrf = visitor.csrf().await;
    let other = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await.csrf().await;
    assert_ne!(csrf, other);
    let fields = |csrf: &str| {
        [("address", "ada@example.bj"), ("reason", "operator"), ("note", ""), ("csrf", csrf)]
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
    };
    let send = async |csrf: &str, header: Option<(&'static str, &'static str)>| {
        let mut request = visitor.send(Method::POST, "/suppressions/add").form(&fields(csrf));
        if let Some((name, value)) = header {
            request = request.header(name, HeaderValue::from_static(value));
        }
        request.send().await.expect("an answer").status()
    };
    for (csrf, header) in [
        ("", None),
        ("00", None),
        (other.as_str(), None),
        (csrf.as_str(), Some(("sec-fetch-site", "cross-site"))),
        (csrf.as_str(), Some(("sec-fetch-site", "same-site"))),
        (csrf.as_str(), Some(("origin", "https://evil.example"))),
        (csrf.as_str(), Some(("origin", "null"))),
    ] {
        assert_eq!(send(csrf, header).await, StatusCode::FORBIDDEN, "{csrf:?} {header:?}");
    }
    assert!(visitor.page("/suppressions").await.contains("0 entries"));
    assert_eq!(send(&csrf, Some(("sec-fetch-site", "same-origin"))).await, StatusCode::SEE_OTHER);
    assert!(visitor.page("/suppressions").await.contains("1 entry"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_sees_no_person_and_changes_nothing() {
    let post = Installation::start().await;
    let request = post.publish(&ticket("ada.lovelace@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    let id: uuid::Uuid =
        sqlx::query_scalar("select id from email_messages").fetch_one(&post.database.pool).await.expect("a row");
    let (list, one) = ("/messages?to=ada.lovelace@example.bj", format!("/messages/{id}"));

    let viewer = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
    for path in [list, &one] {
        let html = viewer.page(path).await;
        let shown = html.replace(list, "").replace("value=\"ada.lovelace@example.bj\"", "");
        assert!(!shown.contains("lovelace") && shown.contains("***.bj"), "{path}: {shown}");
    }
    assert_eq!(viewer.look(&format!("{one}/mail")).await.status(), StatusCode::FORBIDDEN);
    let fields = [("address", "ada@example.bj"), ("reason", "operator")];
    assert_eq!(viewer.post("/suppressions/add", &fields).await.status(), StatusCode::FORBIDDEN);
    let lifted = viewer.post(&format!("/suppressions/{}/lift", "00".repeat(32)), &[("reason", "operator")]).await;
    assert_eq!(lifted.status(), StatusCode::FORBIDDEN);

    let operator = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    let html = operator.page(&one).await;
    assert!(html.contains("ada.lovelace@example.bj") && html.contains("sandbox=\"\""), "{html}");
    assert!(html.contains("operator:test-operator"), "who looks is told: {html}");
    let mail = operator.look(&format!("{one}/mail")).await;
    let policy = mail.headers()[CONTENT_SECURITY_POLICY].to_str().expect("text").to_owned();
    assert!(policy.starts_with("sandbox;") && !policy.contains("script"), "{policy}");
    let views: i64 =
        sqlx::query_scalar("select count(*) from operator_views where viewed_by = 'operator:test-operator'")
            .fetch_one(&post.database.pool)
            .await
            .expect("a count");
    assert_eq!(views, 2, "its details and its body");
    for (path, status) in [
        ("/messages?to=nobody", StatusCode::BAD_REQUEST),
        ("/messages/x", StatusCode::BAD_REQUEST),
        ("/messages/00000000-0000-0000-0000-000000000000", StatusCode::NOT_FOUND),
    ] {
        let answer = operator.look(path).await;
        assert_eq!(answer.status(), status, "{path}");
        assert!(answer.text().await.expect("text").starts_with("<!DOCTYPE html>"), "{path}: an error is a page too");
    }
    post.finish().await;
}
