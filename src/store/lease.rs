//! This daemon's lease: one row that says "still here", renewed while the daemon runs.
//!
//! A mail in `sending` belongs to its daemon for as long as that row's `lease_until`, on the database's clock, lies ahead.
//! Invariant: the daemon's own clock is only asked how long ago it last *began* to renew, so it never believes in a lease
//! longer than the database does.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Store, StoreError, within_limit};

/// Figures that are shown of another daemon are this old at most.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What this daemon knows of its own lease.
pub(super) struct Lease {
    length: Duration,
    good_until: Mutex<Option<Instant>>,
}

impl Lease {
    pub(super) const fn new(length: Duration) -> Self {
        Self { length, good_until: Mutex::new(None) }
    }
}

impl Store {
    /// Whether this daemon may begin a transaction: its lease is good for at least a third of its length.
    #[must_use]
    pub fn lease_is_good(&self) -> bool {
        let good_until = *self.lease.good_until.lock().unwrap_or_else(PoisonError::into_inner);
        good_until.is_some_and(|until| until > Instant::now() + self.lease.length / 3)
    }

    /// Renews the lease once.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn renew_lease(&self) -> Result<(), StoreError> {
        self.renew_with(None).await
    }

    /// The same, and writes down what this daemon tells of itself, if it does.
    async fn renew_with(&self, figures: Option<Value>) -> Result<(), StoreError> {
        let began = Instant::now();
        let seconds = self.lease.length.as_secs_f64();
        // The fast lane's connections: renewing must not queue behind a flood of other lanes' work.
        let renewing = sqlx::query!(
            "insert into email_workers (id, lease_until, figures, reported_at)
             values ($1, now() + make_interval(secs => $2), $3, case when $3::json is not null then now() end)
             on conflict (id) do update set lease_until = excluded.lease_until,
                figures = coalesce(excluded.figures, email_workers.figures),
                reported_at = coalesce(excluded.reported_at, email_workers.reported_at)",
            self.worker_id,
            seconds,
            figures
        )
        .execute(&self.fast_pool);
        within_limit(async { Ok(renewing.await?) }).await?;
        *self.lease.good_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(began + self.lease.length);
        Ok(())
    }

    /// Renews the lease four times in its length or more often, until `stop`; then gives it up, so that nobody waits for it.
    /// What `figures` answers goes with it, for whoever asks how all daemons fare.
    pub async fn keep_lease(self: Arc<Self>, figures: impl Fn() -> Value + Send, stop: CancellationToken) {
        let pause = (self.lease.length / 4).min(REPORT_EVERY);
        loop {
            if let Err(error) = self.renew_with(Some(figures())).await {
                tracing::warn!(%error, "could not renew the lease");
                if error.is_away() {
                    self.note_away(&error);
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        // Rows of workers that are long gone are of no use to anybody: the row missing means the same as a lease run out.
        let tidied = sqlx::query!(
            "delete from email_workers where id = $1 or lease_until < now() - interval '1 day'",
            self.worker_id
        )
        .execute(&self.fast_pool)
        .await;
        if let Err(error) = tidied {
            tracing::debug!(%error, "could not give the lease up; it runs out by itself");
        }
    }
}
