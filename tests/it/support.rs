//! What the tests stand on.

#![expect(
    unreachable_pub,
    reason = "nothing is reachable from outside a test binary; `pub` says what is meant for the tests"
)]

/// A relay that misbehaves on command.
pub mod relay;

/// Certificates for such a relay.
pub mod authority;

/// A virtual host of one's own on a real RabbitMQ.
pub mod broker;

/// A database of one's own on a real PostgreSQL.
pub mod database;

/// What the audit says.
pub mod audit;

/// Who has which place under a cap, and days that pass.
pub mod caps;

/// Somebody who listens to events.
pub mod events;

/// What the API's description says of an answer.
pub mod description;

/// The daemon in this process.
pub mod daemon;

/// The real binary: as a daemon that gets signals, and as a command line.
pub mod process;

/// A service manager, as far as a daemon can tell.
pub mod manager;

/// The programs of deploy/producers.
pub mod producers;

/// Requests to publish.
pub mod requests;

/// Where files lie: a web server and an S3 that misbehave on command.
pub mod files;

/// Mails as a person's mail program reads them.
pub mod mail;

/// Broker, database, relay and daemon together: what most tests begin with.
pub mod installation;

/// A port that nobody else gets while a test wants nobody to listen at it.
pub mod port;

/// A line to the broker that can be cut.
pub mod proxy;

/// A server that speaks TLS before one that does not.
pub mod tls_front;

/// A line to the broker that loses what it is told to.
pub mod frames;

/// What Amazon SES tells.
pub mod ses;

/// A signer that is not our own code, in SNS's place.
pub mod sns;

/// The public listener, and the places that it may ask.
pub mod webhook;

/// The same for people who unsubscribe.
pub mod public;

/// A person, in whatever holds bytes.
pub mod traces;

/// Retention at any time.
pub mod retention;

/// Somebody who takes traces and metrics.
pub mod collector;

/// A real browser.
pub mod browser;

/// Bytes to a listener, as no HTTP library would send them.
pub mod raw;

/// The admin's pages, without a browser.
pub mod pages;

/// Waiting for something to become true.
pub mod wait;

/// How long something took, on a machine that stands still now and then.
pub mod stopwatch;

/// A variable that names a service.
pub fn service(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set, so there is no service to test on: run ./deploy/dev test"))
}

/// A short name that no other test has.
fn unique_name() -> String {
    format!("it_{}", &uuid::Uuid::new_v4().simple().to_string()[..16])
}

/// Cleans up after a test, passed or failed, in the middle of whatever its runtime does.
fn clean_up<F: Future<Output = ()> + Send>(work: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let cleaning = scope.spawn(|| {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
                let patience = std::time::Duration::from_secs(20);
                let _ = runtime.block_on(async { tokio::time::timeout(patience, work()).await });
            }
        });
        // What is left behind harms no other test.
        let _ = cleaning.join();
    });
}
