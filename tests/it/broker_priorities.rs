//! The body's priority decides the lane, whatever the routing key says; and not everybody may use the fast one.

use postrider::wire;

use crate::support::{
    installation::Installation,
    requests::{id, incident, reminder, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routing_key_that_disagrees_with_the_body_does_not_decide() {
    let post = Installation::start().await;
    let urgent = incident("urgent@example.bj");
    post.broker.publish_to("incident.p3", &urgent).await;
    let leisurely = reminder("leisurely@example.bj");
    post.broker.publish_to("cutover.p0", &leisurely).await;
    let ordinary = ticket("ordinary@example.bj");
    post.broker.publish_to("support.p3", &ordinary).await;
    for (request, lane, people) in [(&urgent, "fast", 2), (&leisurely, "bulk", 1), (&ordinary, "standard", 1)] {
        let rows = post.database.wait_for(id(request), "sent").await;
        assert_eq!(rows.len(), people);
        assert!(rows.iter().all(|row| row.lane == lane && row.attempts == 1), "{lane}: {rows:?}");
    }
    assert_eq!(post.relay.log().mails.len(), 4);
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_may_not_use_the_fast_lane_travels_in_the_standard_one() {
    let post = Installation::start_with(&[("EMAIL_P0_SOURCES", "incident,sla")]).await;
    let mut presumptuous = ticket("presumptuous@example.bj");
    presumptuous.priority = wire::Priority::P0.into();
    post.publish(&presumptuous).await;
    let mut entitled = ticket("entitled@example.bj");
    entitled.source = "sla".to_owned();
    entitled.priority = wire::Priority::P0.into();
    post.publish(&entitled).await;
    for (request, lane) in [(&presumptuous, "standard"), (&entitled, "fast")] {
        let rows = post.database.wait_for(id(request), "sent").await;
        assert_eq!(rows[0].lane, lane, "{rows:?}");
    }
    post.finish().await;
}
