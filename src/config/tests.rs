//! Settings as operators write them, right and wrong.

use std::{fs, path::PathBuf, time::Duration};

use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;
use crate::email::attachment::FileType;

mod sources;

const HASH_KEY: &str = "0123456789abcdef0123456789abcdef";
/// What must be given, and nothing else.
const REQUIRED: [(&str, &str); 5] = [
    ("AMQP_URL", "amqp://user:amqp-secret@broker.example:5672/%2f"),
    ("DATABASE_URL", "postgres://user:database-secret@db.example/postrider"),
    ("EMAIL_HASH_KEY", HASH_KEY),
    ("SMTP_HOST", "mail.example"),
    ("SMTP_FROM_EMAIL", "noreply@rgz.bj"),
];

fn environment(more: &[(&str, &str)]) -> Environment {
    REQUIRED.iter().chain(more).copied().collect()
}

fn load(more: &[(&str, &str)]) -> Result<Config, Faults> {
    Config::load(&environment(more), None)
}

fn faults(more: &[(&str, &str)]) -> Vec<Fault> {
    load(more).expect_err("faults").iter().cloned().collect()
}

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).expect("writable");
    path
}

fn labels(faults: &Faults) -> Vec<String> {
    faults.iter().map(|fault| fault.setting.split(" (").next().unwrap_or_default().to_owned()).collect()
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn what_is_required_is_enough_and_the_rest_has_its_default() {
    let config = load(&[]).expect("valid");
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.broker.queue_type, QueueType::Quorum);
    assert_eq!(config.broker.topology, TopologyMode::Declare);
    assert_eq!(config.broker.prefetch, PerLane { fast: 32, standard: 64, bulk: 64 });
    assert_eq!(config.broker.ladders.fast, [1, 5, 20, 60].map(seconds));
    assert_eq!(config.broker.ladders.standard, [10, 300, 1800, 7200].map(seconds));
    assert_eq!(config.broker.ladders.bulk, [60, 900, 7200, 21600].map(seconds));
    assert!(config.broker.archive);
    assert_eq!((config.store.connections_max, config.store.fast_connections_max), (10, 3));
    let [relay] = config.smtp.relays.as_slice() else { panic!("one relay") };
    assert_eq!((relay.name.as_str(), relay.port, relay.tls), ("mail.example:587", 587, RelayTls::StartTls));
    assert!(relay.credentials.is_none() && !config.smtp.helo_name.is_empty());
    assert_eq!((config.smtp.step_timeout, config.smtp.dot_timeout), (seconds(30), seconds(600)));
    assert_eq!(config.smtp.connections, PerLane { fast: 4, standard: 8, bulk: 4 });
    assert_eq!((config.mail.message_id_domain.as_str(), config.mail.timezone.name()), ("rgz.bj", "Africa/Porto-Novo"));
    assert_eq!(config.mail.templates_dir, PathBuf::from("templates"));
    let pipeline = &config.pipeline;
    assert_eq!(pipeline.attachment_types, FileType::ALL);
    assert_eq!(pipeline.attachment_bytes_max, 10 * 1024 * 1024);
    assert_eq!((pipeline.p0_sources.as_slice(), pipeline.tries_default), (["incident".to_owned()].as_slice(), 3));
    assert_eq!(pipeline.age_max, PerLane { fast: seconds(3600), standard: seconds(86400), bulk: seconds(86400) });
    assert_eq!(pipeline.not_before_max, seconds(30 * 86400));
    assert_eq!(
        (pipeline.unknown_wait, pipeline.lease, pipeline.shutdown_grace),
        (seconds(60), seconds(30), seconds(60))
    );
    assert_eq!((pipeline.audit_retention, pipeline.anonymize_after), (seconds(365 * 86400), seconds(90 * 86400)));
    assert_eq!(pipeline.retention_every, seconds(3600));
    assert_eq!(pipeline.rate_limit_transactional, RateLimit::Unlimited);
    assert_eq!(pipeline.rate_limit_marketing, RateLimit::PerDay(1));
    assert_eq!(config.store.events, EventsMode::Final);
    assert_eq!(config.http.admin_addr.to_string(), "127.0.0.1:8025");
    assert!(config.http.webhook_addr.is_none() && config.http.tokens.is_empty());
    assert_eq!((config.log.format, config.log.filter.as_str()), (LogFormat::Json, "info"));
}

