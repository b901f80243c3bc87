//! One mail, one transaction: whatever the relay does, the report says at which step, and no reply reaches another mail.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use postrider::{
    config::SmtpConfig,
    email::{EmailAddress, Lane, LinkFault, Outcome, Phase, Reply, SendReport},
    smtp::{OutgoingMail, Relays, classify},
};

use crate::support::relay::{Act, Offer, Relay, Rule, smtp_config};

/// More than sockets buffer on either side.
const LARGE: usize = 30 * 1024 * 1024;
const MESSAGE: &str = "Subject: Facture\r\n\r\nBonjour\r\n";
/// Limit of a step where silence is what is tested: longer than a busy machine is silent at another step.
const IMPATIENT: Duration = Duration::from_secs(4);

pub(crate) fn relays(config: &SmtpConfig) -> Arc<Relays> {
    Relays::new(config).expect("the settings are sound")
}

/// Sends one mail in the standard lane; a test that would wait for ever fails instead.
pub(crate) async fn send(relays: &Relays, to: &str, message: &[u8]) -> SendReport {
    let from = EmailAddress::parse("noreply@example.bj").expect("valid");
    let to = EmailAddress::parse(to).expect("valid");
    let sending = async {
        let place = relays.place(Lane::Standard).await;
        place.send(OutgoingMail::new(from, to, message.to_vec())).await.report
    };
    tokio::time::timeout(Duration::from_secs(30), Box::pin(sending)).await.expect("the mail is still on its way")
}

fn large_message() -> Vec<u8> {
    let line = format!("{}\r\n", "x".repeat(74));
    line.repeat(LARGE / line.len()).into_bytes()
}

async fn relay_with_pipelining(pipelining: bool) -> Relay {
    Relay::with(Offer { pipelining, ..Offer::default() }).await
}

#[track_caller]
fn assert_accepted(report: &SendReport) {
    assert!(matches!(report, SendReport::Accepted { reply } if reply.code == 250), "{report:?}");
}

#[track_caller]
fn assert_refused(report: &SendReport, wanted_phase: Phase, code: u16) {
    assert!(
        matches!(report, SendReport::Refused { phase, reply } if *phase == wanted_phase && reply.code == code),
        "wanted {code} at {wanted_phase}: {report:?}"
    );
}

#[track_caller]
fn assert_cut(report: &SendReport, wanted_phase: Phase) {
    assert!(
        matches!(report, SendReport::Broken { phase, fault: LinkFault::Closed | LinkFault::Broken(_) } if *phase == wanted_phase),
        "wanted a cut at {wanted_phase}: {report:?}"
    );
}

