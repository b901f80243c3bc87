//! Runs: replays that are planned, begun, paused, resumed and given up by operators, and outlive whoever did so.
//!
//! Invariant: a run is made whole, with all of its letters, or not at all; what was planned to be skipped is never looked at again.
//! Invariant: a run's counts are changed by the statement that changes a letter's result, so that they always agree.

/// Lists of runs, and of a run's letters.
mod list;

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

pub use self::list::{ItemFilter, ItemPage, ItemResult, RunItem, RunPage};
use super::{
    Chosen, Lease, PlanCounts, Planned, ReplayRules, Verdict,
    plan::{Planner, database_now},
};
use crate::store::{
    Store, StoreError,
    changes::{Change, record},
    told::{Topic, tell},
    whole::Whole,
    within_limit,
};

/// Letters a second at most, unless it is said.
pub const RATE_DEFAULT: i32 = 20;
/// What can be said.
pub const RATE_MAX: i32 = 1000;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Nothing has been sent.
    Planned,
    /// Somebody is at it, or takes it up as soon as they can.
    Running,
    /// An operator wants nothing more of it for now.
    Paused,
    /// All of its letters have a result.
    Done,
    /// An operator wants nothing more of it.
    Cancelled,
}

impl RunState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Planned, Self::Running, Self::Paused, Self::Done, Self::Cancelled];

    /// As in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// What an operator does with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAction {
    /// Begins it.
    Start,
    /// Stops it until it is resumed.
    Pause,
    /// Goes on with it.
    Resume,
    /// Gives it up; what has been sent has been sent.
    Cancel,
}

impl RunAction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Start, Self::Pause, Self::Resume, Self::Cancel];

    /// As in addresses and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }

    const fn change(self) -> &'static str {
        match self {
            Self::Start => "replay.start",
            Self::Pause => "replay.pause",
            Self::Resume => "replay.resume",
            Self::Cancel => "replay.cancel",
        }
    }

    /// Where it leads from there. Asked for once more, an action that has been done is no fault.
    const fn leads(self, from: RunState) -> Lead {
        match (self, from) {
            (Self::Start, RunState::Planned) | (Self::Resume, RunState::Paused) => Lead::To(RunState::Running),
            (Self::Pause, RunState::Running) => Lead::To(RunState::Paused),
            (Self::Cancel, RunState::Planned | RunState::Running | RunState::Paused) => Lead::To(RunState::Cancelled),
            (Self::Start | Self::Resume, RunState::Running | RunState::Done)
            | (Self::Pause, RunState::Paused)
            | (Self::Cancel, RunState::Cancelled) => Lead::Nowhere,
            (Self::Start, RunState::Paused | RunState::Cancelled)
            | (Self::Pause, RunState::Planned | RunState::Done | RunState::Cancelled)
            | (Self::Resume, RunState::Planned | RunState::Cancelled)
            | (Self::Cancel, RunState::Done) => Lead::Refused,
        }
    }
}

impl FromStr for RunAction {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|action| action.name() == name).ok_or(())
    }
}

/// Where an action leads.
enum Lead {
    To(RunState),
    Nowhere,
    Refused,
}

/// What became of an action.
#[derive(Debug, Clone)]
pub enum RunChange {
    /// It is so now.
    Done(Run),
    /// It was so before.
    Before(Run),
    /// From there it cannot be done.
    Refused(RunState),
    /// There is no such run.
    Unknown,
}

/// A run to be made.
#[derive(Debug, Clone)]
pub struct NewRun<'a> {
    /// Letters a second at most, 1 to [`RATE_MAX`].
    pub rate: i32,
    /// `operator:<name>`.
    pub by: &'a str,
}

