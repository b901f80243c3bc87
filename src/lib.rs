//! Postrider carries e-mail requests from RabbitMQ to an SMTP relay.
//!
//! One message takes this path, and [`pipeline`] tells it in order:
//!
//! ```text
//! consume -> decode -> render -> admit -> deliver -> settle
//! ```
//!
//! The modules below stand in reading order. Dependencies point one way: the vocabulary ([`email`], [`retry`]) knows
//! nobody; each door ([`broker`], [`store`], [`smtp`], [`templates`], [`wire`], [`mime`], [`objects`]) knows the vocabulary,
//! its part of the settings and an outside library or two, never another door, but that the store may keep files in objects, and
//! that those which speak TLS share whom they trust; the pipeline's stages know the doors they need; [`app`] knows all.
//! Settings are made of types of those that read them, and everybody may be slow, die or tell a trace on the way.

pub mod pipeline;

pub mod email;

pub mod retry;

pub mod broker;

pub mod store;

pub mod smtp;

pub mod templates;

pub mod mime;

pub mod objects;

mod tls;

pub mod wire;

pub mod archive;

pub mod journal;

pub mod outbox;

pub mod replay;

pub mod retransmission;

pub mod retention;

pub mod lanes;

pub mod feedback;

pub mod reload;

pub mod versions;

pub mod publish;

pub mod suppression_file;

pub mod http;

pub mod metrics;

pub mod telemetry;

pub mod service_manager;

pub mod faults;

pub mod core_dumps;

pub mod config;

pub mod cli;

pub mod app;
