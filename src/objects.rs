//! The only door to object stores (the crate object_store): where attachments are fetched from by reference, and where their
//! bytes are kept when that is not the database.
//!
//! Invariant: a reference is followed only to a host, a bucket or a folder that the settings name. No redirect is followed, no
//! proxy of the environment is used, and no link leads out of the folder.
//! Invariant: what is fetched has the announced size and SHA-256, and never more bytes of it are held than were announced.
//! Invariant: no error repeats more of an address than its host or bucket: paths hold names, and queries hold signatures.

/// Which addresses references may have.
pub mod reference;

/// Fetching by reference.
mod fetch;

/// The bytes of sent attachments.
mod shelf;

/// Connections, buckets and folders.
mod client;

/// What an error of an object store means.
mod fault;

/// Whether they answer.
mod probe;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use object_store::{ObjectStore, aws::AmazonS3, client::HttpClient};
use tokio::sync::Semaphore;

use self::fetch::Stalled;
pub use self::{
    client::SetupError,
    fault::FetchFault,
    fetch::Wanted,
    probe::Probed,
    reference::{BadReference, Source},
    shelf::ShelfError,
};
use crate::config::{AttachmentConfig, KeptIn};

/// All places where files lie.
pub struct Objects {
    config: AttachmentConfig,
    /// Nothing: only folders are used, or nothing at all.
    client: Option<HttpClient>,
    /// Made when first used.
    buckets: Mutex<HashMap<String, Arc<AmazonS3>>>,
    fast: Semaphore,
    others: Semaphore,
    stalled: Stalled,
}

impl Objects {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When TLS cannot be set up, or a bucket's settings do not fit together.
    pub fn new(config: &AttachmentConfig) -> Result<Self, SetupError> {
        let needs_network = !config.https_hosts.is_empty()
            || !config.s3_buckets.is_empty()
            || matches!(config.kept_in, KeptIn::S3 { .. });
        let objects = Self {
            client: if needs_network { Some(client::connect(config.ca_file.as_deref())?) } else { None },
            buckets: Mutex::default(),
            fast: Semaphore::new(config.fetches_max),
            others: Semaphore::new(config.fetches_max),
            stalled: Stalled::default(),
            config: config.clone(),
        };
        // What is wrong with the settings shall show at start, not with the first mail.
        for bucket in objects.buckets_named() {
            objects.bucket(bucket)?;
        }
        Ok(objects)
    }

    fn buckets_named(&self) -> impl Iterator<Item = &str> {
        let kept_in = match &self.config.kept_in {
            KeptIn::S3 { bucket, .. } => Some(bucket.as_str()),
            KeptIn::Postgres | KeptIn::Folder(_) => None,
        };
        self.config.s3_buckets.iter().map(String::as_str).chain(kept_in)
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn ObjectStore>, SetupError> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = buckets.get(name) {
            return Ok(Arc::clone(known) as Arc<dyn ObjectStore>);
        }
        // What was kept in a bucket before the setting changed is still read there.
        let client = match &self.client {
            Some(client) => client.clone(),
            None => client::connect(self.config.ca_file.as_deref())?,
        };
        let bucket = Arc::new(client::bucket(&self.config.s3, name, client)?);
        buckets.insert(name.to_owned(), Arc::clone(&bucket));
        Ok(bucket)
    }
}
