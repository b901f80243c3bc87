//! RabbitMQ and PostgreSQL: for every run a virtual host and a database of its own, removed in the end.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, bail};
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use url::Url;

use super::{
    broker::{self, Broker},
    process,
    work::{Audit, Which},
};

/// Why there is no second broker, in the words of who looked for it.
const SECOND_MISSING: &str = "BENCH_SECOND_MISSING";

/// The servers that the environment names.
pub(crate) struct Services {
    first: Broker,
    second: Result<Broker, String>,
    database: Url,
    admin: PgPool,
    made: Mutex<Vec<Made>>,
    count: AtomicU32,
    /// PostgreSQL's version.
    pub(crate) postgresql: String,
    postmaster_pid: Option<u32>,
}

/// Something that is removed in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Made {
    Vhost(Which, String),
    Database(String),
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
        let first = Broker::from_environment("TEST_AMQP_URL", "TEST_RABBITMQ_API").await?;
        let second = match std::env::var(SECOND_MISSING) {
            Ok(why) => Err(why),
            Err(_) if std::env::var_os("BENCH_SECOND_AMQP_URL").is_none() => {
                Err("BENCH_SECOND_AMQP_URL and BENCH_SECOND_RABBITMQ_API name no second broker".to_owned())
            }
            Err(_) => Ok(Broker::from_environment("BENCH_SECOND_AMQP_URL", "BENCH_SECOND_RABBITMQ_API").await?),
        };
        let database = broker::url("TEST_DATABASE_URL")?;
        let admin = PgPoolOptions::new()
            .max_connections(1)
            .connect_with(database.as_str().parse::<PgConnectOptions>()?)
            .await
            .context("TEST_DATABASE_URL")?;
        let postgresql: String = sqlx::query_scalar("show server_version").fetch_one(&admin).await?;
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&admin).await?;
        Ok(Self {
            first,
            second,
            postmaster_pid: u32::try_from(backend)
                .ok()
                .filter(|&pid| process::is_program(pid, "postgres"))
                .and_then(process::parent),
            database,
            admin,
            made: Mutex::new(Vec::new()),
            count: AtomicU32::new(0),
            postgresql,
        })
    }

    /// Why there is no such broker.
    pub(crate) fn obstacle(&self, which: Which) -> Option<&str> {
        match which {
            Which::First => None,
            Which::Second => self.second.as_ref().err().map(String::as_str),
        }
    }

    pub(crate) fn broker(&self, which: Which) -> anyhow::Result<&Broker> {
        match (which, &self.second) {
            (Which::First, _) => Ok(&self.first),
            (Which::Second, Ok(broker)) => Ok(broker),
            (Which::Second, Err(why)) => bail!("{why}"),
        }
    }

    /// The versions of all brokers.
    pub(crate) fn rabbitmq_versions(&self) -> String {
        let second = self.second.as_ref().map(|broker| format!(" and {}", broker.version)).unwrap_or_default();
        format!("{}{second}", self.first.version)
    }

    /// A virtual host, and an empty database or the one that the audit asks for.
    pub(crate) async fn new_site(&self, which: Which, audit: &Audit) -> anyhow::Result<Site> {
        let name = format!("bench_{}_{}", std::process::id(), self.count.fetch_add(1, Ordering::Relaxed));
        let broker = self.broker(which)?;
        self.remember(Made::Vhost(which, name.clone()));
        let amqp_url = broker.make_vhost(&name).await?;
        let database = match audit {
            Audit::Filled(database) => database.clone(),
            Audit::Fresh => {
                self.create_database(&name).await?;
                name
            }
        };
        Ok(Site { amqp_url, database_url: self.database_url(&database) })
    }

    /// For `DATABASE_URL`.
    pub(crate) fn database_url(&self, name: &str) -> String {
        let mut url = self.database.clone();
        url.set_path(name);
        url.into()
    }

    /// An empty database, removed in the end unless it is kept. The name is made of letters, digits and underscores.
    pub(crate) async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        self.remember(Made::Database(name.to_owned()));
        self.run(format!("create database {name}")).await
    }

    /// Gives a database its lasting name: it stays after the benchmark.
    pub(crate) async fn keep_database(&self, name: &str, lasting: &str) -> anyhow::Result<()> {
        self.run(format!("alter database {name} rename to {lasting}")).await?;
        self.made().retain(|made| *made != Made::Database(name.to_owned()));
        Ok(())
    }

    pub(crate) async fn has_database(&self, name: &str) -> anyhow::Result<bool> {
        let found = sqlx::query_scalar("select exists (select from pg_database where datname = $1)");
        Ok(found.bind(name).fetch_one(&self.admin).await?)
    }

    pub(crate) async fn drop_database(&self, name: &str) -> anyhow::Result<()> {
        self.run(format!("drop database if exists {name} with (force)")).await
    }

    /// Drops every database whose name begins so.
    pub(crate) async fn drop_databases_like(&self, beginning: &str) -> anyhow::Result<()> {
        let found = sqlx::query_scalar("select datname::text from pg_database where starts_with(datname, $1)");
        let names: Vec<String> = found.bind(beginning).fetch_all(&self.admin).await?;
        for name in names {
            self.drop_database(&name).await?;
        }
        Ok(())
    }

    /// Writes out what earlier runs left in memory, so that no run pays for another's rows.
    pub(crate) async fn checkpoint(&self) -> anyhow::Result<()> {
        self.run("checkpoint".to_owned()).await
    }

    /// Removes whatever was made so far.
    pub(crate) async fn remove_sites(&self) -> anyhow::Result<()> {
        let all = std::mem::take(&mut *self.made());
        for made in all {
            match made {
                Made::Vhost(which, name) => self.broker(which)?.remove_vhost(&name).await?,
                Made::Database(name) => {
                    self.drop_database(&name).await.with_context(|| format!("database {name} is still there"))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn cpu(&self, which: Which) -> ServersCpu {
        ServersCpu {
            rabbitmq: self.broker(which).ok().and_then(Broker::cpu_ms),
            postgresql: self.postmaster_pid.and_then(|pid| process::cpu_of_family(pid).ok()),
        }
    }

    async fn run(&self, statement: String) -> anyhow::Result<()> {
        sqlx::query(AssertSqlSafe(statement)).execute(&self.admin).await?;
        Ok(())
    }

    fn remember(&self, made: Made) {
        self.made().push(made);
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Vec<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
