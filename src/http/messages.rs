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
use serde_json::Value;

pub(super) use self::json::address_for;
pub use self::json::{message_detail_json, message_page_json};
use super::{Admin, auth::Operator, params, problem::Problem};
use crate::{
    config::Role,
    email::Status,
    store::messages::{
        MessageFilter,
        detail::{BodyPart, Viewed},
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    to: Option<String>,
    status: Option<String>,
    template: Option<String>,
    source: Option<String>,
    request_id: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
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

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = params::uuid("id", &id)?;
    let message = admin.store.message(id).await?.ok_or_else(unknown)?;
    let personal = operator.needs(Role::Operator).is_ok();
    if personal {
        admin.store.record_view(&operator.by(), Viewed::Details(id)).await?;
    }
    Ok(Json(message_detail_json(&message, personal)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BodyParams {
    part: Option<String>,
}

/// The part as plain text, whichever it is: a browser that is led here runs nothing of it.
pub(super) async fn body(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
    params: Result<Query<BodyParams>, QueryRejection>,
) -> Result<Response, Problem> {
    operator.needs(Role::Operator)?;
    let id = params::uuid("id", &id)?;
    let part = params::query(params)?.part;
    let part = params::one_of("part", part.as_deref(), BodyPart::from_name, ["html", "text"].into_iter())?
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
