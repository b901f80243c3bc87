//! Templates: which there are, one with its versions, what changed between two.

/// Forms that change what is sent, and test mails.
pub(super) mod change;

/// Writing a version.
pub(super) mod editor;

/// What a version makes, in a document of its own.
pub(super) mod frame;

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    PageError,
    layout::{Section, badge, csrf, field, further, page, time},
    session::{Posted, Session},
};
use crate::{
    config::Role,
    email::Manifest,
    http::{
        Admin, params,
        problem::Problem,
        templates::{key_of, unknown},
    },
    store::templates::list::{VersionLine, VersionPage, VersionState},
    templates::{TemplateSource, is_key, parse_manifest},
    versions::{self, difference::PartDifference},
};

/// Versions on a page.
const VERSIONS: i64 = 20;

/// Whether somebody may change what is sent.
fn is_admin(session: &Session) -> bool {
    session.operator.role >= Role::Admin
}

fn word(state: VersionState) -> &'static str {
    match state {
        VersionState::Active => "active",
        VersionState::Former => "former",
        VersionState::Draft => "draft",
    }
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, session: Session) -> Result<Html<String>, PageError> {
    let lines = admin.store.template_lines().await?;
    let body = html! {
        h1 { "Templates" }
        section.card aria-label="Templates" {
            table.stack {
                thead { tr { th { "Template" } th { "Subject" } th { "Category" } th { "Version" } th { "Changed" } } }
                tbody {
                    @for line in &lines {
                        tr {
                            td.break data-label="Template" { a href=(format!("/templates/{}", line.key)) { (line.key) } }
                            td.break data-label="Subject" { (line.subject.trim_end()) }
                            td data-label="Category" { (parse_manifest(&line.manifest_toml, 1).map(|m| m.category).unwrap_or_default()) }
                            td data-label="Version" {
                                @match line.active {
                                    Some(version) => (version),
                                    None => (badge("inactive")),
                                }
                                @if line.active.is_none_or(|active| line.newest > active) { span.muted { " (newest " (line.newest) ")" } }
                            }
                            td data-label="Changed" { (time(line.updated_at, session.zone)) }
                        }
                    }
                }
            }
        }
        @if is_admin(&session) {
            section.card aria-labelledby="new" {
                h2 #new { "A new template" }
                form.filter method="get" action="/templates/new" {
                    label { "Key" input type="text" name="key" required pattern="[a-z][a-z0-9_]*" maxlength="100" autocapitalize="none" autocomplete="off" spellcheck="false"; }
                    label.wide { "Begin with a copy of"
                        select name="like" { @for line in &lines { option value=(line.key) { (line.key) } } }
                    }
                    div.row { button type="submit" { "Write it" } }
                }
            }
        }
    };
    Ok(page(&session, Section::Templates, "Templates", &body))
}

#[derive(Debug, Deserialize)]
pub(super) struct New {
    key: String,
    like: String,
}

