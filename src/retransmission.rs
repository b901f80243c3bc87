//! Retransmission: a recorded mail goes out again as it was, with its archived bytes, as a new request linked to the old.
//!
//! Like a replay, it is a request whose rows wait for exactly one message: they are committed first, with the recorded subject,
//! bodies and files, under generation 1; then the message is published that a daemon claims them by. So what is sent is what
//! the audit holds, whoever publishes whatever: a producer who takes the id of such a request has another payload, and that is
//! a conflict. What is committed is owed, and any daemon publishes it whose first publisher was cut off.
//!
//! Invariant: nothing is rendered anew, and nothing is sent that the rows do not hold.
//! Invariant: the same key for the same mail, or no key within [`crate::store::retransmission::PRESSED_TWICE`], is one request.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use lapin::types::{AMQPValue, FieldTable};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    broker::{
        Outgoing, Publisher,
        delivery::{GENERATION, PUBLISHED_AT, ROUTING_KEY},
        topology,
    },
    config::PipelineConfig,
    email::{Envelope, PayloadHash, Priority, Status, identity::row_id},
    faults::{self, Point},
    objects::reference::ARCHIVE,
    pipeline::decode::decode,
    publish::{self, wire_priority},
    replay::Templates,
    store::{
        MarketingTemplates, Store, StoreError,
        retransmission::{NewRetransmission, Recorded, Recording, Retransmission, Wish},
    },
    wire,
};

/// Longest key, in characters.
pub const KEY_CHARS_MAX: usize = 100;
/// Of the request: its rows wait for a message that says so, and no producer's does.
pub const FIRST_GENERATION: i32 = 1;
/// How often a daemon looks for what was not published.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Whoever committed it has this long to publish it.
const OWED_AFTER: Duration = Duration::from_secs(15);

/// Why a mail is not sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It has not ended yet.
    OnItsWay,
    /// It may have been sent, and its dead letter waits for an operator.
    Unknown,
    /// It was never sent: its dead letter can be replayed.
    Failed,
    /// It was not sent in its time, and is never sent after it.
    Expired,
    /// What it said is not known any more, or it never said anything.
    NoContent,
    /// Its attachments' bytes are not in the database.
    NoFiles,
    /// Its recipient is on the suppression list, for this reason.
    Suppressed(String),
    /// Today's limits do not allow it.
    Malformed(String),
}

impl Refusal {
    /// For programs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::OnItsWay => "on_its_way",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::NoContent => "no_content",
            Self::NoFiles => "no_files",
            Self::Suppressed(_) => "suppressed",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnItsWay => "it is still on its way",
            Self::Unknown => {
                "it may or may not have been sent: its dead letter can be replayed, under the same Message-ID"
            }
            Self::Failed => "it was never sent: replay its dead letter",
            Self::Expired => "it is past its expires_at, and was never sent",
            Self::NoContent => "what it said is not recorded: it was removed by anonymising, or never rendered",
            Self::NoFiles => "the bytes of an attachment are not recorded",
            Self::Suppressed(reason) => return write!(f, "its recipient is on the suppression list ({reason})"),
            Self::Malformed(words) => return write!(f, "today's limits do not allow it: {words}"),
        })
    }
}

/// What became of a wish.
#[derive(Debug, Clone)]
pub enum Resent {
    /// There is a request for it.
    Done {
        /// The request.
        request: Retransmission,
        /// It was made now.
        is_new: bool,
        /// The broker has confirmed its message; otherwise a daemon publishes it as soon as it can.
        is_published: bool,
    },
    /// It is not sent again.
    Refused(Refusal),
    /// There is no such mail.
    Unknown,
}

/// Whether a mail would be sent again now. Nothing: there is no such mail.
///
/// # Errors
/// When the database is away.
pub async fn plan(store: &Store, message: Uuid) -> Result<Option<Result<(), Refusal>>, StoreError> {
    let marketing = Templates::load(store).await?.marketing().clone();
    Ok(store.recorded(message, &marketing).await?.map(|recorded| decide(&recorded)))
}

