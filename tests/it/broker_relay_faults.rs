//! A relay that cannot be used is the platform's fault: named in readiness and metrics, no try is burnt, no mail is lost.

use std::sync::Arc;

use postrider::email::Phase;
use reqwest::StatusCode;

use crate::support::{
    authority::Authority,
    installation::Installation,
    relay::{Act, Offer, Relay, Rule},
    requests::{id, ticket},
    wait::{until, until_some},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_keeps_a_relay_from_being_used_is_named_and_burns_no_try() {
    let mut post = Installation::prepare(&[]).await;
    let good_port = post.relay.port().to_string();

    let nobody = Relay::start().await;
    nobody.refuse_connections().await;
    let authority = Authority::with_expired_certificate("localhost");
    let expired = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    let strict = Relay::with(Offer { credentials: Some(("user".into(), "secret".into())), ..Offer::default() }).await;
    let refusing = Relay::start().await;
    refusing.script(Rule::at(Phase::Greeting, Act::reply("554 5.7.1 go away")));
    let busy = Relay::start().await;
    busy.script(Rule::at(Phase::Greeting, Act::reply("421 4.3.2 too busy")));
    let [nobody_port, expired_port, strict_port, refusing_port, busy_port] =
        [&nobody, &expired, &strict, &refusing, &busy].map(|relay| relay.port().to_string());
    let ca = authority.file();
    let ca = ca.to_str().expect("UTF-8");

    let faults: [(&str, &[(&str, &str)]); 8] = [
        ("dns", &[("SMTP_HOST", "relay.invalid")]),
        ("refused", &[("SMTP_PORT", &nobody_port)]),
        (
            "tls",
            &[("SMTP_HOST", "localhost"), ("SMTP_PORT", &expired_port), ("SMTP_USE_TLS", "true"), ("SMTP_CA_FILE", ca)],
        ),
        ("no_starttls", &[("SMTP_USE_TLS", "true")]),
        ("auth", &[("SMTP_PORT", &strict_port), ("SMTP_USER", "user"), ("SMTP_PASSWORD", "outdated")]),
        // It wants credentials, and there are none.
        ("auth", &[("SMTP_PORT", &strict_port)]),
        ("greeting", &[("SMTP_PORT", &refusing_port)]),
        ("busy", &[("SMTP_PORT", &busy_port)]),
    ];
    let usual = [
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", &good_port),
        ("SMTP_USE_TLS", "false"),
        ("SMTP_CA_FILE", ""),
        ("SMTP_USER", ""),
        ("SMTP_PASSWORD", ""),
    ];
    let mut requests = Vec::new();
    for (fault, settings) in faults {
        post.set(&usual);
        post.set(settings);
        // Once it takes up what is left of the round before, it is not ready any more.
        if requests.is_empty() {
            post.start_daemon().await;
        } else {
            post.launch_daemon().await;
        }
        let request = ticket("a@example.bj");
        requests.push(post.publish(&request).await);
        // Mails are still under way to it, or wait; either way it is known by its name.
        let reason = post.daemon().wait_until_not_ready(&format!(": {fault}: ")).await;
        assert!(reason.starts_with("relay "), "{reason}");
        // A relay that greets well and fails every mail is up for a moment whenever a probe gets through.
        let said = until_some(&format!("the relay is down: {fault}"), async || {
            let relay = post.daemon().readiness().await.1["relays"][0].clone();
            (relay["state"] == "down" && relay["fault"] == fault).then_some(relay)
        })
        .await;
        assert!(said["since"].is_string() && said["retry_at"].is_string() && said["name"].is_string(), "{said}");
        assert!(said["error"].as_str().is_some_and(|words| reason.ends_with(words)), "{reason}: {said}");
        let label = format!("fault=\"{fault}\"");
        assert!(post.daemon().metric("email_relay_faults_total", &[&label]).await >= 1.0, "{fault}");
        until("the gauge shows it", async || post.daemon().metric("email_relay_up", &[]).await == 0.0).await;
        post.stop_daemon().await;
        assert!(post.database.all_rows().await.iter().all(|row| row.attempts == 0), "{fault}");
    }

    post.set(&usual);
    post.start_daemon().await;
    for request in requests {
        let row = post.database.wait_for(request, "sent").await.remove(0);
        assert_eq!(row.attempts, 1);
    }
    assert_eq!(post.relay.log().mails.len(), faults.len(), "each went once");
    let (status, said) = post.daemon().readiness().await;
    assert_eq!((status, &said["relays"][0]["state"]), (StatusCode::OK, &"up".into()), "{said}");
    assert_eq!(post.daemon().metric("email_relay_up", &[]).await, 1.0);
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_closes_at_any_step_burns_no_try_and_gets_each_mail_once() {
    let post = Installation::start().await;
    for (number, phase) in
        [Phase::Greeting, Phase::Ehlo, Phase::Mail, Phase::Rcpt, Phase::Data, Phase::FinalDot].into_iter().enumerate()
    {
        // Whatever connections there are, they end; so the greeting comes into it too.
        post.relay.cut_connections();
        post.relay.wait_until("all are cut", |log| log.connections_open == 0).await;
        post.relay.script(Rule::at(phase, Act::reply("421 4.3.2 closing down")).times(2));
        let request = ticket("a@example.bj");
        post.publish(&request).await;
        let row = post.database.wait_for(id(&request), "sent").await.remove(0);
        assert_eq!(row.attempts, 1, "{phase}");
        assert_eq!(post.relay.log().accepted().count(), number + 1, "{phase}");
        let said_421 = post.relay.log().said.iter().filter(|said| said.line.starts_with("421")).count();
        assert_eq!(said_421, (number + 1) * 2, "{phase}");
        let lines = post.database.timeline(row.id).await;
        assert!(lines.iter().all(|line| line.attempt <= 1), "{phase}: {lines:?}");
    }
    assert!(post.database.letters().await.is_empty());
    until("it is up", async || post.daemon().readiness().await.1["relays"][0]["fault"].is_null()).await;
    post.finish().await;
}
