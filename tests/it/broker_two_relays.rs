//! With two relays a mail goes by the second in the same delivery, once, if the first cannot have taken it; else never.

use postrider::email::Phase;
use reqwest::StatusCode;
use tempfile::TempDir;

use crate::support::{
    installation::Installation,
    relay::{Act, Relay, Rule},
    requests::ticket,
};

/// An installation with a second relay behind the first.
struct Two {
    post: Installation,
    second: Relay,
    _settings: TempDir,
}

impl Two {
    async fn start() -> Self {
        let (mut post, second) = tokio::join!(Installation::prepare(&[]), Relay::start());
        let settings = TempDir::new().expect("a folder");
        let file = settings.path().join("postrider.toml");
        let relays = [("first", post.relay.port()), ("second", second.port())].map(|(name, port)| {
            format!("[[relays]]\nname = \"{name}\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"plain\"\n")
        });
        std::fs::write(&file, relays.concat()).expect("a file");
        post.set(&[
            ("SMTP_HOST", ""),
            ("SMTP_PORT", ""),
            ("SMTP_USE_TLS", ""),
            ("POSTRIDER_CONFIG", file.to_str().expect("UTF-8")),
        ]);
        post.start_daemon().await;
        Self { post, second, _settings: settings }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_relay_refuses_before_the_final_dot_goes_by_the_second_at_once() {
    for (phase, act) in [
        (Phase::Mail, Act::reply("421 4.3.2 closing down")),
        (Phase::Mail, Act::reply("454 4.7.0 too many messages")),
        (Phase::Mail, Act::reply("530 5.7.0 authentication required")),
        (Phase::Mail, Act::Disconnect),
        (Phase::Rcpt, Act::reply("450 4.7.1 rate limit exceeded")),
        (Phase::Data, Act::reply("421 4.3.2 closing down")),
    ] {
        let Two { post, second, _settings } = Two::start().await;
        post.relay.script(Rule::at(phase, act.clone()).once());
        let request = post.publish(&ticket("ada@example.bj")).await;
        let row = post.database.wait_for(request, "sent").await.remove(0);
        assert_eq!(row.attempts, 1, "{act:?} at {phase}");
        let kinds: Vec<_> = post.database.timeline(row.id).await.into_iter().map(|line| line.kind).collect();
        assert_eq!(kinds, ["sent"], "{act:?} at {phase}: in one delivery");
        assert_eq!((post.relay.log().transactions, post.relay.log().mails.len()), (1, 0), "{act:?} at {phase}");
        assert_eq!((second.log().transactions, second.log().accepted().count()), (1, 1), "{act:?} at {phase}");
        post.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_relays_refuse_is_put_off_and_burns_no_try() {
    let Two { post, second, _settings } = Two::start().await;
    for relay in [&post.relay, &second] {
        relay.script(Rule::at(Phase::Rcpt, Act::reply("450 4.7.1 rate limit exceeded")).once());
    }
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    assert_eq!(row.attempts, 1);
    let kinds: Vec<_> = post.database.timeline(row.id).await.into_iter().map(|line| line.kind).collect();
    assert_eq!(kinds, ["deferred", "sent"]);
    assert_eq!(post.relay.log().accepted().count() + second.log().accepted().count(), 1);
    assert_eq!(post.relay.log().transactions + second.log().transactions, 3, "each refused it once");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_relay_may_have_taken_does_not_go_by_the_second_in_that_delivery() {
    let Two { post, second, _settings } = Two::start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).once());
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let kinds: Vec<_> = post.database.timeline(row.id).await.into_iter().map(|line| line.kind).collect();
    // Only the template's policy sends it again, later and with the same Message-ID.
    assert_eq!(kinds, ["unknown", "sent"]);
    assert_eq!(row.attempts, 2);
    assert_eq!((post.relay.log().mails.len(), second.log().transactions), (2, 0));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_refuses_for_good_is_not_tried_at_the_next() {
    let Two { post, second, _settings } = Two::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")));
    let request = post.publish(&ticket("ada@example.bj")).await;
    assert_eq!(post.database.wait_for_letter(request).await.reason, "rejected");
    assert_eq!(second.log().connections, 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_relay_that_works_is_enough_and_the_other_is_shown() {
    let Two { post, second, _settings } = Two::start().await;
    let (status, said) = post.daemon().readiness().await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&said["relays"][0]["state"], &said["relays"][1]["state"]), (&"untried".into(), &"untried".into()));
    post.relay.refuse_connections().await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    assert_eq!((row.attempts, second.log().accepted().count()), (1, 1));

    let (status, said) = post.daemon().readiness().await;
    assert_eq!((status, &said["reasons"]), (StatusCode::OK, &serde_json::json!([])));
    let [first, other] = [&said["relays"][0], &said["relays"][1]];
    assert_eq!(
        (&first["name"], &first["state"], &first["fault"]),
        (&"first".into(), &"down".into(), &"refused".into())
    );
    assert_eq!((&other["name"], &other["state"], &other["fault"]), (&"second".into(), &"up".into(), &().into()));
    let daemon = post.daemon();
    assert_eq!(daemon.metric("email_relay_up", &["relay=\"first\""]).await, 0.0);
    assert_eq!(daemon.metric("email_relay_up", &["relay=\"second\""]).await, 1.0);
    assert!(daemon.metric("email_relay_faults_total", &["relay=\"first\"", "fault=\"refused\""]).await >= 1.0);
    assert_eq!(daemon.metric("email_relay_faults_total", &["relay=\"second\""]).await, 0.0);

    // Probing finds that it is back, and mail goes there again.
    post.relay.take_connections().await;
    post.relay.wait_until("a probe", |log| log.was_told("QUIT")).await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    assert_eq!((post.relay.log().accepted().count(), second.log().accepted().count()), (1, 1));
    post.finish().await;
}
