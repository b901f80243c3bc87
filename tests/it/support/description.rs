//! The API's own description as a judge: what it does not tell of, no test takes as an answer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, LazyLock, Mutex},
};

use jsonschema::{Draft, Validator};
use reqwest::{
    Method, RequestBuilder, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderMap},
};
use serde_json::{Map, Value, json};

/// Where the API is; pages are described by nobody.
const API: &str = "/api/v1/";
const PROBLEM: &str = "application/problem+json";

/// The description, as the daemon gives it.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| json!(postrider::http::description()));

/// The same, with every type closed: a member that is not described is a fault as well.
static CLOSED: LazyLock<Value> = LazyLock::new(|| closed(DOCUMENT.clone()));

/// What a daemon answered.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What kind of body it says it has, without parameters such as a charset.
    pub fn content_type(&self) -> &str {
        let told = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        told.split(';').next().unwrap_or_default().trim()
    }
}

/// Sends a request to the admin listener; panics unless the API's description tells of the answer.
pub async fn ask(request: RequestBuilder) -> Answer {
    try_ask(request).await.expect("an answer")
}

/// The same, where there may be nobody who answers.
pub async fn try_ask(request: RequestBuilder) -> reqwest::Result<Answer> {
    let (http, request) = request.build_split();
    let request = request?;
    let (method, path) = (request.method().clone(), request.url().path().to_owned());
    let answer = http.execute(request).await?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let answer = Answer { status, headers, body: answer.bytes().await?.to_vec() };
    if let Err(fault) = judge(&method, &path, &answer) {
        panic!("{method} {path} answers {status}, and {fault}: {}", answer.text());
    }
    Ok(answer)
}

/// Why this is no answer that the description tells of.
pub fn judge(method: &Method, path: &str, answer: &Answer) -> Result<(), String> {
    let Some(template) = template_of(path) else {
        return match (path.starts_with(API), answer.status) {
            (true, StatusCode::NOT_FOUND) => problem(answer),
            (true, _) => Err("there is no such path in the description".to_owned()),
            (false, _) => Ok(()),
        };
    };
    let word = if method == Method::HEAD { "get" } else { &method.as_str().to_lowercase() };
    let operation = &DOCUMENT["paths"][template][word];
    if operation.is_null() {
        if answer.status != StatusCode::METHOD_NOT_ALLOWED || !answer.headers.contains_key(ALLOW) {
            return Err("the description has no such method: that is a 405 with Allow".to_owned());
        }
        return problem(answer);
    }
    let status = answer.status.as_str();
    let content = &operation["responses"][status]["content"];
    let Some(content) = content.as_object() else { return Err("the description has no such status".to_owned()) };
    let kind = answer.content_type();
    if !content.contains_key(kind) {
        return Err(format!("the description has no {kind} for it"));
    }
    if method == Method::HEAD || !kind.ends_with("json") {
        return Ok(());
    }
    let escaped = |part: &str| part.replace('~', "~0").replace('/', "~1");
    let place = format!("/paths/{}/{word}/responses/{status}/content/{}/schema", escaped(template), escaped(kind));
    conforms(&place, answer)
}

fn problem(answer: &Answer) -> Result<(), String> {
    if answer.content_type() != PROBLEM {
        return Err(format!("it is {} and no problem", answer.content_type()));
    }
    if answer.body.is_empty() { Ok(()) } else { conforms("/components/schemas/ProblemDetails", answer) }
}

/// The path of the description that this one is an instance of; words win over parameters.
fn template_of(path: &str) -> Option<&'static str> {
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    let fits = |template: &str| {
        let (mut ours, mut theirs) = (template.split('/'), path.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(part), Some(word)) if part == word => {}
                (Some(part), Some(word)) if part.starts_with('{') && !word.is_empty() => {}
                _ => return false,
            }
        }
    };
    let fitting = paths.keys().map(String::as_str).filter(|template| fits(template));
    fitting.min_by_key(|template| template.matches('{').count())
}

fn conforms(place: &str, answer: &Answer) -> Result<(), String> {
    static KNOWN: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let body: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("its body is no JSON: {error}"))?;
    let known = KNOWN.lock().expect("nobody panics with it").get(place).map(Arc::clone);
    let validator = known.unwrap_or_else(|| {
        let made = Arc::new(validator(place));
        KNOWN.lock().expect("nobody panics with it").insert(place.to_owned(), Arc::clone(&made));
        made
    });
    let faults: Vec<String> =
        validator.iter_errors(&body).map(|error| format!("{error} at {}", error.instance_path)).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

fn validator(place: &str) -> Validator {
    let schema = CLOSED.pointer(place).unwrap_or_else(|| panic!("the description has no {place}"));
    // What it refers to is looked for in the same document.
    let whole = json!({ "allOf": [schema], "components": CLOSED["components"] });
    let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
    options.build(&whole).unwrap_or_else(|error| panic!("{place}: {error}"))
}

/// Every type that is no part of another takes no members that it does not describe.
fn closed(mut document: Value) -> Value {
    let mut parts = BTreeSet::new();
    collect_parts(&document, &mut parts);
    let schemas = document["components"]["schemas"].as_object_mut().expect("types");
    for (name, schema) in schemas.iter_mut() {
        let schema: &mut Map<String, Value> = schema.as_object_mut().expect("a type");
        if !parts.contains(name) && (schema.contains_key("properties") || schema.contains_key("allOf")) {
            schema.insert("unevaluatedProperties".to_owned(), json!(false));
        }
    }
    document
}

fn collect_parts(value: &Value, parts: &mut BTreeSet<String>) {
    if let Some(all) = value["allOf"].as_array() {
        let names = all.iter().filter_map(|part| part["$ref"].as_str()?.rsplit('/').next());
        parts.extend(names.map(str::to_owned));
    }
    match value {
        Value::Object(members) => members.values().for_each(|value| collect_parts(value, parts)),
        Value::Array(items) => items.iter().for_each(|value| collect_parts(value, parts)),
        _ => {}
    }
}
