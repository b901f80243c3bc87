//! What the relay's provider tells of mails after it took them. Today that is Amazon SES, through SNS.
//!
//! ```text
//! POST -> front_door: topic allowed? fresh? certificate's place? key (signers)? signature? -> Store::keep_feedback -> 200
//! ```
//!
//! Invariant: nothing is fetched, stored or followed before the topic is known to be ours and the place to be SNS's own.
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
