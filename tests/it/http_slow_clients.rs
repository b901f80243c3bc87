//! Whoever is slow is cut off, whoever comes in thousands pushes out their own, and mails and probes go on meanwhile.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

use crate::support::{
    installation::Installation,
    raw::{read_all, replies},
    requests::ticket,
    sns::SnsSigner,
    wait::until,
    webhook::TOPIC,
};

/// Sends this, waits for the end, and tells what came and how long that took.
async fn wait_for_the_end(address: SocketAddr, bytes: &str) -> (Vec<u16>, Duration) {
    // The listener's time begins with the connection.
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(bytes.as_bytes()).await.expect("written");
    let answered = replies(&read_all(&mut stream).await);
    (answered.iter().map(|reply| reply.status).collect(), began.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_slowness_has_its_end() {
    let post = Installation::start().await;
    let address = post.daemon().admin();
    let form = "POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let asked = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let slow_reader = async {
        // More than both sides' buffers take, and nothing of it is read for a while.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("set");
        let mut stream = socket.connect(address).await.expect("a connection");
        let (mut reading, mut writing) = stream.split();
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
        let began = Instant::now();
        // It ends with the connection: the listener takes no more requests than it can answer.
        let _ = writing.write_all(request.as_bytes()).await;
        until("whoever reads nothing is cut off", async || writing.write_all(b"\r\n").await.is_err()).await;
        let failed = began.elapsed();
        drop(read_all(&mut reading).await);
        failed
    };
    let second = format!("{asked}GET /li");
    let body = format!("{form}Content-Length: 1000\r\n\r\ntoken=");
    let chunk = format!("{form}Transfer-Encoding: chunked\r\n\r\n3e8\r\ntoken=");
    let (nothing, half_a_head, a_second_head, half_a_body, half_a_chunk, answer) = tokio::join!(
        wait_for_the_end(address, ""),
        wait_for_the_end(address, "GET /livez HTTP/1.1\r\nHost:"),
        wait_for_the_end(address, &second),
        wait_for_the_end(address, &body),
        wait_for_the_end(address, &chunk),
        slow_reader,
    );
    assert!(nothing.0.is_empty(), "whoever asks nothing is told nothing");
    assert_eq!(half_a_head.0, [408]);
    assert_eq!(a_second_head.0, [200, 408]);
    assert_eq!(half_a_body.0, [408]);
    assert_eq!(half_a_chunk.0, [408]);
    for (_, took) in [&nothing, &half_a_head, &a_second_head, &half_a_body, &half_a_chunk] {
        assert!((9..20).contains(&took.as_secs()), "{took:?}");
    }
    assert!((9..60).contains(&answer.as_secs()), "whoever reads nothing is not written to for ever: {answer:?}");
    for (reason, count) in [("head_timeout", 2.0), ("body_timeout", 2.0), ("answer_timeout", 1.0)] {
        let label = format!("\"{reason}\"");
        let counted = async || post.daemon().metric("email_http_refused_total", &["listener=\"admin\"", &label]).await;
        // It is counted once the connection is closed.
        until(&format!("{reason} is counted"), async || counted().await >= count).await;
        let counted = counted().await;
        assert!((counted - count).abs() < 0.5, "{reason}: {counted}");
    }
    post.finish().await;
}

#[expect(clippy::print_stderr, reason = "the figures are what somebody asks for with TEST_LOG")]
fn tell(figures: &str) {
    if std::env::var_os("TEST_LOG").is_some() {
        eprintln!("{figures}");
    }
}

/// A client at an address of its own that begins to ask and does not go on.
async fn hang(address: SocketAddr, n: usize) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    let from = Ipv4Addr::new(127, 0, 1, u8::try_from(n % 40).ok()? + 1);
    socket.bind((from, 0).into()).ok()?;
    let mut stream = socket.connect(address).await.ok()?;
    let begun = match n % 3 {
        0 => "",
        1 => "POST /api/v1/email/webhook HTTP/1.1\r\nHost: a\r\nX-",
        _ => "POST /api/v1/email/webhook HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{",
    };
    stream.write_all(begun.as_bytes()).await.ok()?;
    Some(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_feedback_and_probes_go_on_while_slow_clients_hang_on() {
    // Two thousand need more descriptors than a shell gives as a rule, so that is the long form.
    let crowd = if std::env::var_os("TEST_FULL").is_some() { 2000 } else { 300 };
    let sns = SnsSigner::start();
    let certificate = sns.certificate();
    let post = Installation::start_with(&[
        ("SNS_TOPIC_ARNS", TOPIC),
        ("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8")),
        ("WEBHOOK_CONNECTIONS_MAX", "32"),
        ("WEBHOOK_CONNECTIONS_PER_ADDRESS_MAX", "8"),
    ])
    .await;
    let (public, daemon) = (post.daemon().public(), post.daemon());
    let mut hanging = Vec::new();
    let mut slowest = Duration::ZERO;
    for round in 0..3 {
        for n in 0..crowd / 3 {
            hanging.push(hang(public, round * crowd + n).await);
        }
        let envelope = sns.notify(TOPIC, &format!("{{\"round\":{round}}}"));
        let began = Instant::now();
        assert_eq!(daemon.post_webhook(&envelope).await, StatusCode::OK);
        slowest = slowest.max(began.elapsed());
        let answer = reqwest::get(daemon.url("/livez")).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let request = post.publish(&ticket(&format!("ada.{round}@example.bj"))).await;
        post.database.wait_for(request, "sent").await;
    }
    assert!(slowest < Duration::from_secs(8), "feedback waited for the end of others' time: {slowest:?}");
    assert_eq!(post.database.receipts().await, 3);
    assert_eq!(post.mails(3).await.len(), 3);
    let connections = daemon.metric("email_http_connections", &["listener=\"public\""]).await;
    assert!(connections <= 40.0, "{connections} connections");
    let pushed_out = daemon.metric("email_http_refused_total", &["listener=\"public\"", "\"crowded_out\""]).await;
    assert!(pushed_out >= 0.6 * crowd as f64, "{pushed_out} of {crowd} made room");
    tell(&format!("{crowd} slow clients: {pushed_out} made room, feedback took {slowest:?} at most"));
    drop(hanging);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_does_not_take_all_connections() {
    let post = Installation::start_with(&[
        ("ADMIN_CONNECTIONS_MAX", "16"),
        ("ADMIN_CONNECTIONS_PER_ADDRESS_MAX", "4"),
        ("ADMIN_TRUSTED_PROXIES", "127.0.1.7"),
    ])
    .await;
    let address = post.daemon().admin();
    let count = async || post.daemon().metric("email_http_connections", &["listener=\"admin\""]).await;
    // The one that asks is among them. The one that asked before it may still be.
    let mine = 1.0;
    until("nobody else is there", async || (count().await - mine).abs() < 0.5).await;
    let from_one = async |from: u8, connections: usize| {
        let mut open = Vec::new();
        for _ in 0..connections {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind((Ipv4Addr::new(127, 0, 1, from), 0).into()).expect("an address");
            open.push(socket.connect(address).await.expect("a connection"));
        }
        open
    };
    let of_one = from_one(6, 12).await;
    until("its own limit holds", async || (count().await - mine - 4.0).abs() < 0.5).await;
    // Who says nothing is sent away after a while: the two are not counted together, or a slow machine never sees both.
    drop(of_one);
    until("they are gone", async || (count().await - mine).abs() < 0.5).await;
    let of_proxy = from_one(7, 8).await;
    until("a proxy has more", async || (count().await - mine - 8.0).abs() < 0.5).await;
    drop(of_proxy);
    post.finish().await;
}
