//! What retention does to rows, and what it leaves alone.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use postrider::{
    email::identity::row_id,
    store::retention::{Action, decisions::DECISIONS},
};
use uuid::Uuid;

use crate::support::{
    daemon::Variables,
    database::{Database, HASH_KEY},
    process::postrider,
};

/// Settings of a database without a daemon.
fn settings(database: &Database, more: &[(&str, &str)]) -> Variables {
    let usual = [("DATABASE_URL", database.url()), ("EMAIL_HASH_KEY", HASH_KEY)];
    usual.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn ago(days: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::days(days)
}

/// A mail as a daemon has left it: when it was published, when its row was written, and when that last changed.
struct Mail {
    request: Uuid,
    person: u8,
    status: &'static str,
    held: bool,
    published_at: DateTime<Utc>,
    created_at: DateTime<Utc>,
    moved_at: DateTime<Utc>,
}

impl Mail {
    fn of(status: &'static str, days: i64) -> Self {
        let at = ago(days);
        Self { request: Uuid::new_v4(), person: 1, status, held: false, published_at: at, created_at: at, moved_at: at }
    }

    async fn write(&self, database: &Database) -> Uuid {
        let hash = [self.person; 32];
        let id = row_id(self.published_at, self.request, &hash);
        sqlx::query(
            "insert into email_requests (id, payload_hash, source, template_key, priority, lane, reply_to, variables, metadata,
                published_at, created_at)
             values ($1, sha256('x'), 'billing', 't', 2, 'standard', 'ada@example.bj', '{\"name\": \"Ada\"}', '{\"k\": \"Ada\"}',
                $2, $3) on conflict do nothing",
        )
        .bind(self.request)
        .bind(self.published_at)
        .bind(self.created_at)
        .execute(&database.pool)
        .await
        .expect("a request");
        sqlx::query(
            "insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, recipient_email, subject,
                html_content, text_content, status, held, settlement, message_id, source_endpoint, error_message,
                created_at, updated_at)
             values ($1, $2, $3, 0, 't', 'ada@example.bj', 'Ada', 'Ada', 'Ada', $4, $5, 'pending', '<x>', 'billing', 'Ada',
                $6, $7)",
        )
        .bind(id)
        .bind(self.request)
        .bind(hash.as_slice())
        .bind(self.status)
        .bind(self.held)
        .bind(self.created_at)
        .bind(self.moved_at)
        .execute(&database.pool)
        .await
        .expect("a mail");
        sqlx::query("insert into email_timeline (message_id, kind, attempt, error) values ($1, 'deferred', 1, 'Ada')")
            .bind(id)
            .execute(&database.pool)
            .await
            .expect("a line");
        id
    }
}

/// Status, whether it is held, and whether the person is there.
async fn standing(database: &Database, mail: Uuid) -> (String, bool, bool) {
    sqlx::query_as(
        "select status, held, m.recipient_email is not null or m.subject is not null or m.error_message is not null
            or r.variables is not null or r.anonymised_at is null
         from email_messages m join email_requests r on r.id = m.request_id where m.id = $1",
    )
    .bind(mail)
    .fetch_one(&database.pool)
    .await
    .expect("a mail")
}

async fn count(database: &Database, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&database.pool).await.expect("a count")
}

#[tokio::test]
async fn every_column_of_every_table_has_been_thought_of() {
    let database = Database::start().await;
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns
         where table_schema = 'public' and table_name <> '_sqlx_migrations'",
    )
    .fetch_all(&database.pool)
    .await
    .expect("a schema");
    let there: BTreeSet<_> = columns.into_iter().collect();
    let decided: Vec<(String, String)> = DECISIONS
        .iter()
        .flat_map(|d| d.removed.iter().chain(d.kept).map(|column| (d.table.to_owned(), (*column).to_owned())))
        .collect();
    let thought_of: BTreeSet<_> = decided.iter().cloned().collect();
    assert_eq!(decided.len(), thought_of.len(), "nothing is decided twice");
    let missing: Vec<_> = there.difference(&thought_of).collect();
    assert!(missing.is_empty(), "say in src/store/retention/decisions.rs what becomes of: {missing:?}");
    let gone: Vec<_> = thought_of.difference(&there).collect();
    assert!(gone.is_empty(), "no longer in the schema: {gone:?}");
}

