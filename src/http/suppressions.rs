//! `/api/v1/email/suppressions`: who gets no mail, and why.
//!
//! Invariant: no path holds an address; one entry's address is known by its hash, which the list shows as `id`.
//! Invariant: whoever changed something is in the history, and this daemon's copy in memory is fresh before it answers.

/// The list as a file, both ways.
mod file;

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
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::acts::{NewEntry, add_entry, hash_of, lift_entries};
use super::{
    Admin,
    auth::Operator,
    messages::address_for,
    names::SuppressionReasonName,
    params::{self, Members, bad, query},
    problem::{BodyRefusals, Missing, Problem, ProblemDetails, ReadRefusals, Refusals},
};
use crate::{
    config::Role,
    email::{EmailAddress, SuppressionReason},
    store::suppressions::{Cursor, Suppression, SuppressionChange, SuppressionFilter},
};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(show, lift)).merge(file::routes())
}

/// An address that gets no mail, for one reason.
#[derive(Debug, Serialize, ToSchema)]
pub struct SuppressionItem {
    /// Hexadecimal: a keyed hash of the address, by which the API knows it
    #[schema(min_length = 64, max_length = 64)]
    id: String,
    /// Masked for viewers; null once anonymised
    #[schema(example = "someone@example.org")]
    address: Option<String>,
    #[schema(value_type = SuppressionReasonName)]
    reason: &'static str,
    /// What was unsubscribed from; null: everything
    category: Option<String>,
    /// Who said so first
    #[schema(example = "ses")]
    source: String,
    /// Null for viewers
    note: Option<String>,
    /// Until when; null: for ever
    expires_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    /// Whether it stops mail now
    is_in_force: bool,
    /// Whether it stops every mail, and not only marketing
    stops_transactional: bool,
}

/// One entry of the list. Without the right to see persons' data the address is masked and the note is left out.
#[must_use]
pub fn suppression_json(entry: &Suppression, personal: bool) -> SuppressionItem {
    SuppressionItem {
        id: hex::encode(entry.address_hash),
        address: entry.address.as_deref().map(|address| address_for(personal, address)),
        reason: entry.reason.name(),
        category: entry.category.clone(),
        source: entry.source.clone(),
        note: entry.note.clone().filter(|_| personal),
        expires_at: entry.expires_at,
        created_at: entry.created_at,
        is_in_force: entry.is_in_force(Utc::now()),
        stops_transactional: entry.reason.stops_transactional(),
    }
}

/// Something that was changed about an address.
#[derive(Debug, Serialize, ToSchema)]
pub struct SuppressionHistoryItem {
    at: DateTime<Utc>,
    /// `added`, `changed` or `lifted`
    #[schema(example = "added")]
    change: String,
    #[schema(value_type = SuppressionReasonName)]
    reason: String,
    /// What was unsubscribed from; null: everything
    category: Option<String>,
    /// By whom
    #[schema(example = "smtp")]
    changed_by: String,
    /// Null for viewers
    note: Option<String>,
}

/// One line of an address' history.
#[must_use]
pub fn suppression_change_json(change: &SuppressionChange, personal: bool) -> SuppressionHistoryItem {
    let c = change.clone();
    SuppressionHistoryItem {
        at: c.at,
        change: c.change,
        reason: c.reason,
        category: Some(c.category).filter(|category| !category.is_empty()),
        changed_by: c.changed_by,
        note: c.note.filter(|_| personal),
    }
}

/// The suppression list, newest first; what has run out as well.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SuppressionList {
    items: Vec<SuppressionItem>,
    /// How many match in all, up to 10,000
    #[schema(minimum = 0, maximum = 10_000)]
    total: i64,
    /// Whether `total` is all of them
    total_is_exact: bool,
    /// Cursor of the next page; null: this was the last
    next: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Of this address
    #[param(format = Email, example = "someone@example.org")]
    address: Option<String>,
    /// For this reason
    #[param(inline, value_type = Option<SuppressionReasonName>)]
    reason: Option<String>,
    /// Who said so; `operator` finds every `operator:<name>`
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$", example = "operator")]
    source: Option<String>,
    /// Items of a page
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
    /// The `next` of an earlier answer
    #[param(
        format = "suppression-cursor",
        example = "MTc2NDAwMDAwMDEyMzQ1Ni8wMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA3L2NvbXBsYWludC8"
    )]
    cursor: Option<String>,
}

/// Who gets no mail, newest first
#[utoipa::path(
    get, path = "/suppressions", tag = "suppressions", operation_id = "list_suppressions", params(ListParams),
    responses((status = 200, description = "A page of the list", body = SuppressionList), ReadRefusals)
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<SuppressionList>, Problem> {
    let params = query(params)?;
    let filter = SuppressionFilter {
        address_hash: params::recipient(&admin, "address", params.address.as_deref())?,
        reason: params.reason.as_deref().map(reason).transpose()?,
        source: params::word("source", params.source)?,
        after: params::cursor(params.cursor.as_deref(), Cursor::from_text)?,
        limit: params::limit(params.limit)?,
    };
    let page = admin.store.suppressions(&filter).await?;
    let personal = operator.needs(Role::Operator).is_ok();
    Ok(Json(SuppressionList {
        items: shown(&page.items, personal),
        total: page.total,
        total_is_exact: page.total_is_exact,
        next: page.next.as_ref().map(Cursor::to_text),
    }))
}

