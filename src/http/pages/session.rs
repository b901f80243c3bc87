//! Who looks at a page: a session that a token began, and a form that only one of our own pages can have sent.
//!
//! Invariant: the cookie holds a random secret and nothing else; it opens as much as the token that it was made with does now.
//! Invariant: nothing is changed by a form without the session's own word in it, nor by one that another site sent.

use std::sync::Arc;

use axum::{
    Form, RequestPartsExt,
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono_tz::Tz;
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::PageError;
use crate::{
    config::{AdminToken, Role},
    http::{Admin, auth::Operator, client::Client, params, problem::Problem},
};

/// The cookie's name.
const COOKIE: &str = "postrider_session";
/// And where the browser came by https: with this prefix it takes the cookie from this very host and from no other, and only so.
const COOKIE_OF_HTTPS: &str = "__Host-postrider_session";
/// The field of every form that names its session.
pub(super) const CSRF_FIELD: &str = "csrf";

/// A signed-in operator.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// Who.
    pub(super) operator: Operator,
    /// What times are shown in.
    pub(super) zone: Tz,
    id: [u8; 32],
    csrf: String,
}

/// What the browser keeps.
pub(super) struct Secret(String);

impl Secret {
    /// A new one: 244 random bits.
    pub(super) fn new() -> Self {
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        Self(URL_SAFE_NO_PAD.encode([one.into_bytes(), other.into_bytes()].concat()))
    }

    /// The browser's.
    pub(super) fn of(headers: &HeaderMap, is_https: bool) -> Option<Self> {
        let ours = cookie_name(is_https);
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == ours).map(|(_, value)| Self(value.to_owned()))
    }

    fn hash(&self, what: &str) -> [u8; 32] {
        Sha256::new_with_prefix("postrider session/")
            .chain_update(what)
            .chain_update("/")
            .chain_update(&self.0)
            .finalize()
            .into()
    }

    /// What it is kept under.
    pub(super) fn id(&self) -> [u8; 32] {
        self.hash("id")
    }

    /// What it, the token and the token's role make together: another role ends the session, as another token does.
    pub(super) fn proof(&self, token: &AdminToken) -> [u8; 32] {
        Sha256::new_with_prefix(self.hash("proof"))
            .chain_update(token.role.name())
            .chain_update("/")
            .chain_update(token.token.expose_secret())
            .finalize()
            .into()
    }

    /// The header that gives it to the browser. `Secure` where the browser came by https: a plain listener on loopback must work
    /// too.
    pub(super) fn set_cookie(&self, is_https: bool) -> String {
        format!("{}={}; {}", cookie_name(is_https), self.0, flags(is_https))
    }
}

/// The header that takes it away.
pub(super) fn unset_cookie(is_https: bool) -> String {
    format!("{}=; {}; Max-Age=0", cookie_name(is_https), flags(is_https))
}

const fn cookie_name(is_https: bool) -> &'static str {
    if is_https { COOKIE_OF_HTTPS } else { COOKIE }
}

const fn flags(is_https: bool) -> &'static str {
    if is_https { "Path=/; HttpOnly; SameSite=Strict; Secure" } else { "Path=/; HttpOnly; SameSite=Strict" }
}

impl Session {
    /// The word that this session's forms must hold.
    pub(super) fn csrf(&self) -> &str {
        &self.csrf
    }

    /// What it is kept under.
    pub(super) const fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// Whether persons may be seen, and things be changed.
    pub(super) fn is_operator(&self) -> bool {
        self.operator.role >= Role::Operator
    }

    async fn find(headers: &HeaderMap, client: Client, admin: &Admin) -> Result<Option<Self>, Problem> {
        let Some(secret) = Secret::of(headers, client.is_https) else { return Ok(None) };
        let id = secret.id();
        let Some(stored) = admin.store.session(&id).await? else { return Ok(None) };
        let token = admin.http.tokens.iter().find(|token| token.name == stored.operator);
        let token = token.filter(|token| bool::from(secret.proof(token).ct_eq(&stored.proof)));
        Ok(token.map(|token| Self {
            operator: Operator { name: token.name.clone(), role: token.role },
            zone: admin.mail.timezone,
            id,
            csrf: hex::encode(secret.hash("csrf")),
        }))
    }
}

/// Why nobody sees this page.
pub(super) enum NoSession {
    /// First sign in.
    SignIn(String),
    /// It cannot be found out.
    Problem(Problem),
}

