//! The overview: how everything fares, what stands in mails' way first, and which lanes shall take nothing.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::{Html, Redirect},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    PageError,
    layout::{Section, badge, csrf, link, page, thousands, time, time_or_dash},
    plot::plot,
    session::{Posted, Session},
};
use crate::{
    http::{
        Admin, FAST_WARNING, health,
        lanes::{
            Order, steer,
            view::{DaemonView, LaneView, LanesView, daemons_view, lanes_view},
        },
    },
    lanes::Fleet,
    store::{dead::DeadGroups, lanes::NOTE_CHARS_MAX},
};

/// The part that is shown anew while somebody looks.
const LIVE: &str = "live";
/// What a refreshing page names its part in.
const REFRESH: &str = "x-refresh";
/// Reasons of dead letters that are shown.
const REASONS_MAX: usize = 8;

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    session: Session,
    headers: HeaderMap,
) -> Result<Html<String>, PageError> {
    let fleet = admin.fleet().await;
    // Dead letters are counted one by one: not every two seconds.
    let is_refresh = headers.get(REFRESH).is_some_and(|part| part.as_bytes() == LIVE.as_bytes());
    let dead = if is_refresh || fleet.database_error.is_some() { None } else { Some(admin.store.dead_groups().await?) };
    let body = html! {
        h1 { "Overview" }
        section id=(LIVE) data-refresh="2" aria-label="How everything fares" { (live(&admin, &session, &fleet)) }
        @if let Some(dead) = &dead { (dead_letters(dead)) }
    };
    Ok(page(&session, Section::Overview, "Overview", &body))
}

fn live(admin: &Admin, session: &Session, fleet: &Fleet) -> Markup {
    let lanes = lanes_view(fleet);
    let daemons = daemons_view(fleet);
    html! {
        (problems(admin, session, &lanes))
        div.grid { @for lane in lanes.lanes() { (lane_card(session, lane)) } }
        div.grid.uneven {
            section.card aria-labelledby="relays" {
                h2 #relays { "Relays" }
                (relays(daemons.daemons()))
            }
            section.card aria-labelledby="daemons" {
                h2 #daemons { "Daemons" }
                (daemon_table(session, daemons.daemons()))
            }
        }
    }
}

/// What stands in mails' way, in words; or that nothing does.
fn problems(admin: &Admin, session: &Session, view: &LanesView) -> Markup {
    let mut reasons = health::reasons(admin, &admin.relays.health());
    for words in view.unasked() {
        if !reasons.iter().any(|reason| reason.contains(words)) {
            reasons.push(words.to_owned());
        }
    }
    if reasons.is_empty() {
        // Otherwise it is told already why.
        let unconsumed = view.lanes().iter().filter(|lane| lane.state == "not_consumed");
        reasons.extend(unconsumed.map(|lane| format!("lane {}: no daemon consumes it", lane.lane)));
    }
    html! {
        @if reasons.is_empty() {
            p.notice.good { "Nothing is known to stand in a mail's way." }
        } @else {
            div.notice.bad {
                h2 { "What stands in mails' way" }
                ul { @for reason in &reasons { li.break { (reason) } } }
            }
        }
        @for lane in view.lanes() {
            @if let Some(pause) = &lane.paused {
                p.notice.warn.break {
                    "The " (lane.lane) " lane is paused since " (time(pause.at, session.zone)) " by " (pause.by)
                    @if let Some(note) = &pause.note { ": " (note) }
                }
            }
        }
    }
}

fn lane_card(session: &Session, lane: &LaneView) -> Markup {
    let number = |count: Option<u32>| match count {
        Some(count) => html! { (thousands(count.into())) },
        None => html! { span.muted { "–" } },
    };
    let rate = |per_second: f64| format!("{per_second:.1}");
    html! {
        section.card aria-labelledby=(format!("lane-{}", lane.lane)) {
            h2 id=(format!("lane-{}", lane.lane)) { (lane.lane) " " (state_badge(lane)) }
            (plot(&lane.history.sent, &lane.history.troubled, lane.history.step_seconds))
            dl.facts {
                dt { "Waiting" } dd { (number(lane.depth)) }
                dt { "Retrying" } dd {
                    (number(lane.retry_depth))
                    @for rung in lane.retry_queues.iter().filter(|rung| rung.depth > 0) {
                        span.muted { " · " (rung.delay) ": " (thousands(rung.depth.into())) }
                    }
                }
                dt { "At work" } dd { (thousands(i64::try_from(lane.in_flight).unwrap_or(i64::MAX))) span.muted { " · consumers: " } (number(lane.consumers)) }
                dt { "A second" } dd { (rate(lane.rates.sent)) " sent" span.muted { " · " (rate(lane.rates.taken)) " taken · " (rate(lane.rates.deferred)) " deferred · " (rate(lane.rates.dead)) " dead" } }
                dt title="From publish to taking; the queue itself does not tell the age of what waits" { "Age" }
                dd { @match lane.taken_age_ms { Some(ms) => { (age(ms)) } None => { span.muted { "–" } } } }
                @if let Some(latency) = &lane.latency {
                    dt title="From publish to the relay's 250, last five minutes" { "Latency" }
                    dd {
                        @match (latency.p50_ms, latency.p99_ms) {
                            (Some(p50), Some(p99)) => {
                                (format!("{p50:.0} ms")) span.muted { " median · " }
                                (format!("{p99:.0} ms")) span.muted { " 99th percentile of " (latency.mails) }
                            }
                            _ => { span.muted { "–" } }
                        }
                    }
                }
            }
            @if session.is_operator() { (steering(session, lane)) }
        }
    }
}

