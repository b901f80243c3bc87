//! Nobody finds a token by trying, and nobody is shut out by those who try.

use std::net::{IpAddr, Ipv4Addr};

use reqwest::{Client, StatusCode, header::RETRY_AFTER};

use crate::support::{
    daemon::{ADMIN_TOKEN, OPERATOR_TOKEN, VIEWER_TOKEN},
    description::ask,
    installation::Installation,
    pages::Visitor,
};

const TEMPLATES: &str = "/api/v1/email/templates";

/// Somebody at an address of their own on this machine.
fn from(last: u8) -> Client {
    Client::builder().local_address(IpAddr::from(Ipv4Addr::new(127, 0, 0, last))).build().expect("a client")
}

/// What the API says to a token, as its description has it, and how long to wait.
async fn show(post: &Installation, client: &Client, token: &str) -> (StatusCode, Option<u64>) {
    let answer = ask(client.get(post.daemon().url(TEMPLATES)).bearer_auth(token)).await;
    let wait = answer.headers.get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse().ok());
    (answer.status, wait)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_guesses_at_the_api_must_wait_and_operators_need_not() {
    let post = Installation::start().await;
    let (attacker, operator, colleague) = (from(2), from(3), from(2));
    // Works from the address that the attacker will come from.
    assert_eq!(show(&post, &colleague, OPERATOR_TOKEN).await.0, StatusCode::OK);
    let visitor = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
    for n in 0..10 {
        assert_eq!(show(&post, &attacker, &format!("a-guess-of-an-attacker-{n}")).await.0, StatusCode::UNAUTHORIZED);
    }
    let (status, wait) = show(&post, &attacker, "one-more-guess-of-an-attacker").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(wait.is_some_and(|seconds| (1..=60).contains(&seconds)), "{wait:?}");
    assert_eq!(
        show(&post, &attacker, ADMIN_TOKEN).await.0,
        StatusCode::TOO_MANY_REQUESTS,
        "or a guess could be told from it"
    );
    // The sign-in page counts with it.
    let form = attacker.post(post.daemon().url("/sign-in")).form(&[("token", ADMIN_TOKEN)]);
    assert_eq!(form.send().await.expect("an answer").status(), StatusCode::TOO_MANY_REQUESTS);
    // Nobody else feels it: not at the same address, nor elsewhere, nor with a session.
    assert_eq!(show(&post, &colleague, OPERATOR_TOKEN).await.0, StatusCode::OK);
    assert_eq!(show(&post, &operator, ADMIN_TOKEN).await.0, StatusCode::OK);
    visitor.page("/messages").await;
    // From everywhere: known addresses go on.
    for address in 10..30 {
        let one = from(address);
        for n in 0..6 {
            show(&post, &one, &format!("a-guess-from-everywhere-{n}")).await;
        }
    }
    assert_eq!(
        show(&post, &from(99), ADMIN_TOKEN).await.0,
        StatusCode::TOO_MANY_REQUESTS,
        "an address that nobody knows"
    );
    assert_eq!(show(&post, &operator, ADMIN_TOKEN).await.0, StatusCode::OK);
    assert_eq!(show(&post, &colleague, OPERATOR_TOKEN).await.0, StatusCode::OK);
    let counted = async |reason: &str| {
        post.daemon().metric("email_http_refused_total", &["listener=\"admin\"", &format!("reason=\"{reason}\"")]).await
    };
    assert!((counted("wrong_token").await - 100.0).abs() < 0.5, "{}", counted("wrong_token").await);
    assert!(counted("too_many_tries").await >= 30.0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_each_client_is_counted_by_itself() {
    let post = Installation::start_with(&[("ADMIN_TRUSTED_PROXIES", "127.0.0.5")]).await;
    let (proxy, stranger) = (from(5), from(6));
    let show = async |client: &Client, forwarded: &str, token: &str| {
        let request = client.get(post.daemon().url(TEMPLATES)).bearer_auth(token).header("x-forwarded-for", forwarded);
        request.send().await.expect("an answer").status()
    };
    for n in 0..10 {
        show(&proxy, &format!("198.51.100.{n}, 203.0.113.9"), "a-guess-through-the-proxy").await;
    }
    assert_eq!(show(&proxy, "203.0.113.9", ADMIN_TOKEN).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(show(&proxy, "203.0.113.10", ADMIN_TOKEN).await, StatusCode::OK);
    // Whoever is no proxy is counted by its own address, whatever it says.
    for n in 0..10 {
        assert_eq!(show(&stranger, &format!("192.0.2.{n}"), "a-guess-of-a-stranger").await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(show(&stranger, "192.0.2.99", ADMIN_TOKEN).await, StatusCode::TOO_MANY_REQUESTS);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_new_at_each_sign_in_ends_with_its_role_and_is_one_of_few() {
    let mut post = Installation::start().await;
    let count = async |post: &Installation, operator: &str| {
        sqlx::query_scalar::<_, i64>("select count(*) from operator_sessions where operator = $1")
            .bind(operator)
            .fetch_one(&post.database.pool)
            .await
            .expect("a count")
    };
    let first = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    first.page("/messages").await;
    // The same browser, or one that somebody gave a cookie to, signs in again.
    let form = first.send(reqwest::Method::POST, "/sign-in").form(&[("token", VIEWER_TOKEN)]);
    let answer = form.send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert!(answer.headers().contains_key("set-cookie"));
    assert_eq!(first.look("/messages").await.status(), StatusCode::SEE_OTHER, "the session before is over");
    assert_eq!(count(&post, "test-operator").await, 0);
    for _ in 0..25 {
        Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    }
    assert_eq!(count(&post, "test-operator").await, 20);
    assert_eq!(count(&post, "test-viewer").await, 1, "others keep theirs");
    let last = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    last.page("/messages").await;
    post.stop_daemon().await;
    post.set(&[("ADMIN_TOKENS", &format!("test-operator:admin:{OPERATOR_TOKEN}"))]);
    post.start_daemon().await;
    assert_eq!(
        last.at(post.daemon()).look("/messages").await.status(),
        StatusCode::SEE_OTHER,
        "its role is another one"
    );
    post.finish().await;
}
