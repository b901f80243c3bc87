//! The relay misbehaves, one way at a time, with good mails in between.

use std::time::Duration;

use postrider::email::Phase;

use super::Case;
use crate::{
    ledger::{Fault, Violation},
    load::Mix,
    report::Report,
    stage::{Run, Setup, Stage, USUAL_RULES},
    support::relay::{Act, Relay, Rule, Suffered},
};

/// Requests of each case.
const SIZE: (usize, usize) = (20, 180);
/// Mails a second that the relay takes, where it limits them.
const RATE: usize = 12;
/// Steps before the relay knows the recipient go wrong once in so many times.
const EVERY: usize = 5;

/// A misdeed, where and how often it happens.
struct Misdeed {
    name: &'static str,
    proves: &'static str,
    /// How long the daemon waits for a step, and for the reply to the final dot.
    patience_s: (u32, u32),
    /// What may become of a mail to a good address besides sent and held.
    reasons: &'static [&'static str],
    script: fn(&Relay, usize, &Suffered),
}

const NO_HURRY: (u32, u32) = (10, 20);
const HURRY: (u32, u32) = (1, 2);

const MISDEEDS: [Misdeed; 24] = [
    Misdeed {
        name: "421_greeting",
        proves: "a relay that turns connections away is probed, and costs no mail a try",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, n, _| sometimes(relay, n, Phase::Greeting, Act::reply("421 4.3.2 too busy")),
    },
    Misdeed {
        name: "421_mail",
        proves: "a 421 costs no mail a try",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, n, _| sometimes(relay, n, Phase::Mail, Act::reply("421 4.3.2 shutting down")),
    },
    Misdeed {
        name: "421_rcpt",
        proves: "a 421 costs no mail a try",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, _, group| a_few_times(relay, group, Phase::Rcpt, Act::reply("421 4.3.2 shutting down")),
    },
    Misdeed {
        name: "421_data",
        proves: "a 421 costs no mail a try",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, _, group| a_few_times(relay, group, Phase::Data, Act::reply("421 4.3.2 shutting down")),
    },
    Misdeed {
        name: "421_dot",
        proves: "a 421 after the final dot means that the mail was not taken",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, _, group| a_few_times(relay, group, Phase::FinalDot, Act::reply("421 4.3.2 shutting down")),
    },
    Misdeed {
        name: "greylisting",
        proves: "a greylisted mail goes out at its second try",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, _, _| relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.7.1 greylisted")).for_each(1)),
    },
    Misdeed {
        name: "throttling",
        proves: "throttling slows down, and costs no mail a try",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, _, _| {
            let throttled = Act::reply("454 4.7.0 Throttling failure: Maximum sending rate exceeded.");
            relay.script(Rule::at(Phase::FinalDot, throttled).above(RATE));
        },
    },
    Misdeed {
        name: "550",
        proves: "a refusal fails its own mail, at once and with a dead letter",
        patience_s: NO_HURRY,
        reasons: &["rejected"],
        script: |relay, _, _| {
            relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")).every(5));
            relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.7.1 not wanted here")).every(6));
        },
    },
    Misdeed {
        name: "half_reply",
        proves: "half a reply is none",
        patience_s: HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, n, group| {
            sometimes(relay, n, Phase::Mail, Act::BytesThenStall(b"250 2.1".to_vec()));
            for phase in [Phase::Rcpt, Phase::FinalDot] {
                now_and_then(relay, group, phase, Act::BytesThenStall(b"250 2.".to_vec()));
            }
        },
    },
    Misdeed {
        name: "garbage",
        proves: "garbage is no reply, and after the final dot leaves the outcome unknown",
        patience_s: NO_HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, n, group| {
            sometimes(relay, n, Phase::Mail, Act::bytes(b"\xff\xfe\x00 what?\r\n"));
            for phase in [Phase::Rcpt, Phase::Data, Phase::FinalDot] {
                now_and_then(relay, group, phase, Act::bytes(b"\xc3\x28 HTTP/1.1 200 OK\r\n"));
            }
        },
    },
    Misdeed {
        name: "silent_greeting",
        proves: "a relay that does not greet is given up and probed",
        patience_s: HURRY,
        reasons: &[],
        script: |relay, _, _| relay.script(Rule::at(Phase::Greeting, Act::Stall).every(EVERY).times(3)),
    },
    Misdeed {
        name: "silent_ehlo",
        proves: "a relay that does not answer EHLO is given up and probed",
        patience_s: HURRY,
        reasons: &[],
        script: |relay, _, _| relay.script(Rule::at(Phase::Ehlo, Act::Stall).every(EVERY).times(3)),
    },
    Misdeed {
        name: "silent_mail",
        proves: "silence before MAIL is answered costs no mail a try",
        patience_s: HURRY,
        reasons: &[],
        script: |relay, n, _| sometimes(relay, n, Phase::Mail, Act::Stall),
    },
    Misdeed {
        name: "silent_rcpt",
        proves: "silence before the final dot means that the mail was not taken",
        patience_s: HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, _, group| now_and_then(relay, group, Phase::Rcpt, Act::Stall),
    },
    Misdeed {
        name: "silent_data",
        proves: "silence before the final dot means that the mail was not taken",
        patience_s: HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, _, group| now_and_then(relay, group, Phase::Data, Act::Stall),
    },
    Misdeed {
        name: "silent_content",
        proves: "a relay that stops reading is given up",
        patience_s: HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, _, group| now_and_then(relay, group, Phase::Content, Act::Stall),
    },
    Misdeed {
        name: "silent_dot",
        proves: "silence after the final dot leaves the outcome unknown: policy decides, under the same Message-ID",
        patience_s: HURRY,
        reasons: &[],
        script: |relay, _, group| {
            now_and_then(relay, group, Phase::FinalDot, Act::AcceptThenStall);
            now_and_then(relay, group, Phase::FinalDot, Act::Stall);
        },
    },
    Misdeed {
        name: "hangs_up_greeting",
        proves: "a relay that hangs up at once is probed",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, _, _| relay.script(Rule::at(Phase::Greeting, Act::Disconnect).every(EVERY).times(4)),
    },
    Misdeed {
        name: "hangs_up_mail",
        proves: "a link that breaks before MAIL is answered costs no mail a try",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, n, _| sometimes(relay, n, Phase::Mail, Act::Disconnect),
    },
    Misdeed {
        name: "hangs_up_rcpt_data",
        proves: "a link that breaks before the final dot means that the mail was not taken",
        patience_s: NO_HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, _, group| {
            now_and_then(relay, group, Phase::Rcpt, Act::Disconnect);
            now_and_then(relay, group, Phase::Data, Act::Disconnect);
        },
    },
    Misdeed {
        name: "hangs_up_content",
        proves: "a link that breaks in the middle of the content means that the mail was not taken",
        patience_s: NO_HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, _, group| now_and_then(relay, group, Phase::Content, Act::Disconnect),
    },
    Misdeed {
        name: "hangs_up_dot",
        proves: "a link that breaks after the final dot leaves the outcome unknown, whether the mail was taken or not",
        patience_s: NO_HURRY,
        reasons: &[],
        script: |relay, _, group| {
            now_and_then(relay, group, Phase::FinalDot, Act::AcceptThenDisconnect);
            now_and_then(relay, group, Phase::FinalDot, Act::Disconnect);
        },
    },
    Misdeed {
        name: "reply_too_many",
        proves: "a reply that nobody asked for never answers for the next mail",
        patience_s: NO_HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, _, group| {
            now_and_then(
                relay,
                group,
                Phase::FinalDot,
                Act::bytes(b"250 2.0.0 Ok: queued as 1\r\n250 2.0.0 and again\r\n"),
            );
            now_and_then(relay, group, Phase::Rcpt, Act::bytes(b"250 2.1.5 ok\r\n250 2.1.5 ok\r\n"));
        },
    },
    Misdeed {
        name: "reply_too_late",
        proves: "a reply that comes when nobody waits any more never answers for the next mail",
        patience_s: HURRY,
        reasons: &["tries_exhausted"],
        script: |relay, _, group| {
            now_and_then(relay, group, Phase::FinalDot, Act::Delay(Duration::from_millis(2500)));
            now_and_then(relay, group, Phase::Rcpt, Act::Delay(Duration::from_millis(1500)));
        },
    },
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![Case::new(
        "relay_refuses",
        "a relay that is not there holds the lanes, and costs no mail a try",
        (24, 300),
        refuses,
    )];
    cases.extend(MISDEEDS.iter().map(|misdeed| {
        Case::new(format!("relay_{}", misdeed.name), misdeed.proves, SIZE, move |run| play(run, misdeed))
    }));
    cases
}

