//! The daemon is killed at every boundary of a message's path, again and again, and another takes over.
//!
//! Whoever dies at a boundary dies of the message that came there, as far as a daemon can tell. So that nobody dies of the same
//! one three times, which is what poison does, a daemon that lives finishes what is left after every second death.

use std::time::Duration;

use postrider::faults::Point;

use super::Case;
use crate::{
    ledger::{Fault, Violation},
    load::Mix,
    report::Report,
    stage::{Run, STUCK_MAX, Setup, Stage},
    support::relay::Offer,
};

/// Deaths at each point in the full form.
const KILLS: usize = 50;
/// The n-th message to come there dies with its daemon; more would only take longer.
const PASSAGES_MAX: u64 = 5;
/// Published for each daemon, so that there is always something left for the next.
const EACH: usize = 8;
/// Deaths until one lives.
const IN_A_ROW: usize = 2;
/// A daemon that lives for so long gets more to do.
const IMPATIENCE: Duration = Duration::from_secs(4);

pub(super) fn cases() -> Vec<Case> {
    let proves = |point| match point {
        Point::Consumed | Point::Decoded | Point::Rendered => "a message that nobody has looked at for long comes back",
        Point::Claimed | Point::Send => "a claim whose daemon is gone is taken over when its lease is over",
        Point::Mail | Point::Rcpt | Point::Data | Point::Content => {
            "a mail that cannot have been accepted goes out once"
        }
        Point::FinalDot | Point::Replied | Point::OutcomeDue => {
            "a mail that may have been accepted follows its policy, under the same Message-ID"
        }
        Point::ReplayCommitted | Point::ReplayConfirmed => "a letter whose replay was cut off can be replayed again",
        Point::EventsConfirmed => "an event that is told twice has the same id",
        Point::OutcomeCommitted | Point::CopyDue | Point::CopyConfirmed | Point::AckDue | Point::Acked => {
            "what is recorded is never sent again, and what it owes is done"
        }
    };
    Point::ALL
        .into_iter()
        .map(|point| Case::new(format!("kill_{}", point.name()), proves(point), (16, 520), move |run| play(run, point)))
        .collect()
}

fn setup(point: Point) -> Setup {
    let mut setup = Setup::default();
    match point {
        // Together with DATA they are one write, and no boundary.
        Point::Mail | Point::Rcpt => setup.offer = Offer { pipelining: false, ..Offer::default() },
        Point::Content => setup.mix = Mix { heavy: 100, incidents: 4, announcements: 4, ..Mix::default() },
        Point::CopyDue | Point::CopyConfirmed => setup.mix = Mix { late: 40, gone: 20, ..Mix::default() },
        _ => {}
    }
    setup
}

async fn play(run: Run, point: Point) -> Report {
    let kills = run.either(KILLS, 1);
    let mut stage = Stage::set(run, setup(point)).await;
    while stage.crew.kills < kills && stage.crew.faults.is_empty() {
        let passages = stage.random.between(1..=PASSAGES_MAX);
        let command = format!("{}#{passages}", point.name());
        stage.load.allow(EACH);
        let daemon = stage.start_daemon(&[("POSTRIDER_DIE_AT", &command)]);
        let mut waited = Duration::ZERO;
        while !stage.crew.dies_within(daemon, IMPATIENCE).await {
            // Only to a daemon that has nothing left to do: on a slow machine it may not have begun yet, and the requests of
            // the kills that follow would be used up.
            if stage.is_over_so_far().await {
                stage.load.allow(EACH);
            }
            waited += IMPATIENCE;
            if waited > STUCK_MAX {
                let words =
                    format!("{command} was not reached in {} s; {} kills so far", waited.as_secs(), stage.crew.kills);
                stage.found.push(Violation::general(Fault::Plan, words));
                return stage.conclude().await;
            }
        }
        stage.note_kill().await;
        if stage.crew.kills.is_multiple_of(IN_A_ROW) && stage.crew.kills < kills {
            stage.start_daemon(&[]);
            stage.until_over().await;
            stage.crew.stop().await;
        }
        if stage.crew.kills.is_multiple_of(10) {
            stage.run.say(&format!("{} of {kills} kills, {} requests", stage.crew.kills, stage.load.count()));
        }
    }
    stage.start_daemon(&[]);
    stage.conclude().await
}