/// A run as it stands.
#[derive(Debug, Clone)]
pub struct Run {
    /// In the order of their making.
    pub id: Uuid,
    /// Which letters were asked for. Of a recipient it holds the keyed hash.
    pub filter: Value,
    /// Where it stands.
    pub state: RunState,
    /// Letters a second at most.
    pub rate: i32,
    /// Sends the words of the first time.
    pub keep_version: bool,
    /// What would become of its letters, as it was when the run was made.
    pub plan: PlanCounts,
    /// All of its letters.
    pub letters: i32,
    /// On their way, confirmed by the broker.
    pub replayed: i32,
    /// Left alone.
    pub skipped: i32,
    /// Not replayed, for a fault of theirs.
    pub failed: i32,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: DateTime<Utc>,
    /// When it was begun.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was done or given up.
    pub finished_at: Option<DateTime<Utc>>,
    /// Somebody is at it.
    pub has_runner: bool,
    /// Why it does not move, if it should and does not.
    pub waits_for: Option<String>,
}

impl Run {
    /// Letters without a result.
    #[must_use]
    pub const fn open(&self) -> i32 {
        self.letters - self.replayed - self.skipped - self.failed
    }
}

/// A run as its row has it.
struct RunRow {
    id: Uuid,
    filter: Value,
    state: String,
    rate_per_second: i32,
    keep_version: bool,
    plan: Value,
    letters: i32,
    replayed: i32,
    skipped: i32,
    failed: i32,
    created_by: String,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    has_runner: bool,
    waits_for: Option<String>,
}

impl RunRow {
    fn run(self) -> Result<Run, StoreError> {
        let state = RunState::from_name(&self.state).ok_or_else(|| super::newer_schema(&self.state))?;
        Ok(Run {
            id: self.id,
            filter: self.filter,
            state,
            rate: self.rate_per_second,
            keep_version: self.keep_version,
            plan: serde_json::from_value(self.plan).unwrap_or_default(),
            letters: self.letters,
            replayed: self.replayed,
            skipped: self.skipped,
            failed: self.failed,
            created_by: self.created_by,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            has_runner: self.has_runner,
            waits_for: self.waits_for,
        })
    }
}

impl Store {
    /// Plans these letters and keeps the plan as a run that can be started.
    ///
    /// # Errors
    /// When the database is away: there is no run then.
    pub async fn create_run(&self, new: &NewRun<'_>, chosen: &Chosen, rules: &ReplayRules) -> Result<Run, StoreError> {
        let id = Uuid::now_v7();
        let mut whole = Whole::of(&self.pool).await?;
        let mut tx = whole.connection().begin().await?;
        let filter = filter_json(chosen);
        sqlx::query!(
            "insert into replay_runs (id, filter, rate_per_second, keep_version, plan, letters, created_by)
             values ($1, $2, $3, $4, '{}', 0, left($5, 100))",
            id,
            filter,
            new.rate,
            rules.keep_version,
            new.by
        )
        .execute(&mut *tx)
        .await?;
        let now = database_now(&mut tx).await?;
        let mut planner = Planner::new(chosen, rules, now);
        let mut position = 0;
        while let Some(set) = within_limit(planner.next(&mut tx)).await? {
            within_limit(insert_items(&mut tx, id, position, &set)).await?;
            position += i32::try_from(set.len()).unwrap_or(i32::MAX);
        }
        let counts = planner.counts();
        sqlx::query!(
            "update replay_runs set plan = $2, letters = $3, skipped = $4 where id = $1",
            id,
            json!(counts),
            counts.letters,
            counts.skipped
        )
        .execute(&mut *tx)
        .await?;
        let after = json!({ "letters": counts.letters, "open": counts.open, "rate": new.rate,
            "keep_version": rules.keep_version, "filter": without_hash(&filter) });
        let target = id.to_string();
        let change = Change { by: new.by, action: "replay.plan", target: &target, before: None, after: Some(after) };
        record(&mut tx, &change).await?;
        tx.commit().await?;
        whole.end();
        self.run(id).await?.ok_or_else(|| StoreError::Away("the run that was just made is gone".to_owned()))
    }

