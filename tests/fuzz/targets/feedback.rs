//! What Amazon SNS and SES tell: envelopes, events, and where a mail stands by all of them.
//!
//! Holds: nobody's forgery is taken, and what is no envelope is refused for ever and not put off; a signed text has one reading;
//! an event is read to words of bounded length in which nobody is named; the same events in any order, grouping and repetition
//! leave a mail in the same state.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::future::BoxFuture;
use postrider::{
    config::{Environment, Settings, SnsConfig},
    email::feedback::{Bounce, FeedbackEvent, FeedbackKind, Standing},
    feedback::{
        fetch::Resolve,
        front_door::{FrontDoor, Refusal, Rejection, SnsHeaders},
        ses,
        sns::{Envelope, EnvelopeError, Kind, SignatureVersion},
        topic::TopicArn,
    },
    metrics::Metrics,
    store::Store,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    change::{changed_bytes, changed_json},
    drive::{Came, Subject},
    support::webhook::TOPIC,
};

/// Events as SES documents them, in both formats.
const EVENTS: &str = include_str!("../corpus/feedback/events.json");
/// Longest text of a far server that is kept, in characters.
const DIAGNOSTIC_MAX: usize = 1000;

/// Something that is told.
#[derive(Debug, Clone)]
pub enum Told {
    Posted { body: Vec<u8>, message_type: Option<String>, is_raw: bool },
    Events { events: Vec<Value>, order: Vec<Index> },
    Text(String),
}

/// Nobody is found: a message that would have a certificate fetched has passed every check before that.
struct Nowhere;

impl Resolve for Nowhere {
    fn resolve<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async { Err(io::Error::other("nobody is asked here")) })
    }
}

/// What reads it.
pub struct Feedback {
    planted: bool,
    door: FrontDoor,
    runtime: Runtime,
}

impl Feedback {
    pub fn new(planted: bool) -> Self {
        // Nothing is stored that has no signature, so that the database is never asked.
        let settings = [
            ("DATABASE_URL", "postgres://nobody@127.0.0.1:9/nothing"),
            ("EMAIL_HASH_KEY", "a key of tests, long enough to be taken"),
        ];
        let environment: Environment = settings.into_iter().collect();
        let settings = Settings::read(&environment, None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let door = runtime.block_on(async {
            let store = Store::new(&settings.store().expect("sound"), Duration::from_secs(30)).expect("a store");
            let sns = SnsConfig {
                topics: vec![TopicArn::parse(TOPIC).expect("a topic")],
                signature_version: SignatureVersion::V1,
                age_max: Duration::from_secs(7200),
                signing_cert_file: None,
                ca_file: None,
            };
            FrontDoor::new(&sns, store, Arc::new(Metrics::new().expect("metrics")), Arc::new(Nowhere)).expect("a door")
        });
        Self { planted, door, runtime }
    }

    fn posted(&self, body: &[u8], message_type: Option<&str>, is_raw: bool) -> Result<Came, String> {
        let parsed = Envelope::parse(body);
        let received = self.runtime.block_on(self.door.receive(SnsHeaders { message_type, is_raw }, body));
        match (&parsed, received) {
            (_, Ok(received)) => Err(format!("a forgery is taken: {}", received.name())),
            (Ok(envelope), Err(rejection)) => {
                let is_ours = envelope.topic_arn == TOPIC;
                holds(is_ours || matches!(rejection, Rejection::Refused(_)), "nothing is asked for a strange topic")?;
                Self::one_reading(envelope)
            }
            (Err(EnvelopeError::Bare), Err(Rejection::Refused(Refusal::RawDelivery | Refusal::Malformed)))
            | (Err(EnvelopeError::NotAnEnvelope), Err(Rejection::Refused(_))) => Ok(Came::Refused),
            (Err(error), Err(rejection)) => Err(format!("what {error} is answered {rejection:?}")),
        }
    }

    /// The text that is signed, read backwards: every field but the message is on one line.
    fn one_reading(envelope: &Envelope) -> Result<Came, String> {
        let text = envelope.signed_text();
        let mut rest = text.strip_suffix('\n').ok_or("the signed text has no end")?;
        let mut take = |name: &str| {
            let (before, value) = rest.rsplit_once('\n')?;
            let (before, found) = before.rsplit_once('\n').unwrap_or(("", before));
            (found == name).then(|| {
                rest = before;
                value.to_owned()
            })
        };
        let mut read = vec![take("Type"), take("TopicArn")];
        let mut meant = vec![Some(envelope.kind.name().to_owned()), Some(envelope.topic_arn.clone())];
        if envelope.kind != Kind::Notification {
            read.extend([take("Token")]);
            meant.extend([envelope.token.clone()]);
        }
        read.push(take("Timestamp").filter(|at| DateTime::parse_from_rfc3339(at).is_ok()));
        meant.push(read.last().cloned().flatten().or(Some(String::new())));
        if envelope.kind == Kind::Notification {
            // There may be none.
            take("Subject");
        } else {
            read.push(take("SubscribeURL"));
            meant.push(envelope.subscribe_url.clone());
        }
        read.push(take("MessageId"));
        meant.push(Some(envelope.message_id.clone()));
        if read != meant {
            return Err(format!("the signed text is read as {read:?}"));
        }
        holds(rest == format!("Message\n{}", envelope.message), "what is left is the message")?;
        Ok(Came::AllTheWay)
    }

    fn event(body: &str) -> Result<FeedbackEvent, String> {
        let event = ses::read(body, DateTime::UNIX_EPOCH);
        let mut words: Vec<&str> = vec![&event.event_type];
        match &event.kind {
            FeedbackKind::Bounced { bounce, .. } => words.push(&bounce.subtype),
            FeedbackKind::Complained { feedback_type } => words.push(feedback_type),
            FeedbackKind::Delayed { cause } => words.push(cause),
            _ => {}
        }
        for word in words {
            holds(word.chars().count() <= 50 && !word.contains(char::is_control), "a short word")?;
        }
        for recipient in &event.recipients {
            let Some(diagnostic) = &recipient.diagnostic else { continue };
            holds(diagnostic.chars().count() <= DIAGNOSTIC_MAX, "a far server's words have an end")?;
            holds(!diagnostic.contains(char::is_control), "no control characters of a far server")?;
            holds(!diagnostic.contains("ada@example.bj"), "nobody is named in a far server's words")?;
        }
        let printed = format!("{:?}", event.recipients);
        holds(!printed.contains("example"), "nobody is named where an event is printed")?;
        Ok(event)
    }

    /// The code under test; where a fault is planted, of two complaints the one that comes last counts.
    fn join(&self, one: Standing, other: Standing) -> Standing {
        let last = other.complaint.clone().filter(|_| self.planted && one.complaint.is_some());
        let joined = one.join(other);
        match last {
            Some(last) => Standing { complaint: Some(last), ..joined },
            None => joined,
        }
    }

    fn fold<'a>(&self, events: impl Iterator<Item = &'a FeedbackEvent>) -> Standing {
        events
            .map(|event| Standing::of(&event.kind, event.occurred_at))
            .fold(Standing::default(), |a, b| self.join(a, b))
    }