/// What these cases have in common: nobody is put off but by the misdeed. Some are refused, so that a reply that is taken
/// for another's is found out: nothing may be sent to them.
pub(super) fn setup((step, dot): (u32, u32)) -> Setup {
    let mix = Mix { late: 0, gone: 15, heavy: 15, ..Mix::default() };
    let setup = Setup { mix, thinks: Duration::ZERO, ..Setup::default() };
    setup.with("SMTP_TIMEOUT_SECONDS", step.to_string()).with("SMTP_DOT_TIMEOUT_SECONDS", dot.to_string())
}

async fn play(run: Run, misdeed: &'static Misdeed) -> Report {
    let mut stage = Stage::set(run, setup(misdeed.patience_s)).await;
    stage.facts.reasons.extend(misdeed.reasons);
    (misdeed.script)(&stage.post.relay, stage.run.requests, &Suffered::default());
    stage.start_daemon(&[]);
    // In two parts, so that some find the relay as the others left it.
    stage.load.allow(stage.load.total() / 2);
    stage.until("some of it is sent", async |stage| stage.post.relay.look(|log| log.mails.len() >= 4)).await;
    stage.load.allow_all();
    stage.until("everything is published", async |stage| stage.load.is_done()).await;
    stage.until_over().await;
    // The stage's own rules come first.
    let misdeeds = stage.post.relay.misdeeds().split_off(USUAL_RULES);
    if misdeeds.iter().sum::<usize>() == 0 || stage.run.full && misdeeds.contains(&0) {
        let words = format!("the relay has behaved itself: {misdeeds:?} misdeeds");
        stage.found.push(Violation::general(Fault::Plan, words));
    }
    stage.conclude().await
}

