//! Requests become rows, and rows are claimed, before the first SMTP byte.
//!
//! The common case, a request never seen before, is one batched statement. Everything else (a redelivery, a retry copy, the
//! second recipient of a request) is a transaction of its own that locks the request and decides by [`standing::decide`].
//!
//! Invariant: request row and all its message rows are inserted by one statement; there is never one without the others.

/// The first claim.
pub(super) mod insert;

/// Every other.
mod readmit;

/// Places under the caps for them.
mod over_cap;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::Connection;
use uuid::Uuid;

use self::readmit::readmit;
use super::{Store, StoreError, gather::Load, limit_of, standing::UnknownRule, whole::Whole, within};
use crate::{
    email::{Cap, Lane, PayloadHash, Reason, Status},
    faults,
};

/// One delivery's request with all its recipients, ready to be written.
#[derive(Debug)]
pub struct ClaimRequest {
    /// What the request row holds.
    pub facts: RequestFacts,
    /// The template's category, if it is marketing: the whole suppression list applies. Else only bounces and complaints.
    pub marketing: Option<String>,
    /// How many such mails a person may get.
    pub cap: Option<Cap>,
    /// In the request's order, then those that the template always writes to.
    pub recipients: Vec<RecipientClaim>,
    /// Their bytes are stored already.
    pub attachments: Vec<AttachmentRow>,
    /// For a row whose worker is gone.
    pub unknown: UnknownRule,
    /// What its message's crashes are counted under.
    pub crash_key: [u8; 32],
    /// Crashes of its own after which it is not tried any more.
    pub crashes_max: i32,
    /// Whether a worker found dead here has not been counted for this delivery yet.
    pub counts_crashes: bool,
    /// Its rows are probably there: a redelivery, a copy, a replay, or another recipient of a request just written. They are
    /// looked for first.
    pub may_be_known: bool,
}

/// What the request row holds.
#[derive(Debug)]
pub struct RequestFacts {
    /// The request's id.
    pub id: Uuid,
    /// Of its canonical form.
    pub payload_hash: PayloadHash,
    /// Who asked.
    pub source: String,
    /// Which template.
    pub template_key: String,
    /// The version that was rendered, or pinned; nothing when the template is unknown.
    pub template_version: Option<i32>,
    /// 0 to 3.
    pub priority: i16,
    /// Where it travels.
    pub lane: Lane,
    /// BCP 47.
    pub locale: Option<String>,
    /// Overrides the configured one.
    pub reply_to: Option<String>,
    /// For retransmission, and for linting templates against real messages.
    pub variables: Value,
    /// Echoed on events.
    pub metadata: Value,
    /// By the producer's clock, else when first seen.
    pub published_at: DateTime<Utc>,
    /// Not before.
    pub not_before: Option<DateTime<Utc>>,
    /// Never after.
    pub expires_at: Option<DateTime<Utc>>,
    /// Of this copy.
    pub generation: i32,
    /// Of this copy.
    pub copy_no: i32,
}

/// One recipient, ready to be written.
#[derive(Debug)]
pub struct RecipientClaim {
    /// For the row, if it is new.
    pub id: Uuid,
    /// Keyed hash of the address.
    pub recipient_hash: [u8; 32],
    /// As given or normalised.
    pub email: String,
    /// Display name.
    pub name: Option<String>,
    /// Our Message-ID, if the row is new.
    pub message_id: String,
    /// What was rendered; nothing when rendering failed.
    pub words: Option<Arc<Words>>,
    /// Where it starts, if it is new, and what is asked for, if it is known.
    pub initial: Initial,
}

/// Subject and bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// One line.
    pub subject: String,
    /// HTML part.
    pub html: String,
    /// Text part.
    pub text: String,
}

/// What a delivery wants for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Initial {
    /// There is a place on a connection: claim it, under this token.
    Claim(Uuid),
    /// No place yet: wait in the row, due now.
    Wait,
    /// Not due yet.
    NotBefore(DateTime<Utc>),
    /// It can never be sent.
    Fail(Reason, String),
    /// Past `expires_at`.
    Expired,
    /// Nothing: the delivery says that this one has its outcome. A new row waits for the journal, which has that.
    EndedElsewhere,
}

/// One attachment of the request.
#[derive(Debug, Clone)]
pub struct AttachmentRow {
    /// Cleaned.
    pub file_name: String,
    /// As declared.
    pub content_type: String,
    /// For inline images.
    pub content_id: Option<String>,
    /// Bytes.
    pub size_bytes: i32,
    /// Key of its bytes.
    pub sha256: [u8; 32],
}

/// What the store says to a delivery.
#[derive(Debug)]
pub enum Admission {
    /// The rows, in the order of the recipients asked about.
    Known(Vec<Standing>),
    /// An older copy of the request: a newer one is on its way, or a replay has overtaken it.
    OldCopy,
    /// The id was used with another payload.
    Conflict {
        /// The payload that was first.
        stored: PayloadHash,
    },
}

