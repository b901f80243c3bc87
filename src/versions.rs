//! Versions of templates between a person's hand and the database: checked, saved, activated, rolled back. API, pages and
//! command line alike come this way.
//!
//! Invariant: what is unsound (see [`lint`](crate::templates::lint())) is never saved; what would fail the requests that
//! producers send now becomes active only when somebody says that it shall.

/// What stands against a version.
pub mod findings;

/// What changed between two versions.
pub mod difference;

/// A person's changes, laid over the version that they began from.
pub mod parts;

use std::sync::Arc;

use serde_json::Value;
use tokio::{sync::Semaphore, task::spawn_blocking};

pub use self::{
    findings::{Finding, Severity},
    parts::Parts,
};
use crate::{
    reload::head_of,
    store::{
        Store, StoreError,
        templates::{
            StoredVersion,
            change::{Activation, Added, Edit, Expects, Refused, Switched},
        },
    },
    templates::{CompiledTemplate, Inspection, TemplateSource, inspect},
};

/// People's templates are compiled and tried by this many hands at most: mails go first.
static HANDS: Semaphore = Semaphore::const_new(2);

/// Why nothing was saved or activated.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The database is away.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It does not fit what is there.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no such template, and not enough to make it of.
    #[error("template {key} is new: it also needs {}", .missing.join(", "))]
    Incomplete {
        /// Which.
        key: String,
        /// The parts that are missing.
        missing: Vec<&'static str>,
    },
    /// It can never be sent.
    #[error("the template is not sound, nothing was saved: {}", words(.0))]
    Unsound(Vec<Finding>),
    /// What producers send now would fail.
    #[error("requests as they are sent now would fail, nothing was changed: {}; accept the findings, or save a draft", words(.0))]
    Risky(Vec<Finding>),
    /// What is stored cannot be read.
    #[error("version {version} of template {key} cannot be used: {words}")]
    Unusable {
        /// Which template.
        key: String,
        /// Which version.
        version: i32,
        /// Why.
        words: String,
    },
}

