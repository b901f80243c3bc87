//! `/api/v1/email/replays`: dead letters that are replayed in runs, which daemons carry.
//!
//! Invariant: nothing here names a person, so whoever may look may see it; only operators make runs and steer them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Admin,
    auth::Operator,
    dead_letters::plan::{Plan, Which},
    names::{ItemResultName, RunStateName},
    params::{self, Members},
    problem::{BodyRefusals, Problem, ProblemDetails, Refusals},
};
use crate::{
    config::Role,
    replay::Templates,
    store::replay::{
        ItemFilter, ItemPage, ItemResult, NewRun, RATE_DEFAULT, RATE_MAX, Run, RunAction, RunChange, RunItem, RunPage,
        RunState,
    },
};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show)).routes(routes!(items)).routes(routes!(act))
}

/// A replay of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Replay {
    id: Uuid,
    /// planned, running, paused, done or cancelled
    #[schema(example = "running")]
    state: &'static str,
    /// Which letters were asked for; of a recipient only that one was given
    filter: Asked,
    /// Letters a second at most
    rate: i32,
    /// Whether the words of the first time are sent again instead of the active version's
    keep_version: bool,
    /// What would become of its letters, as it was when the run was made
    plan: Plan,
    /// All of its letters
    letters: i32,
    /// On their way, confirmed by the broker
    replayed: i32,
    /// Left alone, now or when it was planned
    skipped: i32,
    /// Not replayed, for a fault of their own
    failed: i32,
    /// Without a result
    open: i32,
    /// Why letters were skipped or failed; null in lists, and where a run was only just changed
    results: Option<Vec<ResultCount>>,
    created_by: String,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    /// Whether somebody is at it
    has_runner: bool,
    /// Why it does not move, if it should and does not
    waits_for: Option<String>,
}

/// Which letters were asked for.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct Asked {
    /// These many, by their ids
    ids: Option<i64>,
    reason: Option<String>,
    template: Option<String>,
    source: Option<String>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    /// Whether one recipient's were asked for
    #[serde(default)]
    recipient: bool,
}

/// Letters of one result, for one reason.
#[derive(Debug, Serialize, ToSchema)]
struct ResultCount {
    /// skipped or failed
    result: String,
    why: String,
    letters: i64,
}

impl From<&Run> for Replay {
    fn from(run: &Run) -> Self {
        Self {
            id: run.id,
            state: run.state.name(),
            filter: serde_json::from_value(run.shown_filter()).unwrap_or_default(),
            rate: run.rate,
            keep_version: run.keep_version,
            plan: Plan::from(&run.plan),
            letters: run.letters,
            replayed: run.replayed,
            skipped: run.skipped,
            failed: run.failed,
            open: run.open(),
            results: None,
            created_by: run.created_by.clone(),
            created_at: run.created_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            has_runner: run.has_runner,
            waits_for: run.waits_for.clone(),
        }
    }
}

impl Replay {
    /// A run with why letters were skipped or failed.
    pub(crate) fn with_results(run: &Run, results: Vec<(String, String, i64)>) -> Self {
        let count = |(result, why, letters)| ResultCount { result, why, letters };
        Self { results: Some(results.into_iter().map(count).collect()), ..Self::from(run) }
    }
}

/// Replays, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplayPage {
    items: Vec<Replay>,
    /// How many there are in all, up to 10,000
    total: i64,
    /// Whether `total` is all of them
    total_is_exact: bool,
    /// Cursor of the next page; null: this was the last
    next: Option<Uuid>,
}

impl From<RunPage> for ReplayPage {
    fn from(page: RunPage) -> Self {
        Self {
            items: page.items.iter().map(Replay::from).collect(),
            total: page.total,
            total_is_exact: page.total_is_exact,
            next: page.next,
        }
    }
}

/// A letter of a replay.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Letter {
    /// The order in which letters are taken, from 0
    position: i32,
    dead_letter_id: Uuid,
    request_id: Option<Uuid>,
    /// Why it is a dead letter
    reason: String,
    template_key: Option<String>,
    /// Whose words it was planned to send, where that was known
    template_version: Option<i32>,
    /// open, replayed, skipped or failed
    result: &'static str,
    /// Why it was skipped or failed, for programs
    why: Option<String>,
    /// The same for people
    detail: Option<String>,
    done_at: Option<DateTime<Utc>>,
}

