//! Who may not get transactional mail, kept in memory for the fast lane: it is asked when the database cannot be.
//!
//! Invariant: only while the database is away does anybody decide by it; else the claim looks into the table itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError, within_limit};

/// How old what is in memory may be.
const REFRESH: Duration = Duration::from_secs(30);

/// Hash of an address, and until when it is suppressed; nothing: for ever.
type ByHash = HashMap<[u8; 32], Option<DateTime<Utc>>>;

#[derive(Debug, Default)]
pub(in crate::store) struct Suppressed {
    by_hash: ArcSwap<ByHash>,
}

impl Store {
    /// Whether this address was suppressed for transactional mail when the list was loaded last.
    #[must_use]
    pub fn was_suppressed(&self, address_hash: &[u8; 32], now: DateTime<Utc>) -> bool {
        self.suppressed.by_hash.load().get(address_hash).is_some_and(|until| until.is_none_or(|until| until > now))
    }

    /// Notes in memory only that these addresses get nothing more; the table has them with the outcome, the journal or the event.
    pub fn note_suppressed(&self, address_hashes: &[[u8; 32]]) {
        let known = self.suppressed.by_hash.load();
        if address_hashes.iter().all(|hash| known.get(hash).is_some_and(Option::is_none)) {
            return;
        }
        self.suppressed.by_hash.rcu(|known| {
            let mut more = ByHash::clone(known);
            more.extend(address_hashes.iter().map(|hash| (*hash, None)));
            more
        });
    }

    /// Loads the list anew.
    ///
    /// # Errors
    /// When the database is away; the list stays as it is.
    pub async fn load_suppressions(&self) -> Result<(), StoreError> {
        let loading = sqlx::query!(
            r#"select address_hash as "address_hash!",
                case when bool_or(expires_at is null) then null else max(expires_at) end as until
               from suppressions
               where reason in ('hard_bounce', 'complaint') and (expires_at is null or expires_at > now())
               group by address_hash"#
        )
        .fetch_all(&self.pool);
        let rows = within_limit(async { Ok(loading.await?) }).await?;
        let by_hash = rows.into_iter().filter_map(|row| Some((row.address_hash.try_into().ok()?, row.until)));
        self.suppressed.by_hash.store(Arc::new(by_hash.collect()));
        Ok(())
    }

    /// Keeps the list fresh until `stop`.
    pub async fn follow_suppressions(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(REFRESH) => {} }
            if self.is_up()
                && let Err(error) = self.load_suppressions().await
            {
                tracing::warn!(%error, "could not load the suppression list; the last one stays");
            }
        }
    }
}
