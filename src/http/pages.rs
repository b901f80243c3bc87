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
    http::{HeaderValue, header},
    middleware::map_response,
    response::{Html, IntoResponse, Response},
    routing::{MethodRouter, get, post},
};

use self::layout::PageError;
use super::Admin;

/// What a page may load: nothing but from here, and no script or style that is written into it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
    frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// What a mail may: show itself, in a world of its own. Mails carry their styles in them.
const MAIL_POLICY: &str =
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; base-uri 'none'";

/// Every page and every form, by its path.
pub(super) fn routes() -> Vec<(&'static str, MethodRouter<Arc<Admin>>)> {
    vec![
        ("/", get(overview::show)),
        ("/lanes/{lane}/pause", post(overview::pause)),
        ("/lanes/{lane}/resume", post(overview::resume)),
        ("/sign-in", get(sign_in::page).post(sign_in::sign_in)),
        ("/sign-out", post(sign_in::sign_out)),
        ("/messages", get(messages::list)),
        ("/messages/{id}", get(messages::show)),
        ("/messages/{id}/mail", get(messages::mail)),
        ("/templates", get(templates::list)),
        ("/templates/new", get(templates::begin)),
        ("/templates/{key}", get(templates::show)),
        ("/templates/{key}/diff", get(templates::difference)),
        ("/templates/{key}/edit", get(templates::editor::open).post(templates::editor::submit)),
        ("/templates/{key}/frame", get(templates::frame::saved).post(templates::frame::unsaved)),
        ("/templates/{key}/activate", post(templates::change::activate)),
        ("/templates/{key}/rollback", post(templates::change::roll_back)),
        ("/templates/{key}/deactivate", post(templates::change::deactivate)),
        ("/templates/{key}/test", post(templates::change::test)),
        ("/messages/{id}/resend", post(messages::resend)),
        ("/dead-letters", get(dead_letters::list)),
        ("/dead-letters/{id}", get(dead_letters::show)),
        ("/dead-letters/{id}/discard", post(dead_letters::discard)),
        ("/replays", get(replays::list).post(replays::create)),
        ("/replays/{id}", get(replays::show)),
        ("/replays/{id}/{action}", post(replays::act)),
        ("/suppressions", get(suppressions::list)),
        ("/suppressions/add", post(suppressions::add)),
        ("/suppressions/{id}", get(suppressions::show)),
        ("/suppressions/{id}/lift", post(suppressions::lift)),
        ("/feedback", get(feedback::report)),
        ("/changes", get(changes::list)),
        ("/assets/{name}", get(assets::asset)),
    ]
}

pub(super) fn router() -> Router<Arc<Admin>> {
    let all = routes().into_iter().fold(Router::new(), |all, (path, methods)| all.route(path, methods));
    all.layer(map_response(as_page))
}

/// What browsers may do with a page, unless it says so itself; the rest is said of every answer.
async fn as_page(mut response: Response) -> Response {
    let policy = response.headers_mut().entry(header::CONTENT_SECURITY_POLICY);
    policy.or_insert(HeaderValue::from_static(POLICY));
    response
}

/// HTML that is not ours, for an `iframe sandbox`: nothing in it runs, is fetched, or leads anywhere.
fn mail_document(html: String) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, MAIL_POLICY)], Html(html)).into_response()
}
