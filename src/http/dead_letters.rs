//! `/api/v1/email/dead-letters`: what failed for good, and letters that nobody wants any more.
//!
//! Invariant: what shows a person is for operators, and whoever looks at one letter is noted before it is shown.

/// What answers look like.
mod json;

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use self::json::discard_json;
pub(crate) use self::json::{content, dead_letter_json, dead_page_json, listed, words};
use super::{Admin, auth::Operator, params, problem::Problem};
use crate::{
    config::Role,
    email::Reason,
    store::{
        dead::{DeadCursor, DeadFilter, Discarded, NOTE_CHARS_MAX},
        messages::detail::Viewed,
        replay::LetterState,
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    reason: Option<String>,
    template: Option<String>,
    source: Option<String>,
    to: Option<String>,
    since: Option<String>,
    until: Option<String>,
    state: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let given = params::query(params)?;
    let reasons = Reason::ALL.iter().map(|reason| reason.name());
    let states = LetterState::ALL.iter().map(|state| state.name());
    let filter = DeadFilter {
        reason: params::one_of("reason", given.reason.as_deref(), Reason::from_name, reasons)?
            .map(|reason| reason.name().to_owned()),
        template_key: params::word("template", given.template)?,
        source: params::word("source", given.source)?,
        states: params::one_of("state", given.state.as_deref(), LetterState::from_name, states)?.into_iter().collect(),
        since: params::time("since", given.since.as_deref())?,
        until: params::time("until", given.until.as_deref())?,
        recipient_hash: params::recipient(&admin, "to", given.to.as_deref())?,
        after: params::cursor(given.cursor.as_deref(), DeadCursor::from_text)?,
        limit: params::limit(given.limit)?,
    };
    let page = admin.store.dead_letters(&filter).await?;
    Ok(Json(dead_page_json(&page, operator.needs(Role::Operator).is_ok())))
}

/// By the letter's id, or by its request's: then the newest of it.
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let id = params::uuid("id", &id)?;
    let letter = admin.store.dead_letter(id).await?.ok_or_else(unknown)?;
    let personal = operator.needs(Role::Operator).is_ok();
    if personal {
        admin.store.record_view(&operator.by(), Viewed::DeadLetter(letter.summary.id)).await?;
    }
    Ok(Json(dead_letter_json(&letter, personal)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    note: Option<String>,
}

/// 200 whether it is discarded now or was before; 409 when it is on its way again.
pub(super) async fn discard(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(id): Path<String>,
    body: Result<Option<Json<Why>>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    operator.needs(Role::Operator)?;
    let id = params::uuid("id", &id)?;
    let body = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let note = body.map(|Json(why)| why).unwrap_or_default().note.filter(|note| !note.is_empty());
    if note.as_deref().is_some_and(|note| note.contains('\0') || note.chars().count() > NOTE_CHARS_MAX) {
        return Err(params::bad(format!("note: at most {NOTE_CHARS_MAX} characters, none of them NUL")));
    }
    let (discard, is_new) = match admin.store.discard(id, &operator.by(), note.as_deref()).await? {
        Discarded::Done(discard) => (Some(discard), true),
        Discarded::Before(discard) => (discard, false),
        Discarded::Refused(state) => {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                format!("the letter is {}: only one that waits can be discarded", state.name()),
            ));
        }
        Discarded::Unknown => return Err(unknown()),
    };
    if is_new {
        tracing::info!(operator = operator.name, letter = %id, "a dead letter was discarded");
    }
    Ok(Json(json!({
        "id": id,
        "state": LetterState::Discarded.name(),
        "is_new": is_new,
        "discard": discard.as_ref().map(|discard| discard_json(discard, true)),
    })))
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such dead letter")
}
