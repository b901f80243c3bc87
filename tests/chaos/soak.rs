//! Hours at full rate, with faults sprinkled in: whatever grows without need shows, and in the end every mail is accounted for
//! as in any other case.
//!
//! Two daemons carry the load. One is killed now and then; the other lives through everything, and is what is measured: a
//! leak cannot hide behind a restart.

mod picture;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use comfy_table::{ContentArrangement, Table, presets};
use postrider::{broker::topology, email::Phase};
use serde_json::{Value, json};
use sqlx::FromRow;

use crate::{
    load::Mix,
    report::Report,
    stage::{Run, Setup, Stage},
    support::relay::{Act, Rule},
    transcript::now_ms,
};

/// Between two measurements.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Between two faults, in milliseconds.
const FAULT_EVERY_MS: std::ops::RangeInclusive<u64> = 15_000..=40_000;
/// Between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How the case is called.
pub const NAME: &str = "chaos_soak";
pub const PROVES: &str = "hours of load and faults leave memory, descriptors, connections and tables as they were";

/// One look at everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Seconds since the load began.
    pub at_s: f64,
    /// Mails that the relay took since the last look, a second.
    pub rate: f64,
    /// From publish to the relay's 250, of those, in milliseconds.
    pub median_ms: f64,
    pub p99_ms: f64,
    /// Resident memory of the daemon that is never killed, in MiB.
    pub resident_mib: f64,
    /// Its open descriptors.
    pub descriptors: f64,
    /// Connections of both daemons to the database.
    pub connections: f64,
    /// Tables and indexes of the audit, in KiB for each mail.
    pub kib_per_mail: f64,
    /// Rows that vacuum has not yet taken away, for each that lives.
    pub dead_rows: f64,
    /// Ready in the lanes.
    pub waiting: f64,
}

/// A figure, and how far it may rise from the second quarter of the run, when all caches are warm, to the last.
pub struct Figure {
    pub name: &'static str,
    pub of: fn(&Sample) -> f64,
    /// As a factor; nothing: it is shown only.
    factor_max: Option<f64>,
    /// Below this a rise is noise.
    noise: f64,
}

/// All of them, in the order of the picture.
pub const FIGURES: [Figure; 9] = [
    Figure { name: "mails a second", of: |s| s.rate, factor_max: None, noise: 0.0 },
    Figure { name: "publish to 250, median ms", of: |s| s.median_ms, factor_max: Some(2.0), noise: 100.0 },
    Figure { name: "publish to 250, p99 ms", of: |s| s.p99_ms, factor_max: None, noise: 0.0 },
    Figure { name: "resident memory, MiB", of: |s| s.resident_mib, factor_max: Some(1.15), noise: 8.0 },
    Figure { name: "descriptors", of: |s| s.descriptors, factor_max: Some(1.1), noise: 4.0 },
    Figure { name: "database connections", of: |s| s.connections, factor_max: Some(1.1), noise: 2.0 },
    Figure { name: "audit, KiB a mail", of: |s| s.kib_per_mail, factor_max: Some(1.15), noise: 1.0 },
    Figure { name: "dead rows a live row", of: |s| s.dead_rows, factor_max: Some(1.5), noise: 0.25 },
    Figure { name: "waiting in the lanes", of: |s| s.waiting, factor_max: None, noise: 0.0 },
];