#[tokio::test]
async fn what_is_under_way_is_left_alone_and_what_has_stopped_moving_is_settled_first() {
    let database = Database::start().await;
    let settings = settings(&database, &[("EMAIL_AUTO_ANONYMIZE_AFTER_DAYS", "1")]);
    let sent = Mail::of("sent", 10).write(&database).await;
    let young = Mail::of("sent", 0).write(&database).await;
    let failed = Mail::of("failed", 10).write(&database).await;
    let held = Mail { held: true, ..Mail::of("unknown", 10) }.write(&database).await;
    // Longest not_before 30 days, longest age 1 day.
    let waits = Mail::of("queued", 30).write(&database).await;
    let replayed = Mail { moved_at: ago(1), ..Mail::of("sending", 80) }.write(&database).await;
    let stuck = Mail::of("queued", 40).write(&database).await;
    let lost = Mail::of("sending", 40).write(&database).await;
    let open = Mail::of("unknown", 40).write(&database).await;
    // Of several recipients one is not done yet.
    let one = Mail::of("sent", 20);
    let other = Mail { person: 2, status: "queued", ..Mail::of("queued", 20) };
    let other = Mail { request: one.request, published_at: one.published_at, ..other };
    let (one, other) = (one.write(&database).await, other.write(&database).await);

    // Of what was written here.
    sqlx::query("delete from outbox").execute(&database.pool).await.expect("an outbox");
    database.retain_at(&settings, Utc::now()).await;
    let stands = |status: &str, held, has_person| (status.to_owned(), held, has_person);
    for (mail, expected, what) in [
        (sent, stands("sent", false, false), "sent"),
        (young, stands("sent", false, true), "too young"),
        (failed, stands("failed", false, false), "failed"),
        (held, stands("unknown", true, false), "left to an operator, who had the time"),
        (waits, stands("queued", false, true), "waits for its not_before"),
        (replayed, stands("sending", false, true), "replayed yesterday"),
        (stuck, stands("expired", false, false), "waited for nothing any more"),
        (lost, stands("unknown", true, false), "its daemon is long gone"),
        (open, stands("unknown", true, false), "nothing settled it"),
        (one, stands("sent", false, true), "its request is not done"),
        (other, stands("queued", false, true), "one of two"),
    ] {
        assert_eq!(standing(&database, mail).await, expected, "{what}");
    }
    let told: Vec<(Uuid, String)> =
        sqlx::query_as("select message_id, kind from outbox").fetch_all(&database.pool).await.expect("the outbox");
    assert_eq!(told, [(stuck, "expired".to_owned())], "its producer hears of it, and of nothing else");
    let kinds: Vec<_> = database.timeline(stuck).await.into_iter().map(|line| line.kind).collect();
    assert_eq!(kinds, ["deferred", "expired"]);
    let words = count(&database, "select count(*) from email_timeline where error like '%Ada%'").await;
    assert_eq!(words, 5, "of those that are left alone");

    // Once it has moved no more for as long, they are forgotten as well, and nothing is done twice.
    let report = database.retain_at(&settings, Utc::now() + TimeDelta::days(40)).await;
    assert_eq!(count(&database, "select count(*) from email_requests where anonymised_at is null").await, 0);
    assert_eq!(report.rows(Action::Anonymise, "email_requests"), 4);
}

