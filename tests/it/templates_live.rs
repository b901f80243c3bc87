//! An activation reaches every daemon while it sends, and no mail is made of two versions.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use postrider::{
    email::Phase,
    reload,
    store::{
        Store,
        templates::change::{Activation, Edit, Expects},
    },
    templates::{Catalogue, CompiledTemplate},
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    daemon::{ADMIN_TOKEN, Daemon, VIEWER_TOKEN},
    database::Database,
    installation::Installation,
    mail::Mail,
    relay::{Act, Rule},
    requests::{templates, ticket},
    stopwatch::Stopwatch,
    wait::until,
};

const KEY: &str = "support_ticket_created";
const TICKET: &str = "/api/v1/email/templates/support_ticket_created";
/// Nothing happens by itself within this.
const NEVER: Duration = Duration::from_secs(3600);

/// The ticket's template with a mark in every part.
fn marked(mark: &str) -> Value {
    let source = templates().iter().find(|template| template.key == KEY).expect("it is there");
    json!({
        "subject": format!("{mark} {}", source.subject),
        "html_content": source.html.replace("Merci", mark),
        "text_content": source.text.replace("Merci", mark),
    })
}

/// The mark that this mail carries in every part.
fn mark_of(mail: &Mail) -> String {
    let marks: Vec<&str> = ["mark-a", "mark-b"].into_iter().filter(|mark| mail.subject.contains(mark)).collect();
    assert_eq!(marks.len(), 1, "{}", mail.subject);
    for (name, part) in [("HTML", &mail.html), ("text", &mail.text)] {
        let other = if marks[0] == "mark-a" { "mark-b" } else { "mark-a" };
        assert!(part.contains(marks[0]) && !part.contains(other), "{name} is of another version than the subject");
    }
    marks[0].to_owned()
}

async fn in_use(daemon: &Daemon) -> Value {
    let (status, shown) = daemon.get(TICKET, VIEWER_TOKEN).await;
    assert_eq!(status, StatusCode::OK);
    shown["version_in_use"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_switch_in_the_middle_of_sending_and_mix_nothing() {
    // What waits must still wait when the new version is active, however slow the machine is.
    let post = Installation::start_with(&[("EMAIL_LADDER_STANDARD", "10s,12s")]).await;
    let other = Daemon::start(&post.variables).await;
    let (status, _) = post.daemon().put(TICKET, ADMIN_TOKEN, &marked("mark-a")).await;
    assert_eq!(status, StatusCode::CREATED);
    until("both daemons use the first version", async || in_use(&other).await == 2).await;
    // One in ten has to be tried again, after the activation.
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).whose_address_begins("again-").for_each(1));

    let publish = async |numbers: std::ops::Range<usize>| {
        let mut ids = BTreeSet::new();
        for n in numbers {
            let kind = if n % 10 == 0 { "again" } else { "once" };
            ids.insert(post.publish(&ticket(&format!("{kind}-{n}@example.bj"))).await);
        }
        ids
    };
    // How long until it is answered, and until it is in use on both.
    let activate = async |mark: &str, version: i32| {
        let watch = Stopwatch::start();
        let (status, saved) = post.daemon().put(TICKET, ADMIN_TOKEN, &marked(mark)).await;
        assert_eq!((status, &saved["version"]), (StatusCode::CREATED, &json!(version)), "{saved}");
        let answered = watch.elapsed();
        assert_eq!(in_use(post.daemon()).await, version, "in use before it is answered");
        until("the other daemon uses it", async || in_use(&other).await == version).await;
        (answered, watch.elapsed())
    };
    let before = publish(0..200).await;
    until("some are sent, some wait", async || post.relay.look(|log| log.mails.len()) >= 20).await;
    let (flood, activated) = tokio::join!(publish(200..400), activate("mark-b", 3));
    // With TEST_LOG=info it is shown.
    tracing::info!(answered = ?activated.0, in_use_on_both = ?activated.1, "an activation");
    let after = publish(400..500).await;

    // Some of them wait for ten seconds first.
    until("each is sent", async || post.relay.look(|log| log.accepted().count()) >= 500).await;
    let mails = post.mails(500).await;
    assert_eq!(mails.iter().map(|mail| mail.envelope_to.as_str()).collect::<BTreeSet<_>>().len(), 500, "each once");
    let marks: Vec<String> = mails.iter().map(mark_of).collect();
    let first_new = marks.iter().position(|mark| mark == "mark-b").expect("some are of the new version");
    let kept =
        (first_new..mails.len()).filter(|at| mails[*at].envelope_to.starts_with("again-") && marks[*at] == "mark-a");
    assert!(kept.count() > 0, "what was begun before the activation keeps its version when it is tried again");
    post.wait_until_settled().await;
    for row in post.database.all_rows().await {
        let mail = mails.iter().find(|mail| mail.envelope_to == row.recipient_email).expect("its mail");
        let version = if mark_of(mail) == "mark-a" { Some(2) } else { Some(3) };
        assert_eq!(row.template_version, version, "the audit says what was sent");
        if after.contains(&row.request_id) {
            assert_eq!(version, Some(3), "published after both had switched");
        }
    }
    assert_eq!((before.len(), flood.len(), after.len()), (200, 200, 100));
    // A service may have stood still: then it is done again, as much in the middle of sending, and the fastest counts.
    let mut other_came_after = activated.1 - activated.0;
    for (mark, version, numbers) in [("mark-c", 4, 500..700), ("mark-d", 5, 700..900)] {
        if other_came_after >= Duration::from_secs(1) {
            let (_, again) = tokio::join!(publish(numbers), activate(mark, version));
            other_came_after = other_came_after.min(again.1 - again.0);
        }
    }
    assert!(other_came_after < Duration::from_secs(1), "the other daemon took {other_came_after:?}");
    assert_eq!(other.stop().await, std::process::ExitCode::SUCCESS);
    post.finish().await;
}

