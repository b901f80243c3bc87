//! Throughput: the rows of a contest, run for run in turn.

use std::collections::HashMap;

use super::{
    carry::{self, Stage},
    postfix, relay,
    report::Row,
    requests::Content,
    rows::{Contest, Sender, Spec},
    run::Run,
    work::Relay,
};

/// Sizes of mails, weighed once each.
#[derive(Default)]
pub(crate) struct Sizes {
    bytes: HashMap<Content, u64>,
    payloads: HashMap<Content, u64>,
}

impl Sizes {
    /// Bytes of the daemon's mail with this content.
    pub(crate) async fn bytes(&mut self, stage: Stage<'_>, content: Content) -> anyhow::Result<u64> {
        if let Some(known) = self.bytes.get(&content) {
            return Ok(*known);
        }
        let size = carry::mail_size(stage, content).await?;
        self.bytes.insert(content, size);
        Ok(size)
    }

    /// What to ask of smtp-source so that its mails are as large.
    async fn payload(&mut self, stage: Stage<'_>, content: Content) -> anyhow::Result<u64> {
        if let Some(known) = self.payloads.get(&content) {
            return Ok(*known);
        }
        let payload = postfix::payload_for(self.bytes(stage, content).await?, stage.scratch).await?;
        self.payloads.insert(content, payload);
        Ok(payload)
    }
}

/// All runs of all rows. A row that fails is not run again; the others are.
pub(crate) async fn hold(stage: Stage<'_>, contest: Contest, sizes: &mut Sizes) -> Vec<Row> {
    let mut rows: Vec<(Sender, Row)> = Vec::with_capacity(contest.len());
    for Spec { key, title, sender, yardstick } in contest {
        let (bytes, error) = match sizes.bytes(stage, content_of(&sender)).await {
            Ok(bytes) => (bytes, None),
            Err(error) => (0, Some(format!("{error:#}"))),
        };
        rows.push((sender, Row { key, title, yardstick, bytes, runs: Vec::new(), note: None, error }));
    }
    for number in 1..=stage.args.runs {
        for (sender, row) in &mut rows {
            if row.error.is_some() {
                continue;
            }
            match send(stage, sender, sizes).await {
                Ok(run) => {
                    eprintln!("run {number}: {:<60} {:>7.0} mails/s", row.title, run.mails_per_second);
                    row.runs.push(run);
                }
                Err(error) => {
                    eprintln!("run {number}: {} failed: {error:#}", row.title);
                    row.error = Some(format!("{error:#}"));
                    // What it left would be in the way of the next.
                    if let Err(error) = stage.services.remove_sites().await {
                        eprintln!("{error:#}");
                    }
                }
            }
        }
    }
    for (sender, row) in &mut rows {
        row.note = note(stage, sender).await;
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

const fn content_of(sender: &Sender) -> Content {
    match sender {
        Sender::Source { content, .. } => *content,
        Sender::Daemons(work) => work.content,
    }
}

async fn send(stage: Stage<'_>, sender: &Sender, sizes: &mut Sizes) -> anyhow::Result<Run> {
    match sender {
        Sender::Source { content, connections, mails } => {
            let payload = sizes.payload(stage, *content).await?;
            postfix::source(*mails, *connections, payload, stage.scratch).await
        }
        Sender::Daemons(work) => carry::carry(stage, work).await,
    }
}

/// What a reader has to know of a row beyond its figures.
async fn note(stage: Stage<'_>, sender: &Sender) -> Option<String> {
    let Sender::Daemons(work) = sender else { return None };
    if work.subscriber {
        return Some("the subscriber runs in the benchmark, and its CPU is the benchmark's own".to_owned());
    }
    match work.relay {
        Relay::Plain => None,
        Relay::StartTls => Some("the relay's side of TLS is in the benchmark's own CPU, not in smtp-sink's".to_owned()),
        Relay::Distant { .. } => {
            let route = relay::Route::start(work.relay, stage.scratch).await.ok()?;
            let measured = route.round_trip().await.ok()?;
            Some(format!("a reply to NOOP takes {:.2} ms on that path", measured.as_secs_f64() * 1000.0))
        }
    }
}
