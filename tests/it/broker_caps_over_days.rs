//! A mail over the cap that its template defers waits for the next day or week, one for each, and no longer than it may.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use postrider::email::Phase;
use tempfile::TempDir;

use crate::support::{
    caps::noon_zone,
    installation::Installation,
    relay::{Act, Rule},
    requests::{announcement, edited_templates, in_seconds},
    wait::until,
};

/// With announcements that are deferred.
async fn start(settings: &[(&str, &str)]) -> (Installation, TempDir) {
    let folder = edited_templates(&[("reseller_announcement", "description =", "over_cap = \"defer\"\ndescription =")]);
    let zone = noon_zone();
    let usual = [("EMAIL_TIMEZONE", zone.as_str()), ("EMAIL_TEMPLATES_DIR", folder.path().to_str().expect("UTF-8"))];
    let all: Vec<_> = usual.into_iter().chain(settings.iter().copied()).collect();
    (Installation::start_with(&all).await, folder)
}

/// When the day or week of the calendar ends, by PostgreSQL's own knowledge of time zones.
async fn end_of(post: &Installation, unit: &str) -> DateTime<Utc> {
    sqlx::query_scalar("select (date_trunc($1, now() at time zone $2) + ('1 ' || $1)::interval) at time zone $2")
        .bind(unit)
        .bind(noon_zone())
        .fetch_one(&post.database.pool)
        .await
        .expect("a time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_deferred_mails_for_one_person_go_one_a_day() {
    let (post, _folder) = start(&[]).await;
    let first = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_for(first, "sent").await;
    let deferred: Vec<_> = (0..3).map(|_| announcement("ada@example.bj")).collect();
    post.broker.publish_all(&deferred).await;
    let deferred: Vec<_> = deferred.iter().map(crate::support::requests::id).collect();
    let midnight = end_of(&post, "day").await;
    for request in &deferred {
        post.database.wait_until_postponed(*request, "it waits until it may go").await;
        assert_eq!(post.database.due_at(*request).await, Some(midnight));
        let row = post.database.row(*request).await;
        assert_eq!((row.attempts, row.settlement.as_str()), (0, "none"));
    }
    // Counted a moment after the rows say so.
    let counted = async || post.daemon().metric("email_over_cap_total", &["result=\"deferred\""]).await;
    until("all are counted", async || counted().await >= 3.0).await;
    assert_eq!(counted().await, 3.0);
    // Their copies wait in steps, and are of no use before.
    until("they wait", async || post.broker.retry_copies().await == 3).await;
    for day in 1..=3 {
        assert_eq!(post.relay.log().accepted().count(), day);
        post.database.let_days_pass(1).await;
        until("one of them is sent", async || post.database.count("sent").await == day + 1).await;
        // The others have seen that it was, and wait for the day after.
        until("the others wait again", async || {
            let mut again = 0;
            for request in &deferred {
                again += usize::from(post.database.due_at(*request).await == Some(midnight));
            }
            again == 3 - day
        })
        .await;
    }
    assert_eq!(post.relay.log().accepted().count(), 4);
    let mut days: Vec<_> = post.database.places().await.iter().map(|place| place.window_start).collect();
    days.sort();
    assert!(days.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::days(1)), "{days:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_week_of_the_calendar_ends_on_sunday_night() {
    let (post, _folder) = start(&[("EMAIL_RATE_LIMIT_MARKETING", "2/week")]).await;
    for _ in 0..2 {
        let sent = post.publish(&announcement("ada@example.bj")).await;
        post.database.wait_for(sent, "sent").await;
    }
    let third = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_until_postponed(third, "2/week").await;
    let sunday_night = end_of(&post, "week").await;
    assert_eq!(post.database.due_at(third).await, Some(sunday_night));
    for place in post.database.places().await {
        assert_eq!(place.window_start, sunday_night - TimeDelta::days(7), "Etc/... zones put no clock back");
    }
    post.database.let_days_pass(7).await;
    post.database.wait_for(third, "sent").await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_mail_past_its_expiry_is_never_sent_and_that_is_told_when_it_comes() {
    let (post, _folder) = start(&[]).await;
    let first = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_for(first, "sent").await;
    let mut late = announcement("ada@example.bj");
    late.expires_at = Some(in_seconds(10.0));
    let late = post.publish(&late).await;
    post.database.wait_until_postponed(late, "it waits until it may go").await;
    let row = post.database.wait_for(late, "expired").await.remove(0);
    let kinds: Vec<_> = post.database.timeline(row.id).await.into_iter().map(|line| line.kind).collect();
    assert_eq!(kinds, ["postponed", "expired"]);
    assert_eq!(post.relay.log().accepted().count(), 1);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_age_of_a_deferred_mail_counts_from_the_end_of_its_wait() {
    let age_max = Duration::from_secs(15);
    let (post, _folder) = start(&[("EMAIL_AGE_MAX_BULK", "15s")]).await;
    let first = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_for(first, "sent").await;
    let published = Instant::now();
    let second = post.publish(&announcement("ada@example.bj")).await;
    post.database.wait_until_postponed(second, "it waits until it may go").await;
    until("it is older than mails may be", async || published.elapsed() > age_max).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("ada").once());
    post.database.let_days_pass(1).await;
    let row = post.database.wait_for(second, "sent").await.remove(0);
    assert_eq!(row.attempts, 2, "it was put off, and not given up for its age");
    assert_eq!(post.daemon().metric("email_deadline_missed_total", &[]).await, 0.0);
    post.finish().await;
}
