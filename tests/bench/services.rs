//! RabbitMQ and PostgreSQL: for every run a virtual host and a database of its own, removed in the end.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use url::Url;

use super::process;

/// RabbitMQ gathers its statistics every five seconds.
const STATISTICS_LIMIT: Duration = Duration::from_secs(12);
/// Between two looks whether they are there.
const STATISTICS_PAUSE: Duration = Duration::from_millis(200);

/// The servers that the environment names.
pub(crate) struct Services {
    amqp: Url,
    api: Url,
    database: Url,
    http: reqwest::Client,
    admin: PgPool,
    sites: Mutex<Vec<String>>,
    made: AtomicU32,
    /// RabbitMQ's version.
    pub(crate) rabbitmq: String,
    /// PostgreSQL's version.
    pub(crate) postgresql: String,
    rabbitmq_pid: Option<u32>,
    postmaster_pid: Option<u32>,
}

/// What the servers have used so far, in milliseconds; nothing of one that runs elsewhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServersCpu {
    pub(crate) rabbitmq: Option<f64>,
    pub(crate) postgresql: Option<f64>,
}

impl ServersCpu {
    /// What was used since then.
    pub(crate) fn since(self, then: &Self) -> Self {
        let difference = |now: Option<f64>, then: Option<f64>| Some(now? - then?);
        Self {
            rabbitmq: difference(self.rabbitmq, then.rabbitmq),
            postgresql: difference(self.postgresql, then.postgresql),
        }
    }
}

/// One run's own place on both servers.
pub(crate) struct Site {
    /// For `AMQP_URL`.
    pub(crate) amqp_url: String,
    /// For `DATABASE_URL`.
    pub(crate) database_url: String,
}

impl Services {
    pub(crate) async fn from_environment() -> anyhow::Result<Self> {
        let (amqp, api, database) = (url("TEST_AMQP_URL")?, url("TEST_RABBITMQ_API")?, url("TEST_DATABASE_URL")?);
        let http = reqwest::Client::new();
        let overview = get(&http, &api, "overview").await.context("TEST_RABBITMQ_API")?;
        let rabbitmq_pid = rabbitmq_pid(&http, &api).await.context("TEST_RABBITMQ_API")?;
        let admin = PgPoolOptions::new()
            .max_connections(1)
            .connect_with(database.as_str().parse::<PgConnectOptions>()?)
            .await
            .context("TEST_DATABASE_URL")?;
        let postgresql: String = sqlx::query_scalar("show server_version").fetch_one(&admin).await?;
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&admin).await?;
        Ok(Self {
            rabbitmq: overview["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned(),
            rabbitmq_pid,
            postmaster_pid: u32::try_from(backend)
                .ok()
                .filter(|&pid| process::is_program(pid, "postgres"))
                .and_then(process::parent),
            amqp,
            api,
            database,
            http,
            admin,
            sites: Mutex::new(Vec::new()),
            made: AtomicU32::new(0),
            postgresql,
        })
    }

    /// A virtual host and an empty database.
    pub(crate) async fn new_site(&self) -> anyhow::Result<Site> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench_{}_{number}", std::process::id());
        self.sites.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        self.put(&format!("vhosts/{name}"), &json!({})).await?;
        let everything = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        self.put(&format!("permissions/{name}/{}", self.amqp.username()), &everything).await?;
        // The name is made of letters, digits and underscores.
        sqlx::query(AssertSqlSafe(format!("create database {name}"))).execute(&self.admin).await?;
        let (mut amqp, mut database) = (self.amqp.clone(), self.database.clone());
        amqp.set_path(&name);
        database.set_path(&name);
        Ok(Site { amqp_url: amqp.into(), database_url: database.into() })
    }

    /// Removes whatever was made so far.
    pub(crate) async fn remove_sites(&self) -> anyhow::Result<()> {
        let sites = std::mem::take(&mut *self.sites.lock().unwrap_or_else(PoisonError::into_inner));
        for name in sites {
            let url = self.api.join(&format!("/api/vhosts/{name}"))?;
            self.http.delete(url).send().await.with_context(|| format!("virtual host {name} is still there"))?;
            sqlx::query(AssertSqlSafe(format!("drop database if exists {name} with (force)")))
                .execute(&self.admin)
                .await
                .with_context(|| format!("database {name} is still there"))?;
        }
        Ok(())
    }

    pub(crate) fn cpu(&self) -> ServersCpu {
        ServersCpu {
            rabbitmq: self.rabbitmq_pid.and_then(|pid| process::cpu(pid).ok()).map(|used| used.own),
            postgresql: self.postmaster_pid.and_then(|pid| process::cpu_of_family(pid).ok()),
        }
    }

    async fn put(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let response = self.http.put(self.api.join(&format!("/api/{path}"))?).json(body).send().await?;
        ensure!(response.status().is_success(), "RabbitMQ's API answers {} to {path}", response.status());
        Ok(())
    }
}

/// The broker's process, if it runs on this machine.
async fn rabbitmq_pid(http: &reqwest::Client, api: &Url) -> anyhow::Result<Option<u32>> {
    let begun = Instant::now();
    loop {
        let nodes = get(http, api, "nodes").await?;
        if let Some(pid) = nodes[0]["os_pid"].as_str() {
            return Ok(pid.parse().ok().filter(|&pid| process::is_program(pid, "beam.smp")));
        }
        // A node that has just started tells little of itself until it has gathered its statistics.
        if begun.elapsed() > STATISTICS_LIMIT {
            return Ok(None);
        }
        tokio::time::sleep(STATISTICS_PAUSE).await;
    }
}

async fn get(http: &reqwest::Client, api: &Url, path: &str) -> anyhow::Result<Value> {
    Ok(http.get(api.join(&format!("/api/{path}"))?).send().await?.error_for_status()?.json().await?)
}

fn url(name: &str) -> anyhow::Result<Url> {
    let text = std::env::var(name)
        .map_err(|_| anyhow!("{name} is not set: run ./deploy/dev bench, which brings RabbitMQ and PostgreSQL"))?;
    // The value holds a password, so that it is not repeated.
    Url::parse(&text).map_err(|error| anyhow!("{name} is not a URL: {error}"))
}
