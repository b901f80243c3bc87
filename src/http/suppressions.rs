//! `/api/v1/email/suppressions`: who gets no mail, and why.
//!
//! Invariant: no path holds an address; one entry's address is known by its hash, which the list shows as `id`.
//! Invariant: whoever changed something is in the history, and this daemon's copy in memory is fresh before it answers.

/// The list as a file, both ways.
pub(super) mod file;

/// Adding and lifting, for the API and the pages.
mod acts;

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) use self::acts::{NewEntry, add_entry, hash_of, lift_entries};
use super::{
    Admin,
    auth::Operator,
    params::{self, bad, query},
    problem::Problem,
};
use crate::{
    config::Role,
    email::{EmailAddress, SuppressionReason},
    store::suppressions::{Cursor, Suppression, SuppressionChange, SuppressionFilter},
};

/// One entry of the list. Without the right to see persons' data the address is masked and the note is left out.
#[must_use]
pub fn suppression_json(entry: &Suppression, personal: bool) -> Value {
    let address = entry.address.as_deref().map(|address| match (personal, EmailAddress::parse(address)) {
        (true, _) => address.to_owned(),
        (false, Ok(address)) => address.masked(),
        (false, Err(_)) => "***".to_owned(),
    });
    json!({
        "id": hex::encode(entry.address_hash),
        "address": address,
        "reason": entry.reason.name(),
        "category": entry.category,
        "source": entry.source,
        "note": entry.note.as_deref().filter(|_| personal),
        "expires_at": entry.expires_at,
        "created_at": entry.created_at,
        "is_in_force": entry.is_in_force(Utc::now()),
        "stops_transactional": entry.reason.stops_transactional(),
    })
}

/// One line of an address' history.
#[must_use]
pub fn suppression_change_json(change: &SuppressionChange) -> Value {
    json!({
        "at": change.at,
        "change": change.change,
        "reason": change.reason,
        "category": Some(change.category.as_str()).filter(|category| !category.is_empty()),
        "changed_by": change.changed_by,
        "note": change.note,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    address: Option<String>,
    reason: Option<String>,
    source: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let params = query(params)?;
    let limit = params::limit(params.limit)?;
    let address = params.address.as_deref().map(address).transpose()?;
    let after = params
        .cursor
        .as_deref()
        .map(|text| Cursor::from_text(text).ok_or_else(|| bad("cursor: use the `next` of an earlier answer")));
    if params.source.as_deref().is_some_and(|source| source.contains('\0')) {
        return Err(bad("source: it holds a NUL character"));
    }
    let filter = SuppressionFilter {
        address_hash: address.map(|address| admin.store.address_hash(&address.key())),
        reason: params.reason.as_deref().map(reason).transpose()?,
        source: params.source,
        after: after.transpose()?,
        limit,
    };
    let page = admin.store.suppressions(&filter).await?;
    let personal = operator.needs(Role::Operator).is_ok();
    let items: Vec<Value> = page.items.iter().map(|entry| suppression_json(entry, personal)).collect();
    Ok(Json(json!({
        "items": items,
        "total": page.total,
        "total_is_exact": page.total_is_exact,
        "next": page.next.as_ref().map(Cursor::to_text),
    })))
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let hash = hash_of(&id)?;
    let entries = admin.store.suppressions_of(&hash).await?;
    let changes = admin.store.suppression_changes(&hash).await?;
    if entries.is_empty() && changes.is_empty() {
        return Err(unknown());
    }
    let personal = operator.needs(Role::Operator).is_ok();
    let items: Vec<Value> = entries.iter().map(|entry| suppression_json(entry, personal)).collect();
    let mut history: Vec<Value> = changes.iter().map(suppression_change_json).collect();
    if !personal {
        history.iter_mut().for_each(|line| line["note"] = Value::Null);
    }
    Ok(Json(json!({ "items": items, "history": history })))
}

/// 201 when it is new, 200 when the address was on the list for that already.
pub(super) async fn add(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    body: Result<Json<NewEntry>, JsonRejection>,
) -> Result<Response, Problem> {
    operator.needs(Role::Operator)?;
    let Json(new) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let (entry, is_new) = add_entry(&admin, &operator, new).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(suppression_json(&entry, true))).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LiftParams {
    reason: Option<String>,
    category: Option<String>,
    note: Option<String>,
}

/// Answers what was lifted, and what is left.
pub(super) async fn lift(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
    params: Result<Query<LiftParams>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    operator.needs(Role::Operator)?;
    let params = query(params)?;
    let hash = hash_of(&id)?;
    let category = params.category.filter(|category| !category.is_empty());
    let lifted = lift_entries(&admin, &operator, &hash, params.reason.as_deref(), category, params.note).await?;
    let left = admin.store.suppressions_of(&hash).await?;
    let shown =
        |entries: &[Suppression]| -> Vec<Value> { entries.iter().map(|entry| suppression_json(entry, true)).collect() };
    Ok(Json(json!({ "lifted": shown(&lifted), "left": shown(&left) })))
}

pub(super) fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "the suppression list has no such entry")
}

fn address(text: &str) -> Result<EmailAddress, Problem> {
    let hint = if text.contains(' ') { "; in a URL, + is written %2B" } else { "" };
    EmailAddress::parse(text).map_err(|error| bad(format!("address: {error}{hint}")))
}

fn reason(name: &str) -> Result<SuppressionReason, Problem> {
    SuppressionReason::from_name(name).ok_or_else(|| {
        let names: Vec<_> = SuppressionReason::ALL.iter().map(|reason| reason.name()).collect();
        bad(format!("reason: it is one of {}", names.join(", ")))
    })
}
