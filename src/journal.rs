//! The journal of the fast lane: entries travel through `email.audit`, and are written into the audit when the database is back.
//!
//! Invariant: an entry is acknowledged after it is committed, and committed once however often it arrives.
//! Invariant: whoever comes back to a database writes the journal first, one daemon at a time; lanes go on when it is empty.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use tokio::sync::Mutex;
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{BrokerError, Drawer, Drawn, Outgoing, Publisher, dead_letter as h, topology},
    email::Reason,
    store::{
        Store, StoreError, StoreHealth,
        journal::{Entry, JournalLock, ReceivedEntry},
    },
};

/// AMQP `type` of an entry.
const ENTRY_TYPE: &str = "postrider.journal.v1";
/// Entries written in one transaction.
const BATCH_MAX: usize = 256;
/// How often a daemon looks whether another one, cut off from its database, has left entries.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Tries of what the database could not take because of what others did at that moment.
const REPEATS_MAX: u32 = 5;
/// Rows that the entries of one transaction may touch.
const ROWS_MAX: usize = 1024;
/// A transaction ends with the entry that brings it over this size.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Steps of one mail in one transaction: each takes some statements of its own.
const STEPS_MAX: usize = 16;
/// Longest wait for the broker while the right to write is held: others wait for it.
const DRAW_MAX: Duration = Duration::from_secs(10);
/// Pause before another daemon that is writing is asked again whether it is done.
const TURN_PAUSE: Duration = Duration::from_millis(250);
/// A whole message: RabbitMQ 4's default limit, less what headers need.
const BODY_BYTES_MAX: usize = 15 * 1024 * 1024;
/// Longest pause while the broker cannot be asked.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// An entry on its way to `email.audit`; the files' bytes go with the first entry of a request only.
#[must_use]
pub fn outgoing(entry: &Entry, files: &[&[u8]]) -> Outgoing {
    // JSON written without line breaks, one line; behind it the files as they are.
    let mut body = serde_json::to_vec(entry).unwrap_or_default();
    body.push(b'\n');
    let size = body.len() + files.iter().map(|file| file.len()).sum::<usize>();
    let brings_files = !files.is_empty() && size <= BODY_BYTES_MAX;
    if brings_files {
        files.iter().for_each(|file| body.extend_from_slice(file));
    } else if !files.is_empty() {
        tracing::warn!(size, "attachments too large for the journal: the audit will know their hashes only");
    }
    let mut headers = FieldTable::default();
    headers.insert(FILES.into(), AMQPValue::Boolean(brings_files));
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_type(ENTRY_TYPE.into())
        .with_message_id(entry.id.to_string().into())
        .with_headers(headers);
    Outgoing { exchange: String::new(), routing_key: topology::AUDIT.to_owned(), properties, body: Bytes::from(body) }
}

/// Says that the files' bytes follow the entry.
const FILES: &str = "x-files";

fn read(body: &Bytes, has_files: bool) -> Option<ReceivedEntry> {
    let end = body.iter().position(|byte| *byte == b'\n')?;
    let entry: Entry = serde_json::from_slice(&body[..end]).ok()?;
    let mut rest = body.slice(end + 1..);
    let mut files = Vec::new();
    if has_files {
        for attachment in &entry.attachments {
            let size = usize::try_from(attachment.size_bytes).ok().filter(|size| *size <= rest.len())?;
            files.push(rest.split_to(size));
        }
    }
    rest.is_empty().then_some(ReceivedEntry { entry, files })
}

/// Why the journal could not be written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database is away again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The broker is away.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Writes the journal.
pub struct Journal {
    /// Where it is written.
    store: Arc<Store>,
    /// Where it comes from.
    drawer: Drawer,
    /// For entries that can never be written.
    publisher: Arc<Publisher>,
    /// One of this daemon's tasks at a time looks and writes; those behind it find its work done.
    turn: Mutex<()>,
}

impl Journal {
    /// Between these; nothing is looked at yet.
    #[must_use]
    pub fn new(store: Arc<Store>, drawer: Drawer, publisher: Arc<Publisher>) -> Self {
        Self { store, drawer, publisher, turn: Mutex::new(()) }
    }

    /// Writes the journal whenever the database has come back, and whatever other daemons leave, until `stop`.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut health = self.store.health();
        loop {
            let is_behind = tokio::select! {
                () = stop.cancelled() => return,
                behind = health.wait_for(|health| matches!(health, StoreHealth::CatchingUp)) => behind.is_ok(),
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            if !is_behind && !self.store.is_up() {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.write_patiently() => {}
            }
        }
    }

    /// Writes it for as long as the database is there; a broker that is away is waited for.
    async fn write_patiently(&self) {
        let mut pauses = ExponentialBackoff::from_millis(2).factor(50).max_delay(PAUSE_MAX).map(jitter);
        loop {
            match self.write_all().await {
                Ok(written) => {
                    if written > 0 {
                        tracing::info!(entries = written, "wrote the fast lane's journal into the audit");
                    }
                    return self.store.caught_up();
                }
                Err(JournalError::Store(error)) => {
                    if self.store.is_up() {
                        self.store.note_away(&error);
                    } else {
                        self.store.fell_behind(&error);
                    }
                    return;
                }
                Err(JournalError::Broker(error)) => {
                    tracing::warn!(%error, "cannot ask the broker for the fast lane's journal");
                    tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
                }
            }
        }
    }

