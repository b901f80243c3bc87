//! One delivery's request with everything that was made of it, as the stages from `admit` on see it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    CRASHES_MAX, Carried, Fate, Pipeline,
    fetch::Missing,
    pending::{Left, Pending, Tries},
    render::Rendering,
    settlement::Settlement,
};
use crate::{
    broker::Delivery,
    email::{
        AttachmentContent, Cap, EmailRequest, Envelope, Lane, Manifest, OverCap, RateLimit, Reason, Recipient,
        TemplateKind, UnknownPolicy, identity::row_id,
    },
    store::{
        AtWork, AttachmentRow, ClaimRequest, Initial, RecipientClaim, RequestFacts, UnknownRule, Words,
        journal::{Ended, Entry, Step},
    },
    telemetry::span::Span,
};

/// One delivery's request with everything that was made of it.
pub(super) struct Message<'a> {
    pub(super) envelope: &'a Envelope,
    /// Cancelled when the delivery is somebody else's.
    pub(super) gone: &'a CancellationToken,
    /// The delivery's.
    pub(super) span: &'a Span,
    pub(super) request: &'a EmailRequest,
    pub(super) rendering: &'a Rendering,
    pub(super) published_at: DateTime<Utc>,
    recipients: Vec<Recipient>,
    crash_key: [u8; 32],
    /// Keeps the rows' claims ours for as long as this lives.
    claims: AtWork,
    /// It goes without the database.
    is_journaled: bool,
    /// Entries of the journal that are owed once the settlement is confirmed.
    afterwards: Mutex<Vec<Entry>>,
    /// Workers that died on it were counted.
    is_counted: AtomicBool,
    /// The files' bytes are in the journal.
    has_told_files: AtomicBool,
    /// All its files are kept, so that rows can refer to them.
    files_are_kept: bool,
    /// An attachment is not at hand.
    missing: Option<Missing>,
    /// One a recipient, made before the first claim: an answer that was lost on the wire is recognised by them.
    identities: Vec<Identity>,
    /// Where its recipients stand, as a copy in the fast lane says.
    pending: Option<Pending>,
    unknown: UnknownRule,
    /// How many such mails each recipient may get, and where days begin.
    limit: RateLimit,
    timezone: Tz,
}

#[derive(Clone, Copy)]
struct Identity {
    id: Uuid,
    token: Uuid,
    hash: [u8; 32],
}

impl<'a> Message<'a> {
    pub(super) fn new(
        pipeline: &Pipeline,
        delivery: &'a Delivery,
        request: &'a EmailRequest,
        published_at: DateTime<Utc>,
        rendering: &'a Rendering,
        earlier: Vec<Recipient>,
    ) -> Self {
        let envelope = &delivery.envelope;
        let mut recipients = request.recipients.clone();
        let always_to = rendering.manifest().map(|m| m.always_to.as_slice()).unwrap_or_default();
        let always_to = always_to.iter().map(|address| Recipient { address: Ok(address.clone()), display_name: None });
        for one in always_to.chain(earlier) {
            if !recipients.iter().any(|known| known.key() == one.key()) {
                recipients.push(one);
            }
        }
        let identities: Vec<Identity> = recipients
            .iter()
            .map(|r| {
                let hash = pipeline.store.address_hash(&r.key());
                Identity { id: row_id(published_at, request.id, &hash), token: Uuid::new_v4(), hash }
            })
            .collect();
        // Only this lane goes without rows, and only rows know whom a replay reopened.
        let said = envelope.pending.as_deref().filter(|_| envelope.lane == Lane::Fast && envelope.generation == 0);
        let pending = said.and_then(|pending| Pending::read(pending, envelope.over.as_deref()));
        let unknown = pipeline.unknown_rule(envelope.lane, rendering.manifest());
        let limit = rendering.manifest().map_or(RateLimit::Unlimited, |manifest| pipeline.limit_of(manifest));
        let claims = pipeline.store.at_work(identities.iter().map(|identity| identity.token).collect());
        Self {
            envelope,
            gone: &delivery.gone,
            span: &delivery.span,
            request,
            rendering,
            published_at,
            recipients,
            crash_key: delivery.crash_key(),
            claims,
            is_journaled: false,
            afterwards: Mutex::default(),
            is_counted: AtomicBool::new(false),
            has_told_files: AtomicBool::new(false),
            files_are_kept: false,
            missing: None,
            identities,
            pending,
            unknown,
            limit,
            timezone: pipeline.mail.timezone,
        }
    }

