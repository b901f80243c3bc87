//! Asks the admin listener of a daemon as a container's or a service manager's probe does: one path, one answer, in time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
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

/// An admin listener on this machine.
#[derive(Debug, Clone, Copy)]
pub struct OwnListener {
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Whether it has a certificate.
    pub speaks_tls: bool,
}

/// Asks for this path, and waits for the answer no longer than `limit`.
///
/// # Errors
/// When nobody answers in time, or what answers does not speak HTTP.
pub async fn probe(listener: OwnListener, path: &str, limit: Duration) -> Result<(StatusCode, Bytes), ProbeError> {
    let fault = |problem: String| ProbeError { addr: listener.addr, problem };
    match tokio::time::timeout(limit, ask(listener, path)).await {
        Ok(answer) => answer.map_err(fault),
        Err(_) => Err(fault(format!("no answer within {} ms", limit.as_millis()))),
    }
}

async fn ask(listener: OwnListener, path: &str) -> Result<(StatusCode, Bytes), String> {
    let stream = TcpStream::connect(listener.addr).await.map_err(|error| error.to_string())?;
    if !listener.speaks_tls {
        return ask_on(stream, listener.addr, path).await;
    }
    let connector = TlsConnector::from(Arc::new(trusting_anybody()?));
    let stream = connector.connect(ServerName::from(listener.addr.ip()), stream).await;
    ask_on(stream.map_err(|error| format!("no TLS: {error}"))?, listener.addr, path).await
}

async fn ask_on<S>(stream: S, addr: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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

/// The certificate is for the name that operators use, and a probe asks by address; it sends no secret, and believes nothing but
/// that somebody lives at its own machine's port. Kubernetes' own probes do the same.
fn trusting_anybody() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anybody = Arc::new(Anybody(provider.signature_verification_algorithms));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(anybody)
        .with_no_client_auth();
    Ok(config)
}

/// Whoever has the key of the certificate that they show.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
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