#[tokio::test]
async fn mails_arrive_whole_and_share_a_connection() {
    for pipelining in [true, false] {
        let relay = relay_with_pipelining(pipelining).await;
        let relays = relays(&relay.smtp_config());
        let awkward = "Subject: x\r\n\r\n.\r\n..two\r\n.\r\nMAIL FROM:<evil@example.bj>\r\nno end";
        let report = send(&relays, "a@example.bj", MESSAGE.as_bytes()).await;
        assert!(
            matches!(&report, SendReport::Accepted { reply } if reply.text.contains("queued as 000001")),
            "{report:?}"
        );
        assert_accepted(&send(&relays, "b@example.bj", awkward.as_bytes()).await);
        assert_accepted(&send(&relays, "c@example.bj", "un\nle\rcas é".as_bytes()).await);

        let mails = relay.wait_for_mails(3).await;
        assert_eq!(mails.iter().map(|mail| mail.connection).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(mails[0].text(), MESSAGE);
        assert_eq!(
            (mails[0].from.as_str(), mails[0].to.as_slice()),
            ("noreply@example.bj", &["a@example.bj".to_owned()][..])
        );
        assert_eq!(mails[0].parameters, format!("SIZE={}", MESSAGE.len()));
        assert_eq!(mails[1].text(), format!("{awkward}\r\n"));
        assert_eq!(mails[2].text(), "un\r\nle\r\ncas é\r\n");
        assert!(mails[2].parameters.ends_with("BODY=8BITMIME"), "{}", mails[2].parameters);
    }
}

#[tokio::test]
async fn a_large_mail_arrives_byte_for_byte() {
    let relay = Relay::start().await;
    let message = large_message();
    assert_accepted(&send(&relays(&relay.smtp_config()), "a@example.bj", &message).await);
    assert!(relay.wait_for_mails(1).await[0].content == message, "the content was changed on its way");
}

#[tokio::test]
async fn commands_are_sent_ahead_only_where_that_is_offered() {
    for pipelining in [true, false] {
        let relay = relay_with_pipelining(pipelining).await;
        relay.script(Rule::at(Phase::Mail, Act::reply("451 4.3.0 not now")));
        assert_refused(
            &send(&relays(&relay.smtp_config()), "a@example.bj", MESSAGE.as_bytes()).await,
            Phase::Mail,
            451,
        );
        assert_eq!(relay.log().was_told("RCPT"), pipelining);
    }
}

#[tokio::test]
async fn a_relay_that_hangs_up_is_reported_at_the_step_it_did() {
    for pipelining in [true, false] {
        for (phase, act, size) in [
            (Phase::Mail, Act::Disconnect, 1),
            (Phase::Rcpt, Act::Disconnect, 1),
            (Phase::Data, Act::Disconnect, 1),
            (Phase::Content, Act::Disconnect, LARGE),
            (Phase::FinalDot, Act::Disconnect, 1),
            (Phase::FinalDot, Act::AcceptThenDisconnect, 1),
        ] {
            let relay = relay_with_pipelining(pipelining).await;
            relay.script(Rule::at(phase, act).once());
            let relays = relays(&relay.smtp_config());
            let message = if size == LARGE { large_message() } else { MESSAGE.into() };
            let report = send(&relays, "a@example.bj", &message).await;
            assert_cut(&report, phase);
            let is_unknown = matches!(classify(&report), Outcome::Unknown { .. });
            assert_eq!(is_unknown, phase == Phase::FinalDot, "{report:?}");
            // The next mail goes over a new connection.
            assert_accepted(&send(&relays, "b@example.bj", MESSAGE.as_bytes()).await);
            assert_eq!(relay.log().mails.last().map(|mail| mail.connection > 1), Some(true));
        }
    }
}

#[tokio::test]
async fn a_relay_that_falls_silent_is_given_up_at_the_step_it_did() {
    let steps = [(Phase::Mail, 1), (Phase::Rcpt, 1), (Phase::Data, 1), (Phase::Content, LARGE), (Phase::FinalDot, 1)];
    let cases = [true, false].into_iter().flat_map(|pipelining| {
        steps.into_iter().map(move |(phase, size)| async move {
            let relay = relay_with_pipelining(pipelining).await;
            relay.script(Rule::at(phase, Act::Stall).once());
            let mut config = relay.smtp_config();
            (config.step_timeout, config.dot_timeout) = (IMPATIENT, IMPATIENT * 2);
            let message = if size == LARGE { large_message() } else { MESSAGE.into() };
            let limit = if phase == Phase::FinalDot { IMPATIENT * 2 } else { IMPATIENT };
            let report = send(&relays(&config), "a@example.bj", &message).await;
            assert_eq!(report, SendReport::Broken { phase, fault: LinkFault::TimedOut(limit) });
        })
    });
    // Side by side, for each of them waits.
    join_all(cases).await;
}

#[tokio::test]
async fn a_slow_answer_to_the_final_dot_is_waited_for() {
    let relay = Relay::start().await;
    let late = IMPATIENT + Duration::from_secs(1);
    relay.script(Rule::at(Phase::FinalDot, Act::Delay(late)));
    let config = SmtpConfig { step_timeout: IMPATIENT, ..relay.smtp_config() };
    assert_accepted(&send(&relays(&config), "a@example.bj", MESSAGE.as_bytes()).await);
    let mail = relay.wait_for_mails(1).await.remove(0);
    let waited = mail.answered_at.expect("it was answered") - mail.received_at;
    assert!(waited >= late && mail.begun_at <= mail.received_at);
}

#[tokio::test]
async fn nothing_but_a_2xx_to_the_final_dot_is_success() {
    let cases = [
        (Act::reply("354 go ahead"), LinkFault::BadReply),
        (Act::bytes(b"OK\r\n"), LinkFault::BadReply),
        (Act::bytes(b"\r\n"), LinkFault::BadReply),
        (Act::bytes(b"2500 ok\r\n"), LinkFault::BadReply),
        (Act::bytes(b"250-ok\r\n550 no\r\n"), LinkFault::BadReply),
        (Act::bytes(&[b'2'; 10_000]), LinkFault::BadReply),
        (Act::BytesThenStall(b"250 o".to_vec()), LinkFault::TimedOut(IMPATIENT)),
        (Act::BytesThenStall(b"250-ok\r\n".to_vec()), LinkFault::TimedOut(IMPATIENT)),
    ];
    // Side by side, for some of them wait.
    join_all(cases.into_iter().map(|(act, fault)| async move {
        let relay = Relay::start().await;
        relay.script(Rule::at(Phase::FinalDot, act.clone()).once());
        // Only silence is to be noticed by how long it lasts.
        let dot_timeout = if fault == LinkFault::BadReply { Duration::from_secs(20) } else { IMPATIENT };
        let config = SmtpConfig { dot_timeout, ..relay.smtp_config() };
        let relays = relays(&config);
        let report = send(&relays, "a@example.bj", MESSAGE.as_bytes()).await;
        assert_eq!(report, SendReport::Broken { phase: Phase::FinalDot, fault }, "{act:?}");
        relay.behave();
        assert_accepted(&send(&relays, "b@example.bj", MESSAGE.as_bytes()).await);
        assert_eq!(relay.log().mails.last().map(|mail| mail.connection), Some(2), "{act:?}");
    }))
    .await;
}

#[tokio::test]
async fn a_reply_one_step_late_never_reaches_the_next_mail() {
    let relay = Relay::start().await;
    relay.hold_final_dots();
    let relays = relays(&SmtpConfig { dot_timeout: IMPATIENT, ..relay.smtp_config() });
    let report = send(&relays, "slow@example.bj", MESSAGE.as_bytes()).await;
    assert_eq!(report, SendReport::Broken { phase: Phase::FinalDot, fault: LinkFault::TimedOut(IMPATIENT) });
    // Now the late 250 leaves; the next mail is refused and must not be told "250".
    relay.release_final_dots();
    relay.wait_until("the late 250", |log| log.accepted().count() == 1).await;
    relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.6.0 content rejected")).to("next"));
    assert_refused(&send(&relays, "next@example.bj", MESSAGE.as_bytes()).await, Phase::FinalDot, 554);
}

#[tokio::test]
async fn a_reply_too_many_never_reaches_the_next_mail() {
    // One too many after the 250: the mail is sent, the connection is not used again.
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::FinalDot, Act::bytes(b"250 ok\r\n250 ok\r\n")).once());
    relay.script(Rule::at(Phase::FinalDot, Act::reply("554 no")).to("next"));
    let config = relay.smtp_config();
    let both = relays(&config);
    assert_accepted(&send(&both, "a@example.bj", MESSAGE.as_bytes()).await);
    assert_refused(&send(&both, "next@example.bj", MESSAGE.as_bytes()).await, Phase::FinalDot, 554);
    assert_eq!(relay.log().connections, 2);

    // One too many before: 250, 250 and 250 are not 250, 250 and 354.
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Rcpt, Act::bytes(b"250 ok\r\n250 ok\r\n")).once());
    let report = send(&relays(&relay.smtp_config()), "a@example.bj", MESSAGE.as_bytes()).await;
    assert_eq!(report, SendReport::Broken { phase: Phase::Data, fault: LinkFault::BadReply });

    // A 250 behind the 354 would be taken for the answer to a dot that was never sent.
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Data, Act::bytes(b"354 go\r\n250 ok\r\n")).once());
    let report = send(&relays(&relay.smtp_config()), "a@example.bj", MESSAGE.as_bytes()).await;
    assert_eq!(report, SendReport::Broken { phase: Phase::Content, fault: LinkFault::BadReply });
    assert!(relay.log().mails.is_empty());
}

