//! Every limit of what others write is named with its figure in the error that it causes, with the setting where there is one,
//! and with what to do; and `deploy/limits.md` lists them in those words.

use std::net::Ipv4Addr;

use bytes::Bytes;
use chrono::Utc;
use postrider::{
    config::{Environment, PipelineConfig, Settings},
    email::{
        EmailAddress, Envelope,
        attachment::{FileType, check_attachment},
    },
    objects::reference::source_of,
    pipeline::decode::decode,
    templates::{CompiledTemplate, System, TemplateSource, lint},
    wire,
};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

use crate::support::{
    daemon::{ADMIN_TOKEN, Daemon},
    installation::Installation,
    proxy::Proxy,
    raw::{exchange, read_all, replies},
    relay::{Offer, Relay},
    requests::{self, ticket},
    wait::until_some,
};

/// One limit, and the error of whoever goes beyond it.
struct Limit {
    what: &'static str,
    /// As the error writes it.
    figure: String,
    /// What changes it; nothing: it is the same everywhere.
    setting: Option<&'static str>,
    error: String,
    /// What the error says that can be done.
    remedy: &'static str,
}

fn rules() -> PipelineConfig {
    let nothing = Environment::from_iter(std::iter::empty::<(String, String)>());
    Settings::read(&nothing, None).pipeline().expect("the defaults are sound")
}

fn refusal(change: impl FnOnce(&mut wire::EmailRequest)) -> String {
    let mut request = ticket("ada@example.bj");
    change(&mut request);
    let envelope = Envelope::of_nobody("support.p1");
    let decoded = decode(&envelope, &wire::to_protobuf(&request), &rules(), Utc::now());
    decoded.expect_err("beyond the limit").to_string()
}

fn source() -> &'static TemplateSource {
    requests::templates().iter().find(|source| source.key == "support_ticket_created").expect("a template")
}

fn rendering(change: impl FnOnce(&mut TemplateSource, &mut Map<String, Value>)) -> String {
    let (mut source, mut variables) = (source().clone(), source().sample.clone());
    change(&mut source, &mut variables);
    let template = CompiledTemplate::compile(&source, 1, 3).unwrap_or_else(|faults| panic!("{faults:?}"));
    let system = System {
        request_date: Utc::now(),
        attachments: &[],
        support_email: None,
        support_phone: None,
        timezone: chrono_tz::Africa::PortoNovo,
        locale: "fr",
        unsubscribe_url: None,
    };
    template.render(&variables, &system).expect_err("beyond the limit").to_string()
}

fn saving(change: impl FnOnce(&mut TemplateSource)) -> String {
    let mut source = source().clone();
    change(&mut source);
    let faults = lint(&source);
    faults.first().expect("a fault").to_string()
}

fn of_requests() -> Vec<Limit> {
    let limit =
        |what, figure: &str, error, remedy| Limit { what, figure: figure.to_owned(), setting: None, error, remedy };
    let text = |text: String| wire::Value { kind: Some(wire::ValueKind::StringValue(text)) };
    let deep = (0..40).fold(text("x".to_owned()), |inner, _| wire::Value {
        kind: Some(wire::ValueKind::ListValue(prost_types::ListValue { values: vec![inner] })),
    });
    let with_days = Limit {
        what: "`not_before` ahead",
        figure: "30".to_owned(),
        setting: Some("EMAIL_MAX_NOT_BEFORE_DAYS"),
        error: refusal(|request| request.not_before = Some(requests::in_seconds(31.0 * 86_400.0))),
        remedy: "EMAIL_MAX_NOT_BEFORE_DAYS",
    };
    vec![
        limit(
            "a whole request, bytes",
            "16777216",
            {
                let body = Bytes::from(vec![b'x'; 16 * 1024 * 1024 + 1]);
                let decoded = decode(&Envelope::of_nobody("support.p1"), &body, &rules(), Utc::now());
                decoded.expect_err("too large").to_string()
            },
            "by reference",
        ),
        limit(
            "recipients",
            "100",
            refusal(|request| {
                request.recipients[0].address = (0..101).map(|n| format!("n{n}@example.bj,")).collect();
            }),
            "publish a request for each 100",
        ),
        limit(
            "characters of a name",
            "255",
            refusal(|request| request.recipients[0].display_name = "x".repeat(256)),
            "shorten",
        ),
        limit("characters of `locale`", "35", refusal(|request| request.locale = "x".repeat(36)), "shorten"),
        limit(
            "characters of `source` and `template_key`",
            "100",
            refusal(|request| request.source = "x".repeat(101)),
            "must be 1 to 100",
        ),
        limit(
            "entries of `metadata`",
            "32",
            refusal(|request| request.metadata = (0..33).map(|n| (n.to_string(), String::new())).collect()),
            "leave some out",
        ),
        limit(
            "characters of a value of `metadata`",
            "1024",
            refusal(|request| request.metadata = [("a".to_owned(), "x".repeat(1025))].into()),
            "shorten",
        ),
        limit(
            "depth of variables",
            "32",
            refusal(|request| {
                request.variables.get_or_insert_default().fields.insert("title".to_owned(), deep);
            }),
            "flatten",
        ),
        with_days,
        limit(
            "attachments",
            "50",
            refusal(|request| {
                for n in 0..51 {
                    requests::attach(request, &format!("{n}.csv"), "text/csv", &b"a"[..]);
                }
            }),
            "publish several requests",
        ),
    ]
}

