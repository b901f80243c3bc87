//! One of two daemons loses the broker, and only the broker, in the middle of its SMTP transactions: the broker gives its
//! messages to the other, which must leave them alone.

use std::time::Duration;

use super::Case;
use crate::{
    report::Report,
    stage::{Run, Setup, Stage},
};

/// On the wire when the line is cut: more than one daemon has connections for in its standard lane.
const HELD: usize = 5;

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new(
        "one_of_two_cut",
        "what a daemon is sending is not sent by another, though the broker thinks it free",
        (48, 600),
        play,
    )]
}

async fn play(run: Run) -> Report {
    let rounds = run.either(12, 1);
    let mut stage =
        Stage::set(run, Setup::default().with("EMAIL_LEASE_SECONDS", "10").with("SMTP_DOT_TIMEOUT_SECONDS", "60"))
            .await;
    stage.facts.repeats_max = Some(0);
    let direct = stage.post.broker.url().to_owned();
    stage.start_daemon(&[]);
    stage.start_daemon(&[("AMQP_URL", &direct)]);
    let part = stage.load.total() / rounds;
    for _ in 0..rounds {
        let before = stage.post.relay.look(|log| log.mails.len());
        stage.post.relay.hold_final_dots();
        stage.load.allow(part);
        let on_the_wire = async |stage: &Stage| stage.post.relay.look(|log| log.mails.len()) >= before + HELD;
        stage.until("mails are on the wire", on_the_wire).await;
        stage.amqp.cut().await;
        stage.note_cut(false).await;
        // Time for the other to find what the broker hands it.
        tokio::time::sleep(Duration::from_millis(stage.random.between(1500..=3000))).await;
        stage.post.relay.release_final_dots();
        tokio::time::sleep(Duration::from_millis(stage.random.between(0..=500))).await;
        stage.amqp.mend().await;
        stage.note_mended();
        stage.until_over().await;
    }
    stage.conclude().await
}
