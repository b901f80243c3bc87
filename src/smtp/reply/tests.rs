//! Replies from bytes, and every row of the outcome table.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn parse(chunks: &[&[u8]]) -> Result<Option<RawReply>, LinkFault> {
    let (mut parser, mut incoming) = (ReplyParser::default(), BytesMut::new());
    for chunk in chunks {
        incoming.extend_from_slice(chunk);
        if let Some(reply) = parser.take(&mut incoming)? {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}

fn reply(bytes: &[u8]) -> Reply {
    parse(&[bytes]).expect("a sound reply").expect("a whole reply").to_reply(None)
}

#[test]
fn sound_replies_are_read_whole() {
    assert_eq!(reply(b"250 ok\r\n"), Reply { code: 250, enhanced: None, text: "ok".into() });
    assert_eq!(reply(b"250\r\n"), Reply { code: 250, enhanced: None, text: String::new() });
    assert_eq!(reply(b"250 2.0.0 Ok: queued\r\n").enhanced, Some((2, 0, 0)));
    assert_eq!(
        reply(b"550-5.1.1 no such\r\n550-5.1.1 user,\r\n550 5.1.1 sorry\r\n"),
        Reply { code: 550, enhanced: Some((5, 1, 1)), text: "5.1.1 no such user, sorry".into() }
    );
    // A status of another class than the code is only text.
    assert_eq!(reply(b"550 2.1.1 odd\r\n").enhanced, None);
    assert_eq!(reply(b"250 1.2.3.4 is welcome\r\n").enhanced, None);
    assert_eq!(reply(b"451 try\x07 later\n").text, "try later");
}

#[test]
fn text_that_is_not_utf8_leaves_the_code_alone() {
    let refusal = reply(b"550 bo\xeete pleine\r\n");
    assert_eq!((refusal.code, refusal.text.as_str()), (550, "bo\u{fffd}te pleine"));
}

#[test]
fn what_is_no_reply_is_an_error() {
    for bytes in [
        &b"hello\r\n"[..],
        b"25\r\n",
        b"\r\n",
        b"2500 ok\r\n",
        b"250_ok\r\n",
        b"150 wait\r\n",
        b"600 no\r\n",
        b"2\xb20 ok\r\n",
        b"250-one\r\n550 two\r\n",
        b"550-one\r\n250 two\r\n",
        &[b'2'; LINE_BYTES_MAX],
        &b"250-more\r\n".repeat(LINES_MAX + 1),
    ] {
        assert_eq!(
            parse(&[bytes]),
            Err(LinkFault::BadReply),
            "{}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(20)])
        );
    }
}

#[test]
fn half_a_reply_is_nothing_yet() {
    for bytes in [&b""[..], b"250", b"250 ok\r", b"250-ok\r\n", b"250-ok\r\n250 o"] {
        assert_eq!(parse(&[bytes]), Ok(None));
    }
}

#[test]
fn a_reply_that_repeats_the_recipient_is_masked() {
    let address = EmailAddress::parse("ada@example.bj").expect("valid");
    let raw = parse(&[b"550 5.1.1 <Ada@Example.bj>: ada@example.bj unknown\r\n"]).expect("sound").expect("whole");
    assert_eq!(raw.to_reply(Some(&address)).text, "5.1.1 <a***@***.bj>: a***@***.bj unknown");
    let long = format!("550 {}ada@example.bj\r\n", "x".repeat(TEXT_CHARS_MAX - 4));
    let text = parse(&[long.as_bytes()]).expect("sound").expect("whole").to_reply(Some(&address)).text;
    assert!(text.chars().count() == TEXT_CHARS_MAX && !text.contains("ada"), "cut before it was masked: {text}");
}

/// Bytes that look like replies more often than chance would have it.
fn bytes_of_a_relay() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        Just(b"250 ok\r\n".to_vec()),
        Just(b"250-ok\r\n".to_vec()),
        Just(b"354 go\r\n".to_vec()),
        Just(b"550-no\r\n".to_vec()),
        Just(b"550 no\r\n".to_vec()),
        Just(b"25".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b" ".to_vec()),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    prop::collection::vec(fragment, 0..8).prop_map(|fragments| fragments.concat())
}

/// The same grammar said another way: the first line without a hyphen ends the reply; all lines carry its code.
fn expected_code(bytes: &[u8]) -> Option<u16> {
    let mut codes = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n")?;
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
        codes.push(line.get(..3)?.parse::<u16>().ok().filter(|code| (200..600).contains(code))?);
        match line.as_bytes().get(3) {
            Some(b'-') => {}
            None | Some(b' ') => return codes.iter().all(|code| *code == codes[0]).then_some(codes[0]),
            Some(_) => return None,
        }
    }
    None
}

