//! Template versions: every one is kept, one a key is active.

use chrono::{DateTime, Utc};
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

/// What the original's columns show of the active version.
#[derive(Debug, Clone)]
pub struct TemplateHead {
    /// Which template.
    pub key: String,
    /// Subject's source.
    pub subject: String,
    /// HTML part's source.
    pub html: String,
    /// Text part's source.
    pub text: String,
    /// Must be there.
    pub required_variables: Vec<String>,
    /// Whether it takes attachments at all.
    pub attachments_allowed: bool,
    /// billing, incident ...
    pub category: String,
}

/// A template in a list.
#[derive(Debug, Clone)]
pub struct ActiveTemplate {
    /// Which template.
    pub key: String,
    /// Subject's source.
    pub subject: String,
    /// billing, incident ...
    pub category: String,
    /// The active version.
    pub version: i32,
    /// When it became active.
    pub updated_at: DateTime<Utc>,
}

/// What adding a version did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// The key was new: this is its first version, and active.
    First,
    /// The newest version has the same content already.
    Same(i32),
    /// A new version that is not active.
    Draft(i32),
    /// A new version, active from now on.
    Activated(i32),
}

impl Store {
    /// Adds a version unless the newest one is the same. A first version is active; another one only with `activate`.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn add_template(
        &self,
        head: &TemplateHead,
        source: &Value,
        checksum: &[u8; 32],
        activate: bool,
    ) -> Result<Added, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Two daemons that start at once must not both add version 1.
        sqlx::query!("select pg_advisory_xact_lock(hashtextextended('postrider template ' || $1, 0))", head.key)
            .execute(&mut *tx)
            .await?;
        let newest = sqlx::query!(
            "select version, checksum from email_template_versions where template_key = $1 order by version desc limit 1",
            head.key
        )
        .fetch_optional(&mut *tx)
        .await?;
        let active = sqlx::query_scalar!("select version from email_templates where key = $1 and is_active", head.key)
            .fetch_optional(&mut *tx)
            .await?;
        let same = newest.as_ref().filter(|n| n.checksum == checksum).map(|n| n.version);
        let version = match same {
            Some(version) if active == Some(version) || !activate => return Ok(Added::Same(version)),
            Some(version) => version,
            None => {
                let version = newest.as_ref().map_or(0, |n| n.version) + 1;
                sqlx::query!(
                    "insert into email_template_versions (id, template_key, version, source, checksum)
                     values ($1, $2, $3, $4, $5)",
                    Uuid::now_v7(),
                    head.key,
                    version,
                    source,
                    checksum.as_slice()
                )
                .execute(&mut *tx)
                .await?;
                version
            }
        };
        let added = match (newest, activate) {
            (None, _) => Added::First,
            (Some(_), true) => Added::Activated(version),
            (Some(_), false) => Added::Draft(version),
        };
        if !matches!(added, Added::Draft(_)) {
            sqlx::query!(
                "insert into email_templates (id, key, subject, html_content, text_content, required_variables,
                    attachments_allowed, category, version)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                 on conflict (key) do update set subject = excluded.subject, html_content = excluded.html_content,
                    text_content = excluded.text_content, required_variables = excluded.required_variables,
                    attachments_allowed = excluded.attachments_allowed, category = excluded.category,
                    version = excluded.version, is_active = true, updated_at = now()",
                Uuid::now_v7(),
                head.key,
                head.subject,
                head.html,
                head.text,
                &head.required_variables,
                head.attachments_allowed,
                head.category,
                version
            )
            .execute(&mut *tx)
            .await?;
            sqlx::query!("update template_generation set generation = generation + 1").execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(added)
    }

    /// What a list of templates shows: the active ones, by key.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_heads(&self) -> Result<Vec<ActiveTemplate>, StoreError> {
        Ok(sqlx::query_as!(
            ActiveTemplate,
            r#"select key, subject, category as "category!", version as "version!", updated_at
               from email_templates where is_active order by key"#
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// Rises with every activation.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_generation(&self) -> Result<i64, StoreError> {
        let asking = sqlx::query_scalar!("select generation from template_generation").fetch_one(&self.pool);
        within_limit(async { Ok(asking.await?) }).await
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
}
