//! `/livez` (the process answers), `/readyz` (a mail can go the whole way, or why not), `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Admin, problem::Problem};
use crate::{
    broker::{ConsumerState, link::LinkState},
    email::Lane,
    smtp::{RelayHealth, RelayState},
    store::StoreHealth,
};

pub(super) async fn livez() -> &'static str {
    "alive\n"
}

/// 200 when nothing is known to stand in a mail's way, else 503; each reason by name, the lanes that an operator has paused,
/// which is no fault, and how each relay fares. A relay is known by its last use; one that works is enough, and one that is
/// paced works.
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let relays = admin.relays.health();
    let reasons = reasons(&admin, &relays);
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let relays: Vec<Value> = relays.iter().map(relay_json).collect();
    // Anybody may read this: by whom and why is told to operators.
    let pauses = admin.pauses.by_operator();
    let paused: Vec<&str> = Lane::ALL.into_iter().filter(|lane| pauses.get(*lane).is_some()).map(Lane::name).collect();
    let said = json!({ "ready": reasons.is_empty(), "reasons": reasons, "paused": paused, "relays": relays });
    (status, Json(said)).into_response()
}

fn relay_json(relay: &RelayHealth) -> Value {
    let mut shown = json!({ "name": relay.name, "state": relay.state_name() });
    match &relay.state {
        RelayState::Untried | RelayState::Up => {}
        RelayState::Down { error, since, retry_at } => {
            shown["fault"] = json!(error.fault.name());
            shown["error"] = json!(error.to_string());
            shown["since"] = json!(since);
            shown["retry_at"] = json!(retry_at);
        }
        RelayState::OnTrial { error, since } => {
            shown["fault"] = json!(error.fault.name());
            shown["error"] = json!(error.to_string());
            shown["since"] = json!(since);
        }
    }
    if let Some(mails_per_second) = relay.mails_per_second {
        shown["mails_per_second"] = json!((mails_per_second * 100.0).round() / 100.0);
    }
    shown
}

/// What stands in a mail's way, in words.
pub(super) fn reasons(admin: &Admin, relays: &[RelayHealth]) -> Vec<String> {
    let mut reasons = Vec::new();
    reasons.extend(admin.starting.borrow().clone());
    match &*admin.store.health().borrow() {
        StoreHealth::Up => {}
        StoreHealth::Away(why) => reasons.push(why.clone()),
        StoreHealth::CatchingUp => {
            reasons.push("database: back; what the fast lane sent meanwhile is being written into it".to_owned());
        }
    }
    for link in &admin.links {
        if let LinkState::Down(why) = link.state() {
            reasons.push(format!("{}: {why}", link.name()));
        }
    }
    for lane in Lane::ALL {
        let state = admin.lanes.get(lane).borrow().clone();
        match state {
            // A lane that somebody has paused is no fault; if it was the database's absence, that is told above.
            ConsumerState::Consuming | ConsumerState::Paused(_) => {}
            ConsumerState::Starting => reasons.push(format!("lane {lane}: not consuming yet")),
            ConsumerState::Lost(why) => reasons.push(format!("lane {lane}: lost the consumer: {why}")),
            ConsumerState::Stopped => reasons.push(format!("lane {lane}: stopped")),
        }
    }
    let down = relays.iter().filter_map(|relay| match &relay.state {
        RelayState::Down { error, .. } | RelayState::OnTrial { error, .. } => {
            Some(format!("relay {}: {}: {error}", relay.name, error.fault))
        }
        RelayState::Untried | RelayState::Up => None,
    });
    // One relay that works is enough.
    if !relays.iter().any(RelayHealth::is_usable) {
        reasons.extend(down);
    }
    reasons
}

pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Result<Response, Problem> {
    let text =
        admin.metrics.render().map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
