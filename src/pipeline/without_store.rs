//! The fast lane while the database is away: an incident goes out from cached templates, with a journal in `email.audit`.
//!
//! What the rows say otherwise is taken from three places: the copy's own headers (who is left, how often they were tried), this
//! daemon's memory (what it sent itself), and the suppressions loaded last.
//! Invariant: `sending` is confirmed in the journal before the first SMTP byte, the outcome before the acknowledgement. What
//! cannot be confirmed waits.
//! Invariant: an entry that a copy or dead letter belongs to is written after the broker has confirmed that one; an entry that
//! says "over" at once; and one of a failure whose letter waits for other recipients before their copy, which says no more of it
//! than that it failed.
//! Invariant: a mail of which nobody can tell whether it went out already follows its template's policy; one that may not be
//! repeated waits for the database.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use uuid::Uuid;

use super::{
    Carried, Fate, Halt, Pipeline,
    budget::recipients_at_once,
    decode::Decoded,
    fetch::{Archive, Fetched, Missing},
    memory::Known,
    message::{Message, attachment_rows},
    pending::{Left, Tries},
    settlement::Settlement,
};
use crate::{
    broker::Delivery,
    email::{AttachmentContent, Reason, Status, TemplateKind, UnknownPolicy},
    journal,
    store::{
        Claim, NewStatus, OutcomeRow,
        journal::{Ended, Entry, EntryAttachment, EntryRecipient, EntryRequest, EntryWords, Step},
        put_off::PutOff,
    },
};

impl Pipeline {
    /// Carries a delivery of the fast lane without the database.
    pub(super) async fn process_without_store(&self, delivery: &Delivery) -> Result<Carried, Halt> {
        let envelope = &delivery.envelope;
        if envelope.generation > 0 {
            // A replay speaks of rows: who got it already, they only know.
            return Err(Halt::Away);
        }
        let Decoded { mut request, published_at, .. } = match self.decode(delivery).await {
            Ok(decoded) => decoded,
            Err(settlement) => return Ok(settlement.into()),
        };
        if let Some(first) = self.memory.conflict(request.id, request.payload_hash) {
            return Ok(Settlement::conflict(&request, first).into());
        }
        let step = delivery.span.child("render");
        let rendering = self.render_from_memory(envelope, &request, published_at).await.ok_or(Halt::Away)?;
        rendering.tell(&step);
        drop(step);
        if rendering.manifest().is_none_or(|manifest| manifest.kind != TemplateKind::Transactional) {
            return Err(Halt::Away);
        }
        if let Err((reason, error)) = &rendering.words {
            // There can be no row; the letter is the record.
            return Ok(Settlement::unreadable(*reason, error.clone()).about(&request).into());
        }
        // What the attachment store has cannot be asked: each try fetches anew.
        let Fetched { missing, share: _share } = match request.has_references() {
            true => Box::pin(self.fetch(delivery, &mut request, &rendering, Archive::Away)).await?,
            false => Fetched::default(),
        };
        let message = Message::new(self, delivery, &request, published_at, &rendering, Vec::new());
        let message = message.journaled().with_files(false, missing);
        // It may have gone out before this daemon knew of it: the policy says whether that may happen again.
        let may_be_repeated = message.unknown().policy == UnknownPolicy::Resend;
        let knows_all = (0..message.len()).all(|index| self.memory.knows(request.id, message.hash(index)));
        if message.is_doubtful() && !may_be_repeated && !knows_all {
            return Err(Halt::Away);
        }
        self.metrics.accepted(envelope.lane, rendering.label());
        let journeys = (0..message.len()).map(|index| self.one_without_store(&message, index));
        let at_once = recipients_at_once(message.bytes(delivery.body.len()));
        let fates: Vec<Fate> = stream::iter(journeys.collect::<Vec<_>>()).buffered(at_once).collect().await;
        Ok(message.carried(&fates))
    }

