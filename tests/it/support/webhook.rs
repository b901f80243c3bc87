use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use postrider::{
    config::{Environment, ListenerConfig, Settings, SnsConfig},
    feedback::{fetch::Resolve, front_door::FrontDoor, sns::SignatureVersion, topic::TopicArn},
    http::{self, public::Public},
    metrics::Metrics,
    store::Store,
};
use reqwest::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{authority::Authority, database::Database, sns::SnsSigner};

/// The topic of these tests.
pub const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:ses-events";
/// Another one that is allowed.
pub const OTHER_TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:ses-complaints";
/// One that is not.
pub const STRANGE_TOPIC: &str = "arn:aws:sns:eu-west-1:999999999999:ses-events";
/// SNS's host in the region of these topics.
pub const SNS_HOST: &str = "sns.eu-west-1.amazonaws.com";

/// What a web server answers: status, headers, body. `Location` may be among the headers.
#[derive(Clone)]
pub struct Page {
    /// Its status.
    pub status: u16,
    /// Its `Location`.
    pub location: Option<String>,
    /// Its body.
    pub body: Bytes,
    /// How long it takes.
    pub delay: Duration,
}

impl Page {
    /// An answer like any other.
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self { status: 200, location: None, body: body.into(), delay: Duration::ZERO }
    }

    /// One without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    /// A redirect.
    pub fn redirect(location: &str) -> Self {
        Self { location: Some(location.to_owned()), ..Self::status(302) }
    }
}

#[derive(Default)]
struct Site {
    connections: usize,
    asked: Vec<String>,
    pages: HashMap<String, Page>,
}

/// A web server that counts who comes.
#[derive(Clone)]
pub struct WebServer {
    /// Where it listens.
    pub address: SocketAddr,
    site: Arc<Mutex<Site>>,
}

impl WebServer {
    /// With plain HTTP.
    pub async fn plain() -> Self {
        Self::start(None).await
    }

    /// With TLS, and a certificate of this authority.
    pub async fn tls(authority: &Authority) -> Self {
        Self::start(Some(TlsAcceptor::from(Arc::clone(&authority.server)))).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let site: Arc<Mutex<Site>> = Arc::default();
        let server = Self { address, site: Arc::clone(&site) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                lock(&site).connections += 1;
                let (site, tls) = (Arc::clone(&site), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, site).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, site).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// What it answers at this path and query.
    pub fn serve(&self, target: &str, page: Page) {
        lock(&self.site).pages.insert(target.to_owned(), page);
    }

    /// Connections that were made to it, in all.
    pub fn connections(&self) -> usize {
        lock(&self.site).connections
    }

    /// What was asked for, in order: host and target.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.site).asked.clone()
    }
}

fn lock(site: &Mutex<Site>) -> std::sync::MutexGuard<'_, Site> {
    site.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, site: Arc<Mutex<Site>>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let target = request.uri().to_string();
        let host = request.headers()["host"].to_str().expect("a host").to_owned();
        let page = {
            let mut site = lock(&site);
            site.asked.push(format!("{host}{target}"));
            site.pages.get(&target).cloned().unwrap_or_else(|| Page::status(404))
        };
        async move {
            tokio::time::sleep(page.delay).await;
            let mut response = Response::builder().status(page.status);
            if let Some(location) = &page.location {
                response = response.header("Location", location);
            }
            response.body(Full::new(page.body))
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

/// A resolver that sends hosts where a test wants them, and remembers who was asked for.
#[derive(Default)]
pub struct Signposts {
    hosts: HashMap<String, SocketAddr>,
    everybody: Option<SocketAddr>,
    asked: Mutex<Vec<String>>,
}

impl Signposts {
    /// One that knows these hosts.
    pub fn to(hosts: &[(&str, &WebServer)]) -> Arc<Self> {
        let hosts = hosts.iter().map(|(host, server)| ((*host).to_owned(), server.address)).collect();
        Arc::new(Self { hosts, ..Self::default() })
    }

    /// One that finds every host at the same server.
    pub fn all_to(server: &WebServer) -> Arc<Self> {
        Arc::new(Self { everybody: Some(server.address), ..Self::default() })
    }

    /// The hosts that were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no test panics here").clone()
    }
}

