//! One person gets as many mails as the cap says, whatever becomes of them on the way: what failed for good leaves its place to
//! others, what may have gone out keeps it, and what waits is not lost.

use postrider::email::Phase;

use crate::support::{
    caps::noon_zone,
    events::Subscriber,
    installation::Installation,
    relay::{Act, Rule},
    requests::{announcement, id, ticket},
    wait::until,
};

async fn start(settings: &[(&str, &str)]) -> Installation {
    let zone = noon_zone();
    let all: Vec<_> = [("EMAIL_TIMEZONE", zone.as_str())].into_iter().chain(settings.iter().copied()).collect();
    Installation::start_with(&all).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_mail_of_a_day_is_dropped_by_whatever_spelling_and_says_why() {
    let post = start(&[]).await;
    let subscriber = Subscriber::to(&post.broker, &["#"]).await;
    for (first, others) in [
        ("Ada@example.bj", ["ada@EXAMPLE.bj", "ADA@example.BJ"]),
        ("contact@bücher.example", ["Contact@xn--bcher-kva.example", "contact@BÜCHER.example"]),
        ("am\u{e9}lie@example.bj", ["ame\u{301}lie@example.bj", "AM\u{c9}LIE@example.bj"]),
    ] {
        let first = post.publish(&announcement(first)).await;
        let first = post.database.wait_for(first, "sent").await.remove(0);
        for other in others {
            let dropped = post.publish(&announcement(other)).await;
            let row = post.database.wait_for(dropped, "rate_limited").await.remove(0);
            assert_eq!((row.attempts, row.settlement.as_str()), (0, "none"));
            let why = "over the cap of 1/day for marketing mail (EMAIL_RATE_LIMIT_MARKETING)";
            assert_eq!(row.error_message.as_deref(), Some(why));
            let lines = post.database.timeline(row.id).await;
            assert_eq!(
                (lines.len(), lines[0].kind.as_str(), lines[0].error.as_deref()),
                (1, "rate_limited", Some(why))
            );
        }
        let places = post.database.places().await;
        assert_eq!(places.last().map(|place| (place.message_id, place.slot)), Some((first.id, 1)));
    }
    let heard = subscriber.wait_for(&post.database, 9).await;
    let limited = heard.iter().filter(|heard| heard.key == "marketing.rate_limited").count();
    assert_eq!(limited, 6, "{heard:?}");
    // Counted a moment after the rows say so.
    let dropped = async || post.daemon().metric("email_over_cap_total", &["result=\"dropped\"", "lane=\"bulk\""]).await;
    until("all are counted", async || dropped().await >= 6.0).await;
    assert_eq!(dropped().await, 6.0);
    assert!(post.database.letters().await.is_empty(), "policy is no failure");

    // Transactional mail has no cap, and leaves no trace of one.
    for _ in 0..3 {
        let sent = post.publish(&ticket("ada@example.bj")).await;
        post.database.wait_for(sent, "sent").await;
    }
    assert_eq!(post.database.places().await.len(), 3);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_for_one_person_are_as_many_as_the_cap_and_each_kind_has_its_own() {
    let post = start(&[("EMAIL_RATE_LIMIT_MARKETING", "3/day"), ("EMAIL_RATE_LIMIT_TRANSACTIONAL", "2/week")]).await;
    let mut all: Vec<_> = (0..20).map(|_| announcement("ada@example.bj")).collect();
    all.extend((0..20).map(|_| ticket("ada@example.bj")));
    all.extend((0..3).map(|_| announcement("bob@example.bj")));
    // Each in its own place of the request; the others of a request are none of its cap's business.
    let mut both = announcement("ada@example.bj");
    both.recipients.extend(announcement("eve@example.bj").recipients);
    all.push(both.clone());
    post.broker.publish_all(&all).await;
    let total = all.len() + 1;
    until("all are over", async || {
        post.database.count("sent").await + post.database.count("rate_limited").await == total
    })
    .await;
    let sent = |to: &str, subject_of: &str| {
        let log = post.relay.log();
        let mails: Vec<_> =
            log.accepted().filter(|mail| mail.to[0] == to).map(crate::support::mail::Mail::read).collect();
        mails.into_iter().filter(|mail| mail.subject.contains(subject_of)).count()
    };
    assert_eq!(sent("ada@example.bj", "Ticket"), 2);
    assert_eq!((sent("ada@example.bj", ""), sent("bob@example.bj", ""), sent("eve@example.bj", "")), (5, 3, 1));
    let eve = post.database.rows(id(&both)).await.remove(1);
    assert_eq!((eve.recipient_email.as_str(), eve.status.as_str()), ("eve@example.bj", "sent"));
    assert_eq!(post.database.places().await.len(), 5 + 3 + 1);
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redelivery_a_retry_and_a_duplicate_take_no_second_place() {
    let post = start(&[("EMAIL_RATE_LIMIT_MARKETING", "2/day")]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("ada").once());
    let first = announcement("ada@example.bj");
    for _ in 0..3 {
        post.publish(&first).await;
    }
    let row = post.database.wait_for(id(&first), "sent").await.remove(0);
    assert_eq!(row.attempts, 2);
    post.wait_until_idle().await;
    assert_eq!(post.database.places().await.len(), 1);
    // Whatever comes back now is a duplicate; the second of two is still free.
    post.publish(&first).await;
    let second = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_for(second, "sent").await;
    let third = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_for(third, "rate_limited").await;
    let slots: Vec<_> = post.database.places().await.iter().map(|place| place.slot).collect();
    assert_eq!(slots, [1, 2]);
    assert_eq!(post.relay.log().accepted().count(), 2);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_waits_for_one_that_may_still_fail_and_takes_its_place_when_it_does() {
    let post = start(&[("EMAIL_LADDER_BULK", "10s,20s")]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("ada").once());
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")).to("ada").once());
    let first = post.publish(&announcement("ada@example.bj")).await;
    until("the first was tried", async || post.database.rows(first).await.iter().any(|row| row.attempts == 1)).await;
    let second = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_until_postponed(second, "it waits for that one's outcome").await;
    assert_eq!(post.database.row(first).await.status, "queued", "it is not over yet");
    // It could be dropped now if it were thought to be over the cap.
    post.database.wait_for(first, "failed").await;
    let row = post.database.wait_for(second, "sent").await.remove(0);
    assert_eq!((row.attempts, row.error_message), (1, None), "waiting counts no attempt");
    let kinds: Vec<_> = post.database.timeline(row.id).await.into_iter().map(|line| line.kind).collect();
    assert_eq!(kinds, ["postponed", "sent"], "told once, however often it looked");
    let places = post.database.places().await;
    assert_eq!(places.iter().map(|place| place.message_id).collect::<Vec<_>>(), [row.id], "given back, and taken once");

    // Replayed, the first needs a place like any other, and there is none left today.
    let letter = post.database.wait_for_letter(first).await;
    let replayed = post.run(&["dead", "replay", &letter.id.to_string(), "--yes", "--json"]).await.json();
    assert_eq!(replayed["replayed"], 1, "{replayed}");
    post.database.wait_for(first, "rate_limited").await;
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_may_have_gone_out_keeps_its_place_until_that_is_known() {
    let post = start(&[]).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).to("ada").once());
    let first = post.publish(&announcement("ada@example.bj")).await;
    let letter = post.database.wait_for_letter(first).await;
    let held = post.database.row(first).await;
    assert_eq!((held.status.as_str(), held.held), ("unknown", true));
    let second = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_until_postponed(second, "it waits for that one's outcome").await;
    let seen = post.database.due_at(second).await;
    until("it has looked again", async || post.database.due_at(second).await > seen).await;
    assert_eq!(post.database.row(second).await.status, "queued", "an operator may yet find that the first never went");
    assert_eq!(post.database.places().await[0].message_id, held.id);

    // It is sent again under the place it has, and now the second is over the cap for certain.
    let replayed = post.run(&["dead", "replay", &letter.id.to_string(), "--yes", "--json"]).await.json();
    assert_eq!(replayed["replayed"], 1, "{replayed}");
    post.database.wait_for(first, "sent").await;
    post.database.wait_for(second, "rate_limited").await;
    assert_eq!(post.database.places().await.len(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_after_an_unknown_outcome_gives_nothing_back_and_what_ran_out_of_time_does() {
    let post = start(&[("EMAIL_LADDER_BULK", "10s,20s")]).await;
    // Held, replayed by an operator, and then refused: the first time it may have gone out all the same.
    post.relay.script(Rule::at(Phase::FinalDot, Act::Disconnect).to("ada").once());
    let first = post.publish(&announcement("ada@example.bj")).await;
    let letter = post.database.wait_for_letter(first).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")).to("ada").once());
    post.run(&["dead", "replay", &letter.id.to_string(), "--yes", "--json"]).await.json();
    post.database.wait_for(first, "failed").await;
    let second = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_for(second, "rate_limited").await;

    // Put off once, and past its time before its second try.
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("bob").once());
    let mut late = announcement("bob@example.bj");
    late.expires_at = Some(crate::support::requests::in_seconds(8.0));
    let late = post.publish(&late).await;
    until("it was tried", async || post.database.rows(late).await.iter().any(|row| row.attempts == 1)).await;
    post.database.wait_for(late, "expired").await;
    let next = post.publish(&announcement("bob@example.bj")).await;
    post.database.wait_for(next, "sent").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suppressed_mail_takes_no_place_and_a_mail_sent_again_needs_one() {
    let post = start(&[]).await;
    sqlx::query("insert into suppressions (address_hash, reason, source) values ($1, 'unsubscribe', 'test')")
        .bind(post.database.store().address_hash("ada@example.bj").as_slice())
        .execute(&post.database.pool)
        .await
        .expect("suppressed");
    let never = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_for(never, "suppressed").await;
    assert!(post.database.places().await.is_empty());

    // A recorded mail that an operator sends again is a request like any other.
    let first = post.publish(&announcement("bob@example.bj")).await;
    let sent = post.database.wait_for(first, "sent").await.remove(0);
    let path = format!("/api/v1/email/messages/{}/resend", sent.id);
    let (_, said) = post.daemon().post(&path, crate::support::daemon::OPERATOR_TOKEN, &serde_json::json!({})).await;
    let again = said["request_id"].as_str().and_then(|id| id.parse().ok()).expect("a request");
    post.database.wait_for(again, "rate_limited").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_speaks_of_a_cap_that_there_is_not_is_told_by_check() {
    let edit = ("support_ticket_created", "description =", "over_cap = \"defer\"\ndescription =");
    let folder = crate::support::requests::edited_templates(&[edit]);
    let post = start(&[("EMAIL_TEMPLATES_DIR", folder.path().to_str().expect("UTF-8"))]).await;
    let said = post.run(&["check", "--json"]).await.json();
    let notes: Vec<_> = said["warnings"].as_array().into_iter().flatten().filter_map(|note| note.as_str()).collect();
    let about: Vec<_> = notes.iter().filter(|note| note.contains("over_cap")).collect();
    assert_eq!(about.len(), 1, "{notes:?}");
    assert!(
        about[0].starts_with("template support_ticket_created: ") && about[0].contains("TRANSACTIONAL"),
        "{about:?}"
    );
    post.finish().await;
}
