//! The next mail's envelope goes in the same flight as the final dot: one round trip a mail, and each mail still gets its
//! own answers, whatever the relay says to the one before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postrider::{
    config::SmtpConfig,
    email::{EmailAddress, Lane, LinkFault, Phase, SendReport},
    smtp::{OutgoingMail, Relays},
};
use tokio::task::JoinHandle;

use crate::{
    smtp_session::relays,
    support::{
        relay::{Act, Offer, Relay, Rule},
        wait::until,
    },
};

const MESSAGE: &[u8] = b"Subject: x\r\n\r\ny\r\n";

fn mail(to: &str) -> OutgoingMail {
    let from = EmailAddress::parse("noreply@example.bj").expect("valid");
    OutgoingMail::new(from, EmailAddress::parse(to).expect("valid"), MESSAGE)
}

/// One connection for everything.
fn one_connection(relay: &Relay) -> SmtpConfig {
    let mut config = relay.smtp_config();
    config.connections.standard = 1;
    config
}

/// Sends once there is a place for it.
async fn sending(relays: &Arc<Relays>, mail: OutgoingMail) -> JoinHandle<SendReport> {
    let place = relays.place(Lane::Standard).await;
    tokio::spawn(async move { place.send(mail).await.report })
}

/// One mail waits for the answer to its dot, and the envelope of another is behind it.
async fn one_behind_the_other(relay: &Relay, relays: &Arc<Relays>) -> [JoinHandle<SendReport>; 2] {
    relay.hold_final_dots();
    let first = sending(relays, mail("first@example.bj")).await;
    relay.wait_until("the first is on the wire", |log| log.mails.len() == 1).await;
    let second = sending(relays, mail("second@example.bj")).await;
    [first, second]
}

async fn reports(mails: [JoinHandle<SendReport>; 2]) -> [SendReport; 2] {
    let [first, second] = mails;
    let both = async { [first.await.expect("no panic"), second.await.expect("no panic")] };
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("a mail is still on its way")
}

fn code(report: &SendReport) -> u16 {
    match report {
        SendReport::Accepted { reply } | SendReport::Refused { reply, .. } => reply.code,
        other => panic!("no reply: {other:?}"),
    }
}

#[tokio::test]
async fn the_next_envelope_is_sent_before_the_answer_to_the_dot_where_that_is_offered() {
    for pipelining in [true, false] {
        let relay = Relay::with(Offer { pipelining, ..Offer::default() }).await;
        let relays = relays(&one_connection(&relay));
        let both = one_behind_the_other(&relay, &relays).await;
        relay.release_final_dots();
        assert_eq!(reports(both).await.map(|report| code(&report)), [250, 250]);
        let log = relay.log();
        assert_eq!((log.connections, log.accepted().count()), (1, 2));
        assert_eq!(
            log.mails.iter().map(|mail| mail.to[0].as_str()).collect::<Vec<_>>(),
            ["first@example.bj", "second@example.bj"]
        );
    }
}

#[tokio::test]
async fn a_mail_behind_one_that_is_refused_goes_its_way() {
    for line in ["554 5.6.0 content rejected", "451 4.3.0 not now"] {
        let relay = Relay::start().await;
        relay.script(Rule::at(Phase::FinalDot, Act::reply(line)).to("first"));
        let relays = relays(&one_connection(&relay));
        let both = one_behind_the_other(&relay, &relays).await;
        relay.release_final_dots();
        let [first, second] = reports(both).await;
        assert!(matches!(first, SendReport::Refused { phase: Phase::FinalDot, .. }), "{first:?}");
        assert_eq!(code(&second), 250);
        assert_eq!(relay.log().connections, 1);
    }
}

#[tokio::test]
async fn a_mail_behind_one_whose_link_breaks_cannot_have_been_accepted() {
    for act in
        [Act::Disconnect, Act::reply("421 4.3.2 shutting down"), Act::bytes(b"OK\r\n"), Act::AcceptThenDisconnect]
    {
        let relay = Relay::start().await;
        relay.script(Rule::at(Phase::FinalDot, act.clone()).to("first"));
        let relays = relays(&one_connection(&relay));
        let both = one_behind_the_other(&relay, &relays).await;
        relay.release_final_dots();
        let [first, second] = reports(both).await;
        assert!(!matches!(first, SendReport::Accepted { .. }), "{act:?}: {first:?}");
        let cut = SendReport::Broken { phase: Phase::Mail, fault: LinkFault::Closed };
        assert!(second == cut || code(&second) == 250, "{act:?}: {second:?}");
        assert!(relay.log().accepted().all(|mail| mail.to == ["first@example.bj"] || code(&second) == 250));
    }
}