    /// Nothing was sent under any of its claims that was not answered: should one be committed, it is void.
    pub(super) fn give_up(&self, asked: &ClaimRequest) {
        for recipient in &asked.recipients {
            if let Initial::Claim(token) = recipient.initial {
                self.claims.give_up(token);
            }
        }
    }

    /// How many recipients there are.
    pub(super) fn len(&self) -> usize {
        self.recipients.len()
    }

    /// The keyed hash of a recipient's address.
    pub(super) fn hash(&self, index: usize) -> &[u8; 32] {
        &self.identities[index].hash
    }

    /// Where a recipient stands, as the delivery itself says.
    pub(super) fn left(&self, index: usize) -> Left {
        let by_rows = Left::Pending(Tries::default());
        let Some(pending) = &self.pending else { return by_rows };
        match pending.left(self.hash(index)) {
            Some(left) => left,
            // A copy of an earlier version, and no rows to ask.
            None if self.is_journaled && !pending.names_all() => Left::Over,
            // Its writer did not know this one: the template names others by now, or the key of the hashes is another one.
            None => by_rows,
        }
    }

    /// Whether a recipient is still to get it, as far as the delivery itself can tell.
    pub(super) fn is_pending(&self, index: usize) -> bool {
        matches!(self.left(index), Left::Pending(_))
    }

    /// What a recipient's row is called, and the token of its claim.
    pub(super) fn identity(&self, index: usize) -> (Uuid, Uuid) {
        (self.identities[index].id, self.identities[index].token)
    }

    pub(super) const fn crash_key(&self) -> &[u8; 32] {
        &self.crash_key
    }

