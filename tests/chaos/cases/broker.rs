//! The broker goes away, in every way that it does.

use std::time::Duration;

use postrider::{broker::topology, email::Lane};

use super::Case;
use crate::{
    report::Report,
    services::Service,
    stage::{Run, Setup, Stage},
};

/// Published while a lane has no queue.
const IN_THE_GAP: usize = 3;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("broker_cut", "a line to the broker that is cut costs nothing and repeats nothing", (40, 800), cut),
        Case::new("broker_closed", "connections that an operator closes are made again", (40, 600), closed),
        Case::new("broker_queue_deleted", "a lane whose queue is deleted while empty goes on", (40, 400), deleted),
        Case::new("broker_restarted", "a node that restarts keeps what it confirmed", (40, 600), restarted).alone(),
        Case::new("broker_alarm", "a memory alarm blocks publishing, not sending", (40, 500), alarm).alone(),
    ]
}

async fn all_consumed(stage: &Stage) -> bool {
    for lane in Lane::ALL {
        let depth = stage.post.broker.depth(&topology::lane_queue(lane)).await;
        if depth.is_none_or(|depth| depth.consumers == 0) {
            return false;
        }
    }
    true
}

async fn begin(run: Run) -> Stage {
    let per_second = run.either(40, 20);
    let mut stage = Stage::set(run, Setup::default()).await;
    // Losing the broker keeps no outcome from the database, so that it excuses no repeat.
    stage.start_daemon(&[]);
    stage.start_daemon(&[]);
    stage.load.allow_per_second(per_second);
    stage
}

async fn cut(run: Run) -> Report {
    let mut stage = begin(run).await;
    loop {
        pause(&mut stage, 300..=1500).await;
        stage.amqp.cut().await;
        stage.note_cut(false).await;
        pause(&mut stage, 100..=1500).await;
        stage.amqp.mend().await;
        stage.note_mended();
        if stage.load.is_done() {
            return stage.conclude().await;
        }
    }
}

async fn closed(run: Run) -> Report {
    let mut stage = begin(run).await;
    loop {
        pause(&mut stage, 1000..=3000).await;
        stage.post.broker.close_connections("postrider").await;
        stage.note_cut(false).await;
        stage.note_mended();
        if stage.load.is_done() {
            return stage.conclude().await;
        }
    }
}

async fn deleted(run: Run) -> Report {
    let rounds = run.either(5, 1);
    let mut stage = Stage::set(run, Setup::default()).await;
    // What is published before the queue is there again finds no binding, and is archived as that.
    stage.facts.reasons.insert("unrouted");
    stage.start_daemon(&[]);
    for round in 0..rounds {
        stage.load.allow(stage.load.total() / (rounds + 1));
        let wanted = (round + 1) * (stage.load.total() / (rounds + 1)) + round * IN_THE_GAP;
        stage.until("a part is published", async |stage| stage.load.count() >= wanted).await;
        stage.until_over().await;
        let idle = async |stage: &Stage| stage.post.broker.not_empty().await.is_empty();
        stage.until("the queues are empty", idle).await;
        for lane in Lane::ALL {
            stage.post.broker.delete_queue(&topology::lane_queue(lane)).await;
        }
        stage.load.allow(IN_THE_GAP);
        stage.until("the lanes are consumed again", all_consumed).await;
        stage.note_mended();
    }
    stage.conclude().await
}

async fn restarted(run: Run) -> Report {
    let restarts = run.either(3, 1);
    let mut stage = begin(run).await;
    for _ in 0..restarts {
        pause(&mut stage, 500..=1500).await;
        stage.note_cut(false).await;
        Service::Broker.control("restart").await;
        stage.note_mended();
    }
    stage.conclude().await
}

async fn alarm(run: Run) -> Report {
    let alarms = run.either(3, 1);
    let mut stage = begin(run).await;
    for _ in 0..alarms {
        pause(&mut stage, 200..=500).await;
        Service::Broker.control("alarm-on").await;
        stage.note_cut(false).await;
        pause(&mut stage, 3000..=5000).await;
        Service::Broker.control("alarm-off").await;
        stage.note_mended();
    }
    stage.conclude().await
}

async fn pause(stage: &mut Stage, ms: std::ops::RangeInclusive<u64>) {
    tokio::time::sleep(Duration::from_millis(stage.random.between(ms))).await;
}
