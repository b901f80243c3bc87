//! The relay's transcript as the account needs it: every mail whose final dot arrived, by the headers that the daemon
//! writes and by its envelope.

use std::time::Instant;

use chrono::Utc;
use mail_parser::{Message, MessageParser};
use uuid::Uuid;

use crate::{
    ledger::{PastData, Send},
    support::relay::{ReceivedMail, RelayLog},
};

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    Utc::now().timestamp_millis()
}

/// Reads moments of the relay's clock on the wall's.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    instant: Instant,
    wall_ms: i64,
}

impl Clock {
    /// Reads both.
    pub fn start() -> Self {
        Self { instant: Instant::now(), wall_ms: now_ms() }
    }

    fn ms(&self, at: Instant) -> i64 {
        let later = at.saturating_duration_since(self.instant).as_millis();
        self.wall_ms + i64::try_from(later).unwrap_or(i64::MAX)
    }
}

/// Every mail whose final dot arrived.
pub fn sends(log: &RelayLog, clock: Clock) -> Vec<Send> {
    log.mails.iter().map(|mail| send(mail, clock)).collect()
}

/// Every 354.
pub fn past_data(log: &RelayLog, clock: Clock) -> Vec<PastData> {
    log.go_aheads.iter().map(|go| PastData { recipient: go.to.clone(), at_ms: clock.ms(go.at) }).collect()
}

fn send(mail: &ReceivedMail, clock: Clock) -> Send {
    let recipient = mail.to.first().cloned().unwrap_or_default();
    let mut send = Send {
        recipient,
        begun_ms: clock.ms(mail.begun_at),
        dot_ms: clock.ms(mail.received_at),
        answered_ms: mail.answered_at.map(|at| clock.ms(at)),
        accepted: mail.is_accepted,
        ..Send::default()
    };
    let Some(message) = MessageParser::default().parse(&mail.content) else {
        send.wrong = Some("the content is no mail".to_owned());
        return send;
    };
    let header = |name: &str| message.header_raw(name).unwrap_or_default().trim().to_owned();
    send.message_id = format!("<{}>", message.message_id().unwrap_or_default());
    send.request = header("X-Postrider-Request").parse().unwrap_or_default();
    let row = header("X-Postrider-Message");
    send.row = row.split_once(';').and_then(|(id, _)| id.parse().ok()).unwrap_or_default();
    send.wrong = wrong(&message, mail, send.request);
    send
}

/// What does not fit: the header must name the envelope's one recipient, and the words must be this request's.
fn wrong(message: &Message<'_>, mail: &ReceivedMail, request: Uuid) -> Option<String> {
    if mail.to.len() != 1 {
        return Some(format!("{} recipients in one transaction", mail.to.len()));
    }
    let named = message.to().and_then(|to| to.first()).and_then(|to| to.address()).unwrap_or_default();
    if named != mail.to[0] {
        return Some("the header names another recipient than the envelope".to_owned());
    }
    let text = message.body_text(0).unwrap_or_default();
    if !text.contains(&request.to_string()) {
        return Some("the words are another request's than the header names".to_owned());
    }
    None
}
