//! Replays of dead letters: planned, looked at, started, followed, paused, given up.
//!
//! Invariant: nothing is sent by a plan; a run is started by a form of its own, on the page that shows its numbers.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{Html, Redirect},
};
use chrono_tz::Tz;
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    PageError,
    layout::{
        self, Section, badge, choice, csrf, further, given, moment, needs_operator, page, thousands, time,
        time_or_dash, total,
    },
    session::{Posted, Session},
};
use crate::{
    http::{
        Admin,
        dead_letters::plan::Which,
        params,
        problem::Problem,
        replays::{change, make, unknown},
    },
    store::replay::{ItemFilter, ItemPage, ItemResult, RATE_DEFAULT, RATE_MAX, Run, RunAction, RunState},
};

/// Runs, or letters of one, on a page.
const LIMIT: i64 = 50;

/// Which letters shall be replayed, and how: a form's fields. Forms send what was left empty as well.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    pub(super) id: Option<Uuid>,
    pub(super) reason: Option<String>,
    pub(super) template: Option<String>,
    pub(super) source: Option<String>,
    pub(super) to: Option<String>,
    pub(super) since: Option<String>,
    pub(super) until: Option<String>,
    pub(super) rate: Option<i32>,
    pub(super) words: Option<String>,
}

impl Wanted {
    /// Whether it leaves no letter out.
    pub(super) fn is_everything(&self) -> bool {
        self.id.is_none() && self.fields().into_iter().all(|(_, value)| value.is_none())
    }

