//! `/api/v1/email/templates`: which there are, what they make of some variables, and the way from a correction to an activation.
//!
//! Invariant: whoever may look may also try a template out; only an operator sends a test, and only an admin changes anything.
//! Invariant: this daemon uses what was activated here before it answers.

/// Changing what is sent.
mod change;

/// Versions and their differences.
mod history;

/// Trying a template out.
pub(super) mod trial;

/// Other locales.
mod variants;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, IntoResponses, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::change::TemplateConflict;
use self::variants::VariantBody;
pub use self::{
    change::{saved_json, switch_json},
    history::{difference_json, version_list_json, whole_version_json},
};
use super::{
    Admin,
    auth::Operator,
    params,
    problem::{Problem, ProblemDetails, Refusals},
};
use crate::{
    email::OverCap,
    reload,
    store::templates::{StoredVersion, list::TemplateLine},
    templates::{TemplateSource, parse_manifest},
    versions::{self, Finding, Severity, VersionError},
};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, change::put))
        .routes(routes!(history::list))
        .routes(routes!(history::show))
        .routes(routes!(history::difference))
        .routes(routes!(change::activate))
        .routes(routes!(change::roll_back))
        .routes(routes!(change::deactivate))
        .routes(routes!(trial::check))
        .routes(routes!(trial::preview))
        .routes(routes!(trial::test))
}

/// What routes of one template may answer as well.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
enum Missing {
    /// There is no such template, or no such version of it.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemDetails),
}

/// What routes that take a body may answer as well.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
enum BadBody {
    /// The body is larger than 1 MiB.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemDetails),
    /// The body is not declared as `application/json`.
    #[response(status = 415, content_type = "application/problem+json")]
    NotJson(ProblemDetails),
    /// The body is not what is asked for, or the template is not sound; `findings` then says why.
    #[response(status = 422, content_type = "application/problem+json")]
    Unfit(UnfitTemplate),
}

/// Why a template is not taken.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only described")]
pub(super) struct UnfitTemplate {
    #[schema(inline)]
    #[serde(flatten)]
    problem: ProblemDetails,
    /// What stands against it; missing where the body is not what is asked for
    findings: Option<Vec<FindingItem>>,
}

/// Which templates to list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StateFilter {
    /// Those that have an active version
    #[default]
    Active,
    /// Those that have none
    Inactive,
    /// Both
    All,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Which templates; without it those that have an active version
    #[param(inline)]
    state: Option<StateFilter>,
}

/// Templates, by their keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TemplateList {
    items: Vec<TemplateItem>,
    total: usize,
}

/// One template.
#[derive(Debug, Serialize, ToSchema)]
struct TemplateItem {
    key: String,
    /// Source of the subject: of the active version, else of the newest
    subject: String,
    /// For instance `billing`; null: the manifest cannot be read
    category: Option<String>,
    /// The active version; null: there is none
    version: Option<i32>,
    is_active: bool,
    newest_version: i32,
    /// The last activation or deactivation; before the first, when the newest version was saved
    updated_at: DateTime<Utc>,
}

impl From<TemplateLine> for TemplateItem {
    fn from(line: TemplateLine) -> Self {
        Self {
            category: parse_manifest(&line.manifest_toml, 1).ok().map(|manifest| manifest.category),
            key: line.key,
            subject: line.subject.trim_end().to_owned(),
            version: line.active,
            is_active: line.active.is_some(),
            newest_version: line.newest,
            updated_at: line.updated_at,
        }
    }
}

/// Templates
#[utoipa::path(
    get, path = "/templates", tag = "templates", operation_id = "list_templates", params(ListParams),
    responses((status = 200, description = "Templates, by their keys", body = TemplateList), Refusals)
)]
pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<TemplateList>, Problem> {
    let state = params::query(params)?.state.unwrap_or_default();
    let is_meant = |line: &TemplateLine| match state {
        StateFilter::Active => line.active.is_some(),
        StateFilter::Inactive => line.active.is_none(),
        StateFilter::All => true,
    };
    let lines = admin.store.template_lines().await?;
    let items: Vec<TemplateItem> = lines.into_iter().filter(is_meant).map(TemplateItem::from).collect();
    Ok(Json(TemplateList { total: items.len(), items }))
}

/// A template as it is sent now, or as its newest version has it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Template {
    key: String,
    /// The version that is shown: the active one, else the newest
    version: i32,
    is_active: bool,
    /// The version that the daemon that answers sends now; null: none
    version_in_use: Option<i32>,
    description: String,
    category: String,
    /// `P0` to `P3`
    priority: String,
    tries: i32,
    deadline_seconds: u64,
    /// What becomes of a mail over its recipient's cap: `drop` or `defer`
    over_cap: &'static str,
    required_variables: Vec<String>,
    optional_variables: Vec<String>,
    attachments_allowed: bool,
    /// Kinds of files that it takes
    attachments: Vec<String>,
    /// `manifest.toml`, which says all of the above
    manifest: String,
    subject: String,
    html_content: String,
    text_content: String,
    /// The locale of these parts
    locale: String,
    /// The same in other locales
    variants: BTreeMap<String, VariantBody>,
    /// Variables to show and to check it with
    #[schema(value_type = Object)]
    sample: Map<String, Value>,
}