#[test]
fn everything_missing_is_listed_at_once() {
    let faults = Config::load(&Environment::default(), None).expect_err("faults");
    assert_eq!(labels(&faults), REQUIRED.map(|(name, _)| name));
    let text = faults.to_string();
    assert!(text.starts_with("5 settings are wrong:\n\n  AMQP_URL: is missing\n"), "{text}");
    assert!(text.contains("openssl rand -hex 32") && text.contains("example: SMTP_HOST=mail.rgz.bj"), "{text}");
}

#[test]
fn what_is_set_to_nothing_counts_as_unset() {
    assert!(load(&[("SMTP_USER", ""), ("SMTP_PORT", ""), ("WEBHOOK_ADDR", "")]).is_ok());
    assert_eq!(labels(&load(&[("AMQP_URL", "")]).expect_err("missing")), ["AMQP_URL"]);
}

#[test]
fn each_bad_value_is_a_fault_of_its_setting() {
    for (name, value, problem) in [
        ("AMQP_URL", "http://broker", "does not start with amqp:// or amqps://"),
        ("AMQP_URL", "amqp://u:p/w@broker", "is not a URL"),
        ("AMQP_URL", "amqp://broker/a/b", "%2f"),
        ("AMQP_CA_FILE", "/nonexistent/ca.pem", "cannot be read"),
        ("AMQP_QUEUE_TYPE", "mirrored", "\"mirrored\" is not one of quorum, classic"),
        ("AMQP_TOPOLOGY", "passive", "is not one of declare, verify, none"),
        ("DATABASE_URL", "mysql://db/x", "does not start with postgres://"),
        ("DATABASE_CONNECTIONS_MAX", "1", "\"1\" is not a whole number from 2 to 200"),
        ("DATABASE_FAST_CONNECTIONS_MAX", "-1", "is not a whole number from 1 to 50"),
        ("EMAIL_HASH_KEY", "short", "is shorter than 32 characters"),
        ("EMAIL_PREFETCH_FAST", "2001", "is not a whole number from 1 to 2000"),
        ("EMAIL_PREFETCH_FAST", "3", "is 3, less than the 4 of SMTP_CONNECTIONS_FAST"),
        ("SMTP_CONNECTIONS_BULK", "0", "is not a whole number from 1 to 500"),
        ("EMAIL_LADDER_FAST", "1s,1s", "steps that do not rise"),
        ("EMAIL_LADDER_FAST", "50ms", "a step that is not from 100ms to 24h"),
        ("EMAIL_LADDER_BULK", "25h", "a step that is not from 100ms to 24h"),
        ("EMAIL_LADDER_BULK", "1,5,20", "a step that is not a number with a unit"),
        ("EMAIL_LADDER_BULK", "1s,2s,3s,4s,5s,6s,7s,8s,9s,10s,11s,12s,13s", "more than 12 steps"),
        ("DEAD_LETTER_ARCHIVE", "maybe", "is neither true nor false"),
        ("SMTP_HOST", "mail.example:587", "is not a host name or address"),
        ("SMTP_PORT", "0", "is not a whole number from 1 to 65535"),
        ("SMTP_USE_TLS", "starttls", "is neither true nor false"),
        ("SMTP_HELO_NAME", "bad name", "is neither a host name nor"),
        ("SMTP_TIMEOUT_SECONDS", "0", "is not a whole number from 1 to 600"),
        ("SMTP_FROM_EMAIL", "noreply", "is not an e-mail address: the address has no @"),
        ("SMTP_FROM_NAME", "a\r\nBcc: x", "is not a text of 1 to 100 printable characters"),
        ("SMTP_REPLY_TO", "a@b", "is not an e-mail address"),
        ("EMAIL_MESSAGE_ID_DOMAIN", "localhost", "is not a domain name with a dot"),
        ("EMAIL_SUPPORT_PHONE", "+229-XXXXX", "is not a telephone number"),
        ("EMAIL_TIMEZONE", "Cotonou", "\"Cotonou\" is not a time zone"),
        ("EMAIL_ALLOWED_ATTACHMENT_TYPES", "pdf,exe", "is not one of pdf, png, jpg, json, csv"),
        ("EMAIL_MAX_ATTACHMENT_SIZE_MB", "ten", "is not a whole number from 1 to 100"),
        ("SMTP_RETRY_MAX_ATTEMPTS", "0", "is not a whole number from 1 to 20"),
        ("EMAIL_P0_SOURCES", "Incident", "lower-case letters"),
        ("EMAIL_RATE_LIMIT_MARKETING", "0/day", "is neither unlimited nor N/day nor N/week"),
        ("EMAIL_RATE_LIMIT_TRANSACTIONAL", "5/hour", "is neither unlimited nor N/day nor N/week"),
        ("EMAIL_AGE_MAX_FAST", "8d", "is not from 1s to 7d"),
        ("EMAIL_MAX_NOT_BEFORE_DAYS", "366", "is not a whole number from 0 to 365"),
        ("EMAIL_LEASE_SECONDS", "0", "is not a whole number from 1 to 600"),
        ("EMAIL_EVENTS", "some", "is not one of off, final, all"),
        ("EMAIL_AUDIT_RETENTION_DAYS", "31", "is not more than EMAIL_MAX_NOT_BEFORE_DAYS plus"),
        ("EMAIL_AUTO_ANONYMIZE_AFTER_DAYS", "366", "is more than EMAIL_AUDIT_RETENTION_DAYS"),
        ("EMAIL_RETENTION_EVERY", "25h", "is not from 1s to 24h"),
        ("ADMIN_ADDR", "localhost", "is not an IP address with a port"),
        ("WEBHOOK_ADDR", "127.0.0.1:8025", "is the same as ADMIN_ADDR"),
        ("ADMIN_TOKENS", "ops:admin", "an entry (1) that is not name:role:token"),
        ("ADMIN_TOKENS", "ops:root:0123456789abcdef", "whose role is not one of viewer, operator, admin"),
        ("ADMIN_TOKENS", "Ops:admin:0123456789abcdef", "whose name is not 1 to 64 characters of a-z 0-9 -"),
        ("ADMIN_TOKENS", "ops:admin:0123456789abcde", "whose token is not 16 or more"),
        ("ADMIN_HOSTS", "rgz.bj,https://rgz.bj", "an entry (2) that is not a host name without scheme and port"),
        ("ADMIN_HOSTS", "192.0.2.1", "an entry (1) that is not a host name without scheme and port"),
        ("ADMIN_TRUSTED_PROXIES", "10.0.0.0/8,proxy", "an entry (2) that is not an IP address or a network"),
        ("WEBHOOK_TRUSTED_PROXIES", "10.0.0.0/33", "an entry (1) that is not an IP address or a network"),
        ("ADMIN_CONNECTIONS_MAX", "7", "is not a whole number from 8 to 10000"),
        ("WEBHOOK_CONNECTIONS_PER_ADDRESS_MAX", "0", "is not a whole number from 4 to 10000"),
        ("SNS_TOPIC_ARNS", "ses-events", "an entry (1) that is not arn:PARTITION:sns:REGION:ACCOUNT:NAME"),
        ("SNS_TOPIC_ARNS", "arn:aws:sns:eu-west-1:123456789012:a", "is set without WEBHOOK_ADDR"),
        ("SNS_SIGNATURE_VERSION", "3", "is not one of 1, 2"),
        ("SNS_AGE_MAX", "59m", "is not from 1h to 14d"),
        ("SNS_CA_FILE", "/nowhere/ca.pem", "cannot be read"),
        ("SNS_SIGNING_CERT_FILE", "/dev/null", "is empty"),
        ("LOG_FORMAT", "xml", "is not one of json, text"),
        ("LOG_LEVEL", "inof", "\"inof\" is not a log filter"),
    ] {
        let faults = faults(&[(name, value)]);
        // A retention that is too short is also shorter than the anonymisation's default.
        assert!(faults.iter().any(|f| f.setting == name && f.problem.contains(problem)), "{name}={value}: {faults:?}");
        assert!(faults.len() == 1 || name == "EMAIL_AUDIT_RETENTION_DAYS", "{name}={value}: {faults:?}");
        assert!(faults[0].accepts.starts_with("accepts "), "{faults:?}");
    }
}

