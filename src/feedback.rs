//! What the relay's provider tells of mails after it took them. Today that is Amazon SES, through SNS.
//!
//! ```text
//! POST -> front_door: topic allowed? fresh? certificate's place? key (signers)? signature? -> Store::keep_feedback -> 200
//! follow: what was kept -> ses: a neutral event -> Store::apply_feedback: its mail's row, timeline, suppressions
//! ```
//!
//! Invariant: nothing is fetched, stored or followed before the topic is known to be ours and the place to be SNS's own.
//! Invariant: an event is applied from the store, never from the request that brought it: nothing is lost between the two, and
//! what comes before its mail's row waits for it.
//! Invariant: what leaves the front door is the signed text of a message of an allowed topic, each MessageId once.

/// From a request to a receipt: every check, in order.
pub mod front_door;

/// The envelope: its fields, and the text that is signed.
pub mod sns;

/// Topics, and the hosts and paths that may be asked for them.
pub mod topic;

/// What a signing certificate must satisfy, and what its key signed.
pub mod certificate;

/// The keys by their certificates' places: fetched once, or given in a file.
pub mod signers;

/// GET from a place that was checked, with limits.
pub mod fetch;

/// What was kept, applied to its mails.
pub mod follow;

/// Amazon SES: its events, as neutral ones.
pub mod ses;
