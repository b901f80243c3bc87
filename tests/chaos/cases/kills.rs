//! Daemons are killed at no chosen moment, while others go on.

use std::time::Duration;

use super::Case;
use crate::{
    report::Report,
    stage::{Run, Setup, Stage},
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("random_kills", "two daemons killed at random moments under load", (60, 1800), |run| play(run, 2)),
        Case::new("one_of_three", "killing one of three daemons loses and repeats nothing", (60, 1200), |run| {
            play(run, 3)
        }),
        Case::new(
            "crash_loop",
            "a daemon that is killed over and over, from outside, blames and parks nobody for it",
            (40, 600),
            crash_loop,
        ),
    ]
}

/// Killed soon after each start, when it looks at what came back.
async fn crash_loop(run: Run) -> Report {
    let kills = run.either(40, 5);
    let mut stage = Stage::set(run, Setup::default()).await;
    let part = stage.load.total().div_ceil(kills);
    for _ in 0..kills {
        stage.load.allow(part);
        let daemon = stage.start_daemon(&[]);
        let life = stage.random.between(150..=1200);
        tokio::time::sleep(Duration::from_millis(life)).await;
        stage.crew.kill(daemon);
        stage.note_kill().await;
    }
    stage.start_daemon(&[]);
    stage.conclude().await
}

async fn play(run: Run, daemons: usize) -> Report {
    let per_second = run.either(40, 30);
    let kills_min = run.either(20, 2);
    let mut stage = Stage::set(run, Setup::default()).await;
    let mut alive: Vec<usize> = (0..daemons).map(|_| stage.start_daemon(&[])).collect();
    stage.load.allow_per_second(per_second);
    while !stage.load.is_done() || stage.crew.kills < kills_min {
        let pause = stage.random.between(1000..=3000);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let victim = usize::try_from(stage.random.next()).unwrap_or(0) % daemons;
        stage.crew.kill(alive[victim]);
        stage.note_kill().await;
        alive[victim] = stage.start_daemon(&[]);
        stage.run.say(&format!(
            "{} kills, {} of {} requests",
            stage.crew.kills,
            stage.load.count(),
            stage.load.total()
        ));
    }
    stage.conclude().await
}
