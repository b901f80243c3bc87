//! Signing certificates are fetched once, from SNS's own host, and must be what they claim to be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{
    authority::Authority,
    sns::{ISSUER_HOST, SnsSigner},
    wait::{until, until_some},
    webhook::{Page, SNS_HOST, STRANGE_TOPIC, Signposts, TOPIC, WebServer, Webhook, fetching, trusting},
};

/// For how long `src/feedback/signers.rs` remembers that a certificate could not be had.
const REMEMBERED_FOR: Duration = Duration::from_secs(2);
const PATH: &str = "/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem";

/// SNS's host and Amazon's place for issuers, with a webhook that knows both.
struct World {
    sns: WebServer,
    issuers: WebServer,
    signposts: Arc<Signposts>,
    webhook: Webhook,
}

impl World {
    /// Where this signer's certificate lies on SNS's host.
    async fn of(signer: &SnsSigner) -> Self {
        let authority = Authority::for_host(SNS_HOST);
        let world = Self::with(signer, &authority).await;
        world.sns.serve(PATH, Page::ok(std::fs::read(signer.certificate()).expect("a file")));
        world.issuers.serve("/between.cer", Page::ok(signer.issuer()));
        world
    }

    async fn with(signer: &SnsSigner, authority: &Authority) -> Self {
        let (sns, issuers) = (WebServer::tls(authority).await, WebServer::plain().await);
        let signposts = Signposts::to(&[(SNS_HOST, &sns), (ISSUER_HOST, &issuers)]);
        let webhook = Webhook::start(&fetching(trusting(authority, signer)), signposts.clone()).await;
        Self { sns, issuers, signposts, webhook }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_fetched_once_for_all() {
    let signer = SnsSigner::start();
    let world = World::of(&signer).await;
    let envelopes: Vec<_> = (0..40).map(|n| signer.notify(TOPIC, &format!("{{\"n\":{n}}}"))).collect();
    let answers = futures_util::future::join_all(envelopes.iter().map(|envelope| world.webhook.post(envelope))).await;
    assert!(answers.iter().all(|status| *status == StatusCode::OK), "{answers:?}");
    assert_eq!(world.webhook.stored().await, 40);
    assert_eq!(world.sns.asked(), [format!("{SNS_HOST}{PATH}")], "forty at once, and one question");
    assert_eq!(world.issuers.asked(), [format!("{ISSUER_HOST}/between.cer")], "SNS publishes no issuer beside it");
    assert_eq!(world.signposts.asked(), [format!("{SNS_HOST}:443"), format!("{ISSUER_HOST}:80")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_is_published_beside_the_certificate_is_not_looked_for() {
    let signer = SnsSigner::start();
    let world = World::of(&signer).await;
    world.sns.serve(PATH, Page::ok(signer.chain()));
    assert_eq!(world.webhook.post(&signer.notify(TOPIC, "{}")).await, StatusCode::OK);
    assert_eq!(world.issuers.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_fetched_from_a_place_that_was_not_allowed() {
    let signer = SnsSigner::start();
    let authority = Authority::for_host(SNS_HOST);
    // Whatever host is asked for, this listener would be hit.
    let trap = WebServer::tls(&authority).await;
    trap.serve(PATH, Page::ok(signer.chain()));
    let signposts = Signposts::all_to(&trap);
    let webhook = Webhook::start(&fetching(trusting(&authority, &signer)), signposts.clone()).await;
    let direct = format!("https://{}{PATH}", trap.address);
    let urls = [
        direct.as_str(),
        "https://localhost/a.pem",
        "http://sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com/a.pem",
        "https://evil.example/a.pem",
        "https://sns.eu-west-1.amazonaws.com.evil.example/a.pem",
        "https://evil.example/sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com@evil.example/a.pem",
        "https://evil.example\\@sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/a.pem",
        "https://sns.eu-west-1.amazonaws.com/a.pem?b",
        "https://sns.eu-west-1.amazonaws.com/#a.pem",
        "https://sns-eu-west-1.amazonaws.com/a.pem",
        "https://s3.eu-west-1.amazonaws.com/a.pem",
    ];
    for url in urls {
        let forged = signer.sign(&json!({ "TopicArn": TOPIC, "SigningCertURL": url }));
        assert_eq!(webhook.post(&forged).await, StatusCode::FORBIDDEN, "{url}");
    }
    assert_eq!(webhook.count("refused", "certificate_url"), urls.len() as u64);
    // A topic that is not ours: its own host's certificate is none of our business, nor is its confirmation.
    for kind in ["Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"] {
        let strange = signer.sign(&json!({ "TopicArn": STRANGE_TOPIC, "Type": kind }));
        assert_eq!(webhook.post(&strange).await, StatusCode::FORBIDDEN, "{kind}");
    }
    // Stale, weak, or bare: all that is known before the certificate is asked for.
    let stale = json!({ "TopicArn": TOPIC, "Timestamp": "2026-01-01T00:00:00.000Z" });
    let weak = json!({ "TopicArn": TOPIC, "SignatureVersion": "1" });
    for fields in [stale, weak] {
        assert_eq!(webhook.post(&signer.sign(&fields)).await, StatusCode::FORBIDDEN, "{fields}");
    }
    assert_eq!((trap.connections(), signposts.asked()), (0, Vec::new()), "nobody was asked, not even for an address");

    // Confirmations that lead elsewhere are known by their signature first, so the certificate may be fetched.
    let elsewhere = [direct, "https://evil.example/".to_owned(), "http://169.254.169.254/".to_owned()];
    for url in &elsewhere {
        let fields = json!({ "TopicArn": TOPIC, "Type": "SubscriptionConfirmation", "SubscribeURL": url });
        assert_eq!(webhook.post(&signer.sign(&fields)).await, StatusCode::FORBIDDEN, "{url}");
    }
    assert_eq!(webhook.count("refused", "subscribe_url"), elsewhere.len() as u64);
    assert_eq!(signposts.asked(), [format!("{SNS_HOST}:443")]);
    assert_eq!(
        trap.asked(),
        [format!("{SNS_HOST}{PATH}")],
        "the listener would have been hit: it was, for the one place"
    );
    assert_eq!(webhook.stored().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed() {
    let signer = SnsSigner::start();
    let world = World::of(&signer).await;
    let trap = WebServer::plain().await;
    trap.serve("/a.pem", Page::ok(signer.chain()));
    for location in [format!("http://{}/a.pem", trap.address), format!("https://{SNS_HOST}/moved.pem")] {
        world.sns.serve(PATH, Page::redirect(&location));
        world.sns.serve("/moved.pem", Page::ok(signer.chain()));
        assert_eq!(world.webhook.post(&signer.notify(TOPIC, "{}")).await, StatusCode::FORBIDDEN, "{location}");
    }
    assert_eq!((trap.connections(), world.sns.asked().len()), (0, 1), "and the refusal is remembered");
    assert_eq!(world.webhook.count("refused", "certificate"), 2);
    assert_eq!(world.webhook.stored().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_there_must_be_snss_own_certificate() {
    let signer = SnsSigner::start();
    let page = |signer: &SnsSigner| Page::ok(signer.chain());
    let cases = [
        ("another name", page(&SnsSigner::start_with(&["--name", "sns.evil.example"]))),
        ("another region's name", page(&SnsSigner::start_with(&["--name", "sns-signing.af-south-1.amazonaws.com"]))),
        ("expired", page(&SnsSigner::start_with(&["--begins", "-30", "--ends", "-1"]))),
        ("not yet valid", page(&SnsSigner::start_with(&["--begins", "1"]))),
        ("no certificate", Page::ok("<html>It works!</html>")),
        ("nothing", Page::ok("")),
        ("too large", Page::ok(vec![b'\n'; 65 * 1024])),
        ("gone", Page::status(404)),
    ];
    for (what, page) in cases {
        let world = World::of(&signer).await;
        world.sns.serve(PATH, page);
        assert_eq!(world.webhook.post(&signer.notify(TOPIC, "{}")).await, StatusCode::FORBIDDEN, "{what}");
        assert_eq!((world.webhook.count("refused", "certificate"), world.webhook.stored().await), (1, 0), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_by_an_authority_that_is_not_trusted_is_no_use() {
    let (signer, somebody) = (SnsSigner::start(), SnsSigner::start());
    let world = World::of(&signer).await;
    // A whole chain of the right name, and a signature that fits: only nobody trusts its root.
    world.sns.serve(PATH, Page::ok(somebody.chain()));
    assert_eq!(world.webhook.post(&somebody.notify(TOPIC, "{}")).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((world.webhook.count("failed", "certificate"), world.webhook.stored().await), (1, 0));
    // An issuer that is said to lie elsewhere is not asked for.
    let misled = SnsSigner::start_with(&["--issuer-url", "http://crt.evil.example/between.cer"]);
    let world = World::of(&misled).await;
    assert_eq!(world.webhook.post(&misled.notify(TOPIC, "{}")).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.signposts.asked(), [format!("{SNS_HOST}:443")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_only_pretends_to_be_snss_host_is_not_believed() {
    let signer = SnsSigner::start();
    for impostor in [Authority::for_host("evil.example"), Authority::with_expired_certificate(SNS_HOST)] {
        let world = World::with(&signer, &impostor).await;
        world.sns.serve(PATH, Page::ok(signer.chain()));
        assert_eq!(world.webhook.post(&signer.notify(TOPIC, "{}")).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!((world.sns.connections(), world.sns.asked().len()), (1, 0), "not a word after the handshake");
    }
    // The right name, by an authority that nobody knows.
    let (trusted, unknown) = (Authority::for_host(SNS_HOST), Authority::for_host(SNS_HOST));
    let server = WebServer::tls(&unknown).await;
    server.serve(PATH, Page::ok(signer.chain()));
    let webhook = Webhook::start(&fetching(trusting(&trusted, &signer)), Signposts::to(&[(SNS_HOST, &server)])).await;
    assert_eq!(webhook.post(&signer.notify(TOPIC, "{}")).await, StatusCode::SERVICE_UNAVAILABLE);
    assert!(server.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_be_had_now_is_had_later() {
    let signer = SnsSigner::start();
    let envelope = signer.notify(TOPIC, "{}");
    let world = until_some("two posts, one at once after the other", async || {
        let world = World::of(&signer).await;
        world.sns.serve(PATH, Page::status(500));
        let began = Instant::now();
        assert_eq!(world.webhook.post(&envelope).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.webhook.post(&envelope).await, StatusCode::SERVICE_UNAVAILABLE);
        (began.elapsed() < REMEMBERED_FOR).then_some(world)
    })
    .await;
    // Whoever comes at once is told the same without another question.
    assert_eq!(world.sns.asked().len(), 1);
    world.sns.serve(PATH, Page::ok(signer.chain()));
    until("SNS's repetition is taken", async || world.webhook.post(&envelope).await == StatusCode::OK).await;
    assert_eq!(world.webhook.stored().await, 1);

    // One that takes too long holds nobody for longer than SNS waits, which is fifteen seconds.
    let slow = World::of(&signer).await;
    slow.sns.serve(PATH, Page { delay: Duration::from_secs(60), ..Page::ok(signer.chain()) });
    let began = Instant::now();
    assert_eq!(slow.webhook.post(&envelope).await, StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_messages_cannot_make_us_hammer_sns() {
    let signer = SnsSigner::start();
    let world = World::of(&signer).await;
    for n in 0..60 {
        let url = format!("https://{SNS_HOST}/guess-{n}.pem");
        let forged = signer.sign(&json!({ "TopicArn": TOPIC, "SigningCertURL": url }));
        assert!(!world.webhook.post(&forged).await.is_success());
    }
    assert_eq!(world.sns.asked().len(), 20, "in a minute");
    assert_eq!((world.webhook.count("refused", "certificate"), world.webhook.count("failed", "certificate")), (20, 40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_certificate_file_nobody_is_asked() {
    let signer = SnsSigner::start();
    let trap = WebServer::plain().await;
    let signposts = Signposts::all_to(&trap);
    let mut config = fetching(signer.root());
    config.signing_cert_file = Some(signer.certificate());
    let webhook = Webhook::start(&config, signposts.clone()).await;
    assert_eq!(webhook.post(&signer.notify(TOPIC, "{}")).await, StatusCode::OK);
    assert_eq!(webhook.post(&SnsSigner::start().notify(TOPIC, "{}")).await, StatusCode::FORBIDDEN);
    assert_eq!((signposts.asked(), trap.connections()), (Vec::new(), 0));

    let expired = SnsSigner::start_with(&["--begins", "-30", "--ends", "-1"]);
    config.signing_cert_file = Some(expired.certificate());
    let webhook = Webhook::start(&config, signposts.clone()).await;
    assert_eq!(webhook.post(&expired.notify(TOPIC, "{}")).await, StatusCode::FORBIDDEN, "its dates still count");
    assert_eq!((webhook.count("refused", "certificate"), webhook.stored().await), (1, 0));
    assert!(signposts.asked().is_empty());
}
