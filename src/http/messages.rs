//! `GET /api/v1/email/messages?to=&limit=`: "did they get it?"

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, auth::Operator, problem::Problem};
use crate::{
    config::Role,
    email::EmailAddress,
    store::messages::{MessageFilter, MessageSummary},
};

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MAX: i64 = 500;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    to: Option<String>,
    limit: Option<i64>,
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    operator: Operator,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(params) = params.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let limit = params.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, format!("limit must be 1 to {LIMIT_MAX}")));
    }
    let recipient_hash = match params.to.as_deref() {
        None => None,
        Some(text) => {
            let address = EmailAddress::parse(text)
                .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("to: {error}")))?;
            Some(admin.store.address_hash(&address.key()))
        }
    };
    let filter = MessageFilter { recipient_hash, request_ids: None, limit };
    let page = admin.store.messages(&filter).await?;
    let personal = operator.needs(Role::Operator).is_ok();
    let items: Vec<Value> = page.items.iter().map(|m| message_json(m, personal)).collect();
    Ok(Json(json!({ "items": items, "total": page.total, "total_is_exact": page.total_is_exact })))
}

/// One mail of a list. Without the right to see persons' data, the address is masked and the subject is left out.
#[must_use]
pub fn message_json(message: &MessageSummary, personal: bool) -> Value {
    let to = message.to.as_deref().map(|to| match (personal, EmailAddress::parse(to)) {
        (true, _) => to.to_owned(),
        (false, Ok(address)) => address.masked(),
        (false, Err(_)) => "***".to_owned(),
    });
    json!({
        "id": message.id,
        "request_id": message.request_id,
        "to": to,
        "subject": message.subject.as_deref().filter(|_| personal),
        "status": message.status,
        "sent_at": message.sent_at,
        "delivered_at": message.delivered_at,
        "bounce_type": message.bounce_type,
        "bounce_subtype": message.bounce_subtype,
        "complaint_type": message.complaint_type,
        "created_at": message.created_at,
        "template_key": message.template_key,
        "template_version": message.template_version,
        "lane": message.lane,
        "attempts": message.attempts,
        "latency_ms": message.latency_ms,
        "reason": message.reason,
        "error": message.error.as_deref().filter(|_| personal),
    })
}
