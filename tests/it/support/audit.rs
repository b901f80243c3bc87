use std::{fmt::Write, time::Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::FromRow;
use uuid::Uuid;

use super::{
    database::Database,
    wait::{PAUSE, WAIT_MAX, until},
};

/// One mail, as the audit has it.
#[derive(Debug, Clone, FromRow)]
pub struct Row {
    pub id: Uuid,
    pub request_id: Uuid,
    pub recipient_email: String,
    pub subject: Option<String>,
    pub status: String,
    pub attempts: i32,
    pub reason: Option<String>,
    pub error_message: Option<String>,
    pub settlement: String,
    pub held: bool,
    pub message_id: String,
    pub template_version: Option<i32>,
    pub sent_at: Option<DateTime<Utc>>,
    pub lane: String,
    pub latency_ms: Option<i64>,
}

/// One line of a mail's timeline.
#[derive(Debug, Clone, FromRow)]
pub struct Line {
    pub kind: String,
    pub attempt: i32,
    pub reply_code: Option<i16>,
    pub phase: Option<String>,
    pub error: Option<String>,
}

/// One dead letter.
#[derive(Debug, Clone, FromRow)]
pub struct Letter {
    pub id: Uuid,
    pub reason: String,
    pub error: Option<String>,
    pub request_id: Option<Uuid>,
    pub template_key: Option<String>,
    pub source: Option<String>,
    pub lane: Option<String>,
    pub attempts: Option<i32>,
    pub routing_key: Option<String>,
    pub last_at: Option<DateTime<Utc>>,
    pub headers: Value,
    pub body: Vec<u8>,
}

impl Letter {
    /// A header that holds JSON.
    pub fn header(&self, name: &str) -> Value {
        let text = self.headers[name].as_str().unwrap_or_else(|| panic!("no header {name}: {:?}", self.headers));
        serde_json::from_str(text).expect("the header holds JSON")
    }
}

impl Database {
    /// The mails of a request, in the order of its recipients.
    pub async fn rows(&self, request: Uuid) -> Vec<Row> {
        self.all_rows().await.into_iter().filter(|row| row.request_id == request).collect()
    }

    /// The one mail of a request.
    pub async fn row(&self, request: Uuid) -> Row {
        let mut rows = self.rows(request).await;
        assert_eq!(rows.len(), 1, "{rows:#?}");
        rows.remove(0)
    }

    /// All mails.
    pub async fn all_rows(&self) -> Vec<Row> {
        sqlx::query_as(
            "select m.id, m.request_id, coalesce(m.recipient_email, '') as recipient_email, m.subject, m.status, m.attempts, m.reason, m.error_message,
                m.settlement, m.held, m.message_id, m.template_version, m.sent_at, r.lane,
                (select max(t.latency_ms) from email_timeline t where t.message_id = m.id) as latency_ms
             from email_messages m join email_requests r on r.id = m.request_id order by m.created_at, m.ordinal",
        )
        .fetch_all(&self.pool)
        .await
        .expect("the audit answers")
    }

    /// How many mails have this status.
    pub async fn count(&self, status: &str) -> usize {
        let count: i64 = sqlx::query_scalar("select count(*) from email_messages where status = $1")
            .bind(status)
            .fetch_one(&self.pool)
            .await
            .expect("the audit answers");
        usize::try_from(count).expect("a count")
    }

    /// How many mails are under way, or are owed a retry copy or a dead letter.
    pub async fn unsettled(&self) -> i64 {
        sqlx::query_scalar(
            "select count(*) from email_messages where settlement = 'pending' or status in ('queued', 'sending')",
        )
        .fetch_one(&self.pool)
        .await
        .expect("the audit answers")
    }

    /// Waits until every mail of a request has this status, and returns them; tells what has become of them instead.
    pub async fn wait_for(&self, request: Uuid, status: &str) -> Vec<Row> {
        let is_so = |rows: &[Row]| !rows.is_empty() && rows.iter().all(|row| row.status == status);
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let rows = self.rows(request).await;
            if is_so(&rows) {
                return rows;
            }
            if Instant::now() >= deadline {
                let mut told = String::new();
                for row in &rows {
                    let Row { status, attempts, reason, held, settlement, .. } = row;
                    let timeline = self.timeline(row.id).await;
                    let _ = write!(
                        told,
                        "\n{status} after {attempts} tries, reason {reason:?}, held {held}, settlement {settlement}: {timeline:#?}"
                    );
                }
                panic!("waited in vain for: {request} is {status}; its {} mails are: {told}", rows.len());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What happened to a mail, in order.
    pub async fn timeline(&self, message: Uuid) -> Vec<Line> {
        sqlx::query_as(
            "select kind, attempt, reply_code, phase, error from email_timeline where message_id = $1 order by id",
        )
        .bind(message)
        .fetch_all(&self.pool)
        .await
        .expect("the audit answers")
    }

    /// All dead letters, in the order of their archiving.
    pub async fn letters(&self) -> Vec<Letter> {
        sqlx::query_as(
            "select id, reason, error, request_id, template_key, source, lane, attempts, routing_key, last_at, headers, body
             from dead_letters order by archived_at, id",
        )
        .fetch_all(&self.pool)
        .await
        .expect("the audit answers")
    }

    /// Waits until this many dead letters are archived, and returns them.
    pub async fn wait_for_letters(&self, count: usize) -> Vec<Letter> {
        until(&format!("{count} dead letters"), async || self.letters().await.len() >= count).await;
        let letters = self.letters().await;
        assert_eq!(letters.len(), count, "{letters:#?}");
        letters
    }

    /// Waits for the one dead letter of a request.
    pub async fn wait_for_letter(&self, request: Uuid) -> Letter {
        let of_request = async || self.letters().await.into_iter().filter(|l| l.request_id == Some(request));
        until(&format!("a dead letter of {request}"), async || of_request().await.count() > 0).await;
        let mut letters: Vec<_> = of_request().await.collect();
        assert_eq!(letters.len(), 1, "{letters:#?}");
        letters.remove(0)
    }
}
