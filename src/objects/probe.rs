//! Whether the places that the settings name answer: for `postrider check`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{GetOptions, ObjectStore, http::HttpBuilder, path::Path};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Objects,
    client::{Connected, once},
    fault::{Answered, fault_of, find, is_missing},
    fetch::Wanted,
};
use crate::config::KeptIn;

/// One place may take this long.
const LIMIT: Duration = Duration::from_secs(10);
/// What the attachment store is tried with.
const PROBE: &[u8] = b"postrider check";

/// One place, and how it was found.
#[derive(Debug)]
pub struct Probed {
    /// For people.
    pub place: String,
    /// Or what is wrong with it.
    pub result: Result<String, String>,
}

impl Objects {
    /// Looks at every place that the settings name. The attachment store is written to, read and cleared again; of the others
    /// a file is asked for that is not there.
    pub async fn probe(&self) -> Vec<Probed> {
        let mut found = Vec::new();
        for host in &self.config.https_hosts {
            found.push(Probed { place: format!("https://{host}"), result: limited(self.host(host)).await });
        }
        for bucket in &self.config.s3_buckets {
            found.push(Probed { place: format!("s3://{bucket}"), result: limited(self.foreign_bucket(bucket)).await });
        }
        if let Some(folder) = &self.config.folder {
            let readable = tokio::fs::read_dir(folder).await;
            let result = readable.map(|_| "can be read".to_owned()).map_err(|error| error.kind().to_string());
            found.push(Probed { place: format!("ATTACHMENT_FOLDER {}", folder.display()), result });
        }
        let place = match &self.config.kept_in {
            KeptIn::Postgres => return found,
            KeptIn::S3 { bucket, .. } => format!("EMAIL_ATTACHMENT_STORE s3://{bucket}"),
            KeptIn::Folder(folder) => format!("EMAIL_ATTACHMENT_STORE {}", folder.display()),
        };
        found.push(Probed { place, result: self.own().await });
        found
    }

    /// Any answer shows that the host is there and its certificate is trusted.
    async fn host(&self, host: &str) -> Result<String, String> {
        let client = self.client.clone().ok_or("there is no client for it")?;
        let place = format!("https://{host}");
        let store = HttpBuilder::new()
            .with_url(format!("{place}/"))
            .with_retry(once())
            .with_http_connector(Connected(client))
            .build()
            .map_err(|error| fault_of(&place, &error).to_string())?;
        match store.get_opts(&Path::default(), GetOptions { head: true, ..GetOptions::default() }).await {
            Ok(_) => Ok("answers".to_owned()),
            Err(error) => match find::<Answered>(&error) {
                Some(_) => Ok("answers".to_owned()),
                // It answered well, but says nothing of a file: its own address is none.
                None if find::<object_store::client::HttpError>(&error).is_none() => Ok("answers".to_owned()),
                None => Err(fault_of(&place, &error).to_string()),
            },
        }
    }

    async fn foreign_bucket(&self, bucket: &str) -> Result<String, String> {
        let store: Arc<dyn ObjectStore> = self.bucket(bucket).map_err(|error| error.to_string())?;
        let nothing = Path::from(format!("postrider-check-{}", Uuid::new_v4().simple()));
        match store.get_opts(&nothing, GetOptions::default()).await {
            Ok(_) => Ok("answers".to_owned()),
            Err(error) if is_missing(&error) => Ok("answers, and lets us look".to_owned()),
            // S3 refuses to say that something is missing where listing is not allowed.
            Err(error) if find::<Answered>(&error).is_some_and(|a| a.code.as_deref() == Some("AccessDenied")) => {
                Ok("answers; whether it lets us read shows with the first file (listing is not allowed)".to_owned())
            }
            Err(error) => Err(fault_of(&format!("s3://{bucket}"), &error).to_string()),
        }
    }

    async fn own(&self) -> Result<String, String> {
        let sha256: [u8; 32] = Sha256::digest(PROBE).into();
        let Some(location) = self.new_location(&sha256) else { return Ok("in the database".to_owned()) };
        self.put(&location, Bytes::from_static(PROBE)).await.map_err(|error| error.to_string())?;
        let wanted = Wanted { size_bytes: PROBE.len() as u64, sha256: &sha256 };
        let read = self.get(&location, wanted).await;
        let deleted = self.delete(&location).await;
        match (read, deleted) {
            (Ok(Some(_)), Ok(())) => Ok("can be written, read and cleared".to_owned()),
            (Ok(None), _) => Err("what was written could not be found again".to_owned()),
            (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
        }
    }
}

async fn limited(probe: impl Future<Output = Result<String, String>>) -> Result<String, String> {
    let late = |_| Err(format!("no answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, probe).await.unwrap_or_else(late)
}