proptest! {
    #[test]
    fn no_bytes_in_no_chunks_panic_or_pass_for_success(
        bytes in bytes_of_a_relay(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        let whole = parse(&[&bytes]);
        // How the bytes are cut changes nothing.
        prop_assert_eq!(&parse(&chunks), &whole);
        let code = whole.ok().flatten().map(|reply| reply.code);
        prop_assert_eq!(code, expected_code(&bytes));
    }
}

fn refusal(phase: Phase, line: &str) -> SendReport {
    SendReport::Refused { phase, reply: reply(format!("{line}\r\n").as_bytes()) }
}

const fn cut(phase: Phase) -> SendReport {
    SendReport::Broken { phase, fault: LinkFault::Closed }
}

#[test]
fn every_row_of_the_outcome_table() {
    const PLATFORM: &str = "deferred, not counted";
    const COUNTED: &str = "deferred, counted";
    for (report, want) in [
        (SendReport::Accepted { reply: reply(b"250 ok\r\n") }, "sent"),
        // 421: it closes, whatever the step.
        (refusal(Phase::Mail, "421 4.3.2 shutting down"), PLATFORM),
        (refusal(Phase::Rcpt, "421 closing"), PLATFORM),
        (refusal(Phase::Content, "421 closing"), PLATFORM),
        (refusal(Phase::FinalDot, "421 closing"), PLATFORM),
        // Throttling.
        (refusal(Phase::FinalDot, "454 Throttling failure: Maximum sending rate exceeded."), PLATFORM),
        (refusal(Phase::Mail, "454 4.7.0 Temporary authentication failure"), PLATFORM),
        (refusal(Phase::Rcpt, "450 4.7.1 greylisted"), PLATFORM),
        (refusal(Phase::Rcpt, "450 your sending rate is too high"), PLATFORM),
        (refusal(Phase::Rcpt, "451 you are being throttled"), PLATFORM),
        // Settings.
        (refusal(Phase::Mail, "530 5.7.0 Authentication required"), PLATFORM),
        (refusal(Phase::Mail, "534 5.7.9 stronger mechanism needed"), PLATFORM),
        (refusal(Phase::Mail, "535 5.7.8 bad credentials"), PLATFORM),
        (refusal(Phase::Mail, "538 encryption required"), PLATFORM),
        (refusal(Phase::FinalDot, "530 odd"), "rejected"),
        // Other 4xx.
        (refusal(Phase::Mail, "451 4.3.0 try later"), COUNTED),
        (refusal(Phase::Rcpt, "452 4.2.2 mailbox full"), COUNTED),
        (refusal(Phase::Rcpt, "450 not accurate, the migrated corporate box"), COUNTED),
        (refusal(Phase::Data, "451 no"), COUNTED),
        (refusal(Phase::FinalDot, "451 4.3.0 try later"), COUNTED),
        // 5xx.
        (refusal(Phase::Mail, "550 no"), "rejected"),
        (refusal(Phase::Rcpt, "550 5.1.1 no such user"), "rejected"),
        (refusal(Phase::Data, "554 no"), "rejected"),
        (refusal(Phase::Content, "552 too large"), "rejected"),
        (refusal(Phase::FinalDot, "554 5.7.1 rate of spam too high"), "rejected"),
        // A dead link.
        (cut(Phase::Connect), PLATFORM),
        (cut(Phase::Greeting), PLATFORM),
        (cut(Phase::Ehlo), PLATFORM),
        (cut(Phase::StartTls), PLATFORM),
        (cut(Phase::Auth), PLATFORM),
        (cut(Phase::Mail), PLATFORM),
        (cut(Phase::Rcpt), COUNTED),
        (cut(Phase::Data), COUNTED),
        (cut(Phase::Content), COUNTED),
        (cut(Phase::FinalDot), "unknown"),
        (SendReport::NotCapable { missing: "no SMTPUTF8".into() }, "rejected"),
        (SendReport::Withdrawn { why: "it is past expires_at".into() }, PLATFORM),
        // Never produced; must not be a success, and after the dot nobody knows.
        (refusal(Phase::FinalDot, "354 go"), "unknown"),
        (refusal(Phase::Rcpt, "250 ok"), COUNTED),
    ] {
        let got = match classify(&report) {
            Outcome::Deferred { counted: true, .. } => COUNTED,
            Outcome::Deferred { counted: false, .. } => PLATFORM,
            other => other.name(),
        };
        assert_eq!(got, want, "{report:?}");
    }
}

#[test]
fn what_a_mails_fate_says_about_the_relay() {
    for (report, want) in [
        (SendReport::Accepted { reply: reply(b"250 ok\r\n") }, Lesson::Took),
        (refusal(Phase::Rcpt, "550 5.1.1 no such user"), Lesson::Refused),
        (refusal(Phase::FinalDot, "530 odd"), Lesson::Refused),
        (refusal(Phase::Mail, "530 5.7.0 Authentication required"), Lesson::Nothing),
        (refusal(Phase::FinalDot, "454 Throttling failure: Maximum sending rate exceeded."), Lesson::Throttles),
        (refusal(Phase::Rcpt, "450 your sending rate is too high"), Lesson::Throttles),
        (refusal(Phase::Mail, "421 4.7.0 too many messages"), Lesson::Throttles),
        (refusal(Phase::Mail, "421 4.4.2 idle for too long"), Lesson::Nothing),
        (refusal(Phase::Rcpt, "421 closing"), Lesson::Throttles),
        (refusal(Phase::FinalDot, "421 closing"), Lesson::Throttles),
        (refusal(Phase::Mail, "451 4.3.0 try later"), Lesson::PutOff),
        (refusal(Phase::Rcpt, "452 4.2.2 mailbox full"), Lesson::PutOff),
        (refusal(Phase::FinalDot, "451 4.3.0 try later"), Lesson::PutOff),
        // About one sender and one recipient.
        (refusal(Phase::Rcpt, "450 4.2.0 <x>: Recipient address rejected: Greylisted"), Lesson::Nothing),
        (refusal(Phase::Rcpt, "451 4.7.1 Greylisting in action, come back later"), Lesson::Nothing),
        (refusal(Phase::Rcpt, "554 you are not greylisted but refused"), Lesson::Refused),
        (cut(Phase::Mail), Lesson::Nothing),
        (cut(Phase::Rcpt), Lesson::PutOff),
        (cut(Phase::Content), Lesson::PutOff),
        (cut(Phase::FinalDot), Lesson::Nothing),
        (SendReport::NotCapable { missing: "no SMTPUTF8".into() }, Lesson::Nothing),
        (SendReport::Withdrawn { why: "it is past expires_at".into() }, Lesson::Nothing),
    ] {
        assert_eq!(lesson(&report), want, "{report:?}");
        // Only what burns a try can be the relay's affair instead.
        let counted = matches!(classify(&report), Outcome::Deferred { counted: true, .. });
        assert!(counted || want != Lesson::PutOff, "{report:?}");
    }
}

#[test]
fn who_is_refused_for_good_and_who_only_today() {
    const GONE: bool = true;
    const STAYS: bool = false;
    for (phase, line, want) in [
        (Phase::Rcpt, "550 5.1.1 no such user", GONE),
        (Phase::Rcpt, "551 5.1.6 has moved", GONE),
        (Phase::Rcpt, "501 5.1.3 bad address syntax", GONE),
        (Phase::Rcpt, "556 5.1.10 the domain accepts no mail", GONE),
        (Phase::Rcpt, "550 5.2.1 this account is disabled", GONE),
        (Phase::Rcpt, "550 5.2.1 receiving mail at a rate that prevents additional messages", STAYS),
        // No status, none that speaks of the mailbox, or one of another class than the code.
        (Phase::Rcpt, "550 no such user", STAYS),
        (Phase::Rcpt, "550 5.1.0 address rejected", STAYS),
        (Phase::Rcpt, "550 5.1.2 domain not found", STAYS),
        (Phase::Rcpt, "550 5.1.4 ambiguous", STAYS),
        (Phase::Rcpt, "550 5.1.8 bad sender", STAYS),
        (Phase::Rcpt, "552 5.2.2 mailbox full", STAYS),
        (Phase::Rcpt, "550 5.4.4 unable to route", STAYS),
        (Phase::Rcpt, "550 5.7.1 relaying denied", STAYS),
        (Phase::Rcpt, "554 5.7.1 listed", STAYS),
        (Phase::Rcpt, "550 4.1.1 odd", STAYS),
        (Phase::Rcpt, "450 4.1.1 no such user yet", STAYS),
        (Phase::Rcpt, "421 4.1.1 closing", STAYS),
        // It wants credentials: nothing is known of the address.
        (Phase::Rcpt, "530 5.1.1 odd", STAYS),
        // Said of the sender, or of the content.
        (Phase::Mail, "550 5.1.1 no such user", STAYS),
        (Phase::Data, "550 5.1.1 no such user", STAYS),
        (Phase::FinalDot, "550 5.1.1 no such user", STAYS),
    ] {
        assert_eq!(refuses_address(&classify(&refusal(phase, line))), want, "{phase} {line}");
    }
    assert!(!refuses_address(&classify(&cut(Phase::Rcpt))));
    let accepted = SendReport::Accepted { reply: reply(b"250 5.1.1 ok\r\n") };
    assert!(!refuses_address(&classify(&accepted)));
}

#[test]
fn the_error_names_step_and_words_and_has_an_end() {
    let Outcome::Rejected { error, .. } = classify(&refusal(Phase::Rcpt, "550 5.1.1 no such user")) else {
        panic!("a 550 is a rejection")
    };
    assert_eq!(error, "rcpt: 550 5.1.1 no such user");
    let fault = LinkFault::TimedOut(Duration::from_secs(600));
    let Outcome::Unknown { error } = classify(&SendReport::Broken { phase: Phase::FinalDot, fault }) else {
        panic!("a link that dies after the dot leaves us in the dark")
    };
    assert_eq!(error, "final_dot: no answer within 600 s");
    let SendReport::Refused { phase, mut reply } = refusal(Phase::Mail, "550 x") else { panic!("a refusal") };
    reply.text = "é".repeat(2000);
    let Outcome::Rejected { error, .. } = classify(&SendReport::Refused { phase, reply }) else {
        panic!("a rejection")
    };
    assert_eq!(error.chars().count(), TEXT_CHARS_MAX);
}
