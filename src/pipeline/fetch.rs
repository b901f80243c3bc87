//! Between stages 3 and 4: the files that a request only refers to are brought to hand, and all of its files are kept, before
//! there is a place on a connection or a claim.
//!
//! What is not at hand puts the mail off by its lane's ladder, as a row that was never claimed. No SMTP try is counted. A place
//! that is away or slow is a fault of the platform, which only the mail's age ends; a file that is missing or another one than
//! announced is waited for once up the ladder; one that is here and not what the request says of it is given up at once.
//! Invariant: bytes that the attachment store has under the announced SHA-256 are not fetched again.

use std::time::Instant;

use bytes::Bytes;
use chrono::Utc;
use tokio::sync::SemaphorePermit;
use uuid::Uuid;

use super::{
    Carried, Fate, Halt, Pipeline, message::Message, pending::Tries, render::Rendering, settlement::Settlement,
};
use crate::{
    broker::Delivery,
    email::{AttachmentContent, EmailRequest, Lane, Reason, attachment},
    objects::{FetchFault, Source, Wanted},
    retry::{self, Lack},
    store::{Admission, Standing, StoreError, put_off::PutOff},
};

/// Kept of an error's words.
const ERROR_CHARS_MAX: usize = 1000;

/// Whether the attachment store can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Archive {
    Asked,
    Away,
}

/// What came of fetching. Without anything missing, all files of the request are at hand, or it is not due yet.
#[derive(Default)]
pub(super) struct Fetched<'p> {
    pub(super) missing: Option<Missing>,
    /// Of the bytes at work.
    pub(super) share: Option<SemaphorePermit<'p>>,
}

/// A file that is not at hand.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    lack: Lack,
    /// For people: which, and why.
    pub(super) error: String,
}

impl Missing {
    fn new(lack: Lack, file_name: &str, why: &dyn std::fmt::Display) -> Self {
        let error = format!("attachment \"{file_name}\": {why}");
        Self { lack, error: error.chars().filter(|c| *c != '\0').take(ERROR_CHARS_MAX).collect() }
    }
}

/// Whether there is something to send, as far as can be told before its rows are asked.
pub(super) fn may_have_words(rendering: &Rendering, delivery: &Delivery) -> bool {
    rendering.words.is_ok() || delivery.envelope.may_be_known()
}

