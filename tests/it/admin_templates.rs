//! A template is mended while the daemon runs: saved, compared, activated, rolled back, and by whom.

use postrider::templates::TemplateSource;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    daemon::{ADMIN_TOKEN, Daemon, OPERATOR_TOKEN, VIEWER_TOKEN},
    installation::Installation,
    requests::{id, set, templates, ticket, unset},
};

const TICKET: &str = "/api/v1/email/templates/support_ticket_created";

fn source() -> &'static TemplateSource {
    templates().iter().find(|template| template.key == "support_ticket_created").expect("it is there")
}

async fn post(daemon: &Daemon, path: &str) -> (StatusCode, Value) {
    daemon.post(&format!("{TICKET}{path}"), ADMIN_TOKEN, &json!({})).await
}

async fn save(daemon: &Daemon, path: &str, body: Value) -> (StatusCode, Value) {
    daemon.put(&format!("{TICKET}{path}"), ADMIN_TOKEN, &body).await
}

/// Version and state of each, newest first.
async fn states(daemon: &Daemon) -> Vec<(i64, String)> {
    let (status, list) = daemon.get(&format!("{TICKET}/versions"), VIEWER_TOKEN).await;
    assert_eq!(status, StatusCode::OK, "{list}");
    let items = list["items"].as_array().expect("items");
    assert_eq!(list["total"], items.len());
    items
        .iter()
        .map(|item| (item["version"].as_i64().expect("a number"), item["state"].as_str().expect("text").to_owned()))
        .collect()
}

