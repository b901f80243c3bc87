//! What the service manager (systemd, `Type=notify`) is told: that mail is carried, why not, that the daemon lives, that it stops.
//!
//! Without `NOTIFY_SOCKET` in the environment nobody listens, and nothing is told.
//!
//! Invariant: READY is said once, when every lane consumes (or an operator has paused it).
//! Invariant: the watchdog is fed only while the runtime, the admin listener and the loop that renews the lease go round. That
//! broker, database or relay are away is no reason to starve it: a restart would mend nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::ConsumerState,
    email::Lane,
    http::{
        self, Admin,
        probe::{OwnListener, probe},
    },
};

/// How often the state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The watchdog is fed this many times in its period, so that one late feed is no death.
const FEEDS: u32 = 3;
/// How long our own admin listener may take to answer: it does in microseconds, unless nothing goes on any more.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Renewing a lease has its own time limits, a third of this in all.
const LEASE_LOOP_MAX: Duration = Duration::from_secs(90);

/// When a loop of the daemon went round last.
#[derive(Debug, Default)]
pub struct Beat(Mutex<Option<Instant>>);

impl Beat {
    /// It goes round.
    pub fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long it has not; nothing: it has not begun.
    fn age(&self, now: Instant) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| now.duration_since(last))
    }
}

/// Whether somebody listens.
#[must_use]
pub fn is_listening() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Says that the daemon stops.
pub fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("finishing what has reached a relay")]);
}

/// Tells how the daemon fares, until `end`.
pub async fn tell(
    admin: Arc<Admin>,
    own: OwnListener,
    lease: Arc<Beat>,
    stop: CancellationToken,
    end: CancellationToken,
) {
    let feed_every = sd_notify::watchdog_enabled().map(|period| period / FEEDS);
    let mut fed: Option<Instant> = None;
    let mut said_ready = false;
    let mut status = String::new();
    loop {
        if !stop.is_cancelled() {
            if !said_ready && carries_mail(&admin) {
                say(&[NotifyState::Ready]);
                said_ready = true;
            }
            let now = status_of(&admin);
            if now != status {
                say(&[NotifyState::Status(&now)]);
                status = now;
            }
        }
        if let Some(every) = feed_every
            && fed.is_none_or(|at| at.elapsed() >= every)
        {
            match alive(own, &lease).await {
                Ok(()) => say(&[NotifyState::Watchdog]),
                Err(why) => tracing::error!(why, "the watchdog is not fed"),
            }
            fed = Some(Instant::now());
        }
        let pause = feed_every.map_or(LOOK_EVERY, |every| every.min(LOOK_EVERY));
        tokio::select! { () = end.cancelled() => return, () = tokio::time::sleep(pause) => {} }
    }
}

fn carries_mail(admin: &Admin) -> bool {
    let paused = admin.pauses.by_operator();
    admin.starting.borrow().is_none()
        && Lane::ALL.into_iter().all(|lane| match *admin.lanes.get(lane).borrow() {
            ConsumerState::Consuming => true,
            ConsumerState::Paused(_) => paused.get(lane).is_some(),
            ConsumerState::Starting | ConsumerState::Lost(_) | ConsumerState::Stopped => false,
        })
}

/// One line for `systemctl status`.
fn status_of(admin: &Admin) -> String {
    let reasons = http::reasons(admin, &admin.relays.health());
    match reasons.as_slice() {
        [] => "carrying mail".to_owned(),
        // A line end would begin another assignment.
        reasons => format!("not ready: {}", reasons.join("; ").replace(['\n', '\r'], " ")),
    }
}

/// Whether the daemon goes round, or which part of it does not.
async fn alive(own: OwnListener, lease: &Beat) -> Result<(), String> {
    if let Some(why) = stuck(lease.age(Instant::now())) {
        return Err(why);
    }
    match probe(own, "/livez", ANSWER_MAX).await {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((status, _)) => Err(format!("the admin listener answers {status}")),
        Err(error) => Err(format!("the admin listener: {error}")),
    }
}

fn stuck(lease: Option<Duration>) -> Option<String> {
    let age = lease.filter(|age| *age > LEASE_LOOP_MAX)?;
    Some(format!("the loop that renews the lease has not gone round for {} s", age.as_secs()))
}

fn say(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_no_longer_goes_round_starves_the_watchdog_and_one_that_has_not_begun_does_not() {
        let beat = Beat::default();
        assert_eq!(stuck(beat.age(Instant::now())), None, "the database is still waited for");
        beat.now();
        let now = Instant::now();
        assert_eq!(stuck(beat.age(now)), None);
        let why = stuck(beat.age(now + LEASE_LOOP_MAX + Duration::from_secs(2))).expect("it is stuck");
        assert!(why.contains("the lease") && why.contains("9"), "{why}");
    }
}