    /// An entry of the journal that must not be published before the settlement is.
    pub(super) fn journal_afterwards(&self, entry: Entry) {
        self.afterwards.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// What is owed to the journal for a recipient, in the parts that memory keeps.
    pub(super) fn entry_of(&self, hash: &[u8; 32]) -> Option<(Tries, Uuid, Ended)> {
        let hash = hex::encode(hash);
        let owed = self.afterwards.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = owed.iter().find(|entry| entry.recipient_hash == hash)?;
        let Step::Ended(ended) = &entry.step else { return None };
        let tries = Tries { attempts: ended.attempts, deferrals: entry.round };
        Some((tries, entry.token, (**ended).clone()))
    }

    /// Whether the files' bytes must still go into the journal; says so once.
    pub(super) fn owes_files(&self) -> bool {
        !self.has_told_files.swap(true, Ordering::SeqCst)
    }

    /// Notes that workers died on it, to be forgotten when it leaves its queue.
    pub(super) fn note_crashes(&self, crashes: i32) {
        self.is_counted.fetch_or(crashes > 0, Ordering::SeqCst);
    }

    /// Whether somebody else may have sent it, of whom nobody could be asked.
    pub(super) const fn is_doubtful(&self) -> bool {
        self.envelope.redelivered || self.envelope.is_doubtful
    }

    /// A claim that may exist is void: nothing was sent under it.
    pub(super) fn give_up_claim(&self, index: usize) {
        self.claims.give_up(self.identities[index].token);
    }

    /// What the recipients' fates come to.
    pub(super) fn carried(&self, fates: &[Fate]) -> Carried {
        let hashes: Vec<&[u8; 32]> = self.identities.iter().map(|identity| &identity.hash).collect();
        let settlement = Settlement::of(fates, &hashes, self.copy_no(), self.rendering.version(), self.request);
        let afterwards = std::mem::take(&mut *self.afterwards.lock().unwrap_or_else(PoisonError::into_inner));
        Carried { settlement, afterwards, is_counted: self.is_counted.load(Ordering::SeqCst) }
    }

    pub(super) fn recipient(&self, index: usize) -> &Recipient {
        &self.recipients[index]
    }

    pub(super) const fn copy_no(&self) -> i32 {
        self.envelope.copy_no
    }

    pub(super) const fn lane(&self) -> Lane {
        self.envelope.lane
    }

    /// Whether it needs a place under its recipients' caps.
    pub(super) fn is_capped(&self) -> bool {
        self.limit != RateLimit::Unlimited
    }

    /// As it holds at this time: a message may have waited for its place on a connection for days.
    fn cap(&self, now: DateTime<Utc>) -> Option<Cap> {
        let manifest = self.rendering.manifest()?;
        self.limit.cap(manifest.kind, manifest.over_cap.unwrap_or(OverCap::Drop), self.timezone, now)
    }

    pub(super) const fn unknown(&self) -> UnknownRule {
        self.unknown
    }

    /// Whether it may go only under a lease on the database's clock, or under an entry in the journal.
    pub(super) const fn needs_lease(&self) -> bool {
        !self.is_journaled
    }

    /// The same message under the journal.
    pub(super) const fn journaled(mut self) -> Self {
        self.is_journaled = true;
        self
    }

    /// The same message with its files, or without all of them. `are_kept`: those at hand are.
    pub(super) fn with_files(mut self, are_kept: bool, missing: Option<Missing>) -> Self {
        self.files_are_kept = are_kept && missing.is_none() && !self.request.has_references();
        self.missing = missing;
        self
    }

    /// What is not at hand.
    pub(super) const fn missing(&self) -> Option<&Missing> {
        self.missing.as_ref()
    }

    /// Roughly, the bytes of one mail's files and words: each recipient's are built apart.
    pub(super) fn bytes(&self, body: usize) -> usize {
        body.max(usize::try_from(self.request.attachment_bytes()).unwrap_or(usize::MAX))
    }

    /// Whether it may not be sent any more.
    pub(super) fn is_expired(&self) -> bool {
        self.request.expires_at.is_some_and(|at| at <= Utc::now())
    }

    /// When the mail's age begins to count: at the latest of publish, `not_before` and replay.
    pub(super) fn age_since(&self) -> DateTime<Utc> {
        let later = [self.request.not_before, self.envelope.replayed_at];
        later.into_iter().flatten().fold(self.published_at, DateTime::max)
    }

    /// Whether this recipient could be sent to right now, as far as the request alone tells.
    fn is_sendable(&self, index: usize, now: DateTime<Utc>) -> bool {
        self.rendering.words.is_ok()
            && self.is_pending(index)
            // They are fetched when it is due; what became due since is looked at again.
            && !self.request.has_references()
            && self.recipients[index].address.is_ok()
            && self.request.not_before.is_none_or(|at| at <= now)
            && self.request.expires_at.is_none_or(|at| at > now)
    }

    pub(super) fn first_sendable(&self, now: DateTime<Utc>) -> Option<usize> {
        (0..self.recipients.len()).find(|&index| self.is_sendable(index, now))
    }

    fn initial(&self, index: usize, claimed: Option<usize>, now: DateTime<Utc>) -> Initial {
        if !self.is_pending(index) {
            return Initial::EndedElsewhere;
        }
        if let Err(bad) = &self.recipients[index].address {
            return Initial::Fail(Reason::BadAddress, bad.error.to_string());
        }
        // One that is claimed all the same has the words of an earlier try.
        if let Err((reason, error)) = &self.rendering.words
            && claimed != Some(index)
        {
            return Initial::Fail(*reason, error.clone());
        }
        if self.request.expires_at.is_some_and(|at| at <= now) {
            return Initial::Expired;
        }
        match self.request.not_before {
            Some(at) if at > now => Initial::NotBefore(at),
            _ if claimed == Some(index) => Initial::Claim(self.identities[index].token),
            _ => Initial::Wait,
        }
    }

    pub(super) fn claim_request(
        &self,
        indexes: impl Iterator<Item = usize>,
        claimed: Option<usize>,
        domain: &str,
        now: DateTime<Utc>,
        may_be_known: bool,
        counts_crashes: bool,
    ) -> Arc<ClaimRequest> {
        let words: Option<Arc<Words>> = self.rendering.words.as_ref().ok().cloned();
        let recipients = indexes
            .map(|index| {
                let Identity { id, hash, .. } = self.identities[index];
                let recipient = &self.recipients[index];
                RecipientClaim {
                    id,
                    recipient_hash: hash,
                    email: recipient.shown().to_owned(),
                    name: recipient.display_name.clone(),
                    message_id: format!("<{id}@{domain}>"),
                    // What was sent elsewhere may have had others; the journal has those.
                    words: words.clone().filter(|_| self.is_pending(index)),
                    initial: self.initial(index, claimed, now),
                }
            })
            .collect();
        let request = self.request;
        Arc::new(ClaimRequest {
            facts: RequestFacts {
                id: request.id,
                payload_hash: request.payload_hash,
                source: request.source.clone(),
                template_key: request.template_key.clone(),
                template_version: self.rendering.version().or(request.template_version),
                priority: request.priority.number(),
                lane: self.lane(),
                locale: request.locale.clone(),
                reply_to: request.reply_to.as_ref().map(|a| a.as_str().to_owned()),
                variables: serde_json::Value::Object(request.variables.clone()),
                metadata: serde_json::to_value(&request.metadata).unwrap_or_default(),
                published_at: self.published_at,
                not_before: request.not_before,
                expires_at: request.expires_at,
                generation: self.envelope.generation,
                copy_no: self.envelope.copy_no,
            },
            marketing: self
                .rendering
                .manifest()
                .filter(|manifest| manifest.kind == TemplateKind::Marketing)
                .map(|manifest| manifest.category.clone()),
            cap: self.cap(now),
            recipients,
            attachments: if self.files_are_kept { attachment_rows(request) } else { Vec::new() },
            unknown: self.unknown,
            crash_key: self.crash_key,
            crashes_max: CRASHES_MAX,
            counts_crashes,
            may_be_known,
        })
    }
}

impl Pipeline {
    /// How many mails like this one a person may get.
    const fn limit_of(&self, manifest: &Manifest) -> RateLimit {
        match manifest.kind {
            TemplateKind::Marketing => self.rules.rate_limit_marketing,
            TemplateKind::Transactional => self.rules.rate_limit_transactional,
        }
    }

