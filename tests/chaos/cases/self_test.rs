//! The check checked: a daemon whose claims are answered and rolled back breaks the contract, and that must be seen.

use super::Case;
use crate::{
    ledger::Fault,
    load::Mix,
    report::Report,
    stage::{Run, Setup, Stage},
};

/// Each mail about so many times, before it is stopped.
const TIMES: usize = 3;

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new(
        "self_test",
        "a daemon that commits no claim sends mails that no row knows, and this program sees it",
        (12, 60),
        play,
    )]
}

async fn play(run: Run) -> Report {
    let mut stage =
        Stage::set(run, Setup { mix: Mix { late: 0, gone: 0, ..Mix::default() }, ..Setup::default() }).await;
    let wanted = stage.load.total() * TIMES;
    let liar = stage.start_daemon(&[("POSTRIDER_LEAVE_OUT", "claim_commit")]);
    stage.load.allow_all();
    let is_enough = async |stage: &Stage| stage.post.relay.look(|log| log.accepted().count()) >= wanted;
    stage.until("mails that nothing stops", is_enough).await;
    stage.crew.kill(liar);
    stage.note_kill().await;
    // An honest one finishes, so that what is found is the liar's doing alone.
    stage.start_daemon(&[]);
    let report = stage.conclude().await;
    Report { must_find: vec![Fault::Repeated, Fault::MailWithoutRow], ..report }
}
