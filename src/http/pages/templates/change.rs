//! Forms that change what is sent, and test mails. Who may do what is decided as for the API.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use maud::html;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{PageError, Posted, Section, csrf, editor::findings, page};
use crate::{
    config::Role,
    http::{
        Admin,
        auth::Operator,
        params::bad,
        problem::Problem,
        templates::{
            key_of,
            trial::{Trial, test_version},
            use_it_here,
        },
    },
    store::templates::change::Expects,
    versions::{self, Editor, VersionError},
};

/// An editor who saw this version active; 0: none.
pub(super) fn editor(operator: &Operator, expected_active: i32, accepts_findings: bool) -> Editor {
    let expects = Expects::Exactly(Some(expected_active).filter(|version| *version != 0));
    Editor { by: operator.by(), expects, accepts_findings }
}

#[derive(Debug, Deserialize)]
pub(in crate::http::pages) struct Activating {
    version: i32,
    expected_active: i32,
    accept_findings: Option<String>,
}

pub(in crate::http::pages) async fn activate(
    State(admin): State<Arc<Admin>>,
    Path(key): Path<String>,
    posted: Posted<Activating>,
) -> Result<Response, PageError> {
    let Posted { session, form } = posted;
    session.operator.needs(Role::Admin)?;
    let key = key_of(key)?;
    let editor = editor(&session.operator, form.expected_active, form.accept_findings.is_some());
    match versions::activate(&admin.store, &key, form.version, &editor).await {
        Ok(_) => {
            use_it_here(&admin).await;
            Ok(Redirect::to(&format!("/templates/{key}")).into_response())
        }
        Err(VersionError::Risky(found)) => {
            let body = html! {
                h1.break { "Version " (form.version) " of " (key) }
                p.notice.warn role="alert" { "Requests as they are sent now would fail. Nothing was changed." }
                (findings(&found))
                form.row method="post" action=(format!("/templates/{key}/activate")) {
                    (csrf(&session))
                    input type="hidden" name="version" value=(form.version);
                    input type="hidden" name="expected_active" value=(form.expected_active);
                    input type="hidden" name="accept_findings" value="yes";
                    button.danger type="submit" { "Activate it all the same" }
                    a.button.quiet href=(format!("/templates/{key}")) { "Back" }
                }
            };
            let shown = page(&session, Section::Templates, &key, &body);
            Ok((axum::http::StatusCode::UNPROCESSABLE_ENTITY, shown).into_response())
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::http::pages) struct Switching {
    expected_active: i32,
}

pub(in crate::http::pages) async fn roll_back(
    State(admin): State<Arc<Admin>>,
    Path(key): Path<String>,
    posted: Posted<Switching>,
) -> Result<Redirect, PageError> {
    let Posted { session, form } = posted;
    session.operator.needs(Role::Admin)?;
    let key = key_of(key)?;
    versions::roll_back(&admin.store, &key, &editor(&session.operator, form.expected_active, false)).await?;
    use_it_here(&admin).await;
    Ok(Redirect::to(&format!("/templates/{key}")))
}

pub(in crate::http::pages) async fn deactivate(
    State(admin): State<Arc<Admin>>,
    Path(key): Path<String>,
    posted: Posted<Switching>,
) -> Result<Redirect, PageError> {
    let Posted { session, form } = posted;
    session.operator.needs(Role::Admin)?;
    let key = key_of(key)?;
    versions::deactivate(&admin.store, &key, &editor(&session.operator, form.expected_active, false)).await?;
    use_it_here(&admin).await;
    Ok(Redirect::to(&format!("/templates/{key}")))
}

#[derive(Debug, Deserialize)]
pub(in crate::http::pages) struct Testing {
    to: String,
    version: i32,
    locale: Option<String>,
    variables: String,
}

pub(in crate::http::pages) async fn test(
    State(admin): State<Arc<Admin>>,
    Path(key): Path<String>,
    posted: Posted<Testing>,
) -> Result<Redirect, PageError> {
    let Posted { session, form } = posted;
    session.operator.needs(Role::Operator)?;
    let key = key_of(key)?;
    let variables = object("variables", &form.variables)?;
    let to = Some(form.to.trim().to_owned());
    let trial = Trial { version: Some(form.version), variables, locale: form.locale, to, send: true };
    let tested = test_version(&admin, &key, trial).await?;
    let request = tested.request_id.map(|id| id.to_string()).unwrap_or_default();
    Ok(Redirect::to(&format!("/templates/{key}?sent={request}")))
}

/// Variables as a person writes them.
pub(super) fn object(name: &str, text: &str) -> Result<Map<String, Value>, Problem> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|error| {
        bad(format!("{name}: it is no JSON object (line {}, column {})", error.line(), error.column()))
    })
}
