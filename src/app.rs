//! The composition root: builds the doors, starts the tasks, drains them. The only file that sees everything.
//!
//! Invariant: listeners are bound first, so that readiness can be asked; consuming starts last, when a mail can go the
//! whole way.

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_retry::strategy::{ExponentialBackoff, jitter};
use tokio_util::sync::CancellationToken;

use crate::{
    archive,
    broker::{
        BrokerError, ConsumerState, Consumers, Drawer, Link, PipelinedPublisher, Publisher, Topology,
        consumer::Subscription, depths::DepthGauge, link::Purpose, topology,
    },
    config::Config,
    email::{Lane, PerLane, UnsubscribeLinks},
    feedback::{self, fetch::SystemResolver, front_door::FrontDoor, signers::SignersSetupError},
    http::{
        self, Admin, Tries,
        probe::{OwnListener, reached_at},
        public::{Public, unsubscribe::Desk},
    },
    journal::{Journal, JournalError},
    lanes::{Pauses, Reporter, count},
    metrics::Metrics,
    outbox::Outbox,
    pipeline::{Budget, Memory, Pipeline, Quarantine},
    reload,
    replay::run::Runner,
    retention::Retention,
    retransmission,
    service_manager::{self, Beat},
    smtp::Relays,
    store::{Store, StoreError},
    telemetry::{
        otlp::{Otlp, OtlpError},
        span::Tracer,
    },
    templates::Catalogue,
};

