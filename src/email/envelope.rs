//! What travels beside the request in AMQP properties and headers.

use chrono::{DateTime, Utc};

use super::Lane;

/// Everything the pipeline needs of a delivery apart from its body.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The lane whose queue it was taken from.
    pub lane: Lane,
    /// Routing key of the producer's own publish (kept through retries).
    pub routing_key: String,
    /// `content_type`, as given.
    pub content_type: Option<String>,
    /// `message_id`, as given.
    pub message_id: Option<String>,
    /// `x-published-at-ms`, else `timestamp`; nothing when the producer gave neither.
    pub published_at: Option<DateTime<Utc>>,
    /// `x-generation`: raised by a replay, so that older copies are recognised as duplicates.
    pub generation: i32,
    /// `x-copy`: which retry copy of the request this is; 0 is the producer's own publish.
    pub copy_no: i32,
    /// A copy that postrider made: delayed, or moved to another lane.
    pub is_copy: bool,
    /// `x-crashes`: how often a stage panicked on it, alone.
    pub crashes: i32,
    /// `x-pending`: who is still to get it, for a daemon that cannot ask the database.
    pub pending: Option<String>,
    /// `x-over`: who is not, likewise.
    pub over: Option<String>,
    /// `x-doubtful`: somebody else may have had it on the wire when this copy was made.
    pub is_doubtful: bool,
    /// `x-template-version`: what the first claim fixed, likewise.
    pub template_version: Option<i32>,
    /// The broker says that it has delivered this before.
    pub redelivered: bool,
    /// `x-replayed-at-ms`: when an operator sent it on its way again.
    pub replayed_at: Option<DateTime<Utc>>,
    /// W3C trace context, passed on as it came.
    pub traceparent: Option<String>,
    /// W3C trace state, passed on as it came.
    pub tracestate: Option<String>,
    /// `x-try-traceparent`: the try that published this copy, if that was traced.
    pub earlier_try: Option<String>,
    /// `x-given-up-traceparent`: the try whose dead letter this replays, likewise.
    pub given_up: Option<String>,
}

impl Envelope {
    /// Of a message that nobody has delivered: for reading one outside of the pipeline.
    #[must_use]
    pub fn of_nobody(routing_key: &str) -> Self {
        Self {
            lane: Lane::Standard,
            routing_key: routing_key.to_owned(),
            content_type: None,
            message_id: None,
            published_at: None,
            generation: 0,
            copy_no: 0,
            is_copy: false,
            crashes: 0,
            pending: None,
            over: None,
            is_doubtful: false,
            template_version: None,
            redelivered: false,
            replayed_at: None,
            traceparent: None,
            tracestate: None,
            earlier_try: None,
            given_up: None,
        }
    }

    /// Whether its request may have rows already: a redelivery, a retry copy, a replay.
    #[must_use]
    pub const fn may_be_known(&self) -> bool {
        self.redelivered || self.is_copy || self.generation > 0
    }
}
