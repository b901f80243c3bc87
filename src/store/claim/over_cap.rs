//! Whether a known mail that nobody has sent yet may go under its recipient's cap, and what becomes of it if not.
//!
//! Over places that may still be given back it waits; only over mails that are over the template's word counts. It counts no
//! attempt either way.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::readmit::timeline;
use crate::{
    email::{Cap, OverCap},
    store::{
        StoreError,
        caps::{self, Taken, Wanted},
    },
};

/// Tries to take a place that is free again each time somebody looks.
const TRIES_MAX: usize = 5;
/// How soon a mail is looked at again that found no place and nobody in the way.
const SOON: Duration = Duration::from_secs(1);

/// What a cap says to a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ruling {
    /// It has its place.
    Free,
    /// It is not sent.
    Dropped,
    /// It waits for this long.
    Waits {
        due_in: Duration,
        /// Until the next window, and not only until those in the way are over.
        is_deferred: bool,
    },
}

/// What becomes of a mail over these, decided without a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// For a place that may be given back.
    Behind(DateTime<Utc>),
    /// For the next window.
    Until(DateTime<Utc>),
    /// For nothing.
    Never,
}

/// Looks for a place for a mail, and writes down what becomes of it if there is none. `seen` is what its row says of an earlier
/// look.
pub(super) async fn judge(
    tx: &mut PgConnection,
    wanted: &Wanted<'_>,
    expires_at: Option<DateTime<Utc>>,
    seen: Option<&str>,
) -> Result<Ruling, StoreError> {
    let id = wanted.message_id;
    // Claimed before: put off by the relay, handed back, or resent.
    if caps::has_place(tx, id).await? {
        return Ok(Ruling::Free);
    }
    for _ in 0..TRIES_MAX {
        if !caps::take(tx, &[*wanted]).await?.is_empty() {
            return Ok(Ruling::Free);
        }
        // Unless one was given back between the two statements, or this daemon's clock is far off.
        if let Some(taken) = caps::look(tx, wanted).await?
            && taken.count >= i64::from(wanted.cap.most)
        {
            return rule(tx, wanted, &taken, expires_at, seen).await;
        }
    }
    Ok(Ruling::Waits { due_in: SOON, is_deferred: false })
}

async fn rule(
    tx: &mut PgConnection,
    wanted: &Wanted<'_>,
    taken: &Taken,
    expires_at: Option<DateTime<Utc>>,
    seen: Option<&str>,
) -> Result<Ruling, StoreError> {
    let (id, cap) = (wanted.message_id, wanted.cap.words());
    let (due_at, is_deferred, words) = match wait(taken, wanted.cap, expires_at) {
        Wait::Never => {
            limit_row(tx, id, &format!("over {cap}")).await?;
            return Ok(Ruling::Dropped);
        }
        Wait::Until(at) => (at, true, format!("over {cap}: it waits until it may go")),
        Wait::Behind(at) => (at, false, format!("a mail on its way may use up {cap}: it waits for that one's outcome")),
    };
    postpone_row(tx, id, due_at, &words).await?;
    // Behind others it may look often.
    if is_deferred || seen != Some(&words) {
        timeline(tx, id, "postponed", &words).await?;
    }
    Ok(Ruling::Waits { due_in: (due_at - taken.now).to_std().unwrap_or_default(), is_deferred })
}

/// The longer those in the way have been on their way, the longer it waits for them: an hour behind one that an operator has left
/// alone for an hour. Never past its own expiry, which is to be noticed when it comes.
fn wait(taken: &Taken, cap: &Cap, expires_at: Option<DateTime<Utc>>) -> Wait {
    let no_later = |at: DateTime<Utc>| expires_at.map_or(at, |expires_at| at.min(expires_at));
    match (taken.open_for, cap.over) {
        (Some(open_for), _) => Wait::Behind(no_later((taken.now + open_for.max(SOON)).min(taken.ends_at))),
        (None, OverCap::Defer) => Wait::Until(no_later(taken.ends_at)),
        (None, OverCap::Drop) => Wait::Never,
    }
}

/// Waits in its row, which nothing is owed for.
async fn postpone_row(tx: &mut PgConnection, id: Uuid, due_at: DateTime<Utc>, words: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update email_messages set status = 'queued', token = null, due_at = $2, postponed_until = $2, settlement = 'none',
            reason = null, error_message = $3, updated_at = now() where id = $1",
        id,
        due_at,
        words
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn limit_row(tx: &mut PgConnection, id: Uuid, words: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update email_messages set status = 'rate_limited', due_at = null, settlement = 'none', reason = null,
            error_message = $2, updated_at = now() where id = $1",
        id,
        words
    )
    .execute(&mut *tx)
    .await?;
    timeline(tx, id, "rate_limited", words).await
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::email::{RateLimit, TemplateKind};

    fn cap(over: OverCap) -> Cap {
        RateLimit::PerDay(1).cap(TemplateKind::Marketing, over, chrono_tz::UTC, Utc::now()).expect("a cap")
    }

    #[test]
    fn over_what_may_be_given_back_it_waits_and_over_what_is_sent_the_template_decides() {
        let now = Utc::now();
        let hour = TimeDelta::hours(1);
        let taken = |open_for: Option<u64>| Taken {
            count: 1,
            open_for: open_for.map(Duration::from_secs),
            ends_at: now + hour,
            now,
        };
        let (drop, defer) = (cap(OverCap::Drop), cap(OverCap::Defer));
        assert_eq!(wait(&taken(None), &drop, None), Wait::Never);
        assert_eq!(wait(&taken(None), &defer, None), Wait::Until(now + hour));
        for cap in [&drop, &defer] {
            assert_eq!(wait(&taken(Some(0)), cap, None), Wait::Behind(now + TimeDelta::seconds(1)));
            assert_eq!(wait(&taken(Some(600)), cap, None), Wait::Behind(now + TimeDelta::minutes(10)));
            assert_eq!(wait(&taken(Some(86_400)), cap, None), Wait::Behind(now + hour), "the next window is free");
        }
        let soon = now + TimeDelta::seconds(5);
        assert_eq!(wait(&taken(None), &defer, Some(soon)), Wait::Until(soon), "that it expired is told in time");
        assert_eq!(wait(&taken(Some(600)), &defer, Some(soon)), Wait::Behind(soon));
    }
}
