//! Stage 5: one claimed mail to one recipient, and its outcome committed.
//!
//! Invariant: from the first SMTP byte to the committed outcome nothing here is cancelled; a shutdown waits for it.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use uuid::Uuid;

use super::{Fate, Pipeline, message::Message, pending::Tries, traced};
use crate::{
    email::{
        AttachmentContent, EmailAddress, EmailRequest, Lane, Manifest, Outcome, Phase, Reason, Recipient, Reply,
        SendReport, Status, SuppressionReason,
    },
    faults::{self, Point},
    mime,
    retry::{self, Verdict},
    smtp::{self, Again, OutgoingMail, Place},
    store::{
        Claim, Finish, NewStatus, OutcomeRow, StoreError, Words,
        suppressions::{self, NewSuppression},
    },
    telemetry::span::Span,
};

/// Connections that may turn out dead before MAIL was accepted, until the mail is put off instead.
const STALE_CONNECTIONS_MAX: u32 = 3;
/// How long a claimed mail may wait for another connection.
const ANOTHER_PLACE_WAIT: Duration = Duration::from_secs(5);
/// Beyond this a message is built on a thread that may block.
const BUILD_INLINE_BYTES_MAX: usize = 256 * 1024;
/// Kept of an error's words.
const ERROR_CHARS_MAX: usize = 1000;

/// Everything that a message is made of.
pub(super) struct Making<'a> {
    pub(super) request: &'a EmailRequest,
    pub(super) recipient: &'a Recipient,
    /// Keyed hash of the recipient's address.
    pub(super) recipient_hash: &'a [u8; 32],
    /// Of the template's version; nothing: it cannot be had any more.
    pub(super) manifest: Option<&'a Manifest>,
    pub(super) words: &'a Words,
    /// Without angle brackets.
    pub(super) message_id: &'a str,
    pub(super) row_id: Uuid,
    pub(super) attempt: i32,
    pub(super) template_version: i32,
    pub(super) lane: Lane,
}

/// What one try found out.
pub(super) struct Tried {
    pub(super) outcome: Outcome,
    relay: String,
    pub(super) ended_at: DateTime<Utc>,
}

impl Tried {
    pub(super) fn without_relay(outcome: Outcome) -> Self {
        Self { outcome, relay: String::new(), ended_at: Utc::now() }
    }
}

