//! The envelope that SNS puts around a message: its fields, and the text that SNS signs. Pure.
//!
//! Invariant: the signed text has one reading. Its fields are names and values on lines of their own, so every field but
//! the message is held to one line: else a value could be cut in two, or two joined, under the same signature.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;

/// How far SNS's clock may be ahead of ours.
const AHEAD_MAX: TimeDelta = TimeDelta::minutes(5);
/// Longest MessageId; SNS's are UUIDs.
const ID_CHARS_MAX: usize = 100;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something that was published to the topic.
    Notification,
    /// Somebody subscribed us: to be confirmed.
    SubscriptionConfirmation,
    /// We were unsubscribed.
    UnsubscribeConfirmation,
}

impl Kind {
    /// As `Type` and `x-amz-sns-message-type` write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Notification => "Notification",
            Self::SubscriptionConfirmation => "SubscriptionConfirmation",
            Self::UnsubscribeConfirmation => "UnsubscribeConfirmation",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Notification, Self::SubscriptionConfirmation, Self::UnsubscribeConfirmation]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// What a topic's signatures are made with; the later is the stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignatureVersion {
    /// SHA-1 with RSA: what a topic does unless it is told otherwise.
    V1,
    /// SHA-256 with RSA.
    V2,
}

/// How long ago a message was published, in the eyes of who receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It may be taken.
    Fresh,
    /// It is older than SNS would still deliver it.
    Stale,
    /// Its clock or ours is wrong.
    FromTheFuture,
}

/// A message that is no envelope of SNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an object with the fields of an envelope.
    #[error("is not an envelope of SNS")]
    NotAnEnvelope,
    /// An object as SES writes them, without an envelope around it.
    #[error("is a bare SES event, as raw message delivery sends them")]
    Bare,
}

/// One message of SNS, not verified.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// What it is.
    pub kind: Kind,
    /// The same for each try to deliver it.
    pub message_id: String,
    /// Where it was published.
    pub topic_arn: String,
    /// What was published, or words for people.
    pub message: String,
    /// When it was published.
    pub published_at: DateTime<Utc>,
    /// What its signature is made with; nothing: something unknown.
    pub signature_version: Option<SignatureVersion>,
    /// Base64.
    pub signature: String,
    /// Where the certificate of the key lies.
    pub signing_cert_url: String,
    /// What confirms a subscription; there only in confirmations.
    pub token: Option<String>,
    /// Where to confirm it; there only in confirmations.
    pub subscribe_url: Option<String>,
    subject: Option<String>,
    timestamp: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Fields {
    r#type: String,
    message_id: String,
    topic_arn: String,
    message: String,
    timestamp: String,
    signature_version: String,
    signature: String,
    #[serde(rename = "SigningCertURL")]
    signing_cert_url: String,
    subject: Option<String>,
    token: Option<String>,
    #[serde(rename = "SubscribeURL")]
    subscribe_url: Option<String>,
}

/// What tells a bare SES event from anything else.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bare {
    notification_type: Option<String>,
    event_type: Option<String>,
}

impl Envelope {
    /// Reads one, whatever its Content-Type said: SNS sends JSON as text/plain.
    ///
    /// # Errors
    /// When it is not an envelope, or a field that is signed could be read in two ways.
    pub fn parse(body: &[u8]) -> Result<Self, EnvelopeError> {
        let Ok(fields) = serde_json::from_slice::<Fields>(body) else {
            return Err(match serde_json::from_slice::<Bare>(body) {
                Ok(bare) if bare.notification_type.is_some() || bare.event_type.is_some() => EnvelopeError::Bare,
                _ => EnvelopeError::NotAnEnvelope,
            });
        };
        Self::from_fields(fields).ok_or(EnvelopeError::NotAnEnvelope)
    }

