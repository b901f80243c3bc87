//! After ninety days nothing names the person any more: not in a dump of the database, not in the queues, not in the logs. What is
//! left is the keyed hash.

use chrono::{TimeDelta, Utc};
use lapin::BasicProperties;
use postrider::{
    email::{EmailAddress, Phase},
    wire,
};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    daemon::ADMIN_TOKEN,
    installation::Installation,
    process::DaemonProcess,
    relay::{Act, Rule},
    requests::{attach, incident, invoice, pdf, sample, set, ticket},
    ses::{FEEDBACK_SETTINGS, SesMail, store_event},
    traces::Traces,
    wait::until,
};

/// As the producer writes it.
const ADDRESS: &str = "Ada.Lovelace-K@B\u{fc}cher-Cotonou.example";
const NAME: &str = "Ad\u{e9}la\u{ef}de Nkrumah";
const PHONE: &str = "+229 97 31 42 53";
const MARKER: &str = "MARQUE-7F3A-PIECE-JOINTE";
/// Whatever holds one of these holds the person.
const TRACES: [&str; 7] = [
    "Ada.Lovelace-K",
    "B\u{fc}cher-Cotonou.example",
    "xn--bcher-cotonou-wob.example",
    "Nkrumah",
    "97 31 42 53",
    MARKER,
    "releve-de-lovelace",
];

struct Stage {
    post: Installation,
    daemon: DaemonProcess,
    admin: String,
    http: reqwest::Client,
}

