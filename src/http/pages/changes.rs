//! What operators did.

use std::sync::Arc;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::Html,
};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::{
    PageError,
    layout::{Section, field, further, given, page, time, total},
    session::Session,
};
use crate::{
    http::{Admin, params},
    store::changes::ChangeFilter,
};

/// Lines on a page.
const LIMIT: i64 = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    by: Option<String>,
    action: Option<String>,
    target: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    session: Session,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Html<String>, PageError> {
    let asked = params::query(asked)?;
    let filter = ChangeFilter {
        by: params::word("by", given(&asked.by))?.map(|name| format!("operator:{name}")),
        action: params::word("action", given(&asked.action))?,
        target: params::word("target", given(&asked.target))?,
        after: params::cursor(given(&asked.cursor).as_deref(), |text| text.parse().ok())?,
        limit: LIMIT,
        ..ChangeFilter::default()
    };
    let found = admin.store.changes(&filter).await?;
    let zone = session.zone;
    let pairs = [("by", asked.by.as_deref()), ("action", asked.action.as_deref()), ("target", asked.target.as_deref())];
    let body = html! {
        h1 { "Changes" }
        form.card.filter method="get" action="/changes" role="search" {
            (field("by", "By", "text", asked.by.as_deref(), "name of a token"))
            (field("action", "Action", "text", asked.action.as_deref(), "template, lane.pause ..."))
            (field("target", "Of", "text", asked.target.as_deref(), "key or id"))
            div.row { button type="submit" { "Search" } a.button.quiet href="/changes" { "Clear" } }
        }
        section.card aria-label="Changes" {
            p.muted { (total(found.total, found.total_is_exact, "change", "changes")) ", newest first" }
            @if found.items.is_empty() { p { "Nothing was changed." } }
            @else {
                table.stack {
                    thead { tr { th { "When" } th { "Who" } th { "What" } th { "Of" } th { "Before" } th { "After" } } }
                    tbody {
                        @for line in &found.items {
                            tr {
                                td data-label="When" { (time(line.at, zone)) }
                                td.break data-label="Who" { (line.changed_by) }
                                td data-label="What" { (line.action) }
                                td.break.mono data-label="Of" { (line.target) }
                                td.break data-label="Before" { (values(line.before.as_ref())) }
                                td.break data-label="After" { (values(line.after.as_ref())) }
                            }
                        }
                    }
                }
            }
            (further("/changes", &pairs, found.next.map(|id| id.to_string()).as_deref()))
        }
    };
    Ok(page(&session, Section::Changes, "Changes", &body))
}

fn values(of: Option<&Value>) -> Markup {
    match of {
        None => html! { span.muted { "–" } },
        Some(Value::Object(fields)) => html! {
            @for (name, value) in fields {
                div { span.muted { (name) ": " } @if let Some(text) = value.as_str() { (text) } @else { (value.to_string()) } }
            }
        },
        Some(other) => html! { (other.to_string()) },
    }
}
