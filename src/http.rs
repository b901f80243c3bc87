//! The sidecar: the admin listener with its API, health and metrics, and the public listener.
//!
//! Invariant: there is no route that sends a mail around the broker; a template test that sends is a request like any other.
//! Invariant: every route of the admin listener but health and metrics needs a token.

/// Who may do what.
pub mod auth;

/// Errors as problem details (RFC 9457).
pub mod problem;

/// `/livez`, `/readyz`, `/metrics`.
mod health;

/// `/api/v1/email/templates`.
mod templates;

/// What parameters are, and which are none.
mod params;

/// `/api/v1/email/messages`.
mod messages;

/// `/api/v1/email/dead-letters`.
pub(crate) mod dead_letters;

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

/// What browsers show.
mod pages;

/// The public listener.
pub mod public;

pub use feedback::report_json;
pub use lanes::{
    FAST_WARNING,
    view::{LaneView, LanesView, lanes_view},
};
pub use messages::{message_detail_json, message_page_json};
pub use pages::SignInFailures;
pub use suppressions::{suppression_change_json, suppression_json};

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

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
    /// Tokens.
    pub http: HttpConfig,
    /// What templates show.
    pub mail: MailConfig,
    /// Limits.
    pub rules: PipelineConfig,
    /// Why consuming has not begun yet; nothing once it has.
    pub starting: watch::Sender<Option<String>>,
    /// Tries to sign in.
    pub failures: SignInFailures,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, stop: CancellationToken) {
    let service = router(admin).into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the admin listener ended");
    }
}

fn router(admin: Arc<Admin>) -> Router {
    let api = OpenApiRouter::new()
        .merge(feedback::routes())
        .merge(changes::routes())
        .merge(lanes::routes())
        .route("/templates", get(templates::list))
        .route("/templates/{key}", get(templates::show))
        .route("/templates/{key}/test", post(templates::test))
        .route("/messages", get(messages::list))
        .route("/messages/{id}", get(messages::show))
        .route("/messages/{id}/body", get(messages::body))
        .route("/dead-letters", get(dead_letters::list))
        .route("/dead-letters/{id}", get(dead_letters::show))
        .route("/dead-letters/{id}/discard", post(dead_letters::discard))
        .route("/suppressions", get(suppressions::list).post(suppressions::add))
        .route("/suppressions/export", get(suppressions::file::export))
        .route(
            "/suppressions/import",
            post(suppressions::file::import).layer(DefaultBodyLimit::max(suppressions::file::IMPORT_BYTES_MAX)),
        )
        .route("/suppressions/{id}", get(suppressions::show).delete(suppressions::lift));
    let (router, description) = OpenApiRouter::with_openapi(openapi::Description::openapi())
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .nest("/api/v1", openapi::routes())
        .nest("/api/v1/email", api)
        .split_for_parts();
    router
        .merge(pages::router())
        .layer(Extension(Arc::new(description)))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(admin)
}
