//! Attachment bytes, once by SHA-256: in the database, or as objects elsewhere that a row names.
//!
//! Invariant: bytes are safe before the row that speaks for them is committed, and a row goes before its object does. What no
//! row speaks for is in `attachment_objects_due` from before it is written until it is deleted, so that no crash leaves bytes
//! behind that nobody knows of.
//! Invariant: bytes that somebody asked for within `UNUSED_AFTER` are not deleted, referred to or not: the mail that is about
//! to refer to them finds them.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::Connection;
use uuid::Uuid;

use super::{Store, StoreError, limit_of, whole::Whole, within, within_limit};
use crate::{
    email::Lane,
    objects::{ShelfError, Wanted},
};

/// Bytes that nothing refers to are deleted when nobody needed them for this long: far longer than any delivery is held
/// between keeping its files and writing its rows.
pub const UNUSED_AFTER: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// Stores these bytes unless they are there already. Done before the claim, so that no mail is on its way whose
    /// attachment the audit does not have.
    ///
    /// # Errors
    /// When the database is away; [`StoreError::Shelf`] when the place of the bytes is. An incident's are then kept in the
    /// database, whatever the setting.
    pub async fn keep_attachment(&self, lane: Lane, sha256: &[u8; 32], bytes: &Bytes) -> Result<(), StoreError> {
        // Asking first spares ten megabytes on the wire for what is sent to many.
        if within(limit_of(lane), self.touch(lane, sha256)).await? {
            return Ok(());
        }
        let Some(location) = self.objects.new_location(sha256) else {
            return within(limit_of(lane), self.insert_bytes(lane, sha256, bytes)).await;
        };
        match self.keep_object(lane, sha256, bytes, &location).await {
            Err(StoreError::Shelf(error)) if lane == Lane::Fast => {
                tracing::warn!(%error, "an incident's attachment is kept in the database instead");
                within(limit_of(lane), self.insert_bytes(lane, sha256, bytes)).await
            }
            kept => kept,
        }
    }

    /// The bytes of this hash, wherever they lie. Nothing: they are not kept.
    ///
    /// # Errors
    /// When the database is away; [`StoreError::Shelf`] when the place of the bytes is, or lost them.
    pub async fn attachment(&self, lane: Lane, sha256: &[u8; 32]) -> Result<Option<Bytes>, StoreError> {
        let asking = sqlx::query!(
            "select size_bytes, data, location from attachment_blobs where sha256 = $1",
            sha256.as_slice()
        )
        .fetch_optional(self.pool_of(lane));
        let Some(row) = within(limit_of(lane), async { Ok(asking.await?) }).await? else { return Ok(None) };
        match (row.data, row.location) {
            (Some(data), _) => Ok(Some(data.into())),
            (None, Some(location)) => {
                let wanted = Wanted { size_bytes: u64::try_from(row.size_bytes).unwrap_or_default(), sha256 };
                let found = self.objects.get(&location, wanted).await?;
                Ok(Some(found.ok_or_else(ShelfError::lost)?))
            }
            (None, None) => Ok(None),
        }
    }

    /// Whether a mail of this request has this file: what sends a recorded mail again refers to its own files only.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn has_attachment(&self, lane: Lane, request: Uuid, sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let asking = sqlx::query_scalar!(
            r#"select exists (select from email_attachments a join email_messages m on m.id = a.message_id
                where m.request_id = $1 and a.sha256 = $2) as "has!""#,
            request,
            sha256.as_slice()
        )
        .fetch_one(self.pool_of(lane));
        within(limit_of(lane), async { Ok(asking.await?) }).await
    }

    /// Deletes objects that no row speaks for any more: of files that retention has deleted, and of writers that never came back.
    /// Row first, object after; what is in between is owed, so that a crash leaves nothing behind that nobody knows of.
    ///
    /// Answers how many there were: as many as `limit`, and there may be more. An object store that is away is told in the log,
    /// and what is owed stays so.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn delete_due_objects(&self, now: DateTime<Utc>, limit: i64) -> Result<i64, StoreError> {
        let asking = sqlx::query_scalar!(
            "select location from attachment_objects_due where due_at <= $1 order by due_at limit $2",
            now,
            limit
        )
        .fetch_all(&self.pool);
        let due = within_limit(async { Ok(asking.await?) }).await?;
        let mut deleted = 0;
        for location in due {
            if let Err(error) = self.objects.delete(&location).await {
                tracing::warn!(%error, "attachments that nothing refers to cannot be deleted yet");
                break;
            }
            let forgetting =
                sqlx::query!("delete from attachment_objects_due where location = $1 and due_at <= $2", location, now)
                    .execute(&self.pool);
            within_limit(async { Ok(forgetting.await?) }).await?;
            deleted += 1;
        }
        Ok(deleted)
    }

    /// Whether the bytes are there, which somebody needs now. Not at each mail: an hour more or less does not matter.
    async fn touch(&self, lane: Lane, sha256: &[u8; 32]) -> Result<bool, StoreError> {
        let known = sqlx::query_scalar!(
            r#"with touched as (
                update attachment_blobs set used_at = now()
                where sha256 = $1 and used_at < now() - interval '1 hour' returning sha256)
            select exists (select from touched)
                or exists (select from attachment_blobs where sha256 = $1 and used_at >= now() - interval '1 hour') as "known!""#,
            sha256.as_slice()
        )
        .fetch_one(self.pool_of(lane))
        .await?;
        Ok(known)
    }

    async fn insert_bytes(&self, lane: Lane, sha256: &[u8; 32], bytes: &[u8]) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into attachment_blobs (sha256, size_bytes, data) values ($1, $2, $3) on conflict do nothing",
            sha256.as_slice(),
            i32::try_from(bytes.len()).unwrap_or(i32::MAX),
            bytes
        )
        .execute(self.pool_of(lane))
        .await?;
        Ok(())
    }

    async fn keep_object(
        &self,
        lane: Lane,
        sha256: &[u8; 32],
        bytes: &Bytes,
        location: &str,
    ) -> Result<(), StoreError> {
        let intending = sqlx::query!(
            "insert into attachment_objects_due (location, due_at) values ($1, now() + make_interval(secs => $2))",
            location,
            UNUSED_AFTER.as_secs_f64()
        )
        .execute(self.pool_of(lane));
        within(limit_of(lane), async { Ok(intending.await?) }).await?;
        self.objects.put(location, bytes.clone()).await?;
        within(limit_of(lane), self.speak_for(lane, sha256, bytes.len(), location)).await
    }

    /// The row of an object that is safe. Where another writer was faster, its object is the one, and ours is due.
    async fn speak_for(&self, lane: Lane, sha256: &[u8; 32], size: usize, location: &str) -> Result<(), StoreError> {
        let mut whole = Whole::of(self.pool_of(lane)).await?;
        let mut tx = whole.connection().begin().await?;
        let inserted = sqlx::query!(
            "insert into attachment_blobs (sha256, size_bytes, location)
             select $1, $2, location from attachment_objects_due where location = $3 for update
             on conflict do nothing",
            sha256.as_slice(),
            i32::try_from(size).unwrap_or(i32::MAX),
            location
        )
        .execute(&mut *tx)
        .await?;
        let is_ours = inserted.rows_affected() > 0;
        let noting = if is_ours {
            sqlx::query!("delete from attachment_objects_due where location = $1", location)
        } else {
            sqlx::query!("update attachment_objects_due set due_at = now() where location = $1", location)
        };
        noting.execute(&mut *tx).await?;
        tx.commit().await?;
        whole.end();
        if is_ours || self.touch(lane, sha256).await? { Ok(()) } else { Err(ShelfError::overtaken().into()) }
    }
}