impl Stage {
    async fn start() -> Self {
        let mut post = Installation::prepare(&FEEDBACK_SETTINGS).await;
        // Both announcements are of one day.
        post.set(&[("EMAIL_RATE_LIMIT_MARKETING", "unlimited")]);
        post.declare_queues().await;
        post.set(&[("LOG_LEVEL", "debug")]);
        let daemon = DaemonProcess::start(&post.variables);
        let admin = daemon.admin().await;
        Self { post, daemon, admin, http: reqwest::Client::new() }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let request = self.http.request(method, format!("{}{path}", self.admin)).bearer_auth(ADMIN_TOKEN);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("text");
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    async fn command(&self, arguments: &[&str]) {
        let said = self.post.run(arguments).await;
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
    }

    /// Publishes a request and waits for its end.
    async fn mail(&self, request: &wire::EmailRequest, status: &str) -> Uuid {
        let request = self.post.publish(request).await;
        let rows = self.post.database.wait_for(request, status).await;
        rows.iter().find(|row| row.recipient_email.starts_with("Ada")).unwrap_or(&rows[0]).id
    }

    async fn letters(&self, reason: &str, count: i64) {
        until(&format!("{count} letters: {reason}"), async || {
            let found: i64 =
                sqlx::query_scalar("select count(*) from dead_letters where reason = $1 and state = 'waiting'")
                    .bind(reason)
                    .fetch_one(&self.post.database.pool)
                    .await
                    .expect("a count");
            found == count
        })
        .await;
    }

    async fn letter(&self, reason: &str) -> Uuid {
        sqlx::query_scalar("select id from dead_letters where reason = $1 order by archived_at limit 1")
            .bind(reason)
            .fetch_one(&self.post.database.pool)
            .await
            .expect("a letter")
    }
}

/// A request that says all that there is to say about the person.
fn about(mut request: wire::EmailRequest) -> wire::EmailRequest {
    request.recipients[0].display_name = NAME.to_owned();
    request.reply_to = ADDRESS.to_owned();
    request.metadata.insert("client".to_owned(), format!("{NAME} <{ADDRESS}>"));
    request
}

fn with(mut request: wire::EmailRequest, variable: &str) -> wire::EmailRequest {
    set(&mut request, variable, &format!("{NAME}, {PHONE}"));
    about(request)
}

/// Everything that can happen to mail for one person.
async fn live(stage: &Stage) {
    let (post, database) = (&stage.post, &stage.post.database);
    let mut bill = with(invoice(ADDRESS), "reseller_name");
    attach(&mut bill, "releve-de-lovelace.pdf", "application/pdf", [&pdf()[..], MARKER.as_bytes()].concat());
    let bill = stage.mail(&bill, "sent").await;
    stage.mail(&with(incident(ADDRESS), "description"), "sent").await;
    let announced = stage.mail(&with(sample("reseller_announcement", &[ADDRESS]), "title"), "sent").await;

    // Put off with the person's address in the relay's words, refused likewise, and left to an operator.
    post.relay.script(Rule::at(Phase::Rcpt, Act::Reply(format!("450 4.2.1 <{ADDRESS}> busy"))).once());
    stage.mail(&with(ticket(ADDRESS), "title"), "sent").await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::Reply(format!("550 5.7.1 <{ADDRESS}> not from you"))).times(3));
    for _ in 0..3 {
        stage.mail(&with(ticket(ADDRESS), "title"), "failed").await;
    }
    stage.letters("rejected", 3).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).once());
    stage.mail(&with(sample("reseller_announcement", &[ADDRESS]), "title"), "unknown").await;
    stage.letters("outcome_unknown", 1).await;

    // What nobody can read, and what nobody takes.
    let unreadable =
        json!({ "requestId": "none", "source": ADDRESS, "recipients": [{ "address": ADDRESS, "displayName": NAME }] });
    post.broker.publish_json("billing.p2", &unreadable.to_string()).await;
    stage.letters("malformed", 1).await;
    post.broker.publish_to(&format!("{ADDRESS}.nowhere"), &about(ticket(ADDRESS))).await;
    let odd = BasicProperties::default().with_message_id(ADDRESS.into()).with_content_type(wire::JSON.into());
    post.broker.publish_raw("no.binding", odd, unreadable.to_string().as_bytes()).await;
    stage.letters("unrouted", 2).await;

    // What operators do.
    let letter = stage.letter("rejected").await.to_string();
    stage.command(&["dead", "show", &letter]).await;
    stage.command(&["dead", "replay", &letter]).await;
    let filter = ["dead", "replay", "--to", ADDRESS, "--reason", "rejected", "--rate", "1000", "--detach"];
    stage.command(&filter).await;
    stage.letters("rejected", 0).await;
    stage.command(&["dead", "discard", &stage.letter("malformed").await.to_string(), "--note", NAME]).await;
    stage.command(&["messages", "show", &bill.to_string()]).await;
    stage.command(&["messages", "resend", &bill.to_string(), "--yes", "--key", ADDRESS]).await;
    stage.command(&["suppressions", "add", ADDRESS, "--note", &format!("{NAME} {PHONE}")]).await;
    stage.command(&["lanes", "pause", "bulk", "--note", NAME]).await;
    stage.command(&["lanes", "resume", "bulk", "--note", NAME]).await;
    let key = "/api/v1/email/messages";
    let to: String = reqwest::Url::parse_with_params("http://x/", [("to", ADDRESS)])
        .expect("a URL")
        .query()
        .unwrap_or_default()
        .to_owned();
    stage.ask(Method::GET, &format!("{key}?{to}&limit=5"), None).await;
    stage.ask(Method::GET, &format!("{key}/{bill}"), None).await;
    stage.ask(Method::GET, &format!("{key}/{bill}/body?part=html"), None).await;
    let test = json!({ "to": ADDRESS, "send": true,
        "variables": { "ticket_number": "T-1", "title": NAME, "priority": "P1", "support_link": "https://x.bj" } });
    stage.ask(Method::POST, "/api/v1/email/templates/support_ticket_created/test", Some(test)).await;

    // What the provider tells: matched, and of nobody (parked).
    let store = database.store();
    let ses = |row| SesMail::of(row, ADDRESS);
    for event in [
        ses(bill).delivery(1),
        ses(announced).bounce("Permanent", "General", 2),
        ses(announced).complaint("abuse", 3),
        ses(Uuid::now_v7()).bounce("Permanent", "General", 4),
    ] {
        store_event(&store, &event).await;
    }
    database.wait_until_applied().await;
    stage.post.wait_until_settled().await;
    // Somebody else, of whom all is to stay.
    stage.mail(&ticket("kofi@example.bj"), "sent").await;
    stage.post.wait_until_settled().await;
    stage.post.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_names_the_person_but_the_keyed_hash() {
    let traces = Traces::of(&TRACES);
    let mut stage = Stage::start().await;
    live(&stage).await;
    let database = &stage.post.database;

    // What the search finds before is what it must not find afterwards.
    let before = traces.in_bytes(database.dump().as_bytes());
    // Each of its spellings is somewhere but one: addresses are kept in ASCII, and as the producer wrote them in bytes.
    assert_eq!(before, traces.all(), "the search finds everything");
    let persons = database.columns_with_persons().await;
    for column in [
        "email_messages.recipient_email",
        "email_messages.error_message",
        "email_requests.variables",
        "email_requests.reply_to",
        "email_timeline.reply_text",
        "email_attachments.filename",
        "dead_letters.body",
        "dead_letters.headers",
        "dead_letter_discards.note",
        "suppressions.address",
        "suppressions.note",
        "suppression_changes.note",
        "webhook_events.body",
    ] {
        assert!(
            persons.iter().any(|found| found.starts_with(&format!("{column}: "))),
            "{column} was not filled: {persons:?}"
        );
    }

    stage.daemon.terminate();
    assert!(stage.daemon.wait().await.success(), "{}", stage.daemon.log());
    let late = stage.post.publish(&about(ticket(ADDRESS))).await;
    let queued = stage.post.broker.contents().await;
    assert!(traces.in_bytes(queued.as_bytes()).contains(TRACES[0]), "the search looks into queues");
    let log = stage.daemon.log();
    assert!(log.contains("DEBUG"), "it is a log of everything");
    assert_eq!(traces.in_bytes(log.as_bytes()), [].into(), "logs never hold a person");
    assert!(
        traces.in_bytes(format!("{log} to {ADDRESS}").as_bytes()).contains(TRACES[0]),
        "the search looks into logs"
    );

    // What lies in a queue leaves it when a daemon is there: suppressed by now.
    let mut daemon = DaemonProcess::start(&stage.post.variables);
    database.wait_for(late, "suppressed").await;
    stage.post.wait_until_idle().await;
    stage.post.wait_until_settled().await;

    let store = database.store();
    let hash = hex::encode(store.address_hash(&EmailAddress::parse(ADDRESS).expect("an address").key()));
    let counted =
        "select (select count(*) from email_messages)::text || ' ' || (select count(*) from dead_letters)::text
        || ' ' || (select count(*) from webhook_events)::text || ' ' || (select count(*) from email_timeline)::text";
    let figures: String = sqlx::query_scalar(counted).fetch_one(&database.pool).await.expect("figures");
    let report = database.retain_at(&stage.post.variables, Utc::now() + TimeDelta::days(91)).await;
    assert!(report.steps.iter().any(|step| step.own_rows() > 0));

    let dump = database.dump();
    let after = traces.in_bytes(dump.as_bytes());
    let where_: Vec<_> = dump.lines().filter(|line| !traces.in_bytes(line.as_bytes()).is_empty()).collect();
    assert!(after.is_empty(), "left of the person: {after:?} in {where_:#?}");
    assert_eq!(database.columns_with_persons().await, Vec::<String>::new());
    assert!(dump.contains(&hash), "the keyed hash is left");
    let left: String = sqlx::query_scalar(counted).fetch_one(&database.pool).await.expect("figures");
    assert_eq!(left, figures, "and so are the figures");
    assert_eq!(stage.post.broker.not_empty().await.len(), 0);
    assert_eq!(traces.in_bytes(stage.post.broker.contents().await.as_bytes()), [].into());

    // It still keeps mail away, and a late event about who was forgotten brings nobody back.
    let row: Uuid = sqlx::query_scalar("select id from email_messages where status = 'complaint'")
        .fetch_one(&database.pool)
        .await
        .expect("a mail");
    store_event(&store, &SesMail::of(row, ADDRESS).bounce("Permanent", "General", 5)).await;
    database.wait_until_applied().await;
    let found = stage.post.run(&["suppressions", "show", ADDRESS]).await;
    assert!(found.out.contains("complaint"), "{found:?}");
    assert_eq!(traces.in_bytes(database.dump().as_bytes()), [].into());
    daemon.terminate();
    assert!(daemon.wait().await.success());
    assert_eq!(traces.in_bytes(daemon.log().as_bytes()), [].into());
}
