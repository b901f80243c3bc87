//! The API's description (OpenAPI 3.1), generated from the handlers and the types that they take and answer.

use std::sync::Arc;

use axum::{Extension, Json};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Admin, auth::Operator, problem::Refusals};

/// What is not said by handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "postrider admin API",
        description = "What operators see and steer. There is no route that sends a mail around the broker.",
        license(name = "MIT OR Apache-2.0")
    ),
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
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Refusals)
)]
async fn document(
    _operator: Operator,
    Extension(all): Extension<Arc<openapi::OpenApi>>,
) -> Json<Arc<openapi::OpenApi>> {
    Json(all)
}
