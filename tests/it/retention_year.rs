//! A year of mail in fast motion: what is there after 89, 91, 364 and 366 days.

use chrono::{TimeDelta, Utc};
use lapin::types::AMQPValue;
use postrider::{
    broker::{delivery::PUBLISHED_AT, topology},
    email::Phase,
    publish,
};

use crate::support::{
    daemon::ADMIN_TOKEN,
    installation::Installation,
    relay::{Act, Rule},
    requests::{attach, id, invoice, pdf, sample, ticket},
    ses::{FEEDBACK_SETTINGS, SesMail, store_event},
    wait::until,
};

/// What is counted, and how many there are after each of the days.
const DAYS: [i64; 4] = [89, 91, 364, 366];
const FIGURES: &[(&str, &str, [i64; 4])] = &[
    ("requests, which tell a duplicate", "select count(*) from email_requests", [5, 5, 5, 0]),
    ("  with variables", "select count(*) from email_requests where variables is not null", [5, 0, 0, 0]),
    ("mails, their figures and hashes", "select count(*) from email_messages", [5, 5, 5, 0]),
    (
        "  with address and bodies",
        "select count(*) from email_messages where num_nulls(recipient_email, html_content) = 0",
        [5, 0, 0, 0],
    ),
    (
        "  that say sent, failed, complaint",
        "select count(*) from email_messages where status in ('sent', 'failed', 'complaint')",
        [5, 5, 5, 0],
    ),
    ("timeline, lines", "select count(*) from email_timeline", [8, 8, 8, 0]),
    ("  with a relay's words", "select count(*) from email_timeline where reply_text is not null", [5, 0, 0, 0]),
    ("attachments", "select count(*) from email_attachments", [2, 0, 0, 0]),
    ("  files", "select count(*) from attachment_blobs", [1, 0, 0, 0]),
    ("dead letters", "select count(*) from dead_letters", [1, 1, 1, 0]),
    ("  with content", "select count(*) from dead_letters where body is not null", [1, 0, 0, 0]),
    ("  that wait for somebody", "select count(*) from dead_letters where state = 'waiting'", [1, 0, 0, 0]),
    ("receipts of feedback", "select count(*) from webhook_events", [2, 2, 2, 0]),
    ("  with content", "select count(*) from webhook_events where body is not null", [2, 0, 0, 0]),
    ("suppressions", "select count(*) from suppressions", [2, 2, 2, 2]),
    ("  with an address", "select count(*) from suppressions where address is not null", [2, 0, 0, 0]),
    ("history of suppressions", "select count(*) from suppression_changes", [2, 2, 2, 2]),
    ("who looked at whose mail", "select count(*) from operator_views", [1, 1, 1, 0]),
    ("who changed what", "select count(*) from operator_changes where changed_by <> 'sync'", [2, 2, 2, 0]),
    ("mails sent again", "select count(*) from retransmissions", [1, 1, 1, 0]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_figures_stay_for_a_year_and_the_person_for_a_quarter() {
    let post = Installation::start_with(&FEEDBACK_SETTINGS).await;
    post.relay.script(
        Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 <refused@example.bj> not from you"))
            .whose_address_begins("refused"),
    );
    let mut bill = invoice("ada@example.bj");
    attach(&mut bill, "facture.pdf", "application/pdf", pdf());
    let announcement = sample("reseller_announcement", &["ada@example.bj"]);
    for request in [&bill, &announcement, &ticket("kofi@example.bj")] {
        let request = post.publish(request).await;
        post.database.wait_for(request, "sent").await;
    }
    let refused = post.publish(&ticket("refused@example.bj")).await;
    post.database.wait_for_letter(refused).await;
    let row = post.database.row(id(&bill)).await;
    assert_eq!(post.run(&["messages", "show", &row.id.to_string()]).await.code, 0);
    assert_eq!(post.run(&["messages", "resend", &row.id.to_string(), "--yes"]).await.code, 0);
    post.mails(4).await;
    post.wait_until_settled().await;
    assert_eq!(post.run(&["suppressions", "add", "kofi@example.bj", "--note", "Kofi a appelé"]).await.code, 0);
    // One that finds its mail, and one that never will.
    let store = post.database.store();
    store_event(
        &store,
        &SesMail::of(post.database.row(id(&announcement)).await.id, "ada@example.bj").complaint("abuse", 1),
    )
    .await;
    store_event(&store, &SesMail::of(uuid::Uuid::now_v7(), "ama@example.bj").delivery(1)).await;
    post.database.wait_for(id(&announcement), "complaint").await;
    post.database.wait_until_applied().await;

    let begun = Utc::now();
    let mut found: Vec<[i64; 4]> = vec![[0; 4]; FIGURES.len()];
    for (column, days) in DAYS.into_iter().enumerate() {
        post.database.retain_at(&post.variables, begun + TimeDelta::days(days)).await;
        for (line, (_, query, _)) in FIGURES.iter().enumerate() {
            found[line][column] = sqlx::query_scalar(*query).fetch_one(&post.database.pool).await.expect("a count");
        }
        let persons = post.database.columns_with_persons().await;
        assert_eq!(persons.is_empty(), days > 90, "after {days} days: {persons:?}");
        if days < 366 {
            // It comes again, whatever has become of its words.
            post.publish(&bill).await;
            // An empty queue alone says nothing: a daemon may hold it.
            let known = async || post.daemon().metric("email_settled_total", &["duplicate"]).await;
            until("it is known", async || known().await >= (column + 1) as f64).await;
            post.wait_until_idle().await;
            assert_eq!(post.relay.log().mails.len(), 4, "after {days} days a duplicate was sent");
        }
        let (status, shown) = post.daemon().get("/api/v1/email/messages?to=ada@example.bj&limit=10", ADMIN_TOKEN).await;
        assert_eq!(status, 200);
        assert_eq!(shown["total"], if days < 366 { 3 } else { 0 }, "found by the hash after {days} days: {shown}");
    }
    print_table(&found);
    let expected: Vec<_> = FIGURES.iter().map(|(.., expected)| *expected).collect();
    assert_eq!(found, expected);

    // After a year nobody knows it any more: it may have been sent.
    let mut late = publish::outgoing(&bill, topology::REQUESTS).expect("a message");
    let mut headers = late.properties.headers().clone().unwrap_or_default();
    headers.insert(PUBLISHED_AT.into(), AMQPValue::LongLongInt((begun - TimeDelta::days(366)).timestamp_millis()));
    late.properties = late.properties.with_headers(headers);
    post.broker.publish_raw(&late.routing_key, late.properties, &late.body).await;
    let letter = post.database.wait_for_letter(id(&bill)).await;
    assert_eq!(letter.reason, "too_old");
    assert!(letter.error.as_deref().is_some_and(|error| error.contains("EMAIL_AUDIT_RETENTION_DAYS")), "{letter:?}");
    assert_eq!(post.relay.log().mails.len(), 4, "it is not sent");
    // Its content is a person's again, and as old as it says.
    post.database.retain_at(&post.variables, Utc::now()).await;
    let (content, letters): (i64, i64) = sqlx::query_as("select count(body), count(*) from dead_letters")
        .fetch_one(&post.database.pool)
        .await
        .expect("a count");
    assert_eq!((content, letters), (0, 1), "the figure stays");
    post.finish().await;
}

#[expect(clippy::print_stderr, reason = "the figures are what somebody asks for with TEST_LOG")]
fn print_table(found: &[[i64; 4]]) {
    if std::env::var_os("TEST_LOG").is_none() {
        return;
    }
    eprintln!("{:36}{:>6}{:>6}{:>6}{:>6}", "after days", DAYS[0], DAYS[1], DAYS[2], DAYS[3]);
    for ((what, ..), figures) in FIGURES.iter().zip(found) {
        eprintln!("{what:36}{:>6}{:>6}{:>6}{:>6}", figures[0], figures[1], figures[2], figures[3]);
    }
}
