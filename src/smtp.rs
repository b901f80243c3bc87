//! The only door to the relays: our own SMTP session, one recipient a transaction, and a report that says at which
//! step it ended.
//!
//! ```text
//! Relays::place(lane) -> Place          waits for a connection; faults of a relay are waited out, never reported
//! Place::send(mail)   -> Sent           one transaction; what the relay said, and at which step
//! Sent::outcome()     -> Outcome        what that means for the recipient: `classify`, which is pure, and the relay's record
//! ```
//!
//! Invariant: success is a 2xx reply to the final dot and nothing else.
//! Invariant: a connection that owes a reply, or that said anything out of turn, is closed and never used again.
//! Invariant: lanes share neither connections nor permits; they share what is known about a relay's health, and its pace.
//! Deliberately absent: opportunistic TLS, several recipients in one transaction, sending twice what may have been accepted.

/// What the relay answered: bytes to replies, and replies to outcomes.
pub mod reply;

/// Why a relay cannot be used, and what to do about it.
pub mod fault;

/// The content as it travels: line ends, dots, terminator.
mod content;

/// Whom a relay's certificate must satisfy.
mod tls;

/// A connection: bytes out, replies in, each under its limit.
mod connection;

/// From nothing to a connection that is ready for MAIL.
mod session;

/// How long the steps of a dialogue took.
mod steps;

/// One mail to one recipient.
mod transaction;

/// A lane's mails and connections.
mod line;

/// The task behind a connection.
mod driver;

/// Whether a relay may be connected to.
mod breaker;

/// Whether a relay that can be connected to deals with mails.
mod trial;

/// How fast mails may go to a relay that throttles.
mod pace;

/// One relay.
mod relay;

/// A place on a connection, and what is learned from the mail that it carried.
mod place;

/// The relays in order of preference.
mod relays;

pub use fault::{RelayError, RelayFault};
pub use place::{Again, Place, Sent};
pub use relays::{RelayHealth, RelayState, Relays};
pub use reply::{classify, refuses_address};
pub use session::Capabilities;
pub use steps::Steps;
pub use tls::TlsSetupError;
pub use transaction::OutgoingMail;
