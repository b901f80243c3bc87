//! An audit that holds millions of rows already, filled by plain SQL and kept for later invocations.
//!
//! Widths are those of the benchmark's own mails. The newest tenth has its bodies and variables; the rest is as anonymising
//! leaves it, since nobody keeps ten million mails for less than the ninety days after which that is done.

use std::time::Instant;

use anyhow::Context;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgPool, Row as _, postgres::PgPoolOptions};

use super::{
    carry::Stage,
    daemon,
    relay::Route,
    services::Site,
    work::{Relay, daemon_settings},
};

/// What the names of such databases begin with.
const NAME: &str = "bench_audit";
/// One in so many mails still has its bodies: the newest.
const BODIES_PART: u64 = 10;
const TABLES: [&str; 3] = ["email_requests", "email_messages", "email_timeline"];
/// Memory for making an index; PostgreSQL's default sorts ten million rows on disk.
const INDEX_MEMORY: &str = "512MB";

/// The name of the database with that many rows of the schema of today.
pub(crate) fn database_name(rows: u64) -> anyhow::Result<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut hash = Sha256::new();
    for file in files {
        hash.update(std::fs::read(file.path())?);
    }
    for sql in statements(rows) {
        hash.update(sql);
    }
    Ok(format!("{NAME}_{rows}_{}", &hex::encode(hash.finalize())[..12]))
}

/// Fills the database, unless it is there.
pub(crate) async fn prepare(stage: Stage<'_>, name: &str) -> anyhow::Result<()> {
    if stage.services.has_database(name).await? {
        return Ok(());
    }
    let begun = Instant::now();
    let rows = stage.args.audit_rows;
    eprintln!("filling the audit with {rows} mails, once for this schema; some four minutes and 14 GB for ten million");
    // Those of an older schema are of no use any more, and large.
    stage.services.drop_databases_like(&format!("{NAME}_{rows}_")).await?;
    let making = format!("{name}_making");
    stage.services.create_database(&making).await?;
    let database_url = stage.services.database_url(&making);
    let route = Route::start(Relay::Plain, stage.scratch).await?;
    let site = Site { amqp_url: "amqp://nobody@localhost".to_owned(), database_url: database_url.clone() };
    daemon::migrate(&daemon_settings(stage.args, &site, &route, Vec::new()), stage.scratch)?;
    let database = PgPoolOptions::new().max_connections(TABLES.len() as u32).connect(&database_url).await?;
    fill(&database, rows).await.context("filling the audit")?;
    database.close().await;
    stage.services.keep_database(&making, name).await?;
    eprintln!("filled in {} s; it is kept as database {name}", begun.elapsed().as_secs());
    Ok(())
}

async fn fill(database: &PgPool, rows: u64) -> anyhow::Result<()> {
    let (constraints, indexes) = take_off(database).await?;
    futures_util::future::try_join_all(statements(rows).iter().map(|sql| run(database, sql))).await?;
    eprintln!("  rows are there; indexes");
    // Two at a time, since each takes a core and its memory.
    for pair in indexes.chunks(2) {
        futures_util::future::try_join_all(pair.iter().map(|sql| run(database, sql))).await?;
    }
    for sql in &constraints {
        run(database, sql).await?;
    }
    eprintln!("  indexes are there; vacuum");
    // Or the server would do it while mails are being timed.
    for table in TABLES {
        run(database, &format!("vacuum (analyze, freeze) {table}")).await?;
    }
    Ok(())
}

async fn run(database: &PgPool, sql: &str) -> anyhow::Result<()> {
    let mut connection = database.acquire().await?;
    let memory = format!("set maintenance_work_mem = '{INDEX_MEMORY}'");
    sqlx::query(AssertSqlSafe(memory)).execute(&mut *connection).await?;
    // Nobody is to hear of mails that were never sent.
    sqlx::query("set postrider.events = 'off'").execute(&mut *connection).await?;
    let result = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await;
    result.with_context(|| sql.chars().take(60).collect::<String>())?;
    Ok(())
}