/// Where one recipient stands.
#[derive(Debug)]
pub enum Standing {
    /// Ours to send now.
    Claimed(Claim),
    /// Could be claimed, with a place on a connection.
    Ready,
    /// Not before this long; with its attempts and deferrals so far.
    NotDue(Duration, i32, i32),
    /// Just now put off by its recipient's cap.
    Postponed {
        /// Not before this long.
        due_in: Duration,
        /// Until the next window, and not only until those before it are over.
        is_deferred: bool,
        /// So far.
        attempts: i32,
        /// So far.
        deferrals: i32,
    },
    /// Another worker is at it; with its attempts and deferrals so far.
    Busy(i32, i32),
    /// Policy said no just now.
    Stopped(Status),
    /// It was over already, and nothing is owed.
    Settled(Status),
    /// Failed, and the dead letter is owed.
    Failed {
        /// Why.
        reason: Reason,
        /// For people.
        error: String,
        /// SMTP attempts.
        attempts: i32,
    },
}

/// The right to send one mail once.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The row.
    pub id: Uuid,
    /// What the outcome must carry.
    pub token: Uuid,
    /// Our Message-ID, the same for every try.
    pub message_id: String,
    /// SMTP attempts so far that counted.
    pub attempts: i32,
    /// How often it was put off so far.
    pub deferrals: i32,
    /// Workers that died on this message so far.
    pub crashes: i32,
    /// Until when its recipient's cap kept it waiting, if it did.
    pub postponed_until: Option<DateTime<Utc>>,
    /// What an earlier try said; the same is said again. Nothing: what was rendered now.
    pub words: Option<Words>,
}

/// A request never seen before, on its way into a batch.
pub(super) type NewRequest = Arc<ClaimRequest>;

impl Load for NewRequest {
    fn rows(&self) -> usize {
        self.recipients.len()
    }

    fn bytes(&self) -> usize {
        let words = |r: &RecipientClaim| r.words.as_ref().map_or(0, |w| w.subject.len() + w.html.len() + w.text.len());
        self.recipients.iter().map(words).sum()
    }
}

/// Status of each recipient's new row; nothing: the request was known already.
pub(super) type Inserted = Option<Vec<Status>>;

impl Store {
    /// Writes the request and its rows if they are new, and claims what may be claimed.
    ///
    /// # Errors
    /// [`StoreError::Away`]: nothing is known; ask again later, with the same tokens. [`StoreError::Data`]: the database
    /// will never take this request.
    pub async fn claim(&self, request: &Arc<ClaimRequest>) -> Result<Admission, StoreError> {
        if !request.may_be_known
            && let Some(admission) = self.insert(request).await?
        {
            return Ok(admission);
        }
        loop {
            match within(limit_of(request.facts.lane), Box::pin(self.readmit_once(request))).await {
                Ok(Some(admission)) => return Ok(admission),
                Ok(None) => {
                    // Known when we inserted and gone now, or a copy of a request that retention has deleted.
                    if let Some(admission) = self.insert(request).await? {
                        return Ok(admission);
                    }
                }
                Err(StoreError::Repeat(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn readmit_once(&self, request: &ClaimRequest) -> Result<Option<Admission>, StoreError> {
        let mut whole = Whole::of(self.pool_of(request.facts.lane)).await?;
        let mut tx = whole.connection().begin().await?;
        let admission = readmit(&mut tx, request, self.worker_id, &self.held).await?;
        if admission.is_some() && !faults::leaves_out_claim_commit() {
            tx.commit().await?;
            self.outbox_written.notify_one();
        } else {
            tx.rollback().await?;
        }
        whole.end();
        Ok(admission)
    }

    async fn insert(&self, request: &Arc<ClaimRequest>) -> Result<Option<Admission>, StoreError> {
        let gatherers = self.gatherers_of(request.facts.lane);
        let inserted = gatherers.claims.call(Arc::clone(request)).await?;
        Ok(inserted.map(|statuses| {
            let fresh = request.recipients.iter().zip(statuses).map(|(r, status)| fresh_standing(r, status));
            Admission::Known(fresh.collect())
        }))
    }
}

fn fresh_standing(recipient: &RecipientClaim, status: Status) -> Standing {
    if status == Status::Suppressed {
        return Standing::Stopped(status);
    }
    match &recipient.initial {
        // Others may have had all that its cap allows: that is decided under a lock.
        Initial::Claim(_) if status == Status::Queued => Standing::Ready,
        Initial::Claim(token) => Standing::Claimed(Claim {
            id: recipient.id,
            token: *token,
            message_id: recipient.message_id.clone(),
            attempts: 0,
            deferrals: 0,
            crashes: 0,
            postponed_until: None,
            words: None,
        }),
        Initial::Wait => Standing::Ready,
        Initial::NotBefore(at) => Standing::NotDue((*at - Utc::now()).to_std().unwrap_or_default(), 0, 0),
        Initial::Fail(reason, error) => Standing::Failed { reason: *reason, error: error.clone(), attempts: 0 },
        Initial::Expired => Standing::Stopped(Status::Expired),
        Initial::EndedElsewhere => Standing::Busy(0, 0),
    }
}

pub(super) fn status_of(name: &str) -> Result<Status, StoreError> {
    Status::from_name(name).ok_or_else(|| StoreError::Away(format!("unknown status {name:?}: is the schema newer?")))
}
