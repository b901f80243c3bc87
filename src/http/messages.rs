//! `GET /api/v1/email/messages`: "did they get it?", page by page; and `.../{id}`, one mail with everything known of it.
//!
//! Invariant: what shows a person is for operators, and whoever looks at one mail is noted before it is shown.

/// What answers look like.
mod json;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::json::address_for;
use self::json::{MessageDetails, MessageList};
pub use self::json::{message_detail_json, message_page_json};
use super::{
    Admin,
    auth::Operator,
    names::{BodyPartName, Moment, StatusName},
    params,
    problem::{Missing, Problem, ReadRefusals, Refusals},
};
use crate::{
    config::Role,
    email::Status,
    store::messages::{
        MessageFilter,
        detail::{BodyPart, Viewed},
    },
};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(body))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// The recipient's address
    #[param(format = Email, example = "someone@example.org")]
    to: Option<String>,
    /// Standing there now
    #[param(inline, value_type = Option<StatusName>)]
    status: Option<String>,
    /// A template's key
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$", example = "rma_confirmation")]
    template: Option<String>,
    /// Who asked for it
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$", example = "billing")]
    source: Option<String>,
    /// The request that it is part of
    #[param(value_type = Option<Uuid>)]
    request_id: Option<String>,
    /// Published at or after this time (RFC 3339), or the first moment of this day in UTC; from 1970 to 2999
    #[param(inline, value_type = Option<Moment>)]
    since: Option<String>,
    /// Published before this time
    #[param(inline, value_type = Option<Moment>)]
    until: Option<String>,
    /// Items of a page
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
    /// The `next` of an earlier answer
    #[param(value_type = Option<Uuid>)]
    cursor: Option<String>,
}

/// Mails and what became of them, newest first
///
/// By recipient, request or time they are found by an index. Status, template and source have none: a page looks at 50,000
/// mails from where it begins, and `searched_since` says how far back it came.
#[utoipa::path(
    get, path = "/messages", tag = "messages", operation_id = "list_messages", params(ListParams),
    responses((status = 200, description = "A page of mails", body = MessageList), ReadRefusals)
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<MessageList>, Problem> {
    let given = params::query(params)?;
    let names = Status::ALL.iter().map(|status| status.name());
    let request_id = given.request_id.as_deref().map(|text| params::uuid("request_id", text)).transpose()?;
    let filter = MessageFilter {
        recipient_hash: params::recipient(&admin, "to", given.to.as_deref())?,
        request_ids: request_id.map(|id| vec![id]),
        status: params::one_of("status", given.status.as_deref(), Status::from_name, names)?,
        template_key: params::word("template", given.template)?,
        source: params::word("source", given.source)?,
        since: params::time("since", given.since.as_deref())?,
        until: params::time("until", given.until.as_deref())?,
        after: params::cursor(given.cursor.as_deref(), |text| text.parse().ok())?,
        limit: params::limit(given.limit)?,
    };
    let page = admin.store.messages(&filter).await?;
    Ok(Json(message_page_json(&page, operator.needs(Role::Operator).is_ok())))
}

/// One mail with everything that is known of it
///
/// Who looks at it with an operator's token is noted.
#[utoipa::path(
    get, path = "/messages/{id}", tag = "messages", operation_id = "show_message",
    params(("id" = Uuid, Path, description = "The mail's id")),
    responses((status = 200, description = "The mail", body = MessageDetails), ReadRefusals, Missing)
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<MessageDetails>, Problem> {
    let id = params::uuid("id", &id)?;
    let message = admin.store.message(id).await?.ok_or_else(unknown)?;
    let personal = operator.needs(Role::Operator).is_ok();
    if personal {
        admin.store.record_view(&operator.by(), Viewed::Details(id)).await?;
    }
    Ok(Json(message_detail_json(&message, personal)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BodyParams {
    /// Which part
    #[param(inline, value_type = BodyPartName)]
    part: Option<String>,
}

/// A part of a mail as it was sent
///
/// Always as plain text, so that a browser that is led here runs nothing of it. Needs the role operator, and who looks is noted.
#[utoipa::path(
    get, path = "/messages/{id}/body", tag = "messages", operation_id = "message_body",
    params(("id" = Uuid, Path, description = "The mail's id"), BodyParams),
    responses((status = 200, description = "The part", body = String, content_type = "text/plain"), Refusals, Missing)
)]
pub(super) async fn body(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
    params: Result<Query<BodyParams>, QueryRejection>,
) -> Result<Response, Problem> {
    operator.needs(Role::Operator)?;
    let id = params::uuid("id", &id)?;
    let part = params::query(params)?.part;
    let names = BodyPart::ALL.iter().map(|part| part.name());
    let part = params::one_of("part", part.as_deref(), BodyPart::from_name, names)?
        .ok_or_else(|| params::bad("part: say which, html or text"))?;
    let body = admin.store.message_body(id, part).await?.ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "there is no such mail, or it was never rendered, or it was anonymised")
    })?;
    admin.store.record_view(&operator.by(), Viewed::Body(id, part)).await?;
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such mail")
}
