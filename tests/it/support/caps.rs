use chrono::{DateTime, Timelike, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use super::{database::Database, wait::until};

/// A place under a cap.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Place {
    pub kind: String,
    pub window_start: DateTime<Utc>,
    pub slot: i32,
    pub message_id: Uuid,
}

/// A time zone in which it is about noon: no test of a day runs over midnight, none of a week over Sunday's.
pub fn noon_zone() -> String {
    match 12 - i32::try_from(Utc::now().hour()).expect("an hour") {
        0 => "Etc/UTC".to_owned(),
        // What is east of Greenwich is called minus there.
        ahead if ahead > 0 => format!("Etc/GMT-{ahead}"),
        behind => format!("Etc/GMT+{}", -behind),
    }
}

impl Database {
    /// All places, the oldest first.
    pub async fn places(&self) -> Vec<Place> {
        sqlx::query_as("select kind, window_start, slot, message_id from rate_reservations order by created_at, slot")
            .fetch_all(&self.pool)
            .await
            .expect("the table answers")
    }

    /// Lets this many days pass: what was taken was taken so long ago, and what waited for the next window waits no more.
    pub async fn let_days_pass(&self, days: i32) {
        for statement in [
            "update rate_reservations set window_start = window_start - make_interval(days => $1),
                created_at = created_at - make_interval(days => $1)",
            "update email_messages set due_at = now(), postponed_until = now()
             where status = 'queued' and postponed_until is not null and $1 > 0",
        ] {
            sqlx::query(statement).bind(days).execute(&self.pool).await.expect("moved");
        }
    }

    /// Until when a mail waits.
    pub async fn due_at(&self, request: Uuid) -> Option<DateTime<Utc>> {
        let due: Vec<Option<DateTime<Utc>>> =
            sqlx::query_scalar("select due_at from email_messages where request_id = $1 and status = 'queued'")
                .bind(request)
                .fetch_all(&self.pool)
                .await
                .expect("the audit answers");
        due.into_iter().flatten().next()
    }

    /// Waits until a request waits with these words.
    pub async fn wait_until_postponed(&self, request: Uuid, words: &str) {
        until(&format!("{request} waits: {words}"), async || {
            let rows = self.rows(request).await;
            rows.iter().any(|row| {
                row.status == "queued" && row.error_message.as_deref().is_some_and(|error| error.contains(words))
            })
        })
        .await;
    }
}
