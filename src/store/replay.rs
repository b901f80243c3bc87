//! Replays: what the audit says of a dead letter, and the one transaction that sends it on its way again.
//!
//! Invariant: a letter says `replaying`, with the generation of its copy, in the same commit that reopens its rows, and before
//! the copy is published. Whoever finds it so publishes the same copy again; nobody raises the generation twice for it.
//! Invariant: the request is locked before its rows, as claims do it (`claim`).

/// Whether a letter may go on its way again, decided without a database.
mod verdict;

/// What would become of letters.
mod plan;

/// Replays that outlive whoever began them.
mod runs;

/// Who is at a run, and what has become of its letters.
mod runner;

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

pub use self::{
    plan::{Chosen, PlanCounts, PlanGroup, PlanSkip, Planned},
    runner::{LETTERS_AT_ONCE, Lease, LetterResult, OpenItem, RunProgress, RunWork},
    runs::{
        ItemFilter, ItemPage, ItemResult, NewRun, RATE_DEFAULT, RATE_MAX, Run, RunAction, RunChange, RunItem, RunPage,
        RunState,
    },
    verdict::{KnownRequest, LetterFacts, LetterState, RecipientFacts, Skip, Verdict, decide},
};
use super::{MarketingTemplates, Store, StoreError, whole::Whole, within_limit};
use crate::email::{Lane, PayloadHash, Reason, Status, settlement_id};

/// How letters are replayed.
#[derive(Debug, Clone, Default)]
pub struct ReplayRules {
    /// Send the words and the version of the first claim, instead of rendering the active version.
    pub keep_version: bool,
    /// What was published longer ago is never sent.
    pub audit_retention: Duration,
    /// Templates for which the whole suppression list counts, and not only bounces and complaints.
    pub marketing: MarketingTemplates,
    /// The active version of each template.
    pub active: HashMap<String, i32>,
}

/// The copy of a letter that is to be published.
#[derive(Debug, Clone)]
pub struct ReplayCopy {
    /// The letter.
    pub id: Uuid,
    /// What it carries.
    pub generation: i32,
    /// Its rows begin anew under this generation: it is the first copy of it.
    pub is_reopened: bool,
    /// What it carries, the same however often it is published.
    pub replayed_at: DateTime<Utc>,
    /// Where its request travels, if the audit knows.
    pub lane: Option<Lane>,
    /// Its request, if its bytes told.
    pub request_id: Option<Uuid>,
}

/// What became of beginning a replay.
#[derive(Debug, Clone)]
pub enum Begun {
    /// It is committed: publish this.
    Publish(ReplayCopy),
    /// An earlier replay was cut off after its copy had arrived: only the letter does not say so yet.
    Arrived,
    /// Nothing is to be done.
    Skip(Skip),
    /// There is no such letter.
    Unknown,
}

/// A letter's bytes and what came with them.
#[derive(Debug, Clone)]
pub struct LetterContent {
    /// The producer's.
    pub routing_key: Option<String>,
    /// Where it travelled.
    pub lane: Option<String>,
    /// When it was first seen, else archived.
    pub first_at: DateTime<Utc>,
    /// AMQP properties.
    pub properties: Value,
    /// AMQP headers, as text.
    pub headers: Value,
    /// The message.
    pub body: Vec<u8>,
}

impl Store {
    /// Decides under a lock whether a letter goes on its way again, and commits what its copy needs to find.
    ///
    /// A poisonous message is known by its `message_id` only: `read` is what reading its bytes has shown since, and without it
    /// nothing is reopened for it. Rows that wait for a copy of another payload would wait for ever.
    ///
    /// # Errors
    /// When the database is away: nothing was begun, or it was and the next call finds it so.
    pub async fn begin_replay(
        &self,
        id: Uuid,
        rules: &ReplayRules,
        read: Option<PayloadHash>,
    ) -> Result<Begun, StoreError> {
        loop {
            match within_limit(self.begin_once(id, rules, read)).await {
                Err(StoreError::Repeat(_)) => {}
                begun => return begun,
            }
        }
    }

    async fn begin_once(&self, id: Uuid, rules: &ReplayRules, read: Option<PayloadHash>) -> Result<Begun, StoreError> {
        let mut whole = Whole::of(&self.pool).await?;
        let mut tx = whole.connection().begin().await?;
        let begun = begin(&mut tx, id, rules, read).await?;
        tx.commit().await?;
        whole.end();
        Ok(begun)
    }