#[tokio::test]
async fn a_go_ahead_before_its_time_is_none() {
    for phase in [Phase::Mail, Phase::Rcpt] {
        let relay = relay_with_pipelining(false).await;
        relay.script(Rule::at(phase, Act::bytes(b"250 ok\r\n354 go ahead\r\n")).once());
        let relays = relays(&relay.smtp_config());
        let report = send(&relays, "a@example.bj", MESSAGE.as_bytes()).await;
        assert!(
            matches!(&report, SendReport::Broken { phase: at, fault: LinkFault::BadReply } if *at > phase),
            "{phase}: {report:?}"
        );
        assert_accepted(&send(&relays, "b@example.bj", MESSAGE.as_bytes()).await);
    }
}

#[tokio::test]
async fn a_refusal_that_answers_no_command_is_nobodys() {
    // The 550 stands where the answer to RCPT should be, and the 250 to RCPT where the one to DATA should be. Whoever believed it
    // would write to this address no more.
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Mail, Act::bytes(b"250 ok\r\n550 5.1.1 no such user\r\n")).once());
    let relays = relays(&relay.smtp_config());
    let report = send(&relays, "a@example.bj", MESSAGE.as_bytes()).await;
    assert_eq!(report, SendReport::Broken { phase: Phase::Data, fault: LinkFault::BadReply });
    assert_accepted(&send(&relays, "a@example.bj", MESSAGE.as_bytes()).await);
    assert_eq!(relay.log().connections, 2);
}

