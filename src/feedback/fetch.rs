//! GET from a place that was checked: certificates and confirmations, nothing else.
//!
//! Invariant: a redirect is an answer like any other, never a way to go on; proxies of the environment are not known here.
//! Invariant: TLS is verified against the place's own host, whatever address it was found at.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::topic::Place;

/// Longest time for one answer, from the name to its last byte: two of them fit into the time that SNS waits for us.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer; a certificate has some two thousand bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Who asks.
const USER_AGENT: &str = concat!("postrider/", env!("CARGO_PKG_VERSION"));

/// Finds the addresses of a host. In a daemon that is the system's resolver.
pub trait Resolve: Send + Sync {
    /// Where this host can be connected to.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

/// Why there is no answer to use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// It may be different later: network, TLS, time, or a fault of the server.
    #[error("{0}")]
    Unavailable(String),
    /// The server answered, and not with what was asked for.
    #[error("{0}")]
    Refused(String),
}

/// An answer with status 200.
#[derive(Debug)]
pub struct Fetched {
    /// At most 64 KiB.
    pub body: Bytes,
    /// What the server showed of its own certificate chain; empty over plain HTTP.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Asks places.
pub struct Fetcher {
    resolver: Arc<dyn Resolve>,
    tls: TlsConnector,
}

impl Fetcher {
    /// One that trusts these authorities.
    ///
    /// # Errors
    /// When the TLS library refuses its own defaults.
    pub fn new(roots: Arc<RootCertStore>, resolver: Arc<dyn Resolve>) -> Result<Self, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { resolver, tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Over HTTPS, on its own port.
    ///
    /// # Errors
    /// When there is no answer with status 200 in time.
    pub async fn https(&self, place: &Place) -> Result<Fetched, FetchError> {
        limited(place, async {
            let stream = self.connect(place, 443).await?;
            let name = ServerName::try_from(place.host.clone())
                .map_err(|error| FetchError::Refused(format!("{place}: {error}")))?;
            let stream = self.tls.connect(name, stream).await.map_err(|error| unavailable(place, &error))?;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
            Ok(Fetched { body: get(stream, place).await?, chain })
        })
        .await
    }

    /// Over plain HTTP, for what proves itself: certificates of authorities are published so.
    ///
    /// # Errors
    /// When there is no answer with status 200 in time.
    pub async fn plain(&self, place: &Place) -> Result<Fetched, FetchError> {
        limited(place, async {
            let stream = self.connect(place, 80).await?;
            Ok(Fetched { body: get(stream, place).await?, chain: Vec::new() })
        })
        .await
    }

    async fn connect(&self, place: &Place, port: u16) -> Result<TcpStream, FetchError> {
        let found = self.resolver.resolve(&place.host, port).await.map_err(|error| unavailable(place, &error))?;
        TcpStream::connect(found.as_slice()).await.map_err(|error| unavailable(place, &error))
    }
}

async fn limited(
    place: &Place,
    fetch: impl Future<Output = Result<Fetched, FetchError>>,
) -> Result<Fetched, FetchError> {
    let late = |_| FetchError::Unavailable(format!("{place}: no answer within {} s", FETCH_TIMEOUT.as_secs()));
    tokio::time::timeout(FETCH_TIMEOUT, fetch).await.map_err(late)?
}

async fn get<S>(stream: S, place: &Place) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) =
        http.handshake(TokioIo::new(stream)).await.map_err(|error| unavailable(place, &error))?;
    // Ends with this call, answered or not.
    let _driving = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(&place.target)
        .header(header::HOST, &place.host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| FetchError::Refused(format!("{place}: {error}")))?;
    let answer = sender.send_request(request).await.map_err(|error| unavailable(place, &error))?;
    match answer.status() {
        StatusCode::OK => {}
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(FetchError::Unavailable(format!("{place}: answered {status}")));
        }
        status if status.is_redirection() => {
            return Err(FetchError::Refused(format!("{place}: answered {status}, and redirects are not followed")));
        }
        status => return Err(FetchError::Refused(format!("{place}: answered {status}"))),
    }
    match Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(FetchError::Refused(format!("{place}: answered with more than {BODY_BYTES_MAX} bytes")))
        }
        Err(error) => Err(unavailable(place, error.as_ref())),
    }
}

fn unavailable(place: &Place, error: &dyn std::error::Error) -> FetchError {
    let mut words = format!("{place}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    FetchError::Unavailable(words)
}
