//! `/livez` (the process answers), `/readyz` (a mail can go the whole way, or why not), `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{Admin, problem::Problem};
use crate::{
    broker::{ConsumerState, link::LinkState},
    email::Lane,
    smtp::RelayState,
    store::StoreHealth,
};

pub(super) async fn livez() -> &'static str {
    "alive\n"
}

/// 200 when nothing is known to stand in a mail's way, else 503; each reason by name. A relay is known by its last use.
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let reasons = reasons(&admin);
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

fn reasons(admin: &Admin) -> Vec<String> {
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
    let relays = admin.relays.health();
    let down: Vec<String> = relays
        .iter()
        .filter_map(|relay| match &relay.state {
            RelayState::Down { error, .. } | RelayState::OnTrial { error, .. } => {
                Some(format!("relay {}: {}: {error}", relay.name, error.fault))
            }
            RelayState::Untried | RelayState::Up => None,
        })
        .collect();
    // One relay that works is enough.
    if down.len() == relays.len() {
        reasons.extend(down);
    }
    reasons
}

pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Result<Response, Problem> {
    let text =
        admin.metrics.render().map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
