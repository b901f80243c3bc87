//! Places on connections: limits hold, lanes are apart, and a relay that is away is waited for without a mail noticing.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use postrider::{
    config::SmtpConfig,
    email::{EmailAddress, Lane, Phase, SendReport},
    smtp::{OutgoingMail, RelayFault, RelayState, Relays},
};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    smtp_session::{relays, send},
    support::{
        relay::{Act, Relay, RelayLog, Rule, smtp_config},
        wait::until_some,
    },
};

const MESSAGE: &[u8] = b"Subject: x\r\n\r\ny\r\n";

pub(crate) async fn send_in(relays: Arc<Relays>, lane: Lane) -> SendReport {
    let address = EmailAddress::parse("a@example.bj").expect("valid");
    let place = relays.place(lane).await;
    place.send(OutgoingMail::new(address.clone(), address, MESSAGE)).await.report
}

pub(crate) fn all_accepted(reports: &[SendReport]) -> bool {
    reports.iter().all(|report| matches!(report, SendReport::Accepted { .. }))
}

#[tokio::test]
async fn a_lane_keeps_to_its_connections_and_leaves_others_theirs() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    relay.hold_final_dots();
    let mut mails = JoinSet::new();
    for _ in 0..20 {
        mails.spawn(send_in(Arc::clone(&relays), Lane::Bulk));
    }
    relay.wait_until("two mails on the wire", |log| log.mails.len() == 2).await;
    // The bulk lane is full to the brim; an incident does not wait for it.
    mails.spawn(send_in(Arc::clone(&relays), Lane::Fast));
    relay.wait_until("a third", |log| log.mails.len() == 3).await;
    let health = relays.health().remove(0);
    // Two on the wire and two following; one.
    assert_eq!((health.in_use.bulk, health.in_use.fast, health.in_use.standard), (4, 1, 0));
    assert_eq!(relay.log().connections_open, 3);
    // What comes free is used at once, and by the next mail only.
    relay.let_through(3);
    relay.wait_until("the next ones", |log| log.mails.len() >= 5).await;
    relay.release_final_dots();
    assert!(all_accepted(&mails.join_all().await));
    let log = relay.log();
    assert_eq!((log.accepted().count(), log.connections, log.connections_open_max), (21, 3, 3));
    let health = relays.health().remove(0);
    assert_eq!((health.in_use.bulk, health.in_use.fast), (0, 0));
}

#[tokio::test]
async fn a_relay_may_have_limits_of_its_own() {
    let relay = Relay::start().await;
    let mut config = relay.smtp_config();
    config.relays[0].connections.bulk = Some(1);
    let relays = relays(&config);
    relay.hold_final_dots();
    let mut mails = JoinSet::new();
    for lane in [Lane::Bulk, Lane::Bulk, Lane::Bulk, Lane::Standard, Lane::Standard, Lane::Standard] {
        mails.spawn(send_in(Arc::clone(&relays), lane));
    }
    relay.wait_until("three mails on the wire", |log| log.mails.len() == 3).await;
    let health = relays.health().remove(0);
    assert_eq!((health.in_use.bulk, health.in_use.standard), (2, 3));
    relay.release_final_dots();
    assert!(all_accepted(&mails.join_all().await));
    assert_eq!(relay.log().connections_open_max, 3);
}

#[tokio::test]
async fn a_relay_that_is_away_is_waited_for() {
    let relay = Relay::start().await;
    relay.refuse_connections().await;
    let relays = relays(&relay.smtp_config());
    let mut waiting = Box::pin(relays.place(Lane::Standard));
    let state = tokio::select! {
        _ = &mut waiting => panic!("a place at a relay that is not there"),
        state = until_some("it is down", async || {
            let state = relays.health().remove(0).state;
            matches!(state, RelayState::Down { .. }).then_some(state)
        }) => state,
    };
    assert!(matches!(&state, RelayState::Down { error, .. } if error.fault == RelayFault::Refused), "{state:?}");
    assert!(futures_util::poll!(&mut waiting).is_pending(), "a place at a relay that is down");
    relay.take_connections().await;
    let place = timeout(Duration::from_secs(20), waiting).await.expect("it is back");
    assert_eq!(place.relay_name(), relay.config().name);
    assert!(matches!(relays.health().remove(0).state, RelayState::Up));
}

