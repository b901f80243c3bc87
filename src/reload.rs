//! Templates between folder, database and catalogue: the folder fills the database, the database feeds the catalogue.
//!
//! Invariant: what runs is what the database says. The folder only proposes.

use std::{path::Path, sync::Arc, time::Duration};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    store::{
        Store, StoreError,
        templates::{Added, StoredVersion, TemplateHead},
    },
    templates::{Catalogue, CompiledTemplate, FolderFaults, TemplateSource, lint, read_folder},
};

/// How often a daemon asks whether an activation has happened.
const POLL: Duration = Duration::from_millis(500);

/// Why templates could not be synchronised.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The folder cannot be read, or is not one of templates.
    #[error("{0}")]
    Folder(#[from] FolderFaults),
    /// Some do not lint; none was written.
    #[error("{}", .0.join("\n"))]
    Lint(Vec<String>),
    /// The database is away.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored version cannot be used.
    #[error("template {key} version {version} in the database cannot be used: {words}")]
    Stored {
        /// Which.
        key: String,
        /// Which version.
        version: i32,
        /// Why.
        words: String,
    },
}

/// What synchronising did to one template.
#[derive(Debug, Serialize)]
pub struct Synced {
    /// Which.
    pub key: String,
    /// Which version the folder's content is.
    pub version: i32,
    /// `added`, `unchanged`, `draft` or `activated`.
    pub result: &'static str,
}

/// Brings the folder's templates into the database. Absent keys become active; other changes become drafts, unless
/// `activate`.
///
/// # Errors
/// When the folder or a template in it is not sound (then nothing is written), or the database is away.
pub async fn sync_folder(
    store: &Store,
    folder: &Path,
    tries_default: i32,
    activate: bool,
) -> Result<Vec<Synced>, SyncError> {
    let sources = read_folder(folder)?;
    let faults: Vec<String> = sources
        .iter()
        .flat_map(|source| lint(source).into_iter().map(move |fault| format!("{}: {fault}", source.key)))
        .collect();
    if !faults.is_empty() {
        return Err(SyncError::Lint(faults));
    }
    let mut all = Vec::with_capacity(sources.len());
    for source in &sources {
        let compiled = compile(source, 0, tries_default)?;
        let manifest = compiled.manifest();
        let head = TemplateHead {
            key: source.key.clone(),
            subject: source.subject.clone(),
            html: source.html.clone(),
            text: source.text.clone(),
            required_variables: manifest.required.clone(),
            attachments_allowed: !manifest.attachments.is_empty(),
            category: manifest.category.clone(),
        };
        let document = serde_json::to_value(source).unwrap_or_default();
        let (version, result) = match store.add_template(&head, &document, &source.checksum(), activate).await? {
            Added::First => (1, "added"),
            Added::Same(version) => (version, "unchanged"),
            Added::Draft(version) => (version, "draft"),
            Added::Activated(version) => (version, "activated"),
        };
        all.push(Synced { key: source.key.clone(), version, result });
    }
    Ok(all)
}

/// Fills the catalogue with the active versions; answers the generation that it then shows.
///
/// # Errors
/// When the database is away, or a version in it cannot be used.
pub async fn load(store: &Store, catalogue: &Catalogue, tries_default: i32) -> Result<i64, SyncError> {
    // Asked before the versions: an activation in between is then seen by the next poll.
    let generation = store.template_generation().await?;
    let mut compiled = Vec::new();
    for stored in store.active_templates().await? {
        compiled.push(compile_stored(&stored, tries_default)?);
    }
    catalogue.replace_active(&compiled);
    Ok(generation)
}

/// Follows activations until `stop`.
pub async fn follow(
    store: Arc<Store>,
    catalogue: Arc<Catalogue>,
    tries_default: i32,
    mut generation: i64,
    stop: CancellationToken,
) {
    loop {
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(POLL) => {} }
        let now = match store.template_generation().await {
            Ok(now) => now,
            // The lanes notice by themselves; mails go on from the templates that are loaded.
            Err(error) => {
                tracing::debug!(%error, "cannot ask for activations");
                continue;
            }
        };
        if now == generation {
            continue;
        }
        match load(&store, &catalogue, tries_default).await {
            Ok(loaded) => {
                tracing::info!(generation = loaded, "templates reloaded");
                generation = loaded;
            }
            Err(error) => tracing::error!(%error, "templates could not be reloaded; the old ones stay"),
        }
    }
}

/// Compiles a version from the database.
///
/// # Errors
/// When it cannot be used.
pub fn compile_stored(stored: &StoredVersion, tries_default: i32) -> Result<Arc<CompiledTemplate>, SyncError> {
    let unusable = |words: String| SyncError::Stored { key: stored.key.clone(), version: stored.version, words };
    let source: TemplateSource =
        serde_json::from_value(stored.source.clone()).map_err(|error| unusable(error.to_string()))?;
    compile(&source, stored.version, tries_default)
}

fn compile(source: &TemplateSource, version: i32, tries_default: i32) -> Result<Arc<CompiledTemplate>, SyncError> {
    CompiledTemplate::compile(source, version, tries_default).map(Arc::new).map_err(|faults| SyncError::Stored {
        key: source.key.clone(),
        version,
        words: faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    })
}