    fn fields(&self) -> [(&'static str, Option<&str>); 6] {
        [
            ("reason", self.reason.as_deref()),
            ("template", self.template.as_deref()),
            ("source", self.source.as_deref()),
            ("to", self.to.as_deref()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
        ]
    }
}

/// The form that plans a replay of these.
pub(super) fn replay_form(session: &Session, wanted: &Wanted, verb: &str) -> Markup {
    html! {
        form.filter method="post" action="/replays" {
            (csrf(session))
            @if let Some(id) = wanted.id { input type="hidden" name="id" value=(id); }
            @for (name, value) in wanted.fields() { @if let Some(value) = value { input type="hidden" name=(name) value=(value); } }
            label { "Letters a second" input type="number" name="rate" min="1" max=(RATE_MAX) value=(RATE_DEFAULT); }
            label.wide { "Words"
                select name="words" {
                    option value="active" { "of the template's active version" }
                    option value="first" { "of the first time" }
                }
            }
            div.row { button type="submit" { (verb) } }
        }
    }
}

pub(super) async fn create(State(admin): State<Arc<Admin>>, posted: Posted<Wanted>) -> Result<Redirect, PageError> {
    let Posted { session, form } = posted;
    if !session.is_operator() {
        return Err(needs_operator().into());
    }
    let keep_version = form.words.as_deref() == Some("first");
    let which = Which {
        ids: form.id.map(|id| vec![id]),
        reason: given(&form.reason),
        template: given(&form.template),
        source: given(&form.source),
        to: given(&form.to),
        since: moment(&form.since, session.zone),
        until: moment(&form.until, session.zone),
    };
    let run = make(&admin, &session.operator, which, form.rate, keep_version).await?;
    Ok(Redirect::to(&format!("/replays/{}", run.id)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    state: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    session: Session,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Html<String>, PageError> {
    let asked = params::query(asked)?;
    let names: Vec<&'static str> = RunState::ALL.iter().map(|state| state.name()).collect();
    let asked_state = given(&asked.state);
    let state = params::one_of("state", asked_state.as_deref(), RunState::from_name, names.iter().copied())?;
    let after = params::cursor(asked.cursor.as_deref(), |text| text.parse().ok())?;
    let found = admin.store.runs(state, after, LIMIT).await?;
    let body = html! {
        h1 { "Replays" }
        form.card.filter method="get" action="/replays" {
            (choice("state", "State", asked_state.as_deref(), &names))
            div.row { button type="submit" { "Show" } a.button.quiet href="/dead-letters" { "To the dead letters" } }
        }
        section.card aria-label="Replays" {
            p.muted { (total(found.total, found.total_is_exact, "replay", "replays")) ", newest first" }
            @if found.items.is_empty() { p { "None yet. A replay is planned on the page of the dead letters." } }
            @else {
                table.stack {
                    thead { tr { th { "Made" } th { "By" } th { "State" } th.num { "Letters" } th.num { "Replayed" } th.num { "Skipped" } th.num { "Failed" } th.num { "Open" } } }
                    tbody {
                        @for run in &found.items {
                            tr {
                                td data-label="Made" { a href=(path(run.id)) { (time(run.created_at, session.zone)) } }
                                td.break data-label="By" { (run.created_by) }
                                td data-label="State" { (badge(run.state.name())) }
                                @for (name, n) in counts(run) { td.num data-label=(name) { (thousands(n.into())) } }
                            }
                        }
                    }
                }
            }
            (further("/replays", &[("state", asked_state.as_deref())], found.next.map(|id| id.to_string()).as_deref()))
        }
    };
    Ok(page(&session, Section::Replays, "Replays", &body))
}

fn path(id: Uuid) -> String {
    format!("/replays/{id}")
}

const fn counts(run: &Run) -> [(&'static str, i32); 5] {
    [
        ("Letters", run.letters),
        ("Replayed", run.replayed),
        ("Skipped", run.skipped),
        ("Failed", run.failed),
        ("Open", run.open()),
    ]
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Letters {
    result: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    session: Session,
    Path(id): Path<String>,
    asked: Result<Query<Letters>, QueryRejection>,
) -> Result<Html<String>, PageError> {
    let id = params::uuid("id", &id)?;
    let asked = params::query(asked)?;
    let names = ItemResult::ALL.iter().map(|result| result.name());
    let result = given(&asked.result);
    let result = result.as_deref();
    let filter = ItemFilter {
        result: params::one_of("result", result, ItemResult::from_name, names)?,
        after: params::cursor(asked.cursor.as_deref(), |text| text.parse().ok())?,
        limit: LIMIT,
    };
    let run = admin.store.run(id).await?.ok_or_else(unknown)?;
    let results = admin.store.run_results(id).await?;
    let letters = admin.store.run_items(id, &filter).await?;
    // What has ended is not looked at again and again.
    let every = matches!(run.state, RunState::Running | RunState::Paused).then_some("2");
    let body = html! {
        h1 { "Replay" }
        section #progress data-refresh=[every] aria-label="How far it is" { (progress(&session, &run, &results)) }
        (planned(&run))
        (items(&run, &letters, result, session.zone))
    };
    Ok(page(&session, Section::Replays, "Replay", &body))
}

fn progress(session: &Session, run: &Run, results: &[(String, String, i64)]) -> Markup {
    let done = run.letters - run.open();
    html! {
        div.card {
            p { (badge(run.state.name()))
                @match run.state {
                    RunState::Planned => { " Nothing was sent. Look at the numbers, then start it." }
                    RunState::Running if run.has_runner => { " At most " (run.rate) " letters a second." }
                    RunState::Running => { " A daemon takes it up in a moment." }
                    RunState::Paused => { " Nothing is sent until it is resumed." }
                    RunState::Done => { " Each letter has its result." }
                    RunState::Cancelled => { " What was not sent by then stays a dead letter." }
                }
            }
            @if let Some(why) = &run.waits_for { p.notice.warn { "It waits: " (why) } }
            progress max=(run.letters.max(1)) value=(done) aria-label="Letters with a result" { (done) " of " (run.letters) }
            dl.facts {
                @for (name, n) in counts(run) { dt { (name) } dd { (thousands(n.into())) } }
                dt { "Made" } dd { (time(run.created_at, session.zone)) " by " (run.created_by) }
                dt { "Started" } dd { (time_or_dash(run.started_at, session.zone)) }
                dt { "Ended" } dd { (time_or_dash(run.finished_at, session.zone)) }
                dt { "Words" } dd { (if run.keep_version { "of the first time" } else { "of the templates' active versions" }) }
            }
            @if session.is_operator() { (steering(session, run)) }
        }
        @if !results.is_empty() {
            div.card {
                h2 { "Why letters were not sent" }
                table.stack {
                    thead { tr { th { "Result" } th { "Why" } th.num { "Letters" } } }
                    tbody {
                        @for (result, why, letters) in results {
                            tr {
                                td data-label="Result" { (badge(result)) }
                                td.break data-label="Why" { (why) }
                                td.num data-label="Letters" { (thousands(*letters)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn steering(session: &Session, run: &Run) -> Markup {
    let actions: &[(RunAction, &str, &str)] = match run.state {
        RunState::Planned => &[(RunAction::Start, "Start", ""), (RunAction::Cancel, "Give up", "danger")],
        RunState::Running => &[(RunAction::Pause, "Pause", ""), (RunAction::Cancel, "Give up", "danger")],
        RunState::Paused => &[(RunAction::Resume, "Resume", ""), (RunAction::Cancel, "Give up", "danger")],
        RunState::Done | RunState::Cancelled => &[],
    };
    html! {
        div.row {
            @for (action, words, class) in actions {
                form method="post" action=(format!("/replays/{}/{}", run.id, action.name())) {
                    (csrf(session))
                    button class=(class) type="submit" { (words) }
                }
            }
        }
    }
}

fn planned(run: &Run) -> Markup {
    let plan = &run.plan;
    html! {
        div.grid {
            section.card aria-labelledby="open" {
                h2 #open { "Planned to go out: " (thousands(plan.open.into())) }
                @if plan.groups.is_empty() { p { "None." } }
                @else {
                    table.stack {
                        thead { tr { th { "Reason" } th { "Template" } th { "Version" } th.num { "Letters" } } }
                        tbody {
                            @for group in &plan.groups {
                                tr {
                                    td data-label="Reason" { (group.reason) }
                                    td.break data-label="Template" { (group.template_key.as_deref().unwrap_or("–")) }
                                    td data-label="Version" { @match group.template_version { Some(version) => { (version) }, None => { "as it asks for" } } }
                                    td.num data-label="Letters" { (thousands(group.letters.into())) }
                                }
                            }
                        }
                    }
                    @if plan.in_other_groups > 0 { p.muted { "And " (thousands(plan.in_other_groups.into())) " of other kinds." } }
                }
            }
            section.card aria-labelledby="skipped" {
                h2 #skipped { "Planned to be left alone: " (thousands(plan.skipped.into())) }
                @if plan.skips.is_empty() { p { "None." } }
                @else {
                    table.stack {
                        thead { tr { th { "Why" } th.num { "Letters" } } }
                        tbody {
                            @for skip in &plan.skips {
                                tr {
                                    td.break data-label="Why" { (skip.words) }
                                    td.num data-label="Letters" { (thousands(skip.letters.into())) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn items(run: &Run, letters: &ItemPage, result: Option<&str>, zone: Tz) -> Markup {
    let path = path(run.id);
    html! {
        section.card aria-labelledby="letters" {
            h2 #letters { "Letters" }
            nav.pager aria-label="Letters by result" {
                a.button.quiet href=(path) aria-current=[result.is_none().then_some("true")] { "all" }
                @for one in ItemResult::ALL {
                    a.button.quiet href=(layout::link(&path, &[("result", Some(one.name()))], None))
                        aria-current=[(result == Some(one.name())).then_some("true")] { (one.name()) }
                }
            }
            @if letters.items.is_empty() { p { "None." } }
            @else {
                table.stack {
                    thead { tr { th.num { "No." } th { "Reason" } th { "Template" } th { "Result" } th { "Why" } th { "When" } } }
                    tbody {
                        @for item in &letters.items {
                            tr {
                                td.num data-label="No." { a href=(format!("/dead-letters/{}", item.dead_letter_id)) { (item.position + 1) } }
                                td data-label="Reason" { (item.reason) }
                                td.break data-label="Template" { (item.template_key.as_deref().unwrap_or("–")) @if let Some(version) = item.template_version { " v" (version) } }
                                td data-label="Result" { (badge(item.result.name())) }
                                td.break data-label="Why" { (item.detail.as_deref().unwrap_or_default()) }
                                td data-label="When" { (time_or_dash(item.done_at, zone)) }
                            }
                        }
                    }
                }
            }
            (further(&path, &[("result", result)], letters.next.map(|after| after.to_string()).as_deref()))
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Nothing {}

pub(super) async fn act(
    State(admin): State<Arc<Admin>>,
    Path((id, action)): Path<(String, String)>,
    posted: Posted<Nothing>,
) -> Result<Redirect, PageError> {
    if !posted.session.is_operator() {
        return Err(needs_operator().into());
    }
    let id = params::uuid("id", &id)?;
    let action = action.parse().map_err(|()| Problem::new(StatusCode::NOT_FOUND, "a replay has no such action"))?;
    change(&admin, id, action, &posted.session.operator).await?;
    Ok(Redirect::to(&path(id)))
}