async fn refuses(run: Run) -> Report {
    let rounds = run.either(4, 1);
    let mut stage = Stage::set(run, setup(NO_HURRY)).await;
    stage.start_daemon(&[]);
    let part = stage.load.total() / (rounds + 1);
    for round in 0..rounds {
        stage.load.allow(part);
        let wanted = round * part + part / 2;
        stage.until("some are sent", async |stage| stage.post.relay.look(|log| log.mails.len() >= wanted)).await;
        stage.post.relay.refuse_connections().await;
        stage.post.relay.cut_connections();
        tokio::time::sleep(Duration::from_millis(stage.random.between(1000..=3000))).await;
        stage.post.relay.take_connections().await;
        stage.note_mended();
    }
    stage.conclude().await
}

/// Before RCPT it cannot be told to whom it happens, only how often.
fn sometimes(relay: &Relay, requests: usize, phase: Phase, act: Act) {
    relay.script(Rule::at(phase, act).every(EVERY).times((requests / EVERY).max(2)));
}

/// A few times, to different recipients: a relay that never ends it gets next to nothing, and that is right.
fn a_few_times(relay: &Relay, group: &Suffered, phase: Phase, act: Act) {
    relay.script(Rule::at(phase, act).every(4).times(3).for_each(1).among(group));
}

/// To one in a few, and never twice to the same, whatever the step: one that may have been accepted and then fails for
/// another reason would be two cases in one.
fn now_and_then(relay: &Relay, group: &Suffered, phase: Phase, act: Act) {
    relay.script(Rule::at(phase, act).every(EVERY).for_each(1).among(group));
}
