//! Writing a version: its parts, what stands against it, and what it looks like, before anybody gets it.
//!
//! Without a script a button shows each preview; with one, they follow the writing.
//! Invariant: whatever is refused, what was written is still there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    PageError, Posted, Section, Session, badge,
    change::{self, object},
    csrf,
    frame::subject,
    is_admin, locale_choice,
};
use crate::{
    config::Role,
    http::{
        Admin,
        pages::layout::page_to_edit,
        params,
        problem::Problem,
        templates::{key_of, unknown, use_it_here},
    },
    templates::{Inspection, TemplateSource, Variant, inspect, is_locale},
    versions::{self, Finding, Parts, Severity, VersionError},
};

/// What begins the names of the partials' fields.
const PARTIALS: [&str; 2] = ["html/", "text/"];
/// What begins the names of a variant's fields: its locale and a slash follow.
const VARIANT: &str = "variant/";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::http::pages) struct Asked {
    /// The version to begin from.
    version: Option<i32>,
    /// For a new template: the one to begin with a copy of.
    like: Option<String>,
}

/// What stands in the form.
pub(in crate::http::pages) struct Written {
    fields: BTreeMap<String, String>,
}

impl Written {
    /// A form that was sent.
    pub(super) fn read(form: &BTreeMap<String, String>) -> Self {
        Self { fields: form.clone() }
    }

    /// The form of a version.
    fn of(source: TemplateSource, active: Option<i32>) -> Self {
        let sample = serde_json::to_string_pretty(&source.sample).unwrap_or_default();
        let plain = [
            ("manifest", source.manifest_toml),
            ("subject", source.subject),
            ("html_content", source.html),
            ("text_content", source.text),
            ("sample", sample),
            ("expected_active", active.unwrap_or(0).to_string()),
        ];
        let mut fields: BTreeMap<String, String> =
            plain.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
        for (prefix, partials) in PARTIALS.into_iter().zip([source.partials_html, source.partials_text]) {
            fields.extend(partials.into_iter().map(|(name, text)| (format!("{prefix}{name}"), text)));
        }
        let mut written = Self { fields };
        for (locale, variant) in source.variants {
            written.put(&locale, variant);
        }
        written
    }

    /// Puts the fields of a variant in.
    fn put(&mut self, locale: &str, variant: Variant) {
        let begin = format!("{VARIANT}{locale}/");
        let Variant { subject, html, text, partials_html, partials_text } = variant;
        let plain = [("subject", subject), ("html_content", html), ("text_content", text)];
        self.fields.extend(plain.into_iter().map(|(name, text)| (format!("{begin}{name}"), text)));
        for (prefix, partials) in PARTIALS.into_iter().zip([partials_html, partials_text]) {
            self.fields.extend(partials.into_iter().map(|(name, text)| (format!("{begin}{prefix}{name}"), text)));
        }
    }

    /// Does what a button asks for; false: it is none of ours.
    fn press(&mut self, pressed: &str) -> bool {
        if let Some(locale) = pressed.strip_prefix("remove-locale/") {
            let begin = format!("{VARIANT}{locale}/");
            self.fields.retain(|name, _| !name.starts_with(&begin));
            return true;
        }
        let locale = self.field("new_locale").trim().to_owned();
        if pressed == "add-locale" && is_locale(&locale) && !self.locales().contains(&locale) {
            // Begun from what there is: whoever translates overwrites it.
            let variant = Variant {
                subject: self.field("subject").to_owned(),
                html: self.field("html_content").to_owned(),
                text: self.field("text_content").to_owned(),
                partials_html: self.partials(PARTIALS[0]),
                partials_text: self.partials(PARTIALS[1]),
            };
            self.put(&locale, variant);
            self.fields.insert("shown_locale".to_owned(), locale);
            self.fields.remove("new_locale");
        }
        pressed == "add-locale"
    }

    /// The variants' locales.
    fn locales(&self) -> BTreeSet<String> {
        let names = self.fields.keys().filter_map(|name| name.strip_prefix(VARIANT)?.split_once('/'));
        names.map(|(locale, _)| locale.to_owned()).collect()
    }