impl IntoResponse for NoSession {
    fn into_response(self) -> Response {
        match self {
            Self::SignIn(path) => Redirect::to(&path).into_response(),
            Self::Problem(problem) => PageError::from(problem).into_response(),
        }
    }
}

impl FromRequestParts<Arc<Admin>> for Session {
    type Rejection = NoSession;

    async fn from_request_parts(parts: &mut Parts, admin: &Arc<Admin>) -> Result<Self, NoSession> {
        let client = parts.extensions.get::<Client>().copied().unwrap_or_default();
        match Self::find(&parts.headers, client, admin).await {
            Ok(Some(session)) => Ok(session),
            Ok(None) => Err(NoSession::SignIn(sign_in_path(parts))),
            Err(problem) => Err(NoSession::Problem(problem)),
        }
    }
}

/// Back to the page afterwards, if it was one that can be looked at.
fn sign_in_path(parts: &Parts) -> String {
    match parts.uri.path_and_query() {
        Some(path) if parts.method.is_safe() && path.as_str() != "/" => {
            let next: String = url::form_urlencoded::byte_serialize(path.as_str().as_bytes()).collect();
            format!("/sign-in?next={next}")
        }
        _ => "/sign-in".to_owned(),
    }
}

/// A form of one of our pages, and who sent it.
pub(super) struct Posted<T> {
    /// Who.
    pub(super) session: Session,
    /// What.
    pub(super) form: T,
}

impl<T: DeserializeOwned> FromRequest<Arc<Admin>> for Posted<T> {
    type Rejection = Response;

    async fn from_request(request: Request, admin: &Arc<Admin>) -> Result<Self, Response> {
        let refused = |problem: Problem| PageError::from(problem).into_response();
        same_site(request.headers()).map_err(refused)?;
        let (mut parts, body) = request.into_parts();
        let session = parts.extract_with_state::<Session, _>(admin).await.map_err(IntoResponse::into_response)?;
        let State(admin) = State(Arc::clone(admin));
        let body = Bytes::from_request(Request::from_parts(parts.clone(), body), &admin)
            .await
            .map_err(|error| refused(params::unreadable_body(error.status(), error.body_text())))?;
        let given = url::form_urlencoded::parse(&body).find(|(name, _)| name == CSRF_FIELD).map(|(_, word)| word);
        let is_ours = given.is_some_and(|word| bool::from(word.as_bytes().ct_eq(session.csrf.as_bytes())));
        if !is_ours {
            return Err(refused(Problem::new(
                StatusCode::FORBIDDEN,
                "this form was not made for your session: load the page anew and try again; nothing was changed",
            )));
        }
        let form = Form::<T>::from_request(Request::from_parts(parts, Body::from(body)), &admin)
            .await
            .map_err(|error| refused(Problem::new(error.status(), error.body_text())))?;
        Ok(Self { session, form: form.0 })
    }
}

/// Refuses what a page of another site sends. Browsers say so themselves; old ones at least name the origin.
///
/// # Errors
/// 403.
pub(super) fn same_site(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_ours = match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), _, _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, from)| from == host),
        (None, Some(_), None) => false,
        (None, None, _) => true,
    };
    if is_ours {
        Ok(())
    } else {
        Err(Problem::new(StatusCode::FORBIDDEN, "another site sent this form; nothing was changed"))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_form_of_another_site_is_refused() {
        let with = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            same_site(&headers).is_ok()
        };
        assert!(with(&[("sec-fetch-site", "same-origin")]));
        assert!(with(&[("origin", "https://mail.example.bj"), ("host", "mail.example.bj")]));
        assert!(with(&[("host", "mail.example.bj")]), "no browser");
        for site in ["cross-site", "same-site"] {
            assert!(!with(&[("sec-fetch-site", site), ("origin", "http://a"), ("host", "a")]), "{site}");
        }
        assert!(!with(&[("origin", "http://evil.example"), ("host", "mail.example.bj")]));
        assert!(!with(&[("origin", "null"), ("host", "mail.example.bj")]));
        assert!(!with(&[("origin", "http://a")]));
    }

    #[test]
    fn the_secret_is_found_among_other_cookies_and_makes_different_things_of_itself() {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static("a=b; postrider_session=xyz; c=d"));
        let secret = Secret::of(&headers, false).expect("a cookie");
        assert_eq!(secret.0, "xyz");
        assert!(Secret::of(&headers, true).is_none(), "a cookie that another host, or plain HTTP, may have given");
        assert_ne!(secret.id(), secret.hash("csrf"));
        assert_ne!(Secret::new().id(), Secret::new().id());
    }
}
