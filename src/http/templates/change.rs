//! Saving, activating, rolling back and deactivating. All of it is the admin's, and all of it is in the change log.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::{
    super::{
        Admin,
        auth::Operator,
        params::{self, Members, Optional, bad},
        problem::{Problem, ProblemDetails, Refusals},
    },
    BadBody, FindingItem, Missing, base, findings_json,
    history::key_and_version,
    key_of, use_it_here,
    variants::{self, VariantBody},
};
use crate::{
    config::Role,
    store::templates::change::{Expects, Switched},
    versions::{self, Activated, Editor, Parts, Saved, VersionError},
};

/// What routes that change something may answer as well.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
enum Conflict {
    /// Another version is active than was expected (`versions` names both), or there is nothing to go back to or to deactivate.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(TemplateConflict),
}

/// Why nothing was changed.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only described")]
pub(in crate::http) struct TemplateConflict {
    #[schema(inline)]
    #[serde(flatten)]
    problem: ProblemDetails,
    /// Missing where there is nothing to go back to or to deactivate
    versions: Option<ConflictingVersions>,
}

/// The version that is active, and the one that the change began from.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only described")]
struct ConflictingVersions {
    active: Option<i32>,
    expected: Option<i32>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PutParams {
    /// Save it without activating it
    #[serde(default)]
    draft: bool,
}

/// A new version. What is not given comes from the version that it is based on; a new template needs everything but partials.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct NewVersion {
    /// `manifest.toml`: description, category, priority, variables ...
    manifest: Option<String>,
    subject: Option<String>,
    html_content: Option<String>,
    text_content: Option<String>,
    /// The partials of the HTML part by name, all of them
    partials_html: Option<BTreeMap<String, String>>,
    /// The partials of the text part by name, all of them
    partials_text: Option<BTreeMap<String, String>>,
    /// The same in other locales, all of them
    variants: Option<BTreeMap<String, VariantBody>>,
    /// Variables to show and to check it with
    #[schema(value_type = Option<Object>)]
    sample: Option<Map<String, Value>>,
    /// The version that it is based on; without it the active one. If a newer one is active, nothing is saved
    #[schema(minimum = 1)]
    based_on: Option<i32>,
    /// The version that must be active, 0 for none; otherwise nothing is saved
    #[schema(minimum = 0)]
    expected_active: Option<i32>,
    /// Activate it although findings of the severity `risk` stand against it
    #[serde(default)]
    accept_findings: bool,
}

/// What an activation, a roll back or a deactivation may say.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Condition {
    /// The version that must be active, 0 for none; otherwise nothing is changed
    #[schema(minimum = 0)]
    expected_active: Option<i32>,
    /// Activate it although findings of the severity `risk` stand against it
    #[serde(default)]
    accept_findings: bool,
}

/// A version that was saved.
#[derive(Debug, Serialize, ToSchema)]
pub struct SavedVersion {
    key: String,
    version: i32,
    /// `active` or `draft`; `inactive`: a version of this content is there already, and is not active
    #[schema(value_type = String, example = "active")]
    state: &'static str,
    findings: Vec<FindingItem>,
}

/// What is active now.
#[derive(Debug, Serialize, ToSchema)]
pub struct Switch {
    key: String,
    /// The version that is active now; null: none
    version: Option<i32>,
    /// The version that was active before; null: none
    before: Option<i32>,
    findings: Vec<FindingItem>,
}

/// What was saved, as the API and `--json` give it.
#[must_use]
pub fn saved_json(key: String, saved: Saved) -> SavedVersion {
    let state = match (saved.is_active, saved.is_new) {
        (true, _) => "active",
        (false, true) => "draft",
        (false, false) => "inactive",
    };
    SavedVersion { key, version: saved.version, state, findings: findings_json(saved.findings) }
}

/// What is active now, as the API and `--json` give it.
#[must_use]
pub fn switch_json(key: String, Activated { switched, findings }: Activated) -> Switch {
    Switch { key, version: switched.now, before: switched.before, findings: findings_json(findings) }
}

fn editor(operator: &Operator, expects: Expects, accepts_findings: bool) -> Editor {
    Editor { by: operator.by(), expects, accepts_findings }
}

fn exactly(expected: i32) -> Expects {
    Expects::Exactly(Some(expected).filter(|version| *version != 0))
}

