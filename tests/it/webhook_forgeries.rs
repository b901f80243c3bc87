//! What is not from Amazon SNS for one of our topics is refused, counted, and leaves nothing behind.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    installation::Installation,
    sns::SnsSigner,
    webhook::{OTHER_TOPIC, SNS_HOST, STRANGE_TOPIC, TOPIC},
};

/// An event as SES publishes it, as far as it matters here.
const EVENT: &str = r#"{"eventType":"Delivery","mail":{"messageId":"0102018f-1"}}"#;

/// A daemon that takes this signer's messages, of two topics.
async fn daemon(signer: &SnsSigner, settings: &[(&str, &str)]) -> Installation {
    let certificate = signer.certificate();
    let topics = format!("{TOPIC}, {OTHER_TOPIC}");
    let usual = [
        ("WEBHOOK_ADDR", "127.0.0.1:0"),
        ("SNS_TOPIC_ARNS", topics.as_str()),
        ("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8")),
    ];
    Installation::start_with(&[&usual, settings].concat()).await
}

async fn refused(post: &Installation, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    post.daemon().metric("email_webhook_refused_total", &[&label]).await
}

/// Posts each; each must be refused with this status, for this reason, and nothing may be stored.
async fn expect_refusals(post: &Installation, envelopes: &[String], status: StatusCode, reason: &str) {
    let before = refused(post, reason).await;
    for envelope in envelopes {
        assert_eq!(post.daemon().post_webhook(envelope).await, status, "{reason}: {envelope}");
    }
    let counted = refused(post, reason).await - before;
    assert!((counted - envelopes.len() as f64).abs() < 0.5, "{reason}: {counted} of {}", envelopes.len());
    assert_eq!(post.database.receipts().await, 0, "{reason}");
}

fn hours_ago(hours: i64) -> String {
    (chrono::Utc::now() - chrono::TimeDelta::hours(hours)).format("%Y-%m-%dT%H:%M:%S.000Z").to_string()
}

fn fields(more: &Value) -> Value {
    let mut fields = json!({ "TopicArn": TOPIC, "Message": EVENT, "Subject": "Amazon SES" });
    for (name, value) in more.as_object().expect("an object") {
        fields[name] = value.clone();
    }
    fields
}

