//! The pages: server-rendered HTML over what the API shows, for a browser with or without a script.
//!
//! Invariant: a page loads nothing from elsewhere, frames nothing but mails, and is framed by nobody.
//! Invariant: what a mail or a template makes is shown in a document that may run nothing (`mail_document`).
//! Invariant: every form that changes something is a POST that only one of our pages can have made (`session::Posted`).

/// Who looks.
mod session;

/// Signing in and out.
mod sign_in;

/// The frame, and small parts.
mod layout;

/// Stylesheet, script, icon.
mod assets;

/// How everything fares, and steering lanes.
mod overview;

/// Small plots.
mod plot;

/// Mails, and one mail.
mod messages;

/// Templates: what is sent, and mending it.
mod templates;

/// What failed for good.
mod dead_letters;

/// Sending it on its way again.
mod replays;

/// Who gets no mail.
mod suppressions;

/// What providers did not tell.
mod feedback;

/// What operators did.
mod changes;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};

use self::layout::PageError;
pub use self::sign_in::SignInFailures;
use super::Admin;

/// What a page may load: nothing but from here, and no script or style that is written into it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
    frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// What a mail may: show itself, in a world of its own. Mails carry their styles in them.
const MAIL_POLICY: &str =
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; base-uri 'none'";

pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new()
        .route("/", get(overview::show))
        .route("/lanes/{lane}/pause", post(overview::pause))
        .route("/lanes/{lane}/resume", post(overview::resume))
        .route("/sign-in", get(sign_in::page).post(sign_in::sign_in))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/messages", get(messages::list))
        .route("/messages/{id}", get(messages::show))
        .route("/messages/{id}/mail", get(messages::mail))
        .route("/templates", get(templates::list))
        .route("/templates/new", get(templates::begin))
        .route("/templates/{key}", get(templates::show))
        .route("/templates/{key}/diff", get(templates::difference))
        .route("/templates/{key}/edit", get(templates::editor::open).post(templates::editor::submit))
        .route("/templates/{key}/frame", get(templates::frame::saved).post(templates::frame::unsaved))
        .route("/templates/{key}/activate", post(templates::change::activate))
        .route("/templates/{key}/rollback", post(templates::change::roll_back))
        .route("/templates/{key}/deactivate", post(templates::change::deactivate))
        .route("/templates/{key}/test", post(templates::change::test))
        .route("/messages/{id}/resend", post(messages::resend))
        .route("/dead-letters", get(dead_letters::list))
        .route("/dead-letters/{id}", get(dead_letters::show))
        .route("/dead-letters/{id}/discard", post(dead_letters::discard))
        .route("/replays", get(replays::list).post(replays::create))
        .route("/replays/{id}", get(replays::show))
        .route("/replays/{id}/{action}", post(replays::act))
        .route("/suppressions", get(suppressions::list))
        .route("/suppressions/add", post(suppressions::add))
        .route("/suppressions/{id}", get(suppressions::show))
        .route("/suppressions/{id}/lift", post(suppressions::lift))
        .route("/feedback", get(feedback::report))
        .route("/changes", get(changes::list))
        .route("/assets/{name}", get(assets::asset))
        .layer(middleware::from_fn(guarded))
}

/// Says what browsers may do with a page, unless the page says so itself.
async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let usual: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in usual {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// HTML that is not ours, for an `iframe sandbox`: nothing in it runs, is fetched, or leads anywhere.
fn mail_document(html: String) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, MAIL_POLICY)], Html(html)).into_response()
}
