//! A message that kills whoever looks at it: it is parked, and its neighbours lose nothing.

use std::time::Duration;

use super::Case;
use crate::{
    audit,
    ledger::{Fault, Violation},
    load::draft,
    report::Report,
    stage::{Run, Setup, Stage},
    support::requests::ticket,
};

/// Once among its neighbours, then three times by itself; a few more for daemons that had not come to it.
const DEATHS_MAX: usize = 12;

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new(
        "poison",
        "a message that kills its daemon each time is parked as poison, and nobody else is",
        (24, 200),
        play,
    )]
}

async fn play(run: Run) -> Report {
    let rounds = run.either(4, 1);
    let mut stage = Stage::set(run, Setup::default()).await;
    let part = stage.load.total() / rounds;
    let mut poisons = Vec::new();
    for round in 0..rounds {
        let poison = draft(ticket(&format!("poison-{round}@example.bj")));
        let id = poison.request.id;
        stage.load.allow(part);
        stage.until("neighbours before it", async |stage| stage.load.count() >= round * part + part / 2).await;
        stage.post.broker.publish(&poison.wire).await;
        stage.load.add(poison.request);
        let command = format!("rendered@{id}");
        for deaths in 0.. {
            if deaths == DEATHS_MAX {
                let words = format!("{deaths} daemons died of one message, and it is not parked");
                stage.found.push(Violation::general(Fault::Plan, words));
                break;
            }
            let daemon = stage.start_daemon(&[("POSTRIDER_DIE_AT", &command)]);
            let mut is_dead = false;
            while !is_dead && !is_parked(&stage, id).await {
                is_dead = stage.crew.dies_within(daemon, Duration::from_millis(200)).await;
            }
            if !is_dead {
                break;
            }
            stage.note_kill().await;
        }
        stage.crew.stop().await;
        poisons.push(id);
    }
    stage.facts.reasons.insert("poison");
    stage.start_daemon(&[]);
    stage.until_over().await;
    for letter in audit::letters(&stage.post.database.pool).await {
        if letter.reason == "poison" && letter.request.is_none_or(|request| !poisons.contains(&request)) {
            stage.found.push(Violation::general(Fault::Reason, "an innocent message was parked as poison"));
        }
    }
    stage.conclude().await
}

async fn is_parked(stage: &Stage, id: uuid::Uuid) -> bool {
    let letters = audit::letters(&stage.post.database.pool).await;
    letters.iter().any(|letter| letter.request == Some(id) && letter.reason == "poison")
}
