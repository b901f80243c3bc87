//! The account must see what it is there to see.

use super::*;

const REQUEST: Uuid = Uuid::from_u128(1);
const ROW: Uuid = Uuid::from_u128(2);
const TO: &str = "a@example.bj";

fn expected() -> Expected {
    let recipient = TO.to_owned();
    Expected { request: REQUEST, recipient, holds: false, fast: false, refused: false, published_ms: 0 }
}

fn send(begun_ms: i64) -> Send {
    Send {
        row: ROW,
        request: REQUEST,
        recipient: TO.to_owned(),
        message_id: "m@x".to_owned(),
        begun_ms,
        dot_ms: begun_ms + 10,
        answered_ms: Some(begun_ms + 20),
        accepted: true,
        wrong: None,
    }
}

fn row(status: &str) -> Row {
    Row {
        id: ROW,
        request: REQUEST,
        recipient: TO.to_owned(),
        status: status.to_owned(),
        settlement: "none".to_owned(),
        message_id: "m@x".to_owned(),
        lines: 1,
        sent_lines: i64::from(status == "sent"),
        ..Row::default()
    }
}

fn cut(at_ms: i64, touched_ms: i64) -> Cut {
    let row = CutRow { row: ROW, recipient: TO.to_owned(), status: "sending".to_owned(), token: None, touched_ms };
    Cut { at_ms, until_ms: at_ms, excuses: true, rows: vec![row] }
}

fn facts(sends: Vec<Send>, rows: Vec<Row>) -> Facts {
    Facts { requests: 1, expected: vec![expected()], sends, rows, patience_ms: 10_000, ..Facts::default() }
}

fn faults(facts: &Facts) -> Vec<Fault> {
    judge(facts).1.into_iter().map(|violation| violation.fault).collect()
}

#[test]
fn one_mail_and_one_row_that_says_sent_is_in_order() {
    let (account, found) = judge(&facts(vec![send(100)], vec![row("sent")]));
    assert!(found.is_empty(), "{found:?}");
    assert_eq!((account.at_relay, account.sent, account.lost, account.repeated), (1, 1, 0, 0));
}

#[test]
fn what_nobody_knows_is_lost_and_so_is_what_is_only_said_to_be_sent() {
    assert_eq!(faults(&facts(vec![], vec![])), [Fault::Lost]);
    assert_eq!(faults(&facts(vec![], vec![row("sent")])), [Fault::SentWithoutMail]);
    assert_eq!(judge(&facts(vec![], vec![row("sent")])).0.lost, 1);
    // What may still be in its queue is late.
    assert_eq!(faults(&Facts { queued: 1, ..facts(vec![], vec![]) }), [Fault::Stuck]);
}

#[test]
fn a_repeat_needs_a_cut_at_which_its_row_had_no_outcome() {
    let mut facts = facts(vec![send(100), send(900)], vec![Row { unknown_lines: 1, ..row("sent") }]);
    assert_eq!(faults(&facts), [Fault::Repeated]);
    facts.cuts = vec![cut(150, 90)];
    let (account, found) = judge(&facts);
    assert!(found.is_empty(), "{found:?}");
    assert_eq!((account.repeated, account.allowed, account.sending_at_cuts), (1, 1, 1));
    // A cut before the send, the claim of a later try, a cut that only concerned the broker: none excuses it.
    for other in [cut(-600, -700), cut(150, 400), Cut { excuses: false, ..cut(150, 90) }] {
        facts.cuts = vec![other];
        assert_eq!(faults(&facts), [Fault::Repeated]);
    }
}

#[test]
fn what_hangs_on_a_line_arrives_when_the_line_lets_go() {
    let late = Send { dot_ms: 4000, answered_ms: Some(4010), ..send(100) };
    let mut facts = facts(vec![late, send(5000)], vec![Row { unknown_lines: 1, ..row("sent") }]);
    facts.cuts = vec![cut(150, 90)];
    assert_eq!(faults(&facts), [Fault::Repeated]);
    facts.cuts = vec![Cut { until_ms: 3900, ..cut(150, 90) }];
    assert!(faults(&facts).is_empty());
}

#[test]
fn a_final_dot_without_an_answer_excuses_a_repeat_and_a_late_answer_is_none() {
    for answered_ms in [None, Some(11_000)] {
        let first = Send { answered_ms, ..send(100) };
        let facts = facts(vec![first, send(20_000)], vec![Row { unknown_lines: 1, ..row("sent") }]);
        assert!(faults(&facts).is_empty());
    }
}

