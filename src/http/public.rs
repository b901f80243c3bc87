//! The public listener: what Amazon SNS posts to, where people unsubscribe, and nothing else. Anybody can reach it, so
//! everything has a limit.
//!
//! Invariant: 2xx means committed, 4xx never again, 5xx again later: SNS repeats after a 5xx and drops after a 4xx.
//! Invariant: nobody holds a connection for longer than a request may take.

/// Where people take themselves off marketing mail.
pub mod unsubscribe;

/// What they see.
mod page;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::unsubscribe::Desk;
use super::{
    PUBLIC,
    guard::{Guard, guarded},
    listener::{self, Door},
};
use crate::{
    config::ListenerConfig,
    feedback::front_door::{Fault, FrontDoor, Received, Refusal, Rejection, SnsHeaders},
    metrics::Metrics,
};

/// Largest message: SNS's own limit is 256 KiB, before JSON escapes it.
const BODY_BYTES_MAX: usize = 512 * 1024;
/// Longest time for a request, from its head to its answer: SNS gives up after 15 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(14);
/// How long a body may take to begin to arrive: longer than a request, whose end is a 503, after which SNS comes again. After the
/// 408 that ends others it would not.
const BODY_GRACE: Duration = Duration::from_secs(20);
/// What the owner of a subscription finds in the delivery log of SNS.
const RAW_DELIVERY: &str =
    "raw message delivery is on for this subscription, so its messages are not signed; turn RawMessageDelivery off\n";

/// Who is heard here.
#[derive(Clone, Default)]
pub struct Public {
    /// Amazon SNS; nothing: nobody's messages are taken.
    pub feedback: Option<Arc<FrontDoor>>,
    /// People who unsubscribe; nothing: no mail has such a link.
    pub unsubscribe: Option<Arc<Desk>>,
}

/// Serves until `stop`; requests under way are finished.
pub async fn serve(
    listener: TcpListener,
    public: Public,
    config: ListenerConfig,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    // Anybody may call it by any name: no answer depends on it.
    let guard = Guard { listener: PUBLIC, hosts: None, needs_certificate: false, metrics: Arc::clone(&metrics) };
    let door = Door { name: PUBLIC, config, body_grace: BODY_GRACE, metrics };
    listener::serve(listener, door, guarded(router(public), guard), stop).await;
}

fn router(public: Public) -> Router {
    let mut router = Router::new();
    if let Some(door) = public.feedback {
        router = router.merge(Router::new().route("/api/v1/email/webhook", post(webhook)).with_state(door));
    }
    if let Some(desk) = public.unsubscribe {
        router = router.merge(unsubscribe::routes(desk));
    }
    router.fallback(async || StatusCode::NOT_FOUND).method_not_allowed_fallback(async || StatusCode::METHOD_NOT_ALLOWED)
}

async fn webhook(State(door): State<Arc<FrontDoor>>, request: Request) -> Response {
    let received = tokio::time::timeout(REQUEST_TIMEOUT, receive(&door, request)).await;
    let received = received.unwrap_or(Err(Fault::Timeout.into()));
    door.record(received);
    answer(received)
}

async fn receive(door: &FrontDoor, request: Request) -> Result<Received, Rejection> {
    let (head, body) = request.into_parts();
    let body = read(&head.headers, body, BODY_BYTES_MAX).await?;
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let headers = SnsHeaders {
        message_type: text("x-amz-sns-message-type"),
        is_raw: text("x-amz-sns-rawdelivery").is_some_and(|told| told.eq_ignore_ascii_case("true")),
    };
    door.receive(headers, &body).await
}

async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(Refusal::TooLarge);
    }
    match Limited::new(body, bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge),
        Err(_) => Err(Refusal::Malformed),
    }
}

fn answer(received: Result<Received, Rejection>) -> Response {
    match received {
        Ok(_) => StatusCode::OK.into_response(),
        Err(Rejection::Failed(_)) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(Rejection::Refused(refusal)) => refused(refusal),
    }
}

fn refused(refusal: Refusal) -> Response {
    match refusal {
        Refusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Refusal::Malformed => StatusCode::BAD_REQUEST.into_response(),
        Refusal::RawDelivery => (StatusCode::FORBIDDEN, RAW_DELIVERY).into_response(),
        Refusal::UnknownTopic
        | Refusal::Stale
        | Refusal::FromTheFuture
        | Refusal::SignatureVersion
        | Refusal::CertificateUrl
        | Refusal::Certificate
        | Refusal::Signature
        | Refusal::SubscribeUrl => StatusCode::FORBIDDEN.into_response(),
    }
}
