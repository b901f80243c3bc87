//! The daemon's role reads and writes rows and nothing else; its user at the broker may touch what is called `email.*`.
//!
//! Every daemon and command of these tests has that role and that user (`support::database`, `support::broker`), so that all
//! tests together show that it is enough; these show that it is not more.

use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use url::Url;

use crate::support::{
    daemon::Variables,
    database::{DAEMON_ROLE, Database},
    installation::Installation,
    process::postrider,
};

/// SQLSTATE of a statement; nothing: it did its work.
async fn sqlstate(connection: &mut PgConnection, statement: &str) -> Option<String> {
    match connection.execute(AssertSqlSafe(statement.to_owned())).await {
        Ok(_) => None,
        Err(sqlx::Error::Database(error)) => Some(error.code().unwrap_or_default().into_owned()),
        Err(error) => panic!("{statement}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_role_cannot_change_the_schema() {
    let database = Database::start().await;
    let mut daemon = PgConnection::connect(database.url()).await.expect("the daemon's role gets in");
    for statement in [
        "alter table email_messages add column more text",
        "alter table email_messages disable trigger all",
        "alter table email_messages owner to current_user",
        "drop table email_messages",
        "drop table store_facts cascade",
        "truncate email_messages",
        "truncate dead_letters cascade",
        "create table extra (id int)",
        "create view extra as select 1",
        "create function extra() returns int language sql as 'select 1'",
        "create or replace function refuse_to_rewrite() returns trigger language plpgsql as 'begin return new; end'",
        "create schema extra",
        "create index on email_messages (status)",
        "create trigger extra before update on email_messages for each row execute function refuse_to_rewrite()",
        "drop trigger never_changed on operator_changes",
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
         values (9999, 'x', true, '', 0)",
        "delete from _sqlx_migrations",
        "update _sqlx_migrations set checksum = ''",
        "set session_replication_role = replica",
        "copy email_messages to program 'cat'",
        "copy email_messages to '/tmp/never'",
        "create role extra",
        "select pg_read_file('/etc/hostname')",
    ] {
        let refused = sqlstate(&mut daemon, statement).await;
        assert_eq!(refused.as_deref(), Some("42501"), "{statement}");
    }
    // A row of the operators' history can be deleted by retention, but not rewritten by anybody.
    assert_eq!(sqlstate(&mut daemon, "select count(*) from email_messages, _sqlx_migrations").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_migration_brings_is_granted_with_it() {
    let database = Database::start().await;
    let mut owner = PgConnection::connect(database.owner_url()).await.expect("the owner gets in");
    let later = "create table later (id bigint generated always as identity primary key, serial bigserial, words text); \
        create function of_later() returns bigint language sql as 'select count(*) from later'";
    owner.execute(later).await.expect("the owner may");
    let mut daemon = PgConnection::connect(database.url()).await.expect("the daemon's role gets in");
    for statement in [
        "insert into later (words) values ('x')",
        "update later set words = 'y'",
        "select of_later()",
        "delete from later",
    ] {
        assert_eq!(sqlstate(&mut daemon, statement).await, None, "{statement}");
    }
    for statement in ["alter table later add column more text", "truncate later", "drop table later"] {
        assert_eq!(sqlstate(&mut daemon, statement).await.as_deref(), Some("42501"), "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_owner_migrates_and_only_a_limited_role_is_granted_to() {
    // The first makes the role, where no test has been before.
    let (_, database) = (Database::start().await, Database::without_schema().await);
    let of = |url: &str| -> Variables { [("DATABASE_URL".to_owned(), url.to_owned())].into() };
    let owner = of(database.owner_url());
    // One that owns nothing is refused; nothing is half done.
    let mut url = Url::parse(database.owner_url()).expect("a URL");
    url.set_username(DAEMON_ROLE).expect("a name");
    let said = postrider(&of(url.as_str()), &["migrate"]).await;
    assert!(said.code == 1 && said.err.contains("permission denied"), "{said:?}");

    let said = postrider(&owner, &["migrate", "--grant-to", "nobody_of_that_name"]).await;
    assert!(said.code == 1 && said.err.contains("create role nobody_of_that_name"), "{said:?}");
    let itself = Url::parse(database.owner_url()).expect("a URL").username().to_owned();
    let said = postrider(&owner, &["migrate", "--grant-to", &itself]).await;
    assert!(said.code == 1 && said.err.contains("superuser"), "{said:?}");
    let said = postrider(&owner, &["migrate", "--grant-to", DAEMON_ROLE, "--json"]).await.json();
    assert_eq!(said["granted_to"], DAEMON_ROLE);
    let mut daemon = PgConnection::connect(url.as_str()).await.expect("the daemon's role gets in");
    assert_eq!(sqlstate(&mut daemon, "insert into store_facts (name, value) values ('a', 'b')").await, None);
    // Twice is once.
    let said = postrider(&owner, &["migrate", "--grant-to", DAEMON_ROLE]).await;
    assert!(said.code == 0 && said.out.contains("change nothing else"), "{said:?}");
    // There is nothing to apply, so that everybody may ask for it; a daemon that is behind says so instead of failing later.
    let said = postrider(&of(url.as_str()), &["migrate"]).await;
    assert!(said.code == 1 || said.out.contains("up to date"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_a_daemons_user_may_touch_what_is_ours_and_nothing_else() {
    let post = Installation::start().await;
    let connection = lapin::Connection::connect(post.broker.url(), lapin::ConnectionProperties::default());
    let connection = connection.await.expect("it gets in");
    let admin = post.broker.channel().await;
    let made = admin.queue_declare("billing.inbox".into(), QueueDeclareOptions::durable(), Default::default()).await;
    made.expect("the admin may");
    let mut refused = Vec::new();
    for what in ["declare", "delete", "get", "publish", "exchange", "purge", "bind"] {
        // A refusal closes the channel, so each try has its own.
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(Default::default()).await.expect("confirms");
        let error = match what {
            "declare" => {
                channel.queue_declare("other".into(), QueueDeclareOptions::durable(), Default::default()).await.err()
            }
            "delete" => channel.queue_delete("billing.inbox".into(), Default::default()).await.err(),
            "get" => channel.basic_get("billing.inbox".into(), BasicGetOptions::default()).await.err(),
            "exchange" => channel
                .exchange_declare(
                    "other".into(),
                    lapin::ExchangeKind::Topic,
                    ExchangeDeclareOptions::default(),
                    Default::default(),
                )
                .await
                .err(),
            "purge" => channel.queue_purge("billing.inbox".into(), Default::default()).await.err(),
            "bind" => {
                let (queue, exchange) = ("billing.inbox".into(), "email.requests".into());
                channel.queue_bind(queue, exchange, "#".into(), Default::default(), Default::default()).await.err()
            }
            _ => {
                let sent = channel.basic_publish(
                    "amq.topic".into(),
                    "billing".into(),
                    Default::default(),
                    b"x",
                    Default::default(),
                );
                match sent.await {
                    Ok(confirm) => confirm.await.err(),
                    Err(error) => Some(error),
                }
            }
        };
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("ACCESS") || error.contains("403"), "{what}: {error}");
        refused.push(what);
    }
    assert_eq!(refused.len(), 7);
    // A producer may publish, and that is all.
    let url = post.broker.user("it-producer", ["^$", r"^email\.requests$", "^$"]).await;
    let mut producer = post.variables.clone();
    producer.insert("AMQP_URL".to_owned(), url.clone());
    let arguments = ["publish", "--template", "support_ticket_created", "--to", "ada@example.bj", "--sample"];
    let said = postrider(&producer, &arguments).await;
    assert_eq!(said.code, 0, "{said:?}");
    post.mails(1).await;
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default());
    let channel = connection.await.expect("it gets in").create_channel().await.expect("a channel");
    let got = channel.basic_get("email.standard".into(), BasicGetOptions::default()).await;
    assert!(got.is_err_and(|error| error.to_string().contains("ACCESS")), "it reads nobody's mail");
    admin.queue_delete("billing.inbox".into(), Default::default()).await.expect("the admin may");
    post.finish().await;
}
