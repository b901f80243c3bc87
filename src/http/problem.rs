//! Errors as problem details (RFC 9457): `application/problem+json` with title, status and detail.

use axum::{
    Json,
    body::to_bytes,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::{IntoResponses, ToSchema};

use super::BODY_BYTES_MAX;
use crate::store::StoreError;

/// Words of a library's own refusal that are passed on.
const WORDS_BYTES_MAX: usize = 4096;

/// An error answer as it is read (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemDetails {
    /// `about:blank`: the status says what kind it is.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: &'static str,
    /// The status in words.
    #[schema(example = "Bad Request")]
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong, and what would be right.
    detail: String,
}

impl ProblemDetails {
    /// With this status and these words.
    pub(super) fn of(status: StatusCode, detail: String) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { kind: "about:blank", title, status: status.as_u16(), detail }
    }
}

/// What a route that asks for a role may answer instead.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
pub enum Refusals {
    /// A parameter is wrong; `detail` names it.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemDetails),
    /// There is no token, or it is none of ADMIN_TOKENS.
    #[response(status = 401, content_type = "application/problem+json", headers(("WWW-Authenticate" = String, description = "`Bearer`")))]
    Unauthorized(ProblemDetails),
    /// Too many wrong tokens came from this address, or from all; `Retry-After` says when to try again.
    #[response(status = 429, content_type = "application/problem+json", headers(("Retry-After" = u64, description = "In how many seconds")))]
    TooMany(ProblemDetails),
    /// The token's role may not do this.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemDetails),
    /// The database cannot answer now.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(ProblemDetails),
}

/// What a route that every token may use may answer instead.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
pub enum ReadRefusals {
    /// A parameter is wrong; `detail` names it.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemDetails),
    /// There is no token, or it is none of ADMIN_TOKENS.
    #[response(status = 401, content_type = "application/problem+json", headers(("WWW-Authenticate" = String, description = "`Bearer`")))]
    Unauthorized(ProblemDetails),
    /// Too many wrong tokens came from this address, or from all; `Retry-After` says when to try again.
    #[response(status = 429, content_type = "application/problem+json", headers(("Retry-After" = u64, description = "In how many seconds")))]
    TooMany(ProblemDetails),
    /// The database cannot answer now.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(ProblemDetails),
}

/// What a route that asks for nothing but a token may answer instead.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
pub enum Unauthorized {
    /// There is no token, or it is none of ADMIN_TOKENS.
    #[response(status = 401, content_type = "application/problem+json", headers(("WWW-Authenticate" = String, description = "`Bearer`")))]
    Unauthorized(ProblemDetails),
    /// Too many wrong tokens came from this address, or from all; `Retry-After` says when to try again.
    #[response(status = 429, content_type = "application/problem+json", headers(("Retry-After" = u64, description = "In how many seconds")))]
    TooMany(ProblemDetails),
}

/// What a route for one thing may answer besides.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
pub enum Missing {
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemDetails),
}

/// What a route that takes JSON may answer besides.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
pub enum BodyRefusals {
    /// The body is larger than is taken.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemDetails),
    /// The body is not sent as `application/json`.
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(ProblemDetails),
    /// The body is JSON, but not of this shape; `detail` names the member.
    #[response(status = 422, content_type = "application/problem+json")]
    Unprocessable(ProblemDetails),
}

/// An error answer.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    /// Boxed: it is rare, and every fallible function would carry its room.
    more: Option<Box<(&'static str, Value)>>,
    retry_after: Option<u64>,
}

impl Problem {
    /// An answer with this status and these words.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), more: None, retry_after: None }
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Says in how many seconds to come again.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Adds a member of this name, for programs (RFC 9457 §3.2).
    #[must_use]
    pub fn with(self, name: &'static str, value: Value) -> Self {
        Self { more: Some(Box::new((name, value))), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!(ProblemDetails::of(self.status, self.detail));
        if let Some(more) = self.more {
            let (name, value) = *more;
            body[name] = value;
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "an admin request could not be answered");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the database cannot answer now; try again")
    }
}

/// Makes a problem of what is refused in plain words, as axum does when a request does not even reach its route.
pub(super) async fn from_plain_words(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_plain = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !is_plain || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (head, body) = response.into_parts();
    let words = to_bytes(body, WORDS_BYTES_MAX).await.unwrap_or_default();
    let words = match status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            format!("the body is larger than {BODY_BYTES_MAX} bytes, the most that is taken here")
        }
        _ => String::from_utf8_lossy(&words).into_owned(),
    };
    let mut problem = Problem::new(status, words).into_response();
    if let Some(allowed) = head.headers.get(header::ALLOW) {
        problem.headers_mut().insert(header::ALLOW, allowed.clone());
    }
    problem
}

/// No such route.
pub(super) async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this address")
}

/// The route exists, the method does not.
pub(super) async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not answer that method")
}
