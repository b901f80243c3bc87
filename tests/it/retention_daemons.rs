//! Daemons and retention: one of them at a time does it, another one goes on where it was killed, and mail goes out meanwhile.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::support::{
    installation::Installation,
    process::{DaemonProcess, postrider},
    requests::{incident, ticket},
    wait::until,
};

/// Mails of a hundred days ago.
const OLD: i64 = 6000;

async fn fill(post: &Installation) {
    let mut tx = post.database.pool.begin().await.expect("a transaction");
    for statement in [
        "select set_config('postrider.events', 'off', true), $1::bigint",
        "insert into email_requests (id, payload_hash, source, template_key, priority, lane, variables, published_at)
         select md5('request' || n)::uuid, sha256(n::text::bytea), 'billing', 't', 1, 'standard', '{\"name\": \"Ada\"}',
            now() - interval '100 days' - n * interval '1 s'
         from generate_series(1, $1) as n",
        "insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, recipient_email, subject,
            html_content, text_content, status, message_id, source_endpoint)
         select (lpad(to_hex((extract(epoch from r.published_at) * 1000)::bigint), 12, '0')
                || substr(md5(n::text), 1, 20))::uuid,
            r.id, sha256('ada'), 0, 't', 'ada@example.bj', 's', repeat('h', 1000), 't', 'sent', '<x>', r.source
         from generate_series(1, $1) as n join email_requests r on r.id = md5('request' || n)::uuid",
    ] {
        sqlx::query(statement).bind(OLD).execute(&mut *tx).await.expect("filled in");
    }
    tx.commit().await.expect("filled in");
}

async fn count(post: &Installation, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&post.database.pool).await.expect("a count")
}

/// The old rows name nobody, so that the audit's usual reader cannot read all of them.
async fn is_sent(post: &Installation, request: Uuid) -> bool {
    sqlx::query_scalar("select count(*) > 0 and bool_and(status = 'sent') from email_messages where request_id = $1")
        .bind(request)
        .fetch_one(&post.database.pool)
        .await
        .expect("an answer")
}

const FORGOTTEN: &str = "select count(*) from email_requests where anonymised_at is not null";
/// A batch is done or not begun.
const TORN: &str = "select count(*) from email_requests r join email_messages m on m.request_id = r.id
    where (r.anonymised_at is null) <> (m.recipient_email is not null)";
const TOLD: &str = "select coalesce(sum(rows_ever), 0)::bigint from retention_steps where step = 'mails.anonymise'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_at_a_time_works_and_another_goes_on_where_it_was_killed() {
    let mut post =
        Installation::prepare(&[("EMAIL_RETENTION_EVERY", "1s"), ("LOG_LEVEL", "postrider=debug,warn")]).await;
    post.declare_queues().await;
    fill(&post).await;
    let mut first = DaemonProcess::start(&post.variables);
    until("the first has begun", async || count(&post, FORGOTTEN).await > 0).await;
    let mut second = DaemonProcess::start(&post.variables);
    until("the second leaves it alone", async || second.log().contains("another daemon is at work")).await;
    let said = postrider(&post.variables, &["retention", "run"]).await;
    assert!(said.code == 1 && said.err.contains("at work"), "{said:?}");
    let status = post.run(&["retention", "status", "--json"]).await;
    assert!(status.out.contains("\"is_at_work\": true"), "{status:?}");

    let done = count(&post, FORGOTTEN).await;
    assert!((1..OLD).contains(&done), "it is in the middle of it: {done}");
    first.kill();
    assert_eq!(count(&post, TORN).await, 0);
    // Mail goes out meanwhile.
    for request in [incident("noc@example.bj"), ticket("ada@example.bj")] {
        let begun = Instant::now();
        let request = post.publish(&request).await;
        until("it is sent", async || is_sent(&post, request).await).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody waits for retention: {:?}", begun.elapsed());
    }
    until("the second has done the rest", async || count(&post, FORGOTTEN).await == OLD).await;
    assert_eq!(count(&post, TORN).await, 0);
    assert_eq!(count(&post, TOLD).await, OLD, "each is told of once");
    until("it is told that all is done", async || {
        count(&post, "select count(*) from retention_steps where ended_at is null").await == 0
    })
    .await;
    let metrics = reqwest::get(format!("{}/metrics", second.admin().await)).await.expect("metrics");
    let metrics = metrics.text().await.expect("text");
    let rows = "email_retention_rows_total{action=\"anonymise\",table=\"email_messages\"}";
    assert!(metrics.contains(rows), "{metrics}");

    // Told to stop, it leaves at once.
    let begun = Instant::now();
    second.terminate();
    assert!(second.wait().await.success(), "{}", second.log());
    assert!(begun.elapsed() < Duration::from_secs(10));
}
