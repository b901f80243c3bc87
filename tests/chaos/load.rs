//! What producers ask for: a mix of lanes, templates and recipients, published with confirms and counted when the broker
//! has confirmed it.
//!
//! Invariant: what was not confirmed is published again under the same id, as a careful producer does; a request counts
//! once, and only when the broker has said that it has it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use postrider::{broker::topology, publish, wire};
use tokio::{sync::Semaphore, task::JoinHandle};
use uuid::Uuid;

use crate::{
    random::Random,
    support::requests::{self, attach, sample, set},
    transcript::now_ms,
};

/// Published without waiting for each.
const AT_ONCE: usize = 16;
/// A broker that says nothing for so long is connected to anew.
const CONFIRM_MAX: Duration = Duration::from_secs(90);
/// Before the next connection attempt.
const PAUSE: Duration = Duration::from_millis(200);

/// Producers come in crowds; and a crowd is still on its way when something goes wrong.
const BURSTS_PER_SECOND: usize = 2;

/// Written by the template itself on every incident.
const NOC: &str = "noc@rgz.bj";

/// What is asked for, in parts of a hundred.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Recipients that the relay puts off at first.
    pub late: u64,
    /// Recipients that it does not know.
    pub gone: u64,
    /// Requests that carry more than a piece of content.
    pub heavy: u64,
    /// Incidents.
    pub incidents: u64,
    /// Announcements, whose unknown outcomes are held.
    pub announcements: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self { late: 8, gone: 5, heavy: 8, incidents: 12, announcements: 12 }
    }
}

/// A request that the broker has.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: Uuid,
    pub recipients: Vec<String>,
    pub holds: bool,
    pub fast: bool,
    pub published_ms: i64,
}

/// A request to be published.
#[derive(Clone)]
pub struct Draft {
    pub wire: wire::EmailRequest,
    pub request: Request,
}

/// Makes this many requests.
pub fn requests(count: usize, mix: Mix, random: &mut Random) -> Vec<Draft> {
    let pdf = heavy_pdf();
    (0..count).map(|number| request(number, mix, &pdf, random)).collect()
}

fn request(number: usize, mix: Mix, pdf: &Bytes, random: &mut Random) -> Draft {
    let mut address = |part: &str| {
        let kind = match random.between(0..=99) {
            n if n < mix.late => "late",
            n if n < mix.late + mix.gone => "gone",
            _ => "ok",
        };
        format!("{kind}-{number}-{part}@example.bj")
    };
    let to = address("a");
    let others = [address("b"), address("c")];
    let mut request = match random.between(0..=99) {
        n if n < mix.incidents => sample("incident_alert_critical", &[&to]),
        n if n < mix.incidents + mix.announcements => sample("reseller_announcement", &[&to]),
        _ if random.percent(mix.heavy) => {
            let mut report = sample("sla_monthly_report", &[&to]);
            attach(&mut report, "rapport.pdf", "application/pdf", pdf.clone());
            attach(&mut report, "rapport.csv", "text/csv", &b"site;minutes\r\nAkpakpa;95\r\n"[..]);
            report
        }
        _ => match random.between(0..=9) {
            0 => sample("support_ticket_created", &[&to, &others[0], &others[1]]),
            1..=4 => sample("support_ticket_created", &[&to]),
            5..=7 => sample("billing_invoice_monthly", &[&to]),
            _ => sample("cutover_reminder", &[&to]),
        },
    };
    if request.template_key == "billing_invoice_monthly" && random.percent(30) {
        attach(&mut request, "facture.pdf", "application/pdf", requests::pdf());
    }
    draft(request)
}

/// A request and what is to become of it. Its words name it, so that no mail can be taken for another.
pub fn draft(mut wire: wire::EmailRequest) -> Draft {
    let id = requests::id(&wire);
    let link = format!("https://portail.example.bj/r/{id}");
    let name = match wire.template_key.as_str() {
        "incident_alert_critical" => "status_link",
        "reseller_announcement" => "link_url",
        "support_ticket_created" => "support_link",
        "sla_monthly_report" => "reseller_name",
        _ => "link_portal",
    };
    set(&mut wire, name, &link);
    let fast = wire.template_key == "incident_alert_critical";
    let holds = wire.template_key == "reseller_announcement";
    let mut recipients: Vec<String> = wire.recipients.iter().map(|to| to.address.clone()).collect();
    recipients.extend(fast.then(|| NOC.to_owned()));
    Draft { wire, request: Request { id, recipients, holds, fast, published_ms: 0 } }
}

/// Larger than the pieces that content is written in.
fn heavy_pdf() -> Bytes {
    let whole = requests::pdf();
    let mut bytes = whole[..9].to_vec();
    for line in 0..6000 {
        bytes.extend_from_slice(format!("% {line:06} so that one write does not carry it all, nor two\n").as_bytes());
    }
    bytes.extend_from_slice(&whole[9..]);
    bytes.into()
}