fn of_files() -> Vec<Limit> {
    let check = |bytes: usize| {
        let file = vec![b'x'; bytes];
        check_attachment("a.csv", "text/csv", &file, &FileType::ALL, 10 * 1024 * 1024)
            .expect_err("too large")
            .to_string()
    };
    let long = format!("https://files.rgz.bj/{}", "x".repeat(2048));
    vec![
        Limit {
            what: "bytes of an attachment",
            figure: "10485760".to_owned(),
            setting: Some("EMAIL_MAX_ATTACHMENT_SIZE_MB"),
            error: check(10 * 1024 * 1024 + 1),
            remedy: "make it smaller",
        },
        Limit {
            what: "types of attachments",
            figure: "pdf, png, jpg, json, csv".to_owned(),
            setting: Some("EMAIL_ALLOWED_ATTACHMENT_TYPES"),
            error: check_attachment("a.exe", "application/x-msdownload", b"MZ", &FileType::ALL, 10)
                .expect_err("no")
                .to_string(),
            remedy: "allowed by",
        },
        Limit {
            what: "bytes of a reference's URI",
            figure: "2048".to_owned(),
            setting: None,
            error: source_of(&long, &postrider::config::AttachmentConfig::default()).expect_err("long").to_string(),
            remedy: "use s3://",
        },
        Limit {
            what: "octets of an address",
            figure: "254".to_owned(),
            setting: None,
            error: EmailAddress::parse(&format!("a@{}bjx", "abcdefghi.".repeat(25))).expect_err("long").to_string(),
            remedy: "longer than 254",
        },
        Limit {
            what: "octets before the @",
            figure: "64".to_owned(),
            setting: None,
            error: EmailAddress::parse(&format!("{}@example.bj", "a".repeat(65))).expect_err("long").to_string(),
            remedy: "longer than 64",
        },
    ]
}

fn of_templates() -> Vec<Limit> {
    let limit =
        |what, figure: &str, error, remedy| Limit { what, figure: figure.to_owned(), setting: None, error, remedy };
    let long = |length: usize| Value::from("x".repeat(length));
    let html = |html: &str| {
        format!(
            "<p>{html}{{{{ticket_number}}}}{{{{title}}}}{{{{priority}}}}</p><a href=\"{{{{url support_link}}}}\">x</a>"
        )
    };
    vec![
        limit(
            "bytes of all variables",
            "262144",
            rendering(|_, variables| drop(variables.insert("title".into(), long(300_000)))),
            "shorten",
        ),
        limit(
            "bytes of a subject",
            "998",
            rendering(|_, variables| drop(variables.insert("ticket_number".into(), long(1200)))),
            "shorten",
        ),
        limit(
            "bytes of a rendered part",
            "1048576",
            rendering(|source, variables| {
                source.subject = "s {{ticket_number}}".into();
                source.html = html("{{#each title}}{{../priority}}{{/each}}");
                variables.insert("title".into(), json!(vec![1; 1000]));
                variables.insert("priority".into(), long(2000));
            }),
            "shorten",
        ),
        limit(
            "elements that a part may print",
            "5000000",
            rendering(|source, variables| {
                source.html =
                    html("{{#each title}}{{#each ../title}}{{#each ../../title}}x{{/each}}{{/each}}{{/each}}");
                source.subject = "s {{ticket_number}}".into();
                variables.insert("title".into(), json!(vec![1; 1000]));
            }),
            "shorten their lists",
        ),
        limit(
            "depth of a variable in a template",
            "32",
            rendering(|_, variables| {
                variables.insert("title".into(), (0..40).fold(json!(1), |inner, _| json!([inner])));
            }),
            "flatten",
        ),
        limit("bytes of a template's file", "262144", saving(|source| source.html = "x".repeat(262_145)), "at most"),
        limit("tags of a template's file", "2000", saving(|source| source.html = "{{title}}".repeat(2001)), "at most"),
        limit(
            "depth of a template's blocks",
            "64",
            saving(|source| source.html = "{{#if title}}".repeat(70) + &"{{/if}}".repeat(70)),
            "deep",
        ),
    ]
}

