//! What browsers may do with whatever a listener answers, under which names it answers at all, and what the public one does not.

use std::net::SocketAddr;

use reqwest::{Method, StatusCode};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    daemon::{ADMIN_TOKEN, OPERATOR_TOKEN, VIEWER_TOKEN},
    installation::Installation,
    pages::Visitor,
    raw::{Reply, exchange, read_all, replies},
};

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

/// Every path of the admin listener, with something in place of each name.
fn paths() -> Vec<String> {
    let all = postrider::http::paths();
    assert!(all.len() > 50, "{} paths", all.len());
    let filled = |path: String| {
        let parts = path.split('/').map(|part| match part {
            "{key}" => "rma_confirmation",
            "{lane}" => "bulk",
            "{version}" => "1",
            "{action}" => "start",
            part if part.starts_with('{') => "00000000-0000-0000-0000-000000000000",
            part => part,
        });
        parts.collect::<Vec<_>>().join("/")
    };
    all.into_iter().map(filled).collect()
}

/// What keeps an answer where it belongs.
fn is_protected(what: &str, header: impl Fn(&str) -> Option<String>) {
    let value = |name: &str| header(name).unwrap_or_else(|| panic!("{what}: there is no {name}"));
    let policy = value("content-security-policy");
    let is_mail = policy.starts_with("sandbox;");
    assert!(policy.contains("default-src 'none'") && policy.contains("base-uri 'none'"), "{what}: {policy}");
    assert!(!policy.contains("unsafe-eval") && !policy.contains('*'), "{what}: {policy}");
    assert!(is_mail || !policy.contains("unsafe-inline"), "{what}: {policy}");
    let framed = if is_mail { ("frame-ancestors 'self'", "SAMEORIGIN") } else { ("frame-ancestors 'none'", "DENY") };
    assert!(policy.contains(framed.0), "{what}: {policy}");
    assert_eq!(value("x-frame-options"), framed.1, "{what}");
    assert_eq!(value("x-content-type-options"), "nosniff", "{what}");
    assert!(["same-origin", "no-referrer"].contains(&value("referrer-policy").as_str()), "{what}");
    assert_eq!(value("cross-origin-opener-policy"), "same-origin", "{what}");
    assert_eq!(value("cross-origin-resource-policy"), "same-origin", "{what}");
    let cache = value("cache-control");
    assert!(cache == "no-store" || (what.contains("/assets/") && cache.contains("immutable")), "{what}: {cache}");
    assert!(header("access-control-allow-origin").is_none(), "{what}");
    assert!(header("server").is_none(), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_says_what_browsers_may_do_with_its_answer() {
    let post = Installation::start().await;
    let stranger = Visitor::stranger(post.daemon());
    let operator = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    let way_in = stranger.page("/sign-in").await;
    let assets = way_in.split('"').filter(|word| word.starts_with("/assets/")).map(str::to_owned);
    let others = ["/nothing", "/api/v1/email/nothing", "/api/v1/openapi.json", "/assets/nothing"].map(str::to_owned);
    for path in paths().into_iter().chain(assets).chain(others) {
        for method in METHODS {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            // By a stranger, by a browser's session, and by a program's token.
            let mut asked = vec![("stranger", stranger.send(method.clone(), &path))];
            if matches!(method.as_str(), "GET" | "POST" | "PUT" | "DELETE") {
                asked.push(("session", operator.send(method.clone(), &path)));
                asked.push(("token", stranger.send(method.clone(), &path).bearer_auth(VIEWER_TOKEN)));
            }
            for (who, request) in asked {
                let what = format!("{method} {path} by a {who}");
                let answer = request.send().await.expect("an answer");
                let headers = answer.headers().clone();
                is_protected(&what, |name| Some(headers.get(name)?.to_str().expect("text").to_owned()));
                assert!(!answer.status().is_server_error() || path == "/readyz", "{what}: {}", answer.status());
                // A cookie changes nothing without the word of its own form, and is no token.
                let is_open = ["/livez", "/readyz", "/metrics", "/sign-in"].contains(&path.as_str());
                if who != "token" && !is_open && (!method.is_safe() || path.starts_with("/api/")) {
                    let status = answer.status();
                    let leads_to_the_way_in = status == StatusCode::SEE_OTHER && who == "stranger";
                    assert!(status.is_client_error() || leads_to_the_way_in, "{what}: {status}");
                }
            }
        }
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_somebody_made_theirs_is_not_answered() {
    let post = Installation::start_with(&[("ADMIN_HOSTS", "mail-admin.rgz.bj, other.rgz.bj")]).await;
    let address = post.daemon().admin();
    let port = address.port();
    let status = async |host: &str, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let replies = exchange(address, request.as_bytes(), false).await;
        (replies[0].status, replies[0].body.clone())
    };
    for host in [
        "localhost",
        &format!("localhost:{port}"),
        &address.to_string(),
        "[::1]",
        "MAIL-ADMIN.rgz.bj",
        "other.rgz.bj:443",
    ] {
        assert_eq!(status(host, "/livez").await.0, 200, "{host}");
        assert_eq!(status(host, "/sign-in").await.0, 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8025", "localhost.evil.example", "rgz.bj", "x.other.rgz.bj"] {
        for path in [
            "/",
            "/sign-in",
            "/livez",
            "/metrics",
            "/api/v1/email/templates",
            "/nothing",
            &format!("http://{host}/sign-in"),
        ] {
            let (status, body) = status(host, path).await;
            assert_eq!(status, 421, "{host} {path}");
            assert!(body.contains("ADMIN_HOSTS"), "{body}");
        }
    }
    // A proxy nobody trusts says what it likes.
    let stranger = Visitor::stranger(post.daemon());
    let signing_in = |request: reqwest::RequestBuilder| request.form(&[("token", ADMIN_TOKEN)]).send();
    let request = stranger
        .send(Method::POST, "/sign-in")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-proto", "https");
    let answer = signing_in(request).await.expect("an answer");
    assert_eq!(answer.headers()["location"], "/");
    assert!(!answer.headers()["set-cookie"].to_str().expect("text").contains("Secure"));
    assert!(!answer.headers().contains_key("strict-transport-security"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_cookies_are_for_https_alone() {
    let post = Installation::start_with(&[("ADMIN_TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let stranger = Visitor::stranger(post.daemon());
    let by_https = |request: reqwest::RequestBuilder| request.header("x-forwarded-proto", "https");
    let form = by_https(stranger.send(Method::POST, "/sign-in")).form(&[("token", ADMIN_TOKEN)]);
    let answer = form.send().await.expect("an answer");
    assert!(answer.headers().contains_key("strict-transport-security"));
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.starts_with("__Host-postrider_session="), "{cookie}");
    for flag in ["Path=/", "HttpOnly", "SameSite=Strict", "Secure"] {
        assert!(cookie.split("; ").any(|part| part == flag), "{cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair").to_owned();
    let look = async |pair: &str, is_https: bool| {
        let request = stranger.send(Method::GET, "/messages").header("cookie", pair);
        let request = if is_https { by_https(request) } else { request };
        request.send().await.expect("an answer").status()
    };
    assert_eq!(look(&pair, true).await, StatusCode::OK);
    let tossed = pair.replace("__Host-", "");
    assert_eq!(look(&tossed, true).await, StatusCode::SEE_OTHER, "a cookie that a neighbour may have set");
    assert_eq!(look(&pair, false).await, StatusCode::SEE_OTHER);
    post.finish().await;
}

/// Asks for all of this on a few connections, one request behind the other.
async fn ask_for_all(address: SocketAddr, requests: &[(String, String)]) -> Vec<Reply> {
    let mut all = Vec::new();
    for some in requests.chunks(200) {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let (mut reading, mut writing) = stream.split();
        let write = async {
            for (at, (method, path)) in some.iter().enumerate() {
                let close = if at + 1 == some.len() { "Connection: close\r\n" } else { "" };
                let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
                writing.write_all(request.as_bytes()).await.expect("written");
            }
        };
        let ((), bytes) = tokio::join!(write, read_all(&mut reading));
        let answered = replies(&bytes);
        assert_eq!(answered.len(), some.len(), "all are answered");
        all.extend(answered);
    }
    all
}

/// The same place, written so that somebody may take it for another one.
fn tricks(path: &str) -> Vec<String> {
    let bare = path.trim_start_matches('/');
    let encoded: String = bare.bytes().map(|byte| format!("%{byte:02X}")).collect();
    vec![
        format!("/{path}"),
        format!("//localhost{path}"),
        format!("/.{path}"),
        format!("/x/..{path}"),
        format!("/%2e%2e{path}"),
        format!("/..;{path}"),
        format!("/x/..%2f{bare}"),
        format!("/..%5c{bare}"),
        format!("{path}%00"),
        format!("{path};x=y"),
        format!("{path}/."),
        format!("{path}%20"),
        format!("{path}.json"),
        format!("/{encoded}"),
        path.to_ascii_uppercase(),
        format!("{path}?x=%00"),
        format!("/api/v1/email/webhook/..{path}"),
        format!("/api/v1/email/unsubscribe/..{path}"),
        format!("/api/v1/email/unsubscribe/%2e%2e%2f{bare}"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_public_listener_serves_nothing_else() {
    let post = Installation::start().await;
    let mut asked = Vec::new();
    for path in paths() {
        for method in METHODS.into_iter().filter(|method| *method != "HEAD").chain(["BREW", "PROPFIND"]) {
            asked.push((method.to_owned(), path.clone()));
        }
        asked.extend(tricks(&path).into_iter().map(|trick| ("GET".to_owned(), trick)));
        asked.extend(tricks(&path).into_iter().map(|trick| ("POST".to_owned(), trick)));
    }
    assert!(asked.len() > 2500, "{}", asked.len());
    let replies = ask_for_all(post.daemon().public(), &asked).await;
    for ((method, path), reply) in asked.iter().zip(&replies) {
        let what = format!("{method} {path}");
        assert!([404, 405].contains(&reply.status), "{what}: {}", reply.status);
        // Somebody may always ask for a link that is none of ours; the page says no more than that.
        let is_link = path.starts_with("/api/v1/email/unsubscribe/");
        assert!(reply.body.is_empty() || is_link, "{what}: {}", reply.body);
        is_protected(&what, |name| reply.header(name).map(str::to_owned));
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_way_of_writing_a_path_leads_around_the_token() {
    let post = Installation::start().await;
    let open = ["/livez", "/readyz", "/metrics", "/sign-in", "/sign-out", "/assets/{name}"];
    let closed = paths().into_iter().filter(|path| !open.contains(&path.as_str()) && !path.starts_with("/assets"));
    let asked: Vec<_> = closed.flat_map(|path| tricks(&path)).map(|path| ("GET".to_owned(), path)).collect();
    assert!(asked.len() > 1000, "{}", asked.len());
    let replies = ask_for_all(post.daemon().admin(), &asked).await;
    for ((_, path), reply) in asked.iter().zip(&replies) {
        assert!([303, 400, 401, 404, 405].contains(&reply.status), "{path}: {} {}", reply.status, reply.body);
        if reply.status == 303 {
            assert!(reply.header("location").is_some_and(|to| to.starts_with("/sign-in")), "{path}");
        }
    }
    post.finish().await;
}
