//! Requests to a daemon's listeners: targets, headers, JSON, forms and files, with every role and with none.
//!
//! Holds: nothing panics and nothing is answered as a fault of ours; every answer is whole, has no header that the request made,
//! and no element in it that the request made.

use std::sync::{
    LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use proptest::{
    collection::vec,
    option::weighted,
    prelude::*,
    sample::{Index, select},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
};

use crate::{
    change::{changed_bytes, changed_json, odd_text},
    drive::{Came, Subject, note_panic},
    support::{
        daemon::{ADMIN_TOKEN, OPERATOR_TOKEN, VIEWER_TOKEN},
        installation::Installation,
        pages::Visitor,
        requests,
        ses::FEEDBACK_SETTINGS,
    },
};

/// Every place, with the methods that it knows. `{}` is a part that is made up.
const PLACES: &[(&str, &[&str])] = &[
    ("/api/v1/email/messages", &["GET"]),
    ("/api/v1/email/messages/{}", &["GET"]),
    ("/api/v1/email/messages/{}/body", &["GET"]),
    ("/api/v1/email/messages/{}/resend", &["GET", "POST"]),
    ("/api/v1/email/dead-letters", &["GET"]),
    ("/api/v1/email/dead-letters/{}", &["GET"]),
    ("/api/v1/email/dead-letters/{}/discard", &["POST"]),
    ("/api/v1/email/dead-letters/plan", &["POST"]),
    ("/api/v1/email/dead-letters/groups", &["GET"]),
    ("/api/v1/email/replays", &["GET", "POST"]),
    ("/api/v1/email/replays/{}", &["GET"]),
    ("/api/v1/email/replays/{}/items", &["GET"]),
    ("/api/v1/email/replays/{}/{}", &["POST"]),
    ("/api/v1/email/suppressions", &["GET", "POST"]),
    ("/api/v1/email/suppressions/{}", &["GET", "DELETE"]),
    ("/api/v1/email/suppressions/export", &["GET"]),
    ("/api/v1/email/suppressions/import", &["POST"]),
    ("/api/v1/email/feedback/report", &["GET"]),
    ("/api/v1/email/templates", &["GET"]),
    ("/api/v1/email/templates/{}", &["GET", "PUT"]),
    ("/api/v1/email/templates/{}/lint", &["POST"]),
    ("/api/v1/email/templates/{}/preview", &["POST"]),
    ("/api/v1/email/templates/{}/test", &["POST"]),
    ("/api/v1/email/templates/{}/rollback", &["POST"]),
    ("/api/v1/email/templates/{}/versions/{}/activate", &["POST"]),
    ("/api/v1/email/changes", &["GET"]),
    ("/api/v1/email/lanes/{}", &["GET"]),
    ("/api/v1/openapi.json", &["GET"]),
    ("/", &["GET"]),
    ("/sign-in", &["GET", "POST"]),
    ("/messages", &["GET"]),
    ("/messages/{}", &["GET"]),
    ("/messages/{}/mail", &["GET"]),
    ("/templates", &["GET"]),
    ("/templates/{}", &["GET"]),
    ("/templates/{}/diff", &["GET"]),
    ("/templates/{}/edit", &["GET", "POST"]),
    ("/templates/{}/frame", &["GET", "POST"]),
    ("/templates/{}/test", &["POST"]),
    ("/dead-letters", &["GET"]),
    ("/dead-letters/{}", &["GET"]),
    ("/dead-letters/{}/discard", &["POST"]),
    ("/replays", &["GET", "POST"]),
    ("/replays/{}", &["GET"]),
    ("/replays/{}/{}", &["POST"]),
    ("/suppressions", &["GET"]),
    ("/suppressions/add", &["POST"]),
    ("/suppressions/{}", &["GET"]),
    ("/suppressions/{}/lift", &["POST"]),
    ("/feedback", &["GET"]),
    ("/changes", &["GET"]),
    ("/assets/{}", &["GET"]),
];
/// Of the public listener.
const PUBLIC: &[(&str, &[&str])] = &[("/api/v1/email/webhook", &["POST"]), ("/unsubscribe/{}", &["GET", "POST"])];
/// Parameters of queries and fields of forms.
const NAMES: &[&str] = &[
    "to",
    "status",
    "template",
    "source",
    "request_id",
    "since",
    "until",
    "limit",
    "cursor",
    "reason",
    "state",
    "part",
    "key",
    "days",
    "silent_hours",
    "dry_run",
    "draft",
    "version",
    "from",
    "against",
    "locale",
    "next",
    "token",
    "address",
    "category",
    "note",
    "expires_at",
    "ids",
    "rate",
    "action",
    "variables",
    "subject",
    "html_content",
    "text_content",
    "manifest",
    "sample",
    "send",
    "List-Unsubscribe",
    "page",
    "all",
];
const VALUES: &[&str] = &[
    "",
    "1",
    "0",
    "-1",
    "500",
    "501",
    "9223372036854775807",
    "true",
    "billing_invoice_monthly",
    "support_ticket_created",
    "sent",
    "failed",
    "malformed",
    "hard_bounce",
    "standard",
    "pause",
    "resume",
    "html",
    "text",
    "ada@example.bj",
    "2026-11-27",
    "2026-11-27T00:00:00Z",
    "2026-11-27T00:00:00+01:00",
    "0190a5d2-7e3c-7a11-9c44-3f2b8f1d2a10",
    "1764000000000123.00000000-0000-0000-0000-000000000007",
    "999999999999999999.00000000-0000-0000-0000-000000000007",
    "pages.css",
];
/// What an answer may be: done, led elsewhere, or refused for what was asked.
const STATUSES: &[u16] =
    &[200, 201, 202, 204, 303, 304, 400, 401, 403, 404, 405, 409, 410, 411, 413, 414, 415, 421, 422, 429, 431];
/// Headers that our answers have.
const HEADERS: &[&str] = &[
    "allow",
    "cache-control",
    "connection",
    "content-disposition",
    "content-length",
    "content-security-policy",
    "content-type",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "date",
    "etag",
    "location",
    "referrer-policy",
    "retry-after",
    "set-cookie",
    "transfer-encoding",
    "vary",
    "www-authenticate",
    "x-content-type-options",
    "x-frame-options",
];

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Who asks.
#[derive(Debug, Clone, Copy)]
enum Who {
    Nobody,
    Viewer,
    Operator,
    Admin,
    Session,
}

#[derive(Clone)]
enum Body {
    Nothing,
    Json(Value),
    Form(Vec<(String, String)>),
    Bytes(String, Vec<u8>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Json(json) => write!(f, "Json({json})"),
            Self::Form(fields) => write!(f, "Form({fields:?})"),
            Self::Bytes(kind, bytes) => write!(f, "Bytes({kind:?}, \"{}\")", bytes.escape_ascii()),
        }
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    is_public: bool,
    method: String,
    place: &'static str,
    parts: Vec<String>,
    query: Vec<(String, String)>,
    who: Who,
    body: Body,
    headers: Vec<(&'static str, String)>,
}

/// The daemon, in this process.
pub struct Admin {
    planted: bool,
    lines: [Option<TcpStream>; 2],
    installation: Installation,
    cookie: String,
    csrf: String,
    // Dropped last: what is above runs on it.
    runtime: Runtime,
}

impl Admin {
    pub fn new(planted: bool) -> Self {
        static COUNTING: LazyLock<()> = LazyLock::new(|| {
            std::panic::set_hook(Box::new(|info| {
                PANICS.fetch_add(1, Ordering::Relaxed);
                note_panic(info);
            }));
        });
        LazyLock::force(&COUNTING);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let (installation, cookie, csrf) = runtime.block_on(async {
            let installation = Installation::start_with(&FEEDBACK_SETTINGS).await;
            // Something to be found.
            for to in ["ada@example.bj", "nobody"] {
                installation.publish(&requests::ticket(to)).await;
            }
            installation.wait_until_settled().await;
            let visitor = Visitor::sign_in(installation.daemon(), ADMIN_TOKEN).await;
            let csrf = visitor.csrf().await;
            (installation, visitor.cookie().to_owned(), csrf)
        });
        Self { planted, runtime, installation, cookie, csrf, lines: [None, None] }
    }

    fn address(&self, is_public: bool) -> String {
        let daemon = self.installation.daemon();
        if is_public { daemon.public().to_string() } else { daemon.url("").trim_start_matches("http://").to_owned() }
    }

    fn request(&self, asked: &Asked) -> Vec<u8> {
        let mut parts = asked.parts.iter();
        let mut target = String::new();
        for (at, piece) in asked.place.split("{}").enumerate() {
            if at > 0 {
                target.push_str(&in_path(parts.next().map_or("x", String::as_str)));
            }
            target.push_str(piece);
        }
        if !asked.query.is_empty() {
            target.push('?');
            target.push_str(&form(&asked.query));
        }
        let (kind, body) = match &asked.body {
            Body::Nothing => (None, Vec::new()),
            Body::Json(json) => (Some("application/json".to_owned()), json.to_string().into_bytes()),
            Body::Form(fields) => {
                let csrf = [("csrf".to_owned(), self.csrf.clone())];
                let fields: Vec<_> = csrf.iter().chain(fields).cloned().collect();
                (Some("application/x-www-form-urlencoded".to_owned()), form(&fields).into_bytes())
            }
            Body::Bytes(kind, bytes) => (Some(kind.clone()), bytes.clone()),
        };
        let (method, host) = (&asked.method, self.address(asked.is_public));
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n", body.len());
        let mut add = |name: &str, value: &str| {
            let value: String = value.chars().filter(|c| !c.is_control()).take(2000).collect();
            head.push_str(&format!("{name}: {value}\r\n"));
        };
        match asked.who {
            Who::Nobody => {}
            Who::Viewer => add("Authorization", &format!("Bearer {VIEWER_TOKEN}")),
            Who::Operator => add("Authorization", &format!("Bearer {OPERATOR_TOKEN}")),
            Who::Admin => add("Authorization", &format!("Bearer {ADMIN_TOKEN}")),
            Who::Session => add("Cookie", &self.cookie),
        }
        if let Some(kind) = kind {
            add("Content-Type", &kind);
        }
        for (name, value) in &asked.headers {
            add(name, value);
        }
        head.push_str("\r\n");
        [head.into_bytes(), body].concat()
    }

    async fn ask(&mut self, is_public: bool, request: &[u8]) -> std::io::Result<Answer> {
        let address = self.address(is_public);
        let line = &mut self.lines[usize::from(is_public)];
        // Once more on a connection of its own: the daemon may have closed an idle one.
        for fresh in [false, true] {
            if fresh || line.is_none() {
                let stream = TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                *line = Some(stream);
            }
            let Some(stream) = line.as_mut() else { continue };
            match exchange(stream, request).await {
                Ok(answer) => {
                    if answer.closes {
                        *line = None;
                    }
                    return Ok(answer);
                }
                Err(error) if fresh => return Err(error),
                Err(_) => *line = None,
            }
        }
        Err(std::io::Error::other("no answer"))
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    closes: bool,
}

async fn exchange(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<Answer> {
    // A daemon that has refused what it was told of closes before all of it is written.
    let written = stream.write_all(request).await;
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut read).await? == 0 {
            written?;
            return Err(std::io::Error::other("the connection was closed without an answer"));
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let mut body = read.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or_default();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let value = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let closes = value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) || written.is_err();
    let is_bodiless = status == 204 || status == 304 || request.starts_with(b"HEAD");
    if is_bodiless {
        return Ok(Answer { status, body, closes, headers });
    }
    if value("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        while !body.ends_with(b"\r\n0\r\n\r\n") && body != b"0\r\n\r\n" {
            if stream.read_buf(&mut body).await? == 0 {
                return Err(std::io::Error::other("the answer was cut short"));
            }
        }
    } else {
        let length: usize = value("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
        while body.len() < length {
            if stream.read_buf(&mut body).await? == 0 {
                return Err(std::io::Error::other("the answer was cut short"));
            }
        }
    }
    Ok(Answer { status, body, closes, headers })
}

fn form(fields: &[(String, String)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

/// A part of a path: what would end it, or the request, is encoded; the rest is as it is.
fn in_path(part: &str) -> String {
    let mut path = String::new();
    for byte in part.bytes().take(1000) {
        if byte.is_ascii_graphic() && !b"?#/".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

fn bodies() -> Vec<Value> {
    let source =
        requests::templates().iter().find(|source| source.key == "support_ticket_created").expect("a template");
    vec![
        json!({}),
        json!({"to": "ada@example.bj", "variables": source.sample, "send": false, "locale": "fr"}),
        json!({"variables": source.sample, "subject": "{{title}}", "html": "<p>{{title}}</p>", "text": "{{title}}", "version": 1}),
        json!({"subject": "{{title}} {{ticket_number}}", "html_content": source.html, "text_content": source.text, "note": "n"}),
        json!({"address": "ada@example.bj", "reason": "operator", "category": "marketing", "note": "n", "expires_at": "2027-01-01"}),
        json!({"reason": "malformed", "template": "support_ticket_created", "source": "support", "to": "ada@example.bj",
            "since": "2026-01-01", "until": "2027-01-01", "rate": 10, "version": "active"}),
        json!({"ids": ["0190a5d2-7e3c-7a11-9c44-3f2b8f1d2a10"], "rate": 10}),
        json!({"note": "n", "key": "k", "to": "kofi@example.bj"}),
    ]
}

impl Subject for Admin {
    type Input = Asked;

    fn inputs(&self) -> BoxedStrategy<Asked> {
        let value = || prop_oneof![3 => select(VALUES).prop_map(str::to_owned), 2 => odd_text()];
        let name = || prop_oneof![12 => select(NAMES).prop_map(str::to_owned), 1 => odd_text()];
        let pairs = |most: usize| vec((name(), value()), 0..most);
        let csv = "address,reason,note\r\nada@example.bj,operator,=1+1\r\n".as_bytes().to_vec();
        let multipart = b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.csv\"\r\n\r\naddress\r\na@b.cc\r\n--b--\r\n";
        let kind = prop_oneof![
            Just("text/csv".to_owned()),
            Just("application/json".to_owned()),
            Just("text/plain; charset=UTF-8".to_owned()),
            Just("application/x-www-form-urlencoded".to_owned()),
            Just("multipart/form-data; boundary=b".to_owned()),
            odd_text(),
        ];
        let body = prop_oneof![
            3 => Just(Body::Nothing),
            5 => changed_json(bodies()).prop_map(Body::Json),
            4 => pairs(8).prop_map(Body::Form),
            2 => (kind, changed_bytes(vec![csv, multipart.to_vec(), b"{\"a\":1}".to_vec(), b"a=1&csrf=x".to_vec()], &["&", "=", "%", "--b", "\r\n", ","]))
                .prop_map(|(kind, bytes)| Body::Bytes(kind, bytes)),
        ];
        let who = select(vec![
            Who::Nobody,
            Who::Viewer,
            Who::Operator,
            Who::Admin,
            Who::Admin,
            Who::Session,
            Who::Session,
            Who::Session,
        ]);
        let header = (
            select(vec![
                "Accept",
                "Accept-Language",
                "If-None-Match",
                "X-Forwarded-For",
                "X-Forwarded-Proto",
                "Origin",
                "Cookie",
                "x-amz-sns-message-type",
            ]),
            odd_text(),
        );
        let other = weighted(0.1, select(vec!["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "X"]));
        let place = prop_oneof![12 => select(PLACES).prop_map(|place| (false, place)), 1 => select(PUBLIC).prop_map(|place| (true, place))];
        (place, any::<Index>(), other, vec(value(), 2), pairs(4), who, body, vec(header, 0..2))
            .prop_map(|((is_public, (place, methods)), at, other, parts, query, who, body, headers)| Asked {
                is_public,
                method: other.unwrap_or(methods[at.index(methods.len())]).to_owned(),
                place,
                parts,
                query,
                who,
                body,
                headers,
            })
            .boxed()
    }

    fn judge(&mut self, asked: &Asked) -> Result<Came, String> {
        let request = self.request(asked);
        let before = PANICS.load(Ordering::Relaxed);
        let handle = self.runtime.handle().clone();
        let answer = handle.block_on(self.ask(asked.is_public, &request));
        let panics = PANICS.load(Ordering::Relaxed) - before;
        holds(panics == 0, "nothing panics")?;
        let mut answer = answer.map_err(|error| format!("no whole answer: {error}"))?;
        if self.planted && answer.status == 400 && asked.query.iter().any(|(_, value)| value.contains('\0')) {
            answer.status = 500;
        }
        if !STATUSES.contains(&answer.status) {
            return Err(format!("answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body)));
        }
        for (name, _) in &answer.headers {
            if !HEADERS.contains(&name.as_str()) {
                return Err(format!("an answer has the header {name}"));
            }
        }
        let kind = answer.headers.iter().find(|(name, _)| name == "content-type").map(|(_, kind)| kind.as_str());
        if kind.is_some_and(|kind| kind.starts_with("text/html")) && !asked.place.ends_with("/frame") {
            let text = String::from_utf8_lossy(&answer.body);
            holds(!text.contains("<x-pwn") && !text.contains("<script>"), "no element that a request made")?;
        }
        Ok(if answer.status < 400 { Came::AllTheWay } else { Came::Refused })
    }
}

fn holds(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("does not hold: {what}")) }
}
