//! `/api/v1/email/suppressions`: who gets no mail, and why.
//!
//! Invariant: no path holds an address; one entry's address is known by its hash, which the list shows as `id`.
//! Invariant: whoever changed something is in the history, and this daemon's copy in memory is fresh before it answers.

/// The list as a file, both ways.
pub(super) mod file;

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
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Admin,
    auth::Operator,
    params::{self, bad, query},
    problem::Problem,
};
use crate::{
    config::Role,
    email::{EmailAddress, SuppressionReason},
    store::suppressions::{
        CATEGORY_CHARS_MAX, Cursor, NOTE_CHARS_MAX, NewSuppression, Suppression, SuppressionChange, SuppressionFilter,
    },
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    address: String,
    reason: Option<String>,
    category: Option<String>,
    note: Option<String>,
    expires_at: Option<DateTime<Utc>>,
}

/// 201 when it is new, 200 when the address was on the list for that already.
pub(super) async fn add(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    body: Result<Json<New>, JsonRejection>,
) -> Result<Response, Problem> {
    operator.needs(Role::Operator)?;
    let Json(new) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let address = address(&new.address)?;
    let reason = new.reason.as_deref().map_or(Ok(SuppressionReason::Operator), reason)?;
    if new.expires_at.is_some_and(|at| at <= Utc::now()) {
        return Err(bad("expires_at: it is past"));
    }
    let category = fitting(new.category, "category", CATEGORY_CHARS_MAX)?;
    let entry = NewSuppression {
        category: category.clone(),
        note: fitting(new.note, "note", NOTE_CHARS_MAX)?,
        expires_at: new.expires_at,
        ..NewSuppression::new(
            admin.store.address_hash(&address.key()),
            Some(address.as_str().to_owned()),
            reason,
            operator.by(),
        )
    };
    let written = admin.store.suppress_as(std::slice::from_ref(&entry), Some(&operator.by()), |_| ()).await?;
    refresh(&admin).await;
    tracing::info!(operator = operator.name, %reason, "an address was put on the suppression list");
    let stands = admin.store.suppressions_of(&entry.address_hash).await?;
    let stands = stands.iter().find(|other| other.reason == reason && other.category == category);
    let status = if written.added == 1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!(stands.map(|entry| suppression_json(entry, true))))).into_response())
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
    let reason = params.reason.as_deref().map(reason).transpose()?;
    let category = fitting(params.category, "category", CATEGORY_CHARS_MAX)?;
    let note = fitting(params.note, "note", NOTE_CHARS_MAX)?;
    let lifted =
        admin.store.lift_suppressions(&hash, reason, category.as_deref(), &operator.by(), note.as_deref()).await?;
    if lifted.is_empty() {
        return Err(unknown());
    }
    refresh(&admin).await;
    tracing::info!(operator = operator.name, entries = lifted.len(), "an address was taken off the suppression list");
    let left = admin.store.suppressions_of(&hash).await?;
    let shown =
        |entries: &[Suppression]| -> Vec<Value> { entries.iter().map(|entry| suppression_json(entry, true)).collect() };
    Ok(Json(json!({ "lifted": shown(&lifted), "left": shown(&left) })))
}

/// The claims look into the table; only the fast lane without a database asks the copy in memory.
async fn refresh(admin: &Admin) {
    if let Err(error) = admin.store.load_suppressions().await {
        tracing::warn!(%error, "could not load the suppression list; it is loaded again within half a minute");
    }
}

fn unknown() -> Problem {
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

fn hash_of(id: &str) -> Result<[u8; 32], Problem> {
    let hash = hex::decode(id).ok().and_then(|bytes| bytes.try_into().ok());
    hash.ok_or_else(|| bad("the path ends with the `id` that the list shows: 64 hexadecimal digits"))
}

fn fitting(text: Option<String>, field: &str, chars_max: usize) -> Result<Option<String>, Problem> {
    match text {
        Some(text) if text.contains('\0') => Err(bad(format!("{field}: it holds a NUL character"))),
        Some(text) if text.chars().count() > chars_max => {
            Err(bad(format!("{field}: it is longer than {chars_max} characters")))
        }
        other => Ok(other.filter(|text| !text.is_empty())),
    }
}
