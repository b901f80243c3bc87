//! PostgreSQL with sslmode=verify-full: only the right server is spoken to, and what is wrong with another is told.

use postrider::config::{AttachmentConfig, EventsMode, StoreConfig};
use postrider::store::Store;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use url::Url;

use crate::support::{
    authority::Authority,
    database::{Database, HASH_KEY},
    installation::Installation,
    process::postrider,
    proxy::Proxy,
    requests::ticket,
    service,
    tls_front::{Opening, TlsFront},
    wait::until_some,
};

/// What is said where the machine was too slow: it tells nothing of why, so that it is asked again.
const TOO_LATE: &str = "no answer within";
/// The role of TEST_CLIENT_CERT, whom no password lets in.
const CERTIFIED: &str = "postrider_certificate";

/// The URL with another host and port, and these parameters.
fn with(url: &str, host: &str, port: u16, parameters: &[(&str, &str)]) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_host(Some(host)).expect("a host");
    url.set_port(Some(port)).expect("a port");
    url.query_pairs_mut().clear().extend_pairs(parameters);
    url.into()
}

fn port_of(url: &str) -> u16 {
    Url::parse(url).expect("a URL").port().expect("a port")
}

/// Why there is no connection; nothing: there is one.
async fn refusal(url: &str) -> Option<String> {
    let config = StoreConfig {
        url: SecretString::from(url),
        connections_max: 2,
        fast_connections_max: 1,
        hash_key: SecretString::from(HASH_KEY),
        events: EventsMode::Final,
        attachments: AttachmentConfig::default(),
    };
    let store = Store::new(&config, std::time::Duration::from_secs(30)).expect("a store");
    let refused = until_some("an answer in time", async || {
        let refused = store.connect_once().await.err().map(|error| error.to_string());
        refused.as_ref().is_none_or(|words| !words.contains(TOO_LATE)).then_some(refused)
    })
    .await;
    store.close().await;
    refused
}

