//! The sidecar: the admin listener with its API, health and metrics, and the public listener.
//!
//! Invariant: there is no route that sends a mail around the broker; a template test that sends is a request like any other.
//! Invariant: every route of the admin listener but health and metrics needs a token.
//! Invariant: what is slow, malformed or too much is the listener's to stop ([`listener`]), before any route sees it.

/// What both listeners do before a request is one.
pub mod listener;

/// Their certificates.
pub mod tls;

/// Who asks.
mod client;

/// What holds for every route.
mod guard;

/// Who may do what.
pub mod auth;

/// Tokens that were tried in vain.
mod tries;

/// Errors as problem details (RFC 9457).
pub mod problem;

/// `/livez`, `/readyz`, `/metrics`.
mod health;

/// The same, asked from outside.
pub mod probe;

/// `/api/v1/email/templates`.
mod templates;

/// What parameters are, and which are none.
mod params;

/// `/api/v1/email/messages`.
mod messages;

/// `/api/v1/email/dead-letters`.
pub(crate) mod dead_letters;

/// `/api/v1/email/replays`.
pub(crate) mod replays;

/// `/api/v1/email/messages/{id}/resend`.
mod resend;

/// `/api/v1/email/feedback`.
mod feedback;

/// `/api/v1/email/suppressions`.
mod suppressions;

/// `/api/v1/email/changes`.
mod changes;

/// `/api/v1/email/lanes` and `/daemons`.
mod lanes;

/// The API's description.
mod openapi;

/// Closed lists of names in it.
mod names;

/// What browsers show.
mod pages;

/// The public listener.
pub mod public;

pub use feedback::report_json;
pub(crate) use health::{marketing_note, reasons};
pub use lanes::{
    FAST_WARNING,
    view::{LaneView, LanesView, lanes_view},
};
pub use messages::{message_detail_json, message_page_json};
pub use suppressions::{suppression_change_json, suppression_json};
pub use templates::{difference_json, saved_json, switch_json, version_list_json, whole_version_json};
pub use tries::Tries;

use std::{sync::Arc, time::Duration};

use axum::{Extension, Router, extract::DefaultBodyLimit, middleware::map_response};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use self::{
    guard::{Guard, guarded},
    listener::Door,
};
use crate::{
    broker::{ConsumerState, Link, Publisher, depths::DepthGauge},
    config::{HttpConfig, MailConfig, PipelineConfig},
    email::PerLane,
    lanes::{Pauses, Reporter},
    metrics::Metrics,
    smtp::Relays,
    store::Store,
    templates::Catalogue,
};

/// Largest request body.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a body may take to begin to arrive.
const BODY_GRACE: Duration = Duration::from_secs(10);
/// The admin listener, as a label.
pub(crate) const ADMIN: &str = "admin";
/// The public one.
pub(crate) const PUBLIC: &str = "public";

/// What the routes work with.
pub struct Admin {
    /// The audit.
    pub store: Arc<Store>,
    /// Templates in use.
    pub catalogue: Arc<Catalogue>,
    /// For readiness.
    pub relays: Arc<Relays>,
    /// For readiness.
    pub links: [Arc<Link>; 2],
    /// For readiness.
    pub lanes: PerLane<watch::Receiver<ConsumerState>>,
    /// Which lanes take nothing now.
    pub pauses: Arc<Pauses>,
    /// What waits.
    pub depths: DepthGauge,
    /// What this daemon tells of itself.
    pub reporter: Arc<Reporter>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For test mails.
    pub publisher: Arc<Publisher>,
    /// For recorded mails that are sent again.
    pub replays: Arc<Publisher>,
    /// Tokens.
    pub http: HttpConfig,
    /// What templates show.
    pub mail: MailConfig,
    /// Limits.
    pub rules: PipelineConfig,
    /// Why consuming has not begun yet; nothing once it has.
    pub starting: watch::Sender<Option<String>>,
    /// Tokens that were tried.
    pub tries: Tries,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, stop: CancellationToken) {
    let (config, metrics) = (admin.http.admin.clone(), Arc::clone(&admin.metrics));
    let guard = Guard {
        listener: ADMIN,
        hosts: Some(admin.http.admin_hosts.clone()),
        needs_certificate: config.tls.as_ref().is_some_and(|tls| tls.asks_for_certificates()),
        metrics: Arc::clone(&metrics),
    };
    let door = Door { name: ADMIN, config, body_grace: BODY_GRACE, metrics };
    listener::serve(listener, door, guarded(router(admin), guard), stop).await;
}

fn router(admin: Arc<Admin>) -> Router {
    let (router, description) = described().split_for_parts();
    let description = openapi::complete(description);
    router
        .layer(map_response(problem::from_plain_words))
        .merge(pages::router())
        .layer(Extension(Arc::new(description)))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(admin)
}

/// All routes that the description tells of.
fn described() -> OpenApiRouter<Arc<Admin>> {
    let api = areas().into_iter().fold(OpenApiRouter::new(), OpenApiRouter::merge);
    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .merge(health::routes())
        .nest("/api/v1", openapi::routes())
        .nest("/api/v1/email", api)
}

/// The API, area by area.
fn areas() -> Vec<OpenApiRouter<Arc<Admin>>> {
    vec![
        messages::routes(),
        dead_letters::routes(),
        suppressions::routes(),
        feedback::routes(),
        templates::routes(),
        replays::routes(),
        resend::routes(),
        lanes::routes(),
        changes::routes(),
    ]
}

/// Every path of the admin listener, with names in braces where a path has parts of its own.
#[must_use]
pub fn paths() -> Vec<String> {
    let described = description().paths.paths.into_keys();
    described.chain(pages::routes().into_iter().map(|(path, _)| path.to_owned())).collect()
}

/// The API's description (OpenAPI 3.1), as `/api/v1/openapi.json` has it.
#[must_use]
pub fn description() -> utoipa::openapi::OpenApi {
    openapi::complete(described().into_openapi())
}