fn edited(envelope: &Value, name: &str, value: Option<&Value>) -> String {
    let mut envelope = envelope.clone();
    match value {
        Some(value) => envelope[name] = value.clone(),
        None => drop(envelope.as_object_mut().expect("an object").remove(name)),
    }
    envelope.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_by_another_key_is_refused() {
    let (sns, somebody) = (SnsSigner::start(), SnsSigner::start());
    let post = daemon(&sns, &[]).await;
    let mut garbled = Vec::new();
    for signature in ["", "AAAA", "not base64", "AAAA AAAA"] {
        garbled.push(edited(&sns.sign_json(&fields(&json!({}))), "Signature", Some(&json!(signature))));
    }
    let forged =
        [somebody.sign(&fields(&json!({}))), somebody.sign(&fields(&json!({ "Type": "SubscriptionConfirmation" })))];
    expect_refusals(&post, &forged, StatusCode::FORBIDDEN, "signature").await;
    expect_refusals(&post, &garbled, StatusCode::FORBIDDEN, "signature").await;
    assert_eq!(post.daemon().post_webhook(&sns.sign(&fields(&json!({})))).await, StatusCode::OK, "the honest one");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_another_topic_is_refused_though_the_key_is_right() {
    let sns = SnsSigner::start();
    let post = daemon(&sns, &[]).await;
    let strange = sns.sign_json(&fields(&json!({ "TopicArn": STRANGE_TOPIC })));
    let mut unknown = vec![strange.to_string()];
    for arn in
        ["", "*", "arn:aws:sns:eu-west-1:123456789012:ses-events2", "arn:aws:sns:eu-west-1:123456789012:SES-events"]
    {
        unknown.push(edited(&strange, "TopicArn", Some(&json!(arn))));
    }
    expect_refusals(&post, &unknown, StatusCode::FORBIDDEN, "unknown_topic").await;
    // Said to be of ours: the signature says otherwise, whether it was made for a stranger or for our other topic.
    let other = sns.sign_json(&fields(&json!({ "TopicArn": OTHER_TOPIC })));
    let moved = [&strange, &other].map(|envelope| edited(envelope, "TopicArn", Some(&json!(TOPIC))));
    expect_refusals(&post, &moved, StatusCode::FORBIDDEN, "signature").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_field_breaks_the_signature() {
    let sns = SnsSigner::start();
    let post = daemon(&sns, &[]).await;
    let honest = sns.sign_json(&fields(&json!({})));
    let without_subject = sns.sign_json(&json!({ "TopicArn": TOPIC, "Message": EVENT }));
    let confirmation = sns.sign_json(&json!({ "TopicArn": TOPIC, "Type": "SubscriptionConfirmation" }));
    let now = hours_ago(0);
    let mut forged = vec![
        edited(&honest, "Message", Some(&json!(EVENT.replace("Delivery", "Bounce")))),
        edited(&honest, "Message", Some(&json!(format!("{EVENT} ")))),
        edited(&honest, "MessageId", Some(&json!("00000000-0000-0000-0000-000000000000"))),
        edited(&honest, "Subject", Some(&json!("Amazon SNS"))),
        edited(&honest, "Subject", None),
        edited(&without_subject, "Subject", Some(&json!("Amazon SES"))),
        edited(&honest, "Timestamp", Some(&json!(now))),
        edited(&honest, "SignatureVersion", Some(&json!("2"))).replace(EVENT, "").replace("Amazon SES", "Amazon"),
        edited(&confirmation, "Token", Some(&json!("0123"))),
        edited(&confirmation, "SubscribeURL", Some(&json!("https://evil.example/"))),
        edited(&confirmation, "Type", Some(&json!("UnsubscribeConfirmation"))),
        edited(&confirmation, "Type", Some(&json!("Notification"))),
        edited(&confirmation, "Message", Some(&json!("Please subscribe"))),
    ];
    forged.dedup();
    expect_refusals(&post, &forged, StatusCode::FORBIDDEN, "signature").await;
    // What is not signed may be anything.
    let unsigned = edited(&honest, "UnsubscribeURL", Some(&json!("https://evil.example/")));
    assert_eq!(post.daemon().post_webhook(&unsigned).await, StatusCode::OK);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_cannot_be_read_in_a_second_way() {
    let sns = SnsSigner::start();
    let post = daemon(&sns, &[]).await;
    let honest = sns.sign_json(&fields(&json!({})));
    let id = format!("{}\nSubject\nAmazon SES", honest["MessageId"].as_str().expect("an id"));
    let without_subject: Value = serde_json::from_str(&edited(&honest, "Subject", None)).expect("JSON");
    // The signed text is the same, the MessageId another: a replay that would look new.
    let moved = edited(&without_subject, "MessageId", Some(&json!(id)));
    expect_refusals(&post, &[moved], StatusCode::BAD_REQUEST, "malformed").await;
    assert_eq!(post.daemon().post_webhook(&honest.to_string()).await, StatusCode::OK);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_message_is_refused_unless_old_ones_are_asked_for() {
    let sns = SnsSigner::start();
    let mut post = daemon(&sns, &[]).await;
    let old = [3, 48, 24 * 365].map(|hours| sns.sign(&fields(&json!({ "Timestamp": hours_ago(hours) }))));
    expect_refusals(&post, &old, StatusCode::FORBIDDEN, "stale").await;
    let early = sns.sign(&fields(&json!({ "Timestamp": hours_ago(-1) })));
    expect_refusals(&post, &[early], StatusCode::FORBIDDEN, "from_the_future").await;
    let repeated = sns.sign(&fields(&json!({ "Timestamp": hours_ago(1) })));
    assert_eq!(post.daemon().post_webhook(&repeated).await, StatusCode::OK, "SNS repeats for an hour");

    post.stop_daemon().await;
    post.set(&[("SNS_AGE_MAX", "14d")]);
    post.start_daemon().await;
    let answers = [&old[0], &old[1], &old[2]].map(|envelope| post.daemon().post_webhook(envelope));
    let answers = futures_util::future::join_all(answers).await;
    assert_eq!(answers, [StatusCode::OK, StatusCode::OK, StatusCode::FORBIDDEN], "what a dead-letter queue kept");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_on_another_host_is_refused_before_anything_else() {
    let sns = SnsSigner::start();
    let post = daemon(&sns, &[]).await;
    let urls = [
        "http://sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com/a.pem",
        "https://evil.example/a.pem",
        "https://sns.eu-west-1.amazonaws.com.evil.example/a.pem",
        "https://sns.eu-west-1.amazonaws.com@evil.example/a.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/a.pem",
        "https://sns-eu-west-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.s3.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amaz\u{43e}naws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com/?Action=Publish&a=.pem",
        "https://sns.eu-west-1.amazonaws.com/../a.pem",
        "https://127.0.0.1/a.pem",
        "",
    ];
    // Signed with the right key: only the place is wrong.
    let forged: Vec<_> = urls.iter().map(|url| sns.sign(&fields(&json!({ "SigningCertURL": url })))).collect();
    expect_refusals(&post, &forged, StatusCode::FORBIDDEN, "certificate_url").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weaker_signature_than_configured_is_refused() {
    let sns = SnsSigner::start();
    let mut post = daemon(&sns, &[]).await;
    let weak = sns.sign(&fields(&json!({ "SignatureVersion": "1" })));
    expect_refusals(&post, std::slice::from_ref(&weak), StatusCode::FORBIDDEN, "signature_version").await;
    let honest = sns.sign_json(&fields(&json!({})));
    let unknown = ["3", "", "2 "].map(|version| edited(&honest, "SignatureVersion", Some(&json!(version))));
    expect_refusals(&post, &unknown, StatusCode::FORBIDDEN, "signature_version").await;
    // Said to be of version 2 it is no better.
    let weak_json: Value = serde_json::from_str(&weak).expect("JSON");
    let disguised = edited(&weak_json, "SignatureVersion", Some(&json!("2")));
    expect_refusals(&post, &[disguised], StatusCode::FORBIDDEN, "signature").await;

    post.stop_daemon().await;
    post.set(&[("SNS_SIGNATURE_VERSION", "1")]);
    post.start_daemon().await;
    assert_eq!(post.daemon().post_webhook(&weak).await, StatusCode::OK, "for topics that cannot be changed");
    assert_eq!(post.daemon().post_webhook(&honest.to_string()).await, StatusCode::OK, "the stronger one too");
    let relabelled = edited(&honest, "SignatureVersion", Some(&json!("1")));
    assert_eq!(post.daemon().post_webhook(&relabelled).await, StatusCode::FORBIDDEN);
    assert_eq!(post.database.receipts().await, 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_that_leads_elsewhere_is_refused_though_it_is_signed() {
    let sns = SnsSigner::start();
    let post = daemon(&sns, &[]).await;
    let ours = format!("https://{SNS_HOST}/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=23abc");
    let forged: Vec<_> = [
        "https://evil.example/".to_owned(),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        ours.replace("https", "http"),
        ours.replace(SNS_HOST, "sns.us-east-1.amazonaws.com"),
        ours.replace(".com/", ".com.evil.example/"),
        ours.replace(".com/", ".com@evil.example/"),
        ours.replace("ConfirmSubscription", "DeleteTopic"),
        ours.replace("ses-events", "ses-complaints"),
        ours.replace("23abc", "24abc"),
    ]
    .iter()
    .map(|url| {
        let confirmation = json!({ "Type": "SubscriptionConfirmation", "Token": "23abc", "SubscribeURL": url });
        sns.sign(&fields(&confirmation))
    })
    .collect();
    expect_refusals(&post, &forged, StatusCode::FORBIDDEN, "subscribe_url").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_delivery_is_refused_in_words_that_say_what_to_change() {
    let sns = SnsSigner::start();
    let post = daemon(&sns, &[]).await;
    let url = format!("http://{}/api/v1/email/webhook", post.daemon().public());
    let http = reqwest::Client::new();
    let with_header = http.post(&url).header("x-amz-sns-rawdelivery", "true").body(EVENT);
    let without = http.post(&url).body(EVENT);
    // A signed one that comes in this way is not believed either.
    let signed = http.post(&url).header("x-amz-sns-rawdelivery", "true").body(sns.notify(TOPIC, EVENT));
    for request in [with_header, without, signed] {
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        let words = answer.text().await.expect("text");
        assert!(words.contains("turn RawMessageDelivery off"), "{words}");
    }
    assert!((refused(&post, "raw_delivery").await - 3.0).abs() < 0.5);
    assert_eq!(post.database.receipts().await, 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_envelope_is_refused_without_a_word() {
    let sns = SnsSigner::start();
    let post = daemon(&sns, &[]).await;
    let bodies = ["", "{", "null", "[]", "hello", "{}", r#"{"Type":"Notification"}"#].map(str::to_owned);
    expect_refusals(&post, &bodies, StatusCode::BAD_REQUEST, "malformed").await;
    // The header is not signed: it can speak against the message, never for it.
    let http = reqwest::Client::new();
    let url = format!("http://{}/api/v1/email/webhook", post.daemon().public());
    let request = http.post(&url).header("x-amz-sns-message-type", "SubscriptionConfirmation");
    let answer = request.body(sns.notify(TOPIC, EVENT)).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(answer.text().await.expect("text"), "", "no detail");
    post.finish().await;
}
