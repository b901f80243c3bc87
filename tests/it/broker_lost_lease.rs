//! A daemon that cannot renew its lease in the middle of a mail: what it has to tell later makes no second send.

use std::process::ExitCode;

use crate::support::{
    daemon::Daemon,
    installation::Installation,
    proxy::Proxy,
    requests::{id, sample, ticket},
    wait::until,
};

/// A daemon that is cut off from broker and database while its mail is on the wire, until another one has taken over.
struct CutOff {
    post: Installation,
    cut_off: Daemon,
    database_line: Proxy,
    broker_line: Proxy,
}

async fn cut_off_with(request: &postrider::wire::EmailRequest) -> CutOff {
    let mut post = Installation::prepare(&[("EMAIL_LEASE_SECONDS", "1")]).await;
    post.declare_queues().await;
    let (database_line, broker_line) = tokio::join!(Proxy::start(post.database.url()), Proxy::start(post.broker.url()));
    let mut variables = post.variables.clone();
    variables.insert("DATABASE_URL".to_owned(), database_line.url(post.database.url()));
    variables.insert("AMQP_URL".to_owned(), broker_line.url(post.broker.url()));
    let cut_off = Daemon::start(&variables).await;
    post.relay.hold_final_dots();
    post.publish(request).await;
    post.relay.wait_until("it is on the wire", |log| log.mails.len() == 1).await;
    database_line.cut().await;
    broker_line.cut().await;
    until("its lease runs out", async || {
        sqlx::query_scalar("select not exists (select 1 from email_workers where lease_until > now())")
            .fetch_one(&post.database.pool)
            .await
            .expect("the audit answers")
    })
    .await;
    post.start_daemon().await;
    CutOff { post, cut_off, database_line, broker_line }
}

impl CutOff {
    /// The relay says yes to the first, and the line is there again to tell it.
    async fn come_back(&self) {
        self.post.relay.release_final_dots();
        self.database_line.mend().await;
        self.broker_line.mend().await;
    }

    async fn finish(self) {
        assert_eq!(self.cut_off.stop().await, ExitCode::SUCCESS);
        self.post.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_yes_settles_a_mail_that_was_held_for_an_operator() {
    let request = sample("reseller_announcement", &["reseller@example.bj"]);
    let all = cut_off_with(&request).await;
    let letter = all.post.database.wait_for_letter(id(&request)).await;
    assert_eq!(letter.reason, "outcome_unknown");
    let held = all.post.database.row(id(&request)).await;
    assert!(held.held && held.status == "unknown", "{held:?}");
    all.come_back().await;
    let row = all.post.database.wait_for(id(&request), "sent").await.remove(0);
    assert!(!row.held && row.sent_at.is_some(), "{row:?}");
    let kinds: Vec<_> = all.post.database.timeline(row.id).await.iter().map(|line| line.kind.clone()).collect();
    assert_eq!(kinds, ["unknown", "sent"]);
    assert_eq!(all.post.relay.log().mails.len(), 1, "it was sent once");
    all.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_yes_to_a_mail_that_somebody_else_sends_is_told_and_makes_no_third() {
    let request = ticket("ada@example.bj");
    let all = cut_off_with(&request).await;
    // The policy is to send it again, under the same name.
    all.post.relay.wait_until("the second is on the wire", |log| log.mails.len() == 2).await;
    all.come_back().await;
    let row = all.post.database.wait_for(id(&request), "sent").await.remove(0);
    until("both answers are told", async || {
        let lines = all.post.database.timeline(row.id).await;
        lines.iter().filter(|line| line.kind == "sent").count() == 2
    })
    .await;
    let mails = all.post.mails(2).await;
    assert!(mails.iter().all(|mail| format!("<{}>", mail.message_id) == row.message_id), "{mails:?}");
    assert_eq!(all.post.relay.log().mails.len(), 2);
    all.finish().await;
}
