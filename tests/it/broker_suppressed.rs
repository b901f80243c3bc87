//! Who must not get mail does not get it, also when that is known only after the first try.

use postrider::email::Phase;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::{announcement, edited_templates, reminder, ticket},
    wait::until,
};

async fn suppress(post: &Installation, request: uuid::Uuid) {
    sqlx::query(
        "insert into suppressions (address_hash, reason, source)
         select recipient_hash, 'complaint', 'test' from email_messages where request_id = $1",
    )
    .bind(request)
    .execute(&post.database.pool)
    .await
    .expect("suppressed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suppression_that_comes_between_two_tries_stops_the_second_and_every_later_mail() {
    // Long enough between the tries for what happens there, also on a machine that stalls.
    let post = Installation::start_with(&[("EMAIL_LADDER_STANDARD", "15s,30s")]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).once());
    let first = post.publish(&ticket("complained@example.bj")).await;
    until("it waits for its second try", async || {
        post.database.rows(first).await.iter().any(|row| row.status == "queued" && row.attempts == 1)
    })
    .await;
    suppress(&post, first).await;
    post.database.wait_for(first, "suppressed").await;
    let later = post.publish(&ticket("complained@example.bj")).await;
    post.database.wait_for(later, "suppressed").await;
    assert_eq!(post.relay.log().accepted().count(), 0);
    assert!(post.database.letters().await.is_empty(), "policy is no failure");
    post.finish().await;
}

/// An address unsubscribes from a category, or from everything.
async fn unsubscribe(post: &Installation, address: &str, category: &str) {
    let store = post.database.store();
    sqlx::query(
        "insert into suppressions (address_hash, reason, category, source) values ($1, 'unsubscribe', $2, 'test')",
    )
    .bind(store.address_hash(address).as_slice())
    .bind(category)
    .execute(&post.database.pool)
    .await
    .expect("suppressed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_unsubscribed_from_a_category_still_gets_the_others_and_everything_that_is_no_marketing() {
    // Two marketing templates, of the categories marketing and cutover.
    let folder = edited_templates(&[("cutover_reminder", "kind = \"transactional\"", "kind = \"marketing\"")]);
    let post = Installation::start_with(&[
        ("EMAIL_TEMPLATES_DIR", folder.path().to_str().expect("UTF-8")),
        ("EMAIL_RATE_LIMIT_MARKETING", "unlimited"),
        ("EMAIL_LADDER_BULK", "15s,30s"),
    ])
    .await;
    unsubscribe(&post, "one@example.bj", "cutover").await;
    unsubscribe(&post, "all@example.bj", "").await;
    unsubscribe(&post, "other@example.bj", "Cutover").await;
    for (address, announced, reminded) in [
        ("one@example.bj", "sent", "suppressed"),
        ("all@example.bj", "suppressed", "suppressed"),
        ("other@example.bj", "sent", "suppressed"),
        ("nobody@example.bj", "sent", "sent"),
    ] {
        let wanted = [(announcement(address), announced), (reminder(address), reminded), (ticket(address), "sent")];
        for (request, status) in wanted {
            let request = post.publish(&request).await;
            let row = post.database.wait_for(request, status).await.remove(0);
            let why = row.error_message.unwrap_or_default();
            assert_eq!(why.contains("unsubscribe"), status == "suppressed", "{address}: {why}");
        }
    }

    // Known only after the first try, and in what would be sent again.
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).to("late").once());
    let late = post.publish(&reminder("late@example.bj")).await;
    until("it was tried", async || post.database.rows(late).await.iter().any(|row| row.attempts == 1)).await;
    unsubscribe(&post, "late@example.bj", "cutover").await;
    post.database.wait_for(late, "suppressed").await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")).to("refused"));
    let (reminded, announced) = (reminder("refused@example.bj"), announcement("refused@example.bj"));
    let refused = [post.publish(&reminded).await, post.publish(&announced).await];
    post.database.wait_for_letters(2).await;
    unsubscribe(&post, "refused@example.bj", "cutover").await;
    let plan = post.run(&["dead", "replay", "--all", "--dry-run", "--json"]).await.json();
    assert_eq!((&plan["total"], &plan["open"]), (&2.into(), &1.into()), "{plan}");
    let items: Vec<_> = plan["items"].as_array().expect("items").iter().collect();
    let goes = |key: &str| items.iter().any(|item| item["template_key"] == key && item["result"] == "open");
    assert!(goes("reseller_announcement") && !goes("cutover_reminder"), "{plan}");
    post.relay.behave();
    let replayed = post.run(&["dead", "replay", "--all", "--yes", "--json"]).await.json();
    assert_eq!((&replayed["replayed"], &replayed["skipped"]), (&1.into(), &1.into()), "{replayed}");
    post.database.wait_for(refused[1], "sent").await;
    assert_eq!(post.database.row(refused[0]).await.status, "failed");

    // Sent before, and not again to who wants it no more.
    let sent = post.publish(&reminder("again@example.bj")).await;
    let sent = post.database.wait_for(sent, "sent").await.remove(0);
    unsubscribe(&post, "again@example.bj", "marketing").await;
    let path = format!("/api/v1/email/messages/{}/resend", sent.id);
    let plan = async || post.daemon().get(&path, crate::support::daemon::ADMIN_TOKEN).await.1;
    assert_eq!(plan().await["why"], serde_json::Value::Null, "another category");
    unsubscribe(&post, "again@example.bj", "cutover").await;
    assert_eq!(plan().await["why"], "suppressed");
    post.finish().await;
}
