//! amqps: only the right broker is spoken to, what is wrong with another is told, and a certificate of ours stands for a user.

use postrider::{
    broker::{Link, link::Purpose},
    config::{BrokerConfig, Environment, Settings},
};
use url::Url;

use crate::support::{
    authority::Authority,
    broker::Broker,
    daemon::Variables,
    installation::Installation,
    process::postrider,
    proxy::Proxy,
    requests::{incident, ticket},
    service,
    tls_front::{Opening, TlsFront},
};

/// The user of TEST_CLIENT_CERT.
const CERTIFIED: &str = "postrider_certificate";

fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn config(pairs: &[(&str, &str)]) -> BrokerConfig {
    let environment: Environment = pairs.iter().copied().collect();
    Settings::read(&environment, None).broker().unwrap_or_else(|faults| panic!("{faults}"))
}

/// Why there is no connection; nothing: there is one.
async fn refusal(pairs: &[(&str, &str)]) -> Option<String> {
    let made = match Link::new(&config(pairs), Purpose::Look) {
        Ok(link) => link.connect_once().await,
        Err(error) => Err(error),
    };
    match made {
        Ok(connection) => {
            connection.close(200, "seen".into()).await.expect("it says goodbye");
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

/// The real broker's URL with another host and port.
fn at(host: &str, port: u16) -> String {
    let mut url = Url::parse(&service("TEST_AMQPS_URL")).expect("a URL");
    url.set_host(Some(host)).expect("a host");
    url.set_port(Some(port)).expect("a port");
    url.into()
}

fn assert_tells(refusal: Option<String>, words: &[&str]) {
    let said = refusal.expect("it is refused");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_broker_is_taken_by_its_name_and_authority_and_by_nothing_else() {
    let (url, ca) = (service("TEST_AMQPS_URL"), service("TEST_SMTP_CA"));
    assert_eq!(refusal(&[("AMQP_URL", &url), ("AMQP_CA_FILE", &ca)]).await, None);
    // Its other name.
    let port = Url::parse(&url).expect("a URL").port().expect("a port");
    assert_eq!(refusal(&[("AMQP_URL", &at("127.0.0.1", port)), ("AMQP_CA_FILE", &ca)]).await, None);

    // The system's authorities alone do not know it, nor does a stranger's help, nor one that has its authority's name.
    let of_it = ["AMQP_CA_FILE", "localhost", "CN=postrider dev CA", "not signed by an authority", "valid from 20"];
    assert_tells(refusal(&[("AMQP_URL", &url)]).await, &of_it);
    for name in ["Another authority", "postrider dev CA"] {
        let stranger = Authority::named(name, "localhost");
        let file = stranger.file();
        assert_tells(refusal(&[("AMQP_URL", &url), ("AMQP_CA_FILE", file.to_str().expect("UTF-8"))]).await, &of_it);
    }
    // A name that is not in its certificate.
    let line = Proxy::start_at([127, 0, 0, 2], &url).await;
    let by_another_name = Url::parse(&line.url(&url)).expect("a URL").port().expect("a port");
    let said = refusal(&[("AMQP_URL", &at("127.0.0.2", by_another_name)), ("AMQP_CA_FILE", &ca)]).await;
    assert_tells(said, &["AMQP_URL", "(127.0.0.2)", "for localhost, 127.0.0.1", "CN=postrider dev CA"]);
    // The port that speaks plain.
    let plain = Url::parse(&service("TEST_AMQP_URL")).expect("a URL").port().expect("a port");
    let said = refusal(&[("AMQP_URL", &at("localhost", plain)), ("AMQP_CA_FILE", &ca)]).await;
    assert_tells(said, &["does not speak TLS", "5671", "AMQP_URL"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_certificate_has_expired_is_refused_and_one_like_it_is_not() {
    let plain = service("TEST_AMQP_URL");
    let fresh = Authority::for_host("localhost");
    let front = TlsFront::start(&plain, fresh.server.clone(), Opening::AtOnce).await;
    let (url, file) = (at("localhost", front.port()), fresh.file());
    assert_eq!(refusal(&[("AMQP_URL", &url), ("AMQP_CA_FILE", file.to_str().expect("UTF-8"))]).await, None);

    let old = Authority::with_expired_certificate("localhost");
    let front = TlsFront::start(&plain, old.server.clone(), Opening::AtOnce).await;
    let (url, file) = (at("localhost", front.port()), old.file());
    let said = refusal(&[("AMQP_URL", &url), ("AMQP_CA_FILE", file.to_str().expect("UTF-8"))]).await;
    assert_tells(said, &["expired", "renewed", "valid from 2020-01-01 to 2021-01-01", "CN=An authority"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_carries_mail_over_amqps_with_a_certificate_instead_of_a_password() {
    let mut post = Installation::prepare(&[]).await;
    post.broker.let_in(CERTIFIED).await;
    let mut url = Url::parse(&service("TEST_AMQPS_URL")).expect("a URL");
    url.set_path(post.broker.vhost());
    url.set_username("").expect("nobody");
    url.set_password(None).expect("nothing");
    url.set_query(Some("auth_mechanism=external"));
    let (ca, certificate, key) = (service("TEST_SMTP_CA"), service("TEST_CLIENT_CERT"), service("TEST_CLIENT_KEY"));
    post.set(&[
        ("AMQP_URL", url.as_str()),
        ("AMQP_CA_FILE", &ca),
        ("AMQP_CLIENT_CERT_FILE", &certificate),
        ("AMQP_CLIENT_KEY_FILE", &key),
    ]);
    post.start_daemon().await;
    post.publish(&ticket("ada@example.bj")).await;
    post.publish(&incident("noc@example.bj")).await;
    // Whoever watches over the network hears of incidents as well.
    assert!(post.mails(3).await.iter().any(|mail| mail.envelope_to == "ada@example.bj"));
    let checked = post.run(&["check"]).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_the_broker_does_not_take_is_told_with_its_setting() {
    let (broker, authority) = (Broker::start().await, Authority::for_host("localhost"));
    let mut url = Url::parse(&service("TEST_AMQPS_URL")).expect("a URL");
    url.set_path(broker.vhost());
    let with_password = url.to_string();
    url.set_query(Some("auth_mechanism=external"));
    let (ca, certificate, key) = (service("TEST_SMTP_CA"), service("TEST_CLIENT_CERT"), service("TEST_CLIENT_KEY"));
    let (ca, certificate, key) = (ca.as_str(), certificate.as_str(), key.as_str());
    let (url, with_password) = (url.as_str(), with_password.as_str());
    let by = |url: &str, certificate: &str, key: &str| {
        let pairs = [
            ("AMQP_URL", url.to_owned()),
            ("AMQP_CA_FILE", ca.to_owned()),
            ("AMQP_CLIENT_CERT_FILE", certificate.to_owned()),
            ("AMQP_CLIENT_KEY_FILE", key.to_owned()),
        ];
        async move {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
            refusal(&pairs).await
        }
    };
    // Beside a password it is shown, and that is all.
    assert_eq!(by(with_password, certificate, key).await, None);
    // No authority of the broker's knows this one.
    let (strange, strange_key) = authority.stranger(CERTIFIED);
    let (strange, strange_key) = (strange.to_str().expect("UTF-8"), strange_key.to_str().expect("UTF-8"));
    assert_tells(by(with_password, strange, strange_key).await, &["AMQP_CLIENT_CERT_FILE"]);
    // Key and certificate of two different people.
    assert_tells(by(with_password, certificate, strange_key).await, &["AMQP_CLIENT_KEY_FILE"]);
    // Settings that cannot be meant.
    for (wrong, word) in [
        ([("AMQP_URL", url), ("AMQP_CA_FILE", ca)], "AMQP_CLIENT_CERT_FILE"),
        ([("AMQP_URL", "amqp://localhost?auth_mechanism=external"), ("AMQP_CA_FILE", ca)], "amqps://"),
        ([("AMQP_URL", with_password), ("AMQP_CLIENT_CERT_FILE", certificate)], "AMQP_CLIENT_KEY_FILE"),
        ([("AMQP_URL", with_password), ("AMQP_CLIENT_KEY_FILE", certificate)], "holds no PEM private key"),
    ] {
        let said = postrider(&variables(&wrong), &["events", "tail"]).await;
        assert!(said.code == 78 && said.err.contains(word), "{word}: {said:?}");
    }
}