    async fn one_without_store(&self, message: &Message<'_>, index: usize) -> Fate {
        let (request, hash) = (message.request.id, message.hash(index));
        let said = match message.left(index) {
            Left::Pending(tries) => tries,
            // What this daemon tried earlier is no reason to try it again: another one has failed since.
            Left::Owed(tries) if !self.memory.has_ended(request, hash) => return Fate::Owed(tries),
            Left::Owed(tries) => tries,
            Left::Over => return Fate::Duplicate,
        };
        let is_doubtful = message.is_doubtful() && !self.memory.knows(request, hash);
        let taken = match self.memory.take(request, message.request.payload_hash, hash) {
            Ok(taken) => taken,
            Err(Known::Sending | Known::Again(_)) => return Fate::Busy(said),
            Err(Known::Ended(fate, entry)) => {
                // What is still owed for it is owed again; the entry counts once.
                if let Some((tries, token, ended)) = entry.map(|entry| *entry) {
                    let step = Step::Ended(Box::new(ended));
                    message.journal_afterwards(self.entry(message, index, tries, token, step));
                }
                return if matches!(fate, Fate::Dead { .. }) { fate } else { Fate::Duplicate };
            }
        };
        // Several daemons may take turns.
        let before = taken.before().filter(|before| before.deferrals > said.deferrals);
        let tries = before.unwrap_or(said);
        let fate = self.take_along(message, index, tries, is_doubtful).await;
        match &fate {
            // A try has noted its outcome itself.
            Fate::Retry(_, tries) => taken.put_down(Known::Again(*tries)),
            Fate::Dead { .. } | Fate::Over(_) => {
                let entry = message.entry_of(hash).map(Box::new);
                taken.put_down(Known::Ended(fate.clone(), entry));
            }
            // Nobody knows whether the relay has it, or nothing was begun: as before, and doubtful if it comes again.
            Fate::Wait(..)
            | Fate::Busy(_)
            | Fate::Owed(_)
            | Fate::Duplicate
            | Fate::Crashed(_)
            | Fate::HandBack
            | Fate::Unwritten => {
                drop(taken);
            }
        }
        fate
    }

    /// From here to the confirmed outcome it is this task's mail.
    async fn take_along(&self, message: &Message<'_>, index: usize, tries: Tries, is_doubtful: bool) -> Fate {
        let recipient = message.recipient(index);
        if let Err(bad) = &recipient.address {
            let error = bad.error.to_string();
            let ended = Ended { reason: Some(Reason::BadAddress.name().to_owned()), ..no("failed", &error, tries) };
            let (_, token) = message.identity(index);
            message.journal_afterwards(self.entry(message, index, tries, token, Step::Ended(Box::new(ended))));
            let recipient = recipient.shown().to_owned();
            return Fate::Dead { recipient, reason: Reason::BadAddress, error, attempts: tries.attempts };
        }
        if let Some(missing) = message.missing() {
            return self.put_off_without_store(message, index, tries, missing);
        }
        let place = tokio::select! {
            biased;
            // Who waited for a relay until there is a database again goes by its rows.
            () = self.store.wait_until_back() => return Fate::Wait(Duration::ZERO, tries),
            place = self.place(message, message.span) => place,
        };
        let Some(place) = place else { return Fate::HandBack };
        let now = Utc::now();
        if message.is_expired() {
            return self.stop_without_store(message, index, tries, Status::Expired, "past expires_at").await;
        }
        if let Some(due_in) = message.request.not_before.and_then(|at| (at - now).to_std().ok()) {
            return Fate::Wait(due_in, tries);
        }
        if message.request.has_references() {
            // It became due after its attachments would have been fetched.
            return Fate::Wait(Duration::ZERO, tries);
        }
        if self.store.was_suppressed(message.hash(index), now) {
            let why = "on the suppression list, as it was loaded last";
            return self.stop_without_store(message, index, tries, Status::Suppressed, why).await;
        }
        let (id, token) = message.identity(index);
        let claim = Claim {
            id,
            token,
            message_id: format!("<{id}@{}>", self.mail.message_id_domain),
            attempts: tries.attempts,
            deferrals: tries.deferrals,
            crashes: 0,
            postponed_until: None,
            words: None,
        };
        let step = message.span.child("journal");
        let sending = journal::outgoing(
            &self.entry(message, index, tries, token, Step::Sending),
            &if message.owes_files() { files_of(message) } else { Vec::new() },
        );
        let told = tokio::select! {
            told = self.publish_patiently(message.lane(), &sending) => told,
            () = self.store.wait_until_back() => {
                // The broker may have taken it all the same; nothing is sent under it.
                message.give_up_claim(index);
                return Fate::Wait(Duration::ZERO, tries);
            }
        };
        if !told {
            message.give_up_claim(index);
            return Fate::HandBack;
        }
        drop(step);
        self.metrics.without_store(if is_doubtful { "maybe_repeated" } else { "first" });
        self.deliver(message, index, claim, place).await
    }

