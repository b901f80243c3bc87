//! `/livez` (the process answers), `/readyz` (a mail can go the whole way, or why not), `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Admin,
    problem::{Problem, ProblemDetails},
};
use crate::{
    broker::{ConsumerState, link::LinkState},
    config::MailConfig,
    email::{Lane, Reason},
    smtp::{RelayHealth, RelayState},
    store::StoreHealth,
    templates::Catalogue,
};

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// The process answers
#[utoipa::path(
    get, path = "/livez", tag = "health", operation_id = "livez", security(()),
    responses((status = 200, description = "It is alive", body = String, content_type = "text/plain"))
)]
pub(super) async fn livez() -> &'static str {
    "alive\n"
}

/// Whether a mail can go the whole way, as far as is known.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// What stands in a mail's way
    reasons: Vec<String>,
    /// What stands in the way of some mails only
    notes: Vec<String>,
    /// Lanes that an operator has paused, which is no fault
    paused: Vec<&'static str>,
    /// In order of preference
    relays: Vec<RelayItem>,
}

/// How a relay fares, by its last use.
#[derive(Debug, Serialize, ToSchema)]
struct RelayItem {
    name: String,
    /// `untried`, `up`, `paced` (it throttles, and works), `down` or `on_trial`
    #[schema(example = "up")]
    state: &'static str,
    /// What is wrong, by name; null while it can be used
    #[schema(example = "refused")]
    fault: Option<&'static str>,
    /// The same in words
    error: Option<String>,
    /// Since when
    since: Option<DateTime<Utc>>,
    /// When it is probed next
    retry_at: Option<DateTime<Utc>>,
    /// How many it gets at most, because it throttled; null: as many as there are
    mails_per_second: Option<f64>,
}

/// Whether a mail can go the whole way, or why not
///
/// One relay that works is enough, and one that is paced works.
#[utoipa::path(
    get, path = "/readyz", tag = "health", operation_id = "readyz", security(()),
    responses(
        (status = 200, description = "Nothing is known to stand in a mail's way", body = Readiness),
        (status = 503, description = "Something does", body = Readiness)
    )
)]
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, Json<Readiness>) {
    let relays = admin.relays.health();
    let reasons = reasons(&admin, &relays);
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let relays = relays.iter().map(relay_item).collect();
    // Anybody may read this: by whom and why is told to operators.
    let pauses = admin.pauses.by_operator();
    let paused = Lane::ALL.into_iter().filter(|lane| pauses.get(*lane).is_some()).map(Lane::name).collect();
    let notes = marketing_note(&admin.catalogue, &admin.mail).into_iter().collect();
    (status, Json(Readiness { ready: reasons.is_empty(), reasons, notes, paused, relays }))
}

/// Marketing mails are not sent without a link to unsubscribe.
pub(crate) fn marketing_note(catalogue: &Catalogue, mail: &MailConfig) -> Option<String> {
    if mail.public_url.is_some() {
        return None;
    }
    let active = catalogue.all_active();
    let mut keys: Vec<&str> = active.iter().filter(|t| t.manifest().is_marketing()).map(|t| t.key()).collect();
    keys.sort_unstable();
    (!keys.is_empty()).then(|| {
        format!(
            "EMAIL_PUBLIC_URL is not set, so there is no link to unsubscribe, and no marketing mail is sent: requests for {} \
             end as dead letters ({})",
            keys.join(", "),
            Reason::NoUnsubscribeLink
        )
    })
}

fn relay_item(relay: &RelayHealth) -> RelayItem {
    let (error, since, retry_at) = match &relay.state {
        RelayState::Untried | RelayState::Up => (None, None, None),
        RelayState::Down { error, since, retry_at } => (Some(error), Some(*since), Some(*retry_at)),
        RelayState::OnTrial { error, since } => (Some(error), Some(*since), None),
    };
    RelayItem {
        name: relay.name.clone(),
        state: relay.state_name(),
        fault: error.map(|error| error.fault.name()),
        error: error.map(ToString::to_string),
        since,
        retry_at,
        mails_per_second: relay.mails_per_second.map(|pace| (pace * 100.0).round() / 100.0),
    }
}

impl Admin {
    /// Whether nothing is known to stand in a mail's way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        reasons(self, &self.relays.health()).is_empty()
    }
}

/// What stands in a mail's way, in words.
pub(crate) fn reasons(admin: &Admin, relays: &[RelayHealth]) -> Vec<String> {
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

/// Figures in Prometheus' text format
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics", security(()),
    responses(
        (status = 200, description = "The figures", body = String, content_type = "text/plain"),
        (
            status = 500, description = "They cannot be told",
            body = ProblemDetails, content_type = "application/problem+json"
        )
    )
)]
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Result<Response, Problem> {
    let text =
        admin.metrics.render().map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