fn markdown(limits: &[Limit]) -> String {
    let mut text = "# Limits\n\nWhat others write is measured before it is worked with. Each limit is told by name in the error of \
                    whoever goes beyond it, as below; made from those errors by `UPDATE=1 cargo test --test it input_limits`.\n\n\
                    | what | limit | setting | what the error says |\n|---|---|---|---|\n"
        .to_owned();
    for Limit { what, figure, setting, error, .. } in limits {
        let setting = setting.map_or("fixed".to_owned(), |setting| format!("`{setting}`"));
        text.push_str(&format!("| {what} | {figure} | {setting} | {} |\n", error.replace('|', "\\|")));
    }
    text
}

/// What a listener answers to these bytes.
async fn refused(daemon: &Daemon, bytes: &str, status: u16) -> String {
    let replies = exchange(daemon.admin(), bytes.as_bytes(), false).await;
    let [reply] = &*replies else { panic!("one answer: {replies:?}") };
    assert_eq!(reply.status, status, "{reply:?}");
    let problem: Value = serde_json::from_str(&reply.body).expect("a problem");
    problem["detail"].as_str().expect("words").to_owned()
}

async fn of_heads(daemon: &Daemon) -> Vec<Limit> {
    let head = |lines: &str| format!("GET /livez HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
    let limit = |what, figure: &str, error: String, remedy| Limit {
        what,
        figure: figure.to_owned(),
        setting: None,
        error,
        remedy,
    };
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(8 * 1024));
    let (large, many) = (head(&format!("X: {}\r\n", "x".repeat(16 * 1024))), head(&"X: x\r\n".repeat(64)));
    let (long_target, large, many, slow) = tokio::join!(
        refused(daemon, &long_target, 414),
        refused(daemon, &large, 431),
        refused(daemon, &many, 431),
        refused(daemon, "GET /livez HTTP/1.1\r\nHost:", 408),
    );
    vec![
        limit("bytes of a request target", "8192", long_target, "at most"),
        limit("bytes of a request's head", "16384", large, "at most"),
        limit("headers of a request", "64", many, "at most"),
        limit("seconds for a request's head", "10", slow, "arrives within"),
    ]
}

