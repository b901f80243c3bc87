//! What can be read in two ways is no request: neither listener serves a second one out of the body of a first.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    daemon::ADMIN_TOKEN,
    installation::Installation,
    raw::{Reply, exchange, read_all, replies},
    wait::until_some,
};

/// What is sent, and the statuses of all that is answered before the listener closes.
type Case = (&'static str, String, Vec<u16>);

/// What would be served if a body were taken for a request.
const SMUGGLED: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn post(headers: &str, body: &str) -> String {
    format!(
        "POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n{headers}\r\n{body}"
    )
}

fn get(headers: &str) -> String {
    format!("GET /livez HTTP/1.1\r\n{headers}\r\n{SMUGGLED}")
}

/// What is refused by its head: the connection is closed, whatever comes behind it.
fn refused() -> Vec<Case> {
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let te = |value: &str| post(&format!("Transfer-Encoding:{value}\r\n"), &chunked);
    let cl = |value: &str| post(&format!("Content-Length:{value}\r\n"), SMUGGLED);
    vec![
        ("CL and TE", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", &chunked), vec![400]),
        ("TE and CL", post("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", &chunked), vec![400]),
        ("TE hidden behind CL 0", post("Content-Length: 0\r\nTransfer-encoding: cHuNkEd\r\n", &chunked), vec![400]),
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 42\r\n", SMUGGLED), vec![400]),
        ("the same length twice", post("Content-Length: 0\r\nContent-Length: 0\r\n", SMUGGLED), vec![400]),
        ("a list of lengths", cl(" 0, 0"), vec![400]),
        ("a length with a sign", cl(" +5"), vec![400]),
        ("a negative length", cl(" -1"), vec![400]),
        ("a hexadecimal length", cl(" 0x10"), vec![400]),
        ("a length with a space", cl(" 1 0"), vec![400]),
        ("a length that overflows", cl(" 18446744073709551616"), vec![400]),
        ("no length", cl(""), vec![400]),
        ("a length in words", cl(" five"), vec![400]),
        ("TE unknown", te(" xchunked"), vec![501]),
        ("TE not last", te(" chunked, identity"), vec![501]),
        ("TE in a list", te(" gzip, chunked"), vec![501]),
        ("TE in quotes", te(" \"chunked\""), vec![501]),
        ("TE empty", te(""), vec![501]),
        ("TE with a control character", te(" chunked\u{b}"), vec![400]),
        ("TE twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &chunked), vec![400]),
        ("TE after a space", post("Transfer-Encoding : chunked\r\n", &chunked), vec![400]),
        ("TE folded", post("Transfer-Encoding:\r\n chunked\r\n", &chunked), vec![501]),
        ("a folded header", post("X: a\r\n Content-Length: 5\r\n", SMUGGLED), vec![400]),
        ("a folded header with a tab", post("X: a\r\n\tb\r\n", SMUGGLED), vec![400]),
        (
            "a header before the first",
            format!("GET /livez HTTP/1.1\r\n Host: a\r\nHost: localhost\r\n\r\n{SMUGGLED}"),
            vec![400],
        ),
        (
            "TE in HTTP/1.0",
            te(" chunked").replace("HTTP/1.1\r\nHost: localhost\r\nC", "HTTP/1.0\r\nHost: localhost\r\nC"),
            vec![400],
        ),
        ("LF alone", post("X: a\nContent-Length: 5\r\n", SMUGGLED), vec![400]),
        ("LF alone throughout", post("", SMUGGLED).replace("\r\n", "\n"), vec![400]),
        ("an empty line of LF", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\n".to_owned() + SMUGGLED, vec![400]),
        ("CR alone", post("X: a\rContent-Length: 5\r\n", SMUGGLED), vec![400]),
        ("NUL in a value", post("X: a\0b\r\n", SMUGGLED), vec![400]),
        ("NUL in a name", post("X\0Y: a\r\n", SMUGGLED), vec![400]),
        ("NUL in the target", format!("GET /livez\0 HTTP/1.1\r\nHost: a\r\n\r\n{SMUGGLED}"), vec![400]),
        ("no name", post(": a\r\n", SMUGGLED), vec![400]),
        ("no colon", post("Content-Length\r\n", SMUGGLED), vec![400]),
        ("a name in brackets", post("Content-Length[]: 5\r\n", SMUGGLED), vec![400]),
        ("two spaces", format!("GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("a tab", format!("GET\t/livez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("a space in the target", format!("GET /liv ez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("a target beyond ASCII", format!("GET /livez\u{e9} HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("a fragment", format!("GET /livez#a HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("no path", format!("GET livez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("an asterisk for GET", format!("GET * HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("CONNECT", format!("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n{SMUGGLED}"), vec![405]),
        (
            "another host in the target",
            format!("GET http://a/livez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"),
            vec![400],
        ),
        (
            "a user in the target",
            format!("GET http://a@localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"),
            vec![400],
        ),
        (
            "another scheme",
            format!("GET ftp://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"),
            vec![400],
        ),
        ("no Host", get(""), vec![400]),
        ("two Hosts", get("Host: localhost\r\nHost: evil.example\r\n"), vec![400]),
        ("a user in Host", get("Host: localhost@evil.example\r\n"), vec![400]),
        ("a path in Host", get("Host: localhost/x\r\n"), vec![400]),
        ("two names in Host", get("Host: localhost, evil.example\r\n"), vec![400]),
        ("another expectation", post("Expect: a miracle\r\nContent-Length: 0\r\n", SMUGGLED), vec![417]),
        ("HTTP/0.9", "GET /livez\r\n\r\n".to_owned(), vec![400]),
        ("HTTP/1.2", format!("GET /livez HTTP/1.2\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![505]),
        ("HTTP/2 by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), vec![505]),
        ("a version in lower case", format!("GET /livez http/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}"), vec![400]),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".to_owned(), vec![400]),
        (
            "a method that is none",
            format!("{} /livez HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}", "M".repeat(21)),
            vec![400],
        ),
        ("after a good one", format!("{SMUGGLED}GET /livez HTTP/1.1\r\n\r\n{SMUGGLED}"), vec![200, 400]),
        ("before a good one", format!("BAD\r\n\r\n{SMUGGLED}"), vec![400]),
        ("66 headers", get(&format!("Host: localhost\r\n{}", "X: y\r\n".repeat(65))), vec![431]),
        ("a head of 17 KiB", get(&format!("Host: localhost\r\nX: {}\r\n", "y".repeat(17 << 10))), vec![431]),
        (
            "a target of 9 KB",
            format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n{SMUGGLED}", "a".repeat(9000)),
            vec![414],
        ),
        ("a request line without an end", "G".repeat(100_000), vec![414]),
        ("headers without an end", format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(10_000)), vec![431]),
    ]
}

/// What is served once, and ends the connection: a proxy may have read it otherwise.
fn chunked() -> Vec<Case> {
    let te = |body: &str| post("Transfer-Encoding: chunked\r\n", &format!("{body}{SMUGGLED}"));
    vec![
        ("a request behind the chunks", te("7\r\ntoken=x\r\n0\r\n\r\n"), vec![401]),
        ("an extension of a chunk", te("7;a=\"b\r\n\";c\r\ntoken=x\r\n0\r\n\r\n"), vec![400]),
        ("a harmless extension", te("7;a=b\r\ntoken=x\r\n0\r\n\r\n"), vec![401]),
        ("a size that ends in LF", te("7\ntoken=x\r\n0\r\n\r\n"), vec![400]),
        ("a size that overflows", te("ffffffffffffffffff\r\ntoken=x\r\n0\r\n\r\n"), vec![400]),
        ("a size with a sign", te("+7\r\ntoken=x\r\n0\r\n\r\n"), vec![400]),
        ("a size in two notations", te("0x7\r\ntoken=x\r\n0\r\n\r\n"), vec![400]),
        ("an empty size", te("\r\ntoken=x\r\n0\r\n\r\n"), vec![400]),
        ("a chunk longer than it says", te("3\r\ntoken=x\r\n0\r\n\r\n"), vec![400]),
        ("a trailer", te("7\r\ntoken=x\r\n0\r\nContent-Length: 5\r\n\r\n"), vec![401]),
        ("an extension without an end", te(&format!("7;{}", "a".repeat(40_000))), vec![400]),
    ]
}

/// What has one reading is served, each request on its own.
fn served() -> Vec<Case> {
    vec![
        ("one", SMUGGLED.to_owned(), vec![200]),
        ("three in a row", SMUGGLED.repeat(3), vec![200, 200, 200]),
        ("an empty line between", format!("{SMUGGLED}\r\n\r\n{SMUGGLED}"), vec![200, 200]),
        ("HTTP/1.0", "GET /livez HTTP/1.0\r\n\r\n".to_owned(), vec![200]),
        ("HTTP/1.0 with another behind it", format!("GET /livez HTTP/1.0\r\n\r\n{SMUGGLED}"), vec![200]),
        ("a whole URL", "GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), vec![200]),
        ("a body, and another behind it", post("Content-Length: 7\r\n", &format!("token=x{SMUGGLED}")), vec![401, 200]),
        (
            "an upgrade to HTTP/2",
            get(
                "Host: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            ),
            vec![200, 200],
        ),
        (
            "an upgrade to WebSocket",
            get(
                "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
            ),
            vec![200, 200],
        ),
        ("close, and another behind it", get("Host: localhost\r\nConnection: close\r\n"), vec![200]),
    ]
}

async fn check(address: SocketAddr, (what, bytes, wanted): Case, is_all: bool) {
    let replies = exchange(address, bytes.as_bytes(), is_all).await;
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, wanted, "{what}: {replies:?}");
    let last: &Reply = replies.last().expect("an answer");
    // A body that cannot be read has begun to be served.
    if !is_all && last.status != 401 && !bytes.contains("Transfer-Encoding: chunked\r\n\r\n") {
        assert_eq!(last.header("connection"), Some("close"), "{what}");
        assert_eq!(last.header("content-type"), Some("application/problem+json"), "{what}");
        assert!(last.body.contains(&format!("\"status\":{}", last.status)), "{what}: {}", last.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_smuggled_into_the_admin_listener() {
    let post = Installation::start().await;
    let address = post.daemon().admin();
    // The forms with a wrong token are fewer than would have to wait.
    assert!(chunked().iter().chain(&served()).filter(|case| case.2.contains(&401)).count() < 10);
    for case in refused().into_iter().chain(chunked()) {
        check(address, case, false).await;
    }
    for case in served() {
        check(address, case, true).await;
    }
    let malformed =
        post.daemon().metric("email_http_refused_total", &["listener=\"admin\"", "reason=\"malformed\""]).await;
    assert!(malformed > 50.0, "{malformed}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_smuggled_into_the_public_listener() {
    let post = Installation::start().await;
    let address = post.daemon().public();
    for (what, bytes, wanted) in refused() {
        // There is nothing at the path of the good one.
        let wanted = if wanted == [200, 400] { vec![404, 400] } else { wanted };
        check(address, (what, bytes, wanted), false).await;
    }
    for (what, bytes, _) in chunked() {
        let replies = exchange(address, bytes.as_bytes(), false).await;
        assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [404], "{what}");
    }
    for (what, bytes, wanted) in served() {
        let replies = exchange(address, bytes.as_bytes(), true).await;
        assert!(
            replies.iter().all(|reply| reply.status == 404) && replies.len() <= wanted.len(),
            "{what}: {replies:?}"
        );
    }
    post.finish().await;
}

/// For how long a listener still reads what it has answered already, and how long a pause in it may be.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_PAUSE: Duration = Duration::from_millis(500);

/// Writes a request, and tells whether that went too slowly for a listener that does not wait for its end for ever.
async fn write_all(stream: &mut TcpStream, head: &str, body: &[u8]) -> (io::Result<()>, bool) {
    let began = Instant::now();
    let (mut last, mut longest, mut written) = (began, Duration::ZERO, Ok(()));
    for piece in std::iter::once(head.as_bytes()).chain(body.chunks(64 << 10)) {
        written = stream.write_all(piece).await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if written.is_err() {
            break;
        }
    }
    (written, longest >= LINGER_PAUSE || began.elapsed() >= LINGER)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_before_all_is_said_may_say_it_and_hears_why() {
    const BODY: usize = 20 << 20;
    let post = Installation::start().await;
    let address = post.daemon().admin();
    let token = format!("Authorization: Bearer {ADMIN_TOKEN}\r\n");
    let long = format!("/api/v1/openapi.json?{}", "a".repeat(9000));
    let body = vec![b' '; BODY];
    for (line, headers, status) in [
        (format!("GET {long}"), token.as_str(), 414),
        ("POST /api/v1/email/dead-letters/plan".to_owned(), &token, 413),
        ("POST /api/v1/email/dead-letters/plan".to_owned(), "", 401),
        ("POST /nowhere".to_owned(), &token, 404),
        ("POST /api/v1/email/dead-letters/plan".to_owned(), "Content-Length: 1\r\n", 400),
    ] {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Type: application/json\r\nContent-Length: {BODY}\r\n\r\n"
        );
        // A client that reads only when it has written all, as many do. A slow one may be cut off: it tries again.
        let replies = until_some(&format!("an answer to {line}"), async || {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            let (written, was_slow) = write_all(&mut stream, &head, &body).await;
            assert!(was_slow || written.is_ok(), "{line} {status}: {written:?}");
            let heard = replies(&read_all(&mut stream).await);
            (!was_slow || !heard.is_empty()).then_some(heard)
        })
        .await;
        assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [status], "{line}: {replies:?}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_larger_than_its_route_takes_is_refused() {
    let post = Installation::start().await;
    let address = post.daemon().admin();
    let sent = |path: &str, kind: &str, bytes: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nContent-Type: {kind}\r\n\
             Content-Length: {bytes}\r\n\r\n{}",
            " ".repeat(bytes)
        )
    };
    let plan = "/api/v1/email/dead-letters/plan";
    for (request, status, words) in [
        (sent(plan, "application/json", (1 << 20) + 1), 413, "1048576 bytes"),
        (sent(plan, "application/json", 1 << 20), 400, ""),
        (sent("/sign-in", "application/x-www-form-urlencoded", (1 << 20) + 1), 413, ""),
    ] {
        let replies = exchange(address, request.as_bytes(), true).await;
        assert_eq!(replies.len(), 1, "{replies:?}");
        assert_eq!(replies[0].status, status, "{replies:?}");
        assert!(replies[0].body.contains(words), "{}", replies[0].body);
    }
    post.finish().await;
}
