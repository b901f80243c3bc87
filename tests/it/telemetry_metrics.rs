//! Every metric that is served is described, and every one that is described is served, on `/metrics` and to a collector alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use lapin::types::AMQPValue;
use postrider::{
    broker::{delivery::PUBLISHED_AT, topology},
    email::Phase,
    metrics::table::INSTRUMENTS,
    publish,
};
use reqwest::StatusCode;

use crate::support::{
    collector::Collector,
    daemon::Daemon,
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, invoice, pdf, refer, sample, ticket},
    ses::SesMail,
    sns::SnsSigner,
    wait::until,
    webhook::TOPIC,
};

/// What `/metrics` shows: names with their kind and their labels.
fn served(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            found.entry(name.to_owned()).or_default().0 = kind.to_owned();
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = family.filter(|family| found.contains_key(*family)).unwrap_or(name);
            let labels = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once("=\""));
            let names = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le");
            found.get_mut(family).expect("its type comes first").1.extend(names);
        }
    }
    found
}

async fn scrape(post: &Installation) -> String {
    let answer = reqwest::get(post.daemon().url("/metrics")).await.expect("an answer");
    answer.text().await.expect("text")
}

/// A day on which everything happens.
async fn carry(post: &Installation, sns: &SnsSigner) {
    // Sent, delivered, deferred, and too late.
    let sent = ticket("ada@example.bj");
    post.publish(&sent).await;
    let row = post.database.wait_for(id(&sent), "sent").await.remove(0);
    let told = SesMail::of(row.id, "ada@example.bj").delivery(1);
    assert_eq!(post.daemon().post_webhook(&sns.notify(TOPIC, &told)).await, StatusCode::OK);
    assert!(post.daemon().post_webhook("no message of SNS").await.is_client_error());
    post.database.wait_for(id(&sent), "delivered").await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 try later")).to("later").once());
    let late = ticket("later@example.bj");
    let message = publish::outgoing(&late, topology::REQUESTS).expect("a request that can be published");
    let mut headers = message.properties.headers().clone().unwrap_or_default();
    let an_hour_ago = chrono::Utc::now().timestamp_millis() - 3_600_000;
    headers.insert(PUBLISHED_AT.into(), AMQPValue::LongLongInt(an_hour_ago));
    post.broker.publish_raw(&message.routing_key, message.properties.with_headers(headers), &message.body).await;
    post.database.wait_for(id(&late), "sent").await;
    // Refused, so that the next one is suppressed.
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    let refused = ticket("gone@example.bj");
    post.publish(&refused).await;
    post.database.wait_for_letter(id(&refused)).await;
    let suppressed = ticket("gone@example.bj");
    post.publish(&suppressed).await;
    post.database.wait_for(id(&suppressed), "suppressed").await;
    post.wait_until_settled().await;
    post.wait_until_idle().await;
    // Its row says so before it is counted.
    let stopped = async || post.daemon().metric("email_stopped_total", &["status=\"suppressed\""]).await;
    until("the suppressed one is counted", async || stopped().await >= 1.0).await;
}

