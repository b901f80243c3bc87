//! "Did they get it?" asked of the admin API, where the audit holds millions of mails.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use postrider::{
    config::{AttachmentConfig, EventsMode, StoreConfig},
    store::Store,
};
use secrecy::SecretString;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};

use super::{
    carry::Stage,
    daemon::{self, Daemon},
    growth,
    relay::Route,
    report::Figure,
    rows, stats,
    work::{Audit, HASH_KEY, Relay, Which, daemon_settings},
};

/// Recipients that are asked for, each once a run.
const RECIPIENTS: u64 = 50;
/// Mails that each of them got, spread over the year.
const MAILS_EACH: u64 = 20;
const TOKEN: &str = "only-for-the-daemon-of-the-benchmark";
/// How long the daemon may take to answer at all.
const START_LIMIT: Duration = Duration::from_secs(30);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Median of the answers' times, each run; `filled` is the database.
pub(crate) async fn measure(stage: Stage<'_>, filled: String) -> anyhow::Result<Vec<Figure>> {
    let rows = stage.args.audit_rows;
    let title = format!("messages by recipient at {} rows", rows::with_spaces(rows));
    let mut figure = Figure::new("lookup", title, "ms", 1);
    figure.note = Some(format!("{RECIPIENTS} recipients of {MAILS_EACH} mails each, through the admin API"));
    let route = Route::start(Relay::Plain, stage.scratch).await?;
    let site = stage.services.new_site(Which::First, &Audit::Filled(filled)).await?;
    address_mails(&site.database_url, rows).await?;
    // Free a moment ago; nothing else here takes ports meanwhile.
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let own = vec![
        ("ADMIN_ADDR".to_owned(), format!("127.0.0.1:{port}")),
        ("ADMIN_TOKENS".to_owned(), format!("bench:operator:{TOKEN}")),
    ];
    let settings = daemon_settings(stage.args, &site, &route, own);
    daemon::migrate(&settings, stage.scratch)?;
    let mut daemon = Daemon::start(&settings, stage.scratch, 1)?;
    let measured = async {
        let list = format!("http://127.0.0.1:{port}/api/v1/email/messages");
        let http = reqwest::Client::new();
        until_it_answers(&mut daemon, &http, &list).await?;
        for number in 1..=stage.args.runs {
            let mut times = Vec::new();
            for recipient in 0..RECIPIENTS {
                times.push(ask(&http, &list, recipient).await?);
            }
            figure.add(stats::median(times));
            eprintln!("run {number}: messages by recipient {} ms", figure.last_words());
        }
        anyhow::Ok(())
    }
    .await;
    measured.with_context(|| daemon.last_words())?;
    daemon.end().await?;
    stage.services.remove_sites().await?;
    Ok(vec![figure])
}

fn address(recipient: u64) -> String {
    format!("asked-{recipient}@bench.example")
}

/// Gives some of the mails to the recipients that are asked for; the same ones whenever it is done.
async fn address_mails(database_url: &str, rows: u64) -> anyhow::Result<()> {
    let store = Store::new(
        &StoreConfig {
            url: SecretString::from(database_url),
            connections_max: 1,
            fast_connections_max: 1,
            hash_key: SecretString::from(HASH_KEY),
            events: EventsMode::Off,
            attachments: AttachmentConfig::default(),
        },
        START_LIMIT,
    )?;
    let database: PgPool = PgPoolOptions::new().max_connections(1).connect(database_url).await?;
    // Nobody is to hear of mails that were never sent.
    sqlx::query("set postrider.events = 'off'").execute(&database).await?;
    let step = rows / MAILS_EACH;
    for recipient in 0..RECIPIENTS {
        let updating = sqlx::query(AssertSqlSafe(format!(
            "update email_messages set recipient_hash = $1 where recipient_hash <> $1 and request_id = any(array(
                select {} from generate_series($2::bigint, $3::bigint, $4::bigint) as n))",
            growth::request_id()
        )));
        let (first, last, step) = (i64::try_from(recipient + 1)?, i64::try_from(rows)?, i64::try_from(step)?);
        let hash = store.address_hash(&address(recipient));
        updating.bind(hash.as_slice()).bind(first).bind(last).bind(step).execute(&database).await?;
    }
    sqlx::query("vacuum email_messages").execute(&database).await?;
    database.close().await;
    store.close().await;
    Ok(())
}

async fn until_it_answers(daemon: &mut Daemon, http: &reqwest::Client, list: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        daemon.must_run()?;
        let answer = http.get(list).query(&[("limit", "1")]).bearer_auth(TOKEN).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        ensure!(begun.elapsed() < START_LIMIT, "no answer within {} s", START_LIMIT.as_secs());
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Milliseconds from the request to the whole answer.
async fn ask(http: &reqwest::Client, list: &str, recipient: u64) -> anyhow::Result<f64> {
    let request = http.get(list).query(&[("to", address(recipient))]).bearer_auth(TOKEN);
    let begun = Instant::now();
    let answer = request.send().await?.error_for_status()?;
    let page: Value = serde_json::from_slice(&answer.bytes().await?)?;
    let taken = begun.elapsed();
    ensure!(page["total"] == MAILS_EACH, "{} mails instead of {MAILS_EACH}: {page}", page["total"]);
    Ok(taken.as_secs_f64() * 1000.0)
}
