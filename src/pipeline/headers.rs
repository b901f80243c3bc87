//! Headers that tell people and mail providers what kind of mail it is, and how to be rid of it.
//!
//! Invariant: a marketing mail says how to unsubscribe from it, or it is not made.

use std::borrow::Cow;

use super::{Pipeline, deliver::Making};
use crate::{
    config::SesTag,
    email::{
        EmailRequest, Manifest, Unsubscription,
        feedback::Mark,
        unsubscribe::{NOWHERE, ONE_CLICK},
    },
};

/// Longest value of a tag that is not ours to choose: SES takes 256 characters, a line of the mail as many words.
const TAG_VALUE_CHARS_MAX: usize = 100;

/// Why no marketing mail is sent.
pub(super) fn no_link(template: &str) -> String {
    format!(
        "template {template} is marketing, and a marketing mail carries a link to unsubscribe: set EMAIL_PUBLIC_URL, then \
         replay this letter"
    )
}

impl Pipeline {
    /// The recipient's link to unsubscribe; nothing: the mail is none that one unsubscribes from.
    ///
    /// # Errors
    /// When it is one, and there are no links.
    pub(super) fn unsubscribe_link(&self, making: &Making<'_>) -> Result<Option<String>, String> {
        let is_marketing = match making.manifest {
            Some(manifest) => manifest.is_marketing(),
            // The template cannot be had any more; the words of an earlier try say what it was.
            None => making.words.html.contains(NOWHERE) || making.words.text.contains(NOWHERE),
        };
        if !is_marketing {
            return Ok(None);
        }
        let links = self.unsubscribe.as_ref().ok_or_else(|| no_link(&making.request.template_key))?;
        Ok(Some(links.link(&Unsubscription {
            address_hash: *making.recipient_hash,
            message_id: making.row_id,
            category: making.manifest.map(|manifest| manifest.category.clone()),
        })))
    }

    /// A body with the recipient's link in place of what it was rendered with.
    pub(super) fn with_link<'w>(&self, body: &'w str, link: Option<&str>) -> Cow<'w, str> {
        match (&self.unsubscribe, link) {
            (Some(links), Some(link)) if body.contains(links.placeholder()) => {
                Cow::Owned(body.replace(links.placeholder(), link))
            }
            _ => Cow::Borrowed(body),
        }
    }

    /// What a mail carries besides what every mail does.
    pub(super) fn extra_headers(&self, making: &Making<'_>, link: Option<&str>) -> Vec<(&'static str, String)> {
        let settings = &self.mail.headers;
        let mut headers = Vec::new();
        if let Some(link) = link {
            if let Some(manifest) = making.manifest {
                headers.push(("List-Id", format!("<{}.{}>", manifest.category, settings.list_id_domain)));
            }
            headers.push((ONE_CLICK.0, format!("<{link}>")));
            headers.push(("List-Unsubscribe-Post", format!("{}={}", ONE_CLICK.0, ONE_CLICK.1)));
        }
        if let Some(sender) = &settings.feedback_sender_id {
            headers.push(("Feedback-ID", feedback_id(making.request, making.manifest, sender)));
        }
        if let Some(set) = &settings.ses_configuration_set {
            headers.push(("X-SES-CONFIGURATION-SET", set.clone()));
        }
        // SES takes them out again, and gives them back with each of its events.
        let mark = self.has_feedback.then(|| Mark { row_id: making.row_id, attempt: making.attempt }.tag());
        let tags: Vec<String> = mark.into_iter().chain(settings.ses_tags.iter().map(|tag| pair(tag, making))).collect();
        if !tags.is_empty() {
            headers.push(("X-SES-MESSAGE-TAGS", tags.join(", ")));
        }
        headers
    }
}

/// `template:source:category:sender`, as Gmail's statistics have it: from what is special to what is general.
fn feedback_id(request: &EmailRequest, manifest: Option<&Manifest>, sender: &str) -> String {
    let category = manifest.map_or("", |manifest| manifest.category.as_str());
    format!("{}:{}:{category}:{sender}", word(&request.template_key), word(&request.source))
}

fn pair(tag: &SesTag, making: &Making<'_>) -> String {
    let value = match tag {
        SesTag::Template => making.request.template_key.as_str(),
        SesTag::Source => making.request.source.as_str(),
        SesTag::Category => making.manifest.map_or("unknown", |manifest| manifest.category.as_str()),
        SesTag::Lane => making.lane.name(),
        SesTag::Fixed(_, value) => value.as_str(),
    };
    format!("{}={}", tag.name(), word(value))
}

/// What tags may be made of: anything else is an underscore.
fn word(text: &str) -> String {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.chars().take(TAG_VALUE_CHARS_MAX).map(|c| if sound(c) { c } else { '_' }).collect()
}