    fn events(&self, events: &[Value], order: &[Index]) -> Result<Came, String> {
        let read: Vec<FeedbackEvent> =
            events.iter().map(|event| Self::event(&event.to_string())).collect::<Result<_, _>>()?;
        let straight = self.fold(read.iter());
        let mut other: Vec<&FeedbackEvent> = read.iter().collect();
        // Some come twice, and all of them elsewhere.
        for (at, to) in order.iter().enumerate().take(other.len()) {
            other.push(other[at]);
            let to = to.index(other.len());
            other.swap(at, to);
        }
        let otherwise = self.fold(other.iter().copied());
        if straight != otherwise {
            return Err(format!("the order counts: {straight:?} and {otherwise:?}"));
        }
        let (left, right) = other.split_at(other.len() / 2);
        let grouped = self.join(self.fold(left.iter().copied()), self.fold(right.iter().copied()));
        holds(grouped == straight, "the grouping counts for nothing")?;
        let permanent = straight.bounce.as_ref().is_some_and(|(Bounce { permanent, .. }, _)| *permanent);
        holds(
            permanent
                == read
                    .iter()
                    .any(|event| matches!(&event.kind, FeedbackKind::Bounced { bounce, .. } if bounce.permanent)),
            "a bounce for good stays",
        )?;
        Ok(if straight == Standing::default() { Came::Refused } else { Came::AllTheWay })
    }
}

fn envelopes() -> Vec<Value> {
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let notification = json!({
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Subject": "Amazon SES Email Event Notification",
        "Message": "{\"eventType\":\"Delivery\",\"mail\":{}}\nMessageId\nx",
        "Timestamp": now,
        "SignatureVersion": "2",
        "Signature": "AAAA",
        "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-a.pem",
        "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe"
    });
    let mut confirmation = notification.clone();
    confirmation["Type"] = json!("SubscriptionConfirmation");
    confirmation["Token"] = json!("23abc");
    confirmation["SubscribeURL"] =
        json!(format!("https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=23abc"));
    let bare = json!({ "notificationType": "Bounce", "mail": {} });
    vec![notification, confirmation, bare]
}

impl Subject for Feedback {
    type Input = Told;

    fn inputs(&self) -> BoxedStrategy<Told> {
        let events: Vec<Value> = serde_json::from_str(EVENTS).expect("JSON");
        let texts: Vec<Vec<u8>> = events.iter().map(|event| event.to_string().into_bytes()).collect();
        let envelopes = envelopes();
        let bytes: Vec<Vec<u8>> = envelopes.iter().map(|envelope| envelope.to_string().into_bytes()).collect();
        let body = prop_oneof![
            4 => changed_json(envelopes).prop_map(|envelope| envelope.to_string().into_bytes()),
            1 => changed_bytes(bytes, &["{", "}", "\"", "\\n", "\\r", "MessageId", "Subject", "Timestamp"]),
        ];
        let message_type = proptest::option::of(prop_oneof![
            Just("Notification".to_owned()),
            Just("SubscriptionConfirmation".to_owned()),
            "[ -~]{0,20}"
        ]);
        prop_oneof![
            2 => (body, message_type, any::<bool>())
                .prop_map(|(body, message_type, is_raw)| Told::Posted { body, message_type, is_raw }),
            3 => (vec(changed_json(events), 1..6), vec(any::<Index>(), 6))
                .prop_map(|(events, order)| Told::Events { events, order }),
            1 => changed_bytes(texts, &["{", "}", "\"", ":", "ada@example.bj", "<ada@example.bj>", "+0000"])
                .prop_map(|bytes| Told::Text(String::from_utf8_lossy(&bytes).into_owned())),
        ]
        .boxed()
    }

    fn judge(&mut self, told: &Told) -> Result<Came, String> {
        match told {
            Told::Posted { body, message_type, is_raw } => self.posted(body, message_type.as_deref(), *is_raw),
            Told::Events { events, order } => self.events(events, order),
            Told::Text(text) => {
                let event = Self::event(text)?;
                Ok(if event.kind == FeedbackKind::Other { Came::Refused } else { Came::AllTheWay })
            }
        }
    }
}

fn holds(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("does not hold: {what}")) }
}
