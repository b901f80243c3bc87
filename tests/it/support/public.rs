use std::{net::SocketAddr, sync::Arc, time::Duration};

use postrider::{
    config::{AttachmentConfig, EventsMode, StoreConfig},
    email::UnsubscribeLinks,
    http,
    metrics::Metrics,
    store::Store,
};
use reqwest::{Method, Response, StatusCode, redirect::Policy};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    daemon::{Daemon, client},
    database::HASH_KEY,
    installation::PUBLIC_URL,
    mail::Mail,
    webhook::public_limits,
};

/// What a mail provider posts.
pub const ONE_CLICK: &str = "List-Unsubscribe=One-Click";

/// The link of a mail's header.
pub fn link_in(mail: &Mail) -> String {
    let header = mail.header("List-Unsubscribe").expect("a header");
    let header: String = header.split_whitespace().collect();
    header.trim_matches(['<', '>']).to_owned()
}

/// A public listener, as whoever follows a link reaches it. RFC 8058 §3.1: whoever posts follows no redirect.
pub struct Public {
    address: SocketAddr,
    http: reqwest::Client,
    _stop: Option<DropGuard>,
}

impl Public {
    /// This daemon's.
    pub fn of(daemon: &Daemon) -> Self {
        Self { address: daemon.public(), http: client(Policy::none()), _stop: None }
    }

    /// One whose database is away.
    pub async fn without_database() -> Self {
        let config = StoreConfig {
            // Nobody listens at this port.
            url: SecretString::from("postgres://postrider:x@127.0.0.1:1/postrider"),
            connections_max: 2,
            fast_connections_max: 1,
            hash_key: SecretString::from(HASH_KEY),
            events: EventsMode::Final,
            attachments: AttachmentConfig::default(),
        };
        let desk = http::public::unsubscribe::Desk {
            links: Arc::new(UnsubscribeLinks::new(PUBLIC_URL, &config.hash_key)),
            store: Store::new(&config, Duration::from_secs(30)).expect("a store"),
            sender: "RGZ".to_owned(),
            contact: None,
            metrics: Arc::new(Metrics::new().expect("metrics")),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let stop = CancellationToken::new();
        let public = http::public::Public { feedback: None, unsubscribe: Some(Arc::new(desk)) };
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        tokio::spawn(http::public::serve(listener, public, public_limits(), metrics, stop.clone()));
        Self { address, http: client(Policy::none()), _stop: Some(stop.drop_guard()) }
    }

    /// Where a link of a mail leads on this machine.
    pub fn here(&self, link: &str) -> String {
        format!("http://{}{}", self.address, link.strip_prefix(PUBLIC_URL).unwrap_or(link))
    }

    /// Asks in any way.
    pub async fn ask(&self, method: Method, link: &str) -> Response {
        self.http.request(method, self.here(link)).send().await.expect("an answer")
    }

    /// Opens the page.
    pub async fn get(&self, link: &str) -> (StatusCode, String) {
        said(self.ask(Method::GET, link).await).await
    }

    /// Posts a form.
    pub async fn answer(&self, link: &str, form: &str) -> Response {
        let request = self.http.post(self.here(link)).header("content-type", "application/x-www-form-urlencoded");
        request.body(form.to_owned()).send().await.expect("an answer")
    }

    /// The same, and what is answered.
    pub async fn post(&self, link: &str, form: &str) -> (StatusCode, String) {
        said(self.answer(link, form).await).await
    }

    /// Posts [`ONE_CLICK`] as multipart.
    pub async fn post_multipart(&self, link: &str) -> (StatusCode, String) {
        let (name, value) = ONE_CLICK.split_once('=').expect("a pair");
        let body = format!(
            "--FormBoundary\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n--FormBoundary--\r\n"
        );
        let request =
            self.http.post(self.here(link)).header("content-type", "multipart/form-data; boundary=FormBoundary");
        said(request.body(body).send().await.expect("an answer")).await
    }
}

async fn said(answer: Response) -> (StatusCode, String) {
    (answer.status(), answer.text().await.expect("text"))
}
