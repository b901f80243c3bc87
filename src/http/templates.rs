//! `/api/v1/email/templates`: which there are, and what one makes of some variables.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Admin, auth::Operator, problem::Problem};
use crate::{
    broker::topology,
    config::Role,
    email::{EmailAddress, Priority},
    publish::{self, Draft},
    templates::{CompiledTemplate, System},
};

pub(super) async fn list(State(admin): State<Arc<Admin>>, _operator: Operator) -> Result<Json<Value>, Problem> {
    let heads = admin.store.template_heads().await?;
    let items: Vec<Value> = heads
        .iter()
        .map(|t| {
            json!({
                "key": t.key, "subject": t.subject.trim_end(), "category": t.category, "version": t.version,
                "updated_at": t.updated_at,
            })
        })
        .collect();
    let total = items.len();
    Ok(Json(json!({ "items": items, "total": total })))
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    Path(key): Path<String>,
) -> Result<Json<Value>, Problem> {
    let template = find(&admin, &key)?;
    let manifest = template.manifest();
    let stored = admin.store.template_version(&key, template.version()).await?;
    let source = stored.map(|s| s.source).unwrap_or_default();
    Ok(Json(json!({
        "key": template.key(),
        "version": template.version(),
        "description": manifest.description,
        "category": manifest.category,
        "priority": manifest.priority.to_string(),
        "tries": manifest.tries,
        "deadline_seconds": manifest.deadline.as_secs(),
        "required_variables": manifest.required,
        "optional_variables": manifest.optional,
        "attachments_allowed": !manifest.attachments.is_empty(),
        "attachments": manifest.attachments,
        "is_active": true,
        "subject": source["subject"],
        "html_content": source["html"],
        "text_content": source["text"],
        "sample": source["sample"],
    })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Test {
    to: Option<String>,
    #[serde(default)]
    variables: Map<String, Value>,
    #[serde(default)]
    send: bool,
}

/// Renders, and sends only when asked to: as a request through the broker, marked as a test.
pub(super) async fn test(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    Path(key): Path<String>,
    body: Result<Json<Test>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let Json(test) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let template = find(&admin, &key)?;
    let system = System {
        request_date: Utc::now(),
        attachments: &[],
        support_email: admin.mail.support_email.as_deref(),
        support_phone: admin.mail.support_phone.as_deref(),
        timezone: admin.mail.timezone,
        locale: &template.manifest().locale,
    };
    let mail = template
        .render(&test.variables, &system)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    let mut answer = json!({
        "template_version": mail.template_version, "subject": mail.subject, "html": mail.html, "text": mail.text,
        "sent": false,
    });
    if test.send {
        operator.needs(Role::Operator)?;
        let to = test.to.as_deref().unwrap_or_default();
        EmailAddress::parse(to).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("to: {error}")))?;
        let id = send(&admin, &template, to, test.variables).await?;
        answer["sent"] = json!(true);
        answer["request_id"] = json!(id);
    }
    Ok(Json(answer))
}

async fn send(
    admin: &Admin,
    template: &CompiledTemplate,
    to: &str,
    variables: Map<String, Value>,
) -> Result<Uuid, Problem> {
    let id = Uuid::new_v4();
    let draft = Draft {
        request_id: id,
        source: "test".to_owned(),
        template_key: template.key().to_owned(),
        template_version: u32::try_from(template.version()).unwrap_or(0),
        to: vec![to.to_owned()],
        variables,
        attachments: Vec::new(),
        priority: Priority::P1,
        metadata: [("test".to_owned(), "true".to_owned())].into(),
    };
    let outgoing = publish::outgoing(&draft.into_wire(), topology::REQUESTS)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    admin
        .publisher
        .publish(&outgoing)
        .await
        .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    Ok(id)
}

fn find(admin: &Admin, key: &str) -> Result<Arc<CompiledTemplate>, Problem> {
    admin
        .catalogue
        .active(key)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no active template of this key"))
}
