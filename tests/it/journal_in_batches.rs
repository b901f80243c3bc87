//! The journal is written in batches; whatever is in one, the rows are those that its entries make one after the other.

use std::fmt::Debug;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use lapin::options::BasicPublishOptions;
use postrider::{
    journal,
    store::{
        Store,
        journal::{Ended, Entry, EntryAttachment, EntryRecipient, EntryRequest, EntryWords, ReceivedEntry, Step},
    },
};
use proptest::{prelude::*, sample::select, strategy::ValueTree, test_runner::TestRunner};
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::types::JsonValue;
use uuid::Uuid;

use crate::support::{
    database::Database,
    installation::Installation,
    wait::{until, until_some},
};

/// Histories that are tried.
const HISTORIES: u32 = 40;
/// Requests of one history; the recipients of each are as many.
const REQUESTS: usize = 2;
/// Daemons that write; the first one is alive.
const DAEMONS: usize = 2;

/// What one entry says, but for whose history it is.
#[derive(Debug, Clone)]
struct Said {
    request: usize,
    recipient: usize,
    daemon: usize,
    round: i32,
    /// Nothing: it is on its way.
    ended: Option<(&'static str, bool)>,
    is_settled: bool,
    generation: i32,
    is_another_payload: bool,
    has_words: bool,
    brings_file: bool,
    suppresses: bool,
}

fn said() -> impl Strategy<Value = Said> {
    let endings = [
        ("queued", false),
        ("unknown", false),
        ("unknown", true),
        ("failed", false),
        ("suppressed", false),
        ("expired", false),
        ("sent", false),
    ];
    let who = (0..REQUESTS, 0..REQUESTS, 0..DAEMONS, 0..3_i32);
    let step = (prop::option::weighted(0.7, select(endings.to_vec())), any::<bool>());
    let rare = || prop::bool::weighted(0.1);
    let what = (rare(), rare(), any::<bool>(), any::<bool>(), rare());
    (who, step, what).prop_map(|((request, recipient, daemon, round), (ended, is_settled), rest)| {
        let (is_replayed, is_another_payload, has_words, brings_file, suppresses) = rest;
        Said {
            request,
            recipient,
            daemon,
            round,
            ended,
            is_settled,
            generation: i32::from(is_replayed),
            is_another_payload,
            has_words,
            brings_file,
            suppresses,
        }
    })
}

/// One of two histories that differ in nothing but their names.
struct Naming {
    salt: Uuid,
    began: DateTime<Utc>,
    daemons: [Uuid; DAEMONS],
}

impl Naming {
    fn name(&self, what: impl Debug) -> Uuid {
        Uuid::new_v5(&self.salt, format!("{what:?}").as_bytes())
    }

    fn hash(&self, what: impl Debug) -> String {
        hex::encode(Sha256::digest(self.name(what)))
    }