    /// An attachment is not at hand: put off, or given up. No try is counted.
    fn put_off_without_store(&self, message: &Message<'_>, index: usize, tries: Tries, missing: &Missing) -> Fate {
        let error = missing.error.as_str();
        let (ended, fate) = match self.when_again(message, missing, tries.deferrals) {
            PutOff::Again(due_in) => {
                let kind = "deferred".to_owned();
                let ended = Ended { due_in: Some(due_in.as_secs_f64()), kind, ..no("queued", error, tries) };
                (ended, Fate::Retry(due_in, Tries { deferrals: tries.deferrals + 1, ..tries }))
            }
            PutOff::Failed(reason) => {
                let ended = Ended { reason: Some(reason.name().to_owned()), ..no("failed", error, tries) };
                let recipient = message.recipient(index).shown().to_owned();
                (ended, Fate::Dead { recipient, reason, error: error.to_owned(), attempts: tries.attempts })
            }
        };
        let (_, token) = message.identity(index);
        message.journal_afterwards(self.entry(message, index, tries, token, Step::Ended(Box::new(ended))));
        fate
    }

    /// Policy says no.
    async fn stop_without_store(
        &self,
        message: &Message<'_>,
        index: usize,
        tries: Tries,
        status: Status,
        why: &str,
    ) -> Fate {
        let (_, token) = message.identity(index);
        let entry = self.entry(message, index, tries, token, Step::Ended(Box::new(no(status.name(), why, tries))));
        if self.publish_patiently(message.lane(), &journal::outgoing(&entry, &[])).await {
            self.metrics.stopped(message.lane(), message.rendering.label(), status);
            Fate::Over(status)
        } else {
            Fate::HandBack
        }
    }

    /// Writes an outcome into the journal: at once if it is over, else after the copy or letter that it brings. False: the
    /// daemon stops first, and nobody knows the outcome; the row says `sending`, as after a crash.
    pub(super) async fn journal_outcome(
        &self,
        message: &Message<'_>,
        index: usize,
        claim: &Claim,
        row: &OutcomeRow,
    ) -> bool {
        let tries = Tries { attempts: claim.attempts, deferrals: claim.deferrals };
        let step = Step::Ended(Box::new(ended(row, tries)));
        let entry = self.entry(message, index, tries, claim.token, step);
        if row.status.is_over() {
            return self.publish_patiently(message.lane(), &journal::outgoing(&entry, &[])).await;
        }
        message.journal_afterwards(entry);
        true
    }

    /// Notes a mail in memory that was claimed with the database and ended without it.
    pub(super) fn remember(&self, message: &Message<'_>, index: usize, fate: &Fate) {
        let (request, hash) = (message.request, message.hash(index));
        let known = match fate {
            Fate::Retry(_, tries) => Known::Again(*tries),
            _ => Known::Ended(fate.clone(), message.entry_of(hash).map(Box::new)),
        };
        self.memory.note(request.id, request.payload_hash, hash, known);
    }