#[tokio::test]
async fn what_a_relay_says_of_the_last_mail_is_not_told_the_next() {
    for pipelining in [true, false] {
        for (line, fault) in [
            ("421 4.3.2 bad@example.bj was enough", LinkFault::Closed),
            ("452 4.3.1 bad@example.bj", LinkFault::BadReply),
            ("554 5.5.1 bad@example.bj", LinkFault::BadReply),
        ] {
            let relay = relay_with_pipelining(pipelining).await;
            relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("bad"));
            relay.script_reset(line);
            let relays = relays(&relay.smtp_config());
            assert_refused(&send(&relays, "bad@example.bj", MESSAGE.as_bytes()).await, Phase::Rcpt, 550);
            // Nothing of it was begun, so it may go again at once, on a connection where nobody was refused.
            let report = send(&relays, "good@example.bj", MESSAGE.as_bytes()).await;
            assert_eq!(report, SendReport::Broken { phase: Phase::Mail, fault }, "{line}");
            assert_accepted(&send(&relays, "good@example.bj", MESSAGE.as_bytes()).await);
            assert_eq!(relay.log().connections, 2, "{line}: {}", relay.log().dialogue());
        }
    }
}

#[tokio::test]
async fn a_refused_recipient_costs_no_connection() {
    for pipelining in [true, false] {
        for (phase, line, code) in [
            (Phase::Rcpt, "550 5.1.1 no such user", 550),
            (Phase::Rcpt, "450 4.2.1 mailbox busy", 450),
            (Phase::Data, "451 4.3.0 not now", 451),
            (Phase::FinalDot, "554 5.6.0 content rejected", 554),
        ] {
            let relay = relay_with_pipelining(pipelining).await;
            relay.script(Rule::at(phase, Act::reply(line)).to("bad"));
            let relays = relays(&relay.smtp_config());
            for _ in 0..3 {
                assert_refused(&send(&relays, "bad@example.bj", MESSAGE.as_bytes()).await, phase, code);
                assert_accepted(&send(&relays, "good@example.bj", MESSAGE.as_bytes()).await);
            }
            let log = relay.log();
            assert_eq!((log.accepted().count(), log.connections), (3, 1), "{}", log.dialogue());
            assert!(log.accepted().all(|mail| mail.to == ["good@example.bj"]));
        }
    }
}