#[tokio::test]
async fn a_producer_whose_clock_is_ahead_keeps_nobody_for_ever() {
    let database = Database::start().await;
    let settings = settings(&database, &[]);
    let ahead = ago(-4000);
    let old = Mail { published_at: ahead, ..Mail::of("sent", 100) }.write(&database).await;
    let young = Mail { published_at: ahead, ..Mail::of("sent", 10) }.write(&database).await;
    database.retain_at(&settings, Utc::now()).await;
    assert!(!standing(&database, old).await.2);
    assert!(standing(&database, young).await.2);
    database.retain_at(&settings, Utc::now() + TimeDelta::days(300)).await;
    let left: Vec<Uuid> =
        sqlx::query_scalar("select id from email_messages").fetch_all(&database.pool).await.expect("an answer");
    assert_eq!(left, [young]);
    assert_eq!(count(&database, "select count(*) from email_requests").await, 1);
}

#[tokio::test]
async fn nobody_is_waited_for_and_what_somebody_holds_comes_next_time() {
    let database = Database::start().await;
    let settings = settings(&database, &[]);
    let (held, free) = (Mail::of("sent", 100).write(&database).await, Mail::of("sent", 100).write(&database).await);
    let mut tx = database.pool.begin().await.expect("a transaction");
    sqlx::query("select 1 from email_messages where id = $1 for update")
        .bind(held)
        .execute(&mut *tx)
        .await
        .expect("held");
    database.retain_at(&settings, Utc::now()).await;
    assert!(!standing(&database, free).await.2);
    assert!(standing(&database, held).await.2);
    tx.rollback().await.expect("let go");
    database.retain_at(&settings, Utc::now()).await;
    assert!(!standing(&database, held).await.2);
}

#[tokio::test]
async fn a_file_stays_as_long_as_any_mail_has_it() {
    let database = Database::start().await;
    let settings = settings(&database, &[]);
    let (old, young) = (Mail::of("sent", 100).write(&database).await, Mail::of("sent", 10).write(&database).await);
    for (name, mails) in [("shared", vec![old, young]), ("old", vec![old])] {
        sqlx::query(
            "insert into attachment_blobs (sha256, size_bytes, data, created_at, used_at)
             select sha256($1::text::bytea), 1, $1::text::bytea, at, at from (select now() - interval '100 days' as at) as long_ago",
        )
        .bind(name)
        .execute(&database.pool)
        .await
        .expect("a file");
        sqlx::query(
            "insert into email_attachments (message_id, filename, content_type, size_bytes, sha256)
             select m, 'ada.pdf', 'application/pdf', 1, sha256($2::text::bytea) from unnest($1::uuid[]) as m",
        )
        .bind(&mails)
        .bind(name)
        .execute(&database.pool)
        .await
        .expect("attached");
    }
    database.retain_at(&settings, Utc::now()).await;
    let left: Vec<Vec<u8>> =
        sqlx::query_scalar("select data from attachment_blobs").fetch_all(&database.pool).await.expect("an answer");
    assert_eq!(left, [b"shared".to_vec()]);
    assert_eq!(count(&database, "select count(*) from email_attachments").await, 1);
    database.retain_at(&settings, Utc::now() + TimeDelta::days(81)).await;
    assert_eq!(count(&database, "select count(*) from attachment_blobs").await, 0);
}

