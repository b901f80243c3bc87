//! The bytes of sent attachments, where they are not kept in the database.
//!
//! Invariant: an object is written once, under a name that no other write has: whoever deletes one deletes nobody else's.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, path::Path};
use uuid::Uuid;

use super::{
    Objects,
    fault::{FetchFault, fault_of, is_missing},
    fetch::{Wanted, read},
};
use crate::config::KeptIn;

/// How long one write, read or deletion may take: less than the pipeline waits for the store.
const LIMIT: Duration = Duration::from_secs(12);

/// The attachment store did not do its work; it may later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the attachment store (EMAIL_ATTACHMENT_STORE): {0}")]
pub struct ShelfError(String);

impl ShelfError {
    /// A row speaks for bytes that are not there.
    #[must_use]
    pub fn lost() -> Self {
        Self("a file that was kept there is gone".to_owned())
    }

    /// It took so long to write that the object may be deleted already.
    #[must_use]
    pub fn overtaken() -> Self {
        Self("a file took too long to be written".to_owned())
    }
}

impl Objects {
    /// A location for these bytes that nothing was written to yet; nothing: they are kept in the database.
    #[must_use]
    pub fn new_location(&self, sha256: &[u8; 32]) -> Option<String> {
        let hash = hex::encode(sha256);
        // Spread over folders by their first byte, as file systems like it.
        let name = format!("{}/{hash}-{}", &hash[..2], Uuid::new_v4().simple());
        match &self.config.kept_in {
            KeptIn::Postgres => None,
            KeptIn::S3 { bucket, prefix } if prefix.is_empty() => Some(format!("s3://{bucket}/{name}")),
            KeptIn::S3 { bucket, prefix } => Some(format!("s3://{bucket}/{prefix}/{name}")),
            KeptIn::Folder(folder) => Some(format!("file://{}/{name}", folder.display())),
        }
    }

    /// Writes bytes to a new location; returns when they are safe there.
    ///
    /// # Errors
    /// When they may not be.
    pub async fn put(&self, location: &str, bytes: Bytes) -> Result<(), ShelfError> {
        let (store, path, place) = self.shelf(location)?;
        let putting = async {
            store.put(&path, PutPayload::from(bytes)).await.map_err(|error| failed(&place, &error))?;
            Ok(())
        };
        within(&place, putting).await
    }

    /// Reads what was written there, and checks that it is the same. Nothing: there is nothing.
    ///
    /// # Errors
    /// When it cannot be read now, or is not what was written.
    pub async fn get(&self, location: &str, wanted: Wanted<'_>) -> Result<Option<Bytes>, ShelfError> {
        let (store, path, place) = self.shelf(location)?;
        let getting = async {
            let result = match store.get_opts(&path, GetOptions::default()).await {
                Ok(result) => result,
                Err(error) if is_missing(&error) => return Ok(None),
                Err(error) => return Err(failed(&place, &error)),
            };
            read(&place, result, wanted).await.map(Some).map_err(|fault| ShelfError(fault.to_string()))
        };
        within(&place, getting).await
    }

    /// Deletes what was written there; fine if there is nothing.
    ///
    /// # Errors
    /// When it may still be there.
    pub async fn delete(&self, location: &str) -> Result<(), ShelfError> {
        let (store, path, place) = self.shelf(location)?;
        let deleting = async {
            match store.delete(&path).await {
                Ok(()) => Ok(()),
                Err(error) if is_missing(&error) => Ok(()),
                Err(error) => Err(failed(&place, &error)),
            }
        };
        within(&place, deleting).await
    }

    /// The place and the object of a location. It need not be where bytes are kept now: the setting may have changed.
    fn shelf(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, Path, String), ShelfError> {
        let strange = || ShelfError("a location that was recorded is neither s3:// nor file://".to_owned());
        if let Some((bucket, key)) = location.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
            let store = self.bucket(bucket).map_err(|error| ShelfError(error.to_string()))?;
            return Ok((store, Path::parse(key).map_err(|_| strange())?, format!("s3://{bucket}")));
        }
        let path = location.strip_prefix("file://").map(PathBuf::from).ok_or_else(strange)?;
        let path = Path::from_absolute_path(path).map_err(|_| strange())?;
        // What is acknowledged must survive the machine's power.
        Ok((Arc::new(LocalFileSystem::new().with_fsync(true)), path, "the folder".to_owned()))
    }
}

fn failed(place: &str, error: &object_store::Error) -> ShelfError {
    let (FetchFault::Unavailable(words) | FetchFault::Wrong(words)) = fault_of(place, error);
    ShelfError(words)
}

async fn within<T>(place: &str, work: impl Future<Output = Result<T, ShelfError>>) -> Result<T, ShelfError> {
    let late = |_| ShelfError(format!("{place} did not answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, work).await.map_err(late)?
}
