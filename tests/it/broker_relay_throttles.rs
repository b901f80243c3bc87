//! A relay that throttles is slowed down and shown as such; no mail burns a try for it, and all arrive once.

use postrider::email::Phase;
use reqwest::StatusCode;

use crate::support::{
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, incident, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_throttles_gets_every_mail_in_its_time_and_no_try_is_burnt() {
    let post = Installation::start().await;
    let throttled = "454 Throttling failure: Maximum sending rate exceeded.";
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply(throttled)).times(5));
    let mut requests: Vec<_> = (0..5).map(|n| ticket(&format!("person{n}@example.bj"))).collect();
    requests.push(incident("noc@example.bj"));
    post.broker.publish_all(&requests).await;
    for request in &requests {
        for row in post.database.wait_for(id(request), "sent").await {
            assert_eq!(row.attempts, 1);
        }
    }
    // The incident also went to the address that its template names.
    let log = post.relay.log();
    assert_eq!((log.accepted().count(), log.mails.len()), (7, 12), "each once, five of them in vain before");
    let (status, said) = post.daemon().readiness().await;
    assert_eq!((status, &said["relays"][0]["state"]), (StatusCode::OK, &"paced".into()), "{said}");
    assert!(said["relays"][0]["mails_per_second"].as_f64().is_some_and(|pace| pace > 0.0), "{said}");
    let daemon = post.daemon();
    assert_eq!(daemon.metric("email_relay_throttled_total", &[]).await, 5.0);
    assert!(daemon.metric("email_relay_pace", &[]).await > 0.0);
    assert_eq!(daemon.metric("email_relay_up", &[]).await, 1.0);
    assert_eq!(daemon.metric("email_relay_faults_total", &[]).await, 0.0);
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}
