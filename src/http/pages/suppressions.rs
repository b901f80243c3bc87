//! Who gets no mail: the list, one address with its history, adding and lifting.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use chrono_tz::Tz;
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    PageError,
    layout::{Section, badge, choice, csrf, field, further, given, needs_operator, page, time, time_or_dash, total},
    session::{Posted, Session},
};
use crate::{
    email::SuppressionReason,
    http::{
        Admin,
        messages::address_for,
        params,
        problem::Problem,
        suppressions::{NewEntry, add_entry, hash_of, lift_entries},
    },
    store::suppressions::{Cursor, NOTE_CHARS_MAX, Suppression, SuppressionFilter, SuppressionPage},
};

/// Entries on a page.
const LIMIT: i64 = 50;

fn reasons() -> Vec<&'static str> {
    SuppressionReason::ALL.iter().map(|reason| reason.name()).collect()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    address: Option<String>,
    reason: Option<String>,
    source: Option<String>,
    cursor: Option<String>,
}

impl Asked {
    fn filter(&self, admin: &Admin) -> Result<SuppressionFilter, Problem> {
        Ok(SuppressionFilter {
            address_hash: params::recipient(admin, "address", given(&self.address).as_deref())?,
            reason: params::one_of(
                "reason",
                given(&self.reason).as_deref(),
                SuppressionReason::from_name,
                reasons().into_iter(),
            )?,
            source: params::word("source", given(&self.source))?,
            after: params::cursor(given(&self.cursor).as_deref(), Cursor::from_text)?,
            limit: LIMIT,
        })
    }
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    session: Session,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, PageError> {
    let asked = params::query(asked)?;
    let (found, wrong, status) = match asked.filter(&admin) {
        Ok(filter) => (Some(admin.store.suppressions(&filter).await?), None, StatusCode::OK),
        Err(problem) => (None, Some(problem.detail().to_owned()), problem.status()),
    };
    let body = html! {
        h1 { "Suppressions" }
        form.card.filter method="get" action="/suppressions" role="search" {
            label.wide { "Address"
                input type="search" name="address" value=[asked.address.as_deref()] placeholder="name@example.com" data-search
                    autocapitalize="none" autocomplete="off" spellcheck="false";
            }
            (choice("reason", "Reason", asked.reason.as_deref(), &reasons()))
            (field("source", "Source", "text", asked.source.as_deref(), "ses, smtp, operator"))
            div.row { button type="submit" { "Search" } a.button.quiet href="/suppressions" { "Clear" } }
        }
        @if let Some(wrong) = wrong { p.notice.bad role="alert" { (wrong) } }
        @if let Some(found) = &found { (results(found, &asked, session.is_operator(), session.zone)) }
        @if session.is_operator() { (adding(&session)) }
    };
    Ok((status, page(&session, Section::Suppressions, "Suppressions", &body)).into_response())
}

fn results(found: &SuppressionPage, asked: &Asked, personal: bool, zone: Tz) -> Markup {
    let pairs = [
        ("address", asked.address.as_deref()),
        ("reason", asked.reason.as_deref()),
        ("source", asked.source.as_deref()),
    ];
    html! {
        section.card aria-label="Entries" {
            p.muted { (total(found.total, found.total_is_exact, "entry", "entries")) ", newest first" }
            @if found.items.is_empty() { p { "Nobody is on the list like that." } }
            @else {
                table.stack {
                    thead { tr { th { "Since" } th { "Address" } th { "Reason" } th { "Category" } th { "Source" } th { "Until" } } }
                    tbody {
                        @for entry in &found.items {
                            tr {
                                td data-label="Since" { a href=(path(entry)) { (time(entry.created_at, zone)) } }
                                td.break data-label="Address" { (shown(entry, personal)) }
                                td data-label="Reason" { (badge(entry.reason.name())) }
                                td.break data-label="Category" { (entry.category.as_deref().unwrap_or("all")) }
                                td.break data-label="Source" { (entry.source) }
                                td data-label="Until" { (time_or_dash(entry.expires_at, zone)) }
                            }
                        }
                    }
                }
            }
            (further("/suppressions", &pairs, found.next.as_ref().map(Cursor::to_text).as_deref()))
        }
    }
}

fn path(entry: &Suppression) -> String {
    format!("/suppressions/{}", hex::encode(entry.address_hash))
}

fn shown(entry: &Suppression, personal: bool) -> String {
    entry.address.as_deref().map_or_else(|| "removed".to_owned(), |address| address_for(personal, address))
}

fn adding(session: &Session) -> Markup {
    html! {
        section.card aria-labelledby="add" {
            h2 #add { "Put an address on the list" }
            form.filter method="post" action="/suppressions/add" {
                (csrf(session))
                label.wide { "Address" input type="email" name="address" required autocomplete="off"; }
                label { "Reason" select name="reason" { @for reason in reasons() { option value=(reason) selected[reason == "operator"] { (reason) } } } }
                label { "Note" input type="text" name="note" maxlength=(NOTE_CHARS_MAX); }
                div.row { button type="submit" { "Add" } }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Adding {
    address: String,
    reason: String,
    note: Option<String>,
}

pub(super) async fn add(State(admin): State<Arc<Admin>>, posted: Posted<Adding>) -> Result<Redirect, PageError> {
    let Posted { session, form } = posted;
    let new = NewEntry { address: form.address, reason: Some(form.reason), note: form.note, ..NewEntry::default() };
    let (entry, _) = add_entry(&admin, &session.operator, new).await?;
    Ok(Redirect::to(&format!("/suppressions/{}", hex::encode(entry.address_hash))))
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let hash = hash_of(&id)?;
    let entries = admin.store.suppressions_of(&hash).await?;
    let changes = admin.store.suppression_changes(&hash).await?;
    if entries.is_empty() && changes.is_empty() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "the suppression list has no such entry").into());
    }
    let (personal, zone) = (session.is_operator(), session.zone);
    let title =
        entries.first().map_or_else(|| "An address that may get mail".to_owned(), |entry| shown(entry, personal));
    let body = html! {
        h1.break { (title) }
        @for entry in &entries {
            section.card aria-label=(entry.reason.name()) {
                dl.facts {
                    dt { "Reason" } dd { (badge(entry.reason.name())) }
                    dt { "Stops" } dd { (if entry.reason.stops_transactional() { "all mail" } else { "marketing" }) }
                    @if let Some(category) = &entry.category { dt { "Category" } dd { (category) } }
                    dt { "Source" } dd { (entry.source) }
                    dt { "Since" } dd { (time(entry.created_at, zone)) }
                    dt { "Until" } dd { (time_or_dash(entry.expires_at, zone)) }
                    @if let Some(note) = entry.note.as_deref().filter(|_| personal) { dt { "Note" } dd { (note) } }
                }
                @if personal {
                    form.row method="post" action=(format!("/suppressions/{id}/lift")) data-confirm="Lift it, so that mail may go there again?" {
                        (csrf(&session))
                        input type="hidden" name="reason" value=(entry.reason.name());
                        input type="hidden" name="category" value=(entry.category.as_deref().unwrap_or_default());
                        label { "Note" input type="text" name="note" maxlength=(NOTE_CHARS_MAX); }
                        button.danger type="submit" { "Lift" }
                    }
                }
            }
        }
        @if entries.is_empty() { p.notice.good { "Nothing stops mail to it." } }
        section.card aria-labelledby="history" {
            h2 #history { "History" }
            table.stack {
                thead { tr { th { "When" } th { "What" } th { "Reason" } th { "By" } th { "Note" } } }
                tbody {
                    @for line in &changes {
                        tr {
                            td data-label="When" { (time(line.at, zone)) }
                            td data-label="What" { (line.change) }
                            td data-label="Reason" { (line.reason) }
                            td.break data-label="By" { (line.changed_by) }
                            td.break data-label="Note" { (line.note.as_deref().filter(|_| personal).unwrap_or("–")) }
                        }
                    }
                }
            }
        }
    };
    Ok(page(&session, Section::Suppressions, &title, &body).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct Lifting {
    reason: String,
    category: Option<String>,
    note: Option<String>,
}

pub(super) async fn lift(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    posted: Posted<Lifting>,
) -> Result<Redirect, PageError> {
    let Posted { session, form } = posted;
    if !session.is_operator() {
        return Err(needs_operator().into());
    }
    let category = Some(form.category.unwrap_or_default());
    lift_entries(&admin, &session.operator, &hash_of(&id)?, Some(&form.reason), category, form.note).await?;
    Ok(Redirect::to(&format!("/suppressions/{id}")))
}