#[test]
fn all_bad_values_are_listed_at_once() {
    let faults = load(&[("SMTP_PORT", "x"), ("ADMIN_ADDR", "x"), ("EMAIL_LADDER_BULK", "x"), ("AMQP_URL", "x")]);
    assert_eq!(labels(&faults.expect_err("faults")), ["AMQP_URL", "EMAIL_LADDER_BULK", "SMTP_PORT", "ADMIN_ADDR"]);
}

#[test]
fn good_values_are_understood() {
    let config = load(&[
        ("SMTP_PORT", " 465 "),
        ("SMTP_USER", "user"),
        ("SMTP_PASSWORD", " spaces stay "),
        ("EMAIL_LADDER_FAST", "100ms, 2s"),
        ("EMAIL_ALLOWED_ATTACHMENT_TYPES", "JPEG,jpg, pdf"),
        ("EMAIL_RATE_LIMIT_MARKETING", "3/week"),
        ("EMAIL_P0_SOURCES", "incident,noc"),
        ("ADMIN_TOKENS", "ops:admin:0123456789abcdef,eyes:viewer:fedcba9876543210:x"),
        ("WEBHOOK_ADDR", "0.0.0.0:8026"),
        ("SNS_TOPIC_ARNS", "arn:aws:sns:eu-west-1:123456789012:a, arn:aws-cn:sns:cn-north-1:123456789012:b"),
        ("SNS_SIGNATURE_VERSION", "1"),
        ("SNS_AGE_MAX", "14d"),
        ("LOG_LEVEL", "info,postrider=debug"),
    ])
    .expect("valid");
    let relay = &config.smtp.relays[0];
    assert_eq!(relay.tls, RelayTls::Implicit);
    let credentials = relay.credentials.as_ref().expect("credentials");
    assert_eq!((credentials.user.as_str(), credentials.password.expose_secret()), ("user", " spaces stay "));
    assert_eq!(config.broker.ladders.fast, [Duration::from_millis(100), seconds(2)]);
    assert_eq!(config.pipeline.attachment_types, [FileType::Jpeg, FileType::Pdf]);
    assert_eq!(config.pipeline.rate_limit_marketing, RateLimit::PerWeek(3));
    assert_eq!(config.pipeline.p0_sources, ["incident", "noc"]);
    let [ops, eyes] = config.http.tokens.as_slice() else { panic!("two tokens") };
    assert_eq!((ops.name.as_str(), ops.role, eyes.role), ("ops", Role::Admin, Role::Viewer));
    assert_eq!(eyes.token.expose_secret(), "fedcba9876543210:x");

    let topics: Vec<_> = config.sns.topics.iter().map(TopicArn::host).collect();
    assert_eq!(topics, ["sns.eu-west-1.amazonaws.com", "sns.cn-north-1.amazonaws.com.cn"]);
    assert_eq!((config.sns.signature_version, config.sns.age_max), (SignatureVersion::V1, seconds(14 * 86400)));
    assert_eq!(config.feedback_addr(), config.http.webhook_addr);

    let deaf = load(&[("WEBHOOK_ADDR", "0.0.0.0:8026")]).expect("valid");
    assert_eq!(deaf.feedback_addr(), None);
    assert!(deaf.warnings.iter().any(|warning| warning.contains("SNS_TOPIC_ARNS")), "{:?}", deaf.warnings);

    let unarchived = load(&[("DEAD_LETTER_ARCHIVE", "false")]).expect("valid");
    assert!(
        unarchived.warnings.iter().any(|warning| warning.contains("neither anonymised")),
        "{:?}",
        unarchived.warnings
    );

    let plain = load(&[("SMTP_USE_TLS", "false"), ("SMTP_PORT", "465")]).expect("valid");
    assert_eq!(plain.smtp.relays[0].tls, RelayTls::Plain);
}