    /// One run. Nothing: there is none of this id.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn run(&self, id: Uuid) -> Result<Option<Run>, StoreError> {
        let reading = sqlx::query_as!(
            RunRow,
            r#"select id, filter, state, rate_per_second, keep_version, plan, letters, replayed, skipped, failed,
                created_by, created_at, started_at, finished_at, coalesce(lease_until > now(), false) as "has_runner!",
                waits_for
               from replay_runs where id = $1"#,
            id
        )
        .fetch_optional(&self.pool);
        let row = within_limit(async { Ok(reading.await?) }).await?;
        row.map(RunRow::run).transpose()
    }

    /// Does something with a run, on behalf of an operator. With a lease whoever asks takes it up as well.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn change_run(
        &self,
        id: Uuid,
        action: RunAction,
        by: &str,
        lease: Option<&Lease>,
    ) -> Result<RunChange, StoreError> {
        within_limit(async {
            let mut whole = Whole::of(&self.pool).await?;
            let mut tx = whole.connection().begin().await?;
            let known = sqlx::query_scalar!("select state from replay_runs where id = $1 for update", id)
                .fetch_optional(&mut *tx)
                .await?;
            let Some(known) = known else {
                tx.rollback().await?;
                whole.end();
                return Ok(RunChange::Unknown);
            };
            let from = RunState::from_name(&known).ok_or_else(|| super::newer_schema(&known))?;
            let is_new = match action.leads(from) {
                Lead::To(to) => {
                    set_state(&mut tx, id, to, lease).await?;
                    let (before, after) = (json!({ "state": from.name() }), json!({ "state": to.name() }));
                    let change = Change {
                        by,
                        action: action.change(),
                        target: &id.to_string(),
                        before: Some(before),
                        after: Some(after),
                    };
                    record(&mut tx, &change).await?;
                    tell(&mut tx, Topic::Replays).await?;
                    true
                }
                Lead::Nowhere => false,
                Lead::Refused => {
                    tx.rollback().await?;
                    whole.end();
                    return Ok(RunChange::Refused(from));
                }
            };
            tx.commit().await?;
            whole.end();
            let Some(run) = self.run(id).await? else { return Ok(RunChange::Unknown) };
            Ok(if is_new { RunChange::Done(run) } else { RunChange::Before(run) })
        })
        .await
    }
}