/// Save a version, and activate it unless it is a draft
///
/// The same content again is no new version. Every running daemon sends it within a second.
#[utoipa::path(
    put, path = "/templates/{key}", tag = "templates", operation_id = "save_template",
    params(("key" = String, Path, description = "The template; a new one has lower-case letters, digits and _", pattern = "^[a-z][a-z0-9_]{0,99}$"),
        PutParams),
    request_body = NewVersion,
    responses(
        (status = 200, description = "A version with this content is there already", body = SavedVersion),
        (status = 201, description = "A new version", body = SavedVersion),
        Refusals, Missing, Conflict, BadBody
    )
)]
pub(in crate::http) async fn put(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(key): Path<String>,
    params: Result<Query<PutParams>, QueryRejection>,
    body: Result<Json<Members<NewVersion>>, JsonRejection>,
) -> Result<(StatusCode, Json<SavedVersion>), Problem> {
    operator.needs(Role::Admin)?;
    if !crate::templates::is_key(&key) {
        return Err(bad("key: lower-case letters, digits and _, a letter first, at most 100 characters"));
    }
    let is_draft = params::query(params)?.draft;
    let new = params::body(body)?;
    let expects = match (new.expected_active, new.based_on) {
        (Some(expected), _) => exactly(expected),
        (None, Some(version)) => Expects::NoneAfter(version),
        (None, None) => Expects::Anything,
    };
    let editor = editor(&operator, expects, new.accept_findings);
    let base = base(&admin, &key, new.based_on).await?;
    let parts = Parts {
        manifest: new.manifest,
        subject: new.subject,
        html: new.html_content,
        text: new.text_content,
        partials_html: new.partials_html,
        partials_text: new.partials_text,
        variants: new.variants.map(variants::read),
        sample: new.sample,
    };
    let source = parts.onto(&key, base).map_err(|missing| VersionError::Incomplete { key: key.clone(), missing })?;
    let saved = versions::save(&admin.store, source, is_draft, &editor).await?;
    use_it_here(&admin).await;
    let status = if saved.is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(saved_json(key, saved))))
}

/// Make a version active
#[utoipa::path(
    post, path = "/templates/{key}/versions/{version}/activate", tag = "templates", operation_id = "activate_template_version",
    params(
        ("key" = String, Path, description = "The template", max_length = 100),
        ("version" = i32, Path, description = "Its number", minimum = 1)
    ),
    request_body = Option<Condition>,
    responses((status = 200, description = "It is active", body = Switch), Refusals, Missing, Conflict, BadBody)
)]
pub(in crate::http) async fn activate(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    path: Result<Path<(String, i32)>, PathRejection>,
    body: Optional<Condition>,
) -> Result<Json<Switch>, Problem> {
    operator.needs(Role::Admin)?;
    let (key, version) = key_and_version(path)?;
    let condition = params::optional(body)?;
    let expects = condition.expected_active.map_or(Expects::Anything, exactly);
    let editor = editor(&operator, expects, condition.accept_findings);
    let activated = versions::activate(&admin.store, &key, version, &editor).await?;
    use_it_here(&admin).await;
    Ok(Json(switch_json(key, activated)))
}

/// Return to the version that was active before
///
/// Rolling back twice goes back twice.
#[utoipa::path(
    post, path = "/templates/{key}/rollback", tag = "templates", operation_id = "roll_template_back",
    params(("key" = String, Path, description = "The template", max_length = 100)),
    request_body = Option<Condition>,
    responses((status = 200, description = "What is active now", body = Switch), Refusals, Missing, Conflict, BadBody)
)]
pub(in crate::http) async fn roll_back(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(key): Path<String>,
    body: Optional<Condition>,
) -> Result<Json<Switch>, Problem> {
    operator.needs(Role::Admin)?;
    let (key, condition) = (key_of(key)?, params::optional(body)?);
    let editor = editor(&operator, condition.expected_active.map_or(Expects::Anything, exactly), false);
    known(&admin, &key).await?;
    let switched = versions::roll_back(&admin.store, &key, &editor).await?;
    use_it_here(&admin).await;
    Ok(Json(switch_json(key, without_findings(switched))))
}

/// Make no version active
///
/// Requests for the template become dead letters until a version is active again, but for those that pin a version and those
/// that were begun already.
#[utoipa::path(
    post, path = "/templates/{key}/deactivate", tag = "templates", operation_id = "deactivate_template",
    params(("key" = String, Path, description = "The template", max_length = 100)),
    request_body = Option<Condition>,
    responses((status = 200, description = "None is active", body = Switch), Refusals, Missing, Conflict, BadBody)
)]
pub(in crate::http) async fn deactivate(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(key): Path<String>,
    body: Optional<Condition>,
) -> Result<Json<Switch>, Problem> {
    operator.needs(Role::Admin)?;
    let (key, condition) = (key_of(key)?, params::optional(body)?);
    let editor = editor(&operator, condition.expected_active.map_or(Expects::Anything, exactly), false);
    known(&admin, &key).await?;
    let switched = versions::deactivate(&admin.store, &key, &editor).await?;
    use_it_here(&admin).await;
    Ok(Json(switch_json(key, without_findings(switched))))
}

const fn without_findings(switched: Switched) -> Activated {
    Activated { switched, findings: Vec::new() }
}

/// That there is such a template at all.
async fn known(admin: &Admin, key: &str) -> Result<(), Problem> {
    admin.store.newest_template_version(key).await?.map(drop).ok_or_else(super::unknown)
}
