//! What operators have paused, and which daemons are alive.
//!
//! Invariant: a pause is written with its line in the change log, and told to all daemons, in one transaction.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{
    Store, StoreError,
    changes::{self, Change},
    told::{self, Topic},
    whole::Whole,
    within_limit,
};
use crate::email::{Lane, PerLane};

/// Longest note, in characters.
pub const NOTE_CHARS_MAX: usize = 500;

/// That an operator has paused a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanePause {
    /// Who: `operator:<name>`.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// Since when.
    pub at: DateTime<Utc>,
}

/// A daemon whose lease has not run out.
#[derive(Debug, Clone)]
pub struct DaemonRow {
    /// A new one at every start.
    pub id: Uuid,
    /// When.
    pub started_at: DateTime<Utc>,
    /// When it wrote its figures.
    pub reported_at: Option<DateTime<Utc>>,
    /// What it told of itself.
    pub figures: Option<Value>,
}

impl Store {
    /// Which lanes operators have paused.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn lane_pauses(&self) -> Result<PerLane<Option<LanePause>>, StoreError> {
        let rows = within_limit(async {
            let reading = sqlx::query!("select lane, paused_by, note, at from lane_pauses");
            Ok(reading.fetch_all(&self.pool).await?)
        })
        .await?;
        let mut pauses = PerLane::from_fn(|_| None);
        for row in rows {
            if let Some(lane) = Lane::from_name(&row.lane) {
                *pauses.get_mut(lane) = Some(LanePause { by: row.paused_by, note: row.note, at: row.at });
            }
        }
        Ok(pauses)
    }

    /// Pauses a lane for all daemons. Answers the pause, and whether it is new: one that was paused before stays as it is.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pause_lane(&self, lane: Lane, by: &str, note: Option<&str>) -> Result<(LanePause, bool), StoreError> {
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let mut tx = whole.connection().begin().await?;
            // Changing nothing locks the row, so that the answer is what stands.
            let row = sqlx::query!(
                r#"insert into lane_pauses (lane, paused_by, note) values ($1, left($2, 100), left($3, 500))
                   on conflict (lane) do update set lane = excluded.lane
                   returning paused_by, note, at, (xmax = 0) as "is_new!""#,
                lane.name(),
                by,
                note
            )
            .fetch_one(&mut *tx)
            .await?;
            if row.is_new {
                let after = json!({ "paused": true, "note": row.note });
                note_change(&mut tx, lane, by, "lane.pause", json!({ "paused": false }), after).await?;
            }
            tx.commit().await?;
            whole.end();
            Ok((LanePause { by: row.paused_by, note: row.note, at: row.at }, row.is_new))
        })
        .await
    }

    /// Lets a lane go on, at all daemons. Answers the pause that is over; nothing: there was none.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn resume_lane(&self, lane: Lane, by: &str, note: Option<&str>) -> Result<Option<LanePause>, StoreError> {
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let mut tx = whole.connection().begin().await?;
            let row =
                sqlx::query!("delete from lane_pauses where lane = $1 returning paused_by, note, at", lane.name())
                    .fetch_optional(&mut *tx)
                    .await?;
            if let Some(row) = &row {
                let before = json!({ "paused": true, "by": row.paused_by, "note": row.note });
                note_change(&mut tx, lane, by, "lane.resume", before, json!({ "paused": false, "note": note })).await?;
            }
            tx.commit().await?;
            whole.end();
            Ok(row.map(|row| LanePause { by: row.paused_by, note: row.note, at: row.at }))
        })
        .await
    }

    /// The daemons that are alive, those that started first first.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn live_daemons(&self) -> Result<Vec<DaemonRow>, StoreError> {
        within_limit(async {
            let reading = sqlx::query_as!(
                DaemonRow,
                "select id, started_at, reported_at, figures from email_workers where lease_until > now()
                 order by started_at, id"
            );
            Ok(reading.fetch_all(&self.pool).await?)
        })
        .await
    }
}

async fn note_change(
    tx: &mut PgConnection,
    lane: Lane,
    by: &str,
    action: &str,
    before: Value,
    after: Value,
) -> Result<(), StoreError> {
    let change = Change { by, action, target: lane.name(), before: Some(before), after: Some(after) };
    changes::record(tx, &change).await?;
    told::tell(tx, Topic::Lanes).await
}