    /// Writes what is there when it is asked, and says how much that was. One daemon writes at a time; who has to wait for
    /// another finds its work done.
    ///
    /// # Errors
    /// When database or broker go away; what was not written stays in its queue.
    pub async fn write_all(&self) -> Result<usize, JournalError> {
        let _turn = self.turn.lock().await;
        let is_up = self.store.is_up();
        loop {
            let waiting = self.depth().await?;
            if waiting == 0 && is_up {
                // What another daemon has drawn and not committed yet is no longer in the queue.
                if self.store.nobody_writes_the_journal().await? {
                    return Ok(0);
                }
                tokio::time::sleep(TURN_PAUSE).await;
                continue;
            }
            let Some(mut lock) = self.store.try_lock_journal().await? else {
                tokio::time::sleep(TURN_PAUSE).await;
                continue;
            };
            // Asked again: another may have put back what it held when it gave up the right.
            let written = match self.depth().await {
                Ok(waiting) => self.write_under(&mut lock, waiting).await,
                Err(error) => Err(error),
            };
            self.store.unlock_journal(lock).await;
            return written;
        }
    }

    async fn depth(&self) -> Result<usize, JournalError> {
        let asking = self.drawer.depth(topology::AUDIT);
        let answer = tokio::time::timeout(DRAW_MAX, asking).await;
        let ready =
            answer.unwrap_or(Err(BrokerError::TimedOut { limit: DRAW_MAX, doing: "asking for the journal" }))?;
        Ok(usize::try_from(ready).unwrap_or(usize::MAX))
    }

    /// Entries that come meanwhile are not waited for: this daemon's own incidents write some all the time.
    async fn write_under(&self, lock: &mut JournalLock, waiting: usize) -> Result<usize, JournalError> {
        let mut written = 0;
        while written < waiting {
            let drawing = self.drawer.draw(topology::AUDIT, BATCH_MAX.min(waiting - written));
            let drawn = tokio::time::timeout(DRAW_MAX, drawing).await;
            let drawn =
                drawn.unwrap_or(Err(BrokerError::TimedOut { limit: DRAW_MAX, doing: "drawing the journal" }))?;
            if drawn.is_empty() {
                break;
            }
            written += drawn.len();
            self.write_drawn(lock, drawn).await?;
        }
        Ok(written)
    }

    /// In transactions of a size that a statement's limit allows, whatever the number of recipients.
    async fn write_drawn(&self, lock: &mut JournalLock, drawn: Vec<Drawn>) -> Result<(), JournalError> {
        let mut read_ones = Vec::with_capacity(drawn.len());
        for one in drawn {
            match read(&one.body, one.flag(FILES)) {
                Some(received) => read_ones.push((received, one)),
                None => self.set_aside(one, "not an entry of the journal").await?,
            }
        }
        // Any order will do; in that of the steps each makes the next one's row.
        read_ones.sort_by_key(|(received, _)| received.entry.at);
        let (mut batch, mut rows, mut bytes, mut steps) = (Vec::new(), 0, 0, HashMap::new());
        for (received, one) in read_ones {
            let entry = &received.entry;
            rows += entry.recipients.len();
            bytes += one.body.len();
            let of_mail = steps.entry((entry.request.id, entry.recipient_hash.clone())).or_insert(0);
            *of_mail += 1;
            let is_full = rows >= ROWS_MAX || bytes >= BATCH_BYTES_MAX || *of_mail >= STEPS_MAX;
            batch.push((received, one));
            if is_full {
                self.write_batch(lock, std::mem::take(&mut batch)).await?;
                (rows, bytes) = (0, 0);
                steps.clear();
            }
        }
        self.write_batch(lock, batch).await
    }

    async fn write_batch(
        &self,
        lock: &mut JournalLock,
        batch: Vec<(ReceivedEntry, Drawn)>,
    ) -> Result<(), JournalError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (entries, taken): (Vec<ReceivedEntry>, Vec<Drawn>) = batch.into_iter().unzip();
        let mut taken = taken.into_iter();
        // From the front to the back.
        let mut parts = vec![entries.as_slice()];
        while let Some(part) = parts.pop() {
            match self.apply(lock, part).await {
                Ok(()) => {
                    for one in taken.by_ref().take(part.len()) {
                        one.ack().await?;
                    }
                }
                // One of them cannot be stored: halved until it is alone, so that only that one is set aside.
                Err(StoreError::Data { .. } | StoreError::Repeat(_)) if part.len() > 1 => {
                    let (front, back) = part.split_at(part.len() / 2);
                    parts.extend([back, front]);
                }
                Err(error @ StoreError::Data { .. }) => {
                    if let Some(one) = taken.next() {
                        self.set_aside(one, &error.to_string()).await?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn apply(&self, lock: &mut JournalLock, entries: &[ReceivedEntry]) -> Result<(), StoreError> {
        for _ in 1..REPEATS_MAX {
            match self.store.apply_journal(lock, entries).await {
                Err(StoreError::Repeat(_)) => {}
                applied => return applied,
            }
        }
        self.store.apply_journal(lock, entries).await
    }

    /// Nothing is thrown away: what cannot be written becomes a dead letter.
    async fn set_aside(&self, one: Drawn, why: &str) -> Result<(), JournalError> {
        tracing::error!(why, "an entry of the journal cannot be written; it becomes a dead letter");
        let text = |value: &str| AMQPValue::LongString(value.into());
        let mut headers = FieldTable::default();
        headers.insert(h::REASON.into(), text(Reason::Malformed.name()));
        headers.insert(h::ERROR.into(), text(&format!("an entry of {}: {why}", topology::AUDIT)));
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_type(ENTRY_TYPE.into()).with_headers(headers);
        let letter = Outgoing {
            exchange: topology::DEAD.to_owned(),
            routing_key: topology::AUDIT.to_owned(),
            properties,
            body: one.body.clone(),
        };
        self.publisher.publish(&letter).await?;
        Ok(one.ack().await?)
    }
}
