//! The suppression list as CSV: the whole of it out, page by page, and a file in.

use std::sync::Arc;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{
        Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Operator, Problem, acts::refresh, query};
use crate::{
    config::Role,
    store::{
        Store,
        suppressions::{BATCH, Suppression},
    },
    suppression_file::{self, Contents, Reading},
};

/// Largest file that is taken: some two hundred thousand entries. The command line takes more.
pub(in crate::http) const IMPORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Faults that an answer tells.
const FAULTS_TOLD: usize = 100;

pub(in crate::http) async fn export(State(admin): State<Arc<Admin>>, operator: Operator) -> Result<Response, Problem> {
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ImportParams {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    skip_bad: bool,
}

/// 422 with all faults, and nothing written, if there is one.
pub(in crate::http) async fn import(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<ImportParams>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
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
    let mut counts = json!({ "added": 0, "changed": 0, "unchanged": 0 });
    if !params.dry_run {
        let written = admin.store.suppress_as(&contents.entries, Some(&operator.by()), |_| ()).await?;
        refresh(&admin).await;
        tracing::info!(operator = operator.name, entries = contents.entries.len(), "a suppression list was imported");
        counts = json!({ "added": written.added, "changed": written.changed, "unchanged": written.unchanged });
    }
    counts["entries"] = json!(contents.entries.len());
    counts["skipped"] = json!(contents.faults.len());
    counts["imported"] = json!(!params.dry_run);
    counts["faults"] = faults(&contents);
    Ok(Json(counts))
}

fn refused(contents: &Contents) -> Problem {
    let first = contents.faults.first().map(ToString::to_string).unwrap_or_default();
    let detail = format!(
        "nothing was imported: {} lines are not sound, the first: {first} (skip_bad=true imports the others)",
        contents.faults.len()
    );
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).with("faults", faults(contents))
}

fn faults(contents: &Contents) -> Value {
    let told = contents.faults.iter().take(FAULTS_TOLD);
    told.map(|fault| json!({ "line": fault.line, "field": fault.field, "problem": fault.problem })).collect()
}