#[tokio::test]
async fn a_refusal_too_many_behind_the_answer_to_a_dot_is_not_the_next_mails() {
    for line in ["450 4.3.0 not now", "550 5.1.1 no such user"] {
        let relay = Relay::start().await;
        let late = Act::bytes(format!("250 2.0.0 taken\r\n{line}\r\n").as_bytes());
        relay.script(Rule::at(Phase::FinalDot, late).to("first"));
        let relays = relays(&one_connection(&relay));
        let both = one_behind_the_other(&relay, &relays).await;
        relay.release_final_dots();
        let [first, second] = reports(both).await;
        assert_eq!(code(&first), 250);
        // It stands where the answer to MAIL should be, and the 250 to MAIL behind it.
        assert_eq!(second, SendReport::Broken { phase: Phase::Rcpt, fault: LinkFault::BadReply }, "{line}");
        assert_eq!(code(&sending(&relays, mail("third@example.bj")).await.await.expect("no panic")), 250);
        assert_eq!(relay.log().connections, 2, "{}", relay.log().dialogue());
    }
}

#[tokio::test]
async fn each_mail_behind_another_gets_its_own_refusal() {
    for (phase, line) in
        [(Phase::Mail, "452 4.3.1 full"), (Phase::Rcpt, "550 5.1.1 no such user"), (Phase::Data, "451 4.3.0 no")]
    {
        let relay = Relay::start().await;
        relay.script(Rule::at(phase, Act::reply(line)).nth(2));
        let relays = relays(&one_connection(&relay));
        let both = one_behind_the_other(&relay, &relays).await;
        relay.release_final_dots();
        let [first, second] = reports(both).await;
        assert_eq!(code(&first), 250);
        assert!(matches!(&second, SendReport::Refused { phase: at, .. } if *at == phase), "{phase}: {second:?}");
        // The connection is in step, and takes the next.
        assert_eq!(code(&sending(&relays, mail("third@example.bj")).await.await.expect("no panic")), 250);
        assert_eq!(relay.log().connections, 1, "{}", relay.log().dialogue());
    }
}

#[tokio::test]
async fn a_mail_that_may_not_go_any_more_after_its_354_ends_with_the_connection_and_without_a_dot() {
    let relay = Relay::start().await;
    let relays = relays(&one_connection(&relay));
    relay.hold_final_dots();
    let first = sending(&relays, mail("first@example.bj")).await;
    relay.wait_until("the first is on the wire", |log| log.mails.len() == 1).await;
    let is_late = Arc::new(AtomicBool::new(false));
    let late = Arc::clone(&is_late);
    let second =
        mail("second@example.bj").unless(move || late.swap(true, Ordering::SeqCst).then_some("it is too late"));
    let second = sending(&relays, second).await;
    // Asked once, before its envelope; the next time is after its 354.
    until("its envelope is on its way", async || is_late.load(Ordering::SeqCst)).await;
    relay.release_final_dots();
    let [first, second] = reports([first, second]).await;
    assert_eq!(code(&first), 250);
    assert_eq!(second, SendReport::Withdrawn { why: "it is too late".to_owned() });
    relay.wait_until("it is closed", |log| log.connections_open == 0).await;
    let log = relay.log();
    assert_eq!(log.go_aheads.len(), 2, "{}", log.dialogue());
    assert_eq!(log.mails.len(), 1, "the content of the second never ended");
    assert_eq!(code(&sending(&relays, mail("third@example.bj")).await.await.expect("no panic")), 250);
}

#[tokio::test]
async fn a_mail_that_may_not_go_any_more_before_its_envelope_costs_nothing() {
    let relay = Relay::start().await;
    let relays = relays(&one_connection(&relay));
    let report = sending(&relays, mail("a@example.bj").unless(|| Some("it is past expires_at"))).await;
    let why = "it is past expires_at".to_owned();
    assert_eq!(report.await.expect("no panic"), SendReport::Withdrawn { why });
    assert_eq!(code(&sending(&relays, mail("b@example.bj")).await.await.expect("no panic")), 250);
    let log = relay.log();
    assert_eq!((log.connections, log.transactions), (1, 1));
}
