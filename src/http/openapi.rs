//! The API's description (OpenAPI 3.1), generated from the handlers and the types that they take and answer.
//!
//! Invariant: an answer has all its members, null where there is nothing, so that its description requires them all.

use std::{collections::BTreeSet, sync::Arc};

use axum::{Extension, Json};
use serde_json::{Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self, RefOr, Schema,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Admin, auth::Operator, problem::Unauthorized};

/// Where descriptions of types stand in the document.
const SCHEMAS: &str = "#/components/schemas/";

/// Problems whose further members are there only where there is something to say.
const PROBLEMS_WITH_MORE: [&str; 2] = ["UnfitTemplate", "TemplateConflict"];

/// What is not said by handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "postrider admin API",
        description = "What operators see and steer. There is no route that sends a mail around the broker.\n\n\
            Lists are pages, newest first: `total` is exact up to 10,000, and `next`, if there is one, is the `cursor` of the \
            next page. Answers have all their members, null where there is nothing, or where the token's role may not see it. \
            Errors are problem details (RFC 9457); also 404 where there is no route, 405 with `Allow` where there is none for \
            the method, 421 for a name that is not in ADMIN_HOSTS, and 400, 408, 414, 417, 431, 501, 503 and 505 for what \
            becomes no request.",
        license(name = "MIT OR Apache-2.0")
    ),
    servers((url = "/", description = "The admin listener")),
    // What only refusals refer to is not found by itself.
    components(schemas(super::templates::UnfitTemplate, super::templates::TemplateConflict)),
    security(("token" = [])),
    modifiers(&Token)
)]
pub(super) struct Description;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("One of ADMIN_TOKENS; its role says what it may do"))
            .build();
        document
            .components
            .get_or_insert_default()
            .security_schemes
            .insert("token".to_owned(), SecurityScheme::Http(token));
    }
}

/// `/api/v1/openapi.json`; it describes itself as well.
pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(document))
}

/// This description
#[utoipa::path(
    get, path = "/openapi.json", tag = "description", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Unauthorized)
)]
async fn document(
    _operator: Operator,
    Extension(all): Extension<Arc<openapi::OpenApi>>,
) -> Json<Arc<openapi::OpenApi>> {
    Json(all)
}

/// Requires what answers always have. What stands in a request body too stays as it is: there, members may be left out.
pub(super) fn complete(mut document: openapi::OpenApi) -> openapi::OpenApi {
    let mut asked = in_requests(&document);
    asked.extend(PROBLEMS_WITH_MORE.map(str::to_owned));
    if let Some(components) = &mut document.components {
        for (_, schema) in components.schemas.iter_mut().filter(|(name, _)| !asked.contains(*name)) {
            require_all(schema);
        }
    }
    document
}

fn require_all(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::Object(object)) => object.required = object.properties.keys().cloned().collect(),
        RefOr::T(Schema::AllOf(all)) => all.items.iter_mut().for_each(require_all),
        _ => {}
    }
}

/// The names of all types that request bodies are made of.
fn in_requests(document: &openapi::OpenApi) -> BTreeSet<String> {
    let document = json!(document);
    let mut found = BTreeSet::new();
    let operations = document["paths"].as_object().into_iter().flatten().filter_map(|(_, path)| path.as_object());
    for operation in operations.flat_map(|path| path.values()) {
        references(&operation["requestBody"], &document, &mut found);
    }
    found
}

/// Adds what a description refers to, and what that refers to.
fn references(value: &Value, document: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            let name = members.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(SCHEMAS));
            if let Some(name) = name.filter(|name| found.insert((*name).to_owned())) {
                references(&document["components"]["schemas"][name], document, found);
            }
            members.values().for_each(|value| references(value, document, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, document, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::http::areas;

    #[test]
    fn a_type_of_one_name_is_one_type() {
        // Whichever area came last would have described it for all.
        let mut known = BTreeMap::new();
        for area in areas() {
            for (name, schema) in area.into_openapi().components.unwrap_or_default().schemas {
                let schema = json!(schema);
                let first = known.entry(name.clone()).or_insert_with(|| schema.clone());
                assert_eq!(*first, schema, "two types are called {name}");
            }
        }
        assert!(known.contains_key("ProblemDetails"));
    }
}