    /// The content of a letter that is to be published. Nothing: anonymising has removed it meanwhile.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn letter_content(&self, id: Uuid) -> Result<Option<LetterContent>, StoreError> {
        let reading = sqlx::query_as!(
            LetterContent,
            r#"select routing_key, lane, coalesce(first_at, archived_at) as "first_at!", properties, headers, body as "body!"
               from dead_letters where id = $1 and body is not null"#,
            id
        )
        .fetch_optional(&self.pool);
        within_limit(async { Ok(reading.await?) }).await
    }

    /// Whom a request goes to, as its first claim fixed it: address and display name.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn recipients_of(
        &self,
        lane: Lane,
        request_id: Uuid,
    ) -> Result<Vec<(String, Option<String>)>, StoreError> {
        let rows = sqlx::query!(
            r#"select recipient_email as "email!", recipient_name as name from email_messages
               where request_id = $1 and recipient_email is not null order by ordinal"#,
            request_id
        )
        .fetch_all(self.pool_of(lane))
        .await?;
        Ok(rows.into_iter().map(|row| (row.email, row.name)).collect())
    }
}

async fn begin(
    tx: &mut PgConnection,
    id: Uuid,
    rules: &ReplayRules,
    read: Option<PayloadHash>,
) -> Result<Begun, StoreError> {
    let locked = sqlx::query!("select request_id from dead_letters where id = $1 for update", id)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(locked) = locked else { return Ok(Begun::Unknown) };
    if let Some(request_id) = locked.request_id {
        sqlx::query!("select id from email_requests where id = $1 for update", request_id)
            .fetch_optional(&mut *tx)
            .await?;
        sqlx::query!("select id from email_messages where request_id = $1 order by id for update", request_id)
            .fetch_all(&mut *tx)
            .await?;
    }
    let Some(letter) = facts(&mut *tx, &[id], &rules.marketing).await?.pop() else { return Ok(Begun::Unknown) };
    let (generation, is_reopened) = match decide(&letter, rules.audit_retention, Utc::now()) {
        Verdict::Skip(skip) => return Ok(Begun::Skip(skip)),
        Verdict::Arrived => return Ok(Begun::Arrived),
        Verdict::Reopen { .. }
            if letter.reason == Some(Reason::Poison)
                && read != letter.request.as_ref().map(|request| request.payload_hash) =>
        {
            return Ok(Begun::Skip(Skip::Unreadable));
        }
        Verdict::Reopen { generation } => {
            if let Some(request_id) = letter.request_id {
                reopen(&mut *tx, request_id, generation, rules.keep_version).await?;
            }
            (generation, true)
        }
        Verdict::Resume { generation } => (generation, false),
        Verdict::Again { generation } => (generation, generation > letter.generation),
    };
    let begun = sqlx::query!(
        r#"update dead_letters d set state = 'replaying', replay_generation = $2,
            replayed_at = case when d.state = 'replaying' then d.replayed_at else now() end
           where id = $1
           returning replayed_at as "replayed_at!", (select lane from email_requests where id = d.request_id) as lane"#,
        id,
        generation
    )
    .fetch_one(&mut *tx)
    .await?;
    Ok(Begun::Publish(ReplayCopy {
        id,
        generation,
        is_reopened,
        replayed_at: begun.replayed_at,
        lane: begun.lane.as_deref().and_then(Lane::from_name),
        request_id: letter.request_id,
    }))
}

