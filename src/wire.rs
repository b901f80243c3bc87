//! The protobuf types of `proto/postrider/v1/email.proto`, as prost generates them, and their descriptor.

// Generated: the proto file carries the documentation.
#![allow(missing_docs, clippy::all)]
include!(concat!(env!("OUT_DIR"), "/postrider.v1.rs"));
