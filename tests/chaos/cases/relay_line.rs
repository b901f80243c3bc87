//! The line to the relay breaks, hangs and crawls, wherever the mails on it happen to be.

use std::{ops::RangeInclusive, time::Duration};

use super::Case;
use crate::{
    report::Report,
    stage::{Run, Setup, Stage},
    support::proxy::Proxy,
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "relay_line_cut",
            "a line to the relay that is cut leaves unknown what had its final dot, and nothing else",
            (40, 500),
            cut,
        ),
        Case::new(
            "relay_line_stalled",
            "a reply that hangs on the line for too long answers nobody, and what it said is not guessed",
            (40, 300),
            stalled,
        ),
    ]
}

async fn begin(run: Run) -> (Stage, Proxy) {
    let per_second = run.either(25, 20);
    // A try that a dead link cost counts; with many cuts some run out of them.
    let setup = Setup::default().with("SMTP_TIMEOUT_SECONDS", "1").with("SMTP_DOT_TIMEOUT_SECONDS", "2");
    let mut stage = Stage::set(run, setup).await;
    let line = Proxy::start(&format!("smtp://127.0.0.1:{}", stage.post.relay.port())).await;
    let through = url::Url::parse(&line.url("smtp://127.0.0.1:25")).expect("a URL").port().expect("a port");
    stage.post.variables.insert("SMTP_PORT".to_owned(), through.to_string());
    stage.facts.reasons.insert("tries_exhausted");
    stage.start_daemon(&[]);
    stage.start_daemon(&[]);
    stage.load.allow_per_second(per_second);
    (stage, line)
}

async fn cut(run: Run) -> Report {
    let (mut stage, line) = begin(run).await;
    loop {
        pause(&mut stage, 700..=2500).await;
        line.cut().await;
        stage.note_cut(true).await;
        pause(&mut stage, 50..=500).await;
        line.mend().await;
        stage.note_mended();
        if stage.load.is_done() {
            return stage.conclude().await;
        }
    }
}

async fn stalled(run: Run) -> Report {
    let (mut stage, line) = begin(run).await;
    loop {
        line.slow(Duration::from_millis(30));
        pause(&mut stage, 700..=2500).await;
        line.stall();
        // Replies that the relay writes from now on hang on the line; what they answer has no outcome all the while.
        stage.note_cut(true).await;
        pause(&mut stage, 2200..=3500).await;
        line.free();
        stage.note_let_go();
        stage.note_mended();
        if stage.load.is_done() {
            return stage.conclude().await;
        }
        pause(&mut stage, 500..=1000).await;
    }
}

async fn pause(stage: &mut Stage, ms: RangeInclusive<u64>) {
    tokio::time::sleep(Duration::from_millis(stage.random.between(ms))).await;
}
