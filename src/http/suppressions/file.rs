//! The suppression list as CSV: the whole of it out, page by page, and a file in.

use std::sync::Arc;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{
        DefaultBodyLimit, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{Admin, Operator, Problem, ProblemDetails, Refusals, acts::refresh, query};
use crate::{
    config::Role,
    store::{
        Store,
        suppressions::{BATCH, Suppression, Written},
    },
    suppression_file::{self, Contents, Reading},
};

/// Largest file that is taken: some two hundred thousand entries. The command line takes more.
const IMPORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Faults that an answer tells.
const FAULTS_TOLD: usize = 100;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(export)).routes(routes!(import).layer(DefaultBodyLimit::max(IMPORT_BYTES_MAX)))
}

/// The whole list as CSV
///
/// Needs the role operator.
#[utoipa::path(
    get, path = "/suppressions/export", tag = "suppressions", operation_id = "export_suppressions",
    responses((status = 200, description = "The file", body = String, content_type = "text/csv"), Refusals)
)]
pub(super) async fn export(State(admin): State<Arc<Admin>>, operator: Operator) -> Result<Response, Problem> {
    operator.needs(Role::Operator)?;
    // The first page before the answer begins, so that a database that is away is a 503 and no half file.
    let first = page(&admin.store, None).await?;
    tracing::info!(operator = operator.name, "the suppression list was exported");
    let lines = stream::try_unfold(Some((Arc::clone(&admin), first, true)), |state| async move {
        let Some((admin, entries, is_first)) = state else { return Ok(None) };
        let lines = suppression_file::write(&entries, is_first).map_err(std::io::Error::other)?;
        let next = match entries.last() {
            Some(last) if entries.len() == BATCH => {
                let entries = page(&admin.store, Some(last)).await.map_err(|_| std::io::Error::other("database"))?;
                Some((admin, entries, false))
            }
            _ => None,
        };
        Ok::<_, std::io::Error>(Some((Bytes::from(lines), next)))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"suppressions.csv\""),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

async fn page(store: &Store, after: Option<&Suppression>) -> Result<Vec<Suppression>, Problem> {
    let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
    Ok(store.suppressions_after(after, limit).await?)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportParams {
    /// Only say what would be wrong
    #[serde(default)]
    dry_run: bool,
    /// Import the other lines even if some are not sound
    #[serde(default)]
    skip_bad: bool,
}

/// What became of a file.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SuppressionImport {
    /// New entries
    added: usize,
    /// Renewed, prolonged, or with another note
    changed: usize,
    /// As they were
    unchanged: usize,
    /// Lines that are sound
    entries: usize,
    /// Lines that are not
    skipped: usize,
    /// False for a dry run
    imported: bool,
    /// The first hundred
    faults: Vec<ImportFault>,
}

/// What is wrong with a line of a file, without what stands there.
#[derive(Debug, Serialize, ToSchema)]
struct ImportFault {
    /// From 1
    line: u64,
    /// The column; null: all of the line
    #[schema(example = "address")]
    field: Option<String>,
    /// What is wrong
    problem: String,
}

/// Why nothing of a file was imported.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only described")]
struct SuppressionImportProblem {
    #[schema(inline)]
    #[serde(flatten)]
    problem: ProblemDetails,
    /// The first hundred
    faults: Vec<ImportFault>,
}

/// Read a CSV file into the list
///
/// What stands there already is renewed or prolonged, never shortened. Needs the role operator.
#[utoipa::path(
    post, path = "/suppressions/import", tag = "suppressions", operation_id = "import_suppressions", params(ImportParams),
    request_body(
        content = String, content_type = "text/csv",
        description = "The first line names the columns: address and, if wanted, reason, category, source, note, \
                       expires_at, created_at, address_hash",
        example = "address,reason\nsomeone@example.org,operator\n"
    ),
    responses(
        (status = 200, description = "What was imported", body = SuppressionImport),
        (
            status = 413, description = "The file is larger than 16 MiB",
            body = ProblemDetails, content_type = "application/problem+json"
        ),
        (
            status = 415, description = "It is not sent as `text/csv`",
            body = ProblemDetails, content_type = "application/problem+json"
        ),
        (
            status = 422, description = "Lines are not sound, and nothing was imported",
            body = SuppressionImportProblem, content_type = "application/problem+json"
        ),
        Refusals
    )
)]
pub(super) async fn import(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ImportParams>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<SuppressionImport>, Problem> {
    operator.needs(Role::Operator)?;
    let params = query(params)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/csv")) {
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the file as `Content-Type: text/csv`"));
    }
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the file is larger than {} MiB: use `postrider suppressions import`, or several files",
                IMPORT_BYTES_MAX / 1024 / 1024
            ),
        ),
        status => Problem::new(status, error.body_text()),
    })?;
    let source = format!("import:{}", operator.name);
    // A large file keeps a core busy for some tenths of a second; the others' mails go on elsewhere.
    let contents = tokio::task::block_in_place(|| {
        let hash = |key: &str| admin.store.address_hash(key);
        suppression_file::read(&body, &Reading { hash: &hash, source: &source })
    });
    if !contents.faults.is_empty() && !params.skip_bad {
        return Err(refused(&contents));
    }
    let mut written = Written::default();
    if !params.dry_run {
        written = admin.store.suppress_as(&contents.entries, Some(&operator.by()), |_| ()).await?;
        refresh(&admin).await;
        tracing::info!(operator = operator.name, entries = contents.entries.len(), "a suppression list was imported");
    }
    Ok(Json(SuppressionImport {
        added: written.added,
        changed: written.changed,
        unchanged: written.unchanged,
        entries: contents.entries.len(),
        skipped: contents.faults.len(),
        imported: !params.dry_run,
        faults: faults(&contents),
    }))
}

fn refused(contents: &Contents) -> Problem {
    let first = contents.faults.first().map(ToString::to_string).unwrap_or_default();
    let detail = format!(
        "nothing was imported: {} lines are not sound, the first: {first} (skip_bad=true imports the others)",
        contents.faults.len()
    );
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("faults", json!(faults(contents)))
}

fn faults(contents: &Contents) -> Vec<ImportFault> {
    let told = contents.faults.iter().take(FAULTS_TOLD);
    told.map(|fault| ImportFault {
        line: fault.line,
        field: fault.field.map(str::to_owned),
        problem: fault.problem.to_string(),
    })
    .collect()
}
