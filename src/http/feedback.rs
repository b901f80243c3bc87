//! `/api/v1/email/feedback`: what providers did not tell, and what they told of nobody.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Admin,
    auth::Operator,
    params,
    problem::{Problem, ReadRefusals},
};
use crate::store::feedback::report::FeedbackReport;

const SILENT_HOURS_DEFAULT: u32 = 24;
const SILENT_HOURS_MAX: u32 = 8760;
const DAYS_DEFAULT: u32 = 7;
const DAYS_MAX: u32 = 90;

pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(report))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Params {
    /// Mails that the relay accepted at least this long ago
    #[param(minimum = 0, maximum = 8760, default = 24)]
    silent_hours: Option<u32>,
    /// How far back to look
    #[param(minimum = 1, maximum = 90, default = 7)]
    days: Option<u32>,
    /// Items of each kind
    #[param(minimum = 1, maximum = 500, default = 50)]
    limit: Option<i64>,
}

/// Accepted by the relay but silent, and events for nobody
#[utoipa::path(
    get, path = "/feedback/report", tag = "feedback", operation_id = "feedback_report", params(Params),
    responses((status = 200, description = "The report", body = Report), ReadRefusals)
)]
pub(super) async fn report(
    State(admin): State<Arc<Admin>>,
    _operator: Operator,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Json<Report>, Problem> {
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

/// What providers did not tell, and what they told of nobody.
#[derive(Debug, Serialize, ToSchema)]
pub struct Report {
    /// Mails that a relay accepted and no provider said anything about, oldest first.
    silent: Vec<Silent>,
    /// Whether there are more.
    silent_is_cut: bool,
    /// Events of mails that are not known, oldest first.
    for_nobody: Vec<ForNobody>,
    /// Whether there are more.
    for_nobody_is_cut: bool,
}

/// A mail that nothing was heard of.
#[derive(Debug, Serialize, ToSchema)]
struct Silent {
    id: Uuid,
    request_id: Uuid,
    template: String,
    sent_at: DateTime<Utc>,
    relay: Option<String>,
    /// The relay's own id for the mail.
    relay_message_id: Option<String>,
}

/// An event that no mail is known for.
#[derive(Debug, Serialize, ToSchema)]
struct ForNobody {
    provider: String,
    event_id: String,
    event_type: Option<String>,
    relay_message_id: Option<String>,
    received_at: DateTime<Utc>,
    /// How often its mail was looked for.
    looks: i32,
    /// Whether its mail is still looked for.
    is_waiting: bool,
}

/// The report as the API and `--json` give it.
#[must_use]
pub fn report_json(report: &FeedbackReport) -> Report {
    Report {
        silent: report
            .silent
            .iter()
            .map(|mail| Silent {
                id: mail.id,
                request_id: mail.request_id,
                template: mail.template_key.clone(),
                sent_at: mail.sent_at,
                relay: mail.relay.clone(),
                relay_message_id: mail.relay_message_id.clone(),
            })
            .collect(),
        silent_is_cut: report.is_cut.0,
        for_nobody: report
            .for_nobody
            .iter()
            .map(|event| ForNobody {
                provider: event.provider.clone(),
                event_id: event.event_id.clone(),
                event_type: event.event_type.clone(),
                relay_message_id: event.relay_message_id.clone(),
                received_at: event.received_at,
                looks: event.looks,
                is_waiting: event.is_waiting,
            })
            .collect(),
        for_nobody_is_cut: report.is_cut.1,
    }
}
