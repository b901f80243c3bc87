//! Calls to a store that may be away.

use std::time::Duration;

use super::{Halt, Pipeline};
use crate::store::StoreError;

/// How long the store may take for what is not a batch: a host that lost its power sends no farewell.
const ANSWER_MAX: Duration = Duration::from_secs(20);

impl Pipeline {
    /// A call to the store, before anything was sent: what cannot be asked now is given up.
    pub(super) async fn patiently<T, F, Fut>(&self, call: F) -> Result<T, Halt>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        loop {
            let answer = tokio::time::timeout(ANSWER_MAX, call()).await;
            match answer.unwrap_or_else(|_| Err(StoreError::silent(ANSWER_MAX))) {
                Ok(value) => return Ok(value),
                Err(error) if error.is_away() => {
                    self.store.note_away(&error);
                    return Err(Halt::Away);
                }
                Err(StoreError::Repeat(_)) => {}
                Err(error) => {
                    tracing::error!(%error, "the store refuses");
                    return Err(Halt::Refused(error.to_string()));
                }
            }
        }
    }

    /// A call to the store, after something was sent or published: it is repeated for as long as it takes. Nothing: the
    /// daemon stops, or the call will never work.
    pub(super) async fn persistently<T, F, Fut>(&self, call: F) -> Option<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        loop {
            match self.patiently(&call).await {
                Ok(value) => return Some(value),
                Err(Halt::Refused(_) | Halt::Stopped) => return None,
                Err(Halt::Away) => tokio::select! {
                    () = self.stop.cancelled() => return None,
                    () = self.store.wait_until_back() => {}
                },
            }
        }
    }
}
