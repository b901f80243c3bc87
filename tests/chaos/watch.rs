//! Every daemon is scraped while it is killed, cut off and starved: what `/metrics` says then is what an operator would see.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use postrider::metrics::{instrument::Instrument, table::INSTRUMENTS};

use crate::support::process::DaemonProcess;

/// Between two scrapes of one daemon.
const EVERY: Duration = Duration::from_millis(500);
/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Begin at their first event, and no case has one: these features are switched off there, and tests of their own show them.
const ELSEWHERE: [&str; 16] = [
    // Expired, suppressed or over a cap: only by chance here.
    "email_stopped",
    "email_over_cap",
    "email_replayed",
    "email_feedback",
    "email_feedback_resolved",
    "email_feedback_suppressed",
    "email_webhook_received",
    "email_webhook_refused",
    "email_webhook_failed",
    "email_unsubscribed",
    "email_attachment_fetches",
    "email_attachment_fetch_seconds",
    "email_attachment_fetched_bytes",
    "email_retention_",
    "postrider_exported_spans",
    "postrider_exported_metrics",
];

static SEEN: Mutex<Seen> =
    Mutex::new(Seen { scrapes: 0, daemons: 0, names: BTreeSet::new(), unreadable: BTreeSet::new() });

struct Seen {
    scrapes: usize,
    daemons: usize,
    /// As `/metrics` writes them.
    names: BTreeSet<String>,
    /// What no scraper would understand.
    unreadable: BTreeSet<String>,
}

/// What the scrapes came to.
pub struct Watched {
    /// In one line.
    pub words: String,
    /// Described metrics that no daemon served: what is rare may not come in the short form.
    pub absent: Vec<String>,
    /// Lines that are none.
    pub unreadable: Vec<String>,
}

/// Scrapes a daemon until it is gone.
pub fn watch(daemon: &DaemonProcess) {
    let found = daemon.admin_later();
    tokio::spawn(async move {
        let Some(admin) = found.await else { return };
        let client = reqwest::Client::builder().timeout(ANSWER_MAX).build().expect("a client");
        let mut is_first = true;
        loop {
            // Nobody there: it was killed. It does not come back under this port.
            let answer = match client.get(format!("{admin}/metrics")).send().await {
                Ok(answer) => answer.text().await,
                Err(error) if error.is_timeout() => continue,
                Err(_) => return,
            };
            if let Ok(text) = answer {
                note(&text, std::mem::take(&mut is_first));
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

fn note(text: &str, is_first: bool) {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.scrapes += 1;
    seen.daemons += usize::from(is_first);
    for line in text.lines() {
        if let Some((name, _)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            seen.names.insert(name.to_owned());
        } else if !line.starts_with('#') && line.rsplit_once(' ').is_none_or(|(_, value)| value.parse::<f64>().is_err())
        {
            seen.unreadable.insert(line.to_owned());
        }
    }
}

/// What all daemons have served since the program began.
pub fn watched() -> Watched {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let described: Vec<String> = INSTRUMENTS.iter().map(Instrument::prometheus_name).collect();
    let missing: Vec<&String> = described.iter().filter(|name| !seen.names.contains(*name)).collect();
    let words = format!(
        "metrics: {} scrapes of {} daemons while all this went on; {} of {} that are described were there, {} belong to what \
         no case uses",
        seen.scrapes,
        seen.daemons,
        described.len() - missing.len(),
        described.len(),
        missing.iter().filter(|name| is_elsewhere(name)).count(),
    );
    let absent = missing.iter().filter(|name| !is_elsewhere(name)).map(|name| format!("no daemon served {name}"));
    let unreadable = seen.unreadable.iter().map(|line| format!("no line of metrics: {line}"));
    Watched { words, absent: absent.collect(), unreadable: unreadable.collect() }
}

fn is_elsewhere(name: &str) -> bool {
    ELSEWHERE.iter().any(|begin| name.starts_with(begin))
}