/// A store, and a catalogue that follows it.
async fn follower(database: &Database, poll: Duration, stop: &CancellationToken) -> (Arc<Store>, Arc<Catalogue>) {
    let (store, catalogue) = (database.store(), Arc::new(Catalogue::new()));
    reload::load(&store, &catalogue, 3).await.expect("loaded");
    tokio::spawn(reload::follow(Arc::clone(&store), Arc::clone(&catalogue), 3, poll, stop.clone()));
    (store, catalogue)
}

/// Adds a version as an operator does, by another store.
async fn add(store: &Store, subject: &str) {
    let mut source = templates().iter().find(|template| template.key == KEY).expect("it is there").clone();
    source.subject = format!("{subject} {{{{ticket_number}}}}");
    let compiled = CompiledTemplate::compile(&source, 0, 3).expect("sound");
    let edit = Edit { by: "operator:ada", expects: Expects::Anything, accepted: &[] };
    let document = serde_json::to_value(&source).expect("JSON");
    let head = reload::head_of(&source, &compiled);
    let added = store.add_template(&head, &document, &source.checksum(), Activation::Always, &edit).await;
    added.expect("the database answers").expect("nothing is refused");
}

async fn uses(catalogue: &Catalogue, version: i32) {
    until(&format!("version {version} is in use"), async || {
        catalogue.active(KEY).is_some_and(|template| template.version() == version)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn being_told_is_enough_and_so_is_asking() {
    let database = Database::start().await;
    let (stop, operator) = (CancellationToken::new(), database.store());
    add(&operator, "one").await;

    let (deaf, asks) = follower(&database, Duration::from_millis(50), &stop).await;
    let (listening, told) = follower(&database, NEVER, &stop).await;
    let ear = tokio::spawn(Arc::clone(&listening).listen(stop.clone()));
    add(&operator, "two").await;
    uses(&asks, 2).await;
    uses(&told, 2).await;

    // Its connection is cut, and what happens meanwhile is made up for.
    let listeners = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and query ilike 'listen%'";
    until("somebody listens", async || {
        !sqlx::query(listeners).fetch_all(&database.pool).await.expect("an answer").is_empty()
    })
    .await;
    add(&operator, "three").await;
    uses(&told, 3).await;
    uses(&asks, 3).await;
    stop.cancel();
    ear.await.expect("it ends");
    for store in [deaf, listening, operator] {
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_cannot_be_used_here_leaves_the_one_before_it() {
    let database = Database::start().await;
    let (stop, operator) = (CancellationToken::new(), database.store());
    add(&operator, "one").await;
    let (store, catalogue) = follower(&database, Duration::from_millis(50), &stop).await;
    // As a newer release would have saved it, with a helper that this one does not know.
    for statement in [
        "insert into email_template_versions (template_key, version, source, checksum)
         select template_key, 2, jsonb_set(source, '{text}', '\"{{from_tomorrow title}}\"'), sha256('2')
         from email_template_versions where version = 1",
        "update email_templates set version = 2",
        "update template_generation set generation = generation + 1",
    ] {
        sqlx::query(statement).execute(&database.pool).await.expect("written");
    }
    let generation = store.template_generation().await.expect("an answer");
    until("it has looked", async || catalogue.generation() == generation).await;
    uses(&catalogue, 1).await;
    // What others do goes on.
    add(&operator, "three").await;
    uses(&catalogue, 3).await;
    let error = {
        sqlx::query("update email_templates set version = 2").execute(&database.pool).await.expect("written");
        reload::load(&store, &Catalogue::new(), 3).await.expect_err("a daemon does not begin so")
    };
    assert!(error.to_string().contains("from_tomorrow") && error.to_string().contains("version 2"), "{error}");
    stop.cancel();
    for store in [store, operator] {
        store.close().await;
    }
}
