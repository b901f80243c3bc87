//! A relay that puts off several people's mail in a row is at fault itself; one that puts off one person is not.

use postrider::{
    email::{EmailAddress, Lane, Outcome, Phase},
    smtp::{OutgoingMail, RelayFault, RelayState, Relays},
};
use tokio::time::{Duration, timeout};

use crate::{
    smtp_session::relays,
    support::relay::{Act, Relay, Rule, smtp_config},
};

const LATER: &str = "451 4.3.0 try later";

/// Sends one mail: whether it was taken, and if not, whether that counts as a try.
async fn try_once(relays: &Relays, to: &str) -> Result<(), bool> {
    let (from, to) = (EmailAddress::parse("a@example.bj").expect("valid"), EmailAddress::parse(to).expect("valid"));
    let sending = async {
        let place = relays.place(Lane::Standard).await;
        place.send(OutgoingMail::new(from, to, "Subject: x\r\n\r\ny\r\n")).await.outcome()
    };
    match timeout(Duration::from_secs(30), Box::pin(sending)).await.expect("a place is found") {
        Outcome::Sent { .. } => Ok(()),
        Outcome::Deferred { counted, .. } => Err(counted),
        other => panic!("neither taken nor put off: {other:?}"),
    }
}

fn person(n: usize) -> String {
    format!("person{n}@example.bj")
}

#[tokio::test]
async fn several_people_put_off_in_a_row_are_the_relays_affair() {
    let cut = (Phase::Rcpt, Act::Disconnect);
    for (phase, act) in [(Phase::Rcpt, Act::reply(LATER)), (Phase::FinalDot, Act::reply(LATER)), cut] {
        let relay = Relay::start().await;
        relay.script(Rule::at(phase, act));
        let relays = relays(&relay.smtp_config());
        for n in 0..4 {
            assert_eq!(try_once(&relays, &person(n)).await, Err(true), "{n} at {phase}");
        }
        assert!(matches!(relays.health()[0].state, RelayState::Up));
        assert_eq!(try_once(&relays, &person(4)).await, Err(false));
        let state = relays.health().remove(0).state;
        assert!(matches!(&state, RelayState::Down { error, .. } if error.fault == RelayFault::Deferring), "{state:?}");
        // On trial, whoever it is.
        assert_eq!(try_once(&relays, &person(0)).await, Err(false));
        assert_eq!(relays.health()[0].state_name(), "on_trial");
        relay.behave();
        assert_eq!(try_once(&relays, &person(1)).await, Ok(()));
        assert_eq!(relays.health()[0].state_name(), "up");
        // From there on everybody is judged by what happens to them again.
        relay.script(Rule::at(Phase::Rcpt, Act::reply(LATER)).once());
        assert_eq!(try_once(&relays, &person(2)).await, Err(true));
    }
}

#[tokio::test]
async fn one_person_who_is_always_put_off_says_nothing_about_the_relay() {
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Rcpt, Act::reply("452 4.2.2 mailbox full")).to("full"));
    let relays = relays(&relay.smtp_config());
    for n in 0..8 {
        assert_eq!(try_once(&relays, "full@example.bj").await, Err(true));
        if n > 4 {
            assert_eq!(try_once(&relays, &person(n)).await, Ok(()));
        }
    }
    assert_eq!(relays.health()[0].state_name(), "up");
}

#[tokio::test]
async fn people_who_do_not_exist_show_that_the_relay_works() {
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("nobody"));
    relay.script(Rule::at(Phase::Rcpt, Act::reply(LATER)));
    let relays = relays(&relay.smtp_config());
    let nobody = EmailAddress::parse("nobody@example.bj").expect("valid");
    for n in 0..12 {
        assert_eq!(try_once(&relays, &person(n)).await, Err(true));
        if n % 4 == 3 {
            let place = relays.place(Lane::Standard).await;
            let mail = OutgoingMail::new(nobody.clone(), nobody.clone(), "\r\n");
            assert!(matches!(place.send(mail).await.outcome(), Outcome::Rejected { .. }));
        }
    }
    assert_eq!(relays.health()[0].state_name(), "up");
}

#[tokio::test]
async fn a_relay_that_puts_everybody_off_once_gets_to_the_second_tries() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    for n in 0..14 {
        relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 not yet")).to(&person(n)).once());
    }
    // All first tries before any second one, as in a queue: two trials fail before there is one.
    let mut counted = 0;
    for n in 0..14 {
        counted += usize::from(try_once(&relays, &person(n)).await == Err(true));
    }
    assert_eq!(counted, 4);
    for n in 0..14 {
        assert_eq!(try_once(&relays, &person(n)).await, Ok(()));
    }
    assert_eq!(relay.log().accepted().count(), 14);
    assert_eq!(relays.health()[0].state_name(), "up");
}

#[tokio::test]
async fn a_relay_that_says_that_it_is_greylisting_is_never_closed_to_others() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    relay.script(Rule::at(Phase::Rcpt, Act::reply("450 4.2.0 Recipient address rejected: Greylisted")));
    for n in 0..10 {
        assert_eq!(try_once(&relays, &person(n)).await, Err(true));
    }
    assert_eq!(relays.health()[0].state_name(), "up");
    assert_eq!(relays.health()[0].mails_per_second, None);
}

#[tokio::test]
async fn behind_a_relay_that_puts_everybody_off_the_next_one_works() {
    let (first, second) = (Relay::start().await, Relay::start().await);
    let relays = relays(&smtp_config(vec![first.config(), second.config()]));
    first.script(Rule::at(Phase::Rcpt, Act::reply(LATER)));
    for n in 0..5 {
        assert_eq!(try_once(&relays, &person(n)).await, Err(n < 4));
    }
    assert_eq!(try_once(&relays, &person(5)).await, Ok(()));
    assert_eq!(second.log().accepted().count(), 1);
}
