//! `/api/v1/email/dead-letters`: what failed for good, and letters that nobody wants any more.
//!
//! Invariant: what shows a person is for operators, and whoever looks at one letter is noted before it is shown.

/// What answers look like.
mod json;

/// What would become of letters, and what waits.
pub(super) mod plan;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::json::{DeadLetterDetails, DeadLetterList, DiscardItem, discard_json};
pub(crate) use self::json::{content, dead_letter_json, dead_page_json, listed, words};
use super::{
    Admin,
    auth::Operator,
    names::{LetterStateName, Moment, ReasonName},
    params::{self, Optional},
    problem::{BodyRefusals, Missing, Problem, ProblemDetails, ReadRefusals, Refusals},
};
use crate::{
    config::Role,
    email::Reason,
    store::{
        dead::{DeadCursor, DeadFilter, Discard, Discarded, NOTE_CHARS_MAX},
        messages::detail::Viewed,
        replay::LetterState,
    },
};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(plan::groups))
        .routes(routes!(plan::plan))
        .routes(routes!(show))
        .routes(routes!(discard))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Why it failed
    #[param(inline, value_type = Option<ReasonName>)]
    pub(super) reason: Option<String>,
    /// A template's key
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$", example = "rma_confirmation")]
    pub(super) template: Option<String>,
    /// Who asked for it
    #[param(min_length = 1, max_length = 100, pattern = "^[^\\x00]+$", example = "billing")]
    pub(super) source: Option<String>,
    /// A recipient that did not get it
    #[param(format = Email, example = "someone@example.org")]
    pub(super) to: Option<String>,
    /// Failed at or after this time (RFC 3339), or the first moment of this day in UTC; from 1970 to 2999
    #[param(inline, value_type = Option<Moment>)]
    pub(super) since: Option<String>,
    /// Failed before this time
    #[param(inline, value_type = Option<Moment>)]
    pub(super) until: Option<String>,
    /// What became of it
    #[param(inline, value_type = Option<LetterStateName>)]
    pub(super) state: Option<String>,
    /// Items of a page
    #[param(minimum = 1, maximum = 500, default = 50)]
    pub(super) limit: Option<i64>,
    /// The `next` of an earlier answer
    #[param(
        format = "dead-letter-cursor",
        pattern = "^[0-9]{1,16}\\.[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        example = "1764000000123456.00000000-0000-0000-0000-000000000007"
    )]
    pub(super) cursor: Option<String>,
}

impl ListParams {
    /// What they ask for.
    ///
    /// # Errors
    /// 400, naming the parameter that is wrong.
    pub(super) fn filter(self, admin: &Admin) -> Result<DeadFilter, Problem> {
        let reasons = Reason::ALL.iter().map(|reason| reason.name());
        let states = LetterState::ALL.iter().map(|state| state.name());
        Ok(DeadFilter {
            reason: params::one_of("reason", self.reason.as_deref(), Reason::from_name, reasons)?
                .map(|reason| reason.name().to_owned()),
            template_key: params::word("template", self.template)?,
            source: params::word("source", self.source)?,
            states: params::one_of("state", self.state.as_deref(), LetterState::from_name, states)?
                .into_iter()
                .collect(),
            since: params::time("since", self.since.as_deref())?,
            until: params::time("until", self.until.as_deref())?,
            recipient_hash: params::recipient(admin, "to", self.to.as_deref())?,
            after: params::cursor(self.cursor.as_deref(), DeadCursor::from_text)?,
            limit: params::limit(self.limit)?,
        })
    }
}

/// What failed for good, newest first
///
/// A page looks at no more than 50,000 letters from where it begins; `searched_since` says how far back it came.
#[utoipa::path(
    get, path = "/dead-letters", tag = "dead letters", operation_id = "list_dead_letters", params(ListParams),
    responses((status = 200, description = "A page of dead letters", body = DeadLetterList), ReadRefusals)
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<DeadLetterList>, Problem> {
    let filter = params::query(params)?.filter(&admin)?;
    let page = admin.store.dead_letters(&filter).await?;
    Ok(Json(dead_page_json(&page, operator.needs(Role::Operator).is_ok())))
}

