use chrono::TimeZone;

use super::*;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn at(hours: i64) -> DateTime<Utc> {
    Utc.timestamp_opt(1_800_000_000 + hours * 3600, 0).single().expect("a time")
}

fn is(status: Status) -> RecipientFacts {
    RecipientFacts { status, held: false, suppressed: false, owed: false }
}

fn held() -> RecipientFacts {
    RecipientFacts { held: true, ..is(Status::Unknown) }
}

fn on_the_list(status: Status) -> RecipientFacts {
    RecipientFacts { suppressed: true, ..is(status) }
}

fn request(recipients: &[RecipientFacts]) -> KnownRequest {
    KnownRequest {
        generation: 0,
        expires_at: None,
        published_at: at(-1),
        template_version: Some(1),
        is_retransmission: false,
        payload_hash: PayloadHash([7; 32]),
        is_letters_own: true,
        recipients: recipients.to_vec(),
    }
}

fn letter(reason: Reason, request: Option<KnownRequest>) -> LetterFacts {
    LetterFacts {
        id: Uuid::nil(),
        state: LetterState::Waiting,
        reason: Some(reason),
        reason_name: reason.name().to_owned(),
        has_body: true,
        generation: 0,
        replay_generation: None,
        first_at: at(-1),
        request_id: request.as_ref().map(|_| Uuid::nil()),
        template_key: None,
        request,
    }
}

fn rejected(recipients: &[RecipientFacts]) -> LetterFacts {
    letter(Reason::Rejected, Some(request(recipients)))
}

fn decided(letter: &LetterFacts) -> Verdict {
    decide(letter, YEAR, at(0))
}

#[test]
fn only_what_failed_or_is_held_is_reopened_and_under_a_higher_generation() {
    let one = Verdict::Reopen { generation: 1 };
    assert_eq!(decided(&rejected(&[is(Status::Failed)])), one);
    assert_eq!(decided(&letter(Reason::OutcomeUnknown, Some(request(&[held()])))), one);
    assert_eq!(decided(&rejected(&[is(Status::Sent), is(Status::Failed), is(Status::Bounced)])), one);
    for status in Status::ALL.iter().filter(|status| **status != Status::Failed) {
        let verdict = decided(&rejected(&[is(*status)]));
        let skip = if status.is_final() { Skip::Over(*status) } else { Skip::OnItsWay };
        assert_eq!(verdict, Verdict::Skip(skip), "{status}");
    }
    // It failed again after a replay: a new letter, of the generation that failed.
    let known = KnownRequest { generation: 4, ..request(&[is(Status::Failed)]) };
    let again = LetterFacts { generation: 4, ..letter(Reason::Rejected, Some(known)) };
    assert_eq!(decided(&again), Verdict::Reopen { generation: 5 });
}

#[test]
fn a_letter_that_was_dealt_with_is_left_alone() {
    let failed = rejected(&[is(Status::Failed)]);
    for (state, skip) in [(LetterState::Replayed, Skip::Replayed), (LetterState::Discarded, Skip::Discarded)] {
        let letter = LetterFacts { state, replay_generation: Some(1), ..failed.clone() };
        assert_eq!(decided(&letter), Verdict::Skip(skip));
    }
    // An older letter of a request that was replayed since.
    let known = KnownRequest { generation: 1, ..request(&[is(Status::Failed)]) };
    assert_eq!(decided(&letter(Reason::Rejected, Some(known))), Verdict::Skip(Skip::Superseded));
}

#[test]
fn a_replay_that_was_cut_off_publishes_the_same_copy_unless_it_has_arrived() {
    let cut_off = |generation, recipients: &[RecipientFacts]| {
        let known = KnownRequest { generation, ..request(recipients) };
        let letter = letter(Reason::Rejected, Some(known));
        decided(&LetterFacts { state: LetterState::Replaying, replay_generation: Some(1), ..letter })
    };
    assert_eq!(cut_off(1, &[is(Status::Queued), is(Status::Sent)]), Verdict::Again { generation: 1 });
    assert_eq!(cut_off(1, &[is(Status::Sending)]), Verdict::Again { generation: 1 });
    assert_eq!(cut_off(1, &[is(Status::Sent)]), Verdict::Arrived);
    assert_eq!(cut_off(1, &[is(Status::Failed)]), Verdict::Arrived);
    assert_eq!(cut_off(2, &[is(Status::Queued)]), Verdict::Arrived);
    let without_rows = letter(Reason::Malformed, None);
    let without_rows = LetterFacts { state: LetterState::Replaying, replay_generation: Some(0), ..without_rows };
    assert_eq!(decided(&without_rows), Verdict::Again { generation: 0 });
}

