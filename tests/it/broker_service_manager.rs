//! Under systemd: ready when mail is carried, alive while it goes round, stopping when told so.

use std::time::Duration;

use crate::support::{
    installation::Installation, manager::Manager, process::DaemonProcess, proxy::Proxy, requests::ticket, wait::until,
};

/// The watchdog's period, of which a machine that stands still for some seconds leaves enough.
const PERIOD: Duration = Duration::from_secs(9);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_says_ready_when_it_consumes_feeds_the_watchdog_and_says_when_it_stops() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.broker.url()).await;
    line.cut().await;
    let manager = Manager::start();
    let (socket, period) = (manager.socket(), PERIOD.as_micros().to_string());
    post.set(&[
        ("AMQP_URL", &line.url(post.broker.url())),
        ("NOTIFY_SOCKET", socket.to_str().expect("UTF-8")),
        ("WATCHDOG_USEC", &period),
    ]);
    let mut daemon = DaemonProcess::start(&post.variables);

    // The broker is away: it says so, lives, and is not ready.
    manager.wait_for_status("broker: ").await;
    manager.wait_for("WATCHDOG=1", 3).await;
    assert_eq!(manager.count("READY=1"), 0, "{:?}", manager.told());
    assert_eq!(post.broker.depth("email.standard").await, None, "and nothing is declared yet");

    line.mend().await;
    manager.wait_for("READY=1", 1).await;
    for queue in ["email.fast", "email.standard", "email.bulk"] {
        assert_eq!(post.broker.depth(queue).await.map(|depth| depth.consumers), Some(1), "{queue}");
    }
    manager.wait_for_status("carrying mail").await;

    // Again without a broker: told, and no reason to be killed.
    line.cut().await;
    let fed = manager.count("WATCHDOG=1");
    until("the loss is told", async || {
        let told = manager.told();
        told.last().is_some()
            && told
                .iter()
                .rev()
                .find(|told| told.words.starts_with("STATUS="))
                .is_some_and(|told| told.words.contains("not ready"))
    })
    .await;
    manager.wait_for("WATCHDOG=1", fed + 3).await;
    line.mend().await;
    post.publish(&ticket("after@example.bj")).await;
    post.relay.wait_for_mails(1).await;

    daemon.terminate();
    assert_eq!(daemon.wait().await.code(), Some(0), "{}", daemon.log());
    let told = manager.told();
    assert_eq!(manager.count("READY=1"), 1, "{told:?}");
    assert_eq!(manager.count("STOPPING=1"), 1, "{told:?}");
    let ready = told.iter().position(|told| told.words == "READY=1").expect("it was told");
    let stopping = told.iter().position(|told| told.words == "STOPPING=1").expect("it was told");
    assert!(ready < stopping);
    // systemd kills after a whole period without a word.
    let fed: Vec<_> = told[..stopping].iter().filter(|told| told.words == "WATCHDOG=1").map(|told| told.at).collect();
    let longest = fed.windows(2).map(|pair| pair[1] - pair[0]).max().expect("it was fed");
    assert!(longest < PERIOD, "the watchdog was not fed for {longest:?}");
}