/// A request that waits for a database that does not answer, and with it a connection that is at work.
async fn hang(daemon: &Daemon, from: Ipv4Addr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("bound");
    let mut stream = socket.connect(daemon.admin()).await.expect("a connection");
    let request = format!(
        "GET /api/v1/email/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    stream
}

/// What the next one from there hears, once nobody makes room any more.
async fn turned_away(daemon: &Daemon, mut from: impl FnMut() -> Ipv4Addr, hanging: &mut Vec<TcpStream>) -> String {
    until_some("all connections are at work", async || {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((from(), 0).into()).expect("bound");
        let mut stream = socket.connect(daemon.admin()).await.expect("a connection");
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        let answered = replies(&read_all(&mut stream).await);
        let reply = answered.first()?;
        if reply.status == 503 {
            let problem: Value = serde_json::from_str(&reply.body).expect("a problem");
            return problem["detail"].as_str().map(str::to_owned);
        }
        // One whose head had not been read made room for this one, or one that the database has kept for too long.
        hanging.push(hang(daemon, from()).await);
        None
    })
    .await
}

async fn of_connections() -> Vec<Limit> {
    let mut post =
        Installation::prepare(&[("ADMIN_CONNECTIONS_MAX", "8"), ("ADMIN_CONNECTIONS_PER_ADDRESS_MAX", "4")]).await;
    let line = Proxy::start(post.database.url()).await;
    post.variables.insert("DATABASE_URL".to_owned(), line.url(post.database.url()));
    post.start_daemon().await;
    line.stall();
    let (one, mut hanging) = (Ipv4Addr::new(127, 0, 0, 2), Vec::new());
    for _ in 0..4 {
        hanging.push(hang(post.daemon(), one).await);
    }
    let of_one = turned_away(post.daemon(), || one, &mut hanging).await;
    // However many it takes, no address has more than one of them: only the limit in all is met.
    let mut last = 0_u16;
    let mut another = || {
        last += 1;
        let [high, low] = last.to_be_bytes();
        Ipv4Addr::new(127, 1, high, low)
    };
    for _ in 0..4 {
        hanging.push(hang(post.daemon(), another()).await);
    }
    let in_all = turned_away(post.daemon(), another, &mut hanging).await;
    drop(hanging);
    line.free();
    post.finish().await;
    vec![
        Limit {
            what: "connections of one address (here 4)",
            figure: "4".to_owned(),
            setting: Some("ADMIN_CONNECTIONS_PER_ADDRESS_MAX"),
            error: of_one,
            remedy: "try again",
        },
        Limit {
            what: "connections of a listener (here 8)",
            figure: "8".to_owned(),
            setting: Some("ADMIN_CONNECTIONS_MAX"),
            error: in_all,
            remedy: "try again",
        },
    ]
}

/// Limits that only a whole mail meets: its dead letter says so.
async fn of_mails() -> Vec<Limit> {
    let settings = [("EMAIL_MAX_ATTACHMENT_SIZE_MB", "1"), ("EMAIL_MAX_ATTACHMENTS_TOTAL_MB", "1")];
    let offer = Offer { size: Some(600_000), ..Offer::default() };
    let mut post = Installation::prepare_on(Relay::with(offer).await, &settings).await;
    post.start_daemon().await;
    let with_files = |count: usize, bytes: usize| {
        let mut request = requests::sample("sla_monthly_report", &["ada@example.bj"]);
        for n in 0..count {
            requests::attach(&mut request, &format!("{n}.csv"), "text/csv", vec![b'x'; bytes]);
        }
        request
    };
    let error = async |request: wire::EmailRequest| {
        post.publish(&request).await;
        let letter = post.database.wait_for_letter(requests::id(&request)).await;
        letter.error.expect("words")
    };
    let (total, whole) = (error(with_files(2, 600 * 1024)).await, error(with_files(1, 700 * 1024)).await);
    post.finish().await;
    vec![
        Limit {
            what: "bytes of all attachments (here 1 MB)",
            figure: "1048576".to_owned(),
            setting: Some("EMAIL_MAX_ATTACHMENTS_TOTAL_MB"),
            error: total,
            remedy: "link to them",
        },
        Limit {
            what: "bytes of a mail (what a relay takes, here 600000)",
            figure: "600000".to_owned(),
            setting: None,
            error: whole,
            remedy: "link to its files",
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_limit_is_told_with_its_figure_its_setting_and_what_to_do() {
    let mut limits: Vec<Limit> = [of_requests(), of_files(), of_templates()].into_iter().flatten().collect();
    let post = Installation::start().await;
    let large = vec![b'x'; 1024 * 1024 + 1];
    let answer = post
        .daemon()
        .ask(Method::POST, "/api/v1/email/suppressions", ADMIN_TOKEN, |request| {
            request.header("content-type", "application/json").body(large.clone())
        })
        .await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    limits.push(Limit {
        what: "bytes of a body to the admin listener",
        figure: "1048576".to_owned(),
        setting: None,
        error: answer.json()["detail"].as_str().expect("words").to_owned(),
        remedy: "send less at once",
    });
    let answer = post
        .daemon()
        .ask(Method::POST, "/api/v1/email/suppressions/import", ADMIN_TOKEN, |request| {
            request.header("content-type", "text/csv").body(vec![b'x'; 16 * 1024 * 1024 + 1])
        })
        .await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    limits.push(Limit {
        what: "MiB of a file of suppressions",
        figure: "16".to_owned(),
        setting: None,
        error: answer.json()["detail"].as_str().expect("words").to_owned(),
        remedy: "several files",
    });
    limits.extend(of_heads(post.daemon()).await);
    post.finish().await;
    limits.extend(of_connections().await);
    limits.extend(of_mails().await);
    for Limit { what, figure, setting, error, remedy } in &limits {
        assert!(error.contains(figure), "{what}: {error}");
        assert!(setting.is_none_or(|setting| error.contains(setting)), "{what}: {error}");
        assert!(error.contains(remedy), "{what}: {error}");
        assert!(error.len() < 400, "{what}: {error}");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/limits.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, markdown(&limits)).expect("writable");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == markdown(&limits),
        "deploy/limits.md is not what the errors say; write it again with:\n\n    UPDATE=1 cargo test --test it input_limits\n"
    );
}

#[test]
fn a_million_recipients_are_refused_at_the_hundred_and_first() {
    let began = std::time::Instant::now();
    let many: String = (0..1_000_000).map(|n| format!("n{n}@a.bj,")).collect();
    let error = refusal(|request| request.recipients[0].address = many);
    assert!(error.contains("more than 100"), "{error}");
    // Each compared with all before it they would keep a worker busy for an hour.
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}