impl From<RunItem> for Letter {
    fn from(item: RunItem) -> Self {
        Self {
            position: item.position,
            dead_letter_id: item.dead_letter_id,
            request_id: item.request_id,
            reason: item.reason,
            template_key: item.template_key,
            template_version: item.template_version,
            result: item.result.name(),
            why: item.why,
            detail: item.detail,
            done_at: item.done_at,
        }
    }
}

/// A replay's letters, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LetterPage {
    items: Vec<Letter>,
    /// How many match in all, up to 10,000
    total: i64,
    /// Whether `total` is all of them
    total_is_exact: bool,
    /// Cursor of the next page; null: this was the last
    next: Option<i32>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Standing there now
    #[param(inline, value_type = Option<RunStateName>)]
    state: Option<String>,
    /// Items of a page
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
    /// The `next` of an earlier answer
    #[param(value_type = Option<Uuid>)]
    cursor: Option<String>,
}

/// Replays, newest first
#[utoipa::path(
    get, path = "/replays", tag = "replays", operation_id = "list_replays", params(ListParams),
    responses((status = 200, description = "A page of replays", body = ReplayPage), Refusals)
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<ReplayPage>, Problem> {
    let given = params::query(params)?;
    let names = RunState::ALL.iter().map(|state| state.name());
    let state = params::one_of("state", given.state.as_deref(), RunState::from_name, names)?;
    let after = params::cursor(given.cursor.as_deref(), |text| text.parse().ok())?;
    Ok(Json(admin.store.runs(state, after, params::limit(given.limit)?).await?.into()))
}

/// A replay to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewReplay {
    /// Which letters
    #[serde(default)]
    filter: Which,
    /// Letters a second at most
    #[schema(minimum = 1, maximum = 1000, default = 20)]
    rate: Option<i32>,
    /// Send the words of the first time again instead of the active version's
    #[serde(default)]
    keep_version: bool,
    /// Begin at once; otherwise it is planned, to be looked at and started
    #[serde(default)]
    start: bool,
}

/// Plans these letters and keeps the plan as a replay
#[utoipa::path(
    post, path = "/replays", tag = "replays", operation_id = "create_replay", request_body = NewReplay,
    responses(
        (status = 201, description = "It is planned, or running", body = Replay),
        (status = 404, description = "There is no letter of an id", body = ProblemDetails,
            content_type = "application/problem+json"),
        Refusals, BodyRefusals
    )
)]
pub(super) async fn create(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    body: Result<Json<Members<NewReplay>>, JsonRejection>,
) -> Result<(StatusCode, Json<Replay>), Problem> {
    operator.needs(Role::Operator)?;
    let new = params::body(body)?;
    let run = make(&admin, &operator, new.filter, new.rate, new.keep_version).await?;
    let run = if new.start { change(&admin, run.id, RunAction::Start, &operator).await? } else { run };
    Ok((StatusCode::CREATED, Json(Replay::from(&run))))
}

/// Makes a run.
pub(super) async fn make(
    admin: &Admin,
    operator: &Operator,
    which: Which,
    rate: Option<i32>,
    keep_version: bool,
) -> Result<Run, Problem> {
    let rate = rate.unwrap_or(RATE_DEFAULT);
    if !(1..=RATE_MAX).contains(&rate) {
        return Err(params::bad(format!("rate must be 1 to {RATE_MAX}")));
    }
    let chosen = which.chosen(admin).await?;
    let rules = Templates::load(&admin.store).await?.rules(keep_version, admin.rules.audit_retention);
    Ok(admin.store.create_run(&NewRun { rate, by: &operator.by() }, &chosen, &rules).await?)
}

