//! An address that the relay refuses for good is not asked about again, until an operator says so.

use postrider::email::Phase;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::{incident, sample, ticket},
};

async fn suppressions(post: &Installation) -> Vec<(Option<String>, String, String, Option<String>)> {
    sqlx::query_as("select address, reason, source, note from suppressions order by address, reason")
        .fetch_all(&post.database.pool)
        .await
        .expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_exist_is_suppressed_and_gets_mail_again_when_an_operator_lifts_it() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 <Gone@example.bj>: no such user")).to("gone"));
    let refused = post.publish(&ticket("Gone@example.bj")).await;
    assert_eq!(post.database.wait_for_letter(refused).await.reason, "rejected");
    post.wait_until_settled().await;
    let note = Some("550 5.1.1 <G***@***.bj>: no such user".to_owned());
    let entry = (Some("Gone@example.bj".to_owned()), "hard_bounce".to_owned(), "smtp".to_owned(), note);
    assert_eq!(
        suppressions(&post).await,
        [entry],
        "written with the outcome, without the address in the relay's words"
    );

    // The relay would take it now, and is not asked; however the address is written.
    post.relay.behave();
    let transactions = post.relay.log().transactions;
    for request in [ticket("GONE@EXAMPLE.BJ"), sample("reseller_announcement", &["gone@example.bj"])] {
        let request = post.publish(&request).await;
        let row = post.database.wait_for(request, "suppressed").await.remove(0);
        assert_eq!(row.error_message.as_deref(), Some("on the suppression list: hard_bounce"));
    }
    assert_eq!(post.relay.log().transactions, transactions, "no dialogue");

    let lifted =
        post.run(&["suppressions", "remove", "gone@example.bj", "--note", "it is back", "--json"]).await.json();
    assert_eq!(lifted["lifted"][0]["reason"], "hard_bounce", "{lifted}");
    assert_eq!(lifted["left"].as_array().map(Vec::len), Some(0), "{lifted}");
    let again = post.publish(&ticket("gone@example.bj")).await;
    post.database.wait_for(again, "sent").await;
    // The letter of before can be replayed as well.
    assert_eq!(post.run(&["dead", "replay", &refused.to_string(), "--json"]).await.json()["replayed"], 1);
    post.database.wait_for(refused, "sent").await;

    let shown = post.run(&["suppressions", "show", "gone@example.bj", "--json"]).await.json();
    let history: Vec<_> = shown["history"]
        .as_array()
        .expect("a history")
        .iter()
        .map(|line| (line["change"].as_str().expect("what"), line["changed_by"].as_str().expect("who")))
        .collect();
    assert_eq!(history, [("added", "smtp"), ("lifted", "operator:cli")], "{shown}");
    assert_eq!(shown["history"][1]["note"], "it is back");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_refuses_us_suppresses_nobody() {
    let post = Installation::start().await;
    for (number, words) in
        ["550 5.7.1 relaying denied", "550 no such user", "552 5.2.2 mailbox full", "550 5.1.2 domain not found"]
            .into_iter()
            .enumerate()
    {
        let local = format!("ada{number}");
        post.relay.script(Rule::at(Phase::Rcpt, Act::reply(words)).to(&local).once());
        let address = format!("{local}@example.bj");
        let refused = post.publish(&ticket(&address)).await;
        assert_eq!(post.database.wait_for_letter(refused).await.reason, "rejected", "{words}");
        let next = post.publish(&ticket(&address)).await;
        post.database.wait_for(next, "sent").await;
    }
    // The same status about the content says nothing of the address.
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.1.1 odd")).to("last").once());
    let refused = post.publish(&ticket("last@example.bj")).await;
    post.database.wait_for_letter(refused).await;
    assert_eq!(suppressions(&post).await, []);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_refused_at_once_are_all_on_the_list_and_cost_the_others_nothing() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 no such user")).whose_address_begins("gone"));
    let requests: Vec<_> = (0..60)
        .map(|n| ticket(&if n % 3 == 0 { format!("gone{}@example.bj", n % 4) } else { format!("ada{n}@example.bj") }))
        .chain([incident("gone-at-once@example.bj")])
        .collect();
    post.broker.publish_all(&requests).await;
    post.relay.wait_for_mails(41).await;
    post.wait_until_idle().await;
    post.wait_until_settled().await;
    let listed: Vec<_> = suppressions(&post).await.into_iter().filter_map(|entry| entry.0).collect();
    let expected = ["gone-at-once", "gone0", "gone1", "gone2", "gone3"].map(|local| format!("{local}@example.bj"));
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!(post.database.count("sent").await, 41);
    assert_eq!(post.database.count("failed").await + post.database.count("suppressed").await, 21);
    let changes: i64 = sqlx::query_scalar("select count(*) from suppression_changes where change = 'added'")
        .fetch_one(&post.database.pool)
        .await
        .expect("an answer");
    assert_eq!(changes, 5, "each was added once");
    post.finish().await;
}