/// Drops constraints and indexes of the tables; returns the statements that make them again.
async fn take_off(database: &PgPool) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    // Foreign keys first: they hold the keys that they point at. They are made again without looking at the rows.
    let found = sqlx::query(
        "select conrelid::regclass::text, conname::text, pg_get_constraintdef(oid), contype = 'f'
         from pg_constraint where contype in ('p', 'u', 'f')
           and (conrelid::regclass::text = any($1) or confrelid::regclass::text = any($1))
         order by contype = 'f' desc",
    )
    .bind(TABLES)
    .fetch_all(database)
    .await?;
    let (mut keys, mut foreign) = (Vec::new(), Vec::new());
    for row in &found {
        let (table, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (definition, is_foreign): (String, bool) = (row.try_get(2)?, row.try_get(3)?);
        run(database, &format!("alter table {table} drop constraint {name}")).await?;
        let not_valid = if is_foreign { " not valid" } else { "" };
        let again = format!("alter table {table} add constraint {name} {definition}{not_valid}");
        if is_foreign { &mut foreign } else { &mut keys }.push(again);
    }
    let found = sqlx::query("select indexname::text, indexdef from pg_indexes where tablename = any($1)")
        .bind(TABLES)
        .fetch_all(database)
        .await?;
    let mut indexes = Vec::new();
    for row in &found {
        run(database, &format!("drop index {}", row.try_get::<String, _>(0)?)).await?;
        indexes.push(row.try_get(1)?);
    }
    keys.extend(foreign);
    Ok((keys, indexes))
}

/// Ids look random, as those of producers do, and are the same for the same number in every table.
pub(crate) fn request_id() -> &'static str {
    "md5('request' || n)::uuid"
}

/// Ids begin with the time, as the daemon's do: new rows come behind all others.
fn message_id(rows: u64) -> String {
    format!(
        "(lpad(to_hex((extract(epoch from {at}) * 1000)::bigint), 12, '0') || '8' || substr(md5('message' || n), 1, 3)
            || 'a' || substr(md5('message' || n), 4, 15))::uuid",
        at = moment(rows)
    )
}

/// A year's mails, evenly spread, the last of them two hours ago.
fn moment(rows: u64) -> String {
    format!("date_trunc('hour', now()) - interval '1 hour' - ({rows} - n) * (interval '365 days' / {rows})")
}

fn statements(rows: u64) -> [String; 3] {
    let bodies_from = rows - rows / BODIES_PART;
    [requests(rows, bodies_from), messages(rows, bodies_from), timeline(rows)]
}

fn requests(rows: u64, bodies_from: u64) -> String {
    format!(
        "insert into email_requests (id, payload_hash, source, template_key, template_version, priority, lane, variables,
             published_at, created_at, anonymised_at)
         select {id}, sha256(n::text::bytea), 'bench', 'bench_notice', 1, 2, 'standard',
             case when n > {bodies_from} then jsonb_build_object('reseller_name', 'Kossi Télécom ' || n,
                 'invoice_number', 'F-2026-' || n, 'amount_fcfa', 100000 + n % 900000,
                 'link_portal', 'https://portail.example.bj/factures/F-2026-' || n) end,
             {at}, {at}, case when n <= {bodies_from} then {at} + interval '90 days' end
         from generate_series(1, {rows}::bigint) n",
        id = request_id(),
        at = moment(rows),
    )
}

fn messages(rows: u64, bodies_from: u64) -> String {
    format!(
        "insert into email_messages (id, request_id, recipient_hash, ordinal, template_key, template_version,
             recipient_email, subject, html_content, text_content, status, message_id, attempts, token, worker_id,
             sent_at, source_endpoint, created_at, updated_at)
         select {id}, {request}, sha256(n::text::bytea), 0, 'bench_notice', 1,
             case when n > {bodies_from} then 'reader-' || n || '@bench.example' end,
             case when n > {bodies_from} then 'Facture F-2026-' || n || ' : paiement reçu' end,
             case when n > {bodies_from} then '<p>Bonjour Kossi Télécom ' || n || ',</p>' || repeat(md5(n::text), 22) end,
             case when n > {bodies_from} then 'Bonjour Kossi Télécom ' || n || ',' || repeat(md5(n::text), 12) end,
             'sent', '<' || {id} || '@bench.example>', 1, {id}, {id}, {at}, 'bench', {at}, {at}
         from generate_series(1, {rows}::bigint) n",
        id = message_id(rows),
        request = request_id(),
        at = moment(rows),
    )
}

fn timeline(rows: u64) -> String {
    format!(
        "insert into email_timeline (message_id, at, kind, attempt, latency_ms, relay, phase, reply_code, reply_text)
         select {id}, {at}, 'sent', 1, 20 + n % 80, '127.0.0.1', 'final dot', 250, '2.0.0 Ok'
         from generate_series(1, {rows}::bigint) n",
        id = message_id(rows),
        at = moment(rows),
    )
}
