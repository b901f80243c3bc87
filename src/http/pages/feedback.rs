//! What providers did not tell, and what they told of nobody.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::Html,
};
use chrono::{TimeDelta, Utc};
use maud::html;
use serde::Deserialize;

use super::{
    PageError,
    layout::{Section, page, time},
    session::Session,
};
use crate::http::{Admin, params};

/// Items of each list.
const LIMIT: i64 = 100;
const HOURS_DEFAULT: u32 = 24;
const HOURS_MAX: u32 = 8760;
const DAYS_DEFAULT: u32 = 7;
const DAYS_MAX: u32 = 90;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    silent_hours: Option<u32>,
    days: Option<u32>,
}

pub(super) async fn report(
    State(admin): State<Arc<Admin>>,
    session: Session,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Html<String>, PageError> {
    let asked = params::query(asked)?;
    let hours = asked.silent_hours.unwrap_or(HOURS_DEFAULT).min(HOURS_MAX);
    let days = asked.days.unwrap_or(DAYS_DEFAULT).clamp(1, DAYS_MAX);
    let since = Utc::now() - TimeDelta::days(i64::from(days));
    let report = admin.store.feedback_report(since, Duration::from_secs(u64::from(hours) * 3600), LIMIT).await?;
    let zone = session.zone;
    let body = html! {
        h1 { "Feedback" }
        form.card.filter method="get" action="/feedback" {
            label { "Silent for at least (hours)" input type="number" name="silent_hours" min="0" max=(HOURS_MAX) value=(hours) data-search; }
            label { "Looking back (days)" input type="number" name="days" min="1" max=(DAYS_MAX) value=(days); }
            div.row { button type="submit" { "Look" } }
        }
        section.card aria-labelledby="silent" {
            h2 #silent { "Accepted by the relay, and nothing heard since" }
            @if report.silent.is_empty() { p { "None: something was heard of every mail." } }
            @else {
                table.stack {
                    thead { tr { th { "Accepted" } th { "Mail" } th { "Template" } th { "Relay" } th { "The relay's id" } } }
                    tbody {
                        @for mail in &report.silent {
                            tr {
                                td data-label="Accepted" { (time(mail.sent_at, zone)) }
                                td.break.mono data-label="Mail" { a href=(format!("/messages/{}", mail.id)) { (mail.id) } }
                                td.break data-label="Template" { (mail.template_key) }
                                td.break data-label="Relay" { (mail.relay.as_deref().unwrap_or("–")) }
                                td.break.mono data-label="The relay's id" { (mail.relay_message_id.as_deref().unwrap_or("–")) }
                            }
                        }
                    }
                }
                @if report.is_cut.0 { p.muted { "There are more; these are the oldest." } }
            }
        }
        section.card aria-labelledby="nobody" {
            h2 #nobody { "Events for nobody" }
            @if report.for_nobody.is_empty() { p { "None: the mail of every event is known." } }
            @else {
                table.stack {
                    thead { tr { th { "Received" } th { "Event" } th { "Provider" } th { "The provider's id of the mail" } th { "Looked for" } } }
                    tbody {
                        @for event in &report.for_nobody {
                            tr {
                                td data-label="Received" { (time(event.received_at, zone)) }
                                td.break data-label="Event" { (event.event_type.as_deref().unwrap_or("not looked at yet")) }
                                td data-label="Provider" { (event.provider) }
                                td.break.mono data-label="The provider's id of the mail" { (event.relay_message_id.as_deref().unwrap_or("–")) }
                                td data-label="Looked for" { (event.looks) " times" @if event.is_waiting { ", waits" } }
                            }
                        }
                    }
                }
                @if report.is_cut.1 { p.muted { "There are more; these are the oldest." } }
            }
        }
    };
    Ok(page(&session, Section::Feedback, "Feedback", &body))
}