/// Sends a recorded mail again; returns when its message is confirmed, or is owed.
///
/// # Errors
/// When the database is away: nothing was begun, or it is finished by the next call or by a daemon.
pub async fn resend(
    store: &Store,
    publisher: &Publisher,
    pipeline: &PipelineConfig,
    message_id_domain: &str,
    wish: &Wish<'_>,
) -> Result<Resent, StoreError> {
    let marketing = Templates::load(store).await?.marketing().clone();
    let mut message = None;
    let recording = store
        .record_retransmission(wish, &marketing, |recorded| {
            decide(recorded)?;
            let request_id = Uuid::new_v4();
            // As its message says it: the daemon that claims the row counts milliseconds.
            let published_at = Utc::now().trunc_subsecs(3);
            let (outgoing, payload_hash) = compose(recorded, request_id, published_at, pipeline)?;
            message = Some(outgoing);
            let row = row_id(published_at, request_id, &recorded.recipient_hash);
            Ok(NewRetransmission {
                request_id,
                row_id: row,
                message_id: format!("<{row}@{message_id_domain}>"),
                payload_hash,
                published_at,
                generation: FIRST_GENERATION,
            })
        })
        .await?;
    let (request, is_new) = match recording {
        Recording::Done(request) => (request, true),
        Recording::Before(request) => (request, false),
        Recording::Refused(refusal) => return Ok(Resent::Refused(refusal)),
        Recording::Unknown => return Ok(Resent::Unknown),
    };
    faults::reached_by(Point::ReplayCommitted, request.request_id);
    let is_published = match message {
        Some(outgoing) if is_new => publish_owed(store, publisher, request.request_id, &outgoing).await,
        _ if request.is_published => true,
        // Whoever made it was cut off.
        _ => publish_again(store, publisher, pipeline, &request).await?,
    };
    Ok(Resent::Done { request, is_new, is_published })
}

/// Publishes what was committed and not published, until `stop`.
pub async fn follow(store: Arc<Store>, publisher: Arc<Publisher>, pipeline: PipelineConfig, stop: CancellationToken) {
    loop {
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(LOOK_EVERY) => {} }
        let publishing = async {
            for owed in store.owed_retransmissions(OWED_AFTER).await? {
                publish_again(&store, &publisher, &pipeline, &owed).await?;
            }
            Ok::<(), StoreError>(())
        };
        let published = tokio::select! { () = stop.cancelled() => return, published = publishing => published };
        if let Err(error) = published {
            tracing::debug!(%error, "cannot look for recorded mails that are to be sent again");
        }
    }
}

/// Whether the broker has it now, or needs it no more.
async fn publish_again(
    store: &Store,
    publisher: &Publisher,
    pipeline: &PipelineConfig,
    owed: &Retransmission,
) -> Result<bool, StoreError> {
    // Its own row holds what the repeated one held.
    let composed = match store.recorded(owed.message_id, &MarketingTemplates::default()).await? {
        Some(recorded) if recorded.status == Status::Queued => {
            compose(&recorded, owed.request_id, recorded.published_at, pipeline)
        }
        // It has been claimed, so it has been published; or it is gone.
        _ => {
            store.confirm_retransmission(owed.request_id).await?;
            return Ok(true);
        }
    };
    match composed {
        Ok((outgoing, _)) => Ok(publish_owed(store, publisher, owed.request_id, &outgoing).await),
        Err(refusal) => {
            tracing::error!(request.id = %owed.request_id, why = refusal.name(), "a recorded mail cannot be sent again");
            store.confirm_retransmission(owed.request_id).await?;
            Ok(true)
        }
    }
}

/// Whether the broker has it now. Published twice, the second is a duplicate.
async fn publish_owed(store: &Store, publisher: &Publisher, request: Uuid, outgoing: &Outgoing) -> bool {
    if let Err(error) = publisher.publish(outgoing).await {
        tracing::warn!(request.id = %request, %error, "a recorded mail waits to be sent again");
        return false;
    }
    if let Err(error) = store.confirm_retransmission(request).await {
        tracing::debug!(%error, "a recorded mail is published once more");
    }
    true
}

/// Whether a mail that is recorded so may be sent again.
fn decide(recorded: &Recorded) -> Result<(), Refusal> {
    match recorded.status {
        Status::Queued | Status::Sending => return Err(Refusal::OnItsWay),
        Status::Unknown if !recorded.held => return Err(Refusal::OnItsWay),
        Status::Unknown => return Err(Refusal::Unknown),
        Status::Failed => return Err(Refusal::Failed),
        Status::Expired => return Err(Refusal::Expired),
        // Policy said no then; whether it does now is asked anew.
        Status::Suppressed | Status::RateLimited => {}
        Status::Sent | Status::Delivered | Status::Bounced | Status::Complaint => {}
    }
    if !recorded.has_content || recorded.to.is_none() {
        return Err(Refusal::NoContent);
    }
    if recorded.files.len() != recorded.files_recorded {
        return Err(Refusal::NoFiles);
    }
    match &recorded.suppressed {
        Some(reason) => Err(Refusal::Suppressed(reason.clone())),
        None => Ok(()),
    }
}