#[test]
fn user_and_password_come_together() {
    assert_eq!(labels(&load(&[("SMTP_USER", "u")]).expect_err("half")), ["SMTP_PASSWORD"]);
    assert_eq!(labels(&load(&[("SMTP_PASSWORD", "p")]).expect_err("half")), ["SMTP_USER"]);
}

#[test]
fn tokens_and_their_names_are_unique() {
    for (tokens, what) in [
        ("a:admin:0123456789abcdef,a:viewer:fedcba9876543210", "(1 and 2) with the same name"),
        ("a:admin:0123456789abcdef,b:viewer:0123456789abcdef", "(1 and 2) with the same token"),
    ] {
        let faults = faults(&[("ADMIN_TOKENS", tokens)]);
        assert!(faults[0].problem.contains(what), "{faults:?}");
    }
}

#[test]
fn a_command_needs_only_its_part() {
    let with = |pairs: &[(&str, &str)]| Settings::read(&pairs.iter().copied().collect(), None);
    let [amqp, database, key, host, from] = REQUIRED;
    assert!(with(&[amqp]).broker().is_ok());
    assert!(with(&[database]).database_url().is_ok());
    assert_eq!(labels(&with(&[database]).store().expect_err("no key")), ["EMAIL_HASH_KEY"]);
    assert!(with(&[database, key]).store().is_ok());
    assert!(with(&[host]).smtp().is_ok());
    assert!(with(&[from]).mail().is_ok());
    let nothing = with(&[]);
    assert!(nothing.pipeline().is_ok() && nothing.http().is_ok() && nothing.log().is_ok());
    assert_eq!(nothing.templates_dir().expect("default"), PathBuf::from("templates"));
}