#[tokio::test]
async fn a_go_ahead_without_a_recipient_gets_no_mail() {
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("bad"));
    relay.script(Rule::at(Phase::Data, Act::reply("354 go ahead")).times(2));
    relay.script(Rule::at(Phase::FinalDot, Act::reply("250 whatever")).nth(2));
    let relays = relays(&relay.smtp_config());
    // The empty mail is refused, and the connection goes on.
    assert_refused(&send(&relays, "bad@example.bj", MESSAGE.as_bytes()).await, Phase::Rcpt, 550);
    // The empty mail is taken for something: the refusal stands, the connection is not trusted again.
    assert_refused(&send(&relays, "bad@example.bj", MESSAGE.as_bytes()).await, Phase::Rcpt, 550);
    assert_accepted(&send(&relays, "good@example.bj", MESSAGE.as_bytes()).await);
    let log = relay.log();
    let mails: Vec<_> = log.mails.iter().map(|mail| (mail.connection, mail.transaction)).collect();
    assert_eq!(mails, [(2, 3)], "{}", log.dialogue());
}

#[tokio::test]
async fn a_refusal_in_latin_1_is_a_refusal() {
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Rcpt, Act::bytes(b"550 5.1.1 bo\xeete inconnue\r\n")).to("bad"));
    let relays = relays(&relay.smtp_config());
    let reply = Reply { code: 550, enhanced: Some((5, 1, 1)), text: "5.1.1 bo\u{fffd}te inconnue".into() };
    let report = send(&relays, "bad@example.bj", MESSAGE.as_bytes()).await;
    assert_eq!(report, SendReport::Refused { phase: Phase::Rcpt, reply });
    assert_accepted(&send(&relays, "good@example.bj", MESSAGE.as_bytes()).await);
    assert_eq!(relay.log().connections, 1);
}

#[tokio::test]
async fn a_relay_that_says_421_is_left() {
    for pipelining in [true, false] {
        for phase in [Phase::Mail, Phase::Rcpt, Phase::Data, Phase::FinalDot] {
            let relay = relay_with_pipelining(pipelining).await;
            relay.script(Rule::at(phase, Act::reply("421 4.3.2 shutting down")).once());
            let relays = relays(&smtp_config(vec![relay.config()]));
            let report = send(&relays, "a@example.bj", MESSAGE.as_bytes()).await;
            assert_refused(&report, phase, 421);
            assert!(matches!(classify(&report), Outcome::Deferred { counted: false, .. }));
            assert_accepted(&send(&relays, "b@example.bj", MESSAGE.as_bytes()).await);
            assert_eq!(relay.log().mails.last().map(|mail| mail.connection > 1), Some(true));
        }
    }
}

#[tokio::test]
async fn a_relay_that_has_had_enough_of_the_content_is_heard() {
    let relay = Relay::start().await;
    relay.script(Rule::at(Phase::Content, Act::reply("552 5.3.4 too much")));
    let report = send(&relays(&relay.smtp_config()), "a@example.bj", &large_message()).await;
    assert_refused(&report, Phase::Content, 552);
}

#[tokio::test]
async fn a_mail_that_the_relay_cannot_carry_is_not_begun() {
    let poor = Offer { smtputf8: false, eight_bit_mime: false, size: Some(1000), ..Offer::default() };
    let relay = Relay::with(poor).await;
    let relays = relays(&relay.smtp_config());
    for (to, message, missing) in [
        ("amélie@example.bj", MESSAGE.as_bytes(), "SMTPUTF8"),
        ("a@example.bj", "é".as_bytes(), "8BITMIME"),
        ("a@example.bj", &[b'x'; 1001], "SIZE"),
    ] {
        let report = send(&relays, to, message).await;
        assert!(matches!(&report, SendReport::NotCapable { missing: said } if said.contains(missing)), "{report:?}");
    }
    assert!(!relay.log().was_told("MAIL"));
    assert_accepted(&send(&relays, "a@example.bj", MESSAGE.as_bytes()).await);
    assert_eq!(relay.log().connections, 1);

    let able = Relay::start().await;
    assert_accepted(&send(&self::relays(&able.smtp_config()), "amélie@example.bj", MESSAGE.as_bytes()).await);
    assert!(able.log().mails[0].parameters.contains("SMTPUTF8"));
}
