//! Attachment bytes, once by SHA-256.

use super::{Store, StoreError};
use crate::email::Lane;

impl Store {
    /// Stores these bytes unless they are there already. Done before the claim, so that no mail is on its way whose
    /// attachment the audit does not have.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn keep_attachment(&self, lane: Lane, sha256: &[u8; 32], bytes: &[u8]) -> Result<(), StoreError> {
        let pool = self.pool_of(lane);
        // Asking first spares ten megabytes on the wire for what is sent to many.
        let known = sqlx::query_scalar!(
            "select exists (select 1 from attachment_blobs where sha256 = $1) as \"known!\"",
            sha256.as_slice()
        )
        .fetch_one(pool)
        .await?;
        if !known {
            sqlx::query!(
                "insert into attachment_blobs (sha256, size_bytes, data) values ($1, $2, $3) on conflict do nothing",
                sha256.as_slice(),
                i32::try_from(bytes.len()).unwrap_or(i32::MAX),
                bytes
            )
            .execute(pool)
            .await?;
        }
        Ok(())
    }
}
