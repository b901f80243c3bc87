//! The vocabulary of one e-mail: what a request, a mail and an outcome are. No I/O, no outside service.
//!
//! Invariant: nothing here knows a door (`broker`, `store`, `smtp`, `templates`, `wire`); every door converts to these types.

/// Addresses: parsing, equality, masking.
pub mod address;

/// Priorities, and the lanes they travel in.
pub mod lane;

/// What a producer asked for.
pub mod request;

/// Files that go with a mail: their types, and whether they are what they say.
pub mod attachment;

/// What travels beside the request: lane, publish time, generation, trace context.
pub mod envelope;

/// The identity of one mail, the same at every try.
pub mod identity;

/// What a template made of it.
pub mod rendered;

/// How many mails one person may get.
pub mod cap;

/// Where a mail stands, why it failed, and why an address gets none.
pub mod status;

/// What the relay said, and what that means.
pub mod outcome;

/// What a provider tells of a mail afterwards, and where the mail stands by it.
pub mod feedback;

/// Links by which people take themselves off marketing mail.
pub mod unsubscribe;

pub use address::{AddressError, EmailAddress};
pub use cap::{Cap, RateLimit};
pub use envelope::Envelope;
pub use lane::{Lane, PerLane, Priority};
pub use outcome::{LinkFault, Outcome, Phase, Reply, SendReport};
pub use rendered::{Manifest, OverCap, RenderedEmail, TemplateKind, UnknownPolicy};
pub use request::{Attachment, AttachmentContent, EmailRequest, PayloadHash, Recipient, settlement_id};
pub use status::{Reason, Status, SuppressionReason};
pub use unsubscribe::{UnsubscribeLinks, Unsubscription};