/// To the editor of a template that does not exist yet.
pub(super) async fn begin(session: Session, asked: Result<Query<New>, QueryRejection>) -> Result<Redirect, PageError> {
    session.operator.needs(Role::Admin)?;
    let New { key, like } = params::query(asked)?;
    if !is_key(&key) || key == "new" {
        return Err(params::bad("key: lower-case letters, digits and _, a letter first, at most 100 characters").into());
    }
    Ok(Redirect::to(&format!("/templates/{key}/edit?like={}", key_of(like)?)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Shown {
    cursor: Option<String>,
    /// A test mail was sent.
    sent: Option<String>,
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(key): Path<String>,
    asked: Result<Query<Shown>, QueryRejection>,
) -> Result<Html<String>, PageError> {
    let (key, asked) = (key_of(key)?, params::query(asked)?);
    let active = admin.store.active_template(&key).await?;
    let version = active.as_ref().map(|active| active.version);
    let stored = match active {
        Some(active) => active,
        None => admin.store.newest_template_version(&key).await?.ok_or_else(unknown)?,
    };
    let source = versions::source_of(&stored)?;
    let before = params::cursor(asked.cursor.as_deref(), |text| text.parse().ok())?;
    let found = admin.store.template_versions(&key, before, VERSIONS).await?;
    let manifest = parse_manifest(&source.manifest_toml, admin.rules.tries_default).ok();
    let in_use = admin.catalogue.active(&key).map(|template| template.version());
    let body = html! {
        h1.break { (key) }
        @if let Some(sent) = &asked.sent { p.notice.good role="status" { "A test mail is on its way: request " span.mono.break { (sent) } } }
        @match version {
            None => p.notice.warn { "No version is active: requests for it become dead letters until one is. Activate one, then replay them." },
            Some(version) if in_use != Some(version) => {
                p.notice.bad { "This daemon does not send the active version; its log says why." }
            }
            Some(_) => {}
        }
        section.card aria-label="What it is" {
            (facts(&source, manifest.as_ref(), version))
            div.row { a.button href=(format!("/templates/{key}/edit?version={}", stored.version)) { (if is_admin(&session) { "Edit" } else { "Look at it" }) } }
        }
        (list_of_versions(&session, &key, version, &found))
        @if is_admin(&session) { (switches(&session, &key, version)) }
        @if session.is_operator() { (testing(&session, &key, stored.version, &source)) }
    };
    Ok(page(&session, Section::Templates, &key, &body))
}

fn facts(source: &TemplateSource, manifest: Option<&Manifest>, version: Option<i32>) -> Markup {
    html! {
        dl.facts {
            dt { "Active version" } dd { @match version { Some(version) => (version), None => (badge("inactive")) } }
            dt { "Subject" } dd { (source.subject.trim_end()) }
            @if let Some(manifest) = manifest {
                dt { "Description" } dd { (manifest.description) }
                dt { "Category" } dd { (manifest.category) ", " (manifest.priority) }
                dt { "Required" } dd { (manifest.required.join(", ")) }
                dt { "Languages" } dd { (manifest.locale) @for locale in source.variants.keys() { ", " (locale) } }
                @if !manifest.optional.is_empty() { dt { "Optional" } dd { (manifest.optional.join(", ")) } }
                @if let Some(over) = manifest.over_cap { dt { "Over the cap" } dd { (over.name()) } }
                dt { "Tries" } dd { (manifest.tries) ", within " (manifest.deadline.as_secs()) " s" }
            }
        }
    }
}

fn list_of_versions(session: &Session, key: &str, active: Option<i32>, found: &VersionPage) -> Markup {
    let newest = found.items.first().map_or(1, |line| line.version);
    html! {
        section.card aria-labelledby="versions" {
            h2 #versions { "Versions" }
            table.stack {
                thead { tr { th { "Version" } th { "State" } th { "Saved" } th { "By" } th { "Last active" } th { "" } } }
                tbody { @for line in &found.items { (row(session, key, active, line)) } }
            }
            (further(&format!("/templates/{key}"), &[], found.next.map(|next| next.to_string()).as_deref()))
            form.filter method="get" action=(format!("/templates/{key}/diff")) {
                (field("from", "What changed from version", "number", Some(&active.unwrap_or(1).to_string()), ""))
                (field("to", "to version", "number", Some(&newest.to_string()), ""))
                div.row { button.quiet type="submit" { "Compare" } }
            }
        }
    }
}

fn row(session: &Session, key: &str, active: Option<i32>, line: &VersionLine) -> Markup {
    let is_active = line.state == VersionState::Active;
    html! {
        tr {
            td data-label="Version" { a href=(format!("/templates/{key}/edit?version={}", line.version)) { "Version " (line.version) } }
            td data-label="State" { (badge(word(line.state))) }
            td data-label="Saved" { (time(line.created_at, session.zone)) }
            td.break data-label="By" { (line.created_by.as_deref().unwrap_or("a folder")) }
            td data-label="Last active" { (super::layout::time_or_dash(line.activated_at, session.zone)) }
            td data-label="" {
                @if is_admin(session) && !is_active {
                    form.row method="post" action=(format!("/templates/{key}/activate")) data-confirm=(format!("Send version {} from now on?", line.version)) {
                        (csrf(session))
                        input type="hidden" name="version" value=(line.version);
                        (expected(active))
                        button.quiet type="submit" { "Activate" span.muted { " " (line.version) } }
                    }
                }
            }
        }
    }
}

/// What is active while somebody looks: if it is another one when they press the button, they are told.
fn expected(active: Option<i32>) -> Markup {
    html! { input type="hidden" name="expected_active" value=(active.unwrap_or(0)); }
}

fn switches(session: &Session, key: &str, active: Option<i32>) -> Markup {
    html! {
        section.card aria-labelledby="switches" {
            h2 #switches { "Back, or off" }
            div.row {
                form method="post" action=(format!("/templates/{key}/rollback")) data-confirm="Return to the version that was active before?" {
                    (csrf(session)) (expected(active))
                    button.quiet type="submit" { "Roll back" }
                }
                @if active.is_some() {
                    form method="post" action=(format!("/templates/{key}/deactivate")) data-confirm="Send no version? Requests for it become dead letters." {
                        (csrf(session)) (expected(active))
                        button.danger type="submit" { "Deactivate" }
                    }
                }
            }
        }
    }
}

fn testing(session: &Session, key: &str, version: i32, source: &TemplateSource) -> Markup {
    html! {
        section.card aria-labelledby="testing" {
            h2 #testing { "Send a test" }
            form method="post" action=(format!("/templates/{key}/test")) {
                (csrf(session))
                div.filter {
                    label.wide { "To" input type="email" name="to" required autocomplete="email"; }
                    (field("version", "Version", "number", Some(&version.to_string()), ""))
                    @if !source.variants.is_empty() { (locale_choice("locale", source.variants.keys(), None)) }
                }
                label { "Variables (JSON)"
                    textarea name="variables" rows="8" spellcheck="false" { "\n" (serde_json::to_string_pretty(&source.sample).unwrap_or_default()) }
                }
                div.row { button type="submit" { "Send" } }
            }
        }
    }
}

/// Which locale: the template's own, or one of these.
fn locale_choice<'a>(name: &str, locales: impl Iterator<Item = &'a String>, chosen: Option<&str>) -> Markup {
    html! {
        label { "Language"
            select name=(name) {
                option value="" { "The template’s own" }
                @for locale in locales { option value=(locale) selected[chosen == Some(locale.as_str())] { (locale) } }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Compared {
    from: i32,
    to: i32,
}

pub(super) async fn difference(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(key): Path<String>,
    asked: Result<Query<Compared>, QueryRejection>,
) -> Result<Response, PageError> {
    let key = key_of(key)?;
    let Compared { from, to } = params::query(asked)?;
    let (old, new) = (one(&admin, &key, from).await?, one(&admin, &key, to).await?);
    let parts = versions::by_hand(move || versions::difference::between(&old, &new)).await;
    let title = format!("{key}: version {from} to {to}");
    let body = html! {
        h1.break { (title) }
        p { a href=(format!("/templates/{key}")) { "To the template" } }
        @if parts.is_empty() { p.notice { "They are the same." } }
        @for part in &parts { (changed(part)) }
    };
    Ok(page(&session, Section::Templates, &title, &body).into_response())
}

fn changed(part: &PartDifference) -> Markup {
    let tone = |line: &str| match line.as_bytes().first() {
        Some(b'+') => "ins",
        Some(b'-') => "del",
        _ => "same",
    };
    html! {
        section.card aria-label=(part.part) {
            h2.break { (part.part) " " span.badge.good { "+" (part.added) } " " span.badge.bad { "−" (part.removed) } }
            pre tabindex="0" {
                // The first two lines name the file.
                @for line in part.unified.lines().skip(2) { span.(tone(line)) { (line) } "\n" }
            }
        }
    }
}

async fn one(admin: &Admin, key: &str, version: i32) -> Result<TemplateSource, Problem> {
    let stored = admin.store.template_version(key, version).await?;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("there is no version {version} of this template"));
    Ok(versions::source_of(&stored.ok_or_else(missing)?)?)
}