#[test]
fn certificates_are_looked_at() {
    let dir = TempDir::new().expect("a folder");
    let pem = write(&dir, "ca.pem", "-----BEGIN CERTIFICATE-----\n");
    let key = write(&dir, "key.pem", "-----BEGIN PRIVATE KEY-----\n");
    let config = load(&[("SMTP_CA_FILE", pem.to_str().expect("UTF-8"))]).expect("valid");
    assert_eq!(config.smtp.relays[0].ca_file.as_deref(), Some(pem.as_path()));
    let faults = faults(&[("AMQP_CA_FILE", key.to_str().expect("UTF-8"))]);
    assert!(faults[0].problem.ends_with("holds no PEM certificate"), "{faults:?}");
}

#[test]
fn secrets_are_never_printed() {
    let dir = TempDir::new().expect("a folder");
    let stray = write(&dir, "stray", "secret-in-a-file");
    let tokens = format!("ops:admin:secret-token-{HASH_KEY}");
    let environment = environment(&[("SMTP_USER", "u"), ("SMTP_PASSWORD", "secret-smtp"), ("ADMIN_TOKENS", &tokens)]);
    let config = Config::load(&environment, None).expect("valid");
    let settings = Settings::read(&environment, None);
    let good = format!("{config:?} {environment:?} {settings:?}");

    let bad = load(&[
        ("AMQP_URL", "amqp://u:amqp-secret@[broker"),
        ("DATABASE_URL", "database-secret"),
        ("EMAIL_HASH_KEY", "secret-short"),
        ("SMTP_PASSWORD_FILE", "/nonexistent/secret-path"),
        ("SMTP_HOST", "smtp://u:secret-smtp@mail.example"),
        ("ADMIN_TOKENS", "secret-token:ops,ops:secret-role:x,a:admin:secret-short"),
        ("SMTP_FROM_EMAIL", "secret person@rgz.bj"),
        ("SMTP_PORT_FILE", stray.to_str().expect("UTF-8")),
    ])
    .expect_err("faults");
    assert_eq!(bad.iter().count(), 8, "{bad}");
    for text in [good, format!("{bad}"), format!("{bad:?}")] {
        assert!(!text.contains("secret-") && !text.contains("-secret") && !text.contains("secret person"), "{text}");
        assert!(!text.contains(HASH_KEY), "{text}");
    }
}

