//! What SNS sends for our topics is committed before it is answered, once, and comes again when it could not be.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{
    authority::Authority,
    installation::Installation,
    proxy::Proxy,
    sns::{ISSUER_HOST, SnsSigner},
    webhook::{OTHER_TOPIC, Page, SNS_HOST, Signposts, TOPIC, WebServer, Webhook, fetching, trusting},
};

fn settings(signer: &SnsSigner) -> Vec<(String, String)> {
    let certificate = signer.certificate().to_str().expect("UTF-8").to_owned();
    [
        ("WEBHOOK_ADDR", "127.0.0.1:0".to_owned()),
        ("SNS_TOPIC_ARNS", format!("{TOPIC},{OTHER_TOPIC}")),
        ("SNS_SIGNING_CERT_FILE", certificate),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_again_is_answered_again_and_stored_once() {
    let sns = SnsSigner::start();
    let mut post = Installation::prepare(&[]).await;
    post.variables.extend(settings(&sns));
    post.start_daemon().await;
    // As SES writes: lines and quotes, and what UTF-8 has to offer.
    let message = "{\n  \"eventType\" : \"Bounce\",\n  \"subject\" : \"Caf\u{e9} \u{1f48c} \\\"quoted\\\"\"\n}";
    let envelope = sns.sign(&json!({ "TopicArn": TOPIC, "Message": message, "Timestamp": "2026-01-01T00:00:00.000Z" }));
    assert_eq!(post.daemon().post_webhook(&envelope).await, StatusCode::FORBIDDEN, "not what this test is about");
    let envelope = sns.notify(TOPIC, message);
    for _ in 0..3 {
        assert_eq!(post.daemon().post_webhook(&envelope).await, StatusCode::OK);
    }
    let many: Vec<_> = (0..50).map(|n| sns.notify(OTHER_TOPIC, &format!("{{\"n\":{n}}}"))).collect();
    let twice = many.iter().chain(&many).map(|envelope| post.daemon().post_webhook(envelope));
    let answers = futures_util::future::join_all(twice).await;
    assert!(answers.iter().all(|status| *status == StatusCode::OK), "{answers:?}");
    assert_eq!(post.database.receipts().await, 51);

    let (provider, id, body): (String, String, String) =
        sqlx::query_as("select provider, provider_event_id, body from webhook_events order by id limit 1")
            .fetch_one(&post.database.pool)
            .await
            .expect("a receipt");
    let sent: serde_json::Value = serde_json::from_str(&envelope).expect("JSON");
    assert_eq!((provider.as_str(), json!(id), body.as_str()), ("ses", sent["MessageId"].clone(), message));
    let received = async |result: &str| {
        post.daemon().metric("email_webhook_received_total", &[&format!("result=\"{result}\"")]).await
    };
    assert_eq!((received("stored").await as i64, received("known").await as i64), (51, 52));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_sns_is_told_to_come_again() {
    let sns = SnsSigner::start();
    let mut post = Installation::prepare(&[]).await;
    post.variables.extend(settings(&sns));
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    post.start_daemon().await;
    let (before, during) = (sns.notify(TOPIC, "{}"), sns.notify(TOPIC, "{}"));
    assert_eq!(post.daemon().post_webhook(&before).await, StatusCode::OK);
    line.cut().await;
    assert_eq!(post.daemon().post_webhook(&during).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(post.daemon().post_webhook(&before).await, StatusCode::SERVICE_UNAVAILABLE, "nobody knows now");
    assert_eq!(post.database.receipts().await, 1);
    let failed = post.daemon().metric("email_webhook_failed_total", &["fault=\"store\""]).await;
    assert!((failed - 2.0).abs() < 0.5, "{failed}");
    line.mend().await;
    post.daemon_mut().wait_until_ready().await;
    for envelope in [&during, &before] {
        assert_eq!(post.daemon().post_webhook(envelope).await, StatusCode::OK);
    }
    assert_eq!(post.database.receipts().await, 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_confirmed_once_and_only_when_sns_says_so() {
    let sns = SnsSigner::start();
    let authority = Authority::for_host(SNS_HOST);
    let (server, issuers) = (WebServer::tls(&authority).await, WebServer::plain().await);
    server.serve(certificate_path(&sns).as_str(), Page::ok(std::fs::read(sns.certificate()).expect("a file")));
    issuers.serve("/between.cer", Page::ok(sns.issuer()));
    let signposts = Signposts::to(&[(SNS_HOST, &server), (ISSUER_HOST, &issuers)]);
    let webhook = Webhook::start(&fetching(trusting(&authority, &sns)), signposts).await;

    let token = "2336412f37fb687f5d51e6e241d59b68";
    let target = format!("/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token={token}");
    let confirmation = sns.sign(&json!({ "Type": "SubscriptionConfirmation", "TopicArn": TOPIC, "Token": token }));
    server.serve(&target, Page::status(500));
    assert_eq!(webhook.post(&confirmation).await, StatusCode::SERVICE_UNAVAILABLE, "SNS asks again");
    server.serve(&target, Page::redirect("https://evil.example/"));
    assert_eq!(webhook.post(&confirmation).await, StatusCode::SERVICE_UNAVAILABLE, "never followed");
    server.serve(&target, Page::ok("<ConfirmSubscriptionResponse/>"));
    let answers = futures_util::future::join_all((0..5).map(|_| webhook.post(&confirmation))).await;
    assert_eq!(answers, [StatusCode::OK; 5]);
    let confirmed = server.asked().iter().filter(|asked| asked.ends_with(&target)).count();
    assert_eq!(confirmed, 3, "twice in vain, once for good: {:?}", server.asked());
    assert_eq!((webhook.count("received", "confirmed"), webhook.count("failed", "confirmation")), (1, 2));

    // A notice that we were unsubscribed is true, and its link would subscribe us again.
    let before = server.asked().len();
    let notice = sns.sign(&json!({ "Type": "UnsubscribeConfirmation", "TopicArn": TOPIC }));
    assert_eq!(webhook.post(&notice).await, StatusCode::OK);
    assert_eq!((webhook.count("received", "unsubscribed"), server.asked().len()), (1, before));
    assert_eq!(webhook.stored().await, 0, "neither is feedback");
}

fn certificate_path(sns: &SnsSigner) -> String {
    let envelope = sns.sign_json(&json!({ "TopicArn": TOPIC }));
    let url = envelope["SigningCertURL"].as_str().expect("a URL").to_owned();
    url.strip_prefix(&format!("https://{SNS_HOST}")).expect("on SNS's host").to_owned()
}