#[tokio::test]
async fn a_relay_that_turns_everybody_away_is_not_beset() {
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Greeting, Act::reply("421 4.3.2 too busy")));
    let relays = relays(&relay.smtp_config());
    let mut waiting = JoinSet::new();
    for lane in Lane::ALL {
        for _ in 0..20 {
            waiting.spawn(send_in(Arc::clone(&relays), lane));
        }
    }
    // The pause before the second probe is over by then: half a second at least, after a quarter before the first.
    relay.wait_until("two probes", |log| lasted(log) >= Duration::from_millis(700)).await;
    // Each lane runs into it once with each of its two connections; from then on one prober goes for all.
    let log = relay.log();
    assert!(log.connections <= 6 + 2, "{}", log.dialogue());
    relay.behave();
    assert!(all_accepted(&waiting.join_all().await));
}

/// Between the first and the last refusal at the greeting.
fn lasted(log: &RelayLog) -> Duration {
    let mut refusals = log.said.iter().filter(|said| said.line.starts_with("421")).map(|said| said.at);
    refusals.next().map_or(Duration::ZERO, |first| refusals.next_back().unwrap_or(first) - first)
}

#[tokio::test]
async fn a_silent_relay_does_not_hold_a_place_for_ever() {
    // Longer than a busy machine is silent at another step; side by side, for both wait.
    join_all([Phase::Greeting, Phase::Ehlo].map(|phase| async move {
        let relay = Relay::start().await;
        relay.script(Rule::at(phase, Act::Stall).once());
        let config = SmtpConfig { step_timeout: Duration::from_secs(4), ..relay.smtp_config() };
        let relays = relays(&config);
        let error = relays.probe(&config.relays[0].name).await.expect("it is there").expect_err("it is silent");
        assert_eq!((error.fault, error.phase), (RelayFault::TimedOut, phase));
        let report = send(&relays, "a@example.bj", MESSAGE).await;
        assert!(all_accepted(&[report]));
    }))
    .await;
}

#[tokio::test]
async fn behind_a_dead_relay_the_next_one_works_until_the_first_is_back() {
    let (first, second) = (Relay::start().await, Relay::start().await);
    first.refuse_connections().await;
    let relays = relays(&smtp_config(vec![first.config(), second.config()]));
    assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    assert_eq!(second.log().accepted().count(), 1);
    first.take_connections().await;
    // The prober says goodbye only after it has told everybody.
    first.wait_until("a probe", |log| log.was_told("QUIT")).await;
    assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    assert_eq!((first.log().accepted().count(), second.log().accepted().count()), (1, 1));
}

#[tokio::test]
async fn a_relay_that_takes_no_more_connections_keeps_those_it_has() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    relay.script(Rule::at(Phase::Greeting, Act::reply("421 4.7.0 too many connections")));
    let mut mails = JoinSet::new();
    for _ in 0..20 {
        mails.spawn(send_in(Arc::clone(&relays), Lane::Standard));
    }
    assert!(all_accepted(&mails.join_all().await));
    let used: HashSet<_> = relay.log().accepted().map(|mail| mail.connection).collect();
    assert_eq!(used, HashSet::from([1]));
}

#[tokio::test]
async fn a_connection_that_died_idle_costs_no_mail() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    for _ in 0..3 {
        assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
        relay.cut_connections();
        relay.wait_until("it is cut", |log| log.connections_open == 0).await;
    }
    assert_eq!(relay.log().connections, 3);
}

