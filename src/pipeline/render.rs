//! Stage 3: request and template become subject, HTML and text; attachments are checked on the way.
//!
//! Invariant: rendering decides nothing. A failure here is final only when admission finds that the request is not
//! settled already, whatever has become of its template since.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::Pipeline;
use crate::{
    email::{AttachmentContent, EmailRequest, Manifest, Reason, attachment},
    store::Words,
    templates::{AttachedFile, CompiledTemplate, RenderError, System, TemplateSource},
};

/// What came of rendering.
pub(super) struct Rendering {
    /// The template, if there is one.
    pub(super) template: Option<Arc<CompiledTemplate>>,
    /// The words, or why there are none.
    pub(super) words: Result<Arc<Words>, (Reason, String)>,
}

impl Rendering {
    pub(super) fn manifest(&self) -> Option<&Manifest> {
        self.template.as_ref().map(|t| t.manifest())
    }

    /// For metrics: the template's key; a key that nobody knows must not make a new series.
    pub(super) fn label(&self) -> &str {
        self.template.as_ref().map_or("unknown", |t| t.key())
    }

    pub(super) fn version(&self) -> Option<i32> {
        self.template.as_ref().map(|t| t.version())
    }
}

impl Pipeline {
    pub(super) async fn render(&self, request: &EmailRequest, published_at: DateTime<Utc>) -> Rendering {
        let Some(template) = self.template_of(request).await else {
            let error = match request.template_version {
                Some(version) => format!("there is no version {version} of template {}", request.template_key),
                None => format!("there is no template {}", request.template_key),
            };
            return Rendering { template: None, words: Err((Reason::UnknownTemplate, error)) };
        };
        let words = self
            .check_attachments(request, template.manifest())
            .map_err(|error| (Reason::BadAttachment, error))
            .and_then(|()| self.words(request, published_at, &template));
        Rendering { template: Some(template), words: words.map(Arc::new) }
    }

    fn words(
        &self,
        request: &EmailRequest,
        published_at: DateTime<Utc>,
        template: &CompiledTemplate,
    ) -> Result<Words, (Reason, String)> {
        let attachments: Vec<AttachedFile<'_>> = request
            .attachments
            .iter()
            .map(|a| AttachedFile { file_name: &a.file_name, content_type: &a.content_type })
            .collect();
        let system = System {
            request_date: published_at,
            attachments: &attachments,
            support_email: self.mail.support_email.as_deref(),
            support_phone: self.mail.support_phone.as_deref(),
            timezone: self.mail.timezone,
            locale: request.locale.as_deref().unwrap_or(&template.manifest().locale),
        };
        match template.render(&request.variables, &system) {
            Ok(mail) => Ok(Words { subject: mail.subject, html: mail.html, text: mail.text }),
            Err(error) => {
                let reason = match error {
                    RenderError::MissingVariable { .. } => Reason::MissingVariable,
                    _ => Reason::RenderFailed,
                };
                Err((reason, error.to_string()))
            }
        }
    }

    /// The pinned version, else the active one. What the catalogue does not have may have been published a moment ago.
    async fn template_of(&self, request: &EmailRequest) -> Option<Arc<CompiledTemplate>> {
        let key = &request.template_key;
        if let Some(version) = request.template_version {
            if let Some(known) = self.catalogue.version(key, version) {
                return Some(known);
            }
            let stored = self.patiently(|| self.store.template_version(key, version)).await??;
            let compiled = self.compile(&stored.source, version)?;
            self.catalogue.insert(&compiled);
            return Some(compiled);
        }
        if let Some(active) = self.catalogue.active(key) {
            return Some(active);
        }
        let stored = self.patiently(|| self.store.active_templates()).await?;
        let stored = stored.into_iter().find(|t| t.key == *key)?;
        self.compile(&stored.source, stored.version)
    }

    fn compile(&self, source: &serde_json::Value, version: i32) -> Option<Arc<CompiledTemplate>> {
        let source: TemplateSource = serde_json::from_value(source.clone()).ok()?;
        match CompiledTemplate::compile(&source, version, self.rules.tries_default) {
            Ok(compiled) => Some(Arc::new(compiled)),
            Err(faults) => {
                tracing::error!(
                    template = source.key,
                    version,
                    faults = faults.len(),
                    "a stored template does not compile"
                );
                None
            }
        }
    }

    fn check_attachments(&self, request: &EmailRequest, manifest: &Manifest) -> Result<(), String> {
        if let Some(first) = request.attachments.first()
            && manifest.attachments.is_empty()
        {
            return Err(format!("{}: template {} takes no attachments", first.file_name, request.template_key));
        }
        for file in &request.attachments {
            match &file.content {
                AttachmentContent::Inline { bytes, .. } => {
                    let found = attachment::check_attachment(
                        &file.file_name,
                        &file.content_type,
                        bytes,
                        &self.rules.attachment_types,
                        self.rules.attachment_bytes_max,
                    )
                    .map_err(|error| error.to_string())?;
                    let accepted = manifest.attachments.iter().any(|name| name == found.name());
                    if !accepted && file.content_id.is_none() {
                        return Err(format!(
                            "{}: template {} takes {} only, not {}",
                            file.file_name,
                            request.template_key,
                            manifest.attachments.join(", "),
                            found.name()
                        ));
                    }
                }
                AttachmentContent::Reference { .. } => {
                    return Err(format!(
                        "{}: attachments by reference cannot be fetched by this version; send the bytes inline",
                        file.file_name
                    ));
                }
            }
        }
        Ok(())
    }
}
