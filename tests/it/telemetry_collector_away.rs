//! A collector that is away, hangs or refuses changes nothing for the mails; what it does not get is counted.

use std::time::{Duration, Instant};

use crate::support::{
    collector::{Collector, Mood},
    installation::Installation,
    requests::ticket,
    wait::until,
};

/// More spans than may wait.
const FLOOD: usize = 600;

async fn start(endpoint: &str, timeout_ms: &str) -> Installation {
    Installation::start_with(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout_ms),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
    ])
    .await
}

async fn spans(post: &Installation, result: &str) -> f64 {
    post.daemon().metric("postrider_exported_spans_total", &[&format!("result=\"{result}\"")]).await
}

async fn send(post: &Installation, count: usize) {
    let requests: Vec<_> = (0..count).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.mails(count).await;
    post.wait_until_settled().await;
    post.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_costs_spans_and_no_mail() {
    let collector = Collector::in_a_mood(Mood::Hangs).await;
    let mut post = start(collector.url(), "60000").await;
    send(&post, FLOOD).await;
    assert!(collector.asked() >= 1, "it was asked");
    let dropped = spans(&post, "dropped").await;
    assert!(dropped > 0.0, "what found no room is counted");
    tracing::info!(dropped, "mails went as ever");
    assert_eq!(post.relay.log().accepted().count(), FLOOD);
    // It is not waited for at the end either.
    let began = Instant::now();
    assert_eq!(post.stop_daemon().await, std::process::ExitCode::SUCCESS);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_or_refuses_costs_spans_and_no_mail() {
    let refusing = Collector::in_a_mood(Mood::Refuses).await;
    let nobody = {
        let gone = Collector::start().await;
        gone.url().to_owned()
    };
    for endpoint in [refusing.url(), &nobody] {
        let post = start(endpoint, "300").await;
        send(&post, 20).await;
        until("lost spans are counted", async || spans(&post, "failed").await > 0.0).await;
        until("lost metrics are counted", async || {
            post.daemon().metric("postrider_exported_metrics_total", &["result=\"failed\""]).await > 0.0
        })
        .await;
        assert_eq!(spans(&post, "exported").await, 0.0);
        post.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_last_mail_came_to_is_told_before_the_end() {
    let collector = Collector::start().await;
    let mut post = Installation::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())]).await;
    send(&post, 1).await;
    assert_eq!(post.stop_daemon().await, std::process::ExitCode::SUCCESS);
    // It may have been told a moment before the collector has read it.
    collector.find("the acknowledgement", |span| span.name == "ack email.standard").await;
    until("what the mail came to is told", async || collector.metrics().contains("email.settled")).await;
}