/// What happens only where the settings allow it.
async fn carry_more(post: &Installation, folder: &Path) {
    // A file that lies elsewhere.
    std::fs::write(folder.join("facture.pdf"), pdf()).expect("written");
    let mut invoice = invoice("ada@example.bj");
    let uri = format!("file://{}/facture.pdf", folder.display());
    refer(&mut invoice, "facture.pdf", "application/pdf", &uri, &pdf());
    post.publish(&invoice).await;
    post.database.wait_for(id(&invoice), "sent").await;
    // Over a cap.
    for status in ["sent", "rate_limited"] {
        let announcement = sample("reseller_announcement", &["ada@example.bj"]);
        post.publish(&announcement).await;
        post.database.wait_for(id(&announcement), status).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_described_and_everything_described_is_there() {
    let (sns, collector) = (SnsSigner::start(), Collector::start().await);
    let certificate = sns.certificate();
    let files = tempfile::tempdir().expect("a folder");
    let folder = files.path().canonicalize().expect("it is there");
    let post = Installation::start_with(&[
        ("ATTACHMENT_FOLDER", folder.to_str().expect("UTF-8")),
        ("EMAIL_RATE_LIMIT_MARKETING", "1/day"),
        ("EMAIL_RETENTION_EVERY", "1s"),
        ("WEBHOOK_ADDR", "127.0.0.1:0"),
        ("SNS_TOPIC_ARNS", TOPIC),
        ("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8")),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &format!("{}/v1/metrics", collector.url())),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
    ])
    .await;
    carry(&post, &sns).await;
    carry_more(&post, &folder).await;

    let described: BTreeMap<_, _> = INSTRUMENTS
        .iter()
        .map(|instrument| {
            let labels: BTreeSet<String> = instrument.prometheus_labels().collect();
            (instrument.prometheus_name(), (instrument.kind.name().to_owned(), labels))
        })
        .collect();
    let mut last = BTreeMap::new();
    until("everything is there", async || {
        last = served(&scrape(&post).await);
        last.len() >= described.len()
    })
    .await;
    for (name, is) in &last {
        let declared =
            described.get(name).unwrap_or_else(|| panic!("{name} is served, but not in src/metrics/table.rs"));
        assert_eq!(is, declared, "{name}: kind and labels, as served and as described");
    }
    for name in described.keys() {
        assert!(last.contains_key(name), "{name} is described, but not served");
    }
    let names: BTreeSet<String> = INSTRUMENTS.iter().map(|instrument| instrument.name.to_owned()).collect();
    until("everything is pushed as well", async || collector.metrics() == names).await;

    // The command says the same, and needs nothing to say it.
    let said = post.run(&["metrics", "--json"]).await.json();
    let told: BTreeSet<_> = said.as_array().expect("a list").iter().map(|item| item["name"].to_string()).collect();
    assert_eq!(told.len(), described.len());
    let shown = post.run(&["metrics", "--markdown"]).await;
    let kept = include_str!("../../deploy/metrics.md");
    assert_eq!((shown.code, shown.out.as_str()), (0, kept));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_a_mail_shows_in_its_lanes_series() {
    let sns = SnsSigner::start();
    let certificate = sns.certificate();
    let post = Installation::start_with(&[
        ("WEBHOOK_ADDR", "127.0.0.1:0"),
        ("SNS_TOPIC_ARNS", TOPIC),
        ("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8")),
    ])
    .await;
    carry(&post, &sns).await;
    let of_template = ["lane=\"standard\"", "template=\"support_ticket_created\""];
    let count = async |name: &str, more: &[&str]| post.daemon().metric(name, &[&of_template[..], more].concat()).await;
    assert_eq!(count("email_retries_total", &["outcome=\"deferred\""]).await, 1.0);
    assert_eq!(count("email_stopped_total", &["status=\"suppressed\""]).await, 1.0);
    assert_eq!(count("email_dead_letters_total", &["reason=\"rejected\""]).await, 1.0);
    assert_eq!(count("email_deadline_missed_total", &[]).await, 1.0);
    let relay = format!("relay=\"127.0.0.1:{}\"", post.relay.port());
    for (phase, mails) in [("connect", 1.0), ("mail", 4.0), ("final_dot", 3.0)] {
        let phase = format!("phase=\"{phase}\"");
        let counted = post.daemon().metric("email_smtp_step_seconds_count", &[&relay, &phase]).await;
        assert!(counted >= mails, "{phase}: {counted}");
    }
    assert_eq!(post.daemon().metric("email_relay_state", &[&relay, "state=\"up\""]).await, 1.0);
    assert_eq!(post.daemon().metric("email_relay_state", &[&relay]).await, 1.0, "one state at a time");
    assert_eq!(post.daemon().metric("email_lane_state", &["lane=\"bulk\"", "state=\"consuming\""]).await, 1.0);
    until("the broker was asked", async || {
        post.daemon().metric("email_queue_consumers", &["lane=\"bulk\""]).await > 0.0
    })
    .await;
    assert_eq!(post.daemon().metric("postrider_ready", &[]).await, 1.0);
    assert_eq!(post.daemon().metric("postrider_database_up", &[]).await, 1.0);
    assert!(post.daemon().metric("email_commit_rows_sum", &["statement=\"outcomes\""]).await >= 4.0);
    let version = post.daemon().metric("email_template_active_version", &["support_ticket_created"]).await;
    assert_eq!(version, 1.0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_counts_what_waits_for_all() {
    let mut post = Installation::start_with(&[("EMAIL_LEASE_SECONDS", "2")]).await;
    let other = Daemon::start(&post.variables).await;
    let consumers = |text: String| text.lines().filter(|line| line.starts_with("email_queue_consumers{")).count();
    until("the first one counts", async || consumers(scrape(&post).await) == 3).await;
    // It may have counted once itself, had the first one's lease run out when it looked.
    until("the second one leaves it to the first", async || {
        let answer = reqwest::get(other.url("/metrics")).await.expect("an answer");
        consumers(answer.text().await.expect("text")) == 0
    })
    .await;
    post.stop_daemon().await;
    until("then the other one does", async || {
        let answer = reqwest::get(other.url("/metrics")).await.expect("an answer");
        consumers(answer.text().await.expect("text")) == 3
    })
    .await;
    other.stop().await;
}