/// A run that is over has nobody at it; whoever was finds out within a moment.
async fn set_state(tx: &mut PgConnection, id: Uuid, to: RunState, lease: Option<&Lease>) -> Result<(), StoreError> {
    let is_over = matches!(to, RunState::Done | RunState::Cancelled);
    sqlx::query!(
        "update replay_runs set state = $2::text, waits_for = null,
            finished_at = case when $3 then now() end,
            started_at = case when $2::text = 'running' then coalesce(started_at, now()) else started_at end,
            runner_id = coalesce($4, runner_id),
            lease_until = case when $4::uuid is null then lease_until else now() + make_interval(secs => $5) end
         where id = $1",
        id,
        to.name(),
        is_over,
        lease.map(|lease| lease.token),
        lease.map(|lease| lease.length.as_secs_f64())
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// One statement for a set.
async fn insert_items(tx: &mut PgConnection, run: Uuid, first: i32, set: &[Planned]) -> Result<(), StoreError> {
    let letters: Vec<Uuid> = set.iter().map(|planned| planned.letter.id).collect();
    let requests: Vec<Option<Uuid>> = set.iter().map(|planned| planned.letter.request_id).collect();
    let reasons: Vec<&str> = set.iter().map(|planned| planned.letter.reason_name.as_str()).collect();
    let templates: Vec<Option<&str>> = set.iter().map(|planned| planned.letter.template_key.as_deref()).collect();
    let versions: Vec<Option<i32>> = set.iter().map(|planned| planned.version).collect();
    let whys: Vec<Option<&str>> = set.iter().map(|planned| planned.skip().map(super::Skip::name)).collect();
    let words: Vec<Option<String>> = set.iter().map(|planned| planned.skip().map(|skip| skip.to_string())).collect();
    sqlx::query!(
        "insert into replay_items (run_id, position, dead_letter_id, request_id, reason, template_key, template_version,
            result, why, detail, done_at)
         select $1, $2 + i.n::int - 1, i.letter, i.request, i.reason, i.template, i.version,
            case when i.why is not null then 'skipped' end, i.why, left(i.words, 500),
            case when i.why is not null then now() end
         from unnest($3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::int[], $8::text[], $9::text[])
            with ordinality as i (letter, request, reason, template, version, why, words, n)",
        run,
        first,
        &letters,
        &requests as _,
        &reasons as _,
        &templates as _,
        &versions as _,
        &whys as _,
        &words as _
    )
    .execute(&mut *tx)
    .await?;
    let arrived: Vec<Uuid> =
        set.iter().filter(|planned| planned.verdict == Verdict::Arrived).map(|planned| planned.letter.id).collect();
    if !arrived.is_empty() {
        sqlx::query!("update dead_letters set state = 'replayed' where id = any($1) and state = 'replaying'", &arrived)
            .execute(tx)
            .await?;
    }
    Ok(())
}

/// Which letters were asked for, as it is kept: nothing of it names a person.
fn filter_json(chosen: &Chosen) -> Value {
    match chosen {
        Chosen::Ids(ids) => json!({ "ids": ids.len() }),
        Chosen::Filter(filter) => json!({
            "reason": filter.reason, "template": filter.template_key, "source": filter.source,
            "since": filter.since, "until": filter.until, "recipient_hash": filter.recipient_hash.map(hex::encode),
        }),
    }
}

/// The same for those who need not know whether two runs were about the same person.
fn without_hash(filter: &Value) -> Value {
    let mut shown = filter.clone();
    if let Some(all) = shown.as_object_mut()
        && let Some(hash) = all.remove("recipient_hash")
    {
        all.insert("recipient".to_owned(), Value::Bool(!hash.is_null()));
    }
    shown
}

impl Run {
    /// Which letters were asked for, with the word whether a recipient was among it instead of who.
    #[must_use]
    pub fn shown_filter(&self) -> Value {
        without_hash(&self.filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_leads_where_it_should_and_no_run_comes_back_from_its_end() {
        for from in RunState::ALL {
            for action in RunAction::ALL {
                let to = match action.leads(from) {
                    Lead::To(to) => to,
                    Lead::Nowhere | Lead::Refused => continue,
                };
                assert!(!matches!(from, RunState::Done | RunState::Cancelled), "{from:?} {action:?}");
                assert!(!matches!(action.leads(to), Lead::To(_)), "asked for twice, {action:?} is done once");
            }
        }
        assert!(matches!(RunAction::Pause.leads(RunState::Planned), Lead::Refused));
        assert!(matches!(RunAction::Start.leads(RunState::Paused), Lead::Refused), "whoever paused it decides");
        assert!(matches!(RunAction::Start.leads(RunState::Done), Lead::Nowhere), "it was quick");
    }

    #[test]
    fn what_is_kept_of_a_filter_names_nobody_and_what_is_shown_not_even_the_hash() {
        let filter = crate::store::dead::DeadFilter {
            reason: Some("rejected".to_owned()),
            recipient_hash: Some([7; 32]),
            ..Default::default()
        };
        let kept = filter_json(&Chosen::Filter(Box::new(filter)));
        assert_eq!(kept["recipient_hash"], "07".repeat(32));
        let shown = without_hash(&kept);
        assert_eq!((&shown["recipient"], &shown["reason"]), (&json!(true), &json!("rejected")));
        assert!(!shown.to_string().contains("0707"), "{shown}");
        assert_eq!(without_hash(&filter_json(&Chosen::Ids(vec![Uuid::nil()]))), json!({ "ids": 1 }));
    }
}