    /// The locale that the previews show; nothing: the template's own.
    pub(super) fn locale(&self) -> Option<String> {
        Some(self.field("shown_locale").to_owned()).filter(|locale| !locale.is_empty())
    }

    fn variant(&self, locale: &str) -> Variant {
        let begin = format!("{VARIANT}{locale}/");
        let text = |name: &str| self.field(&format!("{begin}{name}")).to_owned();
        Variant {
            subject: text("subject"),
            html: text("html_content"),
            text: text("text_content"),
            partials_html: self.partials(&format!("{begin}{}", PARTIALS[0])),
            partials_text: self.partials(&format!("{begin}{}", PARTIALS[1])),
        }
    }

    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map(String::as_str).unwrap_or_default()
    }

    fn partials(&self, prefix: &str) -> BTreeMap<String, String> {
        let named =
            self.fields.iter().filter_map(|(name, text)| Some((name.strip_prefix(prefix)?.to_owned(), text.clone())));
        named.collect()
    }

    /// The version that it makes.
    ///
    /// # Errors
    /// 400, when the sample is no JSON object.
    pub(super) fn source(&self, key: &str) -> Result<TemplateSource, Problem> {
        let text = |name: &str| Some(self.field(name).to_owned());
        let parts = Parts {
            manifest: text("manifest"),
            subject: text("subject"),
            html: text("html_content"),
            text: text("text_content"),
            partials_html: Some(self.partials(PARTIALS[0])),
            partials_text: Some(self.partials(PARTIALS[1])),
            variants: Some(self.locales().into_iter().map(|locale| (locale.clone(), self.variant(&locale))).collect()),
            sample: Some(object("sample", self.field("sample"))?),
        };
        parts.onto(key, None).map_err(|missing| params::bad(format!("missing: {}", missing.join(", "))))
    }
}

/// What there is to say about what stands in the form.
#[derive(Default)]
struct Verdict {
    findings: Option<Vec<Finding>>,
    subject: Option<String>,
    refused: Option<(StatusCode, String)>,
}

