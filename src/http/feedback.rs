//! `GET /api/v1/email/feedback/report?silent_hours=&days=&limit=`: what providers did not tell, and what they told of nobody.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use chrono::{TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, auth::Operator, params, problem::Problem};
use crate::store::feedback::report::FeedbackReport;

const SILENT_HOURS_DEFAULT: u32 = 24;
const SILENT_HOURS_MAX: u32 = 8760;
const DAYS_DEFAULT: u32 = 7;
const DAYS_MAX: u32 = 90;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    silent_hours: Option<u32>,
    days: Option<u32>,
    limit: Option<i64>,
}

pub(super) async fn report(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let params = params::query(params)?;
    let silent_hours = params.silent_hours.unwrap_or(SILENT_HOURS_DEFAULT);
    let days = params.days.unwrap_or(DAYS_DEFAULT);
    let limit = params::limit(params.limit)?;
    if silent_hours > SILENT_HOURS_MAX {
        return Err(params::bad(format!("silent_hours must be 0 to {SILENT_HOURS_MAX}")));
    }
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(params::bad(format!("days must be 1 to {DAYS_MAX}")));
    }
    let since = Utc::now() - TimeDelta::days(i64::from(days));
    let silent_for = Duration::from_secs(u64::from(silent_hours) * 3600);
    Ok(Json(report_json(&admin.store.feedback_report(since, silent_for, limit).await?)))
}

/// The report as the API and `--json` give it.
#[must_use]
pub fn report_json(report: &FeedbackReport) -> Value {
    let silent = report.silent.iter().map(|mail| {
        json!({
            "id": mail.id, "request_id": mail.request_id, "template": mail.template_key, "sent_at": mail.sent_at,
            "relay": mail.relay, "relay_message_id": mail.relay_message_id,
        })
    });
    let for_nobody = report.for_nobody.iter().map(|event| {
        json!({
            "provider": event.provider, "event_id": event.event_id, "event_type": event.event_type,
            "relay_message_id": event.relay_message_id, "received_at": event.received_at, "looks": event.looks,
            "is_waiting": event.is_waiting,
        })
    });
    json!({
        "silent": silent.collect::<Vec<_>>(), "silent_is_cut": report.is_cut.0,
        "for_nobody": for_nobody.collect::<Vec<_>>(), "for_nobody_is_cut": report.is_cut.1,
    })
}
