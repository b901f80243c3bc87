//! The only door to PostgreSQL (sqlx).
//!
//! `claim` and `finish` look like one call a message; inside, whatever waits is gathered and committed together, without
//! a timer: a batch is what queued up while the last commit ran. The fast lane has connections and batches of its own.
//!
//! Invariant: an error of one mail's data never hurts the others of its batch, and only faults of the database itself
//! count as "the store is away".

/// What an error of the database means: wait, or this row is at fault.
pub mod fault;

/// Whether the database can be asked.
mod health;

/// A certificate of the database that was refused.
mod certificate;

/// Gathers calls into batches.
mod gather;

/// Which calls, and over whose connections.
mod batches;

/// Transactions that can be given up at any moment.
mod whole;

/// Request and message rows: first claims, and what a redelivery finds.
pub mod claim;

/// What a redelivery finds, decided without a database.
pub mod standing;

/// Outcomes and settlements.
pub mod outcome;

/// Who had how many mails in which day or week.
mod caps;

/// This daemon's lease.
pub mod lease;

/// The claims that this daemon has at hand.
mod held;

/// Messages whose worker died.
pub mod crashes;

/// Who may not get mail, in memory.
pub mod suppressions;

/// Who takes themselves off marketing mail.
pub mod unsubscriptions;

/// What the fast lane sent without a database.
pub mod journal;

/// Template versions.
pub mod templates;

/// Attachment bytes.
pub mod attachments;

/// Mails whose attachments are not at hand.
pub mod put_off;

/// Reading the audit.
pub mod messages;

/// Events owed to producers.
pub mod outbox;

/// Dead letters.
pub mod dead;

/// Sending them on their way again.
pub mod replay;

/// Sending recorded mails again.
pub mod retransmission;

/// What providers told of mails.
pub mod feedback;

/// Paused lanes, and daemons that are alive.
pub mod lanes;

/// What operators did.
pub mod changes;

/// Operators who signed in.
pub mod sessions;

/// Forgetting persons and deleting records.
pub mod retention;

/// What the daemon's role may do.
pub mod grants;

/// What daemons tell each other.
pub mod told;

/// Whether tables and hashes are those of this version.
mod schema;

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use self::batches::{BatchListener, Batches, Gatherers, LaneGatherers, start_feedback};
pub use self::{
    batches::Batch,
    claim::{Admission, AttachmentRow, Claim, ClaimRequest, Initial, RecipientClaim, RequestFacts, Standing, Words},
    crashes::Crashes,
    fault::StoreError,
    feedback::{Kept, Receipt, apply::Applied},
    health::StoreHealth,
    held::AtWork,
    outcome::{Finish, NewStatus, OutcomeRow},
    standing::UnknownRule,
    suppressions::MarketingTemplates,
};
use crate::{
    config::{EventsMode, StoreConfig},
    email::Lane,
    objects::Objects,
};

/// How long a caller waits for a free connection of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the connections for all lanes but the fast one: claims and outcomes run one batch at a time each.
const BATCH_CONNECTIONS: u32 = 2;
/// How long a statement of the pipeline may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);
/// The same for the fast lane's claims and outcomes: an incident goes on without a database that is only silent.
const FAST_STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// All that the daemon keeps.
pub struct Store {
    pool: PgPool,
    /// For the batches of all lanes but the fast one.
    batch_pool: PgPool,
    fast_pool: PgPool,
    /// This daemon's name in `email_workers`; a new one at every start.
    worker_id: Uuid,
    hash_key: SecretString,
    events: EventsMode,
    /// Rang whenever a statement may have written to the outbox.
    outbox_written: Arc<Notify>,
    batch_listener: Arc<OnceLock<Arc<BatchListener>>>,
    lease: lease::Lease,
    held: Arc<held::HeldClaims>,
    gatherers: Gatherers,
    health: watch::Sender<StoreHealth>,
    /// Looks for a database that was away lately, and when the last was.
    looks: Mutex<(usize, Instant)>,
    suppressed: suppressions::Suppressed,
    /// Where files lie that are not in the database.
    objects: Arc<Objects>,
    /// Rung for each receipt that this daemon keeps.
    feedback_kept: Notify,
    told: told::Told,
}

impl Store {
    /// Prepares the pools; connects when first needed, so that a daemon can start while the database is away.
    ///
    /// # Errors
    /// When `DATABASE_URL` cannot be read, or the attachment store cannot be used as the settings say.
    pub fn new(config: &StoreConfig, lease: Duration) -> Result<Arc<Self>, StoreError> {
        let for_batches = BATCH_CONNECTIONS.min(config.connections_max - 1).max(1);
        let pool = open_pool(config, (config.connections_max - for_batches).max(1), Plans::ByValues)?;
        let batch_pool = open_pool(config, for_batches, Plans::Once)?;
        let fast_pool = open_pool(config, config.fast_connections_max, Plans::Once)?;
        let worker_id = Uuid::now_v7();
        let outbox_written = Arc::default();
        let listener = Arc::default();
        let batches = |connections| Batches { listener: Arc::clone(&listener), connections };
        let start =
            |pool, lane, batches| LaneGatherers::start(pool, &outbox_written, worker_id, limit_of(lane), batches);
        let gatherers = Gatherers {
            fast: start(&fast_pool, Lane::Fast, &batches("fast")),
            others: start(&batch_pool, Lane::Standard, &batches("shared")),
            feedback: start_feedback(&pool),
        };
        Ok(Arc::new(Self {
            pool,
            batch_pool,
            fast_pool,
            worker_id,
            hash_key: config.hash_key.clone(),
            events: config.events,
            outbox_written,
            batch_listener: listener,
            lease: lease::Lease::new(lease),
            held: Arc::default(),
            gatherers,
            health: watch::Sender::new(StoreHealth::Up),
            looks: Mutex::new((0, Instant::now())),
            suppressed: suppressions::Suppressed::default(),
            objects: Arc::new(Objects::new(&config.attachments)?),
            feedback_kept: Notify::new(),
            told: told::Told::default(),
        }))
    }