    fn from_fields(fields: Fields) -> Option<Self> {
        let kind = Kind::of(&fields.r#type)?;
        let in_id = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if !(1..=ID_CHARS_MAX).contains(&fields.message_id.len()) || !fields.message_id.bytes().all(in_id) {
            return None;
        }
        let one_line = [&fields.topic_arn, &fields.timestamp];
        let optional = [&fields.subject, &fields.token, &fields.subscribe_url];
        if one_line.into_iter().chain(optional.into_iter().flatten()).any(|text| text.contains(['\n', '\r'])) {
            return None;
        }
        let is_confirmation = kind != Kind::Notification;
        if is_confirmation && (fields.token.is_none() || fields.subscribe_url.is_none()) {
            return None;
        }
        Some(Self {
            kind,
            published_at: DateTime::parse_from_rfc3339(&fields.timestamp).ok()?.to_utc(),
            signature_version: match fields.signature_version.as_str() {
                "1" => Some(SignatureVersion::V1),
                "2" => Some(SignatureVersion::V2),
                _ => None,
            },
            message_id: fields.message_id,
            topic_arn: fields.topic_arn,
            message: fields.message,
            signature: fields.signature,
            signing_cert_url: fields.signing_cert_url,
            token: fields.token,
            subscribe_url: fields.subscribe_url,
            subject: fields.subject,
            timestamp: fields.timestamp,
        })
    }

    /// What SNS signs: names and values in the order of their names, each on a line of its own.
    #[must_use]
    pub fn signed_text(&self) -> String {
        let (subject, subscribe_url, token) = match self.kind {
            Kind::Notification => (self.subject.as_deref(), None, None),
            Kind::SubscriptionConfirmation | Kind::UnsubscribeConfirmation => {
                (None, self.subscribe_url.as_deref(), self.token.as_deref())
            }
        };
        let fields = [
            ("Message", Some(self.message.as_str())),
            ("MessageId", Some(self.message_id.as_str())),
            ("Subject", subject),
            ("SubscribeURL", subscribe_url),
            ("Timestamp", Some(self.timestamp.as_str())),
            ("Token", token),
            ("TopicArn", Some(self.topic_arn.as_str())),
            ("Type", Some(self.kind.name())),
        ];
        let mut text = String::with_capacity(self.message.len() + 512);
        for (name, value) in fields {
            if let Some(value) = value {
                for piece in [name, "\n", value, "\n"] {
                    text.push_str(piece);
                }
            }
        }
        text
    }

    /// Whether SNS could be delivering it at this moment, when it delivers nothing older than `age_max`.
    #[must_use]
    pub fn freshness(&self, now: DateTime<Utc>, age_max: TimeDelta) -> Freshness {
        let age = now - self.published_at;
        if age > age_max {
            Freshness::Stale
        } else if age < -AHEAD_MAX {
            Freshness::FromTheFuture
        } else {
            Freshness::Fresh
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn notification() -> Value {
        json!({
            "Type": "Notification",
            "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": "arn:aws:sns:eu-west-1:123456789012:ses-events",
            "Message": "{\"a\":\"b\"}\nsecond line",
            "Timestamp": "2026-05-02T00:54:06.655Z",
            "SignatureVersion": "2",
            "Signature": "AAAA",
            "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/a.pem",
            "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe"
        })
    }

    fn parse(envelope: &Value) -> Result<Envelope, EnvelopeError> {
        Envelope::parse(envelope.to_string().as_bytes())
    }

    #[test]
    fn the_signed_text_is_what_aws_describes() {
        let mut envelope = notification();
        let without = "Message\n{\"a\":\"b\"}\nsecond line\nMessageId\n22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324\n\
            Timestamp\n2026-05-02T00:54:06.655Z\nTopicArn\narn:aws:sns:eu-west-1:123456789012:ses-events\nType\nNotification\n";
        assert_eq!(parse(&envelope).expect("sound").signed_text(), without);
        envelope["Subject"] = json!("Amazon SES");
        let with = without.replace("\nTimestamp\n", "\nSubject\nAmazon SES\nTimestamp\n");
        assert_eq!(parse(&envelope).expect("sound").signed_text(), with);
        // A notification's text has neither, whatever else is in it.
        envelope["Token"] = json!("t");
        envelope["SubscribeURL"] = json!("u");
        assert_eq!(parse(&envelope).expect("sound").signed_text(), with);
    }

    #[test]
    fn confirmations_sign_where_and_with_what_they_confirm() {
        for kind in ["SubscriptionConfirmation", "UnsubscribeConfirmation"] {
            let mut envelope = notification();
            envelope["Type"] = json!(kind);
            assert_eq!(parse(&envelope).expect_err("no token"), EnvelopeError::NotAnEnvelope);
            envelope["Token"] = json!("23abc");
            envelope["SubscribeURL"] = json!("https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription");
            envelope["Subject"] = json!("not signed here");
            let text = parse(&envelope).expect("sound").signed_text();
            assert_eq!(
                text,
                format!(
                    "Message\n{{\"a\":\"b\"}}\nsecond line\nMessageId\n22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324\n\
                     SubscribeURL\nhttps://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription\n\
                     Timestamp\n2026-05-02T00:54:06.655Z\nToken\n23abc\n\
                     TopicArn\narn:aws:sns:eu-west-1:123456789012:ses-events\nType\n{kind}\n"
                )
            );
        }
    }

    #[test]
    fn a_signature_fits_one_reading_only() {
        let mut honest = notification();
        honest["Subject"] = json!("Amazon SES");
        let text = parse(&honest).expect("sound").signed_text();
        // The same text, with the subject moved into the id: another MessageId would be a second life.
        let mut joined = honest.clone();
        joined.as_object_mut().expect("an object").remove("Subject");
        joined["MessageId"] = json!("22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324\nSubject\nAmazon SES");
        assert_eq!(parse(&joined).expect_err("two lines"), EnvelopeError::NotAnEnvelope);
        // And a message cut short, with its rest in the subject.
        let mut cut = notification();
        cut["Message"] = json!("short\nMessageId\n1\nSubject\nx");
        assert!(parse(&cut).is_ok(), "a message may have any lines");
        cut["Subject"] = json!("a\nb");
        assert_eq!(parse(&cut).expect_err("two lines"), EnvelopeError::NotAnEnvelope);
        assert!(text.ends_with("Type\nNotification\n"));
    }

    #[test]
    fn what_is_no_envelope_is_told_from_what_lost_its_envelope() {
        let bare = json!({ "notificationType": "Bounce", "mail": {} });
        assert_eq!(parse(&bare).expect_err("bare"), EnvelopeError::Bare);
        assert_eq!(parse(&json!({ "eventType": "Send" })).expect_err("bare"), EnvelopeError::Bare);
        let mut bodies: Vec<Value> = vec![json!({}), json!([]), json!("x"), json!(1)];
        for field in
            ["Type", "MessageId", "TopicArn", "Message", "Timestamp", "SignatureVersion", "Signature", "SigningCertURL"]
        {
            let mut envelope = notification();
            envelope.as_object_mut().expect("an object").remove(field);
            bodies.push(envelope.clone());
            envelope[field] = json!({ "an": "object" });
            bodies.push(envelope);
        }
        for (field, value) in [("Type", "Else"), ("MessageId", ""), ("MessageId", "a b"), ("Timestamp", "yesterday")] {
            let mut envelope = notification();
            envelope[field] = json!(value);
            bodies.push(envelope);
        }
        for body in bodies {
            assert_eq!(parse(&body).expect_err("no envelope"), EnvelopeError::NotAnEnvelope, "{body}");
        }
        let twice = notification().to_string().replacen('{', "{\"Message\":\"other\",", 1);
        assert!(Envelope::parse(twice.as_bytes()).is_err(), "which of two would be meant?");
        assert!(Envelope::parse(b"\xff\xfe").is_err() && Envelope::parse(b"").is_err());
    }

    #[test]
    fn freshness_has_two_ends() {
        let envelope = parse(&notification()).expect("sound");
        let after = |seconds| envelope.published_at + TimeDelta::seconds(seconds);
        for (now, freshness) in [
            (after(0), Freshness::Fresh),
            (after(7200), Freshness::Fresh),
            (after(7201), Freshness::Stale),
            (after(-300), Freshness::Fresh),
            (after(-301), Freshness::FromTheFuture),
        ] {
            assert_eq!(envelope.freshness(now, TimeDelta::hours(2)), freshness, "{now}");
        }
    }
}