/// Channels for retry copies and dead letters, for each lane.
const PUBLISHER_CHANNELS: usize = 4;
/// Channels for dead letters that are replayed and recorded mails that are sent again.
const REPLAY_CHANNELS: usize = 4;
/// Dead letters held while they are being archived.
const ARCHIVE_PREFETCH: u16 = 32;
/// Longest pause between two tries to begin while something is away.
const START_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Pause before the topology is declared again on a broker that went away meanwhile.
const ESTABLISH_PAUSE: Duration = Duration::from_millis(500);
/// How long closing connections may take once all mails are done.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the daemon could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address is taken or not ours.
    #[error("{setting}: cannot listen on {addr}: {error}")]
    Listen {
        /// Which setting.
        setting: &'static str,
        /// The address.
        addr: std::net::SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The schema is not there or too old.
    #[error("the database lacks {}: run `postrider migrate`", .0.join(", "))]
    Migrations(Vec<String>),
    /// The database holds something that forbids to go on.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Templates cannot be used.
    #[error("{0}")]
    Templates(#[from] reload::SyncError),
    /// The broker has another topology, or the URL is wrong.
    #[error("{0}")]
    Broker(#[from] BrokerError),
    /// TLS cannot be set up.
    #[error("{0}")]
    Tls(#[from] crate::smtp::TlsSetupError),
    /// Messages of SNS cannot be verified.
    #[error("{0}")]
    Signers(#[from] SignersSetupError),
    /// Metrics cannot be set up.
    #[error("{0}")]
    Metrics(#[from] crate::metrics::MetricsError),
    /// Traces and metrics cannot be pushed.
    #[error("{0}")]
    Otlp(#[from] OtlpError),
    /// A task ended that never should.
    #[error("a task of the daemon ended unexpectedly: {0}")]
    Task(String),
}

/// Runs the daemon until `stop`; the code says whether everything in flight was finished.
///
/// # Errors
/// When it cannot start, or a part of it fails that it cannot do without.
pub async fn run(config: Config, stop: CancellationToken) -> Result<ExitCode, AppError> {
    let listeners = Listeners::bind(&config).await?;
    run_on(listeners, config, stop).await
}

/// Where requests arrive.
#[derive(Debug)]
pub struct Listeners {
    /// For operators.
    pub admin: TcpListener,
    /// For what providers tell, and for people who unsubscribe; nothing: neither is wanted.
    pub public: Option<TcpListener>,
}

impl Listeners {
    /// As configured.
    ///
    /// # Errors
    /// When an address is taken or not ours.
    pub async fn bind(config: &Config) -> Result<Self, AppError> {
        let bind = async |setting, addr| {
            TcpListener::bind(addr).await.map_err(|error| AppError::Listen { setting, addr, error })
        };
        let public = match config.public_addr() {
            Some(addr) => Some(bind("WEBHOOK_ADDR", addr).await?),
            None => None,
        };
        Ok(Self { admin: bind("ADMIN_ADDR", config.http.admin_addr).await?, public })
    }
}

/// The same on listeners that are bound already, for instance to ports that the system chose.
///
/// # Errors
/// As [`run`].
pub async fn run_on(listeners: Listeners, config: Config, stop: CancellationToken) -> Result<ExitCode, AppError> {
    let (otlp, reader) = Otlp::start(&config.telemetry)?;
    let metrics = Arc::new(Metrics::pushed_by(&otlp, reader)?);
    let ended = Box::pin(run_observed(listeners, config, stop, Arc::clone(&metrics), otlp.tracer())).await;
    // What the last mails came to is told before the end, whatever the end is.
    tokio::join!(otlp.shut_down(), metrics.shut_down());
    ended
}

/// The same, counted and traced.
async fn run_observed(
    listeners: Listeners,
    config: Config,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    tracer: Tracer,
) -> Result<ExitCode, AppError> {
    let store = Store::new(&config.store, config.pipeline.lease)?;
    let relays = Relays::new(&config.smtp)?;
    let catalogue = Arc::new(Catalogue::new());
    metrics.observe_relays(&relays);
    metrics.observe_store(&store);
    metrics.observe_templates(&catalogue);
    let topology = Topology::new(&config.broker);
    let consume_link = Arc::new(Link::new(&config.broker, Purpose::Consume)?);
    let publish_link = Arc::new(Link::new(&config.broker, Purpose::Publish)?);
    let publishers = PerLane::from_fn(|_| Arc::new(Publisher::new(Arc::clone(&publish_link), PUBLISHER_CHANNELS)));
    let replays = Arc::new(Publisher::new(Arc::clone(&publish_link), REPLAY_CHANNELS));
    let lanes = PerLane::from_fn(|_| watch::Sender::new(ConsumerState::Starting));

    metrics.observe_lanes(PerLane::from_fn(|lane| lanes.get(lane).subscribe()));
    let pauses = Pauses::new(Arc::clone(&store));
    let reporter = Arc::new(Reporter {
        store: Arc::clone(&store),
        figures: Arc::clone(metrics.figures()),
        lanes: PerLane::from_fn(|lane| lanes.get(lane).subscribe()),
        relays: Arc::clone(&relays),
    });

    // Everything but consuming ends with this one: after the last mail is settled.
    let end = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let admin = Arc::new(Admin {
        store: Arc::clone(&store),
        catalogue: Arc::clone(&catalogue),
        relays: Arc::clone(&relays),
        links: [Arc::clone(&consume_link), Arc::clone(&publish_link)],
        lanes: PerLane::from_fn(|lane| lanes.get(lane).subscribe()),
        pauses: Arc::clone(&pauses),
        depths: DepthGauge::new(Arc::clone(&consume_link), topology.clone()),
        reporter: Arc::clone(&reporter),
        metrics: Arc::clone(&metrics),
        publisher: Arc::clone(&publishers.standard),
        replays: Arc::clone(&replays),
        http: config.http.clone(),
        mail: config.mail.clone(),
        rules: config.pipeline.clone(),
        starting: watch::Sender::new(Some("starting".to_owned())),
        tries: Tries::default(),
    });
    let lease_beat = Arc::new(Beat::default());
    metrics.observe_readiness(Arc::downgrade(&admin), Admin::is_ready);
    if let Ok(addr) = listeners.admin.local_addr() {
        tracing::info!(%addr, "admin listener");
        if service_manager::is_listening() {
            let (admin, beat) = (Arc::clone(&admin), Arc::clone(&lease_beat));
            let own = OwnListener { addr: reached_at(addr), speaks_tls: config.http.admin.tls.is_some() };
            tasks.spawn(service_manager::tell(admin, own, beat, stop.clone(), end.clone()));
        }
    }
    tasks.spawn(http::serve(listeners.admin, Arc::clone(&admin), end.clone()));
    let has_feedback = config.feedback_addr().is_some();
    let unsubscribe = config.mail.public_url.as_deref();
    let unsubscribe = unsubscribe.map(|url| Arc::new(UnsubscribeLinks::new(url, &config.store.hash_key)));
    if let Some(listener) = listeners.public {
        if let Ok(addr) = listener.local_addr() {
            tracing::info!(%addr, topics = config.sns.topics.len(), "public listener");
        }
        let mut public = Public::default();
        if has_feedback {
            let door = FrontDoor::new(&config.sns, Arc::clone(&store), Arc::clone(&metrics), Arc::new(SystemResolver))?;
            public.feedback = Some(Arc::new(door));
        }
        public.unsubscribe = unsubscribe.clone().map(|links| {
            let (store, metrics) = (Arc::clone(&store), Arc::clone(&metrics));
            let sender = config.mail.from_name.clone().unwrap_or_else(|| config.mail.from.domain().to_owned());
            Arc::new(Desk { links, store, sender, contact: config.mail.support_email.clone(), metrics })
        });
        // It answers at once, if only that the sender should come again: a database that is away loses no feedback.
        let (limits, metrics) = (config.http.webhook.clone(), Arc::clone(&metrics));
        tasks.spawn(http::public::serve(listener, public, limits, metrics, end.clone()));
    }

    if !prepare(&config, &store, &catalogue, &admin, &stop).await? {
        return Ok(ExitCode::SUCCESS);
    }
    let figures = move || {
        lease_beat.now();
        serde_json::to_value(reporter.now()).unwrap_or_default()
    };
    tasks.spawn(Arc::clone(&store).keep_lease(figures, end.clone()));
    tasks.spawn(Arc::clone(metrics.figures()).keep(end.clone()));
    let gauge = DepthGauge::new(Arc::clone(&consume_link), topology.clone());
    tasks.spawn(count(Arc::clone(&store), gauge, Arc::clone(metrics.counted()), end.clone()));
    tasks.spawn(Arc::clone(&store).listen(end.clone()));
    tasks.spawn(Arc::clone(&pauses).follow(end.clone()));
    let tries_default = config.pipeline.tries_default;
    let following =
        reload::follow(Arc::clone(&store), Arc::clone(&catalogue), tries_default, reload::POLL, end.clone());
    tasks.spawn(following);

    // Opened before it is needed: the first retry should not wait for it.
    let opening = Arc::clone(&publish_link);
    tokio::spawn(async move { drop(opening.get().await) });
    let consumers = Consumers::new(Arc::clone(&consume_link), topology.clone());
    if !establish(&consume_link, &topology, &stop).await? {
        return Ok(ExitCode::SUCCESS);
    }
    let journal = Arc::new(Journal::new(
        Arc::clone(&store),
        Drawer::new(Arc::clone(&consume_link), topology.clone()),
        Arc::clone(&publishers.standard),
    ));
    // What the fast lane sent without a database is in the audit before anything is looked up there.
    if !write_journal(&journal, &stop).await {
        return Ok(ExitCode::SUCCESS);
    }
    tasks.spawn(Arc::clone(&journal).keep(end.clone()));
    tasks.spawn(Arc::clone(&store).follow_suppressions(end.clone()));
    if has_feedback {
        tasks.spawn(feedback::follow::follow(Arc::clone(&store), Arc::clone(&metrics), end.clone()));
    }
    let events = PipelinedPublisher::new(Arc::clone(&publish_link), topology.clone());
    // Its last batch is after the last mail's outcome.
    tasks.spawn(Outbox::new(Arc::clone(&store), events, Arc::clone(&metrics)).keep(end.clone()));
    let runner = Runner {
        store: Arc::clone(&store),
        publisher: Arc::clone(&replays),
        link: Arc::clone(&publish_link),
        pipeline: config.pipeline.clone(),
        is_patient: true,
    };
    // Left as soon as the daemon is told to stop: what it would publish is for those who go on.
    tasks.spawn(runner.follow(stop.clone()));
    tasks.spawn(retransmission::follow(
        Arc::clone(&store),
        Arc::clone(&replays),
        config.pipeline.clone(),
        stop.clone(),
    ));
    let retention = Retention::new(Arc::clone(&store), &config.pipeline, Arc::clone(&metrics));
    tasks.spawn(retention.keep(stop.clone()));
    let pipeline = Arc::new(Pipeline {
        rules: config.pipeline.clone(),
        mail: config.mail.clone(),
        keys: config.dkim.clone(),
        unsubscribe,
        catalogue,
        store: Arc::clone(&store),
        relays: Arc::clone(&relays),
        publishers,
        topology,
        has_feedback,
        metrics,
        tracer,
        quarantine: Quarantine::default(),
        budget: Budget::default(),
        memory: Memory::new(*config.pipeline.age_max.get(Lane::Fast)),
        journal,
        pauses: Arc::clone(&pauses),
        stop: stop.clone(),
    });
    let warm = Arc::clone(&relays);
    tasks.spawn(async move { warm.keep_warm().await });
    let mut consuming = JoinSet::new();
    for lane in Lane::ALL {
        let subscription = Subscription {
            queue: topology::lane_queue(lane),
            lane,
            prefetch: *config.broker.prefetch.get(lane),
            pause: pauses.of(lane),
        };
        let pipeline = Arc::clone(&pipeline);
        let handle = move |delivery| Arc::clone(&pipeline).carry(delivery);
        consuming.spawn(Arc::clone(&consumers).run(subscription, lanes.get(lane).clone(), stop.clone(), handle));
    }
    if config.broker.archive {
        for queue in [topology::DEAD, topology::UNROUTED] {
            let store = Arc::clone(&store);
            let handle = move |delivery| archive::archive(Arc::clone(&store), delivery, queue);
            let pause = pauses.of_store();
            let subscription =
                Subscription { queue: queue.to_owned(), lane: Lane::Standard, prefetch: ARCHIVE_PREFETCH, pause };
            let state = watch::Sender::new(ConsumerState::Starting);
            consuming.spawn(Arc::clone(&consumers).run(subscription, state, stop.clone(), handle));
        }
    }
    admin.starting.send_replace(None);

    let ended_early = tokio::select! {
        // Told to stop, consumers end at once; that is not an accident.
        biased;
        () = stop.cancelled() => None,
        Some(ended) = consuming.join_next() => Some(ended),
        Some(ended) = tasks.join_next() => Some(ended),
    };
    if let Some(ended) = ended_early {
        stop.cancel();
        return Err(AppError::Task(words_of(ended)));
    }
    tracing::info!(grace_s = config.pipeline.shutdown_grace.as_secs(), "stopping: finishing what has reached a relay");
    let drained =
        tokio::time::timeout(config.pipeline.shutdown_grace, async { while consuming.join_next().await.is_some() {} })
            .await
            .is_ok();
    end.cancel();
    let closing = async {
        relays.close().await;
        while tasks.join_next().await.is_some() {}
        consume_link.close().await;
        publish_link.close().await;
        store.close().await;
    };
    if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::warn!("some connections did not close in time");
    }
    if drained {
        tracing::info!("stopped: everything in flight is settled");
        Ok(ExitCode::SUCCESS)
    } else {
        tracing::error!("stopped with mails in flight (SHUTDOWN_GRACE_SECONDS): their rows say `sending`");
        Ok(ExitCode::FAILURE)
    }
}

/// Writes what an earlier life left in the journal. False: the daemon was told to stop meanwhile.
async fn write_journal(journal: &Journal, stop: &CancellationToken) -> bool {
    let mut pauses = ExponentialBackoff::from_millis(2).factor(50).max_delay(START_PAUSE_MAX).map(jitter);
    loop {
        let written =
            tokio::select! { () = stop.cancelled() => return false, written = journal.write_all() => written };
        match written {
            Ok(entries) => {
                if entries > 0 {
                    tracing::info!(entries, "wrote the fast lane's journal into the audit");
                }
                return true;
            }
            Err(error @ (JournalError::Store(_) | JournalError::Broker(_))) => {
                tracing::warn!(%error, "cannot write the fast lane's journal yet");
                let pause = pauses.next().unwrap_or(START_PAUSE_MAX);
                tokio::select! { () = stop.cancelled() => return false, () = tokio::time::sleep(pause) => {} }
            }
        }
    }
}

fn words_of(ended: Result<(), JoinError>) -> String {
    match ended {
        Ok(()) => "it returned".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Waits for the database, checks it, and loads the templates. False: the daemon was told to stop meanwhile.
async fn prepare(
    config: &Config,
    store: &Arc<Store>,
    catalogue: &Catalogue,
    admin: &Admin,
    stop: &CancellationToken,
) -> Result<bool, AppError> {
    let mut pauses = ExponentialBackoff::from_millis(2).factor(50).max_delay(START_PAUSE_MAX).map(jitter);
    loop {
        let error = match Box::pin(prepare_once(config, store, catalogue, &admin.pauses)).await {
            Ok(()) => return Ok(true),
            Err(AppError::Store(error) | AppError::Templates(reload::SyncError::Store(error))) if error.is_away() => {
                error
            }
            Err(final_error) => return Err(final_error),
        };
        tracing::warn!(%error, "cannot begin yet");
        // A pool only says that it waited; one connection beside it says why.
        let why = store.connect_once().await.err().unwrap_or(error);
        admin.starting.send_replace(Some(format!("starting: {why}")));
        let pause = pauses.next().unwrap_or(START_PAUSE_MAX);
        tokio::select! { () = stop.cancelled() => return Ok(false), () = tokio::time::sleep(pause) => {} }
    }
}

async fn prepare_once(
    config: &Config,
    store: &Arc<Store>,
    catalogue: &Catalogue,
    pauses: &Pauses,
) -> Result<(), AppError> {
    let missing = store.migrations_missing().await?;
    if !missing.is_empty() {
        return Err(AppError::Migrations(missing));
    }
    store.verify_hash_key().await?;
    store.renew_lease().await?;
    store.load_suppressions().await?;
    // A lane that is paused takes nothing, not even at first.
    pauses.load().await?;
    let tries_default = config.pipeline.tries_default;
    for synced in reload::sync_folder(store, &config.mail.templates_dir, tries_default, false, "sync").await? {
        catalogue.insert(&synced.template);
        if synced.result != "unchanged" {
            tracing::info!(template = synced.key, version = synced.version, result = synced.result, "template");
        }
    }
    Ok(reload::load(store, catalogue, tries_default).await?)
}

/// Declares the topology. A broker that is away is waited for; one that has another topology is an error.
async fn establish(link: &Link, topology: &Topology, stop: &CancellationToken) -> Result<bool, AppError> {
    loop {
        let connection = tokio::select! { () = stop.cancelled() => return Ok(false), c = link.get() => c };
        match topology.establish(&connection).await {
            Ok(()) => return Ok(true),
            Err(BrokerError::Amqp(error)) => {
                tracing::warn!(%error, "the broker went away while declaring");
                tokio::time::sleep(ESTABLISH_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