fn assert_tells(refusal: Option<String>, words: &[&str]) {
    let said = refusal.expect("it is refused");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_database_is_taken_by_its_name_and_authority_and_by_nothing_else() {
    let (url, ca) = (service("TEST_DATABASE_URL"), service("TEST_SMTP_CA"));
    let port = port_of(&url);
    let verified = [("sslmode", "verify-full"), ("sslrootcert", ca.as_str())];
    assert_eq!(refusal(&with(&url, "localhost", port, &verified)).await, None);
    assert_eq!(refusal(&with(&url, "127.0.0.1", port, &verified)).await, None);
    // The system's authorities alone do not know it, nor does a stranger's help.
    let of_it = ["sslrootcert in DATABASE_URL", "not signed by an authority", "CN=postrider dev CA", "valid from 20"];
    assert_tells(refusal(&with(&url, "localhost", port, &verified[..1])).await, &of_it);
    for name in ["Another authority", "postrider dev CA"] {
        let stranger = Authority::named(name, "localhost");
        let file = stranger.file();
        let by_stranger = [verified[0], ("sslrootcert", file.to_str().expect("UTF-8"))];
        assert_tells(refusal(&with(&url, "localhost", port, &by_stranger)).await, &of_it);
    }
    // A name that is not in its certificate.
    let line = Proxy::start_at([127, 0, 0, 2], &url).await;
    let said = refusal(&with(&url, "127.0.0.2", port_of(&line.url(&url)), &verified)).await;
    assert_tells(said, &["the host in DATABASE_URL", "127.0.0.2", "localhost, 127.0.0.1"]);
    // The same line is good enough for whoever does not ask for a name.
    let authority_only = [("sslmode", "verify-ca"), verified[1]];
    assert_eq!(refusal(&with(&url, "127.0.0.2", port_of(&line.url(&url)), &authority_only)).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_certificate_has_expired_is_refused_and_one_like_it_is_not() {
    let url = service("TEST_DATABASE_URL");
    for (authority, is_old) in
        [(Authority::for_host("localhost"), false), (Authority::with_expired_certificate("localhost"), true)]
    {
        let front = TlsFront::start(&url, authority.server.clone(), Opening::Postgres).await;
        let file = authority.file();
        let verified = [("sslmode", "verify-full"), ("sslrootcert", file.to_str().expect("UTF-8"))];
        let said = refusal(&with(&url, "localhost", front.port(), &verified)).await;
        if is_old {
            assert_tells(said, &["expired", "renewed", "valid from 2020-01-01 to 2021-01-01", "CN=An authority"]);
        } else {
            assert_eq!(said, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_works_with_a_verified_database_and_says_why_not_with_another() {
    let mut post = Installation::prepare(&[]).await;
    let url = post.database.url().to_owned();
    let ca = service("TEST_SMTP_CA");
    let verified = [("sslmode", "verify-full"), ("sslrootcert", ca.as_str())];
    post.set(&[("DATABASE_URL", &with(&url, "localhost", port_of(&url), &verified))]);
    post.start_daemon().await;
    let request = post.publish(&ticket("ada@example.bj")).await;
    post.database.wait_for(request, "sent").await;
    let encrypted: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
         where ssl and datname = current_database() and application_name = 'postrider'",
    )
    .fetch_one(&post.database.pool)
    .await
    .expect("an answer");
    assert!(encrypted > 0);
    assert_eq!(post.stop_daemon().await, std::process::ExitCode::SUCCESS);

    // Without the authority: readiness and check tell what is missing, and the daemon waits.
    post.set(&[("DATABASE_URL", &with(&url, "localhost", port_of(&url), &verified[..1]))]);
    post.launch_daemon().await;
    let reason = post.daemon().wait_until_not_ready("CN=postrider dev CA").await;
    assert!(reason.contains("sslrootcert"), "{reason}");
    post.stop_daemon().await;
    let said = until_some("an answer in time", async || {
        let said = post.run(&["check"]).await;
        (!said.out.contains(TOO_LATE)).then_some(said)
    })
    .await;
    assert!(said.code == 1 && said.out.contains("sslrootcert"), "{said:?}");
    // A file that is not there, and a parameter that is none, whose value a library would log.
    for (parameters, word) in [
        ([("sslmode", "verify-full"), ("sslrootcert", "/does/not/exist.pem")], "sslrootcert"),
        ([("sslmode", "verify-fully"), ("sslrootcert", ca.as_str())], "sslmode"),
        ([("sslmode", "verify-full"), ("pasword", "mistyped-but-secret")], "a parameter (2)"),
    ] {
        post.set(&[("DATABASE_URL", &with(&url, "localhost", port_of(&url), &parameters))]);
        let said = post.run(&["check"]).await;
        assert!(said.code == 78 && said.err.contains(word), "{word}: {said:?}");
        assert!(!format!("{said:?}").contains("mistyped"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_lets_a_role_in_that_no_password_does() {
    let database = Database::start().await;
    let mut owner = PgConnection::connect(database.owner_url()).await.expect("the owner gets in");
    // The server's own, and there for all tests that come.
    let made = owner.execute(AssertSqlSafe(format!("create role {CERTIFIED} login"))).await;
    assert!(made.is_ok() || format!("{made:?}").contains("42710"), "{made:?}");
    let (ca, certificate, key) = (service("TEST_SMTP_CA"), service("TEST_CLIENT_CERT"), service("TEST_CLIENT_KEY"));
    let mut url = Url::parse(database.owner_url()).expect("a URL");
    url.set_username(CERTIFIED).expect("a name");
    let by_certificate = [
        ("sslmode", "verify-full"),
        ("sslrootcert", ca.as_str()),
        ("sslcert", certificate.as_str()),
        ("sslkey", key.as_str()),
    ];
    let port = port_of(url.as_str());
    assert_eq!(refusal(&with(url.as_str(), "127.0.0.1", port, &by_certificate)).await, None);
    assert_tells(refusal(&with(url.as_str(), "127.0.0.1", port, &by_certificate[..2])).await, &["certificate"]);
    // No authority of the server's knows this one.
    let authority = Authority::for_host("localhost");
    let (strange, strange_key) = authority.stranger(CERTIFIED);
    let by_stranger = [
        by_certificate[0],
        by_certificate[1],
        ("sslcert", strange.to_str().expect("UTF-8")),
        ("sslkey", strange_key.to_str().expect("UTF-8")),
    ];
    assert_tells(refusal(&with(url.as_str(), "127.0.0.1", port, &by_stranger)).await, &["sslcert and sslkey"]);
    let said = postrider(
        &[("DATABASE_URL".to_owned(), with(url.as_str(), "127.0.0.1", port, &by_stranger[..3]))].into(),
        &["migrate"],
    )
    .await;
    assert!(said.code != 0, "{said:?}");
}