/// One template
#[utoipa::path(
    get, path = "/templates/{key}", tag = "templates", operation_id = "show_template",
    params(("key" = String, Path, description = "The template", max_length = 100)),
    responses((status = 200, description = "The active version, else the newest", body = Template), Refusals, Missing)
)]
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(key): Path<String>,
) -> Result<Json<Template>, Problem> {
    let key = key_of(key)?;
    let active = admin.store.active_template(&key).await?;
    let is_active = active.is_some();
    let stored = match active {
        Some(active) => active,
        None => admin.store.newest_template_version(&key).await?.ok_or_else(unknown)?,
    };
    let source = versions::source_of(&stored)?;
    let manifest = parse_manifest(&source.manifest_toml, admin.rules.tries_default)
        .map_err(|faults| unusable(&stored, &faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
    Ok(Json(Template {
        version: stored.version,
        is_active,
        version_in_use: admin.catalogue.active(&key).map(|template| template.version()),
        description: manifest.description,
        category: manifest.category,
        priority: manifest.priority.to_string(),
        tries: manifest.tries,
        deadline_seconds: manifest.deadline.as_secs(),
        over_cap: manifest.over_cap.unwrap_or(OverCap::Drop).name(),
        required_variables: manifest.required,
        optional_variables: manifest.optional,
        attachments_allowed: !manifest.attachments.is_empty(),
        attachments: manifest.attachments,
        manifest: source.manifest_toml,
        subject: source.subject,
        html_content: source.html,
        text_content: source.text,
        locale: manifest.locale,
        variants: variants::written(source.variants),
        sample: source.sample,
        key,
    }))
}

/// Something that stands against a version.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct FindingItem {
    /// `fault`: it cannot be saved; `risk`: requests as they are sent now would fail, it becomes active only when that is
    /// accepted; `remark`: worth a look
    #[schema(value_type = String, example = "risk")]
    severity: Severity,
    /// The file: `manifest.toml`, `subject.hbs`, `html.hbs`, `text.hbs`, `sample.json` or a partial
    pub(in crate::http) part: String,
    /// Counted from 1; null: it is about the file as a whole
    pub(in crate::http) line: Option<usize>,
    pub(in crate::http) words: String,
}

fn findings_json(findings: Vec<Finding>) -> Vec<FindingItem> {
    findings
        .into_iter()
        .map(|Finding { severity, fault }| FindingItem {
            severity,
            part: fault.part,
            line: fault.line,
            words: fault.words,
        })
        .collect()
}

impl From<VersionError> for Problem {
    fn from(error: VersionError) -> Self {
        use crate::store::templates::change::Refused;
        let words = error.to_string();
        match error {
            VersionError::Store(error) => error.into(),
            VersionError::Refused(Refused::UnknownVersion(_)) => Self::new(StatusCode::NOT_FOUND, words),
            VersionError::Refused(Refused::Conflict { active, expected }) => Self::new(StatusCode::CONFLICT, words)
                .with("versions", serde_json::json!({ "active": active, "expected": expected })),
            VersionError::Refused(Refused::NothingBefore | Refused::NotActive) => {
                Self::new(StatusCode::CONFLICT, words)
            }
            VersionError::Incomplete { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, words),
            VersionError::Unsound(findings) | VersionError::Risky(findings) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, words)
                    .with("findings", serde_json::json!(findings_json(findings)))
            }
            VersionError::Unusable { .. } => {
                tracing::error!(error = words, "a stored template cannot be read");
                Self::new(StatusCode::CONFLICT, words)
            }
        }
    }
}

fn unusable(stored: &StoredVersion, words: &str) -> Problem {
    VersionError::Unusable { key: stored.key.clone(), version: stored.version, words: words.to_owned() }.into()
}

pub(super) fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such template")
}

/// Something that could be a key: the database takes no other.
pub(super) fn key_of(key: String) -> Result<String, Problem> {
    if crate::templates::is_key(&key) { Ok(key) } else { Err(unknown()) }
}

/// The version of this number, else the active one, else the newest.
async fn base(admin: &Admin, key: &str, version: Option<i32>) -> Result<Option<TemplateSource>, Problem> {
    Ok(versions::base(&admin.store, key, version).await?)
}

/// What was changed here is in use here before the answer; the other daemons are told.
pub(super) async fn use_it_here(admin: &Admin) {
    if let Err(error) = reload::refresh(&admin.store, &admin.catalogue, admin.rules.tries_default).await {
        tracing::debug!(%error, "the change is in use a moment later");
    }
}