fn is(found: &[(i64, String)], wanted: &[(i64, &str)]) {
    let found: Vec<_> = found.iter().map(|(version, state)| (*version, state.as_str())).collect();
    assert_eq!(found, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typo_is_mended_at_noon_without_a_deployment() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();

    let (status, draft) = save(daemon, "?draft=true", json!({ "subject": "Premier {{ticket_number}}\n" })).await;
    assert_eq!(
        (status, &draft["version"], &draft["state"]),
        (StatusCode::CREATED, &json!(2), &json!("draft")),
        "{draft}"
    );
    let request = post_office.publish(&ticket("before@example.bj")).await;
    post_office.database.wait_for(request, "sent").await;
    assert!(post_office.mails(1).await[0].subject.starts_with("Ticket support"), "a draft is not sent");

    let (status, saved) = save(daemon, "", json!({ "subject": "Second {{ticket_number}}\n", "based_on": 1 })).await;
    assert_eq!(
        (status, &saved["version"], &saved["state"]),
        (StatusCode::CREATED, &json!(3), &json!("active")),
        "{saved}"
    );
    let (_, shown) = daemon.get(TICKET, VIEWER_TOKEN).await;
    assert_eq!((&shown["version"], &shown["version_in_use"]), (&json!(3), &json!(3)), "in use before it is answered");
    assert_eq!(shown["text_content"], source().text, "what was not given stays");
    let request = post_office.publish(&ticket("after@example.bj")).await;
    assert_eq!(post_office.database.wait_for(request, "sent").await[0].template_version, Some(3));
    assert_eq!(post_office.mails(2).await[1].subject, "Second 4821");

    let again = save(daemon, "", json!({ "subject": "Second {{ticket_number}}\n" })).await;
    assert_eq!((again.0, &again.1["version"]), (StatusCode::OK, &json!(3)), "the same again is no new version");
    let former = save(daemon, "?draft=true", json!({ "subject": source().subject })).await;
    assert_eq!((former.0, &former.1["version"], &former.1["state"]), (StatusCode::OK, &json!(1), &json!("inactive")));
    is(&states(daemon).await, &[(3, "active"), (2, "draft"), (1, "former")]);

    let (_, difference) = daemon.get(&format!("{TICKET}/diff?from=2&to=3"), VIEWER_TOKEN).await;
    let parts = difference["parts"].as_array().expect("parts");
    assert_eq!((parts.len(), &parts[0]["part"]), (1, &json!("subject.hbs")), "{difference}");
    let unified = parts[0]["unified"].as_str().expect("text");
    assert!(
        unified.contains("-Premier {{ticket_number}}") && unified.contains("+Second {{ticket_number}}"),
        "{unified}"
    );

    let (status, whole) = daemon.get(&format!("{TICKET}/versions/2"), VIEWER_TOKEN).await;
    assert_eq!(
        (status, &whole["subject"], &whole["state"]),
        (StatusCode::OK, &json!("Premier {{ticket_number}}\n"), &json!("draft"))
    );
    assert_eq!((&whole["created_by"], &whole["manifest"]), (&json!("test-admin"), &json!(source().manifest_toml)));
    assert!(whole["partials_html"]["layout"].is_string(), "{whole}");
    for missing in ["/versions/9", "/diff?from=1&to=9"] {
        let (status, words) = daemon.get(&format!("{TICKET}{missing}"), VIEWER_TOKEN).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{words}");
        assert!(words["detail"].as_str().is_some_and(|detail| detail.contains('9')), "{words}");
    }

    let (_, changes) = daemon.get("/api/v1/email/changes?target=support_ticket_created", VIEWER_TOKEN).await;
    let told: Vec<_> = changes["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter(|line| line["changed_by"] == "operator:test-admin")
        .map(|line| (line["action"].clone(), line["before"].clone(), line["after"].clone()))
        .collect();
    let version = |version: i32| json!({ "version": version });
    assert_eq!(
        told,
        [
            (json!("template.activate"), version(1), version(3)),
            (json!("template.save"), Value::Null, version(3)),
            (json!("template.save"), Value::Null, version(2)),
        ]
    );
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_back_goes_back_and_not_to_and_fro() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    let (status, nothing) = post(daemon, "/rollback").await;
    assert_eq!(status, StatusCode::CONFLICT, "{nothing}");
    for number in 2..=3 {
        let (status, _) =
            save(daemon, "", json!({ "subject": format!("Number {number} {{{{ticket_number}}}}") })).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    for (version, before) in [(2, 3), (1, 2)] {
        let (status, back) = post(daemon, "/rollback").await;
        assert_eq!((status, &back["version"], &back["before"]), (StatusCode::OK, &json!(version), &json!(before)));
    }
    assert_eq!(post(daemon, "/rollback").await.0, StatusCode::CONFLICT, "there is no earlier one");
    is(&states(daemon).await, &[(3, "former"), (2, "former"), (1, "active")]);

    // From an old version onwards the way back begins anew.
    let (status, activated) = post(daemon, "/versions/3/activate").await;
    assert_eq!((status, &activated["before"]), (StatusCode::OK, &json!(1)), "{activated}");
    assert_eq!(post(daemon, "/rollback").await.1["version"], 1);
    let (_, shown) = daemon.get(TICKET, VIEWER_TOKEN).await;
    assert_eq!(shown["version_in_use"], 1);

    // A deactivation is rolled back as well.
    assert_eq!(post(daemon, "/deactivate").await.1["version"], Value::Null);
    assert_eq!(post(daemon, "/deactivate").await.0, StatusCode::CONFLICT);
    assert_eq!(post(daemon, "/rollback").await.1["version"], 1);
    assert_eq!(post(daemon, "/versions/9/activate").await.0, StatusCode::NOT_FOUND);
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deactivated_template_sends_nothing_and_says_what_to_do() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    let (status, off) = post(daemon, "/deactivate").await;
    assert_eq!((status, &off["before"]), (StatusCode::OK, &json!(1)), "{off}");
    let list = async |state: &str| {
        let (_, list) = daemon.get(&format!("/api/v1/email/templates{state}"), VIEWER_TOKEN).await;
        let items = list["items"].as_array().expect("items").clone();
        (items.len(), items.into_iter().find(|item| item["key"] == "support_ticket_created"))
    };
    let all = templates().len();
    assert_eq!(list("").await, (all - 1, None));
    let (count, item) = list("?state=inactive").await;
    assert_eq!((count, item.expect("it")["version"].clone()), (1, Value::Null));
    assert_eq!(list("?state=all").await.0, all);
    let (_, shown) = daemon.get(TICKET, VIEWER_TOKEN).await;
    assert_eq!(
        (&shown["is_active"], &shown["version"], &shown["version_in_use"]),
        (&json!(false), &json!(1), &Value::Null)
    );

    let request = post_office.publish(&ticket("nobody@example.bj")).await;
    let letter = post_office.database.wait_for_letter(request).await;
    assert_eq!(letter.reason, "unknown_template");
    let words = letter.error.expect("words");
    assert!(
        words.contains("postrider templates activate support_ticket_created 1") && words.contains("replay"),
        "{words}"
    );

    // Who pins a version has said what they want.
    let mut pinned = ticket("pinned@example.bj");
    pinned.template_version = 1;
    post_office.publish(&pinned).await;
    assert_eq!(post_office.mails(1).await[0].envelope_to, "pinned@example.bj");

    assert_eq!(post(daemon, "/versions/1/activate").await.0, StatusCode::OK);
    let letter = letter.id.to_string();
    assert_eq!(post_office.run(&["dead", "replay", &letter]).await.code, 0);
    assert_eq!(post_office.mails(2).await[1].envelope_to, "nobody@example.bj");
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_overtaken_is_told_and_changes_nothing() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    let body = |n: i32| json!({ "subject": format!("Number {n} {{{{ticket_number}}}}"), "expected_active": 1 });
    let (one, other) = tokio::join!(save(daemon, "", body(2)), save(daemon, "", body(3)));
    let mut answers = [one, other];
    answers.sort_by_key(|(status, _)| *status);
    assert_eq!((answers[0].0, answers[1].0), (StatusCode::CREATED, StatusCode::CONFLICT), "{answers:?}");
    assert_eq!(answers[1].1["versions"], json!({ "active": 2, "expected": 1 }));
    let words = answers[1].1["detail"].as_str().expect("words");
    assert!(words.contains("version 2 is active now") && words.contains("version 1"), "{words}");
    is(&states(daemon).await, &[(2, "active"), (1, "former")]);

    let late = json!({ "subject": "Late {{ticket_number}}", "based_on": 1 });
    assert_eq!(save(daemon, "", late).await.0, StatusCode::CONFLICT);
    for (path, expected) in [("/rollback", 1), ("/deactivate", 0), ("/versions/1/activate", 3)] {
        let body = json!({ "expected_active": expected });
        let (status, words) = daemon.post(&format!("{TICKET}{path}"), ADMIN_TOKEN, &body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{path}: {words}");
    }
    is(&states(daemon).await, &[(2, "active"), (1, "former")]);
    let body = json!({ "expected_active": 2 });
    assert_eq!(daemon.post(&format!("{TICKET}/rollback"), ADMIN_TOKEN, &body).await.0, StatusCode::OK);
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_look_changes_nothing_and_who_has_no_token_sees_nothing() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    let http = reqwest::Client::new();
    let body = json!({ "subject": "Number 2 {{ticket_number}}" });
    let changing = [
        (Method::PUT, "", &body),
        (Method::PUT, "?draft=true", &body),
        (Method::POST, "/versions/1/activate", &json!({})),
        (Method::POST, "/rollback", &json!({})),
        (Method::POST, "/deactivate", &json!({})),
    ];
    let looking = [
        (Method::GET, "", &Value::Null),
        (Method::GET, "/versions", &Value::Null),
        (Method::GET, "/versions/1", &Value::Null),
        (Method::GET, "/diff?from=1&to=1", &Value::Null),
        (Method::POST, "/lint", &json!({})),
        (Method::POST, "/preview", &json!({})),
        (Method::POST, "/test", &json!({ "variables": source().sample })),
    ];
    let ask = async |(method, path, body): &(Method, &str, &Value), token: Option<&str>| {
        let mut request = http.request(method.clone(), daemon.url(&format!("{TICKET}{path}")));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        request.send().await.expect("an answer").status()
    };
    for route in &changing {
        assert_eq!(ask(route, None).await, StatusCode::UNAUTHORIZED, "{route:?}");
        for token in [VIEWER_TOKEN, OPERATOR_TOKEN] {
            assert_eq!(ask(route, Some(token)).await, StatusCode::FORBIDDEN, "{route:?}");
        }
    }
    is(&states(daemon).await, &[(1, "active")]);
    for route in &looking {
        assert_eq!(ask(route, None).await, StatusCode::UNAUTHORIZED, "{route:?}");
        assert_eq!(ask(route, Some(VIEWER_TOKEN)).await, StatusCode::OK, "{route:?}");
    }
    let send = (Method::POST, "/test", &json!({ "variables": source().sample, "to": "a@example.bj", "send": true }));
    assert_eq!(ask(&send, Some(VIEWER_TOKEN)).await, StatusCode::FORBIDDEN);
    assert!(post_office.relay.log().mails.is_empty());
    assert_eq!(ask(&send, Some(OPERATOR_TOKEN)).await, StatusCode::OK);
    post_office.mails(1).await;
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_producers_send_now_stands_against_a_version_that_it_would_break() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    let mut last = None;
    for n in 0..4 {
        let mut request = ticket("a@example.bj");
        set(&mut request, "title", &format!("Zanzibar-{n}"));
        if n == 0 {
            set(&mut request, "customer", "Zanzibar-customer");
        }
        if n == 1 {
            unset(&mut request, "priority");
        }
        last = Some(post_office.publish(&request).await);
    }
    post_office.database.wait_for(last.expect("one"), "sent").await;
    post_office.wait_until_settled().await;
    post_office.database.wait_for_letters(1).await;

    let manifest = source().manifest_toml.replace("\"title\", ", "\"title\", \"customer\", ");
    let mut sample = source().sample.clone();
    sample.insert("customer".to_owned(), json!("Tech Connect SA"));
    let change = json!({
        "manifest": manifest, "sample": sample,
        "text_content": source().text.replace("{{title}}", "{{url title}} {{customer}}"),
    });
    let words = |answer: &Value| -> Vec<String> {
        let findings = answer["findings"].as_array().expect("findings");
        findings.iter().map(|f| format!("{} {}: {}", f["severity"], f["part"], f["words"])).collect()
    };
    let (status, linted) = daemon.post(&format!("{TICKET}/lint"), VIEWER_TOKEN, &change).await;
    assert_eq!((status, &linted["is_sound"]), (StatusCode::OK, &json!(false)), "{linted}");
    assert!(words(&linted).iter().any(|w| w.contains("fault") && w.contains("text.hbs")), "its own sample: {linted}");

    let mut change = change;
    change["text_content"] = json!(source().text.replace("{{title}}", "{{title}} {{customer}}"));
    let (status, linted) = daemon.post(&format!("{TICKET}/lint"), VIEWER_TOKEN, &change).await;
    assert_eq!((status, &linted["is_sound"]), (StatusCode::OK, &json!(true)), "{linted}");
    let found = words(&linted);
    for wanted in ["\"customer\\\" is missing or null in 3 of the 4", "\"priority\\\" is missing or null in 1 of the 4"]
    {
        assert!(found.iter().any(|w| w.starts_with("\"risk\"") && w.contains(wanted)), "{wanted}: {found:?}");
    }

    let (status, refused) = save(daemon, "", change.clone()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert_eq!(words(&refused), found);
    is(&states(daemon).await, &[(1, "active")]);
    let (status, draft) = save(daemon, "?draft=true", change.clone()).await;
    assert_eq!((status, words(&draft)), (StatusCode::CREATED, found.clone()));
    let (status, still) = post(daemon, "/versions/2/activate").await;
    assert_eq!((status, words(&still)), (StatusCode::UNPROCESSABLE_ENTITY, found.clone()));
    change["accept_findings"] = json!(true);
    let (status, active) = save(daemon, "", change).await;
    assert_eq!(
        (status, &active["version"], &active["state"]),
        (StatusCode::OK, &json!(2), &json!("active")),
        "{active}"
    );
    let (_, changes) = daemon.get("/api/v1/email/changes?action=template.activate", VIEWER_TOKEN).await;
    let accepted = changes["items"][0]["after"]["accepted"].as_array().expect("what was accepted");
    assert!(accepted.iter().any(|w| w.as_str().is_some_and(|w| w.contains("customer"))), "{changes}");

    // A kind of value that the version cannot show.
    let mut sample = source().sample.clone();
    sample.insert("title".to_owned(), json!("https://a.bj/title"));
    let link =
        json!({ "based_on": 1, "sample": sample, "text_content": source().text.replace("{{title}}", "{{url title}}") });
    let (_, link) = daemon.post(&format!("{TICKET}/lint"), VIEWER_TOKEN, &link).await;
    assert!(
        words(&link)
            .iter()
            .any(|w| w.contains("text.hbs") && w.contains("3 of the 4 newest requests would not render")),
        "{link}"
    );
    assert!(words(&link).iter().any(|w| w.contains("remark") && w.contains("customer")), "{link}");

    let everything = [&linted, &link, &refused, &draft, &still, &active, &changes].map(ToString::to_string).concat();
    assert!(!everything.contains("Zanzibar"), "no value leaves the database: {everything}");
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sound_is_not_saved_and_a_new_template_needs_all_its_parts() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    for (body, want) in [
        (json!({ "html_content": "{{#if title}}" }), "html.hbs"),
        (json!({ "text_content": "{{nobody}}" }), "nobody"),
        (json!({ "subject": "{{ticket_number}} [LIEN]" }), "placeholder"),
        (json!({ "manifest": "priority = 1" }), "manifest.toml"),
    ] {
        for path in ["", "?draft=true"] {
            let (status, answer) = save(daemon, path, body.clone()).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
            let findings = answer["findings"].to_string();
            assert!(findings.contains(want) && findings.contains("fault"), "{want}: {answer}");
        }
    }
    is(&states(daemon).await, &[(1, "active")]);

    let url = "/api/v1/email/templates/coupon_offer";
    let (status, missing) = daemon.put(url, ADMIN_TOKEN, &json!({ "subject": "x" })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let words = missing["detail"].as_str().expect("words");
    for part in ["manifest", "html_content", "text_content", "sample"] {
        assert!(words.contains(part), "{words}");
    }
    let (status, _) = daemon.put("/api/v1/email/templates/Coupon-Offer", ADMIN_TOKEN, &json!({ "subject": "x" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(daemon.get(url, VIEWER_TOKEN).await.0, StatusCode::NOT_FOUND);
    let new = json!({
        "manifest": "description = \"Bon\"\ncategory = \"support\"\npriority = \"P1\"\ndeadline_seconds = 60\n\
                     locale = \"fr\"\nrequired = [\"code\"]",
        "subject": "Bon {{code}}", "text_content": "{{code}}\n", "sample": { "code": "A1" },
        "html_content": "<!DOCTYPE html><html lang=\"fr\"><head><title>Bon</title></head><body>{{code}}</body></html>",
    });
    let (status, linted) = daemon.post(&format!("{url}/lint"), VIEWER_TOKEN, &new).await;
    assert_eq!((status, &linted["is_sound"]), (StatusCode::OK, &json!(true)), "{linted}");
    let (status, draft) = daemon.put(&format!("{url}?draft=true"), ADMIN_TOKEN, &new).await;
    assert_eq!((status, &draft["state"]), (StatusCode::CREATED, &json!("draft")), "{draft}");
    let (_, shown) = daemon.get(url, VIEWER_TOKEN).await;
    assert_eq!((&shown["version"], &shown["is_active"]), (&json!(1), &json!(false)), "{shown}");

    // A draft is tried out before anybody else gets it.
    let test = json!({ "to": "me@example.bj", "variables": { "code": "T7" }, "version": 1, "send": true });
    let (status, tested) = daemon.post(&format!("{url}/test"), OPERATOR_TOKEN, &test).await;
    assert_eq!((status, &tested["template_version"]), (StatusCode::OK, &json!(1)), "{tested}");
    assert_eq!(post_office.mails(1).await[0].subject, "Bon T7");
    let (status, active) = daemon.post(&format!("{url}/versions/1/activate"), ADMIN_TOKEN, &json!({})).await;
    assert_eq!((status, &active["version"], &active["before"]), (StatusCode::OK, &json!(1), &Value::Null), "{active}");
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_shows_what_is_not_saved_yet() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    let preview = async |body: Value| daemon.post(&format!("{TICKET}/preview"), VIEWER_TOKEN, &body).await;
    let (status, shown) = preview(json!({ "source": { "subject": "Essai {{ticket_number}}" } })).await;
    assert_eq!((status, &shown["subject"]), (StatusCode::OK, &json!("Essai 4821")), "with the sample: {shown}");
    let mut variables = source().sample.clone();
    variables.insert("title".to_owned(), json!("<script>alert(1)</script>"));
    let (_, shown) = preview(json!({ "variables": variables })).await;
    let html = shown["html"].as_str().expect("HTML");
    assert!(html.contains("&lt;script&gt;") && !html.contains("<script>alert"), "{html}");
    variables.remove("title");
    let (status, shown) = preview(json!({ "variables": variables })).await;
    assert_eq!((status, &shown["html"]), (StatusCode::OK, &Value::Null));
    assert!(shown["faults"].to_string().contains("title"), "{shown}");
    let (_, shown) = preview(json!({ "source": { "html_content": "\n{{nobody}}" } })).await;
    assert_eq!((&shown["faults"][0]["part"], &shown["faults"][0]["line"]), (&json!("html.hbs"), &json!(2)), "{shown}");
    for (path, body) in
        [("/preview", json!({ "locale": "x".repeat(36) })), ("/test", json!({ "locale": "x".repeat(36) }))]
    {
        let (status, said) = daemon.post(&format!("{TICKET}{path}"), VIEWER_TOKEN, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {said}");
        assert!(said["detail"].as_str().is_some_and(|words| words.starts_with("locale: ")), "{said}");
    }
    let large = json!({ "source": { "text_content": "x".repeat(2 << 20) } });
    assert_eq!(preview(large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    is(&states(daemon).await, &[(1, "active")]);
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_language_is_added_and_no_mail_is_in_two() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    let (_, shown) = daemon.get(TICKET, VIEWER_TOKEN).await;
    assert_eq!((&shown["locale"], shown["variants"].as_object().map(serde_json::Map::len)), (&json!("fr"), Some(1)));
    let english = shown["variants"]["en"].clone();
    assert!(english["partials_html"]["layout"].is_string(), "{english}");
    let mut german = english.clone();
    german["subject"] = json!("Ticket #{{ticket_number}} angelegt");
    german["html_content"] = json!("\n{{nobody}}");
    let refused = save(daemon, "", json!({ "variants": { "en": english, "de": german } })).await;
    assert_eq!(refused.0, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        (&refused.1["findings"][0]["part"], &refused.1["findings"][0]["line"]),
        (&json!("html.de.hbs"), &json!(2))
    );
    german["html_content"] = english["html_content"].clone();
    let body = json!({ "variants": { "en": english, "de": german } });
    let preview = json!({ "source": body, "locale": "de-AT" });
    let (status, seen) = daemon.post(&format!("{TICKET}/preview"), VIEWER_TOKEN, &preview).await;
    assert_eq!((status, &seen["subject"]), (StatusCode::OK, &json!("Ticket #4821 angelegt")), "{seen}");
    assert_eq!(save(daemon, "", body).await.0, StatusCode::CREATED);

    let mut sent = 0;
    for (asked, subject) in [
        ("de-AT", "Ticket #4821 angelegt"),
        ("en", "Support ticket #4821 created"),
        ("es", "Ticket support #4821 créé"),
    ] {
        let mut request = ticket(&format!("{asked}@example.bj"));
        request.locale = asked.to_owned();
        post_office.publish(&request).await;
        post_office.database.wait_for(id(&request), "sent").await;
        sent += 1;
        assert_eq!(post_office.mails(sent).await[sent - 1].subject, subject);
    }
    let tested = json!({ "variables": source().sample, "locale": "en-US", "to": "me@example.bj", "send": true });
    let (status, tested) = daemon.post(&format!("{TICKET}/test"), ADMIN_TOKEN, &tested).await;
    assert_eq!((status, &tested["subject"]), (StatusCode::OK, &json!("Support ticket #4821 created")), "{tested}");
    assert_eq!(post_office.mails(4).await[3].subject, "Support ticket #4821 created");
    let (_, difference) = daemon.get(&format!("{TICKET}/diff?from=1&to=2"), VIEWER_TOKEN).await;
    let parts = difference["parts"].as_array().expect("parts");
    assert!(
        parts.iter().all(|part| part["part"].as_str().is_some_and(|name| name.ends_with(".de.hbs"))),
        "{difference}"
    );
    // The same without it: what is given of the variants is all of them.
    let (_, saved) = save(daemon, "?draft=true", json!({ "variants": {} })).await;
    let (_, whole) = daemon.get(&format!("{TICKET}/versions/{}", saved["version"]), VIEWER_TOKEN).await;
    assert_eq!(whole["variants"], json!({}));
    post_office.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_looked_at_and_switched_on_the_command_line() {
    let post_office = Installation::start().await;
    let daemon = post_office.daemon();
    save(daemon, "?draft=true", json!({ "subject": "Essai {{ticket_number}}\n" })).await;
    let run = async |arguments: &[&str]| post_office.run(&[&["templates"], arguments].concat()).await;
    let key = "support_ticket_created";
    let listed = run(&["versions", key]).await;
    assert!(listed.code == 0 && listed.out.contains("draft") && listed.out.contains("active"), "{listed:?}");
    let json = run(&["versions", key, "--json"]).await.json();
    assert_eq!((&json["total"], &json["items"][0]["state"]), (&json!(2), &json!("draft")));
    let difference = run(&["diff", key]).await;
    assert!(difference.code == 0 && difference.out.contains("+Essai {{ticket_number}}"), "{difference:?}");
    assert_eq!(
        run(&["diff", key, "--from", "1", "--to", "2", "--json"]).await.json()["parts"][0]["part"],
        "subject.hbs"
    );
    let shown = run(&["show", key, "2"]).await;
    assert!(shown.code == 0 && shown.out.contains("==> subject.hbs <==\nEssai {{ticket_number}}"), "{shown:?}");
    assert_eq!(run(&["show", key, "--json"]).await.json()["version"], 1);

    let activated = run(&["activate", key, "2", "--by", "ada", "--json"]).await.json();
    assert_eq!((&activated["version"], &activated["before"]), (&json!(2), &json!(1)));
    assert_eq!(run(&["activate", key, "1", "--expected-active", "1"]).await.code, 1);
    assert_eq!(run(&["activate", key, "9"]).await.code, 1);
    assert_eq!(run(&["rollback", key, "--by", "ada"]).await.code, 0);
    assert_eq!(run(&["rollback", key]).await.code, 1);
    let off = run(&["deactivate", key, "--by", "ada"]).await;
    assert!(off.code == 0 && off.out.contains("dead letters"), "{off:?}");
    for wrong in [&["versions", "no_such"][..], &["show", "no_such"], &["diff", "no_such"], &["deactivate", key]] {
        assert_eq!(run(wrong).await.code, 1, "{wrong:?}");
    }
    assert_eq!(run(&["activate", key, "0"]).await.code, 2);
    let (_, changes) = daemon.get("/api/v1/email/changes?by=ada", VIEWER_TOKEN).await;
    let actions: Vec<_> =
        changes["items"].as_array().expect("items").iter().map(|line| line["action"].clone()).collect();
    assert_eq!(actions, ["template.deactivate", "template.roll_back", "template.activate"]);
    post_office.finish().await;
}
