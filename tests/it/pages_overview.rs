//! The overview shows how everything fares, what is wrong first, and lets operators steer lanes.

use postrider::email::Phase;
use reqwest::{Method, StatusCode};

use crate::support::{
    browser::Browser,
    daemon::{Daemon, OPERATOR_TOKEN, VIEWER_TOKEN},
    installation::Installation,
    pages::Visitor,
    relay::{Act, Rule},
    requests::{incident, reminder, ticket},
    wait::{until, until_some},
};

/// What a page says, tags left out.
fn words(html: &str) -> String {
    let mut text = String::new();
    let mut is_tag = false;
    for character in html.chars() {
        match character {
            '<' => {
                is_tag = true;
                text.push(' ');
            }
            '>' => is_tag = false,
            other if !is_tag => text.push(other),
            _ => {}
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The overview, nothing being wrong. A service that stands still for a moment may be named for as long.
async fn sound_page(visitor: &Visitor) -> String {
    until_some("nothing is wrong", async || {
        let html = visitor.page("/").await;
        html.contains("Nothing is known to stand in a mail's way.").then_some(html)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_pauses_a_lane_with_a_note_and_lets_it_go_on() {
    let post = Installation::start().await;
    let other = Daemon::start(&post.variables).await;
    let visitor = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    let html = sound_page(&visitor).await;
    assert!(html.contains("action=\"/lanes/bulk/pause\"") && html.contains("incidents (P0) wait"), "{html}");
    assert_eq!(visitor.submit("/lanes/bulk/pause", &[("note", "wrong <b>prices</b>")]).await, "/");
    // A paused lane is no fault.
    let html = sound_page(&visitor).await;
    assert!(html.contains("wrong &lt;b&gt;prices&lt;/b&gt;"), "a note is text: {html}");
    assert!(words(&html).contains("The bulk lane is paused since"), "{html}");
    until("neither daemon consumes it", async || {
        post.broker.depth("email.bulk").await.is_some_and(|depth| depth.consumers == 0)
    })
    .await;
    post.publish(&reminder("ada@example.bj")).await;
    until("the page counts it", async || words(&visitor.page("/").await).contains("Waiting 1 Retrying")).await;
    let html = Visitor::sign_in(&other, VIEWER_TOKEN).await.page("/").await;
    assert!(words(&html).contains("by operator:test-operator"), "at the other daemon too: {html}");

    assert_eq!(visitor.submit("/lanes/bulk/resume", &[("note", "")]).await, "/");
    post.relay.wait_for_mails(1).await;
    assert!(!visitor.page("/").await.contains("The bulk lane is paused"));
    let html = visitor.page("/changes").await;
    assert!(html.contains("lane.pause") && html.contains("lane.resume"), "{html}");
    other.stop().await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_and_a_forged_form_steer_nothing() {
    let post = Installation::start().await;
    let viewer = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
    let html = viewer.page("/").await;
    assert!(!html.contains("/lanes/bulk/pause"), "no button: {html}");
    assert_eq!(viewer.post("/lanes/bulk/pause", &[("note", "")]).await.status(), StatusCode::FORBIDDEN);
    let operator = Visitor::sign_in(post.daemon(), OPERATOR_TOKEN).await;
    let forged = operator.send(Method::POST, "/lanes/bulk/pause").form(&[("note", "")]).send().await;
    assert_eq!(forged.expect("an answer").status(), StatusCode::FORBIDDEN);
    assert_eq!(operator.post("/lanes/slow/pause", &[]).await.status(), StatusCode::NOT_FOUND);
    let long = "x".repeat(501);
    assert_eq!(operator.post("/lanes/bulk/pause", &[("note", &long)]).await.status(), StatusCode::BAD_REQUEST);
    let paused: i64 =
        sqlx::query_scalar("select count(*) from lane_pauses").fetch_one(&post.database.pool).await.expect("an answer");
    assert_eq!(paused, 0);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_stands_first_and_what_failed_is_counted_by_reason() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("550 5.7.1 no")).to("refused@example.bj").times(2));
    for _ in 0..2 {
        post.publish(&ticket("refused@example.bj")).await;
    }
    post.database.wait_for_letters(2).await;
    let visitor = Visitor::sign_in(post.daemon(), VIEWER_TOKEN).await;
    let html = visitor.page("/").await;
    assert!(html.contains("href=\"/dead-letters?reason=rejected\"") && words(&html).contains("rejected 2"), "{html}");

    post.relay.refuse_connections().await;
    post.relay.cut_connections();
    post.publish(&incident("duty@example.bj")).await;
    post.daemon().wait_until_not_ready("relay").await;
    let html = visitor.page("/").await;
    let wrong = html.find("What stands in mails&#39; way").or(html.find("What stands in mails' way"));
    assert!(wrong.is_some_and(|at| at < html.find("Waiting").expect("lanes")), "{html}");
    assert!(html.contains("refused") && html.contains("down"), "the relay's fault by name: {html}");
    post.relay.take_connections().await;
    post.relay.wait_for_mails(2).await;
    until("the page says so", async || visitor.page("/").await.contains("Nothing is known to stand in")).await;
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_overview_in_a_browser_is_kept_up_to_date_and_steers() {
    let post = Installation::start().await;
    let tickets: Vec<_> = (0..40).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&tickets).await;
    post.publish(&incident("duty@example.bj")).await;
    post.relay.wait_for_mails(42).await;
    let browser = Browser::start(post.daemon()).await;
    browser.sign_in(OPERATOR_TOKEN).await;
    browser.arrives_at("/").await;
    // Nobody loads it anew: the step in which they went must end first.
    browser.shows("a second at most").await;
    browser.shows("99th percentile of 2").await;
    browser.click("section[aria-labelledby=lane-bulk] summary").await;
    browser.fill("section[aria-labelledby=lane-bulk] input[name=note]", "wrong prices").await;
    browser.click("section[aria-labelledby=lane-bulk] button").await;
    browser.shows("The bulk lane is paused").await;
    browser.shows("wrong prices").await;
    browser.inspect("overview").await;
    browser.click("section[aria-labelledby=lane-bulk] summary").await;
    browser.inspect("overview-steering").await;
    browser.click("section[aria-labelledby=lane-bulk] button").await;
    browser.find("form[action='/lanes/bulk/pause']").await;
    browser.click("section[aria-labelledby=lane-fast] summary").await;
    browser.click("section[aria-labelledby=lane-fast] button").await;
    browser.client.dismiss_alert().await.expect("it asks first");
    assert!(!browser.text().await.contains("The fast lane is paused"));
    assert_eq!(browser.complaints().await, [""; 0], "the console has nothing to say");
    browser.close().await;
    post.finish().await;
}
