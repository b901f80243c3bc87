//! `/api/v1/email/messages/{id}/resend`: a recorded mail goes out again, as it was.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Admin,
    auth::Operator,
    params::{self, Optional},
    problem::{BodyRefusals, Problem, ProblemDetails, Refusals},
};
use crate::{
    config::Role,
    retransmission::{self, KEY_CHARS_MAX, Refusal, Resent},
    store::retransmission::{Retransmission, Wish},
};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(look, resend))
}

/// Whether a mail would be sent again, and how often it was.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Outlook {
    /// It would be sent again now
    is_possible: bool,
    /// Why not, for programs
    #[schema(example = "suppressed")]
    why: Option<&'static str>,
    /// The same for people
    words: Option<String>,
    /// The requests that repeat it, the oldest first; at most a hundred
    retransmissions: Vec<Repeat>,
}

/// A request that repeats a recorded mail.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Repeat {
    /// The new request
    request_id: Uuid,
    /// Its one mail
    message_id: Uuid,
    /// The mail that it repeats
    repeats: Uuid,
    /// `operator:<name>`
    asked_by: String,
    at: DateTime<Utc>,
    /// The broker has it; otherwise a daemon publishes it as soon as it can
    is_published: bool,
}

impl From<&Retransmission> for Repeat {
    fn from(request: &Retransmission) -> Self {
        Self {
            request_id: request.request_id,
            message_id: request.message_id,
            repeats: request.repeats,
            asked_by: request.asked_by.clone(),
            at: request.at,
            is_published: request.is_published,
        }
    }
}

/// Whether this mail would be sent again, and how often it was
#[utoipa::path(
    get, path = "/messages/{id}/resend", tag = "messages", operation_id = "look_at_resend",
    params(("id" = Uuid, Path, description = "The mail")),
    responses(
        (status = 200, description = "Whether it would be", body = Outlook),
        (status = 404, description = "There is no such mail", body = ProblemDetails,
            content_type = "application/problem+json"),
        Refusals
    )
)]
pub(super) async fn look(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<Outlook>, Problem> {
    let id = params::uuid("id", &id)?;
    let plan = retransmission::plan(&admin.store, id).await?.ok_or_else(unknown)?;
    let retransmissions = admin.store.retransmissions_of(id).await?;
    let refusal = plan.as_ref().err();
    Ok(Json(Outlook {
        is_possible: plan.is_ok(),
        why: refusal.map(Refusal::name),
        words: refusal.map(ToString::to_string),
        retransmissions: retransmissions.iter().map(Repeat::from).collect(),
    }))
}

/// How a mail is sent again.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Again {
    /// The same key for the same mail is one request, however often it is asked for. Without one, a mail that was sent again
    /// within five minutes, or is still on its way again, is not sent once more
    #[schema(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$")]
    key: Option<String>,
}

/// What became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answer {
    #[serde(flatten)]
    request: Repeat,
    /// The request was made now
    is_new: bool,
}

/// Why a mail is not sent again.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only described")]
struct NotResent {
    #[schema(inline)]
    #[serde(flatten)]
    problem: ProblemDetails,
    /// For programs
    #[schema(example = "anonymised")]
    why: String,
}

/// Sends a recorded mail again, with the words and files that it had, as a new request
#[utoipa::path(
    post, path = "/messages/{id}/resend", tag = "messages", operation_id = "resend_message",
    params(("id" = Uuid, Path, description = "The mail")), request_body = Option<Again>,
    responses(
        (status = 202, description = "It goes out again, or did so already", body = Answer),
        (status = 404, description = "There is no such mail", body = ProblemDetails,
            content_type = "application/problem+json"),
        (status = 409, description = "It is not sent again; `why` says so for programs", body = NotResent,
            content_type = "application/problem+json"),
        Refusals, BodyRefusals
    )
)]
pub(super) async fn resend(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
    body: Optional<Again>,
) -> Result<(StatusCode, Json<Answer>), Problem> {
    operator.needs(Role::Operator)?;
    let id = params::uuid("id", &id)?;
    let key = params::optional(body)?.key;
    let (request, is_new) = resend_as(&admin, &operator, id, key.as_deref()).await?;
    Ok((StatusCode::ACCEPTED, Json(Answer { request: Repeat::from(&request), is_new })))
}

/// Sends a mail again. Answers the request for it, and whether it was made now.
pub(super) async fn resend_as(
    admin: &Admin,
    operator: &Operator,
    id: Uuid,
    key: Option<&str>,
) -> Result<(Retransmission, bool), Problem> {
    if key.is_some_and(|key| key.is_empty() || key.contains('\0') || key.chars().count() > KEY_CHARS_MAX) {
        return Err(params::bad(format!("key: 1 to {KEY_CHARS_MAX} characters, none of them NUL")));
    }
    let by = operator.by();
    let wish = Wish { message: id, by: &by, key };
    let domain = &admin.mail.message_id_domain;
    match retransmission::resend(&admin.store, &admin.replays, &admin.rules, domain, &wish).await? {
        Resent::Done { request, is_new, is_published } => {
            if is_new {
                tracing::info!(operator = operator.name, message.id = %id, request.id = %request.request_id,
                    "a recorded mail is sent again");
            }
            Ok((Retransmission { is_published, ..request }, is_new))
        }
        Resent::Refused(refusal) => {
            Err(Problem::new(StatusCode::CONFLICT, refusal.to_string()).with("why", json!(refusal.name())))
        }
        Resent::Unknown => Err(unknown()),
    }
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such mail")
}
