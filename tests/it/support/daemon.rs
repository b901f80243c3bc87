use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, time::Duration};

use postrider::{
    app::{self, AppError, Listeners},
    config::{Environment, LogConfig, LogFormat, Settings},
    telemetry,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode, redirect::Policy};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    description::{Answer, ask, try_ask},
    wait::until_some,
};

/// The admin's token.
pub const ADMIN_TOKEN: &str = "an-admin-of-these-tests";
/// The operator's token.
pub const OPERATOR_TOKEN: &str = "an-operator-of-these-tests";
/// The viewer's token.
pub const VIEWER_TOKEN: &str = "a-viewer-of-these-tests";
/// Longest time for a daemon to stop: less than its own grace.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Settings by their names.
pub type Variables = BTreeMap<String, String>;

/// One connection for each request: what has waited for ten seconds, or was answered before its body was read, is closed by the
/// daemon, and whoever takes that connection up again in the same moment hears nothing.
pub fn client(redirects: Policy) -> Client {
    Client::builder().redirect(redirects).pool_max_idle_per_host(0).build().expect("a client")
}

/// A daemon in this process, on a port that the system chose.
pub struct Daemon {
    stop: CancellationToken,
    running: JoinHandle<Result<ExitCode, AppError>>,
    admin: SocketAddr,
    public: Option<SocketAddr>,
    http: Client,
}

impl Daemon {
    /// Starts one and waits until a mail could go the whole way.
    pub async fn start(variables: &Variables) -> Self {
        let mut daemon = Self::launch(variables).await;
        daemon.wait_until_ready().await;
        daemon
    }

    /// Starts one. With `TEST_LOG=debug` or another filter in the environment its log is shown.
    pub async fn launch(variables: &Variables) -> Self {
        if let Ok(filter) = std::env::var("TEST_LOG") {
            telemetry::start(&LogConfig { format: LogFormat::Text, filter });
        }
        let environment: Environment = variables.iter().collect();
        let config = Settings::read(&environment, None).config().unwrap_or_else(|faults| panic!("{faults}"));
        let bind = async || TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let listeners = Listeners {
            admin: bind().await,
            public: if config.public_addr().is_some() { Some(bind().await) } else { None },
        };
        let admin = listeners.admin.local_addr().expect("it is bound");
        let public = listeners.public.as_ref().map(|listener| listener.local_addr().expect("it is bound"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(Box::pin(app::run_on(listeners, config, stop.clone())));
        Self { stop, running, admin, public, http: client(Policy::default()) }
    }

    /// Waits until `/readyz` says so.
    pub async fn wait_until_ready(&mut self) {
        let mut last = Value::Null;
        for _ in 0..1500 {
            assert!(!self.running.is_finished(), "the daemon has ended: {:?}", (&mut self.running).await);
            let (status, said) = self.readiness().await;
            if status == StatusCode::OK {
                return;
            }
            last = said;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the daemon does not become ready: {last}");
    }

    /// Waits until `/readyz` gives a reason that holds these words, and returns it.
    pub async fn wait_until_not_ready(&self, words: &str) -> String {
        until_some(&format!("a reason not to be ready: {words}"), async || {
            let (status, said) = self.readiness().await;
            let reasons = said["reasons"].as_array().cloned().unwrap_or_default();
            let reason = reasons.iter().filter_map(Value::as_str).find(|reason| reason.contains(words));
            reason.filter(|_| status == StatusCode::SERVICE_UNAVAILABLE).map(str::to_owned)
        })
        .await
    }

    /// What `/readyz` says.
    pub async fn readiness(&self) -> (StatusCode, Value) {
        match try_ask(self.http.get(self.url("/readyz"))).await {
            Ok(answer) => (answer.status, answer.json()),
            Err(error) => (StatusCode::BAD_GATEWAY, Value::String(error.to_string())),
        }
    }

    /// An address of the admin listener.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// The admin listener.
    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The public listener, which must be configured.
    pub fn public(&self) -> SocketAddr {
        self.public.expect("WEBHOOK_ADDR is set, and SNS_TOPIC_ARNS or EMAIL_PUBLIC_URL")
    }

    /// Posts what SNS would post.
    pub async fn post_webhook(&self, envelope: &str) -> StatusCode {
        let url = format!("http://{}/api/v1/email/webhook", self.public());
        super::webhook::post(&self.http, &url, envelope).await
    }

    /// Asks with a token.
    pub async fn get(&self, path: &str, token: &str) -> (StatusCode, Value) {
        let answer = self.ask(Method::GET, path, token, |request| request).await;
        (answer.status, answer.json())
    }

    /// Sends a body with a token.
    pub async fn post(&self, path: &str, token: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.ask(Method::POST, path, token, |request| request.json(body)).await;
        (answer.status, answer.json())
    }

    /// Asks in any way, with a token; the answer must be one that the API's description tells of.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        token: &str,
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Answer {
        ask(with(self.http.request(method, self.url(path)).bearer_auth(token))).await
    }

    /// Puts a body with a token.
    pub async fn put(&self, path: &str, token: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.http.put(self.url(path)).bearer_auth(token).json(body);
        let answer = request.send().await.expect("an answer");
        (answer.status(), answer.json().await.expect("JSON"))
    }

    /// One figure of `/metrics`: the sum over all series of this name whose labels hold all of these.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.http.get(self.url("/metrics")).send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Tells it to stop, as SIGTERM does, and waits for its end.
    pub async fn stop(self) -> ExitCode {
        self.stop.cancel();
        self.end().await.expect("it stops without a fault")
    }

    /// Waits for the end that it comes to by itself.
    pub async fn end(self) -> Result<ExitCode, AppError> {
        let ended = tokio::time::timeout(STOP_MAX, self.running).await.expect("it ends");
        ended.expect("it does not panic")
    }
}