#[test]
fn the_example_file_is_valid_once_it_is_filled_in() {
    for take_examples in [false, true] {
        let text = env_example();
        let lines = text.lines().filter_map(|line| match line.strip_prefix('#') {
            None => line.split_once('='),
            // A comment starts with a blank, a setting that is commented out does not.
            Some(rest) if take_examples && !rest.starts_with(' ') => rest.split_once('='),
            Some(_) => None,
        });
        // What names a file that is not there on this machine, or goes with one.
        let is_elsewhere = |name: &str| {
            name.ends_with("_FILE")
                || name.starts_with("DKIM_")
                || ["ATTACHMENT_FOLDER", "POSTRIDER_CONFIG"].contains(&name)
        };
        let lines = lines.filter(|(name, _)| !is_elsewhere(name));
        let environment: Environment =
            lines.map(|(name, value)| (name, if name == "EMAIL_HASH_KEY" { HASH_KEY } else { value })).collect();
        let config = Config::load(&environment, None).expect("valid");
        assert_eq!(config.warnings, Vec::<String>::new());
        assert_eq!(config.smtp.relays[0].credentials.is_some(), take_examples);
    }
}

#[test]
fn a_certificate_without_its_key_is_a_fault_of_its_setting() {
    let dir = TempDir::new().expect("a folder");
    let pair = || {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["mail.rgz.bj".to_owned()]).expect("a name");
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    };
    let ((cert, key), (_, other)) = (pair(), pair());
    let [cert, key, other, empty, away] = [
        ("cert", Some(&cert)),
        ("key", Some(&key)),
        ("other", Some(&other)),
        ("empty", Some(&String::new())),
        ("away", None),
    ]
    .map(|(name, text)| {
        let path = dir.path().join(name);
        if let Some(text) = text {
            fs::write(&path, text).expect("writable");
        }
        path.to_str().expect("UTF-8").to_owned()
    });
    let sound =
        load(&[("ADMIN_TLS_CERT_FILE", &cert), ("ADMIN_TLS_KEY_FILE", &key), ("ADMIN_TLS_CLIENT_CA_FILE", &cert)]);
    assert!(sound.is_ok_and(|config| config.http.admin.tls.is_some() && config.http.webhook.tls.is_none()));
    for (settings, name, problem) in [
        (vec![("ADMIN_TLS_CERT_FILE", &cert)], "ADMIN_TLS_KEY_FILE", "is missing although ADMIN_TLS_CERT_FILE is set"),
        (
            vec![("WEBHOOK_TLS_KEY_FILE", &key)],
            "WEBHOOK_TLS_CERT_FILE",
            "is missing although WEBHOOK_TLS_KEY_FILE is set",
        ),
        (vec![("ADMIN_TLS_CLIENT_CA_FILE", &cert)], "ADMIN_TLS_CERT_FILE", "although ADMIN_TLS_CLIENT_CA_FILE is set"),
        (
            vec![("ADMIN_TLS_CERT_FILE", &cert), ("ADMIN_TLS_KEY_FILE", &other)],
            "ADMIN_TLS_KEY_FILE",
            "not the certificate's",
        ),
        (
            vec![("WEBHOOK_TLS_CERT_FILE", &cert), ("WEBHOOK_TLS_KEY_FILE", &cert)],
            "WEBHOOK_TLS_KEY_FILE",
            "holds no PEM private key",
        ),
        (
            vec![("WEBHOOK_TLS_CERT_FILE", &empty), ("WEBHOOK_TLS_KEY_FILE", &key)],
            "WEBHOOK_TLS_CERT_FILE",
            "holds no PEM certificate",
        ),
        (vec![("ADMIN_TLS_CERT_FILE", &away), ("ADMIN_TLS_KEY_FILE", &key)], "ADMIN_TLS_CERT_FILE", "cannot be read"),
        (
            vec![("ADMIN_TLS_CERT_FILE", &cert), ("ADMIN_TLS_KEY_FILE", &key), ("ADMIN_TLS_CLIENT_CA_FILE", &key)],
            "ADMIN_TLS_CLIENT_CA_FILE",
            "holds no PEM certificate",
        ),
    ] {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let faults = faults(&settings);
        assert!(
            faults.len() == 1 && faults[0].setting == name && faults[0].problem.contains(problem),
            "{settings:?}: {faults:?}"
        );
    }
}

