//! Secrets stay where they are: whatever happens, none of them is in a log, an answer, a page, a metric or a trace.

use std::{fs, os::unix::process::ExitStatusExt, path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use postrider::{email::Phase, wire};
use reqwest::{Client, StatusCode};
use tempfile::TempDir;
use url::Url;

use crate::support::{
    collector::Collector,
    daemon::Variables,
    installation::Installation,
    process::{DaemonProcess, postrider},
    relay::{Act, Offer, Relay, Rule},
    requests::{incident, pdf, refer, ticket},
    wait::until,
};

const SMTP_USER: &str = "relay-user";
const SMTP_PASSWORD: &str = "smtp-Pass/w0rd+of=these&tests";
const HASH_KEY: &str = "hash-key-of-the-test-for-secrets-4711";
const ADMIN_TOKEN: &str = "admin-token-of-the-test-for-secrets";
const VIEWER_TOKEN: &str = "viewer-token-of-the-test-for-secrets";
const OTLP_TOKEN: &str = "otlp-token-of-the-test-for-secrets";
const S3_KEY_ID: &str = "S3KEYIDOFTHETESTFORSECRETS";
const S3_SECRET: &str = "s3-secret-of/the+test-for-secrets";
const S3_TOKEN: &str = "s3-session-token-of-the-test-for-secrets";
/// Those that open nothing may still be somebody's.
const WRONG: &str = "wr0ng-passw0rd-of-the-test-for-secrets";

/// A secret as it may be found: by name, and in every form that it may have.
struct Secret {
    name: &'static str,
    forms: Vec<String>,
}

impl Secret {
    fn new(name: &'static str, value: &str) -> Self {
        assert!(value.len() >= 16, "{name} is too short to be told from something else");
        let bytes = value.as_bytes();
        let percent: String = url::form_urlencoded::byte_serialize(bytes).collect();
        let decimal = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        let mut forms = vec![value.to_owned(), percent, hex::encode(bytes), hex::encode_upper(bytes), decimal];
        // As a part of something that is encoded whole: three forms, by where it begins.
        for before in 0..3 {
            let whole = BASE64.encode([&vec![0; before], bytes].concat());
            let part = &whole[[0, 2, 3][before]..(before + bytes.len()) / 3 * 4];
            forms.extend([part.to_owned(), part.replace('+', "-").replace('/', "_")]);
        }
        Self { name, forms }
    }

    fn is_in(&self, text: &str) -> bool {
        self.forms.iter().any(|form| text.contains(form.as_str()))
    }
}

fn assert_holds_none(what: &str, text: &str, secrets: &[Secret]) {
    for secret in secrets {
        let line = text.lines().find(|line| secret.is_in(line));
        assert!(line.is_none(), "{what} holds {}: {}", secret.name, line.unwrap_or_default());
    }
}

#[test]
fn a_secret_is_found_in_every_form_that_it_may_have() {
    let secret = Secret::new("it", SMTP_PASSWORD);
    let encoded = |text: &str| BASE64.encode(text);
    for text in [
        format!("password={SMTP_PASSWORD}&x"),
        "amqp://u:smtp-Pass%2Fw0rd%2Bof%3Dthese%26tests@h".to_owned(),
        encoded(SMTP_PASSWORD),
        encoded(&format!("\0{SMTP_USER}\0{SMTP_PASSWORD}")),
        encoded(&format!("x{SMTP_PASSWORD} and more")),
        hex::encode(format!("..{SMTP_PASSWORD}..")),
        format!("{:?}", SMTP_PASSWORD.as_bytes()),
    ] {
        assert!(secret.is_in(&text), "{text}");
    }
    assert!(!secret.is_in("smtp-Pass/w0rd+of=these"));
}

fn password_in(url: &str) -> String {
    Url::parse(url).expect("a URL").password().expect("a password").to_owned()
}

/// The same URL with a password that is wrong.
fn with_wrong_password(url: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_password(Some(WRONG)).expect("a password");
    url.into()
}

fn dkim_key(folder: &Path) -> (String, String) {
    let file = folder.join("dkim.pem");
    let made = Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-out"]).arg(&file).output();
    assert!(made.expect("openssl runs").status.success());
    let pem = fs::read_to_string(&file).expect("a key");
    (file.to_str().expect("UTF-8").to_owned(), pem.lines().nth(3).expect("a line of it").to_owned())
}

/// Every secret in a file of its own, named by `NAME_FILE`.
fn into_files(variables: &mut Variables, folder: &Path) {
    for name in [
        "AMQP_URL",
        "DATABASE_URL",
        "EMAIL_HASH_KEY",
        "SMTP_PASSWORD",
        "ADMIN_TOKENS",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ] {
        let value = variables.remove(name).unwrap_or_else(|| panic!("{name} is set"));
        let file = folder.join(name);
        fs::write(&file, format!("{value}\n")).expect("a file");
        variables.insert(format!("{name}_FILE"), file.to_str().expect("UTF-8").to_owned());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_never_shown_whatever_happens_to_a_daemon_that_tells_everything() {
    let folder = TempDir::new().expect("a folder");
    let collector = Collector::start().await;
    let relay =
        Relay::with(Offer { credentials: Some((SMTP_USER.to_owned(), SMTP_PASSWORD.to_owned())), ..Offer::default() })
            .await;
    // A relay that repeats what it was told, when it refuses it.
    let told = BASE64.encode(format!("\0{SMTP_USER}\0{SMTP_PASSWORD}"));
    relay.script(Rule::at(Phase::Auth, Act::reply(&format!("535 5.7.8 {told} is {SMTP_PASSWORD}, no"))).once());
    let mut post = Installation::prepare_on(relay, &[]).await;
    let (key_file, key_line) = dkim_key(folder.path());
    let endpoint = collector.url().to_owned();
    post.set(&[
        ("SMTP_USER", SMTP_USER),
        ("SMTP_PASSWORD", SMTP_PASSWORD),
        ("EMAIL_HASH_KEY", HASH_KEY),
        ("ADMIN_TOKENS", &format!("chief:admin:{ADMIN_TOKEN},guest:viewer:{VIEWER_TOKEN}")),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization=Bearer%20{OTLP_TOKEN}")),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ("AWS_ACCESS_KEY_ID", S3_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", S3_SECRET),
        ("AWS_SESSION_TOKEN", S3_TOKEN),
        ("AWS_ENDPOINT_URL_S3", &endpoint),
        ("ATTACHMENT_S3_BUCKETS", "documents"),
        ("DKIM_KEY_FILE", &key_file),
        ("DKIM_SELECTOR", "it"),
        ("LOG_LEVEL", "trace"),
        ("LOG_FORMAT", "json"),
        ("RUST_BACKTRACE", "full"),
    ]);
    let (amqp, database) = (post.variables["AMQP_URL"].clone(), post.variables["DATABASE_URL"].clone());
    let in_environment = post.variables.clone();
    into_files(&mut post.variables, folder.path());
    let mut secrets = vec![
        Secret::new("the password for the broker", &password_in(&amqp)),
        Secret::new("the password for the database", &password_in(&database)),
        Secret::new("the password for the relay", SMTP_PASSWORD),
        Secret::new("EMAIL_HASH_KEY", HASH_KEY),
        Secret::new("the admin's token", ADMIN_TOKEN),
        Secret::new("the viewer's token", VIEWER_TOKEN),
        Secret::new("the collector's token", OTLP_TOKEN),
        Secret::new("AWS_ACCESS_KEY_ID", S3_KEY_ID),
        Secret::new("AWS_SECRET_ACCESS_KEY", S3_SECRET),
        Secret::new("AWS_SESSION_TOKEN", S3_TOKEN),
        Secret::new("the key of DKIM", &key_line),
        Secret::new("a wrong password", WRONG),
    ];

    // One mail goes out, one panics on its way, one waits for a file that cannot be had.
    let panics = ticket("panics@example.bj");
    let mut settings = post.variables.clone();
    settings.insert("POSTRIDER_PANIC_AT".to_owned(), format!("rendered@{}", panics.request_id));
    let mut daemon = DaemonProcess::start(&settings);
    let admin = daemon.admin().await;
    let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    until("it is ready", async || {
        let answer = http.get(format!("{admin}/readyz")).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    })
    .await;
    let mut with_file: wire::EmailRequest = ticket("file@example.bj");
    refer(&mut with_file, "a.pdf", "application/pdf", "s3://documents/a.pdf", &pdf());
    for request in [&panics, &with_file, &incident("urgent@example.bj"), &ticket("ada@example.bj")] {
        post.publish(request).await;
    }
    // The relay refuses once, so that this waits for its breaker.
    post.relay.wait_for_mails(3).await;
    until("a panic", async || daemon.log().contains("told to panic")).await;
    until("the collector was told", async || collector.asked() > 1).await;

    // Answers and pages, to those who may see them and to those who may not.
    let mut shown = String::new();
    let signed_in =
        http.post(format!("{admin}/sign-in")).form(&[("token", ADMIN_TOKEN)]).send().await.expect("an answer");
    let cookie = signed_in.headers()[reqwest::header::SET_COOKIE].to_str().expect("text").to_owned();
    let cookie = cookie.split(';').next().expect("a cookie").to_owned();
    let (_, session) = cookie.split_once('=').expect("a value");
    secrets.push(Secret::new("a session", session));
    let refused = http.post(format!("{admin}/sign-in")).form(&[("token", WRONG)]).send().await.expect("an answer");
    shown.push_str(&refused.text().await.expect("text"));
    for path in [
        "/metrics",
        "/readyz",
        "/livez",
        "/api/v1/openapi.json",
        "/api/v1/email/templates",
        "/api/v1/email/messages",
        "/api/v1/email/dead-letters",
        "/api/v1/email/lanes",
        "/api/v1/email/daemons",
        "/api/v1/email/changes",
        "/api/v1/email/suppressions",
        "/api/v1/email/feedback/report",
        "/",
        "/messages",
        "/templates",
        "/dead-letters",
        "/changes",
        "/nothing",
    ] {
        for token in [ADMIN_TOKEN, VIEWER_TOKEN, WRONG] {
            let answer = http.get(format!("{admin}{path}")).bearer_auth(token).send().await.expect("an answer");
            shown.push_str(&format!("{path} {:?}\n{}\n", answer.headers().clone(), answer.text().await.expect("text")));
        }
        let answer = http.get(format!("{admin}{path}")).header("cookie", &cookie).send().await.expect("an answer");
        shown.push_str(&format!("{path} {:?}\n{}\n", answer.headers().clone(), answer.text().await.expect("text")));
    }

    // The process itself.
    let of_process = |name: &str| fs::read(format!("/proc/{}/{name}", daemon.id()));
    assert_holds_none("the command line", &String::from_utf8_lossy(&of_process("cmdline").expect("it runs")), &secrets);
    // For anybody but root the environment of such a process is closed.
    if let Ok(environment) = of_process("environ") {
        assert_holds_none("the environment", &String::from_utf8_lossy(&environment), &secrets);
    }
    daemon.terminate();
    daemon.wait().await;

    let log = daemon.log();
    assert!(log.contains("\"level\":\"TRACE\"") && log.contains("is ***, no"), "it tells everything");
    assert_holds_none("the log", &log, &secrets);
    assert_holds_none("an answer or a page", &shown, &secrets);
    for secret in &secrets {
        let is_told = secret.forms.iter().any(|form| collector.has_seen(form));
        assert!(!is_told, "the collector was told {}", secret.name);
    }
    assert!(collector.has_seen("email_"), "it was told something");
    for address in ["ada@example.bj", "panics@example.bj"] {
        assert!(!log.contains(address), "the log holds an address");
    }

    // Wrong passwords, and none of the right ones.
    for (name, value, word) in [
        ("AMQP_URL", with_wrong_password(&amqp), "refuses the user or the password"),
        ("DATABASE_URL", with_wrong_password(&database), "password authentication failed"),
        ("SMTP_PASSWORD", WRONG.to_owned(), "SMTP_PASSWORD"),
    ] {
        let mut settings = in_environment.clone();
        settings.insert(name.to_owned(), value);
        settings.remove("AWS_ENDPOINT_URL_S3");
        settings.remove("ATTACHMENT_S3_BUCKETS");
        let said = postrider(&settings, &["check"]).await;
        let said = format!("{}{}", said.out, said.err);
        assert!(said.contains(word), "{name}: {said}");
        assert_holds_none("check", &said, &secrets);
        if name != "SMTP_PASSWORD" {
            let mut daemon = DaemonProcess::start(&settings);
            until(word, async || daemon.log().contains(word)).await;
            daemon.kill();
            assert_holds_none("the log", &daemon.log(), &secrets);
        }
    }

    // Wrong settings, with a secret in each of them.
    for (name, value) in [
        ("AMQP_URL", format!("amqp://user:{SMTP_PASSWORD}?@host/a/b")),
        ("AMQP_URL", format!("amqp://user@host/mail?pasword={WRONG}")),
        ("AMQP_URL", format!("amqps://host/mail?auth_mechanism={WRONG}")),
        ("DATABASE_URL", format!("postgres://user@host/mail?{WRONG}=1")),
        ("DATABASE_URL", format!("postgres://user:{WRONG}#@host/mail?sslmode={WRONG}")),
        ("DATABASE_URL", WRONG.to_owned()),
        ("ADMIN_TOKENS", format!("chief:{ADMIN_TOKEN}")),
        ("ADMIN_TOKENS", format!("{ADMIN_TOKEN}:admin:chief")),
        ("OTEL_EXPORTER_OTLP_HEADERS", OTLP_TOKEN.to_owned()),
        ("SMTP_PASSWORD_FILE", SMTP_PASSWORD.to_owned()),
        ("AWS_SECRET_ACCESS_KEY_FILE", format!("/{WRONG}")),
        ("POSTRIDER_CONFIG", "/does/not/exist".to_owned()),
    ] {
        let mut settings = in_environment.clone();
        settings.insert(name.to_owned(), value.clone());
        for command in ["run", "check"] {
            let said = postrider(&settings, &[command]).await;
            assert_eq!(said.code, 78, "{name}={value}");
            let said = format!("{}{}", said.out, said.err);
            assert_holds_none(name, &said, &secrets);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_secret_may_stand_in_a_file_and_what_is_wrong_with_the_file_is_told() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(path("good"), "a-secret-of-sixteen-or-more\n").expect("a file");
    fs::write(path("empty"), "\n").expect("a file");
    for name in [
        "AMQP_URL",
        "DATABASE_URL",
        "EMAIL_HASH_KEY",
        "SMTP_PASSWORD",
        "ADMIN_TOKENS",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "AWS_SECRET_ACCESS_KEY",
    ] {
        let file = format!("{name}_FILE");
        let twice = [(name.to_owned(), WRONG.to_owned()), (file.clone(), path("good"))].into();
        let said = postrider(&twice, &["check"]).await;
        assert!(said.code == 78 && said.err.contains(&format!("{name}: is set twice: also {file}")), "{said:?}");
        for (wrong, words) in [("absent", "cannot be read"), ("empty", "is empty")] {
            let said = postrider(&[(file.clone(), path(wrong))].into(), &["check"]).await;
            let told = format!("{name} (from {file}): the file {} {words}", path(wrong));
            assert!(said.code == 78 && said.err.contains(&told), "{told}: {said:?}");
        }
        // The secret itself, where its file should be named.
        for slip in [WRONG.to_owned(), format!("/{WRONG}"), format!("/{WRONG}/x")] {
            let said = postrider(&[(file.clone(), slip)].into(), &["check"]).await;
            assert!(said.code == 78 && said.err.contains(&file) && !said.err.contains(WRONG), "{said:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_leaves_no_memory_behind() {
    let post = Installation::prepare(&[]).await;
    let mut daemon = DaemonProcess::start(&post.variables);
    daemon.admin().await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).expect("it runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    daemon.abort();
    let ended = daemon.wait().await;
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false));
    // Whoever wants one can have it.
    let mut variables = post.variables.clone();
    variables.insert("POSTRIDER_CORE_DUMPS".to_owned(), "on".to_owned());
    let mut daemon = DaemonProcess::start(&variables);
    daemon.admin().await;
    let limits = |name: &str| fs::read_to_string(format!("/proc/{name}/limits")).expect("it runs");
    let of = |limits: &str| limits.lines().find(|line| line.starts_with("Max core file size")).map(str::to_owned);
    assert_eq!(of(&limits(&daemon.id().to_string())), of(&limits("self")));
    daemon.terminate();
    daemon.wait().await;
}
