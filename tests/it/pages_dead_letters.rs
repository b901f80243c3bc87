//! Dead letters and replays in the pages: looked at by reason, planned, started by a form of its own, discarded; and a mail
//! that is sent again.

use chrono::{DateTime, Utc};
use postrider::email::Phase;
use reqwest::StatusCode;

use crate::{
    admin_messages::fill,
    support::{
        browser::Browser,
        daemon::{OPERATOR_TOKEN, VIEWER_TOKEN},
        installation::Installation,
        pages::Visitor,
        relay::{Act, Rule},
        requests::{ticket, unset},
        wait::until,
    },
};

/// Letters that fail at once: a variable is missing, so that only another version or a discard helps.
async fn incomplete(post: &Installation, count: usize) {
    for n in 0..count {
        let mut request = ticket(&format!("ada.{n}@example.bj"));
        unset(&mut request, "title");
        post.publish(&request).await;
    }
    until("the letters are archived", async || letters(post, "waiting").await >= count).await;
}

async fn letters(post: &Installation, state: &str) -> usize {
    let count: i64 = sqlx::query_scalar("select count(*) from dead_letters where state = $1")
        .bind(state)
        .fetch_one(&post.database.pool)
        .await
        .expect("a count");
    usize::try_from(count).expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_look_sees_numbers_and_no_person_and_steers_nothing() {
    let post = Installation::start().await;
    incomplete(&post, 2).await;
    let id: uuid::Uuid =
        sqlx::query_scalar("select id from dead_letters limit 1").fetch_one(&post.database.pool).await.expect("a row");
    let viewer = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
    for path in ["/dead-letters".to_owned(), format!("/dead-letters/{id}"), "/replays".to_owned()] {
        let html = viewer.page(&path).await;
        assert!(!html.contains("ada.") && !html.contains("action=\"/replays\" method"), "{path}: {html}");
    }
    assert!(viewer.page("/dead-letters").await.contains("2 letters wait"));
    for (path, fields) in [
        ("/replays".to_owned(), [("reason", "")].as_slice()),
        (format!("/dead-letters/{id}/discard"), &[("note", "")]),
        (format!("/replays/{id}/start"), &[]),
        (format!("/messages/{id}/resend"), &[]),
    ] {
        assert_eq!(viewer.post(&path, fields).await.status(), StatusCode::FORBIDDEN, "{path}");
    }
    let operator = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    assert!(operator.page(&format!("/dead-letters/{id}")).await.contains("ada."));
    let seen: i64 = sqlx::query_scalar("select count(*) from operator_views where dead_letter_id = $1")
        .bind(id)
        .fetch_one(&post.database.pool)
        .await
        .expect("a count");
    assert_eq!(seen, 1, "the operator's look is noted, and a viewer's saw no person");
    for (path, status) in [
        ("/dead-letters?reason=none", StatusCode::BAD_REQUEST),
        ("/dead-letters/00000000-0000-0000-0000-000000000000", StatusCode::NOT_FOUND),
        ("/replays/00000000-0000-0000-0000-000000000000", StatusCode::NOT_FOUND),
        ("/replays/x", StatusCode::BAD_REQUEST),
        ("/replays?state=none", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(operator.look(path).await.status(), status, "{path}");
    }
    let done = operator.submit(&format!("/dead-letters/{id}/discard"), &[("note", "left")]).await;
    assert_eq!(done, format!("/dead-letters/{id}"));
    assert_eq!(letters(&post, "discarded").await, 1);
    post.finish().await;
}

/// Benin is an hour ahead, and pages show its time: half past eleven in the evening of UTC is the next day's first hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_is_searched_begins_where_operators_are() {
    let post = Installation::start().await;
    incomplete(&post, 1).await;
    let at: DateTime<Utc> = "2026-11-24T23:30:00Z".parse().expect("a time");
    let change = "update dead_letters set archived_at = $1, last_at = $1";
    sqlx::query(change).bind(at).execute(&post.database.pool).await.expect("changed");
    fill(&post, 3, at).await;
    let operator = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    for (day, next, mails, letters) in
        [("2026-11-25", "2026-11-26", "3 mails", "1 letter,"), ("2026-11-24", "2026-11-25", "0 mails", "0 letters,")]
    {
        let asked = format!("?since={day}&until={next}");
        let html = operator.page(&format!("/messages{asked}")).await;
        assert!(html.contains(mails) && html.contains(&format!("value=\"{day}\"")), "{day}: {html}");
        let html = operator.page(&format!("/dead-letters{asked}")).await;
        assert!(html.contains(letters) && html.contains(&format!("value=\"{day}\"")), "{day}: {html}");
        // What its form for a replay says is what was found.
        let hidden = |name: &str| {
            let (_, rest) = html.split_once(&format!("type=\"hidden\" name=\"{name}\" value=\"")).expect("a field");
            rest.split('"').next().expect("a value").to_owned()
        };
        let run = operator.submit("/replays", &[("since", &hidden("since")), ("until", &hidden("until"))]).await;
        let planned = if letters.starts_with('1') { "Planned to go out: 1" } else { "Planned to go out: 0" };
        assert!(operator.page(&run).await.contains(planned), "{day}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_is_sent_again_once_however_often_its_form_is_sent() {
    let post = Installation::start().await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    let mail = post.database.wait_for(request, "sent").await.remove(0);
    let operator = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    let html = operator.page(&format!("/messages/{}", mail.id)).await;
    let (_, rest) = html.split_once("name=\"key\" value=\"").expect("the form has a key");
    let key = rest.split('"').next().expect("a value");
    let path = format!("/messages/{}/resend", mail.id);
    let first = operator.submit(&path, &[("key", key)]).await;
    assert_eq!(operator.submit(&path, &[("key", key)]).await, first);
    assert!(first.starts_with("/messages?request_id="), "{first}");
    let mails = post.mails(2).await;
    assert_eq!(mails[0].subject, mails[1].subject);
    assert!(operator.page(&format!("/messages/{}", mail.id)).await.contains("operator:test-operator"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browser_dead_letters_are_planned_started_paused_and_followed_to_the_end() {
    let post = Installation::start().await;
    incomplete(&post, 1).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not today")));
    for n in 0..30 {
        post.publish(&ticket(&format!("refused.{n}@example.bj"))).await;
    }
    until("all are archived", async || letters(&post, "waiting").await == 31).await;
    post.wait_until_settled().await;
    post.relay.behave();

    let browser = Browser::start(post.daemon()).await;
    browser.sign_in(OPERATOR_TOKEN).await;
    browser.open("/dead-letters").await;
    browser.shows("31 letters wait").await;
    browser.inspect("dead-letters").await;
    browser.click("tbody a").await;
    browser.shows("30 letters").await;
    // So slow that it is not over before it is paused.
    browser.fill("input[name=rate]", "1").await;
    browser.click("form[action='/replays'] button").await;
    browser.shows("Nothing was sent.").await;
    assert!(browser.text().await.contains("Planned to go out: 30"));
    browser.inspect("replay-planned").await;
    assert!(post.relay.log().mails.is_empty(), "a plan sends nothing");

    browser.click("#progress form[action$=start] button").await;
    browser.shows("At most 1 letters a second").await;
    browser.click("#progress form[action$=pause] button").await;
    browser.shows("Nothing is sent until it is resumed.").await;
    browser.inspect("replay-paused").await;
    browser.click("#progress form[action$=resume] button").await;
    // Without a hand on the page: it follows by itself.
    browser.shows("Each letter has its result.").await;
    browser.inspect("replay-done").await;
    post.mails(30).await;
    browser.open("/replays").await;
    browser.shows("1 replay").await;
    browser.inspect("replays").await;

    browser.open("/dead-letters?state=waiting").await;
    browser.shows("1 letter, newest first").await;
    browser.click("section[aria-label=Letters] tbody a").await;
    browser.shows("What it says").await;
    browser.inspect("dead-letter").await;
    browser.click("button.danger").await;
    browser.client.accept_alert().await.expect("it asks first");
    browser.shows("discarded").await;
    browser.open("/changes").await;
    browser.shows("dead_letter.discard").await;
    assert!(browser.text().await.contains("replay.pause"));
    browser.close().await;
    post.finish().await;
}