    fn entry(&self, said: &Said) -> ReceivedEntry {
        let request = self.name(("request", said.request));
        let recipients = (0..REQUESTS).map(|recipient| EntryRecipient {
            id: self.name(("mail", said.request, recipient)),
            hash: self.hash(("address", said.request, recipient)),
            email: format!("{recipient}@example.bj"),
            name: None,
            message_id: format!("<{}@example.bj>", self.name(("mail", said.request, recipient))),
        });
        let at = self.began + TimeDelta::nanoseconds(1_000_000_999 * i64::from(said.round));
        let step = said.ended.map_or(Step::Sending, |(status, held)| {
            Step::Ended(Box::new(Ended {
                status: status.to_owned(),
                attempts: said.round + 1,
                due_in: matches!(status, "queued" | "unknown").then_some(7.5),
                held,
                reason: (status == "failed").then(|| "rejected".to_owned()),
                sent_at: (status == "sent").then_some(at),
                latency_ms: Some(3),
                kind: if status == "queued" { "deferred" } else { status }.to_owned(),
                relay: "relay:25".to_owned(),
                phase: Some("final_dot".to_owned()),
                reply_code: Some(250),
                reply_text: Some("ok \"\u{e9}\" \\ \n".to_owned()),
                relay_message_id: Some("r-1".to_owned()),
                error: None,
                suppresses: said.suppresses,
                is_settled: said.is_settled,
            }))
        });
        let has_file = said.request == 0;
        // Of each history its own, and of another payload another one.
        let file = Bytes::copy_from_slice(self.name(("file", said.is_another_payload)).as_bytes());
        let entry = Entry {
            id: self.name(said),
            at,
            worker_id: self.daemons[said.daemon],
            request: EntryRequest {
                id: request,
                payload_hash: self.hash(("payload", said.request, said.is_another_payload)),
                source: "incident".to_owned(),
                template_key: "incident_alert_critical".to_owned(),
                template_version: Some(1),
                priority: 0,
                lane: "fast".to_owned(),
                locale: None,
                reply_to: None,
                variables: json!({ "title": "a \"title\"", "affected": 12.25 }),
                metadata: json!({}),
                published_at: self.began,
                not_before: None,
                expires_at: None,
                generation: said.generation,
                copy_no: said.round,
            },
            recipients: recipients.collect(),
            recipient_hash: self.hash(("address", said.request, said.recipient)),
            words: said.has_words.then(|| EntryWords {
                subject: format!("round {}", said.round),
                html: "<p>x</p>".to_owned(),
                text: "x".to_owned(),
            }),
            attachments: if has_file {
                vec![EntryAttachment {
                    file_name: "a.txt".to_owned(),
                    content_type: "text/plain".to_owned(),
                    content_id: None,
                    size_bytes: i32::try_from(file.len()).expect("small"),
                    sha256: hex::encode(Sha256::digest(&file)),
                }]
            } else {
                Vec::new()
            },
            token: self.name(("token", said.request, said.daemon, said.round)),
            round: said.round,
            step,
        };
        ReceivedEntry { entry, files: if has_file && said.brings_file { vec![file] } else { Vec::new() } }
    }

    /// All that the audit knows of it, with names that both histories share.
    async fn audit(&self, database: &Database) -> Vec<JsonValue> {
        let mut known = Vec::new();
        for request in 0..REQUESTS {
            let rows: Option<JsonValue> = sqlx::query_scalar(
                "select jsonb_agg(jsonb_build_array(m.ordinal, m.recipient_email, m.subject, m.text_content, m.status,
                    m.attempts, m.deferrals, m.held, m.settlement, m.due_at, m.sent_at, m.reason, m.attachments_count,
                    array_position($2, m.token), array_position($3, m.worker_id), r.generation, r.variables,
                    (select jsonb_agg(jsonb_build_array(t.at, t.kind, t.attempt, t.latency_ms, t.relay, t.phase,
                        t.reply_code, t.reply_text, t.relay_message_id) order by t.id)
                     from email_timeline t where t.message_id = m.id),
                    (select count(*) from email_attachments a join attachment_blobs b using (sha256)
                     where a.message_id = m.id),
                    (select jsonb_agg(o.kind order by o.id) from outbox o where o.message_id = m.id),
                    exists (select from suppressions s where s.address_hash = m.recipient_hash)) order by m.ordinal)
                 from email_requests r join email_messages m on m.request_id = r.id where r.id = $1",
            )
            .bind(self.name(("request", request)))
            .bind(self.tokens(request))
            .bind(self.daemons.to_vec())
            .fetch_one(&database.pool)
            .await
            .expect("an answer");
            known.push(rows.unwrap_or_default());
        }
        known
    }

    fn tokens(&self, request: usize) -> Vec<Uuid> {
        let pairs = (0..DAEMONS).flat_map(|daemon| (0..3_i32).map(move |round| (daemon, round)));
        pairs.map(|(daemon, round)| self.name(("token", request, daemon, round))).collect()
    }
}

