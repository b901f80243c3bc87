//! A new version comes in, is taken back and comes in again, while mail goes on: nothing is lost, nothing is sent twice.
//!
//! `./deploy/dev upgrade-test` builds the version of another commit and names it in `TEST_OLD_BINARY` (its templates in
//! `TEST_OLD_TEMPLATES`); by itself the test lets this version replace itself, which shows that daemons can be replaced.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postrider::email::Phase;

use crate::support::{
    daemon::Variables,
    database::Database,
    installation::Installation,
    port::Port,
    process::{BINARY, DaemonProcess, of_binary, postrider},
    relay::{Act, Rule},
    requests::{incident, invoice, reminder, ticket},
    wait::until,
};

/// Between two requests of the load: some two hundred a second.
const PAUSE: Duration = Duration::from_millis(5);
/// Mails that go out in each part of the way.
const PART: usize = 250;

/// The daemons of a part of the way, by whether they are of the old version.
struct Fleet {
    old_binary: String,
    old: Variables,
    new: Variables,
}

impl Fleet {
    async fn start(&self, is_old: bool) -> DaemonProcess {
        let (binary, variables) = if is_old { (self.old_binary.as_str(), &self.old) } else { (BINARY, &self.new) };
        let port = Port::reserve();
        let admin = port.address().to_string();
        let mut daemon = DaemonProcess::start_binary(binary, variables, &admin);
        let url = format!("http://{admin}/readyz");
        until("it is ready", async || {
            assert!(!daemon.has_ended(), "it has ended:\n{}", daemon.log());
            reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        daemon
    }
}

async fn stop(mut daemon: DaemonProcess) {
    daemon.terminate();
    assert_eq!(daemon.wait().await.code(), Some(0), "it finishes what it has begun:\n{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_follow_each_other_work_side_by_side_and_can_be_taken_back() {
    let mut post = Installation::prepare(&[("EMAIL_LEASE_SECONDS", "2")]).await;
    post.database = Database::without_schema().await;
    let url = post.database.url().to_owned();
    post.set(&[("DATABASE_URL", &url)]);
    let mut old = post.variables.clone();
    if let Ok(templates) = std::env::var("TEST_OLD_TEMPLATES") {
        old.insert("EMAIL_TEMPLATES_DIR".to_owned(), templates);
    }
    let old_binary = std::env::var("TEST_OLD_BINARY").unwrap_or_else(|_| BINARY.to_owned());
    let fleet = Fleet { old_binary, old, new: post.variables.clone() };
    let migrated = of_binary(&fleet.old_binary, &fleet.old, &["migrate"]).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");

    // One in ten is deferred once, so that copies wait across each change.
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("later").for_each(1));
    let first = fleet.start(true).await;
    let post = Arc::new(post);
    let (publisher, is_over) = (Arc::clone(&post), Arc::new(AtomicBool::new(false)));
    let publishing = tokio::spawn({
        let is_over = Arc::clone(&is_over);
        async move {
            let mut sent = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let n = sent.len();
                let person =
                    if n.is_multiple_of(10) { format!("later{n}@example.bj") } else { format!("n{n}@example.bj") };
                let make = [ticket, invoice, reminder, incident][n % 4];
                publisher.publish(&make(&person)).await;
                sent.push(person);
                tokio::time::sleep(PAUSE).await;
            }
            sent
        }
    });
    let accepted = || post.relay.look(|log| log.accepted().count());
    let part = async |what: &str| {
        let goal = accepted() + PART;
        until(what, async || accepted() >= goal).await;
    };
    part("the old version carries mail").await;

    // Expand, while it does.
    let migrated = postrider(&fleet.new, &["migrate"]).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");
    part("the old version carries mail on the new schema").await;
    let second = fleet.start(false).await;
    part("both carry mail").await;
    stop(first).await;
    part("the new version carries mail").await;

    // Taken back, and in again.
    let third = fleet.start(true).await;
    part("both carry mail again").await;
    stop(second).await;
    part("the old version carries mail once more").await;
    let fourth = fleet.start(false).await;
    stop(third).await;
    part("the new version carries mail to the end").await;
    is_over.store(true, Ordering::Relaxed);
    let published = publishing.await.expect("the load ends");
    post.wait_until_settled().await;
    post.wait_until_idle().await;
    stop(fourth).await;

    let mut arrived: BTreeMap<String, usize> = BTreeMap::new();
    post.relay.look(|log| {
        for mail in log.accepted() {
            *arrived.entry(mail.to[0].clone()).or_default() += 1;
        }
    });
    // Every incident also goes to the NOC.
    let noc = arrived.remove("noc@rgz.bj").expect("incidents were among them");
    assert_eq!(noc, published.iter().enumerate().filter(|(n, _)| n % 4 == 3).count());
    let lost: Vec<_> = published.iter().filter(|person| !arrived.contains_key(*person)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let repeated: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "sent twice: {repeated:?}");
    assert_eq!(arrived.len(), published.len());
    assert_eq!(post.database.count("sent").await, published.len() + noc);
    assert_eq!(post.database.letters().await.len(), 0);
}