impl Resolve for Signposts {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        self.asked.lock().expect("no test panics here").push(format!("{host}:{port}"));
        let found = self.hosts.get(host).copied().or(self.everybody);
        Box::pin(async move { found.map(|address| vec![address]).ok_or_else(|| io::ErrorKind::NotFound.into()) })
    }
}

/// The public listener's limits when nothing is set.
pub fn public_limits() -> ListenerConfig {
    Settings::read(&Environment::default(), None).http().expect("defaults are sound").webhook
}

/// The settings of a front door that fetches its certificates.
pub fn fetching(ca_file: PathBuf) -> SnsConfig {
    SnsConfig {
        topics: vec![TopicArn::parse(TOPIC).expect("an ARN"), TopicArn::parse(OTHER_TOPIC).expect("an ARN")],
        signature_version: SignatureVersion::V2,
        age_max: Duration::from_secs(7200),
        signing_cert_file: None,
        ca_file: Some(ca_file),
    }
}

/// Authorities of a web server and of a signer in one file beside the signer's.
pub fn trusting(authority: &Authority, signer: &SnsSigner) -> PathBuf {
    let both = [authority.file(), signer.root()].map(|file| std::fs::read_to_string(file).expect("a PEM file"));
    let path = signer.root().with_file_name("both.pem");
    std::fs::write(&path, both.concat()).expect("a file");
    path
}

/// The public listener with a real database behind it, and nothing else of the daemon.
pub struct Webhook {
    /// Its database.
    pub database: Database,
    metrics: Arc<Metrics>,
    url: String,
    http: reqwest::Client,
    _stop: DropGuard,
}

impl Webhook {
    /// One that finds hosts with this resolver.
    pub async fn start(config: &SnsConfig, resolver: Arc<dyn Resolve>) -> Self {
        let database = Database::start().await;
        let store = database.store();
        Self::start_on(database, store, config, resolver).await
    }

    async fn start_on(database: Database, store: Arc<Store>, config: &SnsConfig, resolver: Arc<dyn Resolve>) -> Self {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let door = FrontDoor::new(config, store, Arc::clone(&metrics), resolver).expect("a door");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let url = format!("http://{}/api/v1/email/webhook", listener.local_addr().expect("it is bound"));
        let stop = CancellationToken::new();
        let public = Public { feedback: Some(Arc::new(door)), unsubscribe: None };
        tokio::spawn(http::public::serve(listener, public, public_limits(), Arc::clone(&metrics), stop.clone()));
        Self { database, metrics, url, http: reqwest::Client::new(), _stop: stop.drop_guard() }
    }

    /// Posts as SNS does.
    pub async fn post(&self, envelope: &str) -> StatusCode {
        post(&self.http, &self.url, envelope).await
    }

    /// How many messages came to this: `received`, `refused` or `failed`, with its label's value.
    pub fn count(&self, what: &str, label: &str) -> u64 {
        let text = self.metrics.render().expect("metrics");
        let series = text.lines().find(|line| {
            line.starts_with(&format!("email_webhook_{what}_total{{")) && line.contains(&format!("=\"{label}\""))
        });
        series.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    /// Receipts in the database.
    pub async fn stored(&self) -> i64 {
        self.database.receipts().await
    }
}

/// Posts an envelope as SNS does: JSON that calls itself plain text, with a header that repeats the type.
pub async fn post(http: &reqwest::Client, url: &str, envelope: &str) -> StatusCode {
    let mut request = http.post(url).header("content-type", "text/plain; charset=UTF-8").body(envelope.to_owned());
    let kind =
        serde_json::from_str::<serde_json::Value>(envelope).ok().and_then(|e| Some(e["Type"].as_str()?.to_owned()));
    if let Some(kind) = kind {
        request = request.header("x-amz-sns-message-type", kind);
    }
    request.send().await.expect("an answer").status()
}
