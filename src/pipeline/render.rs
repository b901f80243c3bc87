//! Stage 3: request and template become subject, HTML and text; attachments are checked on the way.
//!
//! Invariant: rendering decides nothing. A failure here is final only when admission finds that the request is not
//! settled already, whatever has become of its template since.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{Halt, Pipeline, headers};
use crate::{
    email::{AttachmentContent, EmailRequest, Envelope, Lane, Manifest, Reason, attachment},
    reload,
    store::Words,
    telemetry::span::Span,
    templates::{AttachedFile, CompiledTemplate, HTML_BYTES_MAX, RenderError, System},
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

    /// What a trace says of it.
    pub(super) fn tell(&self, span: &Span) {
        if span.is_on() {
            span.set("email.template", self.label().to_owned());
            if let Some(version) = self.version() {
                span.set("email.template_version", i64::from(version));
            }
            if let Err((reason, _)) = &self.words {
                span.fail(reason.name());
            }
        }
    }

    pub(super) fn version(&self) -> Option<i32> {
        self.template.as_ref().map(|t| t.version())
    }
}

impl Pipeline {
    pub(super) async fn render(
        &self,
        envelope: &Envelope,
        request: &EmailRequest,
        published_at: DateTime<Utc>,
    ) -> Result<Rendering, Halt> {
        let Some(template) = self.template_of(envelope, request).await? else {
            let error = self.why_no_template(request).await?;
            return Ok(Rendering { template: None, words: Err((Reason::UnknownTemplate, error)) });
        };
        Ok(self.render_with(request, published_at, template).await)
    }

    /// The same without asking the database; nothing: the template is not at hand.
    pub(super) async fn render_from_memory(
        &self,
        envelope: &Envelope,
        request: &EmailRequest,
        published_at: DateTime<Utc>,
    ) -> Option<Rendering> {
        let key = &request.template_key;
        let template = match envelope.template_version.or(request.template_version) {
            Some(version) => self.catalogue.version(key, version),
            None => self.catalogue.active(key),
        };
        Some(self.render_with(request, published_at, template?).await)
    }

    async fn render_with(
        &self,
        request: &EmailRequest,
        published_at: DateTime<Utc>,
        template: Arc<CompiledTemplate>,
    ) -> Rendering {
        let _desk = self.quarantine.desk().await;
        let words = self
            .check_attachments(request, template.manifest())
            .map_err(|error| (Reason::BadAttachment, error))
            .and_then(|()| self.check_unsubscribe(request, template.manifest()))
            .and_then(|()| self.words(request, published_at, &template));
        Rendering { template: Some(template), words: words.map(Arc::new) }
    }

