//! Addresses beyond ASCII: a domain travels as its A-labels by every relay, a mailbox only by one that offers SMTPUTF8; what
//! none of the relays can carry is a dead letter that says so, and what another may carry waits for that one.

use postrider::email::Phase;
use tempfile::TempDir;

use crate::support::{
    installation::Installation,
    relay::{Act, Offer, Relay, Rule},
    requests::ticket,
    wait::until,
};

const AMELIE: &str = "amélie@example.bj";

fn without_smtputf8() -> Offer {
    Offer { smtputf8: false, ..Offer::default() }
}

/// An installation whose first relay offers no SMTPUTF8, and a second one that offers this.
async fn two_relays(folder: &TempDir, second: Offer) -> (Installation, Relay) {
    let (first, second) = tokio::join!(Relay::with(without_smtputf8()), Relay::with(second));
    let file = folder.path().join("postrider.toml");
    let relays = [("first", first.port()), ("second", second.port())].map(|(name, port)| {
        format!("[[relays]]\nname = \"{name}\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"plain\"\n")
    });
    std::fs::write(&file, relays.concat()).expect("a file");
    let mut post = Installation::prepare_on(first, &[("POSTRIDER_CONFIG", file.to_str().expect("UTF-8"))]).await;
    post.set(&[("SMTP_HOST", ""), ("SMTP_PORT", ""), ("SMTP_USE_TLS", "")]);
    (post, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_beyond_ascii_goes_by_any_relay_as_its_a_labels() {
    let mut post = Installation::prepare_on(Relay::with(without_smtputf8()).await, &[]).await;
    post.start_daemon().await;
    let request = post.publish(&ticket("contact@bücher.example")).await;
    post.database.wait_for(request, "sent").await;
    let mail = post.mails(1).await.remove(0);
    assert_eq!(mail.envelope_to, "contact@xn--bcher-kva.example");
    assert_eq!(mail.to.1, "contact@xn--bcher-kva.example");
    let received = post.relay.log().mails[0].clone();
    assert!(received.content.is_ascii() && !received.parameters.contains("SMTPUTF8"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mailbox_beyond_ascii_goes_by_a_relay_that_offers_it_and_says_so() {
    let post = Installation::start().await;
    let request = post.publish(&ticket(AMELIE)).await;
    post.database.wait_for(request, "sent").await;
    // An ASCII recipient whose Reply-To is not: the header needs it, if not the envelope.
    let mut other = ticket("ada@example.bj");
    other.reply_to = AMELIE.to_owned();
    let other = post.publish(&other).await;
    post.database.wait_for(other, "sent").await;
    // And an ordinary one behind them on the same connection does not.
    let plain = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(plain, "sent").await;
    let mails = post.mails(3).await;
    assert_eq!((mails[0].envelope_to.as_str(), mails[0].to.1.as_str()), (AMELIE, AMELIE));
    assert_eq!(mails[1].reply_to, AMELIE);
    let log = post.relay.log();
    for (mail, needed) in log.mails.iter().zip([true, true, false]) {
        assert_eq!(mail.parameters.contains("SMTPUTF8"), needed, "{}", mail.parameters);
        assert_eq!(mail.parameters.contains("BODY=8BITMIME"), needed, "{}", mail.parameters);
        assert_eq!(mail.content.is_ascii(), !needed);
        // The bodies are encoded all the same.
        let at = mail.content.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        assert!(mail.content[at..].is_ascii());
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_relay_can_carry_it_the_dead_letter_says_so_and_the_relay_is_not_asked() {
    let mut post = Installation::prepare_on(Relay::with(without_smtputf8()).await, &[]).await;
    post.start_daemon().await;
    let mut with_reply_to = ticket("ada@example.bj");
    with_reply_to.reply_to = AMELIE.to_owned();
    for request in [ticket(AMELIE), with_reply_to] {
        let request = post.publish(&request).await;
        let letter = post.database.wait_for_letter(request).await;
        assert_eq!(letter.reason, "rejected");
        assert!(letter.error.as_deref().is_some_and(|error| error.contains("SMTPUTF8")), "{letter:?}");
        assert!(!letter.error.as_deref().unwrap_or_default().contains("amélie"), "{letter:?}");
    }
    assert!(!post.relay.log().was_told("MAIL"));
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    let rows: i64 =
        sqlx::query_scalar("select count(*) from suppressions").fetch_one(&post.database.pool).await.expect("a count");
    assert_eq!(rows, 0, "the mailbox is not at fault");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_relay_that_can_carry_it_gets_it_in_the_same_delivery() {
    let folder = TempDir::new().expect("a folder");
    let (mut post, second) = two_relays(&folder, Offer::default()).await;
    post.start_daemon().await;
    let request = post.publish(&ticket(AMELIE)).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let kinds: Vec<_> = post.database.timeline(row.id).await.into_iter().map(|line| line.kind).collect();
    assert_eq!((row.attempts, kinds), (1, vec!["sent".to_owned()]));
    assert!(second.log().mails[0].parameters.contains("SMTPUTF8"));
    assert!(!post.relay.log().was_told("MAIL"));
    // Whoever does not need it goes by the first.
    let plain = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(plain, "sent").await;
    assert_eq!((post.relay.log().mails.len(), second.log().mails.len()), (1, 1));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_only_relay_that_may_carry_it_is_away_it_waits_and_burns_no_try() {
    let folder = TempDir::new().expect("a folder");
    let (mut post, second) = two_relays(&folder, Offer::default()).await;
    second.refuse_connections().await;
    post.start_daemon().await;
    let request = post.publish(&ticket(AMELIE)).await;
    until("it was put off", async || {
        let Some(row) = post.database.rows(request).await.into_iter().next() else { return false };
        post.database.timeline(row.id).await.iter().any(|line| {
            line.kind == "deferred" && line.error.as_deref().is_some_and(|words| words.contains("SMTPUTF8"))
        })
    })
    .await;
    second.take_connections().await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    assert_eq!(row.attempts, 1, "what was put off counts for nothing");
    assert_eq!((post.relay.log().mails.len(), second.log().mails.len()), (0, 1));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_neither_relay_can_carry_is_a_dead_letter_and_what_the_second_puts_off_is_put_off() {
    let folder = TempDir::new().expect("a folder");
    let (mut post, second) = two_relays(&folder, without_smtputf8()).await;
    post.start_daemon().await;
    let request = post.publish(&ticket(AMELIE)).await;
    let letter = post.database.wait_for_letter(request).await;
    assert!(
        letter.reason == "rejected" && letter.error.as_deref().is_some_and(|error| error.contains("SMTPUTF8")),
        "{letter:?}"
    );
    assert!(!post.relay.log().was_told("MAIL") && !second.log().was_told("MAIL"));
    post.finish().await;

    let (mut post, second) = two_relays(&folder, Offer::default()).await;
    second.script(Rule::at(Phase::Rcpt, Act::reply("451 4.3.0 later")).once());
    post.start_daemon().await;
    let request = post.publish(&ticket(AMELIE)).await;
    let row = post.database.wait_for(request, "sent").await.remove(0);
    let kinds: Vec<_> = post.database.timeline(row.id).await.into_iter().map(|line| line.kind).collect();
    assert_eq!((row.attempts, kinds), (2, vec!["deferred".to_owned(), "sent".to_owned()]));
    post.finish().await;
}
