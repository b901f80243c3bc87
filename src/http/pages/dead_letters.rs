//! What failed for good: what waits, by reason; the letters; one letter; and what becomes of it.
//!
//! Invariant: what shows a person is for operators, and whoever looks at one letter is noted before it is shown.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use chrono_tz::Tz;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::{
    PageError,
    layout::{
        self, Section, badge, choice, csrf, field, further, given, moment, needs_operator, page, recipient_field, time,
        time_or_dash, total,
    },
    replays::{Wanted, replay_form},
    session::{Posted, Session},
};
use crate::{
    email::Reason,
    http::{
        Admin,
        dead_letters::{ListParams, content, discard_as, listed, words},
        messages::address_for,
        params,
        problem::Problem,
    },
    store::{
        dead::{DeadCursor, DeadGroups, DeadLetter, DeadPage, DeadSummary, NOTE_CHARS_MAX},
        messages::detail::Viewed,
        replay::LetterState,
    },
};

/// Letters on a page.
const LIMIT: i64 = 50;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    reason: Option<String>,
    template: Option<String>,
    source: Option<String>,
    to: Option<String>,
    since: Option<String>,
    until: Option<String>,
    state: Option<String>,
    cursor: Option<String>,
}

impl Asked {
    fn params(&self, zone: Tz) -> ListParams {
        ListParams {
            reason: given(&self.reason),
            template: given(&self.template),
            source: given(&self.source),
            to: given(&self.to),
            since: moment(&self.since, zone),
            until: moment(&self.until, zone),
            state: given(&self.state),
            limit: Some(LIMIT),
            cursor: given(&self.cursor),
        }
    }

