//! The API's description: sound, complete, and what the daemon itself hands out.

use std::collections::HashSet;

use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::support::{
    daemon::{ADMIN_TOKEN, VIEWER_TOKEN},
    description::{Answer, DOCUMENT, ask, judge},
    installation::Installation,
};

/// Every operation with its path and method.
fn operations() -> impl Iterator<Item = (String, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods");
        methods.iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    })
}

fn all_in<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get(name));
            members.values().for_each(|value| all_in(value, name, found));
        }
        Value::Array(items) => items.iter().for_each(|value| all_in(value, name, found)),
        _ => {}
    }
}

#[test]
fn it_is_openapi_3_1_and_refers_to_nothing_that_is_not_there() {
    // The schema of the OpenAPI Initiative, version 2022-10-07.
    let schema: Value = serde_json::from_str(include_str!("support/openapi_3.1.json")).expect("JSON");
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    let faults: Vec<_> =
        validator.iter_errors(&DOCUMENT).map(|error| format!("{error} at {}", error.instance_path)).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let mut schemas = Vec::new();
    all_in(&DOCUMENT, "schema", &mut schemas);
    schemas.extend(DOCUMENT["components"]["schemas"].as_object().expect("types").values());
    for schema in schemas {
        assert!(jsonschema::draft202012::meta::is_valid(schema), "{schema}");
    }
    let mut references = Vec::new();
    all_in(&DOCUMENT, "$ref", &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let place = reference.as_str().and_then(|to| to.strip_prefix('#')).expect("a place in the document");
        assert!(DOCUMENT.pointer(place).is_some(), "{place}");
    }
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(DOCUMENT["servers"][0]["url"], "/", "wherever it is installed");
}

#[test]
fn every_operation_says_who_may_ask_what_is_asked_and_how_it_is_refused() {
    let mut ids = HashSet::new();
    for (name, operation) in operations() {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{name} has no id"));
        assert!(ids.insert(id), "{name}: {id} is another's too");
        assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{name}: {operation}");
        let responses = operation["responses"].as_object().expect("responses");
        let is_open = operation["security"] == json!([{}]);
        assert_eq!(is_open, !name.contains("/api/"), "{name}: only health is for everybody");
        assert_eq!(responses.contains_key("401"), !is_open, "{name}");
        for (status, response) in responses {
            assert!(response["description"].as_str().is_some_and(|words| !words.is_empty()), "{name} {status}");
            let content = response["content"].as_object().unwrap_or_else(|| panic!("{name} {status} has no content"));
            let is_problem = status.starts_with(['4', '5']) && !name.ends_with("/readyz");
            assert_eq!(content.contains_key("application/problem+json"), is_problem, "{name} {status}");
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string() && !parameter["schema"].is_null(), "{name}: {parameter}");
            let expected: &[&str] = if parameter["in"] == "path" { &["404"] } else { &["400"] };
            assert!(expected.iter().all(|status| responses.contains_key(*status)), "{name}: {parameter}");
        }
        if !operation["requestBody"].is_null() {
            let expected = ["400", "413", "415", "422"];
            assert!(expected.iter().all(|status| responses.contains_key(*status)), "{name}: {:?}", responses.keys());
        }
    }
    assert!(ids.len() >= 15, "{ids:?}");
}

#[test]
fn an_answer_that_is_not_described_is_told() {
    let list = "/api/v1/email/changes";
    let answer = |status: StatusCode, kind: &'static str, body: Value| Answer {
        status,
        headers: HeaderMap::from_iter([(reqwest::header::CONTENT_TYPE, kind.parse().expect("a header"))]),
        body: body.to_string().into_bytes(),
    };
    let page = json!({ "items": [], "total": 0, "total_is_exact": true, "next": null });
    let problem = json!({ "type": "about:blank", "title": "x", "status": 400, "detail": "x" });
    let with = |name: &str, value: Value| {
        let mut page = page.clone();
        page[name] = value;
        page
    };
    let mut without = page.clone();
    without.as_object_mut().expect("members").remove("next");
    for (method, path, answer, expected) in [
        (Method::GET, list, answer(StatusCode::OK, "application/json", page.clone()), None),
        (Method::GET, list, answer(StatusCode::OK, "application/json; charset=utf-8", page.clone()), None),
        (Method::GET, list, answer(StatusCode::BAD_REQUEST, "application/problem+json", problem.clone()), None),
        (Method::GET, list, answer(StatusCode::OK, "text/plain", page.clone()), Some("text/plain")),
        (Method::GET, list, answer(StatusCode::ACCEPTED, "application/json", page.clone()), Some("no such status")),
        (
            Method::GET,
            list,
            answer(StatusCode::BAD_REQUEST, "application/json", page.clone()),
            Some("application/json"),
        ),
        (Method::GET, list, answer(StatusCode::OK, "application/json", with("total", json!("0"))), Some("integer")),
        (Method::GET, list, answer(StatusCode::OK, "application/json", with("more", json!(1))), Some("more")),
        (Method::GET, list, answer(StatusCode::OK, "application/json", without), Some("next")),
        (Method::PUT, list, answer(StatusCode::OK, "application/json", page.clone()), Some("405")),
        (Method::GET, "/api/v1/email/x", answer(StatusCode::OK, "application/json", page), Some("no such path")),
        (Method::GET, "/api/v1/email/x", answer(StatusCode::NOT_FOUND, "text/plain", problem), Some("no problem")),
    ] {
        let fault = judge(&method, path, &answer).err();
        match (expected, fault) {
            (None, None) => {}
            (Some(words), Some(fault)) => assert!(fault.contains(words), "{words}: {fault}"),
            other => panic!("{method} {path} {}: {other:?}", answer.text()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_hands_it_out_and_refuses_whatever_is_not_in_it_with_a_problem() {
    let post = Installation::start().await;
    let (status, document) = post.daemon().get("/api/v1/openapi.json", VIEWER_TOKEN).await;
    assert_eq!((status, &document), (StatusCode::OK, &*DOCUMENT));

    let http = reqwest::Client::new();
    let list = "/api/v1/email/suppressions";
    let send = |method: Method, path: &str| http.request(method, post.daemon().url(path)).bearer_auth(ADMIN_TOKEN);
    let json = |body: &str| send(Method::POST, list).header("content-type", "application/json").body(body.to_owned());
    for (request, expected) in [
        (send(Method::GET, "/api/v1/email/nothing"), 404),
        (send(Method::GET, "/api/v1/email/suppressions/%ff"), 400),
        (send(Method::GET, "/api/v1/email/messages/%ff"), 400),
        (send(Method::GET, "/api/v1/email/messages?to=%ff"), 400),
        (send(Method::GET, "/api/v1/email/messages?limit=1&limit=2"), 400),
        (send(Method::OPTIONS, list), 405),
        (send(Method::PUT, list), 405),
        (send(Method::TRACE, list), 405),
        (send(Method::HEAD, list), 200),
        (send(Method::POST, list).body("{}"), 415),
        (json("{"), 400),
        (json("[]"), 422),
        (json(r#"["someone@example.org", null, null, null, null]"#), 422),
        (json(&format!("{{\"address\": \"{}\"}}", "x".repeat(1024 * 1024))), 413),
    ] {
        // Whether the answer is a problem, and has Allow, is looked at there.
        let shown = format!("{request:?}");
        assert_eq!(ask(request).await.status.as_u16(), expected, "{shown}");
    }
    post.finish().await;
}
