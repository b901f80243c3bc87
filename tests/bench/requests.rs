//! The requests of a run: as a producer makes them, each confirmed by the broker.

use std::{collections::HashMap, sync::Arc};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use postrider::{
    broker::{Link, Publisher, Topology, link::Purpose, topology},
    config::{Environment, Settings},
    email::{Lane, Priority},
    publish::{self, Draft},
};
use serde_json::{Value, json};
use uuid::Uuid;

/// Confirmations awaited side by side: quorum queues confirm in batches.
const AT_ONCE: usize = 64;

/// The folder of the benchmark's own template.
pub(crate) const TEMPLATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/templates");
const TEMPLATE: &str = "bench_notice";

/// A producer with a connection of its own.
pub(crate) struct Producer {
    link: Arc<Link>,
}

impl Producer {
    /// Connects and makes the queues, for requests are published before the daemon starts.
    pub(crate) async fn connect(settings: &[(String, String)]) -> anyhow::Result<Self> {
        let environment: Environment = settings.iter().cloned().collect();
        let broker = Settings::read(&environment, None).broker()?;
        let link = Arc::new(Link::new(&broker, Purpose::Publish)?);
        Topology::new(&broker).establish(&*link.get().await).await?;
        Ok(Self { link })
    }

    /// Queues this many requests in the standard lane, each to a person of its own.
    pub(crate) async fn publish(&self, mails: u64) -> anyhow::Result<()> {
        let publisher = Publisher::new(Arc::clone(&self.link), AT_ONCE);
        stream::iter(1..=mails)
            .map(|number| {
                let publisher = &publisher;
                async move {
                    let outgoing = publish::outgoing(&draft(number).into_wire(), topology::REQUESTS)?;
                    publisher.publish(&outgoing).await.with_context(|| format!("request {number}"))
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Messages that wait in the standard lane's queue.
    pub(crate) async fn waiting(&self) -> anyhow::Result<u32> {
        let channel = self.link.get().await.create_channel().await?;
        let options = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
        let name = topology::lane_queue(Lane::Standard);
        let queue = channel.queue_declare(name.as_str().into(), options, Default::default()).await?;
        channel.close(200, "counted".into()).await?;
        Ok(queue.message_count())
    }

    pub(crate) async fn close(self) {
        self.link.close().await;
    }
}

fn draft(number: u64) -> Draft {
    let invoice = format!("F-2026-{number:06}");
    let variables = json!({
        "reseller_name": format!("Kossi Télécom {number}"),
        "invoice_number": invoice,
        "amount_fcfa": 100_000 + number % 900_000,
        "link_portal": format!("https://portail.example.bj/factures/{invoice}"),
    });
    Draft {
        request_id: Uuid::new_v4(),
        source: "bench".to_owned(),
        template_key: TEMPLATE.to_owned(),
        template_version: 0,
        to: vec![format!("reader-{number:06}@bench.example")],
        variables: match variables {
            Value::Object(all) => all,
            _ => serde_json::Map::new(),
        },
        attachments: Vec::new(),
        priority: Priority::P2,
        metadata: HashMap::new(),
    }
}