fn words(findings: &[Finding]) -> String {
    let serious = findings.iter().filter(|finding| finding.severity != Severity::Remark);
    serious.map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Who changes something, and how sure they are.
#[derive(Debug, Clone)]
pub struct Editor {
    /// `operator:<name>`.
    pub by: String,
    /// What they think is active.
    pub expects: Expects,
    /// Whether they want it although producers' requests would fail.
    pub accepts_findings: bool,
}

/// What saving did.
#[derive(Debug)]
pub struct Saved {
    /// Which version has this content.
    pub version: i32,
    /// Whether it was made for it.
    pub is_new: bool,
    /// Whether it is active now.
    pub is_active: bool,
    /// What stands against it.
    pub findings: Vec<Finding>,
}

/// What activating did.
#[derive(Debug)]
pub struct Activated {
    /// What was active before, and is now.
    pub switched: Switched,
    /// What stands against it.
    pub findings: Vec<Finding>,
}

/// Checks a source: by itself, and against what producers sent lately.
///
/// # Errors
/// When the database is away.
pub async fn check(store: &Store, source: TemplateSource) -> Result<Vec<Finding>, StoreError> {
    Ok(examine(store, source).await?.1)
}

/// The same, with the compiled template if it is sound.
async fn examine(
    store: &Store,
    source: TemplateSource,
) -> Result<(Option<Arc<CompiledTemplate>>, Vec<Finding>), StoreError> {
    let key = source.key.clone();
    let (source, Inspection { faults, remarks }, template) = by_hand(move || {
        // Version and tries play no part in what is checked.
        let template = CompiledTemplate::compile(&source, 0, 1).ok().map(Arc::new);
        let inspection = inspect(&source);
        (source, inspection, template)
    })
    .await;
    let Some(template) = template.filter(|_| faults.is_empty()) else {
        return Ok((None, faults.into_iter().map(Finding::fault).collect()));
    };
    let shapes = match store.recent_shapes(&key).await {
        Ok(shapes) => shapes,
        // A database that is merely busy must not stand in the way of a correction.
        Err(error) => return Ok((Some(template), vec![Finding::not_looked_at(&error)])),
    };
    let compiled = Arc::clone(&template);
    let mut findings = by_hand(move || findings::against(&compiled, &source.sample, &shapes)).await;
    findings.extend(remarks.into_iter().map(Finding::worth_a_look));
    Ok((Some(template), findings))
}

/// Runs what takes a processor's time beside the threads that carry mails.
pub async fn by_hand<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // The semaphore is never closed.
    let _hand = HANDS.acquire().await;
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The version that somebody began from: this one, else the active one, else the newest.
///
/// # Errors
/// When the database is away; inside, when there is no such version.
pub async fn base(store: &Store, key: &str, version: Option<i32>) -> Result<Option<TemplateSource>, VersionError> {
    let stored = match version {
        Some(version) => Some(store.template_version(key, version).await?.ok_or(Refused::UnknownVersion(version))?),
        None => match store.active_template(key).await? {
            Some(active) => Some(active),
            None => store.newest_template_version(key).await?,
        },
    };
    stored.as_ref().map(source_of).transpose()
}

/// A stored version as its author wrote it.
///
/// # Errors
/// When it cannot be read.
pub fn source_of(stored: &StoredVersion) -> Result<TemplateSource, VersionError> {
    serde_json::from_value(stored.source.clone()).map_err(|error| VersionError::Unusable {
        key: stored.key.clone(),
        version: stored.version,
        words: error.to_string(),
    })
}

/// Saves a source as a version, and makes it active unless it is a draft.
///
/// # Errors
/// When the database is away, the source is not sound, producers' requests would fail and that is not accepted, or somebody
/// else was faster.
pub async fn save(
    store: &Store,
    source: TemplateSource,
    is_draft: bool,
    editor: &Editor,
) -> Result<Saved, VersionError> {
    let (template, findings) = examine(store, source.clone()).await?;
    let Some(template) = template else { return Err(VersionError::Unsound(findings)) };
    let accepted = if is_draft { Vec::new() } else { accepted(&findings, editor)? };
    let activation = if is_draft { Activation::Never } else { Activation::Always };
    let edit = Edit { by: &editor.by, expects: editor.expects, accepted: &accepted };
    let document = serde_json::to_value(&source).unwrap_or(Value::Null);
    let head = head_of(&source, &template);
    let added = store.add_template(&head, &document, &source.checksum(), activation, &edit).await??;
    let (version, is_new) = match added {
        Added::First => (1, true),
        Added::Draft(version) | Added::Activated(version) => (version, true),
        Added::Same(version) | Added::Reactivated(version) => (version, false),
    };
    let is_active = match added {
        // The draft of what is active already.
        Added::Same(_) if is_draft => store.active_template(&source.key).await?.is_some_and(|a| a.version == version),
        Added::Draft(_) => false,
        _ => true,
    };
    Ok(Saved { version, is_new, is_active, findings })
}

/// Makes a version active.
///
/// # Errors
/// As [`save`], and when there is no such version.
pub async fn activate(store: &Store, key: &str, version: i32, editor: &Editor) -> Result<Activated, VersionError> {
    let stored = store.template_version(key, version).await?.ok_or(Refused::UnknownVersion(version))?;
    let source = source_of(&stored)?;
    let (template, findings) = examine(store, source.clone()).await?;
    let Some(template) = template else { return Err(VersionError::Unsound(findings)) };
    let accepted = accepted(&findings, editor)?;
    let edit = Edit { by: &editor.by, expects: editor.expects, accepted: &accepted };
    let switched = store.activate_template(&head_of(&source, &template), version, &edit).await??;
    Ok(Activated { switched, findings })
}

/// Returns to what was active before. It was good enough once: only what cannot be compiled any more stands in the way.
///
/// # Errors
/// When the database is away, nothing was active before, or somebody else was faster.
pub async fn roll_back(store: &Store, key: &str, editor: &Editor) -> Result<Switched, VersionError> {
    let back = store.template_before(key).await?.ok_or(Refused::NothingBefore)?;
    let stored = store.template_version(key, back.version).await?.ok_or(Refused::UnknownVersion(back.version))?;
    let source = source_of(&stored)?;
    let compiling = source.clone();
    let template = by_hand(move || CompiledTemplate::compile(&compiling, back.version, 1)).await;
    let template =
        template.map_err(|faults| VersionError::Unsound(faults.into_iter().map(Finding::fault).collect()))?;
    let edit = Edit { by: &editor.by, expects: editor.expects, accepted: &[] };
    Ok(store.roll_template_back(&head_of(&source, &template), &back, &edit).await??)
}

/// Makes no version active: requests for the template become dead letters until one is, but for those that pin a version and
/// those that were begun.
///
/// # Errors
/// When the database is away, none is active, or somebody else was faster.
pub async fn deactivate(store: &Store, key: &str, editor: &Editor) -> Result<Switched, VersionError> {
    let edit = Edit { by: &editor.by, expects: editor.expects, accepted: &[] };
    Ok(store.deactivate_template(key, &edit).await??)
}

/// The findings that somebody accepts, in words.
fn accepted(findings: &[Finding], editor: &Editor) -> Result<Vec<String>, VersionError> {
    let risks: Vec<String> =
        findings.iter().filter(|finding| finding.severity == Severity::Risk).map(ToString::to_string).collect();
    if !risks.is_empty() && !editor.accepts_findings {
        return Err(VersionError::Risky(findings.to_vec()));
    }
    Ok(risks)
}
