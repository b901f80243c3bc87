//! What a version makes of its variables, for a frame: HTML that is not ours, in a document that may run nothing.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{Path, Query, State},
    response::Response,
};
use maud::{DOCTYPE, html};
use serde::Deserialize;

use super::{PageError, Posted, Session, editor, one};
use crate::{
    http::{
        Admin,
        pages::mail_document,
        templates::{
            key_of,
            trial::{Previewed, try_out},
        },
    },
    templates::TemplateSource,
};

/// Which part to show.
#[derive(Debug, Deserialize)]
pub(in crate::http::pages) struct Part {
    #[serde(default)]
    part: PartName,
    version: Option<i32>,
    /// Without it the template's own.
    locale: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PartName {
    #[default]
    Html,
    Text,
}

/// A saved version with its sample.
pub(in crate::http::pages) async fn saved(
    State(admin): State<Arc<Admin>>,
    _session: Session,
    Path(key): Path<String>,
    Query(asked): Query<Part>,
) -> Result<Response, PageError> {
    let key = key_of(key)?;
    let source = one(&admin, &key, asked.version.unwrap_or_default()).await?;
    Ok(document(&admin, source, asked.part, asked.locale).await)
}

/// What stands in the editor.
pub(in crate::http::pages) async fn unsaved(
    State(admin): State<Arc<Admin>>,
    Path(key): Path<String>,
    Query(asked): Query<Part>,
    posted: Posted<BTreeMap<String, String>>,
) -> Result<Response, PageError> {
    let key = key_of(key)?;
    let written = editor::Written::read(&posted.form);
    match written.source(&key) {
        Ok(source) => Ok(document(&admin, source, asked.part, written.locale()).await),
        Err(problem) => Ok(words(&[problem.detail().to_owned()])),
    }
}

async fn document(admin: &Arc<Admin>, source: TemplateSource, part: PartName, locale: Option<String>) -> Response {
    let Previewed { html, text, faults, .. } = try_out(admin, source, None, locale).await;
    match (part, html, text) {
        (PartName::Html, Some(html), _) => mail_document(html),
        (PartName::Text, _, Some(text)) => mail_document(
            html! { (DOCTYPE) html lang="en" { head { title { "Text part" } } body { pre { (text) } } } }.into_string(),
        ),
        _ => words(&faults.iter().map(|fault| format!("{}: {}", fault.part, fault.words)).collect::<Vec<_>>()),
    }
}

/// Why there is nothing to show.
fn words(faults: &[String]) -> Response {
    let shown = html! {
        (DOCTYPE)
        html lang="en" { head { title { "No preview" } } body { h1 { "No preview" } ul { @for fault in faults { li { (fault) } } } } }
    };
    mail_document(shown.into_string())
}

/// The subject as it would be, or nothing.
pub(super) async fn subject(admin: &Arc<Admin>, source: TemplateSource, locale: Option<String>) -> Option<String> {
    try_out(admin, source, None, locale).await.subject
}