pub(in crate::http::pages) async fn open(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(key): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, PageError> {
    let (key, asked) = (key_of(key)?, params::query(asked)?);
    let active = admin.store.active_template(&key).await?.map(|active| active.version);
    let from = match (&asked.like, admin.store.newest_template_version(&key).await?) {
        (Some(like), None) => key_of(like.clone())?,
        _ => key.clone(),
    };
    let source = versions::base(&admin.store, &from, asked.version).await?.ok_or_else(unknown)?;
    let shown = asked.version.or(active).filter(|_| from == key);
    let written = Written::of(TemplateSource { key: key.clone(), ..source }, active);
    let verdict = Verdict { subject: subject(&admin, written.source(&key)?, None).await, ..Verdict::default() };
    Ok(editor(&session, &key, &written, shown, &verdict).into_response())
}

/// Checks what was written, saves it as a draft, or activates it, as the button that was pressed says.
pub(in crate::http::pages) async fn submit(
    State(admin): State<Arc<Admin>>,
    Path(key): Path<String>,
    posted: Posted<BTreeMap<String, String>>,
) -> Result<Response, PageError> {
    let Posted { session, form } = posted;
    let key = key_of(key)?;
    let mut written = Written::read(&form);
    if form.get("do").is_some_and(|pressed| written.press(pressed)) {
        return Ok(editor(&session, &key, &written, None, &Verdict::default()).into_response());
    }
    let source = match written.source(&key) {
        Ok(source) => source,
        Err(problem) => {
            let refused = Some((problem.status(), problem.detail().to_owned()));
            let verdict = Verdict { refused, ..Verdict::default() };
            return Ok((problem.status(), editor(&session, &key, &written, None, &verdict)).into_response());
        }
    };
    let is_draft = match written.field("do") {
        "draft" => true,
        "activate" => false,
        pressed => {
            let findings = if pressed == "check" {
                Some(versions::check(&admin.store, source.clone()).await?)
            } else {
                // While somebody writes, what producers send is not looked up again and again.
                let written = source.clone();
                let Inspection { faults, remarks } = versions::by_hand(move || inspect(&written)).await;
                let remarks = remarks.into_iter().map(Finding::worth_a_look);
                let found: Vec<Finding> = faults.into_iter().map(Finding::fault).chain(remarks).collect();
                Some(found).filter(|found| !found.is_empty())
            };
            let subject = subject(&admin, source, written.locale()).await;
            let verdict = Verdict { subject, findings, refused: None };
            return Ok(editor(&session, &key, &written, None, &verdict).into_response());
        }
    };
    session.operator.needs(Role::Admin)?;
    let expected: i32 = written.field("expected_active").parse().unwrap_or(0);
    let accepts = form.contains_key("accept_findings");
    let by = change::editor(&session.operator, expected, accepts);
    match versions::save(&admin.store, source, is_draft, &by).await {
        Ok(_) => {
            use_it_here(&admin).await;
            Ok(Redirect::to(&format!("/templates/{key}")).into_response())
        }
        Err(VersionError::Store(error)) => Err(error.into()),
        Err(error) => {
            let findings = match &error {
                VersionError::Unsound(findings) | VersionError::Risky(findings) => Some(findings.clone()),
                _ => None,
            };
            let words = match &error {
                VersionError::Unsound(_) => "It cannot be saved like this.".to_owned(),
                VersionError::Risky(_) => "Requests as they are sent now would fail; nothing was saved.".to_owned(),
                other => other.to_string(),
            };
            let status = Problem::from(error).status();
            let verdict = Verdict { findings, refused: Some((status, words)), subject: None };
            Ok((status, editor(&session, &key, &written, None, &verdict)).into_response())
        }
    }
}

fn editor(
    session: &Session,
    key: &str,
    written: &Written,
    shown: Option<i32>,
    verdict: &Verdict,
) -> axum::response::Html<String> {
    let frame = |part: &str| format!("/templates/{key}/frame?part={part}");
    let source = |part: &str| shown.map(|version| format!("/templates/{key}/frame?part={part}&version={version}"));
    let title = format!("Edit {key}");
    let body = html! {
        h1.break { (title) }
        p { a href=(format!("/templates/{key}")) { "To the template" }
            @if let Some(version) = shown { span.muted { " · begun from version " (version) } } }
        form #editor method="post" action=(format!("/templates/{key}/edit")) data-preview {
            (csrf(session))
            input type="hidden" name="expected_active" value=(written.field("expected_active"));
            section.card #verdict aria-label="Verdict" aria-live="polite" { (judged(verdict)) }
            div.split {
                section.card aria-labelledby="parts" {
                    h2 #parts { "Parts" }
                    (area(written, "subject", "Subject", 2))
                    (area(written, "html_content", "HTML", 18))
                    (area(written, "text_content", "Text", 12))
                    (area(written, "sample", "Sample variables (JSON)", 8))
                    (area(written, "manifest", "Manifest (TOML)", 12))
                    (partials(written, ""))
                    @for locale in written.locales() { (variant(session, written, &locale)) }
                    @if is_admin(session) {
                        div.filter {
                            label { "Another language" input type="text" name="new_locale" placeholder="en, fr-BJ" maxlength="35" autocapitalize="none" autocomplete="off" spellcheck="false" value=(written.field("new_locale")); }
                            div.row { button.quiet type="submit" name="do" value="add-locale" { "Add it" } }
                        }
                    }
                    div.row {
                        button.quiet type="submit" name="do" value="check" { "Check" }
                        @if is_admin(session) {
                            button.quiet type="submit" name="do" value="draft" { "Save a draft" }
                            button type="submit" name="do" value="activate" { "Save and activate" }
                        }
                    }
                    @if is_admin(session) {
                        label { input type="checkbox" name="accept_findings" value="yes"; "Activate it although requests as they are sent now would fail" }
                    }
                }
                section.card aria-labelledby="previews" {
                    h2 #previews { "What it looks like" }
                    @if !written.locales().is_empty() {
                        div.filter { (locale_choice("shown_locale", written.locales().iter(), written.locale().as_deref())) }
                    }
                    p.row.without-script {
                        button.quiet type="submit" formaction=(frame("html")) formtarget="preview-phone" { "Show on a phone" }
                        button.quiet type="submit" formaction=(frame("html")) formtarget="preview-desktop" { "Show on a desktop" }
                        button.quiet type="submit" formaction=(frame("text")) formtarget="preview-text" { "Show the text" }
                    }
                    h3 { "Phone" }
                    iframe.mail.phone sandbox="" name="preview-phone" title="HTML at the width of a phone" data-action=(frame("html")) src=[source("html")] {}
                    h3 { "Desktop" }
                    div.scroll tabindex="0" role="group" aria-label="HTML at the width of a desktop" {
                        iframe.mail.desktop sandbox="" name="preview-desktop" title="HTML at the width of a desktop" data-action=(frame("html")) src=[source("html")] {}
                    }
                    h3 { "Text" }
                    iframe.mail sandbox="" name="preview-text" title="The text part" data-action=(frame("text")) src=[source("text")] {}
                }
            }
        }
    };
    page_to_edit(session, Section::Templates, &title, &body)
}

