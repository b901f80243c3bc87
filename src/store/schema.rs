//! Whether the database is as this version needs it: its tables, and the key of its hashes.

use super::{Store, StoreError};

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

impl Store {
    /// Brings the schema up to date.
    ///
    /// # Errors
    /// When the database is away or a migration fails; what was applied before it stays.
    pub async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        MIGRATOR.run(&self.pool).await
    }

    /// The migrations that the database still lacks, by their descriptions.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn migrations_missing(&self) -> Result<Vec<String>, StoreError> {
        let present = sqlx::query_scalar::<_, bool>("select to_regclass('_sqlx_migrations') is not null")
            .fetch_one(&self.pool)
            .await?;
        let applied: Vec<i64> = if present {
            sqlx::query_scalar("select version from _sqlx_migrations where success").fetch_all(&self.pool).await?
        } else {
            Vec::new()
        };
        Ok(MIGRATOR
            .iter()
            .filter(|m| !m.migration_type.is_down_migration() && !applied.contains(&m.version))
            .map(|m| format!("{:04} {}", m.version, m.description))
            .collect())
    }

    /// Makes sure that `EMAIL_HASH_KEY` is the one that this database's hashes were made with.
    ///
    /// With another key every known address would look new, and every request could be sent again.
    ///
    /// # Errors
    /// When the key is another one, or the database is away.
    pub async fn verify_hash_key(&self) -> Result<(), StoreError> {
        let fingerprint = hex::encode(&self.address_hash("the fingerprint of EMAIL_HASH_KEY")[..16]);
        sqlx::query!(
            "insert into store_facts (name, value) values ('hash_key_fingerprint', $1) on conflict (name) do nothing",
            fingerprint
        )
        .execute(&self.pool)
        .await?;
        let known = sqlx::query_scalar!("select value from store_facts where name = 'hash_key_fingerprint'")
            .fetch_one(&self.pool)
            .await?;
        if known == fingerprint { Ok(()) } else { Err(StoreError::HashKeyChanged) }
    }
}
