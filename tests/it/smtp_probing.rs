//! A relay that takes connections and then fails every mail is asked more and more rarely, by few, and used again when
//! it works.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use postrider::{
    config::{RelayCredentials, SmtpConfig},
    email::{Lane, Phase, SendReport},
    smtp::{RelayFault, RelayState, Relays},
};
use secrecy::SecretString;
use tokio::task::JoinSet;

use crate::{
    smtp_relays::send_in,
    smtp_session::relays,
    support::{
        authority::Authority,
        relay::{Act, Offer, Relay, RelayLog, Rule},
    },
};

/// Mails that are tried until they are taken, at once and without a pause, which no lane would do.
fn hasty(relays: &Arc<Relays>) -> JoinSet<()> {
    let mut mails = JoinSet::new();
    for _ in 0..20 {
        let relays = Arc::clone(relays);
        mails.spawn(async move {
            loop {
                let report = Box::pin(send_in(Arc::clone(&relays), Lane::Standard)).await;
                if matches!(report, SendReport::Accepted { .. }) {
                    return;
                }
            }
        });
    }
    mails
}

/// When each connection was greeted, from the n-th on.
fn greeted_at(log: &RelayLog, from: usize) -> Vec<Instant> {
    let greetings = log.said.iter().filter(|said| said.by_relay && said.line.starts_with("220 relay.test"));
    greetings.skip(from).map(|said| said.at).collect()
}

/// Waits for three probes after the first failures, which are one for each connection of the lane.
async fn assert_probed_rarely(relay: &Relay, relays: &Relays, fault: RelayFault) {
    const FIRST: usize = 2;
    relay.wait_until("three probes", |log| greeted_at(log, FIRST).len() >= 3).await;
    let probes = greeted_at(&relay.log(), FIRST);
    // Half of 0.5 s, 1 s, 2 s at least; the first pause began with the first failure.
    assert!(probes[1] - probes[0] >= Duration::from_millis(490), "{}", relay.log().dialogue());
    assert!(probes[2] - probes[1] >= Duration::from_millis(990), "{}", relay.log().dialogue());
    let state = relays.health().remove(0).state;
    assert!(matches!(&state, RelayState::Down { error, .. } if error.fault == fault), "{state:?}");
}

#[tokio::test]
async fn a_relay_that_refuses_starttls_is_probed_rarely() {
    let authority = Authority::for_host("localhost");
    let relay = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    relay.script(Rule::at(Phase::StartTls, Act::reply("454 4.7.0 TLS not available")));
    let relays = relays(&authority.trusted(&relay));
    let mails = hasty(&relays);
    assert_probed_rarely(&relay, &relays, RelayFault::Tls).await;
    relay.behave();
    mails.join_all().await;
    assert_eq!(relay.log().accepted().count(), 20);
}

#[tokio::test]
async fn a_relay_whose_certificate_has_expired_is_probed_rarely() {
    let authority = Authority::with_expired_certificate("localhost");
    let relay = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    let relays = relays(&authority.trusted(&relay));
    let _mails = hasty(&relays);
    assert_probed_rarely(&relay, &relays, RelayFault::Tls).await;
    assert!(!relay.log().was_told("MAIL"));
}

#[tokio::test]
async fn a_relay_that_does_not_take_our_credentials_is_probed_rarely() {
    let relay = Relay::with(Offer { credentials: Some(("user".into(), "secret".into())), ..Offer::default() }).await;
    let mut config: SmtpConfig = relay.smtp_config();
    let password = SecretString::from("outdated");
    config.relays[0].credentials = Some(RelayCredentials { user: "user".into(), password });
    let relays = relays(&config);
    let _mails = hasty(&relays);
    // An account that is asked too often with a wrong password gets locked.
    assert_probed_rarely(&relay, &relays, RelayFault::Auth).await;
    assert!(!relay.log().was_told("MAIL"));
}

#[tokio::test]
async fn a_relay_that_greets_well_and_ends_every_mail_gets_few_of_them() {
    for act in [Act::reply("421 4.3.2 not now"), Act::Disconnect] {
        let relay = Relay::start().await;
        relay.script(Rule::at(Phase::Mail, act));
        let relays = relays(&relay.smtp_config());
        let mails = hasty(&relays);
        // Only a probe says goodbye: what it finds is a relay that works.
        let probes = |log: &RelayLog| log.said.iter().filter(|said| !said.by_relay && said.line == "QUIT").count();
        relay.wait_until("three probes", |log| probes(log) >= 3).await;
        let log = relay.log();
        let quits: Vec<_> = log.said.iter().filter(|said| said.line == "QUIT").map(|said| said.at).collect();
        assert!(quits[1] - quits[0] >= Duration::from_millis(490), "{}", log.dialogue());
        assert!(quits[2] - quits[1] >= Duration::from_millis(990), "{}", log.dialogue());
        // Both connections of the lane find it out once, then no more than a trial's three after each probe.
        assert!(log.transactions <= 2 + 3 * 3, "{}", log.dialogue());
        relay.behave();
        mails.join_all().await;
        assert_eq!(relay.log().accepted().count(), 20);
    }
}