/// The partials of both parts, folded up: there are dozens, and whoever goes by keyboard or by thumb would pass them all on the way to
/// the buttons. `begin` is what begins their fields' names besides.
fn partials(written: &Written, begin: &str) -> Markup {
    html! {
        @for (prefix, kind) in PARTIALS.into_iter().zip(["HTML", "text"]) {
            @let partials = written.partials(&format!("{begin}{prefix}"));
            @if !partials.is_empty() {
                details {
                    summary { "Partials of the " (kind) " part (" (partials.len()) ")" }
                    @for name in partials.keys() {
                        details {
                            summary { (name) }
                            (area(written, &format!("{begin}{prefix}{name}"), &format!("{name} ({kind})"), 10))
                        }
                    }
                }
            }
        }
    }
}

/// A variant, folded up unless the previews show it.
fn variant(session: &Session, written: &Written, locale: &str) -> Markup {
    let begin = format!("{VARIANT}{locale}/");
    html! {
        details open[written.locale().as_deref() == Some(locale)] {
            summary { "In another language: " (locale) }
            (area(written, &format!("{begin}subject"), &format!("Subject ({locale})"), 2))
            (area(written, &format!("{begin}html_content"), &format!("HTML ({locale})"), 18))
            (area(written, &format!("{begin}text_content"), &format!("Text ({locale})"), 12))
            (partials(written, &begin))
            @if is_admin(session) {
                div.row { button.quiet type="submit" name="do" value=(format!("remove-locale/{locale}")) { "Remove " (locale) } }
            }
        }
    }
}

fn area(written: &Written, name: &str, label: &str, rows: usize) -> Markup {
    // A browser drops a line break at the beginning: this one.
    html! { label { (label) textarea name=(name) rows=(rows) spellcheck="false" autocapitalize="none" { "\n" (written.field(name)) } } }
}

fn judged(verdict: &Verdict) -> Markup {
    html! {
        @if let Some((_, words)) = &verdict.refused { p.notice.bad role="alert" { (words) } }
        @if let Some(subject) = &verdict.subject { p { span.muted { "Subject: " } strong.break #subject { (subject) } } }
        @match &verdict.findings {
            Some(found) if found.is_empty() => p.notice.good { "Nothing stands against it." },
            Some(found) => (findings(found)),
            None => {}
        }
    }
}

/// Findings, the gravest first.
pub(super) fn findings(found: &[Finding]) -> Markup {
    let mut sorted: Vec<&Finding> = found.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let word = |severity| match severity {
        Severity::Fault => "fault",
        Severity::Risk => "risk",
        Severity::Remark => "remark",
    };
    html! {
        ul.findings {
            @for finding in sorted {
                li.break { (badge(word(finding.severity))) " " (finding) }
            }
        }
    }
}