impl Pipeline {
    pub(super) async fn deliver(&self, message: &Message<'_>, index: usize, claim: Claim, place: Place) -> Fate {
        let lane = message.lane();
        let span = message.span.make(|| traced::deliver(&claim));
        let mut crash = None;
        // Built and sent under one eye: a mail whose workers died may do so in either.
        let trying = async {
            // A panic must not leave the row in `sending` under a lease that this daemon goes on renewing.
            let step = span.child("build");
            let built = AssertUnwindSafe(self.build(message, index, &claim)).catch_unwind().await;
            drop(step);
            match built {
                Ok(Ok((to, bytes))) => {
                    let sending = AssertUnwindSafe(self.send(message, to, bytes, place, &span)).catch_unwind().await;
                    sending.unwrap_or_else(|_| {
                        tracing::error!("sending panicked: the outcome is unknown");
                        Tried::without_relay(Outcome::Unknown { error: "a stage panicked while sending".to_owned() })
                    })
                }
                Ok(Err(error)) => Tried::without_relay(Outcome::Rejected { phase: Phase::Mail, reply: None, error }),
                Err(panic) => {
                    crash = Some(super::words_of(panic.as_ref()));
                    let error = "a stage panicked while the message was built".to_owned();
                    Tried::without_relay(Outcome::Deferred { phase: Phase::Mail, reply: None, error, counted: false })
                }
            }
        };
        let tried = self.on_wire(lane, claim.crashes, message.crash_key(), trying).await;
        let verdict = self.decide(message, &claim, &tried);
        span.set("email.outcome", tried.outcome.name());
        if !matches!(tried.outcome, Outcome::Sent { .. }) {
            span.fail(tried.outcome.name());
        }
        let latency = (tried.ended_at - message.published_at).to_std().unwrap_or_default();
        let mut row = outcome_row(&claim, &tried, &verdict, latency);
        row.suppression = suppression(message, index, &tried.outcome).map(Box::new);
        row.has_place = message.is_capped();
        let error = row.error.clone().unwrap_or_default();
        faults::reached(Point::OutcomeDue);
        let mut is_journaled = false;
        let finish = loop {
            if !message.needs_lease() {
                if !Box::pin(self.journal_outcome(message, index, &claim, &row)).await {
                    return Fate::Unwritten;
                }
                break Finish::Recorded;
            }
            let step = span.make(|| traced::database("commit"));
            let finished = self.store.finish(lane, row.clone()).await;
            if finished.is_err() {
                step.fail("store");
            }
            drop(step);
            match finished {
                Ok(finish) => break finish,
                Err(error @ StoreError::Data { .. }) if row.error.is_some() || row.reply.is_some() => {
                    // Something in the relay's words cannot be stored; the outcome itself can.
                    tracing::warn!(%error, "recording the outcome without the relay's words");
                    (row.error, row.reply) = (None, None);
                    if let Some(suppression) = &mut row.suppression {
                        suppression.note = None;
                    }
                }
                // The relay has been spoken to: giving up now would make the outcome unknown. The fast lane writes it down
                // elsewhere; the others wait, as long as shutdown's grace allows.
                Err(error) => {
                    self.store.note_away(&error);
                    if lane == Lane::Fast {
                        if !Box::pin(self.journal_outcome(message, index, &claim, &row)).await {
                            return Fate::Unwritten;
                        }
                        is_journaled = true;
                        break Finish::Recorded;
                    }
                    self.store.wait_until_back().await;
                }
            }
        };
        faults::reached(Point::OutcomeCommitted);
        self.tell(message, &claim, &tried, &verdict, latency);
        if row.suppression.is_some() {
            // The table has it by now, or the journal; an incident must not ask twice without either.
            self.store.note_suppressed(&[*message.hash(index)]);
            tracing::info!(message.id = %claim.id, "the relay says that the address takes no mail: suppressed");
        }
        if finish == Finish::LeaseLost {
            tracing::warn!(message.id = %claim.id, "the lease ran out while sending; whoever took the row over decides");
            return Fate::Busy(Tries { attempts: claim.attempts, deferrals: claim.deferrals });
        }
        if finish == Finish::Resolved {
            tracing::info!(message.id = %claim.id, "feedback came before the outcome: the relay has the mail");
            return Fate::Over(Status::Sent);
        }
        if let Some(words) = crash {
            return Fate::Crashed(words);
        }
        let attempts = claim.attempts + i32::from(row.counted);
        let tries = Tries { attempts, deferrals: claim.deferrals + 1 };
        let dead = |reason| Fate::Dead {
            recipient: message.recipient(index).shown().to_owned(),
            reason,
            error: error.clone(),
            attempts,
        };
        let fate = match verdict {
            Verdict::Sent => Fate::Over(Status::Sent),
            Verdict::Retry { due_in, .. } | Verdict::Unknown { due_in } => Fate::Retry(due_in, tries),
            Verdict::Held => dead(Reason::OutcomeUnknown),
            Verdict::Failed { reason, .. } => dead(reason),
        };
        if is_journaled {
            // Claimed with the database, ended without it: a redelivery must find that out from somebody.
            self.remember(message, index, &fate);
        }
        fate
    }