/// One address' entries, and what was changed about them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SuppressionDetails {
    items: Vec<SuppressionItem>,
    /// Oldest first; it holds no address
    history: Vec<SuppressionHistoryItem>,
}

/// One address' entries and history
#[utoipa::path(
    get, path = "/suppressions/{id}", tag = "suppressions", operation_id = "show_suppression", params(EntryPath),
    responses((status = 200, description = "Entries and history", body = SuppressionDetails), ReadRefusals, Missing)
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(EntryPath { id }): Path<EntryPath>,
) -> Result<Json<SuppressionDetails>, Problem> {
    let hash = hash_of(&id)?;
    let entries = admin.store.suppressions_of(&hash).await?;
    let changes = admin.store.suppression_changes(&hash).await?;
    if entries.is_empty() && changes.is_empty() {
        return Err(unknown());
    }
    let personal = operator.needs(Role::Operator).is_ok();
    let history = changes.iter().map(|change| suppression_change_json(change, personal)).collect();
    Ok(Json(SuppressionDetails { items: shown(&entries, personal), history }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct EntryPath {
    /// The `id` that the list shows: no path holds an address
    #[param(
        format = "suppression-id",
        min_length = 64,
        max_length = 64,
        pattern = "^[0-9a-fA-F]{64}$",
        example = "0000000000000000000000000000000000000000000000000000000000000007"
    )]
    id: String,
}

/// Put an address on the list
///
/// What stands there already is renewed or prolonged, never shortened. Needs the role operator.
#[utoipa::path(
    post, path = "/suppressions", tag = "suppressions", operation_id = "add_suppression", request_body = NewEntry,
    responses(
        (status = 201, description = "It is on the list now", body = SuppressionItem),
        (status = 200, description = "It was on the list for that already; this is how it stands", body = SuppressionItem),
        (
            status = 409, description = "Somebody took it off again at the same moment",
            body = ProblemDetails, content_type = "application/problem+json"
        ),
        Refusals, BodyRefusals
    )
)]
pub(super) async fn add(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    body: Result<Json<Members<NewEntry>>, JsonRejection>,
) -> Result<(StatusCode, Json<SuppressionItem>), Problem> {
    operator.needs(Role::Operator)?;
    let Json(Members(new)) = body.map_err(params::unreadable)?;
    let (entry, is_new) = add_entry(&admin, &operator, new).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(suppression_json(&entry, true))))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LiftParams {
    /// Only entries for this reason
    #[param(inline, value_type = Option<SuppressionReasonName>)]
    reason: Option<String>,
    /// Only entries of this category
    #[param(max_length = 50, pattern = "^[^\\x00]*$")]
    category: Option<String>,
    /// For the history
    #[param(max_length = 500, pattern = "^[^\\x00]*$")]
    note: Option<String>,
}

/// What was lifted, and what is left.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LiftedSuppressions {
    lifted: Vec<SuppressionItem>,
    /// What still stops mail to the address
    left: Vec<SuppressionItem>,
}

/// Take an address off the list
///
/// All its entries, or those of a reason or category. Needs the role operator.
#[utoipa::path(
    delete, path = "/suppressions/{id}", tag = "suppressions", operation_id = "lift_suppression",
    params(EntryPath, LiftParams),
    responses(
        (status = 200, description = "What was lifted, and what is left", body = LiftedSuppressions), Refusals, Missing
    )
)]
pub(super) async fn lift(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(EntryPath { id }): Path<EntryPath>,
    params: Result<Query<LiftParams>, QueryRejection>,
) -> Result<Json<LiftedSuppressions>, Problem> {
    operator.needs(Role::Operator)?;
    let params = query(params)?;
    let hash = hash_of(&id)?;
    let category = params.category.filter(|category| !category.is_empty());
    let lifted = lift_entries(&admin, &operator, &hash, params.reason.as_deref(), category, params.note).await?;
    let left = admin.store.suppressions_of(&hash).await?;
    Ok(Json(LiftedSuppressions { lifted: shown(&lifted, true), left: shown(&left, true) }))
}

fn shown(entries: &[Suppression], personal: bool) -> Vec<SuppressionItem> {
    entries.iter().map(|entry| suppression_json(entry, personal)).collect()
}

pub(super) fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "the suppression list has no such entry")
}

fn address(text: &str) -> Result<EmailAddress, Problem> {
    EmailAddress::parse(text).map_err(|error| bad(format!("address: {error}")))
}

fn reason(name: &str) -> Result<SuppressionReason, Problem> {
    SuppressionReason::from_name(name).ok_or_else(|| {
        let names: Vec<_> = SuppressionReason::ALL.iter().map(|reason| reason.name()).collect();
        bad(format!("reason: it is one of {}", names.join(", ")))
    })
}
