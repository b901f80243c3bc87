//! Signing in with a token, and out.
//!
//! Invariant: what is tried is limited for each address and in all, so that nobody finds a token by trying.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Form,
    extract::{ConnectInfo, Query, State, rejection::FormRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use maud::html;
use serde::Deserialize;

use super::{
    PageError,
    layout::bare,
    session::{Posted, Secret, is_https, same_site, unset_cookie},
};
use crate::http::{Admin, auth::identify, params, problem::Problem};

/// Tries that failed, of one address, before it must wait.
const FAILURES_MAX: u32 = 10;
/// And of all addresses together: a proxy before us makes one of them all.
const FAILURES_OF_ALL_MAX: u32 = 100;
/// How long failures count.
const FAILURES_COUNT_FOR: Duration = Duration::from_secs(60);
/// Addresses that are remembered at most.
const ADDRESSES_MAX: usize = 10_000;

/// What was tried in vain.
#[derive(Default)]
pub struct SignInFailures(Mutex<Counts>);

struct Counts {
    since: Instant,
    of_all: u32,
    of: HashMap<IpAddr, u32>,
}

impl Default for Counts {
    fn default() -> Self {
        Self { since: Instant::now(), of_all: 0, of: HashMap::new() }
    }
}

impl SignInFailures {
    fn with<T>(&self, now: Instant, work: impl FnOnce(&mut Counts) -> T) -> T {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(counts.since) >= FAILURES_COUNT_FOR {
            *counts = Counts { since: now, ..Counts::default() };
        }
        work(&mut counts)
    }

    /// How long this address must wait before it may try.
    fn must_wait(&self, from: IpAddr, now: Instant) -> Option<Duration> {
        self.with(now, |counts| {
            let is_over = counts.of_all >= FAILURES_OF_ALL_MAX
                || counts.of.len() >= ADDRESSES_MAX
                || counts.of.get(&from).is_some_and(|count| *count >= FAILURES_MAX);
            is_over.then(|| FAILURES_COUNT_FOR.saturating_sub(now.duration_since(counts.since)))
        })
    }

    fn note(&self, from: IpAddr, now: Instant) {
        self.with(now, |counts| {
            counts.of_all += 1;
            *counts.of.entry(from).or_default() += 1;
        });
    }
}

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
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    given: Result<Form<Given>, FormRejection>,
) -> Result<Response, PageError> {
    same_site(&headers)?;
    let Form(given) = given.map_err(|error| params::unreadable_body(error.status(), error.body_text()))?;
    let next = given.next.as_deref();
    if let Some(wait) = admin.failures.must_wait(peer.ip(), Instant::now()) {
        let seconds = wait.as_secs() + 1;
        let words = format!("Too many tries. Wait {seconds} s.");
        let mut response = form(next, Some(&words), StatusCode::TOO_MANY_REQUESTS);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        return Ok(response);
    }
    let Some(token) = identify(&admin.http.tokens, given.token.trim()) else {
        admin.failures.note(peer.ip(), Instant::now());
        tracing::warn!(peer = %peer.ip(), "somebody could not sign in");
        return Ok(form(next, Some("That is none of the tokens."), StatusCode::UNAUTHORIZED));
    };
    let secret = Secret::new();
    admin.store.begin_session(&secret.id(), &token.name, &secret.proof(token)).await?;
    tracing::info!(operator = token.name, "signed in");
    let to = next.filter(|next| is_path(next)).unwrap_or("/");
    Ok(([(header::SET_COOKIE, secret.set_cookie(is_https(&headers)))], Redirect::to(to)).into_response())
}

#[derive(Deserialize)]
pub(super) struct Nothing {}

pub(super) async fn sign_out(State(admin): State<Arc<Admin>>, posted: Posted<Nothing>) -> Result<Response, PageError> {
    admin.store.end_session(posted.session.id()).await?;
    tracing::info!(operator = posted.session.operator.name, "signed out");
    Ok(([(header::SET_COOKIE, unset_cookie())], Redirect::to("/sign-in")).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_fails_often_must_wait_and_others_need_not() {
        let failures = SignInFailures::default();
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let now = Instant::now();
        for _ in 0..FAILURES_MAX {
            assert_eq!(failures.must_wait(one, now), None);
            failures.note(one, now);
        }
        assert!(failures.must_wait(one, now).is_some_and(|wait| wait <= FAILURES_COUNT_FOR));
        assert_eq!(failures.must_wait(other, now), None);
        assert_eq!(failures.must_wait(one, now + FAILURES_COUNT_FOR), None, "after a while it may try again");
        for n in 0..FAILURES_OF_ALL_MAX {
            failures.note(IpAddr::from(n.to_be_bytes()), now + FAILURES_COUNT_FOR);
        }
        assert!(failures.must_wait(other, now + FAILURES_COUNT_FOR).is_some(), "too many in all");
    }

    #[test]
    fn nobody_is_led_to_another_host() {
        assert!(is_path("/messages?to=a%40example.bj") && is_path("/"));
        for next in ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\r\nSet-Cookie: a=b"] {
            assert!(!is_path(next), "{next}");
        }
    }
}