/// That a lane runs is as it should be.
fn state_badge(lane: &LaneView) -> Markup {
    let tone = match lane.state {
        "running" => "good",
        "paused" => "warn",
        _ => "bad",
    };
    html! { span.badge.(tone) { (lane.state.replace('_', " ")) } }
}

fn steering(session: &Session, lane: &LaneView) -> Markup {
    let is_paused = lane.paused.is_some();
    let (order, word) = if is_paused { ("resume", "Resume") } else { ("pause", "Pause") };
    let question = (lane.lane == "fast" && !is_paused).then(|| format!("Pause the fast lane? {FAST_WARNING}."));
    html! {
        details {
            summary { (word) " the " (lane.lane) " lane" }
            form.row method="post" action=(format!("/lanes/{}/{order}", lane.lane)) data-confirm=[question] {
                (csrf(session))
                label { "Note" input type="text" name="note" maxlength=(NOTE_CHARS_MAX) placeholder="why; no personal data"; }
                button type="submit" class=[(!is_paused).then_some("danger")] { (word) }
            }
        }
    }
}

/// `350 ms`, `12 s`, `5 min`, `3 h`.
fn age(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// A relay's breaker at each daemon: what differs is seen at once.
fn relays(daemons: &[DaemonView]) -> Markup {
    let mut names: Vec<&str> = Vec::new();
    for relay in daemons.iter().flat_map(|daemon| &daemon.relays) {
        if !names.contains(&relay.name.as_str()) {
            names.push(&relay.name);
        }
    }
    html! {
        table.stack {
            thead { tr { th { "Relay" } th { "As each daemon sees it" } } }
            tbody {
                @for name in names {
                    tr {
                        td.break data-label="Relay" { (name) }
                        td data-label="State" {
                            div {
                                @for daemon in daemons {
                                    @for relay in daemon.relays.iter().filter(|relay| relay.name == name) {
                                        div {
                                            @if daemons.len() > 1 { span.muted { (daemon.host) " " } }
                                            (badge(&relay.state))
                                            @if let Some(fault) = &relay.fault { " " (fault) }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn daemon_table(session: &Session, daemons: &[DaemonView]) -> Markup {
    html! {
        table.stack {
            thead { tr { th { "Host" } th { "Version" } th { "Started" } th { "Database" } th { "Lanes" } } }
            tbody {
                @for daemon in daemons {
                    tr {
                        td.break data-label="Host" title=(daemon.id) { span { (daemon.host) @if daemon.is_this { span.muted { " (this one)" } } } }
                        td data-label="Version" { (daemon.version) }
                        td data-label="Started" { (time_or_dash(daemon.started_at, session.zone)) }
                        td data-label="Database" { (badge(&daemon.database)) }
                        td data-label="Lanes" {
                            div {
                                @for lane in &daemon.lanes {
                                    div { (lane.lane) " " (badge(&lane.state)) span.muted { " " (lane.in_flight) " at work" } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn dead_letters(dead: &DeadGroups) -> Markup {
    // By reason only: templates are told apart on their own page.
    let mut reasons: Vec<(&str, i64)> = Vec::new();
    for group in &dead.items {
        match reasons.iter_mut().find(|(reason, _)| *reason == group.reason) {
            Some((_, letters)) => *letters += group.letters,
            None => reasons.push((&group.reason, group.letters)),
        }
    }
    reasons.sort_by_key(|(_, letters)| std::cmp::Reverse(*letters));
    html! {
        section.card aria-labelledby="dead" {
            h2 #dead { "Dead letters that wait" }
            @if reasons.is_empty() { p { "None." } }
            @else {
                p.muted { @if !dead.is_exact { "more than " } (thousands(dead.letters)) " in all" }
                ul.plain {
                    @for (reason, letters) in reasons.iter().take(REASONS_MAX) {
                        li { a href=(link("/dead-letters", &[("reason", Some(*reason))], None)) { (reason) } " " (thousands(*letters)) }
                    }
                }
                @if reasons.len() > REASONS_MAX { p { a href="/dead-letters" { "All reasons" } } }
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Steering {
    note: Option<String>,
}

pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    Path(lane): Path<String>,
    posted: Posted<Steering>,
) -> Result<Redirect, PageError> {
    steer(&admin, &posted.session.operator, &lane, Order::Pause, posted.form.note).await?;
    Ok(Redirect::to("/"))
}

pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    Path(lane): Path<String>,
    posted: Posted<Steering>,
) -> Result<Redirect, PageError> {
    steer(&admin, &posted.session.operator, &lane, Order::Resume, posted.form.note).await?;
    Ok(Redirect::to("/"))
}
