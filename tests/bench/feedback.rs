//! Events of SES, signed by somebody else's program: how many a second are taken and applied, and what a tenth of the
//! goal costs the mails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use chrono::{SecondsFormat, Utc};
use postrider::email::{Priority, feedback::Mark};
use serde_json::json;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{
    carry::Stage,
    daemon::{self, Daemon},
    process,
    relay::Route,
    report::Figure,
    requests::{Content, Producer},
    services::Site,
    work::{Audit, Relay, Which, daemon_settings},
};

/// The topic of the events.
const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:bench";
/// The distribution's Python, which has cryptography.
const PYTHON: &str = "/usr/bin/python3";
/// Written from Amazon's description of its signatures.
const SIGNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/feedback/sns_sign.py");
/// SNS's connections to the listener at once.
const CONNECTIONS: usize = 16;
/// Mails that the events are about; two events for each.
const MAILS: u64 = 4000;
/// The same beside mails: enough for a run of half a minute.
const MAILS_BEFORE: u64 = 1500;
/// How long the events may take to be applied.
const APPLY_LIMIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Events that are signed and wait to be posted, and where to.
pub(crate) struct Feedback {
    settings: Vec<(String, String)>,
    folder: PathBuf,
    url: String,
    signed: Vec<String>,
}

impl Feedback {
    /// A signer with a certificate of its own, for a daemon that has these settings.
    pub(crate) fn prepare(stage: Stage<'_>) -> anyhow::Result<Self> {
        let folder = stage.scratch.join("sns");
        fs::create_dir_all(&folder)?;
        // Free a moment ago; nothing else here takes ports meanwhile.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let certificate = folder.join("signing.pem");
        let mut feedback = Self {
            settings: Vec::new(),
            url: format!("http://127.0.0.1:{port}/api/v1/email/webhook"),
            folder,
            signed: Vec::new(),
        };
        feedback.sign(&[])?;
        feedback.settings = vec![
            ("WEBHOOK_ADDR".to_owned(), format!("127.0.0.1:{port}")),
            ("SNS_TOPIC_ARNS".to_owned(), TOPIC.to_owned()),
            ("SNS_SIGNING_CERT_FILE".to_owned(), certificate.display().to_string()),
        ];
        Ok(feedback)
    }

    /// Of the daemon.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        self.settings.clone()
    }

    /// Sends mails through the site's queues, and signs what SES has to tell of them.
    pub(crate) async fn send_and_sign(&mut self, stage: Stage<'_>, site: &Site, mails: u64) -> anyhow::Result<()> {
        let route = Route::start(Relay::Plain, stage.scratch).await?;
        let settings = daemon_settings(stage.args, site, &route, self.settings());
        let producer = Producer::connect(&settings).await?;
        producer.publish(Content::Notice, Priority::P2, mails).await?;
        let database = PgPoolOptions::new().max_connections(1).connect(&site.database_url).await?;
        let mut daemon = Daemon::start(&settings, stage.scratch, 1)?;
        let begun = Instant::now();
        while count(&database, "sent").await? < mails {
            daemon.must_run()?;
            ensure!(begun.elapsed() < APPLY_LIMIT, "the mails that the events are about were not sent");
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        daemon.end().await?;
        producer.close().await;
        let rows: Vec<(Uuid, String)> =
            sqlx::query_as("select id, recipient_email from email_messages order by id").fetch_all(&database).await?;
        database.close().await;
        let events: Vec<String> = rows.iter().flat_map(|(row, to)| events(*row, to)).collect();
        self.signed = self.sign(&events)?;
        Ok(())
    }

    fn sign(&self, events: &[String]) -> anyhow::Result<Vec<String>> {
        let (fields, signed) = (self.folder.join("fields"), self.folder.join("signed"));
        let lines: String =
            events.iter().map(|event| format!("{}\n", json!({ "TopicArn": TOPIC, "Message": event }))).collect();
        fs::write(&fields, lines)?;
        let status = Command::new(PYTHON).arg(SIGNER).arg("batch").args([&self.folder, &fields, &signed]).status();
        ensure!(status.context("python3")?.success(), "the signer failed: it needs python3-cryptography");
        read_lines(&signed)
    }

    /// Posts so many a second in the background, until it is stopped or they are used up.
    pub(crate) fn post_steadily(&self, per_second: u32) -> Posting {
        let (client, url, signed) = (reqwest::Client::new(), self.url.clone(), self.signed.clone());
        Posting(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            for envelope in signed {
                ticks.tick().await;
                // A daemon that has only just started does not listen yet; SNS would come again.
                drop(post(&client, &url, envelope).await);
            }
        }))
    }

    /// Posts all of them as fast as they are answered.
    async fn post_all(&mut self) -> anyhow::Result<()> {
        let envelopes = Arc::new(std::mem::take(&mut self.signed));
        let next = Arc::new(AtomicUsize::new(0));
        let posting = (0..CONNECTIONS).map(|_| {
            let (client, url) = (reqwest::Client::new(), self.url.clone());
            let (envelopes, next) = (Arc::clone(&envelopes), Arc::clone(&next));
            tokio::spawn(async move {
                while let Some(envelope) = envelopes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    post(&client, &url, envelope.clone()).await?;
                }
                anyhow::Ok(())
            })
        });
        for task in posting.collect::<Vec<_>>() {
            task.await??;
        }
        Ok(())
    }
}

