//! What both listeners do before a request is one: take connections, agree on TLS, judge heads, keep time, make room.
//!
//! ```text
//! place -> TLS handshake -> head judged -> who asks -> guard -> route
//! ```
//!
//! | limit | what |
//! |---|---|
//! | `<LISTENER>_CONNECTIONS_MAX`, `..._PER_ADDRESS_MAX` | connections; one that makes us wait is closed for a new one, else 503 (TLS: closed) |
//! | handshake | 10 s |
//! | head | 10 s (408), 16 KiB and 64 headers (431), of these 8 KiB the request target (414); 10 s also between two requests |
//! | body | begins within 10 s (public: 20 s), then 4 KiB a second (408); its size is the route's (413) |
//! | answer | is taken within 10 s, then 4 KiB a second |
//! | rest of what was refused | read and thrown away for 5 s, 32 MiB, or until nothing comes for half a second |
//! | request | 5 min in all (503); routes of the public listener have shorter ones |
//!
//! Invariant: nobody holds a connection by being slow, and none of this touches what carries mails.

/// The head of a request.
mod head;

/// One connection.
mod line;

/// How slow it may be.
mod pace;

/// How many there may be.
mod places;

/// Why somebody is not served.
mod refusal;

use std::{future::poll_fn, sync::Arc, time::Duration};

use axum::{Router, extract::Request, http::StatusCode};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::refusal::Refused;
use self::{
    line::{Line, Watch},
    places::{Full, Place, Places},
    refusal::Refusal,
};
use super::client::{Client, is_among, one_of, plain};
use crate::{config::ListenerConfig, metrics::Metrics};

/// Longest handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What the HTTP library may hold of what it reads and writes; heads are limited before it sees them.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Pause after a connection could not be accepted, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Whose listener it is, and what holds there.
pub(super) struct Door {
    /// As a label.
    pub(super) name: &'static str,
    /// Limits, proxies, TLS.
    pub(super) config: ListenerConfig,
    /// How long a body may take to begin to arrive.
    pub(super) body_grace: Duration,
    /// For counting.
    pub(super) metrics: Arc<Metrics>,
}

/// Whether a request's body came too slowly; beside it in its extensions.
#[derive(Clone)]
pub(super) struct Slowness(Arc<Watch>);

impl Slowness {
    pub(super) fn is_slow(&self) -> bool {
        self.0.is_slow()
    }
}

/// Serves until `stop`; requests under way are finished.
pub(super) async fn serve(listener: TcpListener, door: Door, router: Router, stop: CancellationToken) {
    let door = Arc::new(door);
    let places = Places::new(door.config.connections_max, door.config.connections_per_address_max);
    let connections = TaskTracker::new();
    if let Some(tls) = &door.config.tls {
        connections.spawn(Arc::clone(tls).follow(door.name, stop.clone()));
    }
    loop {
        let accepted = tokio::select! { () = stop.cancelled() => break, accepted = listener.accept() => accepted };
        match accepted {
            Ok((stream, peer)) => {
                let address = plain(peer.ip());
                let is_proxy = is_among(&door.config.trusted_proxies, address);
                match places.enter(one_of(address), is_proxy) {
                    Ok(place) => {
                        let client = Client {
                            address,
                            is_https: door.config.tls.is_some(),
                            has_certificate: false,
                            is_local: stream.local_addr().is_ok_and(|here| plain(here.ip()).is_loopback()),
                        };
                        let serving = serve_one(stream, client, place, Arc::clone(&door), router.clone(), stop.clone());
                        connections.spawn(serving);
                    }
                    Err(full) => turn_away(&stream, &door, full),
                }
            }
            Err(error) => {
                tracing::warn!(listener = door.name, %error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// Says that there is no place, as far as that takes no time.
fn turn_away(stream: &TcpStream, door: &Door, full: Full) {
    door.metrics.http_refused(door.name, Refused::Full);
    if door.config.tls.is_none() {
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Refused::Full, full_words(full, door.config.stem));
        // Whoever does not hear it sees the connection closed.
        let _ = stream.try_write(&refusal.bytes());
    }
}

fn full_words(full: Full, stem: &str) -> String {
    match full {
        Full::OfOne(max) => format!(
            "all {max} connections that one address may have here are at work ({stem}_CONNECTIONS_PER_ADDRESS_MAX): try again"
        ),
        Full::InAll(max) => {
            format!("all {max} connections that this listener has are at work ({stem}_CONNECTIONS_MAX): try again")
        }
    }
}

async fn serve_one(
    stream: TcpStream,
    client: Client,
    place: Place,
    door: Arc<Door>,
    router: Router,
    stop: CancellationToken,
) {
    let _counted = door.metrics.http_connection(door.name);
    let watch = Arc::clone(&place.watch);
    // Small answers should not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let serving = Box::pin(async {
        let Some(tls) = &door.config.tls else {
            return serve_line(stream, client, &place.watch, &door, router, &stop).await;
        };
        let shaking = timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream));
        let shaken = tokio::select! { () = stop.cancelled() => return None, shaken = shaking => shaken };
        let Ok(Ok(stream)) = shaken else { return Some(Refused::Handshake) };
        let has_certificate = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
        let client = Client { has_certificate, ..client };
        serve_line(stream, client, &place.watch, &door, router, &stop).await
    });
    let refused = tokio::select! {
        () = watch.crowded_out.cancelled() => Some(Refused::CrowdedOut),
        refused = serving => refused,
    };
    if let Some(reason) = refused {
        door.metrics.http_refused(door.name, reason);
    }
}

async fn serve_line<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    client: Client,
    watch: &Arc<Watch>,
    door: &Arc<Door>,
    router: Router,
    stop: &CancellationToken,
) -> Option<Refused> {
    let line = Line::new(stream, Arc::clone(watch), door.body_grace);
    let routes = TowerToHyperService::new(router);
    let (slowness, proxies) = (Slowness(Arc::clone(watch)), &door.config.trusted_proxies);
    let service = service_fn(|mut request: Request<Incoming>| {
        let client = client.behind(request.headers(), proxies);
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(slowness.clone());
        Box::pin(routes.call(request))
    });
    let mut http = http1::Builder::new();
    // Whoever has said all may close its half; and after a refusal what was asked before is still answered.
    http.half_close(true).header_read_timeout(None::<Duration>).max_buf_size(BUFFER_BYTES_MAX);
    let mut connection = http.serve_connection(TokioIo::new(line), service);
    let mut is_stopping = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(listener = door.name, %error, "a connection ended");
    }
    connection.into_parts().io.into_inner().close(stop).await
}