/// What it came to.
pub struct Soaked {
    pub report: Report,
    pub samples: Vec<Sample>,
    /// When something was broken, in seconds, and what.
    pub faults: Vec<(f64, &'static str)>,
}

/// Plays it.
pub async fn play(minutes: u64, rate: usize, seed: u64, program: Option<String>) -> Soaked {
    let total = rate * usize::try_from(minutes * 60).expect("a number of seconds");
    let run = Run { name: NAME.to_owned(), proves: PROVES, seed, requests: total, full: true };
    // The relay keeps every mail until the account is drawn up, so that they are small.
    let setup = Setup { mix: Mix { heavy: 0, ..Mix::default() }, thinks: Duration::from_millis(5), ..Setup::default() };
    let mut stage = Stage::set(run, setup).await;
    stage.crew.program = program;
    let watched = stage.start_daemon(&[]);
    let mut victim = stage.start_daemon(&[]);
    let both = async |stage: &Stage| {
        stage
            .post
            .broker
            .depth(&topology::lane_queue(postrider::email::Lane::Fast))
            .await
            .is_some_and(|d| d.consumers == 2)
    };
    stage.until("both daemons consume", both).await;
    let pid = stage.crew.pid(watched).expect("it runs");
    stage.load.allow_per_second(rate);
    let (began, mut samples, mut faults) = (Instant::now(), Vec::new(), Vec::new());
    let mut last = Sampled::default();
    let (mut next_fault, mut next_words) = (Instant::now() + Duration::from_secs(20), Instant::now() + SAY_EVERY);
    let limit = Duration::from_secs(minutes * 60 * 2);
    while !stage.load.is_done() && began.elapsed() < limit {
        tokio::time::sleep(SAMPLE_EVERY).await;
        let sample = last.look(&stage, pid, began).await;
        samples.push(sample);
        if Instant::now() >= next_words {
            next_words += SAY_EVERY;
            stage.run.say(&format!(
                "{:.0} min: {} of {total} published, {:.0} a second, median {:.0} ms, {:.0} MiB, {} faults",
                sample.at_s / 60.0,
                stage.load.count(),
                sample.rate,
                sample.median_ms,
                sample.resident_mib,
                faults.len()
            ));
        }
        if Instant::now() >= next_fault {
            faults.push((began.elapsed().as_secs_f64(), disturb(&mut stage, &mut victim).await));
            next_fault = Instant::now() + Duration::from_millis(stage.random.between(FAULT_EVERY_MS));
        }
    }
    Soaked { report: stage.conclude().await, samples, faults }
}

/// One fault; says which.
async fn disturb(stage: &mut Stage, victim: &mut usize) -> &'static str {
    match stage.random.between(0..=5) {
        0 => {
            stage.crew.kill(*victim);
            stage.note_kill().await;
            *victim = stage.start_daemon(&[]);
            "a daemon was killed"
        }
        1 => {
            stage.amqp.cut().await;
            stage.note_cut(false).await;
            pause(stage, 100, 2000).await;
            stage.amqp.mend().await;
            stage.note_mended();
            "the lines to the broker were cut"
        }
        2 => {
            let from = now_ms();
            stage.sql.cut().await;
            stage.note_cut(true).await;
            pause(stage, 200, 4000).await;
            stage.note_cut(true).await;
            stage.sql.mend().await;
            stage.facts.outages.push((from, now_ms()));
            stage.note_mended();
            "the lines to the database were cut"
        }
        3 => {
            stage.sql.slow(Duration::from_millis(20));
            pause(stage, 2000, 4000).await;
            stage.sql.free();
            stage.note_mended();
            "the database was slow"
        }
        4 => {
            stage.post.relay.script(Rule::at(Phase::Mail, Act::reply("421 4.3.2 not now")).times(5));
            "the relay said 421 five times"
        }
        _ => {
            stage.post.relay.script(Rule::at(Phase::Mail, Act::Disconnect).times(5));
            "the relay hung up five times"
        }
    }
}

async fn pause(stage: &mut Stage, from: u64, to: u64) {
    tokio::time::sleep(Duration::from_millis(stage.random.between(from..=to))).await;
}

/// What the next look is compared with.
#[derive(Default)]
struct Sampled {
    sent: i64,
    at_s: f64,
}

#[derive(FromRow)]
struct Audit {
    sent: i64,
    median_ms: f64,
    p99_ms: f64,
    connections: i64,
    bytes: i64,
    mails: i64,
    live: i64,
    dead: i64,
}

