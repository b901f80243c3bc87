//! A relay that throttles is slowed down, once a wave, and only that relay.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use postrider::{
    email::{EmailAddress, Lane, Outcome, Phase, SendReport},
    smtp::{OutgoingMail, Relays, classify},
};
use tokio::task::JoinSet;

use crate::{
    smtp_relays::{all_accepted, send_in},
    smtp_session::{relays, send},
    support::relay::{Act, Relay, Rule, smtp_config},
};

const MESSAGE: &[u8] = b"Subject: x\r\n\r\ny\r\n";
const THROTTLED: &str = "454 Throttling failure: Maximum sending rate exceeded.";

fn pace(relays: &Relays) -> Option<f64> {
    relays.health()[0].mails_per_second
}

#[track_caller]
fn assert_throttled(report: &SendReport) {
    assert!(matches!(classify(report), Outcome::Deferred { counted: false, .. }), "{report:?}");
}

#[tokio::test]
async fn whatever_a_relay_says_to_slow_us_down_slows_it_down() {
    for (phase, reply) in [
        (Phase::FinalDot, THROTTLED),
        (Phase::Mail, "451 4.7.1 rate limit exceeded"),
        (Phase::Rcpt, "450 4.7.0 too many messages"),
        (Phase::Data, "454 4.7.0 not so fast"),
    ] {
        let relay = Relay::start().await;
        let relays = relays(&relay.smtp_config());
        relay.script(Rule::at(phase, Act::reply(reply)).once());
        assert_throttled(&send(&relays, "a@example.bj", MESSAGE).await);
        assert_eq!(pace(&relays), Some(1.0), "{reply} at {phase}");
        assert_eq!((relays.health()[0].throttled, relays.health()[0].state_name()), (1, "paced"));
    }
}

#[tokio::test]
async fn a_relay_that_ends_a_long_service_is_not_slowed_down() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    relay.script(Rule::at(Phase::Mail, Act::reply("421 4.4.2 idle for too long")).once());
    assert_throttled(&send(&relays, "a@example.bj", MESSAGE).await);
    assert_eq!((pace(&relays), relays.health()[0].state_name()), (None, "up"));
}

#[tokio::test]
async fn a_wave_of_throttling_answers_slows_a_relay_down_once() {
    let relay = Relay::start().await;
    let mut config = relay.smtp_config();
    config.connections.standard = 20;
    let relays = relays(&config);
    relay.script(Rule::at(Phase::FinalDot, Act::reply(THROTTLED)));
    // All are let go before the first is throttled.
    let places = join_all((0..20).map(|_| relays.place(Lane::Standard))).await;
    let address = EmailAddress::parse("a@example.bj").expect("valid");
    let mail = || OutgoingMail::new(address.clone(), address.clone(), MESSAGE);
    let wave = join_all(places.into_iter().map(|place| place.send(mail()))).await;
    wave.iter().for_each(|sent| assert_throttled(&sent.report));
    assert_eq!((pace(&relays), relays.health()[0].throttled), (Some(1.0), 20));
    // One that went at the new pace, and was throttled all the same.
    assert_throttled(&send(&relays, "a@example.bj", MESSAGE).await);
    assert_eq!(pace(&relays), Some(0.5));
    // The first that is taken brings it back to a mail a second, and further ones beyond.
    relay.behave();
    for _ in 0..2 {
        assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    }
    assert!(pace(&relays).is_some_and(|pace| pace > 1.0), "{:?}", pace(&relays));
}

#[tokio::test]
async fn a_paced_relay_gets_an_incident_at_once_and_the_rest_in_its_time() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    relay.script(Rule::at(Phase::Rcpt, Act::reply(THROTTLED)).once());
    assert_throttled(&send(&relays, "a@example.bj", MESSAGE).await);
    let said = relay.log().said;
    let throttled_at = said.iter().find(|said| said.line.starts_with("454")).expect("it throttled").at;

    let mut others = JoinSet::new();
    others.spawn(send_in(Arc::clone(&relays), Lane::Bulk));
    others.spawn(send_in(Arc::clone(&relays), Lane::Standard));
    assert!(all_accepted(&[send_in(Arc::clone(&relays), Lane::Fast).await]));
    assert!(all_accepted(&others.join_all().await));
    let log = relay.log();
    let waited: Vec<_> = log.accepted().map(|mail| mail.begun_at - throttled_at).collect();
    // The incident's own second is made up for by the others.
    assert!(waited[1] >= Duration::from_millis(1900), "{waited:?}");
    assert!(waited[2] > waited[1], "{waited:?}");
}

#[tokio::test]
async fn the_next_relay_takes_what_the_first_is_not_due_to_get() {
    let (first, second) = (Relay::start().await, Relay::start().await);
    let relays = relays(&smtp_config(vec![first.config(), second.config()]));
    first.script(Rule::at(Phase::Rcpt, Act::reply(THROTTLED)).once());
    assert_throttled(&send(&relays, "a@example.bj", MESSAGE).await);
    let mut mails = JoinSet::new();
    for _ in 0..20 {
        mails.spawn(send_in(Arc::clone(&relays), Lane::Standard));
    }
    assert!(all_accepted(&mails.join_all().await));
    let (by_first, by_second) = (first.log().accepted().count(), second.log().accepted().count());
    assert_eq!(by_first + by_second, 20);
    assert!(by_second > by_first, "{by_first} went by the relay that throttles");
    // Its turn comes again.
    while first.log().accepted().count() == by_first {
        assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    }
}