#[test]
fn what_could_not_or_must_not_be_sent_is_skipped_with_its_reason() {
    let failed = [is(Status::Failed)];
    let expired = KnownRequest { expires_at: Some(at(0)), ..request(&failed) };
    let old = KnownRequest { published_at: at(-366 * 24), ..request(&failed) };
    let other_payload = KnownRequest { is_letters_own: false, ..request(&failed) };
    let last = KnownRequest { generation: i32::MAX, ..request(&failed) };
    for (letter, skip) in [
        (LetterFacts { has_body: false, ..rejected(&failed) }, Skip::Anonymised),
        (letter(Reason::Rejected, Some(expired)), Skip::Expired),
        (letter(Reason::Rejected, Some(old)), Skip::TooOld),
        (letter(Reason::TooOld, None), Skip::TooOld),
        (LetterFacts { first_at: at(-366 * 24), ..letter(Reason::Unrouted, None) }, Skip::TooOld),
        (letter(Reason::IdempotencyConflict, Some(request(&failed))), Skip::Conflict),
        (letter(Reason::Rejected, Some(other_payload.clone())), Skip::Forgotten),
        (letter(Reason::Unrouted, Some(other_payload)), Skip::OtherLetter),
        (letter(Reason::Rejected, None), Skip::Forgotten),
        (LetterFacts { generation: i32::MAX, ..letter(Reason::Rejected, Some(last)) }, Skip::LastGeneration),
    ] {
        assert_eq!(decided(&letter), Verdict::Skip(skip), "{letter:?}");
    }
}

#[test]
fn who_is_suppressed_gets_nothing_but_stops_nobody_else() {
    assert_eq!(decided(&rejected(&[on_the_list(Status::Failed)])), Verdict::Skip(Skip::Suppressed));
    assert_eq!(decided(&rejected(&[on_the_list(Status::Failed), is(Status::Sent)])), Verdict::Skip(Skip::Suppressed));
    let mixed = rejected(&[on_the_list(Status::Failed), is(Status::Failed)]);
    assert_eq!(decided(&mixed), Verdict::Reopen { generation: 1 });
}

#[test]
fn a_message_without_rows_or_that_its_rows_wait_for_goes_back_as_it_was() {
    let as_it_was = Verdict::Resume { generation: 0 };
    for reason in [Reason::Malformed, Reason::Poison, Reason::Unrouted, Reason::Broker] {
        assert_eq!(decided(&letter(reason, None)), as_it_was, "{reason}");
    }
    for reason in [Reason::Malformed, Reason::Poison, Reason::Broker] {
        let waits = KnownRequest { is_letters_own: false, ..request(&[is(Status::Sent), is(Status::Queued)]) };
        let letter = LetterFacts { generation: 3, ..letter(reason, Some(waits)) };
        assert_eq!(decided(&letter), Verdict::Resume { generation: 3 }, "{reason}");
    }
    // It failed, and this very message owes its letter.
    let owes = [RecipientFacts { owed: true, ..is(Status::Failed) }];
    let owing = KnownRequest { is_letters_own: false, ..request(&owes) };
    assert_eq!(decided(&letter(Reason::Broker, Some(owing))), as_it_was);
    // Another copy carries it: this one never reached a lane.
    let elsewhere = KnownRequest { is_letters_own: false, ..request(&[is(Status::Queued)]) };
    assert_eq!(decided(&letter(Reason::Unrouted, Some(elsewhere))), Verdict::Skip(Skip::OnItsWay));
}

#[test]
fn every_state_reads_back() {
    for state in LetterState::ALL {
        assert_eq!(LetterState::from_name(state.name()), Some(state));
    }
}
