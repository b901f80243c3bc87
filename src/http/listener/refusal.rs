//! Why a listener does not serve somebody: an answer, and a label to count it under.

use axum::http::StatusCode;
use chrono::Utc;

use crate::http::{guard::NO_PAGE, problem::ProblemDetails};

/// Why, as `email_http_refused_total` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is no request, or one that can be read in two ways.
    Malformed,
    /// Too many headers, or too large ones.
    HeadTooLarge,
    /// The request target is too long.
    TargetTooLong,
    /// The head did not come in time.
    HeadTimeout,
    /// The body came too slowly.
    BodyTimeout,
    /// The answer was taken too slowly.
    AnswerTimeout,
    /// The request took too long.
    RequestTimeout,
    /// TLS could not be agreed upon, or not in time.
    Handshake,
    /// A connection on which nothing went on made room for another one.
    CrowdedOut,
    /// All connections that there may be were at work.
    Full,
    /// The request names a host that is none of ours.
    Host,
    /// There is no client certificate.
    ClientCertificate,
    /// The token is none of ours.
    WrongToken,
    /// Too many wrong tokens came before.
    TooManyTries,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Malformed,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::HeadTimeout,
        Self::BodyTimeout,
        Self::AnswerTimeout,
        Self::RequestTimeout,
        Self::Handshake,
        Self::CrowdedOut,
        Self::Full,
        Self::Host,
        Self::ClientCertificate,
        Self::WrongToken,
        Self::TooManyTries,
    ];

    /// Whether it happens at the admin listener alone: at the public one there are no tokens, and all names are good.
    #[must_use]
    pub const fn is_of_operators(self) -> bool {
        matches!(self, Self::Host | Self::ClientCertificate | Self::WrongToken | Self::TooManyTries)
    }

    /// As a label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTimeout => "head_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::AnswerTimeout => "answer_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::Handshake => "handshake",
            Self::CrowdedOut => "crowded_out",
            Self::Full => "full",
            Self::Host => "host",
            Self::ClientCertificate => "client_certificate",
            Self::WrongToken => "wrong_token",
            Self::TooManyTries => "too_many_tries",
        }
    }
}

/// An answer to what did not become a request. The connection ends with it.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    status: StatusCode,
    reason: Refused,
    detail: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: Refused, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into() }
    }

    #[cfg(test)]
    pub(super) const fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) const fn reason(&self) -> Refused {
        self.reason
    }

    /// As it is written to the connection.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let body = ProblemDetails::of(self.status, self.detail.clone());
        let body = serde_json::to_string(&body).unwrap_or_default();
        let retry = if self.status == StatusCode::SERVICE_UNAVAILABLE { "Retry-After: 1\r\n" } else { "" };
        format!(
            "HTTP/1.1 {} {}\r\nDate: {}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
             X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nContent-Security-Policy: {NO_PAGE}\r\n\
             X-Frame-Options: DENY\r\nReferrer-Policy: same-origin\r\n{retry}Connection: close\r\n\r\n{body}",
            self.status.as_u16(),
            self.status.canonical_reason().unwrap_or_default(),
            Utc::now().format("%a, %d %b %Y %H:%M:%S GMT"),
            body.len(),
        )
        .into_bytes()
    }
}
