//! Adding and lifting entries, for the API and the pages alike.

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{address, reason, unknown};
use crate::{
    config::Role,
    email::SuppressionReason,
    http::{Admin, auth::Operator, names::SuppressionReasonName, params::bad, problem::Problem},
    store::suppressions::{CATEGORY_CHARS_MAX, NOTE_CHARS_MAX, NewSuppression, Suppression},
};

/// An address that shall get no mail.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewSuppression)]
pub(in crate::http) struct NewEntry {
    #[schema(format = Email, example = "someone@example.org")]
    pub(in crate::http) address: String,
    /// `operator` unless it is said
    #[schema(value_type = Option<SuppressionReasonName>)]
    pub(in crate::http) reason: Option<String>,
    /// What was unsubscribed from
    #[schema(max_length = 50, pattern = "^[^\\x00]*$")]
    pub(in crate::http) category: Option<String>,
    /// For whoever looks at it later
    #[schema(max_length = 500, pattern = "^[^\\x00]*$", example = "asked by telephone")]
    pub(in crate::http) note: Option<String>,
    /// Until when, in the future; for ever unless it is said
    #[schema(example = "2126-11-24T18:00:00Z")]
    pub(in crate::http) expires_at: Option<DateTime<Utc>>,
}

/// Adds an entry; answers it as it stands, and whether it is new.
///
/// # Errors
/// 403 for viewers, 400 naming the field that is wrong, 409 when it was lifted at the same moment, 503.
pub(in crate::http) async fn add_entry(
    admin: &Admin,
    operator: &Operator,
    new: NewEntry,
) -> Result<(Suppression, bool), Problem> {
    operator.needs(Role::Operator)?;
    let address = address(&new.address)?;
    let reason = new.reason.as_deref().map_or(Ok(SuppressionReason::Operator), reason)?;
    if new.expires_at.is_some_and(|at| at <= Utc::now()) {
        return Err(bad("expires_at: it is past"));
    }
    let category = fitting(new.category, "category", CATEGORY_CHARS_MAX)?;
    let entry = NewSuppression {
        category: category.clone().filter(|category| !category.is_empty()),
        note: fitting(new.note, "note", NOTE_CHARS_MAX)?.filter(|note| !note.is_empty()),
        expires_at: new.expires_at,
        ..NewSuppression::new(
            admin.store.address_hash(&address.key()),
            Some(address.as_str().to_owned()),
            reason,
            operator.by(),
        )
    };
    let written = admin.store.suppress_as(std::slice::from_ref(&entry), Some(&operator.by()), |_| ()).await?;
    refresh(admin).await;
    tracing::info!(operator = operator.name, %reason, "an address was put on the suppression list");
    let stands = admin.store.suppressions_of(&entry.address_hash).await?;
    let stands = stands.into_iter().find(|other| other.reason == reason && other.category == entry.category);
    let stands = stands.ok_or_else(|| Problem::new(StatusCode::CONFLICT, "somebody took it off the list meanwhile"))?;
    Ok((stands, written.added == 1))
}

/// Lifts the entries of an address; answers what was lifted. An empty category means the entries that have none.
///
/// # Errors
/// 403 for viewers, 400 naming the field that is wrong, 404 when there is nothing to lift, 503.
pub(in crate::http) async fn lift_entries(
    admin: &Admin,
    operator: &Operator,
    hash: &[u8; 32],
    of_reason: Option<&str>,
    category: Option<String>,
    note: Option<String>,
) -> Result<Vec<Suppression>, Problem> {
    operator.needs(Role::Operator)?;
    let of_reason = of_reason.map(reason).transpose()?;
    let category = fitting(category, "category", CATEGORY_CHARS_MAX)?;
    let note = fitting(note, "note", NOTE_CHARS_MAX)?.filter(|note| !note.is_empty());
    let lifted =
        admin.store.lift_suppressions(hash, of_reason, category.as_deref(), &operator.by(), note.as_deref()).await?;
    if lifted.is_empty() {
        return Err(unknown());
    }
    refresh(admin).await;
    tracing::info!(operator = operator.name, entries = lifted.len(), "an address was taken off the suppression list");
    Ok(lifted)
}

/// The claims look into the table; only the fast lane without a database asks the copy in memory.
pub(super) async fn refresh(admin: &Admin) {
    if let Err(error) = admin.store.load_suppressions().await {
        tracing::warn!(%error, "could not load the suppression list; it is loaded again within half a minute");
    }
}

/// The address' hash that a path ends with.
///
/// # Errors
/// 400.
pub(in crate::http) fn hash_of(id: &str) -> Result<[u8; 32], Problem> {
    let hash = hex::decode(id).ok().and_then(|bytes| bytes.try_into().ok());
    hash.ok_or_else(|| bad("the path ends with the `id` that the list shows: 64 hexadecimal digits"))
}

fn fitting(text: Option<String>, field: &str, chars_max: usize) -> Result<Option<String>, Problem> {
    match text {
        Some(text) if text.contains('\0') => Err(bad(format!("{field}: it holds a NUL character"))),
        Some(text) if text.chars().count() > chars_max => {
            Err(bad(format!("{field}: it is longer than {chars_max} characters")))
        }
        other => Ok(other),
    }
}