async fn facts(
    connection: &mut PgConnection,
    ids: &[Uuid],
    marketing: &MarketingTemplates,
) -> Result<Vec<LetterFacts>, StoreError> {
    let letters = sqlx::query!(
        r#"select d.id as "id!", d.state as "state!", d.reason as "reason!", d.body is not null as "has_body!",
            d.generation as "generation!", d.replay_generation, coalesce(d.first_at, d.archived_at) as "first_at!",
            d.request_id, d.template_key, d.settlement_key as "settlement_key!",
            r.payload_hash as "payload_hash?", r.generation as "known_generation?", r.expires_at as "expires_at?",
            r.published_at as "published_at?", r.template_version as "template_version?",
            r.retransmission_of is not null as "is_retransmission!"
           from dead_letters d left join email_requests r on r.id = d.request_id where d.id = any($1)"#,
        ids
    )
    .fetch_all(&mut *connection)
    .await?;
    let requests: Vec<Uuid> = letters.iter().filter_map(|letter| letter.request_id).collect();
    let rows = sqlx::query!(
        r#"select m.request_id as "request_id!", m.status as "status!", m.held as "held!",
            m.settlement = 'pending' as "owed!", exists (
                select 1 from suppressions s where s.address_hash = m.recipient_hash
                    and stops_mail(s.reason, s.category, $2::jsonb ->> m.template_key)
                    and (s.expires_at is null or s.expires_at > now())) as "suppressed!"
           from email_messages m
           where m.request_id = any($1) order by m.request_id, m.ordinal"#,
        &requests,
        marketing.as_json()
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut recipients: HashMap<Uuid, Vec<RecipientFacts>> = HashMap::new();
    for row in rows {
        let status = Status::from_name(&row.status).ok_or_else(|| newer_schema(&row.status))?;
        let facts = RecipientFacts { status, held: row.held, suppressed: row.suppressed, owed: row.owed };
        recipients.entry(row.request_id).or_default().push(facts);
    }
    letters
        .into_iter()
        .map(|row| {
            let request = match (row.request_id, row.payload_hash, row.known_generation, row.published_at) {
                (Some(id), Some(hash), Some(generation), Some(published_at)) => {
                    let hash = PayloadHash(<[u8; 32]>::try_from(hash).unwrap_or_default());
                    let says = |payload| settlement_id(id, payload, row.generation).to_string() == row.settlement_key;
                    let is_unread = || row.reason == Reason::Poison.name() && says(PayloadHash::UNREAD);
                    Some(KnownRequest {
                        generation,
                        payload_hash: hash,
                        expires_at: row.expires_at,
                        published_at,
                        template_version: row.template_version,
                        is_retransmission: row.is_retransmission,
                        is_letters_own: says(hash) || is_unread(),
                        // Two letters of one request share its rows.
                        recipients: recipients.get(&id).cloned().unwrap_or_default(),
                    })
                }
                _ => None,
            };
            Ok(LetterFacts {
                id: row.id,
                state: LetterState::from_name(&row.state).ok_or_else(|| newer_schema(&row.state))?,
                reason: Reason::from_name(&row.reason),
                reason_name: row.reason,
                has_body: row.has_body,
                generation: row.generation,
                replay_generation: row.replay_generation,
                first_at: row.first_at,
                request_id: row.request_id,
                template_key: row.template_key,
                request,
            })
        })
        .collect()
}

/// The rows that failed or are held begin anew. One whose time has not come yet waits for it: nobody has to ask for it again
/// and again until then. A recorded mail that was sent again has no other words than the recorded ones.
async fn reopen(
    tx: &mut PgConnection,
    request_id: Uuid,
    generation: i32,
    keep_version: bool,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update email_requests set generation = $2, copy_no = 0,
            template_version = case when $3 or retransmission_of is not null then template_version end
         where id = $1",
        request_id,
        generation,
        keep_version
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "with reopened as (
            update email_messages m set status = 'queued', settlement = 'none', held = false, token = null,
                worker_id = null, attempts = 0, deferrals = 0, reason = null, error_message = null,
                due_at = case when r.not_before > now() then r.not_before end,
                subject = case when r.keeps then m.subject end, html_content = case when r.keeps then m.html_content end,
                text_content = case when r.keeps then m.text_content end,
                template_version = case when r.keeps then m.template_version end, updated_at = now()
            from (select id, not_before, $2 or retransmission_of is not null as keeps from email_requests) as r
            where m.request_id = $1 and r.id = $1 and (m.status = 'failed' or m.status = 'unknown' and m.held)
            returning m.id)
         insert into email_timeline (message_id, kind, attempt) select id, 'replayed', 0 from reopened",
        request_id,
        keep_version
    )
    .execute(&mut *tx)
    .await?;
    Ok(())
}

fn newer_schema(word: &str) -> StoreError {
    StoreError::Away(format!("unknown state {word:?}: is the schema newer?"))
}
