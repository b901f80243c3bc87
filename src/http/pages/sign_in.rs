//! Signing in with a token, and out.
//!
//! Invariant: what is tried counts with what is tried at the API ([`crate::http::tries`]), so that nobody finds a token by trying.
//! Invariant: each sign-in begins a session with a secret of its own, and ends the one that the browser had.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Form,
    extract::{Query, State, rejection::FormRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use maud::html;
use serde::Deserialize;

use super::{
    PageError,
    layout::bare,
    session::{Posted, Secret, same_site, unset_cookie},
};
use crate::http::{ADMIN, Admin, client::Client, listener::Refused, params, tries::Tried};

#[derive(Debug, Deserialize)]
pub(super) struct Next {
    next: Option<String>,
}

pub(super) async fn page(Query(Next { next }): Query<Next>) -> Response {
    form(next.as_deref(), None, StatusCode::OK)
}

fn form(next: Option<&str>, wrong: Option<&str>, status: StatusCode) -> Response {
    let body = html! {
        form.card.sign-in method="post" action="/sign-in" {
            h1 { "postrider" }
            p.muted { "Sign in with one of the tokens that the daemon knows (" code { "ADMIN_TOKENS" } ")." }
            @if let Some(wrong) = wrong { p.notice.bad role="alert" { (wrong) } }
            label for="token" { "Token" }
            input #token type="password" name="token" autocomplete="current-password" required autofocus;
            @if let Some(next) = next.filter(|next| is_path(next)) { input type="hidden" name="next" value=(next); }
            button type="submit" { "Sign in" }
        }
    };
    (status, bare("Sign in", &body)).into_response()
}

/// An address of ours: nothing that a browser would take for another host.
fn is_path(next: &str) -> bool {
    next.starts_with('/') && !next.starts_with("//") && !next.contains(['\\', '\r', '\n', '\t'])
}

#[derive(Deserialize)]
pub(super) struct Given {
    token: String,
    next: Option<String>,
}

pub(super) async fn sign_in(
    State(admin): State<Arc<Admin>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    given: Result<Form<Given>, FormRejection>,
) -> Result<Response, PageError> {
    same_site(&headers)?;
    let Form(given) = given.map_err(|error| params::unreadable_body(error.status(), error.body_text()))?;
    let next = given.next.as_deref();
    let token = match admin.tries.attempt(&admin.http.tokens, given.token.trim(), client.address, Instant::now()) {
        Tried::Right(token) => token,
        Tried::Wrong => {
            admin.metrics.http_refused(ADMIN, Refused::WrongToken);
            tracing::warn!(peer = %client.address, "somebody could not sign in");
            return Ok(form(next, Some("That is none of the tokens."), StatusCode::UNAUTHORIZED));
        }
        Tried::Wait(wait) => {
            admin.metrics.http_refused(ADMIN, Refused::TooManyTries);
            let seconds = wait.as_secs() + 1;
            let words = format!("Too many tries. Wait {seconds} s.");
            let mut response = form(next, Some(&words), StatusCode::TOO_MANY_REQUESTS);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            return Ok(response);
        }
    };
    // A session that the browser had, or was given by somebody, is not gone on with.
    if let Some(before) = Secret::of(&headers, client.is_https) {
        admin.store.end_session(&before.id()).await?;
    }
    let secret = Secret::new();
    admin.store.begin_session(&secret.id(), &token.name, &secret.proof(token)).await?;
    tracing::info!(operator = token.name, "signed in");
    let to = next.filter(|next| is_path(next)).unwrap_or("/");
    Ok(([(header::SET_COOKIE, secret.set_cookie(client.is_https))], Redirect::to(to)).into_response())
}

#[derive(Deserialize)]
pub(super) struct Nothing {}

pub(super) async fn sign_out(
    State(admin): State<Arc<Admin>>,
    Extension(client): Extension<Client>,
    posted: Posted<Nothing>,
) -> Result<Response, PageError> {
    admin.store.end_session(posted.session.id()).await?;
    tracing::info!(operator = posted.session.operator.name, "signed out");
    Ok(([(header::SET_COOKIE, unset_cookie(client.is_https))], Redirect::to("/sign-in")).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_led_to_another_host() {
        assert!(is_path("/messages?to=a%40example.bj") && is_path("/"));
        for next in ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\r\nSet-Cookie: a=b"] {
            assert!(!is_path(next), "{next}");
        }
    }
}
