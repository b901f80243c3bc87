//! The fast lane while the database is away: an incident goes out from cached templates, with a journal in `email.audit`.
//!
//! What the rows say otherwise is taken from three places: the copy's own headers (who is left, how often they were tried), this
//! daemon's memory (what it sent itself), and the suppressions loaded last.
//! Invariant: `sending` is confirmed in the journal before the first SMTP byte, the outcome before the acknowledgement. What
//! cannot be confirmed waits.
//! Invariant: an entry that a copy or dead letter belongs to is written after the broker has confirmed that one; an entry that
//! says "over" at once.
//! Invariant: a mail of which nobody can tell whether it went out already follows its template's policy; one that may not be
//! repeated waits for the database.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use uuid::Uuid;

use super::{
    Carried, Fate, Halt, Pipeline, RECIPIENTS_AT_ONCE,
    admit::{Message, attachment_rows},
    decode::Decoded,
    memory::Known,
    pending::{Pending, Tries},
    quarantine::request_id_of,
    settle::Settlement,
};
use crate::{
    broker::Delivery,
    email::{AttachmentContent, Lane, Reason, Status, TemplateKind, UnknownPolicy},
    journal,
    store::{
        Claim, Finish, NewStatus, OutcomeRow,
        journal::{Ended, Entry, EntryAttachment, EntryRecipient, EntryRequest, EntryWords, Step},
    },
};

impl Pipeline {
    /// Whether this daemon sent this request without the database a moment ago: the audit may not know it yet.
    pub(super) fn went_out_without_store(&self, delivery: &Delivery) -> bool {
        let envelope = &delivery.envelope;
        // A replay speaks of rows, so those are there.
        envelope.lane == Lane::Fast
            && envelope.generation == 0
            && request_id_of(delivery).is_some_and(|id| self.memory.knew_lately(id))
    }

    /// Carries a delivery of the fast lane without the database.
    pub(super) async fn process_without_store(&self, delivery: &Delivery) -> Result<Carried, Halt> {
        let envelope = &delivery.envelope;
        if envelope.generation > 0 {
            // A replay speaks of rows: who got it already, they only know.
            return Err(Halt::Away);
        }
        let Decoded { request, published_at, .. } = match self.decode(delivery).await {
            Ok(decoded) => decoded,
            Err(settlement) => return Ok(settlement.into()),
        };
        if let Some(first) = self.memory.conflict(request.id, request.payload_hash) {
            return Ok(Settlement::conflict(&request, first).into());
        }
        let rendering = self.render_from_memory(envelope, &request, published_at).await.ok_or(Halt::Away)?;
        if rendering.manifest().is_none_or(|manifest| manifest.kind != TemplateKind::Transactional) {
            return Err(Halt::Away);
        }
        if let Err((reason, error)) = &rendering.words {
            // There can be no row; the letter is the record.
            return Ok(Settlement::unreadable(*reason, error.clone()).about(&request).into());
        }
        let message = Message::new(self, delivery, &request, published_at, &rendering, Vec::new()).journaled();
        // It may have gone out before this daemon knew of it: the policy says whether that may happen again.
        let is_doubtful = envelope.redelivered && !self.memory.knows(request.id);
        if is_doubtful && message.unknown().policy == UnknownPolicy::Hold {
            return Err(Halt::Away);
        }
        self.metrics.accepted(envelope.lane, rendering.label());
        let pending = envelope.pending.as_deref().and_then(Pending::read);
        let journeys =
            (0..message.len()).map(|index| self.one_without_store(&message, index, pending.as_ref(), is_doubtful));
        let fates: Vec<Fate> = stream::iter(journeys.collect::<Vec<_>>()).buffered(RECIPIENTS_AT_ONCE).collect().await;
        Ok(message.carried(&fates))
    }

