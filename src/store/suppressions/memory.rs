//! Who may not get transactional mail, kept in memory for the fast lane: it is asked when the database cannot be.
//!
//! Invariant: only while the database is away does anybody decide by it; else the claim looks into the table itself.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
    noted: Mutex<Noted>,
}

/// Addresses that were refused since the list was loaded: apart from it, for it may be long.
#[derive(Debug, Default)]
struct Noted {
    since_load: HashSet<[u8; 32]>,
    /// Before it: a load that had begun by then may not have seen them.
    before_load: HashSet<[u8; 32]>,
}

impl Suppressed {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        // Sets are sound whoever panicked.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Whether this address was suppressed for transactional mail when the list was loaded last.
    #[must_use]
    pub fn was_suppressed(&self, address_hash: &[u8; 32], now: DateTime<Utc>) -> bool {
        let listed = self.suppressed.by_hash.load().get(address_hash).copied();
        if listed.is_some_and(|until| until.is_none_or(|until| until > now)) {
            return true;
        }
        let noted = self.suppressed.noted();
        noted.since_load.contains(address_hash) || noted.before_load.contains(address_hash)
    }

    /// Notes in memory only that these addresses get nothing more; the table has them with the outcome, the journal or the event.
    pub fn note_suppressed(&self, address_hashes: &[[u8; 32]]) {
        self.suppressed.noted().since_load.extend(address_hashes);
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
        let mut noted = self.suppressed.noted();
        noted.before_load = std::mem::take(&mut noted.since_load);
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
