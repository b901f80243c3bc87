//! `/api/v1/email/templates/{key}/versions`: which there are, one of them, and what changed between two.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::{
    super::{
        Admin,
        auth::Operator,
        params::{self, bad},
        problem::{Problem, Refusals},
    },
    Missing, key_of, unknown,
    variants::{self, VariantBody},
};
use crate::{
    store::templates::{
        change::Refused,
        list::{VersionLine, VersionPage, VersionState},
    },
    templates::TemplateSource,
    versions::{self, VersionError, difference::PartDifference},
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ListParams {
    /// Items of a page
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
    /// The `next` of an earlier answer
    #[param(pattern = "^[0-9]{1,9}$")]
    cursor: Option<String>,
}

/// Versions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionList {
    items: Vec<VersionItem>,
    /// How many there are in all
    total: i64,
    /// Cursor of the next page; null: this was the last
    next: Option<String>,
}

/// One version of a template.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionItem {
    version: i32,
    /// `active`: new mails get it; `former`: it was active once; `draft`: it never was
    #[schema(value_type = String, example = "draft")]
    state: &'static str,
    /// Name of the token that saved it; null: it came with a folder of templates
    created_by: Option<String>,
    created_at: DateTime<Utc>,
    /// SHA-256 over the content, hexadecimal
    checksum: String,
    /// When it last became active; null: never
    activated_at: Option<DateTime<Utc>>,
    /// `operator:<name>`, or `sync`; null: never
    activated_by: Option<String>,
}

impl From<&VersionLine> for VersionItem {
    fn from(line: &VersionLine) -> Self {
        Self {
            version: line.version,
            state: match line.state {
                VersionState::Active => "active",
                VersionState::Former => "former",
                VersionState::Draft => "draft",
            },
            created_by: line.created_by.clone(),
            created_at: line.created_at,
            checksum: hex::encode(&line.checksum),
            activated_at: line.activated_at,
            activated_by: line.activated_by.clone(),
        }
    }
}

/// Versions as the API and `--json` give them.
#[must_use]
pub fn version_list_json(page: &VersionPage) -> VersionList {
    VersionList {
        items: page.items.iter().map(VersionItem::from).collect(),
        total: page.total,
        next: page.next.map(|version| version.to_string()),
    }
}

/// Versions of a template
#[utoipa::path(
    get, path = "/templates/{key}/versions", tag = "templates", operation_id = "list_template_versions",
    params(("key" = String, Path, description = "The template", max_length = 100), ListParams),
    responses((status = 200, description = "Versions, newest first", body = VersionList), Refusals, Missing)
)]
pub(in crate::http) async fn list(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(key): Path<String>,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Json<VersionList>, Problem> {
    let (key, params) = (key_of(key)?, params::query(params)?);
    let limit = params::limit(params.limit)?;
    let before = params::cursor(params.cursor.as_deref(), |text| text.parse().ok())?;
    let page = admin.store.template_versions(&key, before, limit).await?;
    if page.total == 0 { Err(unknown()) } else { Ok(Json(version_list_json(&page))) }
}

/// One version with everything that it is made of.
#[derive(Debug, Serialize, ToSchema)]
pub struct WholeVersion {
    key: String,
    #[serde(flatten)]
    line: VersionItem,
    /// `manifest.toml`
    manifest: String,
    subject: String,
    html_content: String,
    text_content: String,
    /// The partials of the HTML part, by name
    partials_html: BTreeMap<String, String>,
    /// The partials of the text part, by name
    partials_text: BTreeMap<String, String>,
    /// The same in other locales
    variants: BTreeMap<String, VariantBody>,
    /// Variables to show and to check it with
    #[schema(value_type = Object)]
    sample: Map<String, Value>,
}

/// A version as the API and `--json` give it.
#[must_use]
pub fn whole_version_json(line: &VersionLine, source: TemplateSource) -> WholeVersion {
    WholeVersion {
        key: source.key,
        line: line.into(),
        manifest: source.manifest_toml,
        subject: source.subject,
        html_content: source.html,
        text_content: source.text,
        partials_html: source.partials_html,
        partials_text: source.partials_text,
        variants: variants::written(source.variants),
        sample: source.sample,
    }
}

/// One version
#[utoipa::path(
    get, path = "/templates/{key}/versions/{version}", tag = "templates", operation_id = "show_template_version",
    params(
        ("key" = String, Path, description = "The template", max_length = 100),
        ("version" = i32, Path, description = "Its number", minimum = 1)
    ),
    responses((status = 200, description = "The version with all that it is made of", body = WholeVersion), Refusals, Missing)
)]
pub(in crate::http) async fn show(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    path: Result<Path<(String, i32)>, PathRejection>,
) -> Result<Json<WholeVersion>, Problem> {
    let (key, version) = key_and_version(path)?;
    let source = source(&admin, &key, version).await?;
    let line = admin.store.template_version_line(&key, version).await?;
    let line = line.ok_or(VersionError::Refused(Refused::UnknownVersion(version)))?;
    Ok(Json(whole_version_json(&line, source)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct DifferenceParams {
    /// The older version
    #[param(minimum = 1)]
    from: i32,
    /// The newer version
    #[param(minimum = 1)]
    to: i32,
}

/// What changed between two versions.
#[derive(Debug, Serialize, ToSchema)]
pub struct Difference {
    from: i32,
    to: i32,
    /// The parts that changed
    parts: Vec<PartItem>,
}

/// What changed in one part.
#[derive(Debug, Serialize, ToSchema)]
struct PartItem {
    /// The file: `manifest.toml`, `subject.hbs`, `html.hbs`, `text.hbs`, `sample.json` or a partial
    part: String,
    /// Lines that came
    added: usize,
    /// Lines that went
    removed: usize,
    /// The changed lines with three around them, as `diff -u` writes them
    unified: String,
}

/// A difference as the API and `--json` give it.
#[must_use]
pub fn difference_json(from: i32, to: i32, parts: Vec<PartDifference>) -> Difference {
    let item = |part: PartDifference| {
        let PartDifference { part, unified, added, removed } = part;
        PartItem { part, added, removed, unified }
    };
    Difference { from, to, parts: parts.into_iter().map(item).collect() }
}

/// What changed between two versions
#[utoipa::path(
    get, path = "/templates/{key}/diff", tag = "templates", operation_id = "compare_template_versions",
    params(("key" = String, Path, description = "The template", max_length = 100), DifferenceParams),
    responses((status = 200, description = "What changed, part by part", body = Difference), Refusals, Missing)
)]
pub(in crate::http) async fn difference(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(key): Path<String>,
    params: Result<Query<DifferenceParams>, QueryRejection>,
) -> Result<Json<Difference>, Problem> {
    let (key, params) = (key_of(key)?, params::query(params)?);
    let (from, to) = (source(&admin, &key, params.from).await?, source(&admin, &key, params.to).await?);
    let parts = versions::by_hand(move || versions::difference::between(&from, &to)).await;
    Ok(Json(difference_json(params.from, params.to, parts)))
}

async fn source(admin: &Admin, key: &str, version: i32) -> Result<TemplateSource, Problem> {
    let stored = admin.store.template_version(key, version).await?;
    let stored = stored.ok_or(VersionError::Refused(Refused::UnknownVersion(version)))?;
    Ok(versions::source_of(&stored)?)
}

/// The template and the number that a path names.
pub(super) fn key_and_version(path: Result<Path<(String, i32)>, PathRejection>) -> Result<(String, i32), Problem> {
    let Path((key, version)) = path.map_err(|_| bad("version: it is a whole number from 1 on"))?;
    Ok((key_of(key)?, version))
}
