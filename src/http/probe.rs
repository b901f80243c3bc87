//! Asks the admin listener of a daemon as a container's or a service manager's probe does: one path, one answer, in time.

use std::{net::SocketAddr, time::Duration};

use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Largest answer; readiness with every reason has a few kilobytes.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// There was no answer.
#[derive(Debug, thiserror::Error)]
#[error("{addr} (ADMIN_ADDR): {problem}")]
pub struct ProbeError {
    addr: SocketAddr,
    problem: String,
}

/// Where a listener on this address is reached from its own machine: one on every interface by loopback.
#[must_use]
pub fn reached_at(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    addr
}

/// Asks for this path, and waits for the answer no longer than `limit`.
///
/// # Errors
/// When nobody answers in time, or what answers does not speak HTTP.
pub async fn probe(addr: SocketAddr, path: &str, limit: Duration) -> Result<(StatusCode, Bytes), ProbeError> {
    let fault = |problem: String| ProbeError { addr, problem };
    match tokio::time::timeout(limit, ask(addr, path)).await {
        Ok(answer) => answer.map_err(fault),
        Err(_) => Err(fault(format!("no answer within {} ms", limit.as_millis()))),
    }
}

async fn ask(addr: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), String> {
    let stream = TcpStream::connect(addr).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends with this call, answered or not.
    let _driving = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(path)
        .header(header::HOST, addr.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_interface_is_asked_over_loopback() {
        let reached = |addr: &str| reached_at(addr.parse().expect("an address")).to_string();
        assert_eq!(reached("0.0.0.0:8025"), "127.0.0.1:8025");
        assert_eq!(reached("[::]:8025"), "[::1]:8025");
        assert_eq!(reached("192.0.2.7:8025"), "192.0.2.7:8025");
    }
}
