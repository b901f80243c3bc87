//! Anybody can reach the public listener: it answers one address, and everything has a limit.

use std::{net::SocketAddr, time::Duration};

use reqwest::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{installation::Installation, sns::SnsSigner, stopwatch::Stopwatch, wait::until, webhook::TOPIC};

async fn daemon(signer: &SnsSigner) -> Installation {
    let certificate = signer.certificate();
    let settings = [
        ("WEBHOOK_ADDR", "127.0.0.1:0"),
        ("SNS_TOPIC_ARNS", TOPIC),
        ("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8")),
    ];
    Installation::start_with(&settings).await
}

/// Sends a head and this many bytes of a body, as far as they are taken, and returns the answer's first line.
async fn upload(address: SocketAddr, head: &str, bytes: usize) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(head.as_bytes()).await.expect("the head is taken");
    let (mut reading, mut writing) = stream.split();
    let chunk = vec![b'x'; 16 * 1024];
    let sending = async {
        let mut left = bytes;
        while left > 0 && writing.write_all(&chunk[..left.min(chunk.len())]).await.is_ok() {
            left -= left.min(chunk.len());
        }
        std::future::pending::<()>().await;
    };
    let mut answer = vec![0; 512];
    let length = tokio::select! {
        () = sending => unreachable!("it waits for the answer"),
        length = reading.read(&mut answer) => length.unwrap_or(0),
    };
    String::from_utf8_lossy(&answer[..length]).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_one_address_and_one_method() {
    let sns = SnsSigner::start();
    let post = daemon(&sns).await;
    let http = reqwest::Client::new();
    let root = format!("http://{}", post.daemon().public());
    for path in ["/", "/metrics", "/livez", "/readyz", "/api/v1/email/templates", "/api/v1/email/webhook/", "/api"] {
        for method in [Method::GET, Method::POST] {
            let answer = http.request(method, format!("{root}{path}")).send().await.expect("an answer");
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
            assert_eq!(answer.text().await.expect("text"), "");
        }
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let answer = http.request(method, format!("{root}/api/v1/email/webhook")).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
    // Nor does the admin listener take what SNS sends.
    let answer = http.post(post.daemon().url("/api/v1/email/webhook")).body(sns.notify(TOPIC, "{}")).send().await;
    assert_eq!(answer.expect("an answer").status(), StatusCode::NOT_FOUND);
    assert_eq!(post.database.receipts().await, 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_ten_megabytes_is_refused_without_being_read() {
    let sns = SnsSigner::start();
    let post = daemon(&sns).await;
    let address = post.daemon().public();
    let begin = "POST /api/v1/email/webhook HTTP/1.1\r\nHost: a\r\n";
    let announced = format!("{begin}Content-Length: 10485760\r\n\r\n");
    assert_eq!(upload(address, &announced, 0).await, "HTTP/1.1 413 Payload Too Large", "before a byte of it");
    assert_eq!(upload(address, &announced, 10 << 20).await, "HTTP/1.1 413 Payload Too Large");
    let chunked = format!("{begin}Transfer-Encoding: chunked\r\n\r\na00000\r\n");
    assert_eq!(upload(address, &chunked, 10 << 20).await, "HTTP/1.1 413 Payload Too Large", "unannounced");
    let refused = post.daemon().metric("email_webhook_refused_total", &["reason=\"too_large\""]).await;
    assert!((refused - 3.0).abs() < 0.5, "{refused}");
    // What SNS may send at most, every character of it escaped, is taken.
    let largest = sns.notify(TOPIC, &"\"".repeat(230 * 1024));
    assert!(largest.len() > 450 * 1024);
    assert_eq!(post.daemon().post_webhook(&largest).await, StatusCode::OK);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_slow_is_not_waited_for() {
    let sns = SnsSigner::start();
    let post = daemon(&sns).await;
    let address = post.daemon().public();
    let watch = Stopwatch::start();
    let half_a_head = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(b"POST /api/v1/email/webhook HTTP/1.1\r\nHost:").await.expect("taken");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.map(|_| rest)
    };
    let half_a_body = async {
        let head = "POST /api/v1/email/webhook HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
        upload(address, head, 500).await
    };
    let (head, body) = tokio::join!(half_a_head, half_a_body);
    let took = watch.elapsed();
    assert!(head.is_ok_and(|answer| !answer.starts_with(b"HTTP/1.1 2")), "closed");
    assert_eq!(body, "HTTP/1.1 503 Service Unavailable");
    assert!(took < Duration::from_secs(15), "before SNS itself gives up: {took:?}");
    let failed = post.daemon().metric("email_webhook_failed_total", &["fault=\"timeout\""]).await;
    assert!((failed - 1.0).abs() < 0.5, "{failed}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_keep_sns_out_for_ever() {
    let sns = SnsSigner::start();
    let post = daemon(&sns).await;
    let address = post.daemon().public();
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(address).await.expect("the system takes it"));
    }
    let envelope = sns.notify(TOPIC, "{}");
    until("SNS gets in", async || post.daemon().post_webhook(&envelope).await == StatusCode::OK).await;
    assert_eq!(post.database.receipts().await, 1);
    drop(idle);
    post.finish().await;
}
