//! The database goes away, in every way that it does. Meanwhile the fast lane goes on.

use std::{ops::RangeInclusive, time::Duration};

use postrider::{broker::topology, email::Lane};
use sqlx::{AssertSqlSafe, Executor};

use super::Case;
use crate::{
    load::Mix,
    report::Report,
    services::Service,
    stage::{Run, Setup, Stage},
    transcript::now_ms,
};

/// Whatever writes to these finds no room.
const TABLES: [&str; 6] =
    ["email_requests", "email_messages", "email_timeline", "email_workers", "dead_letters", "attachment_blobs"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("db_cut", "a line to the database that is cut makes no outcome forgotten", (40, 800), cut),
        Case::new(
            "db_stalled",
            "a database that accepts and says nothing is not waited for for ever",
            (40, 600),
            stalled,
        ),
        Case::new("db_full", "a database without room pauses the lanes and fails no mail", (40, 600), full),
        Case::new("db_slow", "slow commits are slow, and nothing else", (40, 400), slow),
        Case::new("db_stopped", "a database that is gone for a minute is waited for", (40, 800), stopped).alone(),
        Case::new("db_restarted", "a database that restarts costs nothing", (40, 600), restarted).alone(),
    ]
}

async fn begin(run: Run) -> Stage {
    let per_second = run.either(20, 8);
    let mix = Mix { incidents: 25, ..Mix::default() };
    let mut stage = Stage::set(run, Setup { mix, ..Setup::default() }).await;
    stage.start_daemon(&[]);
    stage.start_daemon(&[]);
    // A daemon that is still starting cannot show that its fast lane outlives the database.
    let both = async |stage: &Stage| {
        stage.post.broker.depth(&topology::lane_queue(Lane::Fast)).await.is_some_and(|depth| depth.consumers == 2)
    };
    stage.until("both daemons consume", both).await;
    stage.load.allow_per_second(per_second);
    pause(&mut stage, 800..=1500).await;
    stage
}

async fn cut(run: Run) -> Report {
    let mut stage = begin(run).await;
    loop {
        let from = now_ms();
        stage.sql.cut().await;
        stage.note_cut(true).await;
        pause(&mut stage, 200..=4000).await;
        // What was claimed before may have gone out meanwhile, and could not be recorded.
        stage.note_cut(true).await;
        stage.sql.mend().await;
        is_back(&mut stage, from);
        if stage.load.is_done() {
            return stage.conclude().await;
        }
        pause(&mut stage, 1000..=3000).await;
    }
}

async fn stalled(run: Run) -> Report {
    let stalls = run.either(3, 1);
    let long = run.either(15_000..=30_000, 4000..=6000);
    let mut stage = begin(run).await;
    for _ in 0..stalls {
        let from = now_ms();
        stage.sql.stall();
        stage.note_cut(true).await;
        pause(&mut stage, long.clone()).await;
        stage.note_cut(true).await;
        stage.sql.free();
        is_back(&mut stage, from);
        pause(&mut stage, 4000..=5000).await;
        // What was given up in the middle of a transaction must not go on in it.
        stage.note_left_open().await;
    }
    stage.conclude().await
}

async fn full(run: Run) -> Report {
    let rounds = run.either(4, 1);
    let mut stage = begin(run).await;
    let pool = stage.post.database.pool.clone();
    let statement = "create function no_room() returns trigger language plpgsql as
        $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$";
    pool.execute(statement).await.expect("a function");
    for _ in 0..rounds {
        let from = now_ms();
        for table in TABLES {
            let statement = format!(
                "create trigger no_room before insert or update on {table} for each statement execute function no_room()"
            );
            pool.execute(AssertSqlSafe(statement)).await.expect("a trigger");
        }
        stage.note_cut(true).await;
        pause(&mut stage, 3000..=6000).await;
        stage.note_cut(true).await;
        for table in TABLES {
            pool.execute(AssertSqlSafe(format!("drop trigger no_room on {table}"))).await.expect("no trigger");
        }
        is_back(&mut stage, from);
        pause(&mut stage, 1000..=2000).await;
    }
    stage.conclude().await
}

async fn slow(run: Run) -> Report {
    let mut stage = begin(run).await;
    let pool = stage.post.database.pool.clone();
    for statement in [
        "create function slowly() returns trigger language plpgsql as
            $$ begin perform pg_sleep(0.02); return null; end $$",
        "create constraint trigger slowly after insert or update on email_messages deferrable initially deferred
            for each row execute function slowly()",
    ] {
        pool.execute(statement).await.expect("it is done");
    }
    stage.sql.slow(Duration::from_millis(20));
    stage.note_cut(false).await;
    stage.until("everything is published", async |stage| stage.load.is_done()).await;
    pause(&mut stage, 2000..=3000).await;
    stage.sql.free();
    pool.execute("drop trigger slowly on email_messages").await.expect("it is done");
    stage.note_mended();
    stage.conclude().await
}

async fn stopped(run: Run) -> Report {
    let long = run.either(60_000, 5000);
    let mut stage = begin(run).await;
    gone(&mut stage, long).await;
    stage.facts.p0_away_min = 1;
    stage.conclude().await
}

async fn restarted(run: Run) -> Report {
    let restarts = run.either(4, 1);
    let mut stage = begin(run).await;
    for _ in 0..restarts {
        gone(&mut stage, 0).await;
        pause(&mut stage, 1000..=3000).await;
    }
    stage.conclude().await
}

/// The server stops, and starts again after this long. Before a daemon gets to it, it is asked what it knows.
async fn gone(stage: &mut Stage, long_ms: u64) {
    let from = now_ms();
    Service::Database.control("stop").await;
    stage.sql.cut().await;
    tokio::time::sleep(Duration::from_millis(long_ms)).await;
    Service::Database.control("start").await;
    stage.note_cut(true).await;
    stage.sql.mend().await;
    is_back(stage, from);
}

fn is_back(stage: &mut Stage, from: i64) {
    stage.facts.outages.push((from, now_ms()));
    stage.note_mended();
}

async fn pause(stage: &mut Stage, ms: RangeInclusive<u64>) {
    tokio::time::sleep(Duration::from_millis(stage.random.between(ms))).await;
}