#[test]
fn urls_hold_only_what_is_known_and_nothing_of_them_is_repeated() {
    for (name, value, problem) in [
        ("AMQP_URL", "amqp://h/v?pasword=hidden", "has a parameter (1) behind its ? that is not one of"),
        ("AMQP_URL", "amqp://h/v?heartbeat=hidden", "has a parameter heartbeat that is not a number"),
        ("AMQP_URL", "amqps://h/v?auth_mechanism=hidden", "that is not plain, amqplain or external"),
        ("AMQP_URL", "amqp://h/v?auth_mechanism=external", "says auth_mechanism=external, which needs amqps://"),
        ("DATABASE_URL", "postgres://h/d?sslmode=require&hidden=1", "has a parameter (2) behind its ?"),
        ("DATABASE_URL", "postgres://h/d?sslmode=hidden", "has a sslmode that is not one of disable"),
        (
            "DATABASE_URL",
            "postgres://h/d?sslrootcert=/hidden.pem",
            "has a sslrootcert that names a file which cannot be",
        ),
        ("DATABASE_URL", "postgres://h/d?sslkey=/hidden.key", "has an sslkey that names a file which cannot be read"),
    ] {
        let found = faults(&[(name, value)]);
        assert!(found.len() == 1 && found[0].problem.contains(problem), "{value}: {found:?}");
        assert!(!found[0].problem.contains("hidden"), "{found:?}");
    }
    let more = "postgres://u:p@h/d?sslmode=prefer&options[search_path]=x&application_name=y&connect_timeout=1";
    assert!(faults(&[("DATABASE_URL", more)])[0].problem.contains("(4)"));
    load(&[("DATABASE_URL", "postgres:///d?host=/run/postgresql&options[search_path]=x")]).expect("a socket");
    load(&[("AMQP_URL", "amqp://h/v?heartbeat=10&connection_timeout=60000&frame_max=131072")]).expect("numbers");
}

#[test]
fn a_certificate_of_ours_has_a_key_and_goes_to_a_broker_that_speaks_tls() {
    let dir = TempDir::new().expect("a folder");
    let path = |name, text| write(&dir, name, text).to_str().expect("UTF-8").to_owned();
    let certificate = path("client.pem", "-----BEGIN CERTIFICATE-----\n");
    let key = path("client.key", "-----BEGIN PRIVATE KEY-----\n");
    let (certificate, key) = (("AMQP_CLIENT_CERT_FILE", &*certificate), ("AMQP_CLIENT_KEY_FILE", &*key));
    let tls = ("AMQP_URL", "amqps://broker.example/v?auth_mechanism=EXTERNAL");
    assert!(load(&[tls, certificate, key]).expect("valid").broker.identity.is_some());
    for (settings, at_fault) in [
        (&[tls][..], "AMQP_CLIENT_CERT_FILE"),
        (&[tls, certificate], "AMQP_CLIENT_KEY_FILE"),
        (&[tls, key], "AMQP_CLIENT_CERT_FILE"),
        (&[certificate, key], "AMQP_CLIENT_CERT_FILE"),
        (&[tls, certificate, ("AMQP_CLIENT_KEY_FILE", certificate.1)], "AMQP_CLIENT_KEY_FILE"),
    ] {
        let found = faults(settings);
        assert_eq!(found.iter().map(|fault| fault.setting.as_str()).collect::<Vec<_>>(), [at_fault], "{found:?}");
    }
}

#[test]
fn core_dumps_are_forbidden_unless_they_are_asked_for() {
    assert!(!load(&[]).expect("valid").core_dumps && !environment(&[]).allows_core_dumps());
    let asked = [("POSTRIDER_CORE_DUMPS", "on")];
    assert!(load(&asked).expect("valid").core_dumps && environment(&asked).allows_core_dumps());
    let garbled = [("POSTRIDER_CORE_DUMPS", "maybe")];
    assert!(!environment(&garbled).allows_core_dumps());
    assert_eq!(faults(&garbled)[0].setting, "POSTRIDER_CORE_DUMPS");
}
