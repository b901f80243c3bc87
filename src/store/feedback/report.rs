//! What feedback did not tell: mails that nobody has told anything of, and events that are about no mail of ours.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    email::identity::first_row_id,
    store::{Store, StoreError, whole::Whole, within_limit},
};

/// A report that takes longer is refused.
const BEGIN_PATIENTLY: &str = "begin; set local statement_timeout = '10s'";
/// How many of the latest events say whether a provider returns our marks.
const EVENTS_LOOKED_AT: i64 = 100;

/// A mail that the relay took, and of which nothing was told since.
#[derive(Debug, Clone)]
pub struct SilentMail {
    /// The row.
    pub id: Uuid,
    /// Its request.
    pub request_id: Uuid,
    /// Which template.
    pub template_key: String,
    /// When the relay took it.
    pub sent_at: DateTime<Utc>,
    /// Which relay.
    pub relay: Option<String>,
    /// The relay's own id for it.
    pub relay_message_id: Option<String>,
}

/// An event whose mail is not known.
#[derive(Debug, Clone)]
pub struct EventForNobody {
    /// Who told.
    pub provider: String,
    /// The provider's id of it.
    pub event_id: String,
    /// What it tells; nothing: it was not looked at yet.
    pub event_type: Option<String>,
    /// The mail as the provider names it.
    pub relay_message_id: Option<String>,
    /// When it came.
    pub received_at: DateTime<Utc>,
    /// How often its mail was looked for.
    pub looks: i32,
    /// Whether it will be looked for again.
    pub is_waiting: bool,
}

/// Both lists, and how many there are of each.
#[derive(Debug, Clone)]
pub struct FeedbackReport {
    /// Mails, the earliest first.
    pub silent: Vec<SilentMail>,
    /// Events, the earliest first.
    pub for_nobody: Vec<EventForNobody>,
    /// Each list may go on.
    pub is_cut: (bool, bool),
}

/// Whether the provider returns what tells its events' mails apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarksSeen {
    /// Events looked at: the latest that are about a mail.
    pub events: i64,
    /// Those of them that gave any header or tag back.
    pub with_marks: i64,
}

impl Store {
    /// Mails published since `since` that were accepted longer than `silent_for` ago, and events that came since `since`;
    /// at most `limit` of each.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn feedback_report(
        &self,
        since: DateTime<Utc>,
        silent_for: Duration,
        limit: i64,
    ) -> Result<FeedbackReport, StoreError> {
        // Whoever asks for ten years shall wait, not the mails: they share these connections.
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let connection = whole.connection();
            sqlx::raw_sql(BEGIN_PATIENTLY).execute(&mut **connection).await?;
            let report = read(connection, since, silent_for, limit).await?;
            sqlx::raw_sql("rollback").execute(&mut **connection).await?;
            whole.end();
            Ok(report)
        })
        .await
    }

    /// Looks whether the latest events gave anything of their mails back.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn feedback_marks(&self) -> Result<MarksSeen, StoreError> {
        let seen = sqlx::query!(
            r#"select count(*) as "events!", count(*) filter (where has_marks) as "with_marks!"
               from (select has_marks from webhook_events
                    where relay_message_id is not null order by id desc limit $1) as latest"#,
            EVENTS_LOOKED_AT
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(MarksSeen { events: seen.events, with_marks: seen.with_marks })
    }
}

/// Both lists.
async fn read(
    connection: &mut PgConnection,
    since: DateTime<Utc>,
    silent_for: Duration,
    limit: i64,
) -> Result<FeedbackReport, StoreError> {
    // Ids begin with the time of publication.
    let first = first_row_id(since);
    let mut silent = sqlx::query_as!(
            SilentMail,
            r#"select m.id, m.request_id, m.template_key, m.sent_at as "sent_at!", t.relay as "relay?", t.relay_message_id as "relay_message_id?"
               from email_messages m
               left join lateral (select relay, relay_message_id from email_timeline t
                    where t.message_id = m.id and t.kind = 'sent' order by t.id desc limit 1) t on true
               where m.id >= $1 and m.status = 'sent' and m.sent_at < now() - make_interval(secs => $2)
               order by m.id limit $3"#,
            first,
            silent_for.as_secs_f64(),
            limit + 1
        )
        .fetch_all(&mut *connection)
        .await?;
    let mut for_nobody = sqlx::query_as!(
            EventForNobody,
            r#"select provider, provider_event_id as event_id, event_type, relay_message_id, received_at, looks,
                next_look_at is not null as "is_waiting!"
               from webhook_events where matched_at is null and looks > 0 and received_at >= $1 order by received_at limit $2"#,
            since,
            limit + 1
        )
        .fetch_all(&mut *connection)
        .await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let is_cut = (silent.len() > limit, for_nobody.len() > limit);
    silent.truncate(limit);
    for_nobody.truncate(limit);
    Ok(FeedbackReport { silent, for_nobody, is_cut })
}
