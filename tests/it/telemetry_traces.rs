//! What became of a message is one trace below its producer's span; what comes of it later is linked. Nobody is named in it.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use postrider::{email::Phase, wire};

use crate::support::{
    collector::{Collector, Producer, Traced, tree},
    installation::Installation,
    relay::{Act, Rule},
    requests::{id, set, ticket},
    wait::until,
};

const PROCESS: &str = "process email.standard";
const ACK: &str = "ack email.standard";

async fn start(collector: &Collector, more: &[(&str, &str)]) -> Installation {
    let endpoint = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*format!("{}/v1/traces", collector.url()))];
    Installation::start_with(&[&endpoint[..], more].concat()).await
}

fn named<'a>(spans: &'a [Traced], name: &str) -> Vec<&'a Traced> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn only<'a>(spans: &'a [Traced], name: &str) -> &'a Traced {
    let found = named(spans, name);
    assert_eq!(found.len(), 1, "{name}: {}", tree(spans));
    found[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_is_one_trace_from_the_producer_to_the_acknowledgement() {
    let collector = Collector::start().await;
    let settings = [
        ("OTEL_SERVICE_NAME", "mails"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token"),
    ];
    let post = start(&collector, &settings).await;
    let request = ticket("ada@example.bj");
    let producer = collector.publish_traced(&post.broker, &request).await;
    let row = post.database.wait_for(id(&request), "sent").await.remove(0);
    let spans = collector.wait_for(&producer.trace(), PROCESS, 1).await;
    tracing::info!("one mail: {}", tree(&spans));

    let process = only(&spans, PROCESS);
    assert_eq!((process.parent.as_str(), process.kind, process.is_error), (&*producer.id(), SpanKind::Consumer, false));
    assert!(process.links.is_empty());
    for (name, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", "email.standard"),
        ("messaging.rabbitmq.destination.routing_key", "support.p1"),
        ("messaging.message.id", &request.request_id),
        ("email.request_id", &request.request_id),
        ("email.template", "support_ticket_created"),
        ("email.settlement", "sent"),
        ("email.lane", "standard"),
    ] {
        assert_eq!(process.attribute(name), value, "{name}");
    }
    // What stands where.
    for (name, above, kind) in [
        ("decode", PROCESS, SpanKind::Internal),
        ("render", PROCESS, SpanKind::Internal),
        ("admit", PROCESS, SpanKind::Internal),
        ("place", "admit", SpanKind::Internal),
        ("SMTP connect", "place", SpanKind::Internal),
        ("SMTP greeting", "place", SpanKind::Internal),
        ("SMTP EHLO", "place", SpanKind::Internal),
        ("claim", "admit", SpanKind::Client),
        ("deliver", PROCESS, SpanKind::Internal),
        ("build", "deliver", SpanKind::Internal),
        ("SMTP send", "deliver", SpanKind::Client),
        ("SMTP MAIL", "SMTP send", SpanKind::Internal),
        ("SMTP RCPT", "SMTP send", SpanKind::Internal),
        ("SMTP DATA", "SMTP send", SpanKind::Internal),
        ("SMTP content", "SMTP send", SpanKind::Internal),
        ("SMTP final dot", "SMTP send", SpanKind::Internal),
        ("commit", "deliver", SpanKind::Client),
        (ACK, PROCESS, SpanKind::Client),
    ] {
        let (span, parent) = (only(&spans, name), only(&spans, above));
        assert_eq!((&span.parent, span.kind), (&parent.id, kind), "{name}: {}", tree(&spans));
        assert!(!span.is_error && span.from <= span.to, "{span:?}");
        // Clocks of the steps are put together to within a millisecond.
        assert!(span.from + 1_000_000 >= parent.from && span.to <= parent.to + 1_000_000, "{name}: {}", tree(&spans));
    }
    assert_eq!(spans.len(), 20, "nothing else: {}", tree(&spans));
    let send = only(&spans, "SMTP send");
    assert_eq!((send.attribute("server.address"), send.attribute("smtp.reply_code")), ("127.0.0.1", "250"));
    assert_eq!(send.attribute("server.port"), post.relay.port().to_string());
    let deliver = only(&spans, "deliver");
    assert_eq!((deliver.attribute("email.row_id"), deliver.attribute("email.attempt")), (&*row.id.to_string(), "1"));

    let resource = collector.resource();
    assert_eq!((resource["service.name"].as_str(), &*resource["deployment.environment.name"]), ("mails", "test"));
    assert!(resource.contains_key("service.version") && resource.contains_key("service.instance.id"), "{resource:?}");
    assert_eq!(collector.header("authorization").as_deref(), Some("Bearer token"));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_stands_in_the_same_trace_and_is_linked_to_the_try_before_it() {
    let collector = Collector::start().await;
    let post = start(&collector, &[]).await;
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 try later")).to("ada").times(2));
    let request = ticket("ada@example.bj");
    let producer = collector.publish_traced(&post.broker, &request).await;
    post.database.wait_for(id(&request), "sent").await;
    let spans = collector.wait_for(&producer.trace(), PROCESS, 3).await;
    tracing::info!("a mail that was put off twice: {}", tree(&spans));

    let tries = named(&spans, PROCESS);
    assert!(tries.iter().all(|span| span.parent == producer.id()), "{}", tree(&spans));
    assert!(tries[0].links.is_empty());
    for pair in tries.windows(2) {
        assert_eq!(pair[1].links, [("earlier_try".to_owned(), pair[0].id.clone())], "{}", tree(&spans));
    }
    let settled: Vec<_> = tries.iter().map(|span| (span.attribute("email.settlement"), span.is_error)).collect();
    assert_eq!(settled, [("delayed", false), ("delayed", false), ("sent", false)], "to wait is no fault");
    let copies: Vec<_> =
        spans.iter().filter(|span| span.kind == SpanKind::Producer && span.id != producer.id()).collect();
    let published: Vec<_> = copies.iter().map(|span| (span.name.as_str(), span.parent.as_str())).collect();
    let expected =
        [("publish email.retry.standard.200ms", &*tries[0].id), ("publish email.retry.standard.400ms", &*tries[1].id)];
    assert_eq!(published, expected);
    let sends = named(&spans, "SMTP send");
    let codes: Vec<_> = sends.iter().map(|span| (span.attribute("smtp.reply_code"), span.is_error)).collect();
    assert_eq!(codes, [("451", true), ("451", true), ("250", false)]);
    assert_eq!(sends[0].attribute("error.type"), "451");
    assert_eq!(named(&spans, "deliver")[0].attribute("error.type"), "deferred");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_begins_a_trace_that_is_linked_to_the_try_that_gave_up() {
    let collector = Collector::start().await;
    let post = start(&collector, &[]).await;
    post.relay.script(Rule::at(Phase::Rcpt, Act::reply("550 5.7.1 not from you")));
    let request = ticket("ada@example.bj");
    let producer = collector.publish_traced(&post.broker, &request).await;
    post.database.wait_for_letter(id(&request)).await;
    post.wait_until_settled().await;
    let spans = collector.wait_for(&producer.trace(), PROCESS, 1).await;
    tracing::info!("a mail that was refused: {}", tree(&spans));
    let given_up = only(&spans, PROCESS);
    assert!(given_up.is_error);
    assert_eq!(given_up.attribute("error.type"), "rejected");
    assert_eq!(only(&spans, "publish email.dead").parent, given_up.id);

    post.relay.behave();
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 4.3.0 try later")).to("ada").once());
    assert_eq!(post.run(&["dead", "replay", &request.request_id]).await.code, 0);
    post.database.wait_for(id(&request), "sent").await;
    let replay = collector
        .find("the replay's span", |span| span.links.contains(&("given_up".to_owned(), given_up.id.clone())))
        .await;
    assert_ne!(replay.trace, producer.trace());
    assert_eq!((replay.parent.as_str(), replay.attribute("email.generation")), ("", "1"));
    assert_eq!(replay.links[1], ("producer".to_owned(), producer.id()));
    // Its own retry stands in its trace.
    let spans = collector.wait_for(&replay.trace, PROCESS, 2).await;
    tracing::info!("its replay: {}", tree(&spans));
    let tries = named(&spans, PROCESS);
    assert_eq!(tries[1].links, [("earlier_try".to_owned(), replay.id.clone())]);
    assert_eq!((&tries[1].parent, tries[1].attribute("email.settlement")), (&replay.id, "sent"));
    assert_eq!(named(&collector.trace(&producer.trace()), PROCESS).len(), 1, "the old trace is over");
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_and_nothing_of_a_mail_is_in_what_the_collector_gets() {
    let collector = Collector::start().await;
    let everything = [
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &*format!("{}/v1/metrics", collector.url())),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
    ];
    let mut post = start(&collector, &everything).await;
    // A relay that quotes the address, one that defers with the name, and one that takes the mail.
    post.relay
        .script(Rule::at(Phase::Rcpt, Act::reply("550 5.1.1 <gone.person@example.bj> unknown")).to("gone.person"));
    post.relay.script(Rule::at(Phase::FinalDot, Act::reply("451 later, Adaeze Okonkwo")).to("ada.person").once());
    let mut traces = BTreeSet::new();
    let mut requests: Vec<wire::EmailRequest> = Vec::new();
    for local in ["gone.person", "ada.person", "bad"] {
        let mut request = ticket(&format!("{local}@example.bj"));
        request.recipients[0].display_name = "Adaeze Okonkwo".to_owned();
        set(&mut request, "title", "confidential-title");
        set(&mut request, "support_link", "https://secret-link.example/");
        request.metadata.insert("customer".to_owned(), "secret-customer".to_owned());
        requests.push(request);
    }
    // One that cannot even be read: its error names what it holds.
    requests[2].reply_to = "no-address-of-a-person".to_owned();
    for request in &requests {
        traces.insert(collector.publish_traced(&post.broker, request).await.trace());
    }
    post.database.wait_for(id(&requests[1]), "sent").await;
    post.database.wait_for_letters(2).await;
    for trace in &traces {
        collector.wait_for(trace, PROCESS, 1).await;
    }
    post.wait_until_settled().await;
    post.wait_until_idle().await;
    post.stop_daemon().await;
    assert!(collector.has_seen("support_ticket_created") && collector.has_seen("email.publish_to_accept"));
    for secret in [
        "gone.person",
        "ada.person",
        "example.bj",
        "Adaeze",
        "Okonkwo",
        "confidential-title",
        "secret-link",
        "secret-customer",
        "no-address-of-a-person",
        "unknown>",
    ] {
        assert!(!collector.has_seen(secret), "{secret} was told to the collector");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sampler_does_not_want_is_not_made() {
    let collector = Collector::start().await;
    // The producer does not keep its trace.
    let mut post = start(&collector, &[]).await;
    let unwanted = ticket("ada@example.bj");
    Producer::new(false).publish(&post.broker, &unwanted).await;
    post.database.wait_for(id(&unwanted), "sent").await;
    post.wait_until_settled().await;
    post.stop_daemon().await;
    assert_eq!((collector.asked(), collector.spans().len()), (0, 0));
    // Half of those whose producer says nothing, each of them whole.
    post.set(&[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.5")]);
    post.start_daemon().await;
    let many: Vec<_> = (0..40).map(|n| ticket(&format!("n{n}@example.bj"))).collect();
    post.broker.publish_all(&many).await;
    post.mails(41).await;
    post.wait_until_settled().await;
    post.wait_until_idle().await;
    post.stop_daemon().await;
    let traces = || collector.spans().into_iter().map(|span| span.trace).collect::<BTreeSet<_>>();
    // They may have been told a moment before the collector has read them.
    until("each trace that was begun is whole", async || {
        let traces = traces();
        let is_whole = |trace: &String| {
            let spans = collector.trace(trace);
            [PROCESS, ACK].into_iter().all(|name| !named(&spans, name).is_empty())
        };
        traces.len() >= 4 && traces.iter().all(is_whole)
    })
    .await;
    let traces = traces();
    assert!((4..=36).contains(&traces.len()), "{} of 40", traces.len());
    for trace in &traces {
        let of_trace = collector.trace(trace);
        only(&of_trace, PROCESS);
        only(&of_trace, ACK);
    }
    // And none at all.
    let before = collector.asked();
    post.set(&[("OTEL_TRACES_SAMPLER", "always_off")]);
    post.start_daemon().await;
    let request = ticket("eve@example.bj");
    Producer::new(true).publish(&post.broker, &request).await;
    post.database.wait_for(id(&request), "sent").await;
    post.wait_until_settled().await;
    post.stop_daemon().await;
    assert_eq!(collector.asked(), before);
}