/// Publishes at the pace that it is allowed.
pub struct Load {
    confirmed: Arc<Mutex<Vec<Request>>>,
    allowed: Arc<Semaphore>,
    total: usize,
    added: usize,
    task: JoinHandle<()>,
}

impl Load {
    /// Publishes nothing until it is allowed to.
    pub fn prepare(amqp_url: &str, drafts: Vec<Draft>) -> Self {
        let confirmed = Arc::new(Mutex::new(Vec::with_capacity(drafts.len())));
        let allowed = Arc::new(Semaphore::new(0));
        let total = drafts.len();
        let task = tokio::spawn(publish_all(amqp_url.to_owned(), drafts, Arc::clone(&allowed), Arc::clone(&confirmed)));
        Self { confirmed, allowed, total, added: 0, task }
    }

    /// Lets it publish this many more.
    pub fn allow(&self, requests: usize) {
        self.allowed.add_permits(requests);
    }

    /// Lets it publish all that is left.
    pub fn allow_all(&self) {
        self.allow(self.total);
    }

    /// Lets it publish so many a second, in bursts, until all are out.
    pub fn allow_per_second(&self, requests: usize) {
        let (allowed, total) = (Arc::clone(&self.allowed), self.total);
        let burst = (requests / BURSTS_PER_SECOND).max(1);
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_secs(1) / BURSTS_PER_SECOND as u32);
            for _ in 0..total.div_ceil(burst) {
                beat.tick().await;
                allowed.add_permits(burst);
            }
        });
    }

    /// What the broker has confirmed so far.
    pub fn confirmed(&self) -> Vec<Request> {
        self.confirmed.lock().expect("nobody panics here").clone()
    }

    /// Adds one that was published beside it.
    pub fn add(&mut self, request: Request) {
        self.added += 1;
        self.confirmed.lock().expect("nobody panics here").push(request);
    }

    /// How many that are.
    pub fn count(&self) -> usize {
        self.confirmed.lock().expect("nobody panics here").len()
    }

    /// How many there will be.
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Whether all are out.
    pub fn is_done(&self) -> bool {
        self.count() == self.total + self.added
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish_all(url: String, drafts: Vec<Draft>, allowed: Arc<Semaphore>, confirmed: Arc<Mutex<Vec<Request>>>) {
    let mut waiting = drafts.into_iter().peekable();
    let mut line: Option<(Connection, Channel)> = None;
    while waiting.peek().is_some() {
        let Ok(permit) = allowed.acquire().await else { return };
        permit.forget();
        let mut batch: Vec<Draft> = waiting.by_ref().take(1).collect();
        while batch.len() < AT_ONCE
            && let Ok(permit) = allowed.try_acquire()
        {
            permit.forget();
            batch.extend(waiting.next());
        }
        batch.iter_mut().for_each(|draft| draft.request.published_ms = now_ms());
        // What the broker did not confirm it may have or not: only the same id again makes sure.
        while !batch.is_empty() {
            if line
                .as_ref()
                .is_none_or(|(connection, channel)| !connection.status().connected() || !channel.status().connected())
            {
                line = connect(&url).await;
            }
            let Some((_, channel)) = &line else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let took = tokio::time::timeout(CONFIRM_MAX, publish_batch(channel, &batch)).await.unwrap_or_default();
            if took.len() < batch.len() {
                line = None;
            }
            let (out, left): (Vec<_>, Vec<_>) = batch.into_iter().partition(|draft| took.contains(&draft.request.id));
            confirmed.lock().expect("nobody panics here").extend(out.into_iter().map(|draft| draft.request));
            batch = left;
        }
    }
}

/// The ids of those that were confirmed.
async fn publish_batch(channel: &Channel, batch: &[Draft]) -> Vec<Uuid> {
    let mut sent = Vec::with_capacity(batch.len());
    for draft in batch {
        let message = publish::outgoing(&draft.wire, topology::REQUESTS).expect("a request that can be published");
        let (exchange, key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
        let options = BasicPublishOptions::default();
        match channel.basic_publish(exchange, key, options, &message.body, message.properties).await {
            Ok(confirm) => sent.push((draft.request.id, confirm)),
            Err(_) => break,
        }
    }
    let mut took = Vec::with_capacity(sent.len());
    for (id, confirm) in sent {
        if confirm.await.is_ok_and(|confirmation| confirmation.is_ack()) {
            took.push(id);
        }
    }
    took
}

async fn connect(url: &str) -> Option<(Connection, Channel)> {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let connection = tokio::time::timeout(Duration::from_secs(10), connecting).await.ok()?.ok()?;
    let channel = connection.create_channel().await.ok()?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.ok()?;
    Some((connection, channel))
}
