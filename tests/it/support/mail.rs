use mail_parser::{Address, Message, MessageParser, MimeHeaders};

use super::relay::ReceivedMail;

/// What a mail program shows.
#[derive(Debug)]
pub struct Mail {
    /// The one recipient in the envelope.
    pub envelope_to: String,
    /// The sender in the envelope.
    pub envelope_from: String,
    /// Decoded.
    pub subject: String,
    /// Name and address.
    pub from: (String, String),
    /// Name and address.
    pub to: (String, String),
    /// Address.
    pub reply_to: String,
    /// Without angle brackets.
    pub message_id: String,
    /// As written, in seconds.
    pub date: i64,
    /// The text part.
    pub text: String,
    /// The HTML part.
    pub html: String,
    /// Name, content type, bytes.
    pub files: Vec<(String, String, Vec<u8>)>,
    raw: Vec<u8>,
}

impl Mail {
    /// Reads a mail that the relay got.
    pub fn read(received: &ReceivedMail) -> Self {
        let raw = received.content.clone();
        let message = MessageParser::default().parse(&raw).expect("a mail");
        assert_eq!(received.to.len(), 1, "one transaction, one recipient");
        assert_eq!(message.text_body_count(), 1, "one text part");
        assert_eq!(message.html_body_count(), 1, "one HTML part");
        let files = message
            .attachments()
            .map(|part| {
                let content_type = part.content_type().expect("a content type");
                let kind = format!("{}/{}", content_type.ctype(), content_type.subtype().unwrap_or_default());
                (part.attachment_name().unwrap_or_default().to_owned(), kind, part.contents().to_vec())
            })
            .collect();
        Self {
            envelope_to: received.to[0].clone(),
            envelope_from: received.from.clone(),
            subject: message.subject().expect("a subject").to_owned(),
            from: one(message.from()),
            to: one(message.to()),
            reply_to: one(message.reply_to()).1,
            message_id: message.message_id().expect("a Message-ID").to_owned(),
            date: message.date().expect("a date").to_timestamp(),
            text: message.body_text(0).expect("a text part").into_owned(),
            html: message.body_html(0).expect("an HTML part").into_owned(),
            files,
            raw: raw.clone(),
        }
    }

    /// A header that has no field of its own here, as it is written; nothing if it is not there.
    pub fn header(&self, name: &str) -> Option<String> {
        let message = self.message();
        message.header_raw(name).map(|value| value.trim().to_owned())
    }

    fn message(&self) -> Message<'_> {
        MessageParser::default().parse(&self.raw).expect("a mail")
    }
}

fn one(address: Option<&Address<'_>>) -> (String, String) {
    let address = address.and_then(Address::first).expect("an address");
    (address.name().unwrap_or_default().to_owned(), address.address().unwrap_or_default().to_owned())
}
