//! A cap is exact across daemons, batches, redeliveries and deaths: nobody gets two, and nobody goes without but those whose mail
//! is held because nobody knows whether it went out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::support::{
    installation::Installation,
    process::DaemonProcess,
    requests::announcement,
    wait::{WAIT_MAX, until},
};

const DAEMONS: usize = 4;
/// Requests for each person.
const EACH: usize = 10;
/// Where daemons die, one after the other, and at which passage; nothing: by a signal from outside.
const DEATHS: [Option<(&str, usize)>; 12] = [
    Some(("claimed", 30)),
    None,
    Some(("outcome_due", 8)),
    Some(("copy_due", 20)),
    Some(("send", 10)),
    None,
    Some(("outcome_committed", 6)),
    Some(("copy_confirmed", 30)),
    Some(("final_dot", 5)),
    Some(("ack_due", 50)),
    Some(("rendered", 70)),
    None,
];

/// Persons; `TEST_FULL` asks for as many as a campaign has.
fn persons() -> usize {
    if std::env::var_os("TEST_FULL").is_some() { 1000 } else { 100 }
}

/// Mails that are over, and those of persons of whose mail nobody knows whether it went out: these may wait.
async fn over_or_held(post: &Installation) -> usize {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from email_messages m where status not in ('queued', 'sending', 'unknown') or exists (
            select from email_messages h where h.recipient_hash = m.recipient_hash and h.status = 'unknown' and h.held)",
    )
    .fetch_one(&post.database.pool)
    .await
    .expect("an answer");
    usize::try_from(count).expect("a count")
}

/// A daemon that is to die, and how many mails are over when it is killed if it does not do so itself.
struct Doomed {
    daemon: DaemonProcess,
    at: Option<usize>,
}

fn doomed(post: &Installation, death: Option<Option<(&str, usize)>>, over: usize) -> Doomed {
    let mut variables = post.variables.clone();
    if let Some(Some((point, passage))) = death {
        variables.insert("POSTRIDER_DIE_AT".to_owned(), format!("{point}#{passage}"));
    }
    Doomed { daemon: DaemonProcess::start(&variables), at: (death == Some(None)).then_some(over + 20) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_daemons_that_are_killed_over_and_over_give_each_person_one_mail_that_day() {
    let zone = crate::support::caps::noon_zone();
    let mut post = Installation::prepare(&[("EMAIL_LEASE_SECONDS", "2"), ("EMAIL_TIMEZONE", &zone)]).await;
    post.declare_queues().await;
    let (persons, total) = (persons(), persons() * EACH);
    // Half of them one after the other, for the same batch; half of them far apart.
    let person = |n: usize| if n < total / 2 { n / (EACH / 2) } else { n % persons };
    let requests: Vec<_> = (0..total).map(|n| announcement(&format!("person{}@example.bj", person(n)))).collect();
    let begun = Instant::now();
    post.broker.publish_all(&requests).await;
    let published = begun.elapsed();

    let begun = Instant::now();
    let mut deaths = DEATHS.iter().copied().cycle().take(DEATHS.len() * (persons / 100).min(4));
    let mut daemons: Vec<Doomed> = (0..DAEMONS).map(|_| doomed(&post, deaths.next(), 0)).collect();
    let (mut died, mut seen, mut since) = (0, 0, Instant::now());
    loop {
        let over = over_or_held(&post).await;
        for one in &mut daemons {
            if one.at.is_some_and(|at| over >= at) {
                one.daemon.kill();
            }
            if one.daemon.has_ended() {
                died += 1;
                *one = doomed(&post, deaths.next(), over);
            }
        }
        if over == total {
            break;
        }
        if over != seen {
            (seen, since) = (over, Instant::now());
        }
        assert!(since.elapsed() < 2 * WAIT_MAX, "{over} of {total} are over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = begun.elapsed();
    assert!(died >= DAEMONS, "only {died} daemons died");

    let rows = post.database.all_rows().await;
    assert_eq!(rows.len(), total, "nothing is lost, and nothing is there twice");
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for mail in post.relay.log().accepted() {
        *taken.entry(mail.to[0].clone()).or_default() += 1;
    }
    let twice: Vec<_> = taken.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "more than one: {twice:?}");
    let held: BTreeSet<_> = rows.iter().filter(|row| row.held).map(|row| row.recipient_email.clone()).collect();
    let mut by_person: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for row in &rows {
        *by_person.entry(&row.recipient_email).or_default().entry(&row.status).or_default() += 1;
    }
    for (person, counts) in &by_person {
        let of = |status: &str| counts.get(status).copied().unwrap_or(0);
        if held.contains(*person) {
            assert_eq!((of("unknown"), of("sent"), of("rate_limited")), (1, 0, 0), "{person}: {counts:?}");
        } else {
            assert_eq!((of("sent"), of("rate_limited")), (1, EACH - 1), "{person}: {counts:?}");
            assert_eq!(taken.get(*person), Some(&1), "{person}");
        }
    }
    assert_eq!(post.database.places().await.len(), persons, "one place a person, held ones included");

    // These are to live.
    drop(daemons);
    let _daemons: Vec<Doomed> = (0..DAEMONS).map(|_| doomed(&post, None, 0)).collect();
    // The operator has those that are held sent again: whoever waited behind them is over the cap then.
    until("their letters are there", async || post.database.letters().await.len() == held.len()).await;
    if !held.is_empty() {
        post.run(&["dead", "replay", "--all", "--yes", "--rate", "1000", "--json"]).await.json();
    }
    until("everybody has one", async || post.database.count("sent").await == persons).await;
    // Behind one that was held for minutes they look again only after minutes.
    sqlx::query("update email_messages set due_at = now() where status = 'queued'")
        .execute(&post.database.pool)
        .await
        .expect("their time has come");
    until("all others are over", async || post.database.count("rate_limited").await == total - persons).await;
    assert_eq!(post.database.places().await.len(), persons);
    post.wait_until_idle().await;
    tracing::info!(
        "{total} requests for {persons} persons published in {published:.1?}; over in {took:.1?} ({:.0} a second) with {DAEMONS} \
         daemons at a time, {died} of which died; held: {}; persons served before the held ones were sent again: {}",
        total as f64 / took.as_secs_f64(),
        held.len(),
        taken.len()
    );
}
