//! TLS and credentials: required means required, and nothing travels in plain that should not.

use std::sync::Arc;

use postrider::{
    config::{RelayCredentials, RelayTls, SmtpConfig},
    email::{Outcome, Phase, SendReport},
    smtp::{Capabilities, RelayError, RelayFault, RelayState, TlsSetupError, classify},
};
use secrecy::SecretString;

use crate::{
    smtp_session::{relays, send},
    support::{
        authority::Authority,
        relay::{Act, Offer, Relay, Rule},
    },
};

const MESSAGE: &[u8] = b"Subject: x\r\n\r\ny\r\n";

async fn probe(config: &SmtpConfig) -> Result<Capabilities, RelayError> {
    let relays = relays(config);
    relays.probe(&config.relays[0].name).await.expect("the relay is in the settings")
}

#[tokio::test]
async fn mail_and_credentials_travel_under_tls() {
    let authority = Authority::for_host("localhost");
    let credentials = Some(("user".to_owned(), "sécret".to_owned()));
    let offers = [
        Offer { starttls: Some(Arc::clone(&authority.server)), credentials: credentials.clone(), ..Offer::default() },
        Offer { implicit_tls: Some(Arc::clone(&authority.server)), credentials, ..Offer::default() },
    ];
    // More than one TLS record, and not a whole number of them.
    let message = "0123456789\r\n".repeat(100_001).into_bytes();
    for offer in offers {
        let relay = Relay::with(offer).await;
        let relays = relays(&authority.trusted(&relay));
        for to in ["a@example.bj", "b@example.bj"] {
            let report = send(&relays, to, &message).await;
            assert!(matches!(report, SendReport::Accepted { .. }), "{report:?}");
        }
        let mails = relay.wait_for_mails(2).await;
        assert!(mails.iter().all(|mail| mail.is_encrypted && mail.user.as_deref() == Some("user")));
        assert!(mails.iter().all(|mail| mail.connection == 1 && mail.content == message));
    }
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let authority = Authority::for_host("localhost");
    let relay = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    let mut config = relay.smtp_config();
    // A stranger, and one that goes by the same name. (Nobody at all would be tried against the system's authorities.)
    for name in ["Another authority", "An authority"] {
        let stranger = Authority::named(name, "localhost");
        config.relays[0].ca_file = Some(stranger.file());
        let error = probe(&config).await.expect_err("nobody trusts it");
        assert_eq!((error.fault, error.phase), (RelayFault::Tls, Phase::StartTls));
        assert!(error.words.contains("SMTP_CA_FILE"), "{error}");
    }
    assert!(!relay.log().was_told("MAIL"));
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let authority = Authority::for_host("elsewhere.example.bj");
    let relay = Relay::with(Offer { implicit_tls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    let error = probe(&authority.trusted(&relay)).await.expect_err("it is not for localhost");
    assert_eq!(error.fault, RelayFault::Tls);
    assert!(error.words.contains("SMTP_HOST"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_refused() {
    let authority = Authority::with_expired_certificate("localhost");
    let relay = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    let error = probe(&authority.trusted(&relay)).await.expect_err("it is too old");
    assert_eq!((error.fault, error.phase), (RelayFault::Tls, Phase::StartTls));
    assert!(error.words.contains("expired"), "{error}");
    assert!(!relay.log().was_told("MAIL"));
}

#[tokio::test]
async fn without_starttls_nothing_is_sent_in_plain() {
    let authority = Authority::for_host("localhost");
    let relay = Relay::with(Offer { credentials: Some(("user".into(), "secret".into())), ..Offer::default() }).await;
    let mut config = authority.trusted(&relay);
    config.relays[0].tls = RelayTls::StartTls;
    let error = probe(&config).await.expect_err("STARTTLS is required");
    assert_eq!(error.fault, RelayFault::NoStartTls);
    assert!(error.words.contains("SMTP_USE_TLS"), "{error}");
    let log = relay.log();
    assert!(!log.was_told("AUTH") && !log.was_told("MAIL"), "{}", log.dialogue());
}

#[tokio::test]
async fn a_refused_starttls_is_not_worked_around() {
    let authority = Authority::for_host("localhost");
    let relay = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    relay.script(Rule::at(Phase::StartTls, Act::reply("454 4.7.0 TLS not available")));
    assert_eq!(probe(&authority.trusted(&relay)).await.expect_err("no TLS, no mail").fault, RelayFault::Tls);
    assert_eq!(relay.log().verbs(), ["EHLO", "STARTTLS"]);
}

#[tokio::test]
async fn plain_bytes_behind_the_go_ahead_for_tls_are_a_fault() {
    let authority = Authority::for_host("localhost");
    let relay = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    relay.script(Rule::at(Phase::StartTls, Act::bytes(b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n")));
    let error = probe(&authority.trusted(&relay)).await.expect_err("somebody interferes");
    assert_eq!(error.fault, RelayFault::Tls);
    assert!(error.words.contains("in plain"), "{error}");
}

#[tokio::test]
async fn tls_towards_a_port_that_speaks_plain_says_so() {
    let authority = Authority::for_host("localhost");
    let relay = Relay::start().await;
    let mut config = authority.trusted(&relay);
    config.relays[0].tls = RelayTls::Implicit;
    let error = probe(&config).await.expect_err("it speaks plain");
    assert_eq!(error.fault, RelayFault::Tls);
    assert!(error.words.contains("465"), "{error}");
}

#[tokio::test]
async fn an_unusable_ca_file_is_found_at_start() {
    let authority = Authority::for_host("localhost");
    let relay = Relay::with(Offer { starttls: Some(Arc::clone(&authority.server)), ..Offer::default() }).await;
    let mut config = authority.trusted(&relay);
    std::fs::write(authority.file(), "not a certificate").expect("a file");
    assert!(matches!(postrider::smtp::Relays::new(&config), Err(TlsSetupError::CaFileEmpty { .. })));
    config.relays[0].ca_file = Some(authority.directory.path().join("absent.pem"));
    assert!(matches!(postrider::smtp::Relays::new(&config), Err(TlsSetupError::CaFile { .. })));
}

#[tokio::test]
async fn wrong_credentials_are_a_fault_of_the_platform() {
    for mechanisms in ["PLAIN", "LOGIN", "LOGIN PLAIN"] {
        let relay = Relay::with(Offer {
            credentials: Some(("user".into(), "secret".into())),
            mechanisms: mechanisms.into(),
            ..Offer::default()
        })
        .await;
        let mut config = relay.smtp_config();
        probe(&config).await.expect("these are right");
        let password = SecretString::from("wrong");
        config.relays[0].credentials = Some(RelayCredentials { user: "user".into(), password });
        let error = probe(&config).await.expect_err("these are wrong");
        assert_eq!(error.fault, RelayFault::Auth, "{mechanisms}");
        assert!(error.words.contains("SMTP_PASSWORD") && !error.words.contains("wrong"), "{error}");
    }
    // Credentials that the relay cannot take.
    let relay = Relay::start().await;
    let mut config = relay.smtp_config();
    config.relays[0].credentials = Some(RelayCredentials { user: "user".into(), password: SecretString::from("x") });
    assert_eq!(probe(&config).await.expect_err("no AUTH here").fault, RelayFault::Auth);
}

#[tokio::test]
async fn missing_credentials_burn_no_attempt_and_open_the_breaker() {
    let relay = Relay::with(Offer { credentials: Some(("user".into(), "secret".into())), ..Offer::default() }).await;
    let mut config = relay.smtp_config();
    config.relays[0].credentials = None;
    let relays = relays(&config);
    let report = send(&relays, "a@example.bj", MESSAGE).await;
    assert!(matches!(&report, SendReport::Refused { phase: Phase::Mail, reply } if reply.code == 530), "{report:?}");
    assert!(matches!(classify(&report), Outcome::Deferred { counted: false, .. }));
    let state = relays.health().remove(0).state;
    assert!(matches!(&state, RelayState::Down { error, .. } if error.fault == RelayFault::Auth), "{state:?}");
}
