//! `/api/v1/email/lanes` and `/daemons`: how the lanes fare, at all daemons together, and which of them shall take nothing.

/// What is shown.
pub(crate) mod view;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::view::{DaemonsView, LaneView, LanesView, PauseView, daemons_view, lane_view, lanes_view};
use super::{
    Admin,
    auth::Operator,
    params::{Optional, bad, optional},
    problem::{BodyRefusals, Problem, ProblemDetails, Refusals},
};
use crate::{config::Role, email::Lane, lanes::Fleet, store::lanes::NOTE_CHARS_MAX};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(daemons))
}

impl Admin {
    /// How the lanes fare at all daemons together.
    pub(super) async fn fleet(&self) -> Fleet {
        Fleet::seen_by(&self.store, &self.pauses, &self.depths, &self.reporter).await
    }
}

/// How the lanes fare
///
/// Sums over all daemons that are alive. Figures of other daemons than the one asked are up to five seconds old, depths a
/// second. What cannot be asked now is null, and `broker_error` or `database_error` says why.
#[utoipa::path(
    get, path = "/lanes", tag = "lanes", operation_id = "list_lanes",
    responses((status = 200, description = "All lanes, fastest first", body = LanesView), Refusals)
)]
pub(super) async fn list(State(admin): State<Arc<Admin>>, _operator: Operator) -> Json<LanesView> {
    Json(lanes_view(&admin.fleet().await))
}

/// How one lane fares
#[utoipa::path(
    get, path = "/lanes/{lane}", tag = "lanes", operation_id = "show_lane",
    params(("lane" = String, Path, description = "`fast`, `standard` or `bulk`")),
    responses(
        (status = 200, description = "The lane", body = LaneView),
        (status = 404, description = "There is no such lane", body = ProblemDetails, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(name): Path<String>,
) -> Result<Json<LaneView>, Problem> {
    let lane = lane(&name)?;
    Ok(Json(lane_view(&admin.fleet().await, lane)))
}

/// Why something is done.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SteeringReason)]
pub(super) struct Why {
    /// Kept until it is anonymised: no personal data
    #[schema(max_length = 500, pattern = "^[^\\x00]*$", example = "wrong prices in the announcement")]
    note: Option<String>,
}

/// What became of a lane.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Steered {
    /// `fast`, `standard` or `bulk`
    lane: &'static str,
    /// Whether anything was changed
    is_new: bool,
    /// The pause that is in force now; null: the lane runs
    paused: Option<PauseView>,
    /// What an operator should know
    warning: Option<&'static str>,
}

/// Pause a lane, at all daemons
///
/// Its consumers are cancelled, and what is not being finished goes back to the queue, where everything waits until the lane
/// is resumed. A lane that is paused already stays so, with the first one's name and note.
#[utoipa::path(
    post, path = "/lanes/{lane}/pause", tag = "lanes", operation_id = "pause_lane", request_body = Option<Why>,
    params(("lane" = String, Path, description = "`fast`, `standard` or `bulk`")),
    responses(
        (status = 200, description = "It is paused", body = Steered),
        (status = 404, description = "There is no such lane", body = ProblemDetails, content_type = "application/problem+json"),
        Refusals,
        BodyRefusals,
    )
)]
pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(name): Path<String>,
    body: Optional<Why>,
) -> Result<Json<Steered>, Problem> {
    Ok(Json(steer(&admin, &operator, &name, Order::Pause, optional(body)?.note).await?))
}

/// Resume a lane, at all daemons
#[utoipa::path(
    post, path = "/lanes/{lane}/resume", tag = "lanes", operation_id = "resume_lane", request_body = Option<Why>,
    params(("lane" = String, Path, description = "`fast`, `standard` or `bulk`")),
    responses(
        (status = 200, description = "It runs", body = Steered),
        (status = 404, description = "There is no such lane", body = ProblemDetails, content_type = "application/problem+json"),
        Refusals,
        BodyRefusals,
    )
)]
pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(name): Path<String>,
    body: Optional<Why>,
) -> Result<Json<Steered>, Problem> {
    Ok(Json(steer(&admin, &operator, &name, Order::Resume, optional(body)?.note).await?))
}

/// The daemons that are alive
#[utoipa::path(
    get, path = "/daemons", tag = "lanes", operation_id = "list_daemons",
    responses((status = 200, description = "Those that started first first", body = DaemonsView), Refusals)
)]
pub(super) async fn daemons(State(admin): State<Arc<Admin>>, _operator: Operator) -> Json<DaemonsView> {
    Json(daemons_view(&admin.fleet().await))
}

/// What whoever pauses the fast lane should know.
pub const FAST_WARNING: &str = "incidents (P0) wait until the fast lane is resumed, also while the database is away";

/// What a lane can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Pause,
    Resume,
}

/// Tells a lane to take nothing, or to go on, if this operator may.
///
/// # Errors
/// 403, 404, 400 when the note cannot be kept, 503.
pub(super) async fn steer(
    admin: &Admin,
    operator: &Operator,
    name: &str,
    order: Order,
    note: Option<String>,
) -> Result<Steered, Problem> {
    operator.needs(Role::Operator)?;
    let (lane, note, by) = (lane(name)?, fitting(note)?, operator.by());
    match order {
        Order::Pause => {
            let (pause, is_new) = admin.store.pause_lane(lane, &by, note.as_deref()).await?;
            if is_new {
                tracing::warn!(operator = operator.name, lane = lane.name(), "a lane was paused");
            }
            let warning = (lane == Lane::Fast).then_some(FAST_WARNING);
            Ok(Steered { lane: lane.name(), is_new, paused: Some(PauseView::of(&pause)), warning })
        }
        Order::Resume => {
            let is_new = admin.store.resume_lane(lane, &by, note.as_deref()).await?.is_some();
            if is_new {
                tracing::info!(operator = operator.name, lane = lane.name(), "a lane was resumed");
            }
            Ok(Steered { lane: lane.name(), is_new, paused: None, warning: None })
        }
    }
}

fn lane(name: &str) -> Result<Lane, Problem> {
    Lane::from_name(name)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such lane: use fast, standard or bulk"))
}

fn fitting(note: Option<String>) -> Result<Option<String>, Problem> {
    let note = note.filter(|note| !note.is_empty());
    if note.as_deref().is_some_and(|note| note.contains('\0') || note.chars().count() > NOTE_CHARS_MAX) {
        return Err(bad(format!("note: at most {NOTE_CHARS_MAX} characters, none of them NUL")));
    }
    Ok(note)
}