    async fn send(&self, message: &Message<'_>, to: EmailAddress, bytes: Bytes, place: Place, span: &Span) -> Tried {
        let mail = OutgoingMail::new(self.mail.from.clone(), to, bytes).unless(self.obstacle(message));
        let mut place = place;
        let mut stale = 0;
        let mut refused_by: Vec<String> = Vec::new();
        // Relays that cannot carry such a mail at all.
        let mut incapable: Vec<String> = Vec::new();
        loop {
            faults::reached_by(Point::Send, message.request.id);
            let relay = place.relay_name().to_owned();
            let step = span.make(|| traced::send(&relay, place.server()));
            let sent = place.send(mail.clone()).await;
            traced::sent(&step, &sent);
            drop(step);
            let ended_at = Utc::now();
            let is_incapable = matches!(sent.report, SendReport::NotCapable { .. });
            if is_incapable {
                incapable.push(relay.clone());
            }
            // Not for long: the row says `sending`, and what is put off can be looked at afresh.
            let another = self.another_place(message, &relay, sent.again, &mut stale, &mut refused_by);
            match tokio::time::timeout(ANOTHER_PLACE_WAIT, Box::pin(another)).await {
                Ok(Some(other)) => {
                    tracing::info!(
                        relay,
                        next = other.relay_name(),
                        "the mail cannot have been accepted there: sending it again"
                    );
                    place = other;
                }
                Ok(None) | Err(_) => {
                    let mut outcome = sent.outcome();
                    if is_incapable && self.relays.names().any(|name| !incapable.iter().any(|known| known == name)) {
                        outcome = put_off(outcome);
                    }
                    return Tried { outcome, relay, ended_at };
                }
            }
        }
    }

    /// What may keep a mail from going when its turn comes: the claim, or the mail before it, may have taken until past
    /// either.
    fn obstacle(&self, message: &Message<'_>) -> impl Fn() -> Option<&'static str> + Send + Sync + 'static {
        let expires_at = message.request.expires_at;
        let lease = message.needs_lease().then(|| Arc::clone(&self.store));
        move || {
            if expires_at.is_some_and(|at| at <= Utc::now()) {
                return Some("it is past expires_at");
            }
            let has_lost_it = lease.as_ref().is_some_and(|store| !store.lease_is_good());
            has_lost_it.then_some("this daemon's lease could not be renewed in time")
        }
    }