    pub(super) fn words(
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
            unsubscribe_url: self
                .unsubscribe
                .as_ref()
                .filter(|_| template.manifest().is_marketing())
                .map(|links| links.placeholder()),
        };
        match template.render(&request.variables, &system) {
            Ok(mail) => {
                // A template's sample was short enough when it was saved; what a producer puts into it may not be.
                if mail.html.len() > HTML_BYTES_MAX {
                    tracing::warn!(
                        template = template.key(),
                        bytes = mail.html.len(),
                        "Gmail shows the first {HTML_BYTES_MAX} bytes of a mail's HTML, so its end will not be seen"
                    );
                }
                Ok(Words { subject: mail.subject, html: mail.html, text: mail.text })
            }
            Err(error) => {
                let reason = match error {
                    RenderError::MissingVariable { .. } => Reason::MissingVariable,
                    _ => Reason::RenderFailed,
                };
                Err((reason, error.to_string()))
            }
        }
    }

    /// The version that the first claim fixed, else the pinned one, else the active one. What the catalogue does not have
    /// may have been published a moment ago.
    pub(super) async fn template_of(
        &self,
        envelope: &Envelope,
        request: &EmailRequest,
    ) -> Result<Option<Arc<CompiledTemplate>>, Halt> {
        let key = &request.template_key;
        let fixed = if envelope.may_be_known() {
            // Its words are kept, but who always gets it, and its tries, are the template's to say: the same as then.
            Box::pin(self.patiently(|| self.store.fixed_version(envelope.lane, request.id))).await?
        } else {
            None
        };
        // Where there are no rows yet, the daemon that made this copy without the database has fixed it.
        let by_copy = envelope.template_version.filter(|_| envelope.lane == Lane::Fast && envelope.generation == 0);
        let stored = match fixed.or(by_copy).or(request.template_version) {
            Some(version) => {
                if let Some(known) = self.catalogue.version(key, version) {
                    return Ok(Some(known));
                }
                Box::pin(self.patiently(|| self.store.template_version(key, version))).await?
            }
            None => {
                if let Some(active) = self.catalogue.active(key) {
                    return Ok(Some(active));
                }
                let all = Box::pin(self.patiently(|| self.store.active_templates())).await?;
                all.into_iter().find(|t| t.key == *key)
            }
        };
        let Some(stored) = stored else { return Ok(None) };
        match reload::compile_stored(&stored, self.rules.tries_default) {
            Ok(compiled) => {
                self.catalogue.insert(&compiled);
                Ok(Some(compiled))
            }
            Err(error) => {
                tracing::error!(%error, "a stored template cannot be used");
                Ok(None)
            }
        }
    }

    /// What the dead letter of a request without a template says.
    async fn why_no_template(&self, request: &EmailRequest) -> Result<String, Halt> {
        let key = &request.template_key;
        let newest = Box::pin(self.patiently(|| self.store.newest_template_version(key))).await?;
        let active = Box::pin(self.patiently(|| self.store.active_template(key))).await?;
        Ok(match (newest, request.template_version.or(active.map(|active| active.version))) {
            (None, _) => {
                format!("there is no template {key}: create it, or mend the producer, then replay this letter")
            }
            (Some(newest), Some(version)) if version > newest.version => {
                format!("there is no version {version} of template {key}; its newest is {}", newest.version)
            }
            (Some(_), Some(version)) => {
                format!("version {version} of template {key} cannot be used by this daemon; its log says why")
            }
            (Some(newest), None) => format!(
                "no version of template {key} is active: activate one (`postrider templates activate {key} {}`), \
                 then replay this letter",
                newest.version
            ),
        })
    }

    /// Nobody gets marketing that they cannot be rid of.
    fn check_unsubscribe(&self, request: &EmailRequest, manifest: &Manifest) -> Result<(), (Reason, String)> {
        if manifest.is_marketing() && self.unsubscribe.is_none() {
            return Err((Reason::NoUnsubscribeLink, headers::no_link(&request.template_key)));
        }
        Ok(())
    }

    fn check_attachments(&self, request: &EmailRequest, manifest: &Manifest) -> Result<(), String> {
        if let Some(first) = request.attachments.first()
            && manifest.attachments.is_empty()
        {
            return Err(format!("{}: template {} takes no attachments", first.file_name, request.template_key));
        }
        let (total, total_max) = (request.attachment_bytes(), self.rules.attachments_total_max);
        if total > total_max {
            return Err(format!(
                "the attachments have {total} bytes together; the limit is {total_max} \
                 (EMAIL_MAX_ATTACHMENTS_TOTAL_MB): make them smaller, or link to them"
            ));
        }
        for file in &request.attachments {
            let (name, kind) = (&file.file_name, &file.content_type);
            let (types, bytes_max) = (&self.rules.attachment_types, self.rules.attachment_bytes_max);
            let found = match &file.content {
                AttachmentContent::Inline { bytes, .. } => {
                    attachment::check_attachment(name, kind, bytes, types, bytes_max)
                }
                AttachmentContent::Reference { size_bytes, .. } => {
                    attachment::check_description(name, kind, *size_bytes, types, bytes_max)
                }
            };
            let found = found.map_err(|error| error.to_string())?;
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
            if let AttachmentContent::Reference { uri, .. } = &file.content {
                let allowed = self.store.objects().source_of(uri);
                allowed.map_err(|error| format!("attachment \"{}\": {error}", file.file_name))?;
            }
        }
        Ok(())
    }
}
