//! What the dashboard and the alerts ask for is what a daemon shows: every selector finds its series.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use postrider::email::{Phase, Reason};
use promql_parser::{
    label::{MatchOp, Matcher},
    parser::{self, AggregateExpr, Expr, LabelModifier, VectorSelector},
    util::{ExprVisitor, walk_expr},
};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::{
    installation::Installation,
    proxy::Proxy,
    relay::{Act, Rule},
    requests::{incident, ticket},
    ses::SesMail,
    sns::SnsSigner,
    wait::{until, until_sound},
    webhook::TOPIC,
};

/// What is somebody else's to show: Prometheus itself, and RabbitMQ's plugin.
const FOREIGN: [&str; 3] = ["up", "rabbitmq_queue_consumers", "rabbitmq_queue_messages_ready"];
/// Labels that Prometheus adds when it scrapes.
const ADDED: [&str; 2] = ["instance", "job"];

/// A query, and where it stands.
struct Query {
    place: String,
    text: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/deploy/{path}", env!("CARGO_MANIFEST_DIR"))).expect("the file")
}

fn of_dashboard() -> Vec<Query> {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboard.json")).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = target["expr"].as_str().expect("a query").replace("$__rate_interval", "5m");
            queries.push(Query { place: format!("panel {}", panel["title"]), text });
        }
    }
    assert!(queries.len() > 30, "the dashboard has {} queries", queries.len());
    queries
}

fn alerts() -> Vec<Yaml> {
    let rules = YamlLoader::load_from_str(&read("prometheus/alerts.yml")).expect("YAML");
    let groups = rules[0]["groups"].as_vec().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_vec().expect("rules").clone()).collect()
}

fn of_alerts() -> Vec<Query> {
    let query = |alert: &Yaml| Query {
        place: format!("alert {}", alert["alert"].as_str().expect("a name")),
        text: alert["expr"].as_str().expect("a query").to_owned(),
    };
    alerts().iter().map(query).collect()
}

/// One series of `/metrics`.
#[derive(Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

fn series(metrics: &str) -> Vec<Series> {
    metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(one_series).collect()
}

fn one_series(line: &str) -> Series {
    let (name, mut rest) = line.split_at(line.find(['{', ' ']).expect("a name ends"));
    let mut labels = BTreeMap::new();
    rest = rest.strip_prefix('{').unwrap_or("");
    while let Some((label, more)) = rest.split_once("=\"") {
        let (value, more) = more.split_once('"').expect("a value ends");
        labels.insert(label.to_owned(), value.to_owned());
        rest = more.strip_prefix(',').unwrap_or("");
    }
    Series { name: name.to_owned(), labels }
}

/// What is wrong with a query, if it is asked of these series.
struct Judge<'a> {
    series: &'a [Series],
    faults: Vec<String>,
    seen: BTreeSet<String>,
}

impl ExprVisitor for Judge<'_> {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        match expr {
            Expr::VectorSelector(selector) => self.selector(selector),
            Expr::MatrixSelector(range) => self.selector(&range.vs),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate),
            _ => {}
        }
        Ok(true)
    }
}

impl Judge<'_> {
    fn selector(&mut self, selector: &VectorSelector) {
        let name = selector.name.as_deref().expect("every selector names a metric");
        self.seen.insert(name.to_owned());
        if FOREIGN.contains(&name) {
            return;
        }
        let own: Vec<_> = self.series.iter().filter(|series| series.name == name).collect();
        if own.is_empty() {
            self.faults.push(format!("{name} is no metric of the daemon"));
        } else if !own.iter().any(|series| selector.matchers.matchers.iter().all(|matcher| fits(matcher, series))) {
            self.faults.push(format!("no series of {name} is like {:?}", selector.matchers.matchers));
        }
    }

    fn aggregate(&mut self, aggregate: &AggregateExpr) {
        let Some(LabelModifier::Include(labels)) = &aggregate.modifier else { return };
        let mut below = Judge { series: self.series, faults: Vec::new(), seen: BTreeSet::new() };
        walk_expr(&mut below, &aggregate.expr).expect("it cannot fail");
        for name in below.seen.iter().filter(|name| !FOREIGN.contains(&name.as_str())) {
            let own = self.series.iter().filter(|series| series.name == *name);
            let known: BTreeSet<_> = own.flat_map(|series| series.labels.keys().map(String::as_str)).collect();
            for label in labels.labels.iter().filter(|label| !ADDED.contains(&label.as_str())) {
                if !known.contains(label.as_str()) {
                    self.faults.push(format!("{name} has no label {label}, but {known:?}"));
                }
            }
        }
    }
}

