//! `postrider health`, as containers run it.

use crate::support::{
    daemon::Variables,
    installation::Installation,
    port::Port,
    process::{DaemonProcess, Said, postrider},
    proxy::Proxy,
    wait::{until, until_some},
};

/// With patience enough for a slow machine.
async fn health(asking: &Variables, more: &[&str]) -> Said {
    postrider(asking, &[&["health", "--timeout", "20"], more].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_says_whether_the_daemon_lives_and_whether_it_is_ready_and_why_not() {
    let mut post = Installation::prepare(&[]).await;
    let line = Proxy::start(post.broker.url()).await;
    line.cut().await;
    let port = Port::reserve();
    let free = port.address();
    post.set(&[("AMQP_URL", &line.url(post.broker.url()))]);
    let mut asking = post.variables.clone();
    // On every interface, as in a container; asked over loopback.
    asking.insert("ADMIN_ADDR".to_owned(), format!("0.0.0.0:{}", free.port()));

    let said = health(&asking, &[]).await;
    assert_eq!(said.code, 1, "nobody is there: {said:?}");
    assert!(said.err.contains("ADMIN_ADDR") && said.err.contains(&free.port().to_string()), "{said:?}");

    let mut daemon = DaemonProcess::start_at(&asking, &format!("127.0.0.1:{}", free.port()));
    until("it lives", async || health(&asking, &[]).await.code == 0).await;
    let said = until_some("a reason", async || {
        let said = health(&asking, &["--ready"]).await;
        said.out.contains("broker").then_some(said)
    })
    .await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.lines().all(|line| line.starts_with("not ready: ")), "{said:?}");
    assert_eq!(health(&asking, &[]).await.out, "alive\n", "that is no reason to be restarted");

    line.mend().await;
    until("it is ready", async || health(&asking, &["--ready"]).await.code == 0).await;
    let paused = postrider(&post.variables, &["lanes", "pause", "bulk", "--note", "a test"]).await;
    assert_eq!(paused.code, 0, "{paused:?}");
    let said = until_some("the pause", async || {
        let said = health(&asking, &["--ready"]).await;
        said.out.contains("paused").then_some(said)
    })
    .await;
    assert_eq!((said.code, said.out.as_str()), (0, "ready\nlane bulk is paused by an operator\n"));
    let said = health(&asking, &["--ready", "--json"]).await.json();
    assert_eq!((&said["ready"], &said["paused"][0]), (&true.into(), &"bulk".into()));

    // A program that hangs answers nobody.
    daemon.suspend();
    let said = postrider(&asking, &["health", "--timeout", "1"]).await;
    assert!(said.code == 1 && said.err.contains("no answer within 1000 ms"), "{said:?}");
    daemon.kill();
}