    fn pairs(&self) -> [(&'static str, Option<&str>); 7] {
        [
            ("reason", self.reason.as_deref()),
            ("template", self.template.as_deref()),
            ("source", self.source.as_deref()),
            ("to", self.to.as_deref()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
            ("state", self.state.as_deref()),
        ]
    }

    /// Whose replay this question asks for.
    fn wanted(&self, zone: Tz) -> Wanted {
        let of = self.params(zone);
        Wanted {
            reason: of.reason,
            template: of.template,
            source: of.source,
            to: of.to,
            since: of.since,
            until: of.until,
            ..Wanted::default()
        }
    }
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    session: Session,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, PageError> {
    let asked = params::query(asked)?;
    let groups = admin.store.dead_groups().await?;
    let (found, wrong, status) = match asked.params(session.zone).filter(&admin) {
        Ok(filter) => (Some(admin.store.dead_letters(&filter).await?), None, StatusCode::OK),
        Err(problem) => (None, Some(problem.detail().to_owned()), problem.status()),
    };
    let body = html! {
        h1 { "Dead letters" }
        (waiting(&groups, session.zone))
        (search(&admin, &asked))
        @if let Some(wrong) = wrong { p.notice.bad role="alert" { (wrong) } }
        @if let Some(found) = &found {
            @let can_replay = session.is_operator() && groups.letters > 0;
            // The way to it, for whoever would pass fifty letters by thumb.
            @if can_replay && !found.items.is_empty() { p { a href="#replay" { "Replay what waits" } } }
            (results(found, &asked, session.is_operator(), session.zone))
            @if can_replay { (replaying(&session, &asked)) }
        }
    };
    Ok((status, page(&session, Section::DeadLetters, "Dead letters", &body)).into_response())
}

fn waiting(groups: &DeadGroups, zone: Tz) -> Markup {
    html! {
        section.card aria-labelledby="waiting" {
            h2 #waiting { "What waits" }
            @if groups.items.is_empty() { p { "No letter waits." } }
            @else {
                p.muted { (total(groups.letters, groups.is_exact, "letter waits", "letters wait")) " for an operator" }
                table.stack {
                    thead { tr { th { "Reason" } th { "Template" } th.num { "Letters" } th { "Since" } th { "Latest" } } }
                    tbody {
                        @for group in &groups.items {
                            @let pairs = [("state", Some("waiting")), ("reason", Some(group.reason.as_str())), ("template", group.template_key.as_deref())];
                            tr {
                                td data-label="Reason" { a href=(layout::link("/dead-letters", &pairs, None)) { (group.reason) } }
                                td.break data-label="Template" { (group.template_key.as_deref().unwrap_or("–")) }
                                td.num data-label="Letters" { (layout::thousands(group.letters)) }
                                td data-label="Since" { (time(group.oldest, zone)) }
                                td data-label="Latest" { (time(group.newest, zone)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn search(admin: &Admin, asked: &Asked) -> Markup {
    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    let states: Vec<&str> = LetterState::ALL.iter().map(|state| state.name()).collect();
    let all = admin.catalogue.all_active();
    let templates: Vec<&str> = all.iter().map(|template| template.key()).collect();
    html! {
        form.card.filter method="get" action="/dead-letters" role="search" {
            (recipient_field(asked.to.as_deref()))
            (choice("reason", "Reason", asked.reason.as_deref(), &reasons))
            (choice("template", "Template", asked.template.as_deref(), &templates))
            (choice("state", "State", asked.state.as_deref(), &states))
            (field("source", "Source", "text", asked.source.as_deref(), "billing"))
            (field("since", "Since", "date", asked.since.as_deref(), ""))
            (field("until", "Before", "date", asked.until.as_deref(), ""))
            div.row { button type="submit" { "Search" } a.button.quiet href="/dead-letters" { "Clear" } }
        }
    }
}

fn results(found: &DeadPage, asked: &Asked, personal: bool, zone: Tz) -> Markup {
    html! {
        section.card aria-label="Letters" {
            (layout::found(&total(found.total, found.total_is_exact, "letter", "letters"), found.searched_since, zone))
            @if found.items.is_empty() { p { "No letter is like that." } }
            @else {
                table.stack {
                    thead { tr { th { "Failed" } th { "Reason" } th { "Template" } th { "To" } th { "State" } th { "Error" } } }
                    tbody { @for letter in &found.items { (line(letter, personal, zone)) } }
                }
            }
            (further("/dead-letters", &asked.pairs(), found.next.map(DeadCursor::to_text).as_deref()))
        }
    }
}

fn line(letter: &DeadSummary, personal: bool, zone: Tz) -> Markup {
    html! {
        tr {
            td data-label="Failed" { a href=(format!("/dead-letters/{}", letter.id)) { (time(letter.at, zone)) } }
            td data-label="Reason" { (letter.reason) }
            td.break data-label="Template" { (letter.template_key.as_deref().unwrap_or("–")) }
            td.break data-label="To" { (recipients(letter, personal)) }
            td data-label="State" { (badge(&letter.state)) }
            td.break data-label="Error" { (letter.error.as_deref().filter(|_| personal).unwrap_or_default()) }
        }
    }
}

fn recipients(letter: &DeadSummary, personal: bool) -> String {
    let all = listed(letter.recipients.as_deref());
    let shown: Vec<String> =
        all.iter().filter_map(|line| words(line, "address")).map(|address| address_for(personal, address)).collect();
    if shown.is_empty() { "–".to_owned() } else { shown.join(", ") }
}

/// The plan is made of what the page was asked for, and shown before anything is sent.
fn replaying(session: &Session, asked: &Asked) -> Markup {
    let wanted = asked.wanted(session.zone);
    let is_all = wanted.is_everything();
    html! {
        section.card aria-labelledby="replay" {
            h2 #replay { "Replay" }
            p {
                @if is_all { "Every letter that waits, whatever its reason." }
                @else { "Every letter that waits and is like what you searched for." }
                " First you see what would happen to how many; nothing is sent before you say so, and nothing that was sent is sent again."
            }
            (replay_form(session, &wanted, "Plan"))
        }
    }
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(id): Path<String>,
) -> Result<Html<String>, PageError> {
    let id = params::uuid("id", &id)?;
    let letter = admin.store.dead_letter(id).await?.ok_or_else(unknown)?;
    let personal = session.is_operator();
    if personal {
        admin.store.record_view(&session.operator.by(), Viewed::DeadLetter(letter.summary.id)).await?;
    }
    let title = format!("Dead letter: {}", letter.summary.reason);
    let body = html! {
        h1 { (title) " " (badge(&letter.summary.state)) }
        div.grid.uneven {
            (facts(&letter, personal, session.zone))
            (history(&letter, personal, session.zone))
        }
        @if personal { (said(&letter)) (steering(&session, &letter)) }
        @else { p.notice { "What it says, and to whom, is shown to the role operator." } }
    };
    Ok(page(&session, Section::DeadLetters, &title, &body))
}

fn facts(letter: &DeadLetter, personal: bool, zone: Tz) -> Markup {
    let summary = &letter.summary;
    html! {
        section.card aria-labelledby="facts" {
            h2 #facts { "The letter" }
            dl.facts {
                dt { "Reason" } dd { (summary.reason) }
                @if let Some(error) = summary.error.as_deref().filter(|_| personal) { dt { "Error" } dd { (error) } }
                dt { "Not got by" } dd { (recipients(summary, personal)) }
                dt { "Template" } dd { (summary.template_key.as_deref().unwrap_or("–")) }
                dt { "Source" } dd { (summary.source.as_deref().unwrap_or("–")) @if let Some(lane) = &summary.lane { ", " (lane) " lane" } }
                @if let Some(attempts) = summary.attempts { dt { "Attempts" } dd { (attempts) } }
                dt { "First seen" } dd { (time_or_dash(letter.first_at, zone)) }
                dt { "Failed" } dd { (time(summary.at, zone)) }
                @if let Some(at) = letter.replayed_at { dt { "Replayed" } dd { (time(at, zone)) } }
                @if let Some(discard) = &letter.discard {
                    dt { "Discarded" } dd { (time(discard.at, zone)) " by " (discard.by)
                        @if let Some(note) = discard.note.as_deref().filter(|_| personal) { ": " (note) } }
                }
                @if let Some(request) = summary.request_id {
                    dt { "Request" } dd { a.mono href=(format!("/messages?request_id={request}")) { (request) } }
                }
                @if let Some(key) = letter.routing_key.as_deref().filter(|_| personal) { dt { "Routing key" } dd.mono { (key) } }
                dt { "Size" } dd { (layout::thousands(letter.body_bytes.into())) " bytes" }
            }
        }
    }
}

fn history(letter: &DeadLetter, personal: bool, zone: Tz) -> Markup {
    let steps = listed(letter.headers.get("x-history").and_then(Value::as_str));
    let at = |step: &Value| words(step, "at").and_then(|at| at.parse::<chrono::DateTime<chrono::Utc>>().ok());
    html! {
        section.card aria-labelledby="history" {
            h2 #history { "What happened" }
            @if steps.is_empty() { p { "It tells of no tries." } }
            @else {
                table.stack {
                    thead { tr { th { "When" } th { "What" } th { "Relay" } th { "Error" } } }
                    tbody {
                        @for step in &steps {
                            tr {
                                td data-label="When" { (time_or_dash(at(step), zone)) }
                                td data-label="What" { (badge(words(step, "kind").unwrap_or("?"))) }
                                td.break data-label="Relay" { (words(step, "relay").unwrap_or("–")) }
                                td.break data-label="Error" { (words(step, "error").filter(|_| personal).unwrap_or_default()) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn said(letter: &DeadLetter) -> Markup {
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
    let content = content(letter);
    html! {
        section.card aria-labelledby="content" {
            h2 #content { "What it says" }
            pre tabindex="0" { @if let Some(text) = content.as_str() { (text) } @else { (pretty(&content)) } }
        }
        section.card {
            details {
                summary { "Headers and properties" }
                pre tabindex="0" { (pretty(&letter.headers)) }
                pre tabindex="0" { (pretty(&letter.properties)) }
            }
        }
    }
}

fn steering(session: &Session, letter: &DeadLetter) -> Markup {
    let id = letter.summary.id;
    let is_waiting = letter.summary.state == LetterState::Waiting.name();
    let is_open = is_waiting || letter.summary.state == LetterState::Replaying.name();
    html! {
        @if is_open {
            section.card aria-labelledby="replay" {
                h2 #replay { "Replay" }
                (replay_form(session, &Wanted { id: Some(id), ..Wanted::default() }, "Plan"))
            }
        }
        @if is_waiting {
            section.card aria-labelledby="discard" {
                h2 #discard { "Discard" }
                form.row method="post" action=(format!("/dead-letters/{id}/discard"))
                    data-confirm="Discard it? It can never be replayed afterwards." {
                    (csrf(session))
                    label { "Note" input type="text" name="note" maxlength=(NOTE_CHARS_MAX); }
                    button.danger type="submit" { "Discard" }
                }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Discarding {
    note: Option<String>,
}

pub(super) async fn discard(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    posted: Posted<Discarding>,
) -> Result<Redirect, PageError> {
    if !posted.session.is_operator() {
        return Err(needs_operator().into());
    }
    let id = params::uuid("id", &id)?;
    discard_as(&admin, &posted.session.operator, id, posted.form.note).await?;
    Ok(Redirect::to(&format!("/dead-letters/{id}")))
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such dead letter")
}