impl Pipeline {
    /// Puts the bytes of every file into the request, if it is due.
    pub(super) async fn fetch(
        &self,
        delivery: &Delivery,
        request: &mut EmailRequest,
        rendering: &Rendering,
        archive: Archive,
    ) -> Result<Fetched<'_>, Halt> {
        let (lane, now) = (delivery.envelope.lane, Utc::now());
        let is_due = request.not_before.is_none_or(|at| at <= now) && request.expires_at.is_none_or(|at| at > now);
        // Words of an earlier try go out whatever has become of the template since.
        if !is_due || !may_have_words(rendering, delivery) {
            return Ok(Fetched::default());
        }
        let share = tokio::select! {
            biased;
            share = self.budget.share_of_fetched(lane, request.attachment_bytes()) => share,
            () = self.stop.cancelled() => return Err(Halt::Stopped),
            () = delivery.gone.cancelled() => return Err(Halt::Stopped),
        };
        let id = request.id;
        for file in &mut request.attachments {
            let AttachmentContent::Reference { uri, size_bytes, sha256 } = &file.content else { continue };
            let (sha256, wanted) = (*sha256, Wanted { size_bytes: *size_bytes, sha256 });
            let brought = match self.store.objects().source_of(uri) {
                Ok(source) => Box::pin(self.bring(delivery, id, &source, wanted, archive)).await?,
                Err(refused) => Err((Lack::Final, refused.to_string())),
            };
            let checked = brought.and_then(|bytes| {
                let (types, bytes_max) = (&self.rules.attachment_types, self.rules.attachment_bytes_max);
                match attachment::check_attachment(&file.file_name, &file.content_type, &bytes, types, bytes_max) {
                    Ok(_) => Ok(bytes),
                    Err(bad) => Err((Lack::Final, bad.to_string())),
                }
            });
            match checked {
                Ok(bytes) => file.content = AttachmentContent::Inline { bytes, sha256 },
                Err((lack, why)) => {
                    let missing = Missing::new(lack, &file.file_name, &why);
                    return Ok(Fetched { missing: Some(missing), share });
                }
            }
        }
        Ok(Fetched { missing: None, share })
    }

    /// One file's bytes, from the attachment store or from where they lie.
    async fn bring(
        &self,
        delivery: &Delivery,
        request: Uuid,
        source: &Source,
        wanted: Wanted<'_>,
        archive: Archive,
    ) -> Result<Result<Bytes, (Lack, String)>, Halt> {
        let lane = delivery.envelope.lane;
        if archive == Archive::Asked {
            if *source == Source::Archive
                && !self.patiently(|| self.store.has_attachment(lane, request, wanted.sha256)).await?
            {
                return Ok(Err((Lack::Final, "the archive has no such file of this mail".to_owned())));
            }
            match self.shelved(|| self.store.attachment(lane, wanted.sha256)).await? {
                Ok(Some(bytes)) if bytes.len() as u64 == wanted.size_bytes => {
                    self.metrics.attachment_fetched(source.scheme(), "kept", None);
                    return Ok(Ok(bytes));
                }
                Ok(Some(bytes)) => {
                    let (found, announced) = (bytes.len(), wanted.size_bytes);
                    let why = format!("the file of its SHA-256 has {found} bytes, and not the announced {announced}");
                    return Ok(Err((Lack::Final, why)));
                }
                // Where it came from it may still be.
                Err(why) if *source == Source::Archive => return Ok(Err((Lack::Passing, why))),
                Ok(None) | Err(_) => {}
            }
        }
        let began = Instant::now();
        let fetched = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Halt::Stopped),
            () = delivery.gone.cancelled() => return Err(Halt::Stopped),
            fetched = self.store.objects().fetch(lane, source, wanted) => fetched,
        };
        let (result, bytes) = match &fetched {
            Ok(bytes) => ("fetched", bytes.len()),
            Err(fault) => (fault.name(), 0),
        };
        self.metrics.attachment_fetched(source.scheme(), result, Some((began.elapsed(), bytes)));
        Ok(fetched.map_err(|fault| match fault {
            FetchFault::Unavailable(why) => (Lack::Passing, why),
            FetchFault::Wrong(why) => (Lack::Wrong, why),
        }))
    }

    /// Stores the attachments' bytes, so that no mail is on its way whose attachment the audit does not have. What cannot be
    /// kept is missing as well.
    pub(super) async fn keep_attachments(&self, lane: Lane, request: &EmailRequest) -> Result<Option<Missing>, Halt> {
        for file in &request.attachments {
            if let AttachmentContent::Inline { bytes, sha256 } = &file.content
                && let Err(why) = Box::pin(self.shelved(|| self.store.keep_attachment(lane, sha256, bytes))).await?
            {
                return Ok(Some(Missing::new(Lack::Passing, &file.file_name, &why)));
            }
        }
        Ok(None)
    }

    /// A call to the store that may find the place of the bytes away, and the database well: the inner error.
    async fn shelved<T, F, Fut>(&self, call: F) -> Result<Result<T, String>, Halt>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        self.patiently(|| {
            let calling = call();
            async move {
                match calling.await {
                    Err(StoreError::Shelf(error)) => {
                        tracing::warn!(%error, "attachments wait");
                        Ok(Err(error.to_string()))
                    }
                    Ok(value) => Ok(Ok(value)),
                    Err(error) => Err(error),
                }
            }
        })
        .await
    }

    /// Puts off whoever could be sent to if all attachments were at hand, without a place on a connection and without a claim.
    pub(super) async fn put_off(&self, message: &Message<'_>) -> Result<Carried, Halt> {
        let Some(missing) = message.missing() else { return Err(Halt::Stopped) };
        let (everybody, may_be_known) = (0..message.len(), message.envelope.may_be_known());
        let domain = &self.mail.message_id_domain;
        let asked = message.claim_request(everybody, None, domain, Utc::now(), may_be_known, true);
        let standings = match self.claim(message, &asked, &message.span.child("put off")).await? {
            Admission::Known(standings) => standings,
            Admission::OldCopy => return Ok(Settlement::Ack("duplicate").into()),
            Admission::Conflict { stored } => return Ok(Settlement::conflict(message.request, stored).into()),
        };
        let is_ready = |index: &usize| matches!(standings[*index], Standing::Ready);
        let ready: Vec<Vec<u8>> =
            (0..message.len()).filter(is_ready).map(|index| message.hash(index).to_vec()).collect();
        let (lane, request, error) = (message.lane(), message.request.id, missing.error.as_str());
        let decide = |deferrals| self.when_again(message, missing, deferrals);
        let waiting = match ready.is_empty() {
            true => Vec::new(),
            false => self.patiently(|| self.store.put_off(lane, request, &ready, error, decide)).await?,
        };
        if !waiting.is_empty() {
            tracing::warn!(mails = waiting.len(), lack = ?missing.lack, "an attachment is not at hand");
        }
        let fates: Vec<Fate> = standings
            .into_iter()
            .enumerate()
            .map(|(index, standing)| match standing {
                Standing::Ready => {
                    let Some(put_off) = waiting.iter().find(|w| w.recipient_hash == message.hash(index)) else {
                        // Somebody else's, or of unknown outcome: it is looked at again.
                        return Fate::Wait(retry::first_rung(self.topology.ladder(lane)), Tries::default());
                    };
                    let tries = Tries { attempts: put_off.attempts, deferrals: put_off.deferrals + 1 };
                    match &put_off.verdict {
                        PutOff::Again(due_in) => Fate::Retry(*due_in, tries),
                        PutOff::Failed(reason) => Fate::Dead {
                            recipient: message.recipient(index).shown().to_owned(),
                            reason: *reason,
                            error: error.to_owned(),
                            attempts: put_off.attempts,
                        },
                    }
                }
                other => self.fate_of(message, index, other),
            })
            .collect();
        Ok(message.carried(&fates))
    }

    /// When a mail that lacks an attachment is looked at again.
    pub(super) fn when_again(&self, message: &Message<'_>, missing: &Missing, deferrals: i32) -> PutOff {
        let lane = message.lane();
        let age = (Utc::now() - message.age_since()).to_std().unwrap_or_default();
        let (ladder, age_max) = (self.topology.ladder(lane), *self.rules.age_max.get(lane));
        retry::decide_lack(missing.lack, deferrals, age, ladder, age_max)
            .map_or(PutOff::Failed(Reason::BadAttachment), PutOff::Again)
    }
}
