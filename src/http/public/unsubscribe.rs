//! Where people take themselves off marketing mail: by the button of their mail program (RFC 8058), or by a link and a page.
//!
//! | request | what |
//! |---|---|
//! | `GET`, `HEAD` | the page; changes nothing: scanners and previews follow links |
//! | `POST` with `List-Unsubscribe=One-Click`, as a form or multipart | done at once, for the mail's category |
//! | `POST` with `scope=category` or `scope=all` | what the page's buttons send |
//!
//! Invariant: a link alone is the right to use it; it asks for no cookie, and answers no redirect (RFC 8058 §3.1).
//! Invariant: 200 means committed. A database that is away is a 503, so that whoever posted comes again.
//! Invariant: the page asks nobody else for anything, tells nobody where it was opened from, and is kept nowhere.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;

use super::{page, read};
use crate::{
    email::{
        UnsubscribeLinks, Unsubscription,
        unsubscribe::{ONE_CLICK, PATH},
    },
    metrics::Metrics,
    store::{
        Store,
        unsubscriptions::{BY_ONE_CLICK, BY_PAGE},
    },
};

/// Largest body: two short fields, with the frame that multipart gives them.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Longest time for a request, from its head to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// When whoever was told to come again should.
const RETRY_AFTER_SECONDS: &str = "120";

/// What unsubscribing needs.
pub struct Desk {
    /// Reads links.
    pub links: Arc<UnsubscribeLinks>,
    /// Where it is written down.
    pub store: Arc<Store>,
    /// Who sends the mails: shown on the page.
    pub sender: String,
    /// Whom to write to who wants mails again.
    pub contact: Option<String>,
    /// For counting.
    pub metrics: Arc<Metrics>,
}

/// What is to be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// The mail's category, by the button of a mail program.
    OneClick,
    /// The mail's category, on the page.
    Category,
    /// All marketing, on the page.
    Everything,
}

pub(super) fn routes(desk: Arc<Desk>) -> Router {
    Router::new().route(&format!("{PATH}/{{token}}"), get(show).post(act)).with_state(desk)
}

async fn show(State(desk): State<Arc<Desk>>, Path(token): Path<String>) -> Response {
    match desk.links.read(&token) {
        Some(told) => page::answer(StatusCode::OK, &page::ask(&desk, told.category.as_deref())),
        None => page::answer(StatusCode::NOT_FOUND, &page::no_link(&desk)),
    }
}

async fn act(State(desk): State<Arc<Desk>>, Path(token): Path<String>, request: Request) -> Response {
    let acted = tokio::time::timeout(REQUEST_TIMEOUT, act_on(&desk, &token, request)).await;
    acted.unwrap_or_else(|_| later(&desk, false))
}

async fn act_on(desk: &Desk, token: &str, request: Request) -> Response {
    let Some(told) = desk.links.read(token) else {
        return page::answer(StatusCode::NOT_FOUND, &page::no_link(desk));
    };
    debug_assert_eq!(request.method(), Method::POST);
    let (head, body) = request.into_parts();
    let body = match read(&head.headers, body, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(refusal) => return super::refused(refusal),
    };
    let Some(choice) = choice(&head.headers, body).await else {
        return page::answer(StatusCode::BAD_REQUEST, &page::no_choice(desk));
    };
    let (category, source) = match choice {
        Choice::OneClick => (told.category.as_deref(), BY_ONE_CLICK),
        Choice::Category => (told.category.as_deref(), BY_PAGE),
        Choice::Everything => (None, BY_PAGE),
    };
    if let Err(error) = desk.store.unsubscribe(&told, category, source).await {
        tracing::warn!(%error, source, "somebody could not unsubscribe now");
        if error.is_away() {
            desk.store.note_away(&error);
        }
        return later(desk, choice == Choice::OneClick);
    }
    desk.metrics.unsubscribed(source);
    tracing::info!(message.id = %told.message_id, source, "unsubscribed");
    done(desk, &told, choice)
}

fn done(desk: &Desk, told: &Unsubscription, choice: Choice) -> Response {
    match choice {
        // Nobody reads it but a mail provider's machine.
        Choice::OneClick => (StatusCode::OK, "unsubscribed\n").into_response(),
        Choice::Category => page::answer(StatusCode::OK, &page::done(desk, told.category.as_deref())),
        Choice::Everything => page::answer(StatusCode::OK, &page::done(desk, None)),
    }
}

/// Not now: whoever asked comes again.
fn later(desk: &Desk, for_a_machine: bool) -> Response {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let mut response = if for_a_machine {
        (status, "not now: try again later\n").into_response()
    } else {
        page::answer(status, &page::later(desk))
    };
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    response
}

/// What a body asks for; nothing: nothing that we know.
async fn choice(headers: &HeaderMap, body: Bytes) -> Option<Choice> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fields = match multer::parse_boundary(content_type) {
        Ok(boundary) => parts(body, boundary).await?,
        // Whatever it is called: RFC 8058 asks for this form, and some forget to say so.
        Err(_) => url::form_urlencoded::parse(&body).into_owned().collect(),
    };
    let is = |name: &str, value: &str| fields.iter().any(|(n, v)| n == name && v.trim() == value);
    if is(ONE_CLICK.0, ONE_CLICK.1) {
        Some(Choice::OneClick)
    } else if is("scope", "all") {
        Some(Choice::Everything)
    } else if is("scope", "category") {
        Some(Choice::Category)
    } else {
        None
    }
}

/// Names and values of a body in `multipart/form-data`.
async fn parts(body: Bytes, boundary: String) -> Option<Vec<(String, String)>> {
    let whole = stream::once(async { Ok::<_, Infallible>(body) });
    let mut multipart = multer::Multipart::new(whole, boundary);
    let mut fields = Vec::new();
    while let Some(field) = multipart.next_field().await.ok()? {
        let name = field.name().unwrap_or_default().to_owned();
        fields.push((name, field.text().await.ok()?));
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_as(content_type: &str, body: &str) -> Option<Choice> {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, content_type.parse().expect("a value"));
        }
        choice(&headers, Bytes::copy_from_slice(body.as_bytes())).await
    }

    #[tokio::test]
    async fn both_forms_of_rfc_8058_are_read_and_nothing_else_is_taken_for_one() {
        let form = "application/x-www-form-urlencoded";
        let multipart = "multipart/form-data; boundary=----x";
        let part = |value: &str| {
            format!(
                "------x\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\n{value}\r\n------x--\r\n"
            )
        };
        for (content_type, body, wanted) in [
            (form, "List-Unsubscribe=One-Click", Some(Choice::OneClick)),
            (
                "application/x-www-form-urlencoded; charset=UTF-8",
                "List-Unsubscribe=One-Click\r\n",
                Some(Choice::OneClick),
            ),
            ("", "List-Unsubscribe=One-Click", Some(Choice::OneClick)),
            (multipart, &part("One-Click"), Some(Choice::OneClick)),
            (multipart, &part("Two-Clicks"), None),
            (multipart, &part("One-Click")[..60], None),
            (form, "scope=category", Some(Choice::Category)),
            (form, "scope=all", Some(Choice::Everything)),
            (form, "scope=some", None),
            (form, "list-unsubscribe=One-Click", None),
            (form, "", None),
        ] {
            assert_eq!(read_as(content_type, body).await, wanted, "{content_type}: {body:?}");
        }
    }
}
