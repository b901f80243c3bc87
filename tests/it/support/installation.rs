use std::process::ExitCode;

use postrider::wire;
use uuid::Uuid;

use super::{
    broker::Broker,
    daemon::{ADMIN_TOKEN, Daemon, OPERATOR_TOKEN, VIEWER_TOKEN, Variables},
    database::{Database, HASH_KEY},
    mail::Mail,
    process::{Said, postrider},
    relay::Relay,
    requests,
    wait::until,
};

/// What links to unsubscribe begin with.
pub const PUBLIC_URL: &str = "https://mail.rgz.bj";
/// Delays before the second, third ... try: long enough to be measured, short enough to be waited for.
pub const LADDER_MS: [u64; 3] = [200, 400, 800];

/// Everything that postrider needs, and postrider. What is dropped first is what needs the others.
pub struct Installation {
    daemon: Option<Daemon>,
    /// Settings of every daemon and command here.
    pub variables: Variables,
    /// Its relay.
    pub relay: Relay,
    /// Its virtual host.
    pub broker: Broker,
    /// Its database.
    pub database: Database,
}

impl Installation {
    /// With a daemon that is ready.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With a daemon that is ready and has these settings besides the usual ones.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let mut all = Self::prepare(settings).await;
        all.start_daemon().await;
        all
    }

    /// Without a daemon. There are no queues yet.
    pub async fn prepare(settings: &[(&str, &str)]) -> Self {
        Self::prepare_on(Relay::start().await, settings).await
    }

    /// The same with a relay that was prepared before.
    pub async fn prepare_on(relay: Relay, settings: &[(&str, &str)]) -> Self {
        let (broker, database) = tokio::join!(Broker::start(), Database::start());
        let port = relay.port().to_string();
        let templates = requests::templates_dir();
        let ladder = LADDER_MS.map(|ms| format!("{ms}ms")).join(",");
        let tokens = format!(
            "test-admin:admin:{ADMIN_TOKEN},test-operator:operator:{OPERATOR_TOKEN},test-viewer:viewer:{VIEWER_TOKEN}"
        );
        let usual = [
            ("AMQP_URL", broker.url()),
            ("DATABASE_URL", database.url()),
            ("DATABASE_CONNECTIONS_MAX", "4"),
            ("DATABASE_FAST_CONNECTIONS_MAX", "2"),
            ("EMAIL_HASH_KEY", HASH_KEY),
            ("SMTP_HOST", "127.0.0.1"),
            ("SMTP_PORT", &port),
            ("SMTP_USE_TLS", "false"),
            ("SMTP_HELO_NAME", "daemon.test"),
            // A connection that nobody asked for would be in the way of what is counted.
            ("SMTP_WARM_CONNECTIONS_FAST", "0"),
            ("SMTP_FROM_EMAIL", "noreply@rgz.bj"),
            ("SMTP_FROM_NAME", "RGZ Notifications"),
            ("SMTP_REPLY_TO", "support@rgz.bj"),
            ("EMAIL_SUPPORT_EMAIL", "support@rgz.bj"),
            ("EMAIL_PUBLIC_URL", PUBLIC_URL),
            ("WEBHOOK_ADDR", "127.0.0.1:0"),
            ("EMAIL_TEMPLATES_DIR", templates.to_str().expect("UTF-8")),
            ("EMAIL_LADDER_FAST", &ladder),
            ("EMAIL_LADDER_STANDARD", &ladder),
            ("EMAIL_LADDER_BULK", &ladder),
            ("ADMIN_TOKENS", &tokens),
            ("LOG_FORMAT", "text"),
        ];
        let variables =
            usual.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { daemon: None, variables, relay, broker, database }
    }

    /// Starts the daemon and waits until it is ready.
    pub async fn start_daemon(&mut self) {
        self.daemon = Some(Daemon::start(&self.variables).await);
    }

    /// Starts the daemon and waits for nothing.
    pub async fn launch_daemon(&mut self) {
        self.daemon = Some(Daemon::launch(&self.variables).await);
    }

    /// Changes settings of daemons to come; what is set to nothing is unset.
    pub fn set(&mut self, settings: &[(&str, &str)]) {
        let changed = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.variables.extend(changed);
    }

    /// Declares everything on the broker, as a daemon does, and leaves no daemon behind.
    pub async fn declare_queues(&mut self) {
        self.start_daemon().await;
        assert_eq!(self.stop_daemon().await, ExitCode::SUCCESS);
    }

    /// The daemon, which must run.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("the daemon runs")
    }

    /// The same, to wait for it.
    pub fn daemon_mut(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the daemon runs")
    }

    /// Stops the daemon in an orderly way.
    pub async fn stop_daemon(&mut self) -> ExitCode {
        self.daemon.take().expect("the daemon runs").stop().await
    }

    /// Publishes a request as a producer does, and returns its id.
    pub async fn publish(&self, request: &wire::EmailRequest) -> Uuid {
        self.broker.publish(request).await;
        requests::id(request)
    }

    /// The mails that the relay has taken, once there are this many, in the order of their acceptance.
    pub async fn mails(&self, count: usize) -> Vec<Mail> {
        self.relay.wait_for_mails(count).await.iter().map(Mail::read).collect()
    }

    /// Runs `postrider` with the same settings.
    pub async fn run(&self, arguments: &[&str]) -> Said {
        postrider(&self.variables, arguments).await
    }

    /// Waits until nothing is under way any more: every row is settled.
    pub async fn wait_until_settled(&self) {
        until("every row is settled", async || self.database.unsettled().await == 0).await;
    }

    /// Waits until no message waits in a lane or for another try.
    pub async fn wait_until_idle(&self) {
        until("the queues are empty", async || self.broker.not_empty().await.is_empty()).await;
    }

    /// Stops the daemon, and looks whether anything was left behind: a message in a queue, or a row that waits.
    pub async fn finish(mut self) {
        self.wait_until_settled().await;
        // A delivery that a stopping daemon has taken and not begun goes back to its queue.
        until("nothing waits, and nothing is in hand", async || {
            self.broker.not_empty().await.is_empty() && self.daemon().metric("email_in_flight", &[]).await == 0.0
        })
        .await;
        assert_eq!(self.stop_daemon().await, ExitCode::SUCCESS, "what was under way is finished");
        let left = self.broker.not_empty().await;
        assert!(left.is_empty(), "left in queues: {left:?}");
    }
}