fn fits(matcher: &Matcher, series: &Series) -> bool {
    let value = series.labels.get(&matcher.name).map_or("", String::as_str);
    match &matcher.op {
        // Some reasons are not to be had without taking a daemon down; that they are reasons can be known all the same.
        MatchOp::Equal if matcher.name == "reason" && Reason::from_name(&matcher.value).is_some() => !value.is_empty(),
        MatchOp::Equal => value == matcher.value,
        MatchOp::NotEqual => value != matcher.value,
        MatchOp::Re(pattern) => pattern.is_match(value),
        MatchOp::NotRe(pattern) => !pattern.is_match(value),
    }
}

fn judge(queries: &[Query], series: &[Series]) -> Vec<String> {
    let mut faults = Vec::new();
    for query in queries {
        let expr = parser::parse(&query.text).unwrap_or_else(|error| panic!("{}: {error}", query.place));
        let mut judge = Judge { series, faults: Vec::new(), seen: BTreeSet::new() };
        walk_expr(&mut judge, &expr).expect("it cannot fail");
        assert!(!judge.seen.is_empty(), "{} asks for nothing", query.place);
        faults.extend(judge.faults.iter().map(|fault| format!("{}: {fault}", query.place)));
    }
    faults
}

/// A daemon to which everything has happened that is counted, and its line to the database.
async fn eventful() -> (Installation, Proxy) {
    let sns = SnsSigner::start();
    let certificate = sns.certificate();
    let mut post = Installation::prepare(&[
        ("WEBHOOK_ADDR", "127.0.0.1:0"),
        ("SNS_TOPIC_ARNS", TOPIC),
        ("SNS_SIGNING_CERT_FILE", certificate.to_str().expect("UTF-8")),
        // What is unknown is sent again without waiting for what SES tells of it.
        ("EMAIL_UNKNOWN_WAIT_SECONDS", "0"),
    ])
    .await;
    let line = Proxy::start(post.database.url()).await;
    let url = line.url(post.database.url());
    post.set(&[("DATABASE_URL", &url)]);
    post.start_daemon().await;

    // Sent, though long after its deadline; deferred; unknown; rejected, and replayed.
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 later")).to("later").once());
    post.relay.script(Rule::at(Phase::FinalDot, Act::AcceptThenDisconnect).to("unknown").once());
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("554 5.6.0 no")).to("rejected").once());
    let request = ticket("late@example.bj");
    let mut message = postrider::publish::outgoing(&request, "email.requests").expect("a request");
    let mut headers = message.properties.headers().clone().expect("headers");
    let an_hour_ago = chrono::Utc::now().timestamp_millis() - 3_600_000;
    headers.insert("x-published-at-ms".into(), lapin::types::AMQPValue::LongLongInt(an_hour_ago));
    message.properties = message.properties.with_headers(headers);
    post.broker.publish_raw(&message.routing_key, message.properties, &message.body).await;
    let late = crate::support::requests::id(&request);
    for to in ["later@example.bj", "unknown@example.bj"] {
        let sent = post.publish(&ticket(to)).await;
        post.database.wait_for(sent, "sent").await;
    }
    let rejected = post.publish(&ticket("rejected@example.bj")).await;
    post.database.wait_for_letter(rejected).await;
    assert_eq!(post.run(&["dead", "replay", &rejected.to_string()]).await.code, 0);
    post.database.wait_for(rejected, "sent").await;
    let urgent = post.publish(&incident("urgent@example.bj")).await;
    post.database.wait_for(urgent, "sent").await;

    // Told of by SES, in every way.
    post.database.wait_for(late, "sent").await;
    let mail = SesMail::of(post.database.row(late).await.id, "late@example.bj");
    for event in [mail.delivery(1), mail.bounce("Permanent", "NoEmail", 2), mail.complaint("abuse", 3)] {
        assert_eq!(post.daemon().post_webhook(&sns.notify(TOPIC, &event)).await, StatusCode::OK);
    }
    assert_eq!(post.daemon().post_webhook("nonsense").await, StatusCode::BAD_REQUEST);
    post.database.wait_until_applied().await;
    post.database.wait_until_told().await;

    // And all that without a database.
    line.cut().await;
    post.daemon().wait_until_not_ready("database").await;
    let event = sns.notify(TOPIC, &mail.delivery(9));
    assert_eq!(post.daemon().post_webhook(&event).await, StatusCode::SERVICE_UNAVAILABLE);
    let alone = post.publish(&incident("alone@example.bj")).await;
    until("it is sent", async || post.daemon().metric("email_sent_without_database_total", &[]).await > 0.0).await;
    line.mend().await;
    // The journal is in the audit.
    post.database.wait_for(alone, "sent").await;
    post.daemon_mut().wait_until_ready().await;

    // Somebody guesses tokens.
    until("it is told to stop", async || {
        let guessed = post.daemon().ask(Method::GET, "/api/v1/email/messages", "a-guess", |request| request).await;
        guessed.status == StatusCode::TOO_MANY_REQUESTS
    })
    .await;
    (post, line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_the_dashboard_and_the_alerts_finds_its_series() {
    let (post, _line) = eventful().await;
    // What a daemon does not know just now it does not show: a broker that took long to count is asked again.
    let mut shown = Vec::new();
    until_sound("every query finds its series", async || {
        let metrics = reqwest::get(post.daemon().url("/metrics")).await.expect("an answer").text().await.expect("text");
        shown = series(&metrics);
        judge(&of_dashboard(), &shown).into_iter().chain(judge(&of_alerts(), &shown)).collect()
    })
    .await;

    // What is shown to nobody is of no use: every metric is on the dashboard or in an alert.
    let mut judge = Judge { series: &shown, faults: Vec::new(), seen: BTreeSet::new() };
    for query in of_dashboard().iter().chain(&of_alerts()) {
        walk_expr(&mut judge, &parser::parse(&query.text).expect("PromQL")).expect("it cannot fail");
    }
    let asked: BTreeSet<_> = judge.seen.iter().map(|name| stem(name)).collect();
    let told: BTreeSet<_> = shown.iter().map(|series| stem(&series.name)).collect();
    let unused: Vec<_> = told.difference(&asked).collect();
    assert!(unused.is_empty(), "nothing on the dashboard shows {unused:?}");
    post.finish().await;
}

/// A histogram is one metric.
fn stem(name: &str) -> String {
    ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned()
}

#[test]
fn a_query_for_what_is_not_there_is_found() {
    let series = series(
        "# HELP email_settled_total x\nemail_settled_total{lane=\"fast\",settlement=\"ack\"} 3\nemail_dead_letters_total{lane=\"fast\",reason=\"rejected\"} 1\n",
    );
    let ask = |text: &str| judge(&[Query { place: "here".to_owned(), text: text.to_owned() }], &series);
    assert_eq!(ask("sum by (lane) (rate(email_settled_total{settlement=\"ack\"}[5m]))"), Vec::<String>::new());
    assert_eq!(ask("email_dead_letters_total{reason=\"poison\"} > 0"), Vec::<String>::new());
    for (text, fault) in [
        ("rate(email_setled_total[5m])", "email_setled_total is no metric"),
        ("email_settled_total{lane=\"slow\"}", "no series of email_settled_total"),
        ("email_settled_total{lane=~\"s.+\"}", "no series of email_settled_total"),
        ("email_dead_letters_total{reason=\"bad_luck\"}", "no series of email_dead_letters_total"),
        ("sum by (relay) (email_settled_total)", "has no label relay"),
    ] {
        let faults = ask(text);
        assert!(faults.len() == 1 && faults[0].contains(fault), "{text}: {faults:?}");
    }
}

#[test]
fn every_alert_is_in_the_runbook_and_is_tested() {
    let (runbook, tests) = (read("runbook.md"), read("prometheus/alerts_test.yml"));
    let mut named = BTreeSet::new();
    for alert in alerts() {
        let name = alert["alert"].as_str().expect("a name").to_owned();
        let link = alert["annotations"]["runbook"].as_str().expect("a place in the runbook").to_owned();
        assert_eq!(link, format!("deploy/runbook.md#{}", name.to_lowercase()));
        assert!(runbook.contains(&format!("\n### {name}\n")), "the runbook does not say what to do about {name}");
        assert!(tests.contains(&format!("alertname: {name}\n        exp_alerts:\n")), "{name} is not seen to fire");
        named.insert(name);
    }
    for heading in runbook.lines().filter_map(|line| line.strip_prefix("### Email")) {
        assert!(named.contains(&format!("Email{heading}")), "the runbook tells of Email{heading}, which is no alert");
    }
}