/// The message that a daemon claims the rows by: whom it goes to and what comes with it. Its words are in the rows, and its
/// files' bytes are where the audit keeps them, however large they are.
fn compose(
    recorded: &Recorded,
    request_id: Uuid,
    published_at: DateTime<Utc>,
    pipeline: &PipelineConfig,
) -> Result<(Outgoing, PayloadHash), Refusal> {
    let malformed = |words: String| Refusal::Malformed(words);
    let priority = usize::try_from(recorded.priority).ok().and_then(|number| Priority::ALL.get(number).copied());
    let priority = priority.ok_or_else(|| malformed("it has no priority".to_owned()))?;
    let recipient = wire::Recipient {
        address: recorded.to.clone().unwrap_or_default(),
        display_name: recorded.name.clone().unwrap_or_default(),
    };
    let attachments = recorded.files.iter().map(|file| wire::Attachment {
        file_name: file.file_name.clone(),
        content_type: file.content_type.clone(),
        content: Some(wire::AttachmentContent::Reference(wire::Reference {
            uri: ARCHIVE.to_owned(),
            size_bytes: file.size_bytes,
            sha256: file.sha256.clone(),
        })),
        content_id: file.content_id.clone().unwrap_or_default(),
    });
    let request = wire::EmailRequest {
        request_id: request_id.to_string(),
        source: recorded.source.clone(),
        template_key: recorded.template_key.clone(),
        template_version: recorded.template_version.and_then(|version| u32::try_from(version).ok()).unwrap_or(0),
        recipients: vec![recipient],
        attachments: attachments.collect(),
        priority: wire_priority(priority).into(),
        locale: recorded.locale.clone().unwrap_or_default(),
        reply_to: recorded.reply_to.clone().unwrap_or_default(),
        ..wire::EmailRequest::default()
    };
    let mut outgoing = publish::outgoing(&request, "").map_err(|error| malformed(error.to_string()))?;
    let payload_hash = hash_of(&outgoing.body, &outgoing.routing_key, pipeline).map_err(malformed)?;
    let mut headers = FieldTable::default();
    headers.insert(GENERATION.into(), AMQPValue::LongInt(FIRST_GENERATION));
    headers.insert(PUBLISHED_AT.into(), AMQPValue::LongLongInt(published_at.timestamp_millis()));
    headers.insert(ROUTING_KEY.into(), AMQPValue::LongString(outgoing.routing_key.as_str().into()));
    outgoing.properties =
        outgoing.properties.with_timestamp(u64::try_from(published_at.timestamp()).unwrap_or(0)).with_headers(headers);
    // To its lane's queue itself, as a replay: its rows wait for it, so it must not be anywhere else.
    outgoing.routing_key = topology::lane_queue(priority.lane());
    Ok((outgoing, payload_hash))
}

/// What the daemon that reads it takes it for.
fn hash_of(body: &Bytes, routing_key: &str, pipeline: &PipelineConfig) -> Result<PayloadHash, String> {
    let envelope = Envelope::of_nobody(routing_key);
    let decoded = decode(&envelope, body, pipeline, Utc::now()).map_err(|error| error.to_string())?;
    Ok(decoded.request.payload_hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(status: Status) -> Recorded {
        Recorded {
            status,
            held: false,
            to: Some("ada@example.bj".to_owned()),
            name: None,
            recipient_hash: [7; 32],
            has_content: true,
            source: "billing".to_owned(),
            template_key: "billing_invoice_monthly".to_owned(),
            template_version: Some(3),
            priority: 2,
            locale: None,
            reply_to: None,
            published_at: Utc::now(),
            suppressed: None,
            files: Vec::new(),
            files_recorded: 0,
        }
    }

    #[test]
    fn only_what_has_ended_and_is_recorded_whole_goes_out_again_and_only_to_who_may_get_it() {
        let refused = |recorded: &Recorded| decide(recorded).err().map(|refusal| refusal.name());
        for status in Status::ALL.iter().copied() {
            let expected = match status {
                Status::Queued | Status::Sending | Status::Unknown => Some("on_its_way"),
                Status::Failed => Some("failed"),
                Status::Expired => Some("expired"),
                _ => None,
            };
            assert_eq!(refused(&recorded(status)), expected, "{status}");
        }
        let sent = || recorded(Status::Sent);
        assert_eq!(refused(&Recorded { held: true, ..recorded(Status::Unknown) }), Some("unknown"));
        assert_eq!(refused(&Recorded { has_content: false, ..sent() }), Some("no_content"));
        assert_eq!(refused(&Recorded { to: None, ..sent() }), Some("no_content"));
        assert_eq!(refused(&Recorded { files_recorded: 1, ..sent() }), Some("no_files"));
        assert_eq!(refused(&Recorded { suppressed: Some("complaint".to_owned()), ..sent() }), Some("suppressed"));
    }
}
