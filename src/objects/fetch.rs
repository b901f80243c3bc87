//! Fetching by reference: size and SHA-256 are checked while the bytes come in.
//!
//! Invariant: a place that lets us wait does not hold a lane: the time of each fetch is limited, few run at once, and for a
//! while nobody else of the slower lanes waits for a place that has just let somebody wait in vain.

use std::{
    collections::HashMap,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{
    GetOptions, GetResult, ObjectStore, client::HttpClient, http::HttpBuilder, local::LocalFileSystem, path::Path,
};
use sha2::{Digest, Sha256};

use super::{
    Objects,
    client::{Announced, Connected, once},
    fault::{FetchFault, fault_of},
    reference::{BadReference, Source, source_of},
};
use crate::email::Lane;

/// How long a place is left alone that has just let somebody wait in vain.
const STALL_PAUSE: Duration = Duration::from_secs(5);

/// What a reference announces.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Bytes.
    pub size_bytes: u64,
    /// Over them.
    pub sha256: &'a [u8; 32],
}

/// Places that let somebody wait in vain, and until when nobody else does.
#[derive(Debug, Default)]
pub(super) struct Stalled(Mutex<HashMap<String, Instant>>);

impl Stalled {
    fn contains(&self, place: &str) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|_, until| *until > now);
        all.contains_key(place)
    }

    fn note(&self, place: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(place.to_owned(), Instant::now() + STALL_PAUSE);
    }
}

impl Objects {
    /// Where a reference points, if it may be followed.
    ///
    /// # Errors
    /// [`BadReference`]: the same reference is refused again.
    pub fn source_of(&self, uri: &str) -> Result<Source, BadReference> {
        source_of(uri, &self.config)
    }

    /// Fetches a file. Not for [`Source::Archive`], which the store knows.
    ///
    /// # Errors
    /// When the place does not give it, or gives something else.
    pub async fn fetch(&self, lane: Lane, source: &Source, wanted: Wanted<'_>) -> Result<Bytes, FetchFault> {
        let place = source.place();
        let slots = match lane {
            Lane::Fast => &self.fast,
            Lane::Standard | Lane::Bulk => &self.others,
        };
        let limit = self.config.fetch_timeout;
        let late = || FetchFault::Unavailable(format!("{place} did not give the file within {} s", limit.as_secs()));
        let slot = tokio::time::timeout(limit, slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else { return Err(late()) };
        // Incidents ask again whatever others have met with.
        if lane != Lane::Fast && self.stalled.contains(&place) {
            return Err(FetchFault::Unavailable(format!("{place} has just let another fetch wait in vain")));
        }
        let fetching = async {
            let result = self.open(source, wanted.size_bytes).await?;
            read(&place, result, wanted).await
        };
        let Ok(fetched) = tokio::time::timeout(limit, fetching).await else {
            self.stalled.note(&place);
            return Err(late());
        };
        fetched
    }

    async fn open(&self, source: &Source, size_bytes: u64) -> Result<GetResult, FetchFault> {
        let place = source.place();
        let unusable = |words: String| FetchFault::Unavailable(words);
        let (store, path): (Arc<dyn ObjectStore>, Path) = match source {
            Source::Https { url, .. } => {
                let Some(client) = self.client.clone() else { return Err(unusable(format!("{place}: no client"))) };
                let client = HttpClient::new(Announced { client, size_bytes });
                let store = HttpBuilder::new()
                    .with_url(url.as_str())
                    .with_retry(once())
                    .with_http_connector(Connected(client))
                    .build()
                    .map_err(|error| fault_of(&place, &error))?;
                // The address is the object: a path of its own would lose the query, where signatures are.
                (Arc::new(store), Path::default())
            }
            Source::S3 { bucket, key } => {
                (self.bucket(bucket).map_err(|error| unusable(error.to_string()))?, key.clone())
            }
            Source::File { path } => {
                let folder = self.config.folder.clone().unwrap_or_default();
                let path = path.clone();
                let real = tokio::task::spawn_blocking(move || real_path(&path, &folder)).await;
                let real = real.unwrap_or_else(|_| Err(unusable(format!("{place} cannot be looked at"))))?;
                let path = Path::from_absolute_path(real)
                    .map_err(|_| FetchFault::Wrong(format!("{place} has a name that cannot be opened")))?;
                (Arc::new(LocalFileSystem::new()), path)
            }
            Source::Archive => return Err(FetchFault::Wrong(format!("{place} does not have it"))),
        };
        store.get_opts(&path, GetOptions::default()).await.map_err(|error| fault_of(&place, &error))
    }
}

/// Where a path leads, if that is a file under the folder: a link must not lead out of it. What it holds is vouched for by
/// its SHA-256, so that nothing is won by exchanging it afterwards.
fn real_path(path: &FilePath, folder: &FilePath) -> Result<PathBuf, FetchFault> {
    let real = path.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => FetchFault::Wrong("the file is not there".to_owned()),
        kind => FetchFault::Unavailable(format!("the file cannot be looked at ({kind})")),
    })?;
    let folder = folder.canonicalize().map_err(|error| {
        FetchFault::Unavailable(format!("ATTACHMENT_FOLDER cannot be looked at ({})", error.kind()))
    })?;
    if !real.starts_with(&folder) {
        return Err(FetchFault::Wrong("the file is a link that leads out of ATTACHMENT_FOLDER".to_owned()));
    }
    // A pipe or a device would let us wait, or never end.
    if !real.is_file() {
        return Err(FetchFault::Wrong("what lies there is not a file".to_owned()));
    }
    Ok(real)
}

/// Reads no more than was announced.
pub(super) async fn read(place: &str, result: GetResult, wanted: Wanted<'_>) -> Result<Bytes, FetchFault> {
    let announced = wanted.size_bytes;
    let other_size = |size: u64| {
        FetchFault::Wrong(format!("{place} gave a file of {size} bytes, and not of the announced {announced}"))
    };
    if result.meta.size != announced {
        return Err(other_size(result.meta.size));
    }
    let capacity = usize::try_from(announced).map_err(|_| other_size(u64::MAX))?;
    let (mut bytes, mut hash) = (Vec::with_capacity(capacity), Sha256::new());
    let mut stream = result.into_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| fault_of(place, &error))?;
        if bytes.len() + chunk.len() > capacity {
            return Err(FetchFault::Wrong(format!("{place} gave more than the announced {announced} bytes")));
        }
        hash.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    if bytes.len() != capacity {
        return Err(FetchFault::Unavailable(format!("{place} broke off after {} of {announced} bytes", bytes.len())));
    }
    let found: [u8; 32] = hash.finalize().into();
    if found != *wanted.sha256 {
        return Err(FetchFault::Wrong(format!(
            "{place} gave a file whose SHA-256 begins with {}, and not with the announced {}",
            hex::encode(&found[..8]),
            hex::encode(&wanted.sha256[..8])
        )));
    }
    Ok(bytes.into())
}