    /// A place to send a mail once more that cannot have been accepted: on another connection after one that had grown
    /// old, at another relay after one that is in trouble or does not want us now. Each relay refuses a mail once.
    async fn another_place(
        &self,
        message: &Message<'_>,
        relay: &str,
        again: Again,
        stale: &mut u32,
        refused_by: &mut Vec<String>,
    ) -> Option<Place> {
        if matches!(again, Again::WhenItWorks | Again::AtAnotherRelay) {
            refused_by.push(relay.to_owned());
            let elsewhere = tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                place = self.relays.place_elsewhere(message.lane(), refused_by) => place,
            };
            if let Some(elsewhere) = elsewhere {
                if let Some(opening) = elsewhere.opening() {
                    traced::steps_of(message.span, opening);
                }
                return Some(elsewhere);
            }
        }
        match again {
            Again::OnAnyConnection | Again::WhenItWorks if *stale < STALE_CONNECTIONS_MAX => {
                *stale += 1;
                self.place(message, message.span).await
            }
            Again::No | Again::OnAnyConnection | Again::WhenItWorks | Again::AtAnotherRelay => None,
        }
    }

    /// The message's bytes, for this recipient.
    pub(super) async fn build(
        &self,
        message: &Message<'_>,
        index: usize,
        claim: &Claim,
    ) -> Result<(EmailAddress, Bytes), String> {
        let fresh = message.rendering.words.as_ref().ok().map(Arc::as_ref);
        // What an earlier try said is said again, whatever has become of the template since.
        let words: &Words = claim.words.as_ref().or(fresh).ok_or("there is nothing to send")?;
        let _desk = self.quarantine.desk_on_wire().await;
        self.make(&Making {
            request: message.request,
            recipient: message.recipient(index),
            recipient_hash: message.hash(index),
            manifest: message.rendering.manifest(),
            words,
            message_id: claim.message_id.trim_matches(['<', '>']),
            row_id: claim.id,
            attempt: claim.attempts + 1,
            template_version: message.rendering.version().unwrap_or(0),
            lane: message.lane(),
        })
    }

    /// Words and files become signed bytes. A signature takes about a millisecond of a core with an RSA key of 2048 bits, a tenth of it
    /// with Ed25519. It is work and no waiting, so that another thread would not make it less; it stays where the rest is done.
    pub(super) fn make(&self, making: &Making<'_>) -> Result<(EmailAddress, Bytes), String> {
        let to = making.recipient.address.clone().map_err(|bad| bad.error.to_string())?;
        let request = making.request;
        let mut files = Vec::with_capacity(request.attachments.len());
        for file in &request.attachments {
            // Whatever went before: no mail goes without its attachments.
            let AttachmentContent::Inline { bytes, .. } = &file.content else {
                return Err(format!("attachment \"{}\" is not at hand", file.file_name));
            };
            files.push(mime::FilePart {
                file_name: &file.file_name,
                content_type: &file.content_type,
                bytes,
                content_id: file.content_id.as_deref(),
            });
        }
        let size: usize = files.iter().map(|a| a.bytes.len()).sum();
        let link = self.unsubscribe_link(making)?;
        let link = link.as_deref();
        let (html, text) = (self.with_link(&making.words.html, link), self.with_link(&making.words.text, link));
        let extra = self.extra_headers(making, link);
        let extra: Vec<(&str, &str)> = extra.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let parts = mime::MessageParts {
            from: &self.mail.from,
            from_name: self.mail.from_name.as_deref(),
            to: &to,
            to_name: making.recipient.display_name.as_deref(),
            reply_to: request.reply_to.as_ref().or(self.mail.reply_to.as_ref()),
            subject: &making.words.subject,
            html: &html,
            text: &text,
            files: &files,
            message_id: making.message_id,
            date: Utc::now(),
            row_id: making.row_id,
            attempt: making.attempt,
            request_id: request.id,
            template_key: &request.template_key,
            template_version: making.template_version,
            lane: making.lane,
            auto_submitted: true,
            extra: &extra,
            keys: &self.keys,
        };
        let built = if size > BUILD_INLINE_BYTES_MAX {
            tokio::task::block_in_place(|| mime::build(&parts))
        } else {
            mime::build(&parts)
        };
        built.map(|bytes| (to.clone(), bytes.into())).map_err(|error| format!("the message cannot be built: {error}"))
    }

    pub(super) fn decide(&self, message: &Message<'_>, claim: &Claim, tried: &Tried) -> Verdict {
        let lane = message.lane();
        let manifest = message.rendering.manifest();
        let unknown = message.unknown();
        let rules = retry::Rules {
            tries: manifest.map_or(self.rules.tries_default, |m| m.tries),
            ladder: self.topology.ladder(lane),
            age_max: *self.rules.age_max.get(lane),
            unknown_policy: unknown.policy,
            unknown_wait: unknown.wait,
        };
        let age = (tried.ended_at - age_since(message, claim)).to_std().unwrap_or_default();
        let facts = retry::Tried { attempts: claim.attempts, deferrals: claim.deferrals, age };
        retry::decide(&tried.outcome, facts, &rules)
    }

    fn tell(&self, message: &Message<'_>, claim: &Claim, tried: &Tried, verdict: &Verdict, latency: Duration) {
        let lane = message.lane();
        let template = message.rendering.label();
        let outcome = tried.outcome.name();
        self.metrics.outcome(lane, template, outcome);
        let reply_code = reply_of(&tried.outcome).map(|reply| reply.code);
        let latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        match verdict {
            Verdict::Sent => {
                self.metrics.sent(lane, template, latency);
                // A mail that was not to go before its time is late by that time only.
                let waited = (tried.ended_at - age_since(message, claim)).to_std().unwrap_or_default();
                let deadline = message.rendering.manifest().map(|m| m.deadline);
                if deadline.is_some_and(|deadline| waited > deadline) {
                    self.metrics.deadline_missed(lane, template);
                }
                // The timeline tells it to operators, at a price that a line of the log for each mail would double.
                tracing::debug!(outcome, smtp.code = reply_code, latency_ms, relay = tried.relay, "sent");
            }
            Verdict::Retry { due_in, .. } | Verdict::Unknown { due_in } => {
                self.metrics.retried(lane, template, outcome);
                let due_in_s = due_in.as_secs_f64();
                tracing::warn!(outcome, smtp.code = reply_code, due_in_s, relay = tried.relay, "to be tried again");
            }
            Verdict::Held | Verdict::Failed { .. } => {
                tracing::warn!(outcome, smtp.code = reply_code, relay = tried.relay, "failed");
            }
        }
    }
}