/// One replay, and how far it is
#[utoipa::path(
    get, path = "/replays/{id}", tag = "replays", operation_id = "show_replay",
    params(("id" = Uuid, Path, description = "The replay")),
    responses(
        (status = 200, description = "The replay", body = Replay),
        (status = 404, description = "There is none", body = ProblemDetails, content_type = "application/problem+json"),
        Refusals
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<Replay>, Problem> {
    let id = params::uuid("id", &id)?;
    let run = admin.store.run(id).await?.ok_or_else(unknown)?;
    let results = admin.store.run_results(id).await?;
    Ok(Json(Replay::with_results(&run, results)))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ItemParams {
    /// With this result
    #[param(inline, value_type = Option<ItemResultName>)]
    result: Option<String>,
    /// Items of a page
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
    /// The `next` of an earlier answer
    #[param(pattern = "^[0-9]{1,9}$")]
    cursor: Option<String>,
}

impl ItemParams {
    /// What they ask for.
    ///
    /// # Errors
    /// 400, naming the parameter that is wrong.
    pub(super) fn filter(&self) -> Result<ItemFilter, Problem> {
        let names = ItemResult::ALL.iter().map(|result| result.name());
        Ok(ItemFilter {
            result: params::one_of("result", self.result.as_deref(), ItemResult::from_name, names)?,
            after: params::cursor(self.cursor.as_deref(), |text| text.parse().ok().filter(|at| *at >= 0))?,
            limit: params::limit(self.limit)?,
        })
    }
}

/// A replay's letters, in the order in which they are taken
#[utoipa::path(
    get, path = "/replays/{id}/items", tag = "replays", operation_id = "list_replay_items",
    params(("id" = Uuid, Path, description = "The replay"), ItemParams),
    responses(
        (status = 200, description = "A page of its letters", body = LetterPage),
        (status = 404, description = "There is none", body = ProblemDetails, content_type = "application/problem+json"),
        Refusals
    )
)]
pub(super) async fn items(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(id): Path<String>,
    params: Result<Query<ItemParams>, QueryRejection>,
) -> Result<Json<LetterPage>, Problem> {
    let id = params::uuid("id", &id)?;
    let filter = params::query(params)?.filter()?;
    let run = admin.store.run(id).await?.ok_or_else(unknown)?;
    let page = admin.store.run_items(id, &filter).await?;
    Ok(Json(letters(&run, &filter, page)))
}

/// The run's own counts are the totals: nobody has to count.
fn letters(run: &Run, filter: &ItemFilter, page: ItemPage) -> LetterPage {
    let total = i64::from(match filter.result {
        None => run.letters,
        Some(ItemResult::Open) => run.open(),
        Some(ItemResult::Replayed) => run.replayed,
        Some(ItemResult::Skipped) => run.skipped,
        Some(ItemResult::Failed) => run.failed,
    });
    let max = crate::store::messages::TOTAL_MAX;
    LetterPage {
        items: page.items.into_iter().map(Letter::from).collect(),
        total: total.min(max),
        total_is_exact: total <= max,
        next: page.next,
    }
}

/// Starts, pauses, resumes or cancels a replay
///
/// Asked for once more, what has been done is no fault. A running replay stops within a second or two.
#[utoipa::path(
    post, path = "/replays/{id}/{action}", tag = "replays", operation_id = "steer_replay",
    params(
        ("id" = Uuid, Path, description = "The replay"),
        ("action" = String, Path, description = "start, pause, resume or cancel", pattern = "^(start|pause|resume|cancel)$")
    ),
    responses(
        (status = 200, description = "The replay as it is now", body = Replay),
        (status = 404, description = "There is none, or no such action", body = ProblemDetails,
            content_type = "application/problem+json"),
        (status = 409, description = "That cannot be done with it any more, or not yet", body = ProblemDetails,
            content_type = "application/problem+json"),
        Refusals
    )
)]
pub(super) async fn act(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path((id, action)): Path<(String, String)>,
) -> Result<Json<Replay>, Problem> {
    operator.needs(Role::Operator)?;
    let id = params::uuid("id", &id)?;
    let action: RunAction = action
        .parse()
        .map_err(|()| Problem::new(StatusCode::NOT_FOUND, "an action is one of start, pause, resume, cancel"))?;
    Ok(Json(Replay::from(&change(&admin, id, action, &operator).await?)))
}

/// Does something with a run.
pub(super) async fn change(admin: &Admin, id: Uuid, action: RunAction, operator: &Operator) -> Result<Run, Problem> {
    match admin.store.change_run(id, action, &operator.by(), None).await? {
        RunChange::Done(run) => {
            tracing::info!(operator = operator.name, run = %id, action = action.name(), "a replay was changed");
            Ok(run)
        }
        RunChange::Before(run) => Ok(run),
        RunChange::Refused(state) => {
            let detail = format!("the replay is {}: {} is not possible from there", state.name(), action.name());
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        RunChange::Unknown => Err(unknown()),
    }
}

pub(super) fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such replay")
}