    fn unknown_rule(&self, lane: Lane, manifest: Option<&Manifest>) -> UnknownRule {
        let wait = match lane {
            // An alert that arrives twice is better than one that arrives a minute late.
            Lane::Fast => Duration::ZERO,
            Lane::Standard | Lane::Bulk if self.has_feedback => self.rules.unknown_wait,
            // Nobody could tell us anything.
            Lane::Standard | Lane::Bulk => Duration::ZERO,
        };
        UnknownRule { policy: manifest.map_or(UnknownPolicy::Hold, |m| m.unknown_policy), wait }
    }
}

pub(super) fn attachment_rows(request: &EmailRequest) -> Vec<AttachmentRow> {
    request
        .attachments
        .iter()
        .map(|a| {
            let (size_bytes, sha256) = match &a.content {
                AttachmentContent::Inline { bytes, sha256 } => (bytes.len() as u64, *sha256),
                AttachmentContent::Reference { size_bytes, sha256, .. } => (*size_bytes, *sha256),
            };
            AttachmentRow {
                file_name: a.file_name.clone(),
                content_type: a.content_type.clone(),
                content_id: a.content_id.clone(),
                size_bytes: i32::try_from(size_bytes).unwrap_or(i32::MAX),
                sha256,
            }
        })
        .collect()
}