/// When the mail's age begins to count: a cap that kept it waiting is not to end it.
fn age_since(message: &Message<'_>, claim: &Claim) -> DateTime<Utc> {
    claim.postponed_until.map_or(message.age_since(), |until| until.max(message.age_since()))
}

/// One relay cannot carry a mail, and another one that may be able to cannot be had now: that is no fault of the mail.
fn put_off(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Rejected { phase, reply, error } => {
            let error = format!("{error}; another relay, which may, is not to be had now");
            Outcome::Deferred { phase, reply, error, counted: false }
        }
        other => other,
    }
}

const fn reply_of(outcome: &Outcome) -> Option<&Reply> {
    match outcome {
        Outcome::Sent { reply } => Some(reply),
        Outcome::Deferred { reply, .. } | Outcome::Rejected { reply, .. } => reply.as_ref(),
        Outcome::Unknown { .. } => None,
    }
}

/// What the suppression list learns from a try.
fn suppression(message: &Message<'_>, index: usize, outcome: &Outcome) -> Option<NewSuppression> {
    if !smtp::refuses_address(outcome) {
        return None;
    }
    let address = message.recipient(index).address.as_ref().ok()?;
    let entry = NewSuppression::new(
        *message.hash(index),
        Some(address.as_str().to_owned()),
        SuppressionReason::HardBounce,
        suppressions::BY_RELAY.to_owned(),
    );
    Some(NewSuppression { note: reply_of(outcome).map(Reply::line), ..entry })
}

fn outcome_row(claim: &Claim, tried: &Tried, verdict: &Verdict, latency: Duration) -> OutcomeRow {
    let (phase, error) = match &tried.outcome {
        Outcome::Sent { .. } => (Some(Phase::FinalDot), None),
        Outcome::Deferred { phase, error, .. } | Outcome::Rejected { phase, error, .. } => (Some(*phase), Some(error)),
        Outcome::Unknown { error } => (Some(Phase::FinalDot), Some(error)),
    };
    let (status, counted) = match verdict {
        Verdict::Sent => (NewStatus::Sent { at: tried.ended_at, latency }, true),
        Verdict::Retry { due_in, counted } => (NewStatus::Queued { due_in: *due_in }, *counted),
        Verdict::Unknown { due_in } => (NewStatus::Unknown { due_in: *due_in }, true),
        Verdict::Held => (NewStatus::Held, true),
        Verdict::Failed { reason, counted } => (NewStatus::Failed { reason: *reason }, *counted),
    };
    OutcomeRow {
        id: claim.id,
        token: claim.token,
        status,
        counted,
        kind: tried.outcome.name(),
        relay: tried.relay.clone(),
        phase,
        reply: reply_of(&tried.outcome).cloned(),
        error: error.map(|words| words.chars().filter(|c| *c != '\0').take(ERROR_CHARS_MAX).collect()),
        has_place: false,
        suppression: None,
    }
}
