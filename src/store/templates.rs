//! Template versions: every one is kept, at most one a key is active, and when each was is kept as well.
//!
//! Invariant: versions and the history of activations only grow.
//! Invariant: whatever changes what is active raises the generation, notes who did it and tells all daemons, in one
//! transaction.

/// Saving, activating, rolling back, deactivating.
pub mod change;

/// Which templates and versions there are.
pub mod list;

/// What producers sent lately, without any value.
pub mod recent;

use std::collections::HashSet;

use serde_json::Value;
use uuid::Uuid;

use super::{Store, StoreError, within_limit};
use crate::email::Lane;

/// A version as it is kept.
#[derive(Debug, Clone)]
pub struct StoredVersion {
    /// Which template.
    pub key: String,
    /// Rises by one.
    pub version: i32,
    /// The whole version as one document; the templates door reads it.
    pub source: Value,
}

impl Store {
    /// Rises with every activation.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_generation(&self) -> Result<i64, StoreError> {
        let asking = sqlx::query_scalar!("select generation from template_generation").fetch_one(&self.pool);
        within_limit(async { Ok(asking.await?) }).await
    }

    /// Which version of each key is active; a key without one is not named.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn active_versions(&self) -> Result<Vec<(String, i32)>, StoreError> {
        let asking =
            sqlx::query!(r#"select key, version as "version!" from email_templates where is_active order by key"#)
                .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(asking.await?) }).await?;
        Ok(rows.into_iter().map(|row| (row.key, row.version)).collect())
    }

    /// The active version of every key.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn active_templates(&self) -> Result<Vec<StoredVersion>, StoreError> {
        Ok(sqlx::query_as!(
            StoredVersion,
            "select v.template_key as key, v.version, v.source from email_templates t
             join email_template_versions v on v.template_key = t.key and v.version = t.version
             where t.is_active order by t.key"
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// The version of this key that is active.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn active_template(&self, key: &str) -> Result<Option<StoredVersion>, StoreError> {
        let asking = sqlx::query_as!(
            StoredVersion,
            "select v.template_key as key, v.version, v.source from email_templates t
             join email_template_versions v on v.template_key = t.key and v.version = t.version
             where t.is_active and t.key = $1",
            key
        )
        .fetch_optional(&self.pool);
        within_limit(async { Ok(asking.await?) }).await
    }

    /// Key and checksum of every version that is kept.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_checksums(&self) -> Result<HashSet<(String, Vec<u8>)>, StoreError> {
        let asking = sqlx::query!("select template_key, checksum from email_template_versions").fetch_all(&self.pool);
        let rows = within_limit(async { Ok(asking.await?) }).await?;
        Ok(rows.into_iter().map(|row| (row.template_key, row.checksum)).collect())
    }

    /// The version that the first claim of a request fixed, if it has been seen before.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn fixed_version(&self, lane: Lane, request_id: Uuid) -> Result<Option<i32>, StoreError> {
        let row = sqlx::query_scalar!("select template_version from email_requests where id = $1", request_id)
            .fetch_optional(self.pool_of(lane))
            .await?;
        Ok(row.flatten())
    }

    /// One version, active or not.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_version(&self, key: &str, version: i32) -> Result<Option<StoredVersion>, StoreError> {
        Ok(sqlx::query_as!(
            StoredVersion,
            "select template_key as key, version, source from email_template_versions
             where template_key = $1 and version = $2",
            key,
            version
        )
        .fetch_optional(&self.pool)
        .await?)
    }

    /// The newest version, active or not.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn newest_template_version(&self, key: &str) -> Result<Option<StoredVersion>, StoreError> {
        let asking = sqlx::query_as!(
            StoredVersion,
            "select template_key as key, version, source from email_template_versions
             where template_key = $1 order by version desc limit 1",
            key
        )
        .fetch_optional(&self.pool);
        within_limit(async { Ok(asking.await?) }).await
    }
}