/// Events on their way; they end with this.
pub(crate) struct Posting(JoinHandle<()>);

impl Drop for Posting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn post(client: &reqwest::Client, url: &str, envelope: String) -> anyhow::Result<()> {
    let answer = client
        .post(url)
        .header("content-type", "text/plain; charset=UTF-8")
        .header("x-amz-sns-message-type", "Notification")
        .body(envelope)
        .send()
        .await?;
    ensure!(answer.status().is_success(), "the daemon answered an event with {}", answer.status());
    Ok(())
}

/// What SES tells of a mail that arrives: that it took it, and that the far server did.
fn events(row: Uuid, to: &str) -> [String; 2] {
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let mark = Mark { row_id: row, attempt: 1 };
    let mail = json!({
        "timestamp": now, "source": "noreply@bench.example", "messageId": format!("0100{}-000000", row.simple()),
        "destination": [to], "headersTruncated": false,
        "headers": [
            { "name": "From", "value": "noreply@bench.example" }, { "name": "To", "value": to },
            { "name": "Subject", "value": "Facture" }, { "name": Mark::HEADER, "value": mark.header() },
        ],
        "commonHeaders": { "from": ["noreply@bench.example"], "to": [to], "subject": "Facture" },
        "tags": { "ses:configuration-set": ["bench"], "ses:source-ip": ["192.0.2.1"] },
    });
    let delivery = json!({
        "timestamp": now, "processingTimeMillis": 900, "recipients": [to], "smtpResponse": "250 2.6.0 Message received",
        "reportingMTA": "a1-2.smtp-out.eu-west-1.amazonses.com",
    });
    [
        json!({ "eventType": "Send", "mail": mail, "send": {} }).to_string(),
        json!({ "eventType": "Delivery", "mail": mail, "delivery": delivery }).to_string(),
    ]
}

async fn count(database: &PgPool, status: &str) -> anyhow::Result<u64> {
    let count: i64 = sqlx::query_scalar("select count(*) from email_messages where status = $1")
        .bind(status)
        .fetch_one(database)
        .await?;
    Ok(u64::try_from(count)?)
}

fn read_lines(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Events of mails that were sent, as fast as they are taken, and until the audit says so.
pub(crate) async fn measure(stage: Stage<'_>) -> anyhow::Result<Vec<Figure>> {
    let mut answered = Figure::new("feedback-answered", "signed events, verified, stored and answered", "a second", 0);
    let mut applied = Figure::new("feedback-applied", "  the same until every mail says delivered", "a second", 0);
    let mut cpu = Figure::new("feedback-cpu", "  daemon's CPU for 1000 of them", "ms", 0);
    answered.note = Some(format!("over {CONNECTIONS} connections; what posts them shares the machine"));
    for number in 1..=stage.args.runs {
        let mut feedback = Feedback::prepare(stage)?;
        let site = stage.services.new_site(Which::First, &Audit::Fresh).await?;
        let route = Route::start(Relay::Plain, stage.scratch).await?;
        let settings = daemon_settings(stage.args, &site, &route, feedback.settings());
        daemon::migrate(&settings, stage.scratch)?;
        feedback.send_and_sign(stage, &site, MAILS).await?;
        let events = feedback.signed.len() as f64;
        let database = PgPoolOptions::new().max_connections(1).connect(&site.database_url).await?;
        let mut daemon = Daemon::start(&settings, stage.scratch, 1)?;
        let measured = async {
            wait_until_listening(&feedback, &mut daemon).await?;
            let (before, begun) = (process::exact_cpu_ms(daemon.pid())?, Instant::now());
            feedback.post_all().await?;
            answered.add(Some(events / begun.elapsed().as_secs_f64()));
            while count(&database, "delivered").await? < MAILS {
                daemon.must_run()?;
                if begun.elapsed() > APPLY_LIMIT {
                    bail!("{} of {MAILS} mails say delivered", count(&database, "delivered").await?);
                }
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            applied.add(Some(events / begun.elapsed().as_secs_f64()));
            cpu.add(Some((process::exact_cpu_ms(daemon.pid())? - before) * 1000.0 / events));
            anyhow::Ok(())
        };
        let measured = measured.await;
        measured.with_context(|| daemon.last_words())?;
        daemon.end().await?;
        database.close().await;
        stage.services.remove_sites().await?;
        eprintln!("run {number}: {} events a second answered, {} applied", answered.last_words(), applied.last_words());
    }
    Ok(vec![answered, applied, cpu])
}

/// An empty message is refused, but by somebody.
async fn wait_until_listening(feedback: &Feedback, daemon: &mut Daemon) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        daemon.must_run()?;
        if reqwest::Client::new().post(&feedback.url).body("").send().await.is_ok() {
            return Ok(());
        }
        ensure!(begun.elapsed() < APPLY_LIMIT, "nothing listens for events");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// What a run beside events needs: mails that they are about were sent before.
pub(crate) async fn beside(stage: Stage<'_>, site: &Site) -> anyhow::Result<Feedback> {
    let mut feedback = Feedback::prepare(stage)?;
    let route = Route::start(Relay::Plain, stage.scratch).await?;
    let settings = daemon_settings(stage.args, site, &route, Vec::new());
    daemon::migrate(&settings, stage.scratch)?;
    feedback.send_and_sign(stage, site, MAILS_BEFORE).await?;
    Ok(feedback)
}
