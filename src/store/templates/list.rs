//! Which templates and versions there are, and which of them were sent when.

use chrono::{DateTime, Utc};

use crate::store::{Store, StoreError, within_limit};

/// A template in a list.
#[derive(Debug, Clone)]
pub struct TemplateLine {
    /// Which template.
    pub key: String,
    /// Subject's source: of the active version, else of the newest.
    pub subject: String,
    /// The manifest's source of the same version.
    pub manifest_toml: String,
    /// The active version.
    pub active: Option<i32>,
    /// The newest version.
    pub newest: i32,
    /// When another version became active, or none; before the first activation, when the newest was saved.
    pub updated_at: DateTime<Utc>,
}

/// Where a version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// New mails get it.
    Active,
    /// It was active once.
    Former,
    /// It never was.
    Draft,
}

/// One version in a list.
#[derive(Debug, Clone)]
pub struct VersionLine {
    /// Which.
    pub version: i32,
    /// Who saved it; nothing: it came with a folder when a daemon started.
    pub created_by: Option<String>,
    /// When it was saved.
    pub created_at: DateTime<Utc>,
    /// SHA-256 over the content.
    pub checksum: Vec<u8>,
    /// Where it stands.
    pub state: VersionState,
    /// When it last became active.
    pub activated_at: Option<DateTime<Utc>>,
    /// And who made it so.
    pub activated_by: Option<String>,
}

/// A page of versions, newest first.
#[derive(Debug, Clone)]
pub struct VersionPage {
    /// The versions.
    pub items: Vec<VersionLine>,
    /// How many there are in all.
    pub total: i64,
    /// The next page's `before`; nothing: this was the last.
    pub next: Option<i32>,
}

struct Row {
    version: i32,
    created_by: Option<String>,
    created_at: DateTime<Utc>,
    checksum: Vec<u8>,
    is_active: bool,
    activated_at: Option<DateTime<Utc>>,
    activated_by: Option<String>,
}

impl From<Row> for VersionLine {
    fn from(row: Row) -> Self {
        let state = match (row.is_active, row.activated_at) {
            (true, _) => VersionState::Active,
            (false, Some(_)) => VersionState::Former,
            (false, None) => VersionState::Draft,
        };
        Self {
            version: row.version,
            created_by: row.created_by,
            created_at: row.created_at,
            checksum: row.checksum,
            state,
            activated_at: row.activated_at,
            activated_by: row.activated_by,
        }
    }
}

impl Store {
    /// Every template, active or not, by key.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_lines(&self) -> Result<Vec<TemplateLine>, StoreError> {
        let asking = sqlx::query_as!(
            TemplateLine,
            r#"select n.template_key as "key!", v.source ->> 'subject' as "subject!",
                v.source ->> 'manifest_toml' as "manifest_toml!", t.version as "active?", n.newest as "newest!",
                coalesce(a.at, v.created_at) as "updated_at!"
               from (select template_key, max(version) as newest from email_template_versions group by template_key) n
               left join email_templates t on t.key = n.template_key and t.is_active
               join email_template_versions v on v.template_key = n.template_key
                and v.version = coalesce(t.version, n.newest)
               left join lateral (select at from email_template_activations where template_key = n.template_key
                order by id desc limit 1) a on true
               order by n.template_key"#
        )
        .fetch_all(&self.pool);
        within_limit(async { Ok(asking.await?) }).await
    }

    /// The versions of a template, newest first; `before` is an earlier page's `next`.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_versions(
        &self,
        key: &str,
        before: Option<i32>,
        limit: i64,
    ) -> Result<VersionPage, StoreError> {
        within_limit(async {
            let mut rows = self.version_rows(key, before, None, limit + 1).await?;
            let limit = usize::try_from(limit).unwrap_or_default();
            let has_more = rows.len() > limit;
            rows.truncate(limit);
            let total = sqlx::query_scalar!(
                r#"select count(*) as "count!" from email_template_versions where template_key = $1"#,
                key
            )
            .fetch_one(&self.pool)
            .await?;
            Ok(VersionPage {
                next: rows.last().map(|row| row.version).filter(|_| has_more),
                items: rows.into_iter().map(VersionLine::from).collect(),
                total,
            })
        })
        .await
    }

    /// One version as a list shows it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn template_version_line(&self, key: &str, version: i32) -> Result<Option<VersionLine>, StoreError> {
        let rows = within_limit(self.version_rows(key, None, Some(version), 1)).await?;
        Ok(rows.into_iter().next().map(VersionLine::from))
    }

    async fn version_rows(
        &self,
        key: &str,
        before: Option<i32>,
        only: Option<i32>,
        limit: i64,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(sqlx::query_as!(
            Row,
            r#"select v.version, o.name as "created_by?", v.created_at, v.checksum,
                (t.key is not null) as "is_active!", a.at as "activated_at?", a.activated_by as "activated_by?"
               from email_template_versions v
               left join operators o on o.id = v.created_by
               left join email_templates t on t.key = v.template_key and t.version = v.version and t.is_active
               left join lateral (select at, activated_by from email_template_activations
                where template_key = v.template_key and version = v.version order by id desc limit 1) a on true
               where v.template_key = $1 and ($2::int is null or v.version < $2) and ($3::int is null or v.version = $3)
               order by v.version desc limit $4"#,
            key,
            before,
            only,
            limit
        )
        .fetch_all(&self.pool)
        .await?)
    }
}
