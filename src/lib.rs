//! Postrider carries e-mail requests from RabbitMQ to an SMTP relay.
//!
//! One message takes this path, and `pipeline` tells it in order:
//!
//! ```text
//! consume -> decode -> render -> admit -> deliver -> settle
//! ```
//!
//! The modules below stand in reading order. Dependencies point one way: the vocabulary (`email`, `retry`) knows
//! nobody; each door (`broker`, `store`, `smtp`, `templates`, `wire`, `mime`) knows the vocabulary and one
//! outside library, never another door; the pipeline's stages know the doors they need; `app` knows all.

pub mod email;

pub mod wire;

pub mod config;

pub mod templates;

pub mod mime;

pub mod smtp;

pub mod broker;

pub mod store;