#[tokio::test]
async fn a_step_that_fails_is_told_and_does_not_keep_the_others() {
    let database = Database::start().await;
    let settings = settings(&database, &[]);
    let mail = Mail::of("sent", 100).write(&database).await;
    for statement in [
        "insert into suppressions (address_hash, address, reason, source, created_at)
         values (sha256('ada'), 'ada@example.bj', 'operator', 'x', now() - interval '100 days')",
        "alter table email_requests add constraint broken check (anonymised_at is null)",
    ] {
        sqlx::query(statement).execute(&database.pool).await.expect("prepared");
    }
    let said = postrider(&settings, &["retention", "run", "--json"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    let report: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    let step = |name: &str| {
        let steps = report["steps"].as_array().expect("steps");
        steps.iter().find(|step| step["step"] == name).cloned().unwrap_or_else(|| panic!("no {name}: {report}"))
    };
    assert!(step("mails.anonymise")["error"].as_str().is_some_and(|error| error.contains("23514")), "{report}");
    assert_eq!((&step("mails.anonymise")["done"], &step("mails.anonymise")["left"]), (&0.into(), &1.into()));
    assert_eq!(step("suppressions.anonymise")["done"], 1, "the others went on: {report}");
    assert!(!said.out.contains("ada@"), "{said:?}");
    let (_, _, has_person) = standing(&database, mail).await;
    assert!(has_person, "all of a batch or nothing");

    let status = postrider(&settings, &["retention", "status"]).await;
    assert_eq!(status.code, 1, "somebody should look: {status:?}");
    assert!(status.out.contains("10 d") && status.out.contains("23514"), "{status:?}");
    sqlx::query("alter table email_requests drop constraint broken").execute(&database.pool).await.expect("mended");
    let done = postrider(&settings, &["retention", "run"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let status = postrider(&settings, &["retention", "status", "--json"]).await.json();
    assert_eq!(status["steps"][0]["done_ever"], 1, "{status}");
    assert!(status["steps"].as_array().expect("steps").iter().all(|step| step["due"] == 0 && step["error"].is_null()));
    // And what will be.
    let at = (Utc::now() + TimeDelta::days(300)).to_rfc3339();
    let later = postrider(&settings, &["retention", "status", "--at", &at, "--json"]).await;
    let later: serde_json::Value = serde_json::from_str(&later.out).expect("JSON");
    let deleted = later["steps"].as_array().expect("steps").iter().find(|step| step["step"] == "mails.delete").cloned();
    assert_eq!(deleted.map(|step| step["due"].clone()), Some(1.into()), "{later}");
}

#[tokio::test]
async fn logs_that_nobody_may_rewrite_lose_their_notes_and_nothing_else() {
    let database = Database::start().await;
    let settings = settings(&database, &[]);
    for statement in [
        "insert into operator_changes (at, changed_by, action, target, before, after)
         values (now() - interval '100 days', 'operator:x', 'lane.pause', 'bulk', null, '{\"paused\": true, \"note\": \"Ada\"}'),
            (now(), 'operator:x', 'lane.pause', 'bulk', null, '{\"note\": \"young\"}')",
        "insert into dead_letter_discards (dead_letter_id, discarded_by, note, at)
         values (gen_random_uuid(), 'operator:x', 'Ada', now() - interval '100 days')",
        "insert into suppression_changes (address_hash, reason, category, change, changed_by, note, at)
         values (sha256('ada'), 'operator', '', 'lifted', 'operator:x', 'Ada', now() - interval '100 days')",
    ] {
        sqlx::query(statement).execute(&database.pool).await.expect("written");
    }
    database.retain_at(&settings, Utc::now()).await;
    let lines: Vec<serde_json::Value> = sqlx::query_scalar("select after from operator_changes order by id")
        .fetch_all(&database.pool)
        .await
        .expect("an answer");
    assert_eq!(lines, [serde_json::json!({"paused": true}), serde_json::json!({"note": "young"})]);
    let notes = "select (select count(*) from dead_letter_discards where note is not null)
        + (select count(*) from suppression_changes where note is not null)";
    assert_eq!(count(&database, notes).await, 0);
    let rewriting = sqlx::query("update operator_changes set changed_by = 'nobody'").execute(&database.pool).await;
    assert!(rewriting.is_err(), "nobody else may");
    // Where it has been is not gone over again, and what is younger becomes due in its turn.
    let report = database.retain_at(&settings, Utc::now() + TimeDelta::days(91)).await;
    assert_eq!(report.rows(Action::Anonymise, "operator_changes"), 1);
}