    fn entry(&self, message: &Message<'_>, index: usize, tries: Tries, token: Uuid, step: Step) -> Entry {
        let request = message.request;
        let words = message.rendering.words.as_ref().ok();
        let recipients = (0..message.len()).map(|index| {
            let (id, _) = message.identity(index);
            let recipient = message.recipient(index);
            EntryRecipient {
                id,
                hash: hex::encode(message.hash(index)),
                email: recipient.shown().to_owned(),
                name: recipient.display_name.clone(),
                message_id: format!("<{id}@{}>", self.mail.message_id_domain),
            }
        });
        Entry {
            // The same step of the same try is one entry, however often it is told.
            id: Uuid::new_v5(&token, &step_name(&step, message.hash(index))),
            at: Utc::now(),
            worker_id: self.store.worker_id(),
            request: EntryRequest {
                id: request.id,
                payload_hash: request.payload_hash.to_string(),
                source: request.source.clone(),
                template_key: request.template_key.clone(),
                template_version: message.rendering.version(),
                priority: request.priority.number(),
                lane: message.lane().name().to_owned(),
                locale: request.locale.clone(),
                reply_to: request.reply_to.as_ref().map(|a| a.as_str().to_owned()),
                variables: serde_json::Value::Object(request.variables.clone()),
                metadata: serde_json::to_value(&request.metadata).unwrap_or_default(),
                published_at: message.published_at,
                not_before: request.not_before,
                expires_at: request.expires_at,
                generation: message.envelope.generation,
                copy_no: message.envelope.copy_no,
            },
            recipients: recipients.collect(),
            recipient_hash: hex::encode(message.hash(index)),
            words: words.map(|w| EntryWords { subject: w.subject.clone(), html: w.html.clone(), text: w.text.clone() }),
            attachments: attachment_rows(request)
                .into_iter()
                .map(|a| EntryAttachment {
                    file_name: a.file_name,
                    content_type: a.content_type,
                    content_id: a.content_id,
                    size_bytes: a.size_bytes,
                    sha256: hex::encode(a.sha256),
                })
                .collect(),
            token,
            round: tries.deferrals,
            step,
        }
    }
}

fn step_name(step: &Step, recipient: &[u8; 32]) -> Vec<u8> {
    let name: &[u8] = match step {
        Step::Sending => b"sending",
        Step::Ended(_) => b"ended",
    };
    [name, recipient].concat()
}

fn files_of<'a>(message: &Message<'a>) -> Vec<&'a [u8]> {
    let files = message.request.attachments.iter().filter_map(|a| match &a.content {
        AttachmentContent::Inline { bytes, .. } => Some(bytes.as_ref()),
        AttachmentContent::Reference { .. } => None,
    });
    files.collect()
}

/// Ended without a try.
fn no(status: &str, why: &str, tries: Tries) -> Ended {
    Ended {
        status: status.to_owned(),
        attempts: tries.attempts,
        due_in: None,
        held: false,
        reason: None,
        sent_at: None,
        latency_ms: None,
        kind: status.to_owned(),
        relay: String::new(),
        phase: None,
        reply_code: None,
        reply_text: None,
        relay_message_id: None,
        error: Some(why.to_owned()),
        suppresses: false,
        is_settled: false,
    }
}

/// A try's outcome as the journal has it.
fn ended(row: &OutcomeRow, tries: Tries) -> Ended {
    let (status, due_in, held, reason): (_, Option<Duration>, _, _) = match &row.status {
        NewStatus::Sent { .. } => (Status::Sent, None, false, None),
        NewStatus::Queued { due_in } => (Status::Queued, Some(*due_in), false, None),
        NewStatus::Unknown { due_in } => (Status::Unknown, Some(*due_in), false, Some(Reason::OutcomeUnknown)),
        NewStatus::Held => (Status::Unknown, None, true, Some(Reason::OutcomeUnknown)),
        NewStatus::Failed { reason } => (Status::Failed, None, false, Some(*reason)),
    };
    let (sent_at, latency): (Option<DateTime<Utc>>, _) = match &row.status {
        NewStatus::Sent { at, latency } => (Some(*at), Some(*latency)),
        NewStatus::Queued { .. } | NewStatus::Unknown { .. } | NewStatus::Held | NewStatus::Failed { .. } => {
            (None, None)
        }
    };
    Ended {
        status: status.name().to_owned(),
        attempts: tries.attempts + i32::from(row.counted),
        due_in: due_in.map(|d| d.as_secs_f64()),
        held,
        reason: reason.map(|r| r.name().to_owned()),
        sent_at,
        latency_ms: latency.map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
        kind: row.kind.to_owned(),
        relay: row.relay.clone(),
        phase: row.phase.map(|p| p.name().to_owned()),
        reply_code: row.reply.as_ref().and_then(|r| i16::try_from(r.code).ok()),
        reply_text: row.reply.as_ref().map(|r| r.text.clone()),
        relay_message_id: row.reply.as_ref().and_then(|r| r.relay_message_id().map(str::to_owned)),
        error: row.error.clone(),
        suppresses: row.suppression.is_some(),
        is_settled: false,
    }
}
