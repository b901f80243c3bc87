//! The requests of a run: as a producer makes them, each confirmed by the broker.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use postrider::{
    broker::{Link, Publisher, Topology, link::Purpose, topology},
    config::{Environment, Settings},
    email::{Lane, Priority},
    publish::{self, Draft},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// Confirmations awaited side by side: quorum queues confirm in batches.
const AT_ONCE: usize = 64;
/// So many bytes are made ahead of the broker at most.
const BYTES_AT_ONCE: usize = 32 << 20;
/// The largest document, as large as an attachment may be by default.
const DOCUMENT_MAX: usize = 10 << 20;

/// What a mail holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Content {
    /// Words only: 2 kB on the wire.
    Notice,
    /// Words and a PDF of this many bytes, another one in each mail.
    Document(usize),
}

impl Content {
    const fn template(self) -> &'static str {
        match self {
            Self::Notice => "bench_notice",
            Self::Document(_) => "bench_document",
        }
    }

    fn at_once(self) -> usize {
        match self {
            Self::Notice => AT_ONCE,
            Self::Document(size) => (BYTES_AT_ONCE / size.max(1)).clamp(2, AT_ONCE),
        }
    }
}

/// A producer with a connection of its own.
pub(crate) struct Producer {
    link: Arc<Link>,
    publisher: Publisher,
}

impl Producer {
    /// Connects and makes the queues, for requests are published before the daemon starts.
    pub(crate) async fn connect(settings: &[(String, String)]) -> anyhow::Result<Self> {
        let environment: Environment = settings.iter().cloned().collect();
        let broker = Settings::read(&environment, None).broker()?;
        let link = Arc::new(Link::new(&broker, Purpose::Publish)?);
        Topology::new(&broker).establish(&*link.get().await).await?;
        let publisher = Publisher::new(Arc::clone(&link), AT_ONCE);
        Ok(Self { link, publisher })
    }

    /// Queues this many requests, each to a person of its own.
    pub(crate) async fn publish(&self, content: Content, priority: Priority, mails: u64) -> anyhow::Result<()> {
        stream::iter(1..=mails)
            .map(|number| self.publish_one(content, priority, number))
            .buffer_unordered(content.at_once())
            .try_collect()
            .await
    }

    /// Publishes one request after the other, evenly spaced.
    pub(crate) async fn publish_steadily(&self, priority: Priority, mails: u64, every: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        let at = |number: u64| begun + every.mul_f64(number as f64);
        stream::iter(1..=mails)
            .map(|number| async move {
                sleep_until(at(number)).await;
                self.publish_one(Content::Notice, priority, number).await
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn publish_one(&self, content: Content, priority: Priority, number: u64) -> anyhow::Result<()> {
        let outgoing = publish::outgoing(&draft(content, priority, number).into_wire(), topology::REQUESTS)?;
        self.publisher.publish(&outgoing).await.with_context(|| format!("request {number}"))
    }

    /// Messages that are ready in the lane's queue.
    pub(crate) async fn waiting(&self, lane: Lane) -> anyhow::Result<u64> {
        let channel = self.link.get().await.create_channel().await?;
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let name = topology::lane_queue(lane);
        let queue = channel.queue_declare(name.as_str().into(), options, Default::default()).await?;
        channel.close(200, "counted".into()).await?;
        Ok(queue.message_count().into())
    }

    pub(crate) async fn close(self) {
        self.link.close().await;
    }
}

fn draft(content: Content, priority: Priority, number: u64) -> Draft {
    let invoice = format!("F-2026-{number:06}");
    let variables = json!({
        "reseller_name": format!("Kossi Télécom {number}"),
        "invoice_number": invoice,
        "amount_fcfa": 100_000 + number % 900_000,
        "link_portal": format!("https://portail.example.bj/factures/{invoice}"),
    });
    let attachments = match content {
        Content::Notice => Vec::new(),
        Content::Document(size) => {
            vec![(format!("{invoice}.pdf"), "application/pdf".to_owned(), document(size))]
        }
    };
    Draft {
        request_id: Uuid::new_v4(),
        // Only incidents may be as urgent by default.
        source: if priority == Priority::P0 { "incident" } else { "bench" }.to_owned(),
        template_key: content.template().to_owned(),
        template_version: 0,
        to: vec![format!("reader-{number:06}@bench.example")],
        variables: match variables {
            Value::Object(all) => all,
            _ => serde_json::Map::new(),
        },
        attachments,
        priority,
        metadata: HashMap::new(),
    }
}

/// Looks like a PDF, does not compress, and is unlike every other, so that the database cannot keep several as one.
fn document(size: usize) -> Bytes {
    static FILLER: OnceLock<Vec<u8>> = OnceLock::new();
    let filler = FILLER.get_or_init(|| {
        // Marsaglia's xorshift: any even distribution will do.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut bytes = Vec::with_capacity(DOCUMENT_MAX);
        while bytes.len() < DOCUMENT_MAX {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes
    });
    let head = format!("%PDF-1.4\n% {}\n", Uuid::new_v4());
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(&filler[..size.saturating_sub(head.len()).min(filler.len())]);
    bytes.into()
}
