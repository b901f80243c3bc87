//! A relay that says "not now" is asked again after the ladder's delays, and not for ever.

use std::time::Duration;

use postrider::email::Phase;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::ticket,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_says_not_now_twice_gets_one_mail_after_the_ladders_delays() {
    // Long enough for its copies to be seen.
    let post = Installation::start_with(&[("EMAIL_LADDER_STANDARD", "3s,8s")]).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 try later")).to("ada").times(2));
    let request = post.publish(&ticket("ada@example.bj")).await;
    // While it waits there is one copy of it, in a queue of its lane.
    let mut most = 0;
    while post.relay.log().accepted().count() == 0 {
        most = most.max(post.broker.retry_copies().await);
    }
    assert_eq!(most, 1, "one retry copy at a time");
    let row = post.database.wait_for(request, "sent").await.remove(0);
    assert_eq!(row.attempts, 3);
    let lines = post.database.timeline(row.id).await;
    let told: Vec<_> = lines.iter().map(|line| (line.kind.as_str(), line.attempt, line.reply_code)).collect();
    assert_eq!(told, [("deferred", 1, Some(451)), ("deferred", 2, Some(451)), ("sent", 3, Some(250))]);

    let log = post.relay.log();
    assert_eq!((log.mails.len(), log.accepted().count()), (3, 1));
    for (pair, rung) in log.mails.windows(2).zip([3000, 8000]) {
        let waited = pair[1].begun_at - pair[0].answered_at.expect("it was answered");
        assert!(waited >= Duration::from_millis(rung), "{waited:?} is less than {rung} ms");
    }
    // The same mail each time, but for the number of the attempt.
    let mails: Vec<_> = log.mails.iter().map(crate::support::mail::Mail::read).collect();
    assert!(mails.iter().all(|mail| format!("<{}>", mail.message_id) == row.message_id));
    assert!(mails.iter().all(|mail| mail.text == mails[0].text && mail.html == mails[0].html));
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_never_takes_a_mail_is_not_asked_more_often_than_the_template_says() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("450 4.2.1 mailbox busy")).to("busy"));
    let request = post.publish(&ticket("busy@example.bj")).await;
    let letter = post.database.wait_for_letter(request).await;
    assert_eq!((letter.reason.as_str(), letter.attempts), ("tries_exhausted", Some(3)));
    assert_eq!(letter.lane.as_deref(), Some("standard"));
    assert!(letter.error.as_deref().is_some_and(|error| error.contains("450")), "{letter:?}");
    let history = letter.header("x-history");
    let tries: Vec<_> = history.as_array().expect("a list").iter().map(|line| (&line["kind"], &line["code"])).collect();
    assert_eq!(tries.len(), 3, "every try is told: {history}");
    assert!(tries.iter().all(|(kind, code)| *kind == "deferred" && *code == 450), "{history}");
    let row = post.database.row(request).await;
    assert_eq!((row.status.as_str(), row.attempts, row.reason.as_deref()), ("failed", 3, Some("tries_exhausted")));
    assert_eq!(post.relay.log().transactions, 3);
    let shown = post.run(&["dead", "show", &request.to_string()]).await;
    assert!(shown.out.contains("tries_exhausted") && shown.out.matches("attempt 1").count() >= 1, "{shown:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_refuses_is_not_asked_again() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).to("gone"));
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.7.1 not wanted here")).to("unwanted"));
    for (to, code) in [("gone@example.bj", 550), ("unwanted@example.bj", 554)] {
        let request = post.publish(&ticket(to)).await;
        let letter = post.database.wait_for_letter(request).await;
        assert_eq!((letter.reason.as_str(), letter.attempts), ("rejected", Some(1)));
        assert!(letter.error.as_deref().is_some_and(|error| error.contains(&code.to_string())), "{letter:?}");
        let row = post.database.row(request).await;
        assert_eq!((row.status.as_str(), row.attempts), ("failed", 1));
        let lines = post.database.timeline(row.id).await;
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].kind.as_str(), lines[0].reply_code), ("rejected", Some(code)));
        assert_eq!((&lines[0].error, &row.error_message), (&letter.error, &letter.error), "the same words everywhere");
    }
    let log = post.relay.log();
    assert_eq!((log.transactions, log.accepted().count()), (2, 0));
    post.finish().await;
}
