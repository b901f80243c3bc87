//! A RabbitMQ, through its management API.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Value, json};
use url::Url;

use super::process;

/// RabbitMQ gathers its statistics every five seconds.
const STATISTICS_LIMIT: Duration = Duration::from_secs(12);
/// Between two looks whether they are there.
const STATISTICS_PAUSE: Duration = Duration::from_millis(200);

/// A broker that the environment names.
pub(crate) struct Broker {
    amqp: Url,
    api: Url,
    http: reqwest::Client,
    /// As it tells it.
    pub(crate) version: String,
    pid: Option<u32>,
}

impl Broker {
    /// The broker of these two variables.
    pub(crate) async fn from_environment(amqp: &str, api: &str) -> anyhow::Result<Self> {
        let (amqp, api_url) = (url(amqp)?, url(api)?);
        let http = reqwest::Client::new();
        let overview = get(&http, &api_url, "overview").await.with_context(|| api.to_owned())?;
        let pid = pid(&http, &api_url).await.with_context(|| api.to_owned())?;
        let version = overview["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned();
        Ok(Self { amqp, api: api_url, http, version, pid })
    }

    /// Makes a virtual host, and says what its `AMQP_URL` is.
    pub(crate) async fn make_vhost(&self, name: &str) -> anyhow::Result<String> {
        self.put(&format!("vhosts/{name}"), &json!({})).await?;
        let everything = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        self.put(&format!("permissions/{name}/{}", self.amqp.username()), &everything).await?;
        let mut amqp = self.amqp.clone();
        amqp.set_path(name);
        Ok(amqp.into())
    }

    pub(crate) async fn remove_vhost(&self, name: &str) -> anyhow::Result<()> {
        let url = self.api.join(&format!("/api/vhosts/{name}"))?;
        self.http.delete(url).send().await.with_context(|| format!("virtual host {name} is still there"))?;
        Ok(())
    }

    /// What it has used so far, in milliseconds; nothing if it runs elsewhere.
    pub(crate) fn cpu_ms(&self) -> Option<f64> {
        process::cpu(self.pid?).ok().map(|used| used.own)
    }

    async fn put(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let response = self.http.put(self.api.join(&format!("/api/{path}"))?).json(body).send().await?;
        ensure!(response.status().is_success(), "RabbitMQ's API answers {} to {path}", response.status());
        Ok(())
    }
}

/// The broker's process, if it runs on this machine.
async fn pid(http: &reqwest::Client, api: &Url) -> anyhow::Result<Option<u32>> {
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

/// The URL in this variable of the environment.
pub(crate) fn url(name: &str) -> anyhow::Result<Url> {
    let text = std::env::var(name)
        .map_err(|_| anyhow!("{name} is not set: run ./deploy/dev bench, which brings RabbitMQ and PostgreSQL"))?;
    // The value holds a password, so that it is not repeated.
    Url::parse(&text).map_err(|error| anyhow!("{name} is not a URL: {error}"))
}
