//! The only door to the broker (lapin).
//!
//! Two connections: one only consumes, one only publishes. A broker under a memory alarm stops reading from connections
//! that publish; acknowledgements on the other one still go through.
//!
//! Invariant: lapin's own recovery stays off. It hides lost deliveries and can hang for ever; [`link::Link`] reconnects.

/// The two connections, made again whenever somebody needs one that is gone.
pub mod link;

/// Names, arguments and declaration of everything on the broker.
pub mod topology;

/// One delivery, settled once and by value.
pub mod delivery;

/// Headers of a dead letter.
pub mod dead_letter;

/// Acknowledgements, gathered.
mod acks;

/// A lane's consumer: subscribes, and subscribes again.
pub mod consumer;

/// How many deliveries a consumer may hold.
mod window;

/// What it holds.
mod held;

/// Sees that a consumer is gone although nobody has said so.
mod watchdog;

/// How many messages and consumers a queue has.
mod count;

/// Draws messages from a queue by hand.
pub mod drawer;

/// How much waits.
pub mod depths;

/// Confirmed publishing.
pub mod publisher;

/// The same for many small messages.
pub mod pipelined;

/// A look at what passes an exchange.
pub mod tap;

pub use consumer::{ConsumerState, Consumers};
pub use delivery::{Delivery, SettleError};
pub use drawer::{Drawer, Drawn};
pub use link::{BrokerError, Link};
pub use pipelined::PipelinedPublisher;
pub use publisher::{Outgoing, Publisher};
pub use tap::Tap;
pub use topology::Topology;