#[tokio::test]
async fn connections_are_retired_after_so_many_mails() {
    let relay = Relay::start().await;
    let mut config = relay.smtp_config();
    config.mails_per_connection_max = 2;
    config.connections.standard = 1;
    let relays = relays(&config);
    for _ in 0..5 {
        assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    }
    let log = relay.log();
    assert_eq!(log.mails.iter().map(|mail| mail.connection).collect::<Vec<_>>(), [1, 1, 2, 2, 3]);
    assert_eq!(log.connections_open_max, 1, "{}", log.dialogue());
}

#[tokio::test]
async fn what_lies_idle_for_too_long_is_closed() {
    let relay = Relay::start().await;
    let relays = relays(&SmtpConfig { idle_max: Duration::from_millis(200), ..relay.smtp_config() });
    assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    relay.wait_until("it is closed", |log| log.connections_open == 0).await;
    assert!(relay.log().was_told("QUIT"));
}

#[tokio::test]
async fn nobody_gets_the_answer_to_a_send_that_was_dropped() {
    let relay = Relay::start().await;
    let mut config = relay.smtp_config();
    config.connections.standard = 1;
    let relays = relays(&config);
    relay.hold_final_dots();
    let dropped = tokio::spawn(send_in(Arc::clone(&relays), Lane::Standard));
    relay.wait_until("it is on the wire", |log| log.mails.len() == 1).await;
    dropped.abort();
    assert!(dropped.await.is_err_and(|error| error.is_cancelled()));
    relay.release_final_dots();
    relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.6.0 no")).to("next"));
    // Neither is the place lost, nor does the answer to the mail that was dropped reach this one.
    let report = send(&relays, "next@example.bj", MESSAGE).await;
    assert!(matches!(&report, SendReport::Refused { phase: Phase::FinalDot, .. }), "{report:?}");
}

#[tokio::test]
async fn an_incident_finds_a_warm_connection() {
    let relay = Relay::start().await;
    let config = SmtpConfig { idle_max: Duration::from_millis(100), ..relay.smtp_config() };
    let relays = relays(&config);
    let warm = Arc::clone(&relays);
    let keeping = tokio::spawn(async move { warm.keep_warm().await });
    // It outlives its idle time, and is opened again when the relay closes it.
    relay.wait_until("signs of life", |log| log.said.iter().filter(|said| said.line == "NOOP").count() >= 2).await;
    assert_eq!(relay.log().connections, 1);
    relay.cut_connections();
    relay.wait_until("it is open again", |log| log.connections == 2 && log.connections_open == 1).await;
    assert!(all_accepted(&[send_in(Arc::clone(&relays), Lane::Fast).await]));
    assert_eq!(relay.log().mails[0].connection, 2);
    timeout(Duration::from_secs(10), relays.close()).await.expect("it says goodbye");
    timeout(Duration::from_secs(10), keeping).await.expect("it ends").expect("without a panic");
    relay.wait_until("all are closed", |log| log.connections_open == 0).await;
}

#[tokio::test]
async fn places_that_nobody_uses_or_waits_for_any_more_are_free() {
    let relay = Relay::start().await;
    let mut config = relay.smtp_config();
    config.connections.standard = 1;
    let relays = relays(&config);
    // One for the wire, one to follow.
    let held = [relays.place(Lane::Standard).await, relays.place(Lane::Standard).await];
    let mut waiting = Box::pin(relays.place(Lane::Standard));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(waiting);
    drop(held);
    assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    assert_eq!(relay.log().connections, 1);
}

#[tokio::test]
async fn closing_says_goodbye() {
    let relay = Relay::start().await;
    let relays = relays(&relay.smtp_config());
    assert!(all_accepted(&[send(&relays, "a@example.bj", MESSAGE).await]));
    let last = relays.place(Lane::Standard).await;
    timeout(Duration::from_secs(10), relays.close()).await.expect("it does not wait for the one in use");
    drop(last);
    relay.wait_until("all are closed", |log| log.connections_open == 0).await;
}
