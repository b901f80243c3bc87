//! Templates between folder, database and catalogue: the folder fills the database, the database feeds the catalogue.
//!
//! Invariant: what runs is what the database says. The folder only proposes.

use std::{path::Path, sync::Arc, time::Duration};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    store::{
        Store, StoreError,
        templates::{
            StoredVersion,
            change::{Activation, Added, Edit, Expects, Refused, TemplateHead},
        },
        told::Topic,
    },
    templates::{Catalogue, CompiledTemplate, FolderFaults, TemplateSource, compile_sound, read_folder},
};

/// How often a daemon asks whether an activation has happened that it was not told of.
pub const POLL: Duration = Duration::from_millis(500);

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
    /// The change does not fit what is in the database.
    #[error(transparent)]
    Refused(#[from] Refused),
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
    /// That version, ready to render: who loads it does not compile it again.
    #[serde(skip)]
    pub template: Arc<CompiledTemplate>,
}

/// Brings the folder's templates into the database. Absent keys become active; other changes become drafts, unless
/// `activate`. `by` is who does it: `operator:<name>`, or `sync` for a daemon that starts.
///
/// # Errors
/// When the folder or a template in it is not sound (then nothing is written), or the database is away.
pub async fn sync_folder(
    store: &Store,
    folder: &Path,
    tries_default: i32,
    activate: bool,
    by: &str,
) -> Result<Vec<Synced>, SyncError> {
    let sources = read_folder(folder)?;
    // What is kept was found sound when it was saved; to look at every sample again takes most of a daemon's start.
    let kept = store.template_checksums().await?;
    let (mut sound, mut faults) = (Vec::with_capacity(sources.len()), Vec::new());
    for source in sources {
        let compiled = match kept.contains(&(source.key.clone(), source.checksum().to_vec())) {
            true => CompiledTemplate::compile(&source, 0, tries_default),
            false => compile_sound(&source, tries_default),
        };
        match compiled {
            // Boxed: one of them is kept over each question to the database.
            Ok(compiled) => sound.push(Box::new((source, compiled))),
            Err(found) => faults.extend(found.iter().map(|fault| format!("{}: {fault}", source.key))),
        }
    }
    if !faults.is_empty() {
        return Err(SyncError::Lint(faults));
    }
    let mut all = Vec::with_capacity(sound.len());
    for one in sound {
        let (source, compiled) = &*one;
        let activation = if activate { Activation::Always } else { Activation::OfFirst };
        let edit = Edit { by, expects: Expects::Anything, accepted: &[] };
        let document = serde_json::to_value(source).unwrap_or_default();
        let added =
            store.add_template(&head_of(source, compiled), &document, &source.checksum(), activation, &edit).await?;
        let (version, result) = match added {
            Ok(Added::First) => (1, "added"),
            Ok(Added::Same(version)) => (version, "unchanged"),
            Ok(Added::Draft(version)) => (version, "draft"),
            Ok(Added::Activated(version) | Added::Reactivated(version)) => (version, "activated"),
            Err(refused) => return Err(SyncError::Refused(refused)),
        };
        let (source, compiled) = *one;
        all.push(Synced { key: source.key, version, result, template: Arc::new(compiled.as_version(version)) });
    }
    Ok(all)
}

/// What the original's columns show of a version.
#[must_use]
pub fn head_of(source: &TemplateSource, template: &CompiledTemplate) -> TemplateHead {
    let manifest = template.manifest();
    TemplateHead {
        key: source.key.clone(),
        subject: source.subject.clone(),
        html: source.html.clone(),
        text: source.text.clone(),
        required_variables: manifest.required.clone(),
        attachments_allowed: !manifest.attachments.is_empty(),
        category: manifest.category.clone(),
    }
}

/// Fills the catalogue with the active versions.
///
/// # Errors
/// When the database is away, or a version in it cannot be used: a daemon does not begin without one that mails need.
pub async fn load(store: &Store, catalogue: &Catalogue, tries_default: i32) -> Result<(), SyncError> {
    match refresh(store, catalogue, tries_default).await?.into_iter().next() {
        Some(unusable) => Err(unusable),
        None => Ok(()),
    }
}

/// Brings the catalogue up to date. A version that this daemon cannot use leaves the one before it in use, and is returned.
///
/// # Errors
/// When the database is away.
pub async fn refresh(store: &Store, catalogue: &Catalogue, tries_default: i32) -> Result<Vec<SyncError>, StoreError> {
    // Asked before the versions: an activation in between is then seen by the next look.
    let generation = store.template_generation().await?;
    let (mut active, mut unusable) = (Vec::new(), Vec::new());
    for (key, version) in store.active_versions().await? {
        // Versions never change: what is at hand is not compiled again.
        if let Some(known) = catalogue.version(&key, version) {
            active.push(known);
            continue;
        }
        let Some(stored) = store.template_version(&key, version).await? else { continue };
        match compile_stored(&stored, tries_default) {
            Ok(compiled) => active.push(compiled),
            Err(error) => {
                tracing::error!(%error, "an active template cannot be used by this daemon; the version before it stays in use");
                active.extend(catalogue.active(&key));
                unusable.push(error);
            }
        }
    }
    catalogue.replace_active(generation, &active);
    Ok(unusable)
}

/// Follows activations until `stop`: when told, and by itself every `poll`.
pub async fn follow(
    store: Arc<Store>,
    catalogue: Arc<Catalogue>,
    tries_default: i32,
    poll: Duration,
    stop: CancellationToken,
) {
    let mut told = store.told(Topic::Templates);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = told.changed() => {}
            () = tokio::time::sleep(poll) => {}
        }
        let looked = async {
            if store.template_generation().await? != catalogue.generation() {
                refresh(&store, &catalogue, tries_default).await?;
                tracing::info!(generation = catalogue.generation(), "templates reloaded");
            }
            Ok::<_, StoreError>(())
        };
        // The lanes notice by themselves; mails go on from the templates that are loaded.
        if let Err(error) = looked.await {
            tracing::debug!(%error, "cannot ask for activations");
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