async fn write(store: &Store, batches: impl Iterator<Item = &[ReceivedEntry]>) {
    // The server may still be ending the session that had it before.
    let locking = async || store.try_lock_journal().await.expect("an answer");
    let mut lock = until_some("the right to write the journal", locking).await;
    for batch in batches {
        store.apply_journal(&mut lock, batch).await.expect("it is written");
    }
    store.unlock_journal(lock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_makes_the_rows_that_its_entries_make_one_by_one() {
    let database = Database::start().await;
    let store = database.store();
    let mut chance = TestRunner::default();
    // Some come twice, and they come in any order.
    let histories = prop::collection::vec(said(), 1..24);
    let mut told = 0;
    for _ in 0..HISTORIES {
        let said = histories.new_tree(&mut chance).expect("a history").current();
        let daemons = [Uuid::new_v4(), Uuid::new_v4()];
        sqlx::query("insert into email_workers (id, lease_until) values ($1, now() + interval '1 hour')")
            .bind(daemons[0])
            .execute(&database.pool)
            .await
            .expect("a daemon that is alive");
        let began = Utc::now();
        let naming = || Naming { salt: Uuid::new_v4(), began, daemons };
        let (single, whole) = (naming(), naming());
        let entries =
            |naming: &Naming| said.iter().chain(said.first()).map(|one| naming.entry(one)).collect::<Vec<_>>();
        let (one_by_one, at_once) = (entries(&single), entries(&whole));
        write(&store, one_by_one.chunks(1)).await;
        write(&store, std::iter::once(at_once.as_slice())).await;
        let (expected, found) = (single.audit(&database).await, whole.audit(&database).await);
        assert_eq!(found, expected, "{said:#?}");
        told += expected.iter().filter(|rows| !rows.is_null()).count();
        // Told once more it is known.
        write(&store, std::iter::once(at_once.as_slice())).await;
        assert_eq!(whole.audit(&database).await, expected, "written twice: {said:#?}");
    }
    assert!(told > usize::try_from(HISTORIES).expect("few"), "{told} requests");
}

/// PostgreSQL has no text with a NUL in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_an_entry_that_cannot_be_stored_is_set_aside_and_those_beside_it_are_written() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let naming = Naming { salt: Uuid::new_v4(), began: Utc::now(), daemons: [Uuid::new_v4(), Uuid::new_v4()] };
    let (requests, bad) = (41, 17);
    let channel = post.broker.channel().await;
    for (request, recipient) in
        (0..requests).flat_map(|request| (0..REQUESTS).map(move |recipient| (request, recipient)))
    {
        let sent = Said {
            request,
            recipient,
            daemon: 0,
            round: 0,
            ended: Some(("sent", false)),
            is_settled: false,
            generation: 0,
            is_another_payload: false,
            has_words: true,
            brings_file: true,
            suppresses: false,
        };
        let ReceivedEntry { mut entry, files } = naming.entry(&sent);
        if request == bad
            && let Step::Ended(ended) = &mut entry.step
        {
            ended.reply_text = Some("250 \0".to_owned());
        }
        let files: Vec<&[u8]> = files.iter().map(AsRef::as_ref).collect();
        let message = journal::outgoing(&entry, &files);
        let (exchange, queue) = (message.exchange.into(), message.routing_key.into());
        let options = BasicPublishOptions::default();
        let publishing = channel.basic_publish(exchange, queue, options, &message.body, message.properties);
        publishing.await.expect("it is sent");
    }
    until("the journal waits", async || {
        let entries = u32::try_from(requests * REQUESTS).expect("few");
        post.broker.depth("email.audit").await.is_some_and(|depth| depth.ready == entries)
    })
    .await;
    post.start_daemon().await;
    let letters = post.database.wait_for_letters(REQUESTS).await;
    assert!(letters.iter().all(|letter| letter.reason == "malformed" && letter.request_id.is_none()), "{letters:?}");
    for request in (0..requests).filter(|request| *request != bad) {
        for row in post.database.wait_for(naming.name(("request", request)), "sent").await {
            assert_eq!(post.database.timeline(row.id).await.len(), 1);
        }
    }
    assert!(post.database.rows(naming.name(("request", bad))).await.is_empty());
    post.finish().await;
}
