//! The only door to the relay.