#[test]
fn a_repeat_that_the_timeline_does_not_tell_is_a_fault_even_if_it_is_excused() {
    let mut facts = facts(vec![send(100), send(900)], vec![row("sent")]);
    facts.cuts = vec![cut(150, 90)];
    assert_eq!(faults(&facts), [Fault::Timeline]);
}

#[test]
fn what_is_to_be_held_is_never_repeated_whatever_was_cut() {
    let mut facts = facts(vec![send(100), send(900)], vec![Row { unknown_lines: 1, ..row("sent") }]);
    facts.cuts = vec![cut(150, 90)];
    facts.expected[0].holds = true;
    assert_eq!(faults(&facts), [Fault::HeldRepeated]);
}

#[test]
fn a_failure_owes_one_letter_and_a_reason_that_was_expected() {
    let failed = Row { reason: Some("rejected".to_owned()), ..row("failed") };
    let mut facts = facts(vec![], vec![failed]);
    assert_eq!(faults(&facts), [Fault::Reason, Fault::Letter]);
    facts.expected[0].refused = true;
    facts.letters = vec![Letter { request: Some(REQUEST), reason: "rejected".to_owned() }];
    assert!(faults(&facts).is_empty());
    facts.letters.push(facts.letters[0].clone());
    assert_eq!(faults(&facts), [Fault::Letter]);
}

#[test]
fn a_mail_under_anothers_envelope_or_message_id_is_a_fault() {
    let stray = Send { wrong: Some("the header says another".to_owned()), ..send(100) };
    assert_eq!(faults(&facts(vec![stray], vec![row("sent")])), [Fault::Content]);
    let renamed = Send { message_id: "n@x".to_owned(), ..send(100) };
    assert_eq!(faults(&facts(vec![renamed], vec![row("sent")])), [Fault::MessageId]);
    let nobodys = Send { recipient: "b@example.bj".to_owned(), ..send(100) };
    assert_eq!(faults(&facts(vec![send(50), nobodys], vec![row("sent")])), [Fault::Content]);
}

#[test]
fn a_mail_without_a_row_is_a_fault_and_so_is_one_that_is_not_over() {
    assert!(faults(&facts(vec![send(100)], vec![])).contains(&Fault::MailWithoutRow));
    assert_eq!(faults(&facts(vec![], vec![row("queued")])), [Fault::Stuck]);
    let pending = Row { settlement: "pending".to_owned(), ..row("sent") };
    assert_eq!(faults(&facts(vec![send(100)], vec![pending])), [Fault::Stuck]);
}

#[test]
fn repeats_of_the_fast_lane_while_the_database_is_away_are_counted_apart() {
    let mut facts = facts(vec![send(100), send(900)], vec![Row { sent_lines: 2, ..row("sent") }]);
    facts.outages = vec![(50, 500)];
    facts.expected[0].fast = true;
    facts.expected[0].published_ms = 60;
    let (account, found) = judge(&facts);
    assert!(found.is_empty(), "{found:?}");
    facts.rows = vec![row("sent")];
    assert_eq!(faults(&facts), [Fault::Timeline], "nothing tells of the other one");
    facts.rows = vec![Row { sent_lines: 2, ..row("sent") }];
    assert_eq!((account.repeated, account.degraded, account.p0_away), (0, 1, 1));
    facts.p0_away_min = 2;
    assert_eq!(faults(&facts), [Fault::Away]);
    facts.expected[0].fast = false;
    assert!(faults(&facts).contains(&Fault::Repeated));
}

#[test]
fn of_an_incident_that_two_daemons_sent_each_has_its_line() {
    let twice = |sent_lines| Row { sent_lines, ..row("sent") };
    let mut facts = facts(vec![send(30), send(107)], vec![twice(2)]);
    facts.cuts = vec![cut(50, 20)];
    facts.outages = vec![(50, 500)];
    facts.expected[0].fast = true;
    let (account, found) = judge(&facts);
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(account.repeated, 1);
    facts.rows = vec![twice(1)];
    assert_eq!(faults(&facts), [Fault::Timeline], "nothing tells of the other one");
    facts.rows = vec![twice(3)];
    assert_eq!(faults(&facts), [Fault::Timeline], "more lines than mails");
    facts.rows = vec![twice(2)];
    facts.expected[0].fast = false;
    assert!(faults(&facts).contains(&Fault::Timeline), "no other lane goes without the database");
    facts.expected[0].fast = true;
    facts.outages = vec![(-60_000, -40_000)];
    assert!(faults(&facts).contains(&Fault::Timeline), "the database was there");
}
