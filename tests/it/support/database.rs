use std::{path::Path, sync::Arc, time::Duration};

use postrider::{
    config::{AttachmentConfig, EventsMode, StoreConfig},
    store::Store,
};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::sync::OnceCell;
use url::Url;

use super::{clean_up, service, unique_name};

/// `EMAIL_HASH_KEY` of every test.
pub const HASH_KEY: &str = "a key of tests, long enough to be taken";
/// Held while the template is made, by whichever test process comes first.
const TEMPLATE_LOCK: i64 = 0x706f_7374_7269_6465;

/// The role of every daemon and command of a test: it may do what `postrider migrate --grant-to` gives, and no more.
pub const DAEMON_ROLE: &str = "it_daemon";

/// A database with the schema in it, dropped at the end.
pub struct Database {
    name: String,
    admin_url: Url,
    url: String,
    owner_url: String,
    /// For the test's own questions.
    pub pool: PgPool,
}

impl Database {
    /// A fresh database, copied from one that all migrations were applied to.
    pub async fn start() -> Self {
        static TEMPLATE: OnceCell<String> = OnceCell::const_new();
        let admin_url = Url::parse(&service("TEST_DATABASE_URL")).expect("TEST_DATABASE_URL is a URL");
        let template = TEMPLATE.get_or_init(|| template(&admin_url)).await;
        let mut database = Self::create(admin_url, &format!("template {template}")).await;
        database.url = as_daemon(&database.url);
        database
    }

    /// A fresh database with nothing in it, not even a schema; its owner is whom `url` means.
    pub async fn without_schema() -> Self {
        let admin_url = Url::parse(&service("TEST_DATABASE_URL")).expect("TEST_DATABASE_URL is a URL");
        Self::create(admin_url, "").await
    }

    async fn create(admin_url: Url, how: &str) -> Self {
        let name = unique_name();
        let mut admin = connect(&admin_url).await;
        run(&mut admin, format!("create database {name} {how}")).await;
        let url = named(&admin_url, &name);
        let pool = PgPoolOptions::new().max_connections(3).connect_lazy(&url).expect("a URL of PostgreSQL");
        Self { name, admin_url, owner_url: url.clone(), url, pool }
    }

    /// What `DATABASE_URL` is set to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same for whoever owns the tables.
    pub fn owner_url(&self) -> &str {
        &self.owner_url
    }
}

impl Database {
    /// A store of its own, as a daemon has one.
    pub fn store(&self) -> Arc<Store> {
        Store::new(&config(&self.url), Duration::from_secs(30)).expect("a store")
    }

    /// The same that keeps attachments so.
    pub fn store_keeping(&self, attachments: AttachmentConfig) -> Arc<Store> {
        let config = StoreConfig { attachments, connections_max: 4, ..config(&self.url) };
        Store::new(&config, Duration::from_secs(30)).expect("a store")
    }
}

fn config(url: &str) -> StoreConfig {
    StoreConfig {
        url: SecretString::from(url),
        connections_max: 1,
        fast_connections_max: 1,
        hash_key: SecretString::from(HASH_KEY),
        events: EventsMode::Final,
        attachments: AttachmentConfig::default(),
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (name, admin_url) = (self.name.clone(), self.admin_url.clone());
        clean_up(|| async move {
            if let Ok(mut admin) = PgConnection::connect(admin_url.as_str()).await {
                let _ = admin.execute(AssertSqlSafe(format!("drop database {name} with (force)"))).await;
            }
        });
    }
}

/// The database that the others are copied from, named after what the migrations say.
async fn template(admin_url: &Url) -> String {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> =
        std::fs::read_dir(migrations).expect("migrations").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        // Its number is what the database remembers.
        hash.update(file.file_name().expect("a name").as_encoded_bytes());
        hash.update(std::fs::read(file).expect("a migration"));
    }
    hash.update(include_bytes!("../../../src/store/grants.rs"));
    let name = format!("it_template_{}", &hex::encode(hash.finalize())[..12]);
    let mut admin = connect(admin_url).await;
    // Released with the connection.
    sqlx::query("select pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut admin).await.expect("a lock");
    // The server's own, for all databases: under the lock, because two who alter one role at once hurt each other.
    let password = admin_url.password().unwrap_or_default();
    if !role_exists(&mut admin, DAEMON_ROLE).await {
        run(&mut admin, format!("create role {DAEMON_ROLE} login password '{password}'")).await;
    }
    let exists: bool = sqlx::query_scalar("select exists (select 1 from pg_database where datname = $1)")
        .bind(&name)
        .fetch_one(&mut admin)
        .await
        .expect("an answer");
    if !exists {
        let unfinished = format!("{name}_new");
        run(&mut admin, format!("drop database if exists {unfinished} with (force)")).await;
        run(&mut admin, format!("create database {unfinished}")).await;
        let store = Store::new(&config(&named(admin_url, &unfinished)), Duration::from_secs(30)).expect("a store");
        store.migrate().await.expect("the migrations apply");
        store.grant_to(DAEMON_ROLE).await.expect("the daemon's role is given what it needs");
        store.close().await;
        // Only what is whole gets the name that others look for.
        run(&mut admin, format!("alter database {unfinished} rename to {name}")).await;
    }
    name
}

async fn role_exists(admin: &mut PgConnection, role: &str) -> bool {
    let found = sqlx::query_scalar("select exists (select 1 from pg_roles where rolname = $1)").bind(role);
    found.fetch_one(admin).await.expect("an answer")
}

/// The same database for the daemon's role.
fn as_daemon(url: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_username(DAEMON_ROLE).expect("a URL with a host");
    url.into()
}

async fn connect(url: &Url) -> PgConnection {
    PgConnection::connect(url.as_str())
        .await
        .unwrap_or_else(|error| panic!("PostgreSQL cannot be reached ({error}): run ./deploy/dev test"))
}

async fn run(connection: &mut PgConnection, statement: String) {
    connection.execute(AssertSqlSafe(statement)).await.expect("PostgreSQL does it");
}

fn named(admin_url: &Url, database: &str) -> String {
    let mut url = admin_url.clone();
    url.set_path(database);
    url.into()
}

impl Database {
    /// How many receipts of feedback there are.
    pub async fn receipts(&self) -> i64 {
        sqlx::query_scalar("select count(*) from webhook_events").fetch_one(&self.pool).await.expect("an answer")
    }
}
