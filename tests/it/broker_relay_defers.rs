//! A relay that puts off one person's mail after another's does not turn them all into dead letters.

use postrider::email::Phase;
use reqwest::StatusCode;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_puts_everybody_off_burns_no_more_tries_than_it_takes_to_see_it() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 queue file write error")));
    post.relay.hold_final_dots();
    let requests: Vec<_> = (0..8).map(|n| ticket(&format!("person{n}@example.bj"))).collect();
    post.broker.publish_all(&requests).await;
    post.relay.wait_until("eight mails on the wire", |log| log.mails.len() == 8).await;
    post.relay.release_final_dots();
    let reason = post.daemon().wait_until_not_ready(": deferring: ").await;
    assert!(reason.contains("451"), "{reason}");
    // Far more than three tries of each of them, were they counted.
    post.relay.wait_until("many mails put off", |log| log.mails.len() >= 8 * 4).await;
    assert!(post.database.letters().await.is_empty());
    let (status, said) = post.daemon().readiness().await;
    assert_eq!((status, &said["relays"][0]["fault"]), (StatusCode::SERVICE_UNAVAILABLE, &"deferring".into()), "{said}");
    assert!(post.daemon().metric("email_relay_faults_total", &["fault=\"deferring\""]).await >= 1.0);

    post.relay.behave();
    let mut attempts = 0;
    for request in &requests {
        let row = post.database.wait_for(id(request), "sent").await.remove(0);
        attempts += row.attempts;
    }
    // The first four deferrals could have been the mails' own affair.
    assert_eq!(attempts, 8 + 4);
    assert_eq!(post.relay.log().accepted().count(), 8);
    assert!(post.database.letters().await.is_empty());
    assert_eq!(post.daemon().readiness().await.0, StatusCode::OK);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_who_is_always_put_off_gets_no_more_tries_for_it_and_closes_no_way() {
    let post = Installation::start().await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("452 4.2.2 mailbox full")).to("full"));
    for _ in 0..3 {
        let request = post.publish(&ticket("full@example.bj")).await;
        let letter = post.database.wait_for_letter(request).await;
        assert_eq!((letter.reason.as_str(), letter.attempts), ("tries_exhausted", Some(3)));
    }
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    let (status, said) = post.daemon().readiness().await;
    assert_eq!((status, &said["relays"][0]["state"]), (StatusCode::OK, &"up".into()), "{said}");
    post.finish().await;
}
