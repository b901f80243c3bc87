//! Around every route of a listener: by which name it was asked, for how long it may work, and what browsers may do with the answer.
//!
//! Invariant: no answer leaves a listener without these headers; a route says otherwise only by setting one itself.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use super::{
    client::Client,
    listener::{Refused, Slowness},
    problem::Problem,
};
use crate::metrics::Metrics;

/// Longest time for a request, from its head to the head of its answer. Routes that speak to the database have shorter ones.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// What is no page shows nothing, runs nothing, and is framed by nobody.
pub(super) const NO_PAGE: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// What a page's policy says that may be framed by our own pages.
const FRAMED_BY_US: &str = "frame-ancestors 'self'";
/// For a year, browsers do not try without TLS.
const HSTS: &str = "max-age=31536000";

/// What a listener asks of every request.
pub(super) struct Guard {
    /// As a label.
    pub(super) listener: &'static str,
    /// Names that it goes by; nothing: any.
    pub(super) hosts: Option<Vec<String>>,
    /// Whether clients need a certificate.
    pub(super) needs_certificate: bool,
    /// For counting.
    pub(super) metrics: Arc<Metrics>,
}

/// Puts a guard before all that a router answers, also before what it has no route for.
pub(super) fn guarded(router: Router, guard: Guard) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::new(guard), pass))
}

async fn pass(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let client = request.extensions().get::<Client>().copied().unwrap_or_default();
    let slowness = request.extensions().get::<Slowness>().cloned();
    let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let refuse = |reason: Refused, problem: Problem| {
        guard.metrics.http_refused(guard.listener, reason);
        problem.into_response()
    };
    let mut response = match guard.admit(&request, client) {
        Err((reason, problem)) => refuse(reason, problem),
        Ok(()) => tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
            let words = format!("this took longer than {} s, the most that a request may", REQUEST_TIMEOUT.as_secs());
            refuse(Refused::RequestTimeout, Problem::new(StatusCode::SERVICE_UNAVAILABLE, words))
        }),
    };
    let was_slow = slowness.is_some_and(|slowness| slowness.is_slow());
    // What is told to come again later is: a provider takes a 408 for the end.
    if was_slow && !response.status().is_server_error() {
        let words = "the body came more slowly than 4096 bytes a second; nothing was done";
        response = Problem::new(StatusCode::REQUEST_TIMEOUT, words).into_response();
    }
    // RFC 9112 §6.1: whoever reads such a request otherwise than we do finds no second one behind it.
    if is_chunked || was_slow {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    protect(&mut response, client.is_https);
    response
}

/// What browsers may do with an answer.
fn protect(response: &mut Response, is_https: bool) {
    let headers = response.headers_mut();
    let usual: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_SECURITY_POLICY, NO_PAGE),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in usual {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    // For browsers that do not read the policy's own word.
    let policy = headers.get(header::CONTENT_SECURITY_POLICY).and_then(|policy| policy.to_str().ok());
    let framed = if policy.is_some_and(|policy| policy.contains(FRAMED_BY_US)) { "SAMEORIGIN" } else { "DENY" };
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static(framed));
    if is_https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(HSTS));
    }
}

impl Guard {
    fn admit(&self, request: &Request, client: Client) -> Result<(), (Refused, Problem)> {
        // Asked by probes and scrapers, by whatever name the network gives the daemon.
        let is_watched = matches!(request.uri().path(), "/livez" | "/readyz" | "/metrics");
        // On loopback whoever asks is a program on this machine, such as a browser that a site has rebound its own name for.
        if let (Some(hosts), false) = (&self.hosts, is_watched && !client.is_local) {
            let host = request.uri().authority().map(Authority::as_str);
            let host = host.or_else(|| request.headers().get(header::HOST).and_then(|host| host.to_str().ok()));
            if !host.is_none_or(|host| is_ours(hosts, host)) {
                let words = "this daemon does not go by the name in Host; add it to ADMIN_HOSTS if it should";
                return Err((Refused::Host, Problem::new(StatusCode::MISDIRECTED_REQUEST, words)));
            }
        }
        if self.needs_certificate && !client.has_certificate && !is_watched {
            let words = "this needs a client certificate by an authority of ADMIN_TLS_CLIENT_CA_FILE";
            return Err((Refused::ClientCertificate, Problem::new(StatusCode::FORBIDDEN, words)));
        }
        Ok(())
    }
}

/// Whether a host, with a port or without, is one of these names, this machine, or an address. No site can make an address its own
/// name, which is what rebinding takes; and behind a mapped port the daemon does not know its address.
fn is_ours(hosts: &[String], host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if bare.unwrap_or(name).parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || hosts.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_somebody_else_gave_us_is_none_of_ours() {
        let hosts = ["mail-admin.rgz.bj".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:8025",
            "[::1]:8025",
            "[::1]",
            "10.1.2.3",
            "localhost:8025",
            "LocalHost",
            "localhost.",
            "a.localhost",
            "mail-admin.rgz.bj",
            "MAIL-ADMIN.rgz.bj.:443",
        ] {
            assert!(is_ours(&hosts, host), "{host}");
        }
        for host in [
            "",
            ":8025",
            "evil.example",
            "evil.example:8025",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "xlocalhost",
            "evil.mail-admin.rgz.bj",
            "127.0.0.1:8025:1",
            "0x7f000001",
            "2130706433",
            "127.1",
        ] {
            assert!(!is_ours(&hosts, host), "{host}");
        }
    }
}
