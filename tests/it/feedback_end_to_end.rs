//! The whole way: published, sent, told of by SES through SNS, and in the audit; and what a hard bounce means for the next mail.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{
    daemon::VIEWER_TOKEN,
    events::Subscriber,
    installation::Installation,
    mail::Mail,
    requests::{attach, invoice, pdf, ticket},
    ses::SesMail,
    sns::SnsSigner,
    webhook::TOPIC,
};

async fn start(sns: &SnsSigner) -> Installation {
    let certificate = sns.certificate();
    Installation::start_with(&[
        ("WEBHOOK_ADDR", "127.0.0.1:0"),
        ("SNS_TOPIC_ARNS", TOPIC),
        ("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8")),
    ])
    .await
}

/// What SES knows of a mail: what it found in its headers.
fn as_ses_sees(mail: &Mail, to: &str) -> SesMail {
    let mark = mail.header("X-Postrider-Message").expect("our mark");
    let (row, attempt) = mark.split_once(";attempt=").expect("row and attempt");
    let tags = mail.header("X-SES-MESSAGE-TAGS").expect("a tag, for a configuration set");
    assert_eq!(tags, format!("postrider={row}_{attempt}"));
    let row = row.parse().expect("a UUID");
    SesMail { row: Some((row, attempt.parse().expect("a number"))), ..SesMail::of(row, to) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_is_published_sent_delivered_and_told_of() {
    let sns = SnsSigner::start();
    let post = start(&sns).await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    let mut request = invoice("reseller@example.bj");
    request.metadata.insert("order".to_owned(), "A-1".to_owned());
    attach(&mut request, "facture.pdf", "application/pdf", pdf());
    let request = post.publish(&request).await;
    post.database.wait_for(request, "sent").await;
    let mail = as_ses_sees(&post.mails(1).await[0], "reseller@example.bj");
    for event in [mail.delivery(3), mail.send()] {
        assert_eq!(post.daemon().post_webhook(&sns.notify(TOPIC, &event)).await, StatusCode::OK);
    }
    let row = post.database.wait_for(request, "delivered").await.remove(0);

    let told = subscriber.wait_for(&post.database, 2).await;
    let told: Vec<_> = told.iter().map(|heard| (heard.key.as_str(), &heard.event)).collect();
    assert_eq!((told[0].0, told[1].0), ("billing.sent", "billing.delivered"));
    for (_, event) in &told {
        assert_eq!((&event.message_id, event.metadata["order"].as_str()), (&row.id.to_string(), "A-1"));
        assert_eq!(event.recipient, "reseller@example.bj");
    }
    // The mail is delivered as soon as one of the two was looked at.
    post.database.wait_until_applied().await;
    let mut kinds: Vec<_> = post.database.timeline(row.id).await.iter().map(|line| line.kind.clone()).collect();
    kinds[1..].sort();
    assert_eq!(kinds, ["sent", "accepted", "delivered"]);
    let (status, page) = post.daemon().get("/api/v1/email/messages?to=reseller%40example.bj", VIEWER_TOKEN).await;
    assert_eq!((status, &page["items"][0]["status"]), (StatusCode::OK, &json!("delivered")));
    assert!(page["items"][0]["delivered_at"].is_string(), "{page}");
    let said = post.run(&["messages", "--to", "reseller@example.bj"]).await;
    assert!(said.out.contains("delivered"), "{said:?}");
    let attachments: i64 = sqlx::query_scalar("select count(*) from email_attachments where message_id = $1")
        .bind(row.id)
        .fetch_one(&post.database.pool)
        .await
        .expect("the audit answers");
    assert_eq!(attachments, 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_bounce_keeps_the_next_mail_back_until_an_operator_lifts_it() {
    let sns = SnsSigner::start();
    let post = start(&sns).await;
    let first = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(first, "sent").await;
    let mail = as_ses_sees(&post.mails(1).await[0], "ada@example.bj");
    let bounce = mail.bounce("Permanent", "NoEmail", 0);
    assert_eq!(post.daemon().post_webhook(&sns.notify(TOPIC, &bounce)).await, StatusCode::OK);
    post.database.wait_for(first, "bounced").await;

    let next = post.publish(&ticket("Ada@Example.BJ")).await;
    let row = post.database.wait_for(next, "suppressed").await.remove(0);
    assert_eq!(row.error_message.as_deref(), Some("on the suppression list: hard_bounce"));
    assert_eq!(post.relay.log().mails.len(), 1, "nothing went to the relay");

    let lifted = post.run(&["suppressions", "remove", "ada@example.bj"]).await;
    assert_eq!(lifted.code, 0, "{lifted:?}");
    let last = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(last, "sent").await;

    // Told once more, as it is where both of SES's formats are set up: what an operator has lifted since stays lifted.
    let again = SesMail { is_published: false, ..mail };
    let again = again.bounce("Permanent", "NoEmail", 0);
    assert_eq!(post.daemon().post_webhook(&sns.notify(TOPIC, &again)).await, StatusCode::OK);
    post.database.wait_until_applied().await;
    let after = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(after, "sent").await;
    post.finish().await;
}
