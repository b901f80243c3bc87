use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use postrider::store::{Kept, Receipt, Store};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{database::Database, wait::until, webhook::TOPIC};

/// Settings of a daemon that SES talks to.
pub const FEEDBACK_SETTINGS: [(&str, &str); 2] = [("WEBHOOK_ADDR", "127.0.0.1:0"), ("SNS_TOPIC_ARNS", TOPIC)];

/// A mail as SES knows it, and what it says of it: one JSON text an event, as in its documentation.
#[derive(Debug, Clone)]
pub struct SesMail {
    /// Of our mark, with the attempt; nothing: SES returns no headers.
    pub row: Option<(Uuid, i32)>,
    /// SES's own id.
    pub message_id: String,
    /// To whom.
    pub to: Vec<String>,
    /// When SES took it.
    pub at: DateTime<Utc>,
    /// `eventType` of event publishing; else `notificationType`.
    pub is_published: bool,
}

impl SesMail {
    /// Of this row, first attempt, with headers returned.
    pub fn of(row: Uuid, to: &str) -> Self {
        let message_id = format!("0100{}-000000", row.simple());
        let at = DateTime::from_timestamp_millis(Utc::now().timestamp_millis()).expect("now");
        Self { row: Some((row, 1)), message_id, to: vec![to.to_owned()], at, is_published: true }
    }

    /// SES took it.
    pub fn send(&self) -> String {
        self.event("Send", "send", &json!({}))
    }

    /// The far server took it, this many seconds after SES.
    pub fn delivery(&self, seconds: i64) -> String {
        let details =
            json!({"timestamp": self.time(seconds), "recipients": self.to, "smtpResponse": "250 2.6.0 taken"});
        self.event("Delivery", "delivery", &details)
    }

    /// It came back, for all its recipients.
    pub fn bounce(&self, bounce_type: &str, subtype: &str, seconds: i64) -> String {
        let recipients = self.to.iter().map(|to| {
            json!({"emailAddress": to, "action": "failed", "status": "5.1.1",
                "diagnosticCode": format!("smtp; 550 5.1.1 <{to}> unknown")})
        });
        let details = json!({
            "bounceType": bounce_type, "bounceSubType": subtype, "timestamp": self.time(seconds),
            "feedbackId": "0100-bounce", "bouncedRecipients": recipients.collect::<Vec<_>>(),
        });
        self.event("Bounce", "bounce", &details)
    }

    /// Somebody complained.
    pub fn complaint(&self, feedback_type: &str, seconds: i64) -> String {
        let recipients: Vec<_> = self.to.iter().map(|to| json!({"emailAddress": to})).collect();
        let details = json!({
            "complaintFeedbackType": feedback_type, "timestamp": self.time(seconds), "feedbackId": "0100-complaint",
            "complainedRecipients": recipients,
        });
        self.event("Complaint", "complaint", &details)
    }

    /// Not yet.
    pub fn delay(&self, delay_type: &str, seconds: i64) -> String {
        let recipients: Vec<_> = self.to.iter().map(|to| json!({"emailAddress": to, "status": "4.4.1"})).collect();
        let details =
            json!({"delayType": delay_type, "timestamp": self.time(seconds), "delayedRecipients": recipients});
        self.event("DeliveryDelay", "deliveryDelay", &details)
    }

    /// Any other type, with these details.
    pub fn event(&self, event_type: &str, part: &str, details: &Value) -> String {
        let mut headers = vec![json!({"name": "Subject", "value": "Facture"})];
        if let Some((row, attempt)) = self.row {
            headers.push(json!({"name": "X-Postrider-Message", "value": format!("{row};attempt={attempt}")}));
        }
        let mut mail = json!({
            "timestamp": self.time(0), "messageId": self.message_id, "source": "noreply@rgz.bj", "destination": self.to,
            "tags": {"ses:configuration-set": ["postrider"]},
        });
        if self.row.is_some() {
            mail["headersTruncated"] = json!(false);
            mail["headers"] = json!(headers);
        }
        let mut event = Map::new();
        let key = if self.is_published { "eventType" } else { "notificationType" };
        event.insert(key.to_owned(), json!(event_type));
        event.insert("mail".to_owned(), mail);
        event.insert(part.to_owned(), details.clone());
        Value::Object(event).to_string()
    }

    fn time(&self, seconds: i64) -> String {
        (self.at + TimeDelta::seconds(seconds)).to_rfc3339_opts(SecondsFormat::Millis, true)
    }
}

/// Stores an event as the front door of some daemon does once it has verified it.
pub async fn store_event(store: &Arc<Store>, body: &str) {
    let event_id = Uuid::new_v4().to_string();
    let receipt = Receipt { provider: "ses", event_id, body: body.to_owned(), published_at: Utc::now() };
    assert_eq!(store.keep_feedback(receipt).await.expect("stored"), Kept::New);
}

impl Database {
    /// Waits until nothing that was stored waits to be looked at for the first time.
    pub async fn wait_until_applied(&self) {
        until("every event was looked at", async || {
            sqlx::query_scalar(
                "select not exists (select 1 from webhook_events where looks = 0 and next_look_at is not null)",
            )
            .fetch_one(&self.pool)
            .await
            .expect("the audit answers")
        })
        .await;
    }
}