impl Sampled {
    async fn look(&mut self, stage: &Stage, pid: u32, began: Instant) -> Sample {
        let audit: Audit = sqlx::query_as(
            "with recent as (
                select latency_ms from email_timeline where kind = 'sent' and at > now() - interval '5 seconds'),
             tables as (
                select coalesce(sum(pg_total_relation_size(relid)), 0)::bigint as bytes,
                    coalesce(sum(n_live_tup), 0)::bigint as live, coalesce(sum(n_dead_tup), 0)::bigint as dead
                from pg_stat_user_tables)
             select (select count(*) from email_timeline where kind = 'sent') as sent,
                coalesce((select percentile_cont(0.5) within group (order by latency_ms) from recent), 0)::float8 as median_ms,
                coalesce((select percentile_cont(0.99) within group (order by latency_ms) from recent), 0)::float8 as p99_ms,
                (select count(*) from pg_stat_activity
                 where datname = current_database() and application_name = 'postrider') as connections,
                (select count(*) from email_messages) as mails, tables.bytes, tables.live, tables.dead
             from tables",
        )
        .fetch_one(&stage.post.database.pool)
        .await
        .expect("the database itself is never away here");
        let mut waiting = 0;
        for lane in postrider::email::Lane::ALL {
            waiting += stage.post.broker.depth(&topology::lane_queue(lane)).await.map_or(0, |depth| depth.ready);
        }
        let at_s = began.elapsed().as_secs_f64();
        let sample = Sample {
            at_s,
            rate: (audit.sent - self.sent) as f64 / (at_s - self.at_s),
            median_ms: audit.median_ms,
            p99_ms: audit.p99_ms,
            resident_mib: resident_kib(pid) as f64 / 1024.0,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) as f64,
            connections: audit.connections as f64,
            kib_per_mail: audit.bytes as f64 / 1024.0 / audit.mails.max(1) as f64,
            dead_rows: audit.dead as f64 / audit.live.max(1) as f64,
            waiting: f64::from(waiting),
        };
        (self.sent, self.at_s) = (audit.sent, at_s);
        sample
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

impl Soaked {
    /// What rose and should not have, in words.
    pub fn rises(&self) -> Vec<String> {
        FIGURES
            .iter()
            .filter_map(|figure| {
                let (early, late) = self.quarters(figure);
                let max = figure.factor_max?;
                (late > early * max && late > early + figure.noise).then(|| {
                    format!("{} rose from {early:.1} to {late:.1}; at most {max} times as much is flat", figure.name)
                })
            })
            .collect()
    }

    /// Medians of the second quarter and of the last.
    fn quarters(&self, figure: &Figure) -> (f64, f64) {
        let quarter = self.samples.len() / 4;
        let median = |part: &[Sample]| {
            let mut values: Vec<f64> = part.iter().map(figure.of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        (median(&self.samples[quarter..2 * quarter]), median(&self.samples[self.samples.len() - quarter..]))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["figure", "second quarter", "last quarter", "ratio"]);
        for figure in &FIGURES {
            let (early, late) = self.quarters(figure);
            let ratio = if early > 0.0 { format!("{:.2}", late / early) } else { "-".to_owned() };
            table.add_row([figure.name.to_owned(), format!("{early:.1}"), format!("{late:.1}"), ratio]);
        }
        table.to_string()
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let samples: Vec<Value> = self
            .samples
            .iter()
            .map(|sample| {
                let mut object = json!({ "at_s": sample.at_s });
                for figure in &FIGURES {
                    object[figure.name] = json!((figure.of)(sample));
                }
                object
            })
            .collect();
        json!({ "samples": samples, "faults": self.faults, "rises": self.rises() })
    }

    /// Draws it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn draw(&self, file: &Path) -> std::io::Result<()> {
        std::fs::write(file, picture::svg(&self.samples, &self.faults))
    }
}