    /// The pool of all lanes but the fast one, but for their batches, and of everything that is not a mail on its way.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Where files lie that are not in the database.
    #[must_use]
    pub const fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    const fn pool_of(&self, lane: Lane) -> &PgPool {
        match lane {
            Lane::Fast => &self.fast_pool,
            Lane::Standard | Lane::Bulk => &self.pool,
        }
    }

    /// Keyed hash (HMAC-SHA-256 under `EMAIL_HASH_KEY`) of an address' key: what stands for a person.
    #[must_use]
    pub fn address_hash(&self, address_key: &str) -> [u8; 32] {
        hash_address(&self.hash_key, address_key)
    }

    /// Makes one connection beside the pools, to learn why there is none: a pool only says that it waited.
    ///
    /// # Errors
    /// When the database cannot be reached or refuses us.
    pub async fn connect_once(&self) -> Result<(), StoreError> {
        let options = self.pool.connect_options();
        let connecting = PgConnection::connect_with(&options);
        match tokio::time::timeout(ACQUIRE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => {
                drop(connection.close().await);
                Ok(())
            }
            Ok(Err(sqlx::Error::Io(error))) if fault::is_tls(&error) => {
                Err(StoreError::Away(certificate::words(&error, options.get_host(), options.get_port()).await))
            }
            Ok(Err(sqlx::Error::Io(error))) => Err(StoreError::Away(format!(
                "nothing answers at {}:{} ({error}); check host and port, and whether PostgreSQL runs",
                options.get_host(),
                options.get_port()
            ))),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(StoreError::silent(ACQUIRE_TIMEOUT)),
        }
    }

    /// Says that these claims are asked for, and carried until the answer is dropped.
    #[must_use]
    pub fn at_work(&self, tokens: Vec<Uuid>) -> AtWork {
        AtWork::new(&self.held, tokens)
    }

    /// Closes the pools once their connections are handed back.
    pub async fn close(&self) {
        self.pool.close().await;
        self.batch_pool.close().await;
        self.fast_pool.close().await;
    }
}

/// A statement's answer, or `Away` when it does not come: a host that lost its power sends no farewell, and a read from it
/// would wait for ever. Claims and outcomes are known by their tokens, so asking again is safe.
async fn within_limit<T>(statement: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    within(STATEMENT_TIMEOUT, statement).await
}

async fn within<T>(limit: Duration, statement: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, statement).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::silent(limit)),
    }
}

const fn limit_of(lane: Lane) -> Duration {
    match lane {
        Lane::Fast => FAST_STATEMENT_TIMEOUT,
        Lane::Standard | Lane::Bulk => STATEMENT_TIMEOUT,
    }
}

fn hash_address(key: &SecretString, address_key: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes()).expect("any key will do");
    mac.update(address_key.as_bytes());
    mac.finalize().into_bytes().into()
}

/// How the server plans what is asked on a connection.
#[derive(Clone, Copy)]
enum Plans {
    /// As it thinks best: for lists whose filters decide.
    ByValues,
    /// Once, and by keys: the pipeline's statements are always the same, and planning one takes longer than running it. A plan
    /// made while the tables were empty, when reading them whole looked cheap, must do when they hold millions.
    Once,
}

/// For a session beside the pools that holds a lock or a batch: a daemon that vanishes must not keep it from the others for hours.
const NOTICED_WHEN_IT_VANISHES: &str = "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; \
    set tcp_keepalives_count = 3; set idle_in_transaction_session_timeout = '60s'";

/// Without the other joins a row is found by its key, for each row of a batch; nothing else is ever better here.
const PLAN_ONCE: &str = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_hashjoin = off; \
    set enable_mergejoin = off";

/// Tells the session which events its changes make; the default needs no telling.
const fn events_setting(events: EventsMode) -> Option<&'static str> {
    match events {
        EventsMode::Off => Some("set postrider.events = 'off'"),
        EventsMode::Final => None,
        EventsMode::All => Some("set postrider.events = 'all'"),
    }
}

fn open_pool(config: &StoreConfig, connections_max: u32, plans: Plans) -> Result<PgPool, StoreError> {
    let events = events_setting(config.events);
    let options: PgConnectOptions = config.url.expose_secret().parse()?;
    Ok(PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A ping before each use would be one round trip more for every statement; a broken connection is noticed anyway.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                if let Plans::Once = plans {
                    sqlx::raw_sql(PLAN_ONCE).execute(&mut *connection).await?;
                }
                if let Some(setting) = events {
                    sqlx::raw_sql(setting).execute(connection).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(options.application_name("postrider")))
}