    async fn one_without_store(
        &self,
        message: &Message<'_>,
        index: usize,
        pending: Option<&Pending>,
        is_doubtful: bool,
    ) -> Fate {
        let (request, hash) = (message.request.id, message.hash(index));
        let told = match pending {
            None => Tries::default(),
            Some(pending) => match pending.tries(hash) {
                Some(tries) => tries,
                None => return Fate::Duplicate,
            },
        };
        let tries = match self.memory.take(request, message.request.payload_hash, hash) {
            Ok(known) => known,
            Err(Known::Sending | Known::Again(_)) => return Fate::Wait(Duration::ZERO),
            Err(Known::Ended(fate @ Fate::Dead { .. })) => return fate,
            Err(Known::Ended(_)) => return Fate::Duplicate,
        };
        let fate = self.take_along(message, index, tries.unwrap_or(told), is_doubtful).await;
        match &fate {
            Fate::Retry(_, tries) => self.memory.note(request, hash, Known::Again(*tries)),
            Fate::Over(_) | Fate::Dead { .. } | Fate::Duplicate => {
                self.memory.note(request, hash, Known::Ended(fate.clone()));
            }
            Fate::Wait(_) | Fate::Crashed(_) | Fate::HandBack => self.memory.give_back(request, hash, tries),
        }
        fate
    }

    /// From here to the confirmed outcome it is this task's mail.
    async fn take_along(&self, message: &Message<'_>, index: usize, tries: Tries, is_doubtful: bool) -> Fate {
        let recipient = message.recipient(index);
        if let Err(bad) = &recipient.address {
            let error = bad.error.to_string();
            let ended = Ended { reason: Some(Reason::BadAddress.name().to_owned()), ..no("failed", &error, tries) };
            self.journal_later(message, index, tries, ended);
            let recipient = recipient.shown().to_owned();
            return Fate::Dead { recipient, reason: Reason::BadAddress, error, attempts: tries.attempts };
        }
        let Some(place) = self.place(message).await else { return Fate::HandBack };
        let now = Utc::now();
        if message.is_expired() {
            return self.stop_without_store(message, index, tries, Status::Expired, "past expires_at").await;
        }
        if let Some(due_in) = message.request.not_before.and_then(|at| (at - now).to_std().ok()) {
            return Fate::Wait(due_in);
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
            words: None,
        };
        let sending = self.entry(message, index, tries, token, Step::Sending);
        let files: Vec<&[u8]> = message
            .request
            .attachments
            .iter()
            .filter_map(|a| match &a.content {
                AttachmentContent::Inline { bytes, .. } => Some(bytes.as_ref()),
                AttachmentContent::Reference { .. } => None,
            })
            .collect();
        if !self.publish_patiently(message.lane(), &journal::outgoing(&sending, &files)).await {
            return Fate::HandBack;
        }
        self.metrics.without_store(if is_doubtful { "maybe_repeated" } else { "first" });
        self.deliver(message, index, claim, place).await
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
            Fate::Over(status)
        } else {
            Fate::HandBack
        }
    }

    /// Writes an outcome into the journal: at once if it is over, else after the copy or letter that it brings.
    pub(super) async fn journal_outcome(
        &self,
        message: &Message<'_>,
        index: usize,
        claim: &Claim,
        row: &OutcomeRow,
    ) -> Finish {
        let tries = Tries { attempts: claim.attempts, deferrals: claim.deferrals };
        let ended = ended(row, tries);
        if row.status.is_over() {
            let entry = self.entry(message, index, tries, claim.token, Step::Ended(Box::new(ended)));
            // Only a daemon that stops gives up here; the row then says `sending`, as after a crash.
            self.publish_patiently(message.lane(), &journal::outgoing(&entry, &[])).await;
        } else {
            let entry = self.entry(message, index, tries, claim.token, Step::Ended(Box::new(ended)));
            message.journal_afterwards(journal::outgoing(&entry, &[]));
        }
        Finish::Recorded
    }

    fn journal_later(&self, message: &Message<'_>, index: usize, tries: Tries, ended: Ended) {
        let (_, token) = message.identity(index);
        let entry = self.entry(message, index, tries, token, Step::Ended(Box::new(ended)));
        message.journal_afterwards(journal::outgoing(&entry, &[]));
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
            id: Uuid::now_v7(),
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
    }
}