/// One dead letter with its headers, its history and its content
///
/// Who looks at it with an operator's token is noted.
#[utoipa::path(
    get, path = "/dead-letters/{id}", tag = "dead letters", operation_id = "show_dead_letter",
    params(("id" = Uuid, Path, description = "The letter's id, or its request's: then the newest of it")),
    responses((status = 200, description = "The letter", body = DeadLetterDetails), ReadRefusals, Missing)
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<DeadLetterDetails>, Problem> {
    let id = params::uuid("id", &id)?;
    let letter = admin.store.dead_letter(id).await?.ok_or_else(unknown)?;
    let personal = operator.needs(Role::Operator).is_ok();
    if personal {
        admin.store.record_view(&operator.by(), Viewed::DeadLetter(letter.summary.id)).await?;
    }
    Ok(Json(dead_letter_json(&letter, personal)))
}

/// Why a letter is discarded.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DiscardReason)]
pub(super) struct Why {
    /// For whoever looks at it later
    #[schema(max_length = 500, pattern = "^[^\\x00]*$", example = "the customer has left")]
    note: Option<String>,
}

/// A letter that is discarded.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DiscardedLetter)]
pub(super) struct DiscardedLetter {
    id: Uuid,
    #[schema(value_type = LetterStateName)]
    state: &'static str,
    /// Whether it was discarded now, and not before
    is_new: bool,
    discard: Option<DiscardItem>,
}

/// Discard a letter: it is never replayed
///
/// Once is enough: it stays as the first one said. Needs the role operator.
#[utoipa::path(
    post, path = "/dead-letters/{id}/discard", tag = "dead letters", operation_id = "discard_dead_letter",
    params(("id" = Uuid, Path, description = "The letter's id")),
    request_body = Option<Why>,
    responses(
        (status = 200, description = "It is discarded, now or before", body = DiscardedLetter),
        (
            status = 409, description = "It was replayed, or is on its way: there is nothing left to discard",
            body = ProblemDetails, content_type = "application/problem+json"
        ),
        Refusals, Missing, BodyRefusals
    )
)]
pub(super) async fn discard(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
    body: Optional<Why>,
) -> Result<Json<DiscardedLetter>, Problem> {
    operator.needs(Role::Operator)?;
    let id = params::uuid("id", &id)?;
    let note = params::optional(body)?.note;
    let (discard, is_new) = discard_as(&admin, &operator, id, note).await?;
    Ok(Json(DiscardedLetter {
        id,
        state: LetterState::Discarded.name(),
        is_new,
        discard: discard.as_ref().map(|discard| discard_json(discard, true)),
    }))
}

/// Discards a letter. Answers by whom and why it is discarded, and whether it was not before.
///
/// # Errors
/// 400 for a note that cannot be kept, 404, 409 for a letter that is on its way again, 503.
pub(super) async fn discard_as(
    admin: &Admin,
    operator: &Operator,
    id: Uuid,
    note: Option<String>,
) -> Result<(Option<Discard>, bool), Problem> {
    let note = note.filter(|note| !note.is_empty());
    if note.as_deref().is_some_and(|note| note.contains('\0') || note.chars().count() > NOTE_CHARS_MAX) {
        return Err(params::bad(format!("note: at most {NOTE_CHARS_MAX} characters, none of them NUL")));
    }
    match admin.store.discard(id, &operator.by(), note.as_deref()).await? {
        Discarded::Done(discard) => {
            tracing::info!(operator = operator.name, letter = %id, "a dead letter was discarded");
            Ok((Some(discard), true))
        }
        Discarded::Before(discard) => Ok((discard, false)),
        Discarded::Refused(state) => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("the letter is {}: only one that waits can be discarded", state.name()),
        )),
        Discarded::Unknown => Err(unknown()),
    }
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such dead letter")
}
