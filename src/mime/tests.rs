//! What is built is read back by a parser that is not ours, and must say the same.

use mail_parser::{MessageParser, MimeHeaders};
use proptest::prelude::*;

use super::*;

fn address(text: &str) -> EmailAddress {
    EmailAddress::parse(text).expect("an address")
}

struct Fixture {
    from: EmailAddress,
    to: EmailAddress,
}

impl Fixture {
    fn new() -> Self {
        Self { from: address("noreply@rgz.bj"), to: address("contact@techconnect.bj") }
    }

    fn parts(&self) -> MessageParts<'_> {
        MessageParts {
            from: &self.from,
            from_name: Some("RGZ Access"),
            to: &self.to,
            to_name: Some("Société Générale"),
            reply_to: Some(&self.from),
            subject: "Facture RGZ — février 2026",
            html: "<!DOCTYPE html>\n<p>Montant : 450\u{202F}000\u{A0}FCFA</p>\n",
            text: "Montant : 450\u{202F}000\u{A0}FCFA\n.\n",
            files: &[],
            message_id: "0190-1@rgz.bj",
            date: DateTime::UNIX_EPOCH,
            row_id: Uuid::from_u128(1),
            attempt: 2,
            request_id: Uuid::from_u128(3),
            template_key: "billing_invoice_monthly",
            template_version: 4,
            lane: Lane::Standard,
            auto_submitted: true,
            extra: &[],
            keys: &[],
        }
    }
}

/// The headers of a message, unfolded, in order.
fn headers(bytes: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(bytes).expect("text");
    let head = text.split("\r\n\r\n").next().expect("a head").replace("\r\n ", " ").replace("\r\n\t", " ");
    head.split("\r\n")
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

const NAMES: [&str; 13] = [
    "Date",
    "From",
    "To",
    "Reply-To",
    "Subject",
    "Message-ID",
    "Auto-Submitted",
    "X-Postrider-Message",
    "X-Postrider-Request",
    "X-Postrider-Template",
    "X-Postrider-Lane",
    "MIME-Version",
    "Content-Type",
];

#[test]
fn a_plain_mail_is_what_it_should_be() {
    let fixture = Fixture::new();
    let bytes = build(&fixture.parts()).expect("a message");
    let headers = headers(&bytes);
    assert_eq!(headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), NAMES);
    let value =
        |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()).unwrap_or_default();
    assert_eq!(value("Message-ID"), "<0190-1@rgz.bj>");
    assert_eq!(value("Date"), "Thu, 1 Jan 1970 00:00:00 +0000");
    assert_eq!(value("Auto-Submitted"), "auto-generated");
    assert_eq!(value("X-Postrider-Message"), "00000000-0000-0000-0000-000000000001;attempt=2");
    assert_eq!(value("X-Postrider-Request"), "00000000-0000-0000-0000-000000000003");
    assert_eq!(value("X-Postrider-Template"), "billing_invoice_monthly/4");
    assert_eq!(value("From"), "\"RGZ Access\" <noreply@rgz.bj>");
    assert!(value("Content-Type").starts_with("multipart/alternative; boundary=\"=_"));
    let mail = MessageParser::new().parse(&bytes).expect("it parses");
    assert_eq!(mail.subject(), Some("Facture RGZ — février 2026"));
    assert_eq!(mail.to().and_then(|to| to.first()).and_then(|to| to.name()), Some("Société Générale"));
    assert_eq!(mail.body_html(0).as_deref(), Some(&*fixture.parts().html.replace('\n', "\r\n")));
    assert_eq!(mail.body_text(0).as_deref(), Some(&*fixture.parts().text.replace('\n', "\r\n")));
    assert_eq!(mail.parts[1].content_type().map(|kind| (kind.ctype(), kind.subtype())), Some(("text", Some("plain"))));
    assert_eq!(build(&fixture.parts()).expect("a message"), bytes, "the same parts make the same bytes");
}

#[test]
fn files_are_attached_and_images_are_related() {
    let fixture = Fixture::new();
    let csv = "mois;débit\n\r.\nfévrier\0;1".as_bytes();
    let files = [
        FilePart {
            file_name: "Facture février « 2 ».pdf",
            content_type: "application/pdf",
            bytes: b"%PDF",
            content_id: None,
        },
        FilePart {
            file_name: "logo.png",
            content_type: "image/png",
            bytes: b"\x89PNG\r\n",
            content_id: Some("logo@rgz"),
        },
        FilePart { file_name: "a.csv", content_type: "text/csv", bytes: csv, content_id: None },
    ];
    let bytes = build(&MessageParts { files: &files, ..fixture.parts() }).expect("a message");
    let mail = MessageParser::new().parse(&bytes).expect("it parses");
    let kinds: Vec<String> = mail
        .parts
        .iter()
        .map(|part| part.content_type().map(|kind| format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or(""))))
        .map(Option::unwrap_or_default)
        .collect();
    assert_eq!(
        kinds,
        [
            "multipart/mixed",
            "multipart/related",
            "multipart/alternative",
            "text/plain",
            "text/html",
            "image/png",
            "application/pdf",
            "text/csv"
        ]
    );
    let [image, pdf, table] = [5, 6, 7].map(|at| &mail.parts[at]);
    assert_eq!(pdf.attachment_name(), Some("Facture février « 2 ».pdf"));
    assert_eq!(image.content_id(), Some("logo@rgz"));
    assert!(image.content_disposition().is_some_and(|kind| kind.ctype() == "inline"));
    assert_eq!((image.contents(), pdf.contents(), table.contents()), (&b"\x89PNG\r\n"[..], &b"%PDF"[..], csv));
    let text = String::from_utf8(bytes).expect("ASCII");
    assert_eq!(text.matches("Content-Transfer-Encoding: base64").count(), 3, "files are always base64");
    assert!(
        text.contains("Content-Type: application/pdf; name=\"Facture fevrier _ 2 _.pdf\""),
        "a name for readers without RFC 2231"
    );
    assert!(text.contains("filename*=UTF-8''Facture%20f%C3%A9vrier"));
}

#[test]
fn texts_that_look_encoded_are_not_decoded() {
    let fixture = Fixture::new();
    let tricky = "=?utf-8?Q?Bonjour?= =?x";
    let bytes = build(&MessageParts { subject: tricky, to_name: Some(tricky), ..fixture.parts() }).expect("a message");
    let mail = MessageParser::new().parse(&bytes).expect("it parses");
    assert_eq!(mail.subject(), Some(tricky));
    assert_eq!(mail.to().and_then(|to| to.first()).and_then(|to| to.name()), Some(tricky));
}

#[test]
fn a_body_cannot_end_the_message_or_its_part() {
    let fixture = Fixture::new();
    let first = String::from_utf8(build(&fixture.parts()).expect("a message")).expect("ASCII");
    let boundary = first.split("boundary=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a boundary");
    let text = format!("a\r.\rb\n.\r\n--{boundary}--\n\0\u{7}x\r\n");
    let bytes = build(&MessageParts { text: &text, ..fixture.parts() }).expect("a message");
    let mail = MessageParser::new().parse(&bytes).expect("it parses");
    assert_eq!(mail.body_text(0).as_deref(), Some(&*format!("a\r\n.\r\nb\r\n.\r\n--{boundary}--\r\nx\r\n")));
    assert_eq!(mail.parts.len(), 3);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let fixture = Fixture::new();
    for id in ["", "no-at", "a@b>\r\nBcc: x@y", "a b@c", "é@b", "<a@b>"] {
        assert_eq!(build(&MessageParts { message_id: id, ..fixture.parts() }), Err(MimeError::MessageId), "{id}");
    }
    let long = "x".repeat(901);
    for (name, value) in [("X-A", "a\r\nBcc: x"), ("X-A", "é"), ("X A", "a"), ("X-A:", "a"), ("", "a"), ("X-A", &long)]
    {
        let result = build(&MessageParts { extra: &[(name, value)], ..fixture.parts() });
        assert!(matches!(result, Err(MimeError::Header(_))), "{name}: {value}");
    }
    for (content_type, content_id) in [("text", None), ("a/b\r\nX: y", None), ("image/png", Some("a>\r\nX: y"))] {
        let file = FilePart { file_name: "a", content_type, bytes: b"x", content_id };
        build(&MessageParts { files: &[file], ..fixture.parts() }).expect_err(content_type);
    }
    let extra = [("List-Unsubscribe", "<https://a.bj/u?t=1>"), ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")];
    let bytes = build(&MessageParts { extra: &extra, ..fixture.parts() }).expect("a message");
    assert!(headers(&bytes).contains(&("List-Unsubscribe".into(), "<https://a.bj/u?t=1>".into())));
}

#[test]
fn the_last_check_sees_what_must_not_go_out() {
    for (bytes, want) in [
        (&b"a\nb\r\n"[..], Some("a line feed without a carriage return")),
        (b"a\rb\r\n", Some("a carriage return without a line feed")),
        (b"a\r\r\n", Some("a carriage return without a line feed")),
        (b"a\0\r\n", Some("a NUL character")),
        (b"a", Some("the last line does not end")),
        (b"a\xE9\r\n", Some("a byte that is not ASCII")),
        (b"a\r\n\r\nb\r\n", None),
    ] {
        assert_eq!(check(bytes, false).err(), want.map(MimeError::Unsound), "{bytes:?}");
    }
    assert!(check(&[vec![b'x'; 999], b"\r\n".to_vec()].concat(), false).is_err());
    assert!(check(&[vec![b'x'; 998], b"\r\n".to_vec()].concat(), false).is_ok());
}

#[test]
fn an_address_beyond_ascii_is_written_as_it_is() {
    let fixture = Fixture::new();
    let to = address("andré@example.bj");
    let bytes = build(&MessageParts { to: &to, ..fixture.parts() }).expect("a message");
    assert!(String::from_utf8_lossy(&bytes).contains("<andré@example.bj>"));
}

/// Anything, and more often what parsers stumble over.
fn odd_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[ -~]{0,120}",
        "[a-z]{0,400}",
        "[éèàç —\u{A0}]{0,80}",
        Just("\r\nBcc: victim@example.com\r\n\r\n".to_owned()),
        Just("=?utf-8?B?eA==?=".to_owned()),
        Just("\"\\;,<>@()[]:".to_owned()),
        Just("  \t ".to_owned()),
        Just("\n.\r\n".to_owned()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

/// What a reader shows of a text: runs of blanks are folding's business.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

proptest! {
    #[test]
    fn no_text_becomes_a_header(
        subject in odd_text(), name in odd_text(), file_name in odd_text(), html in odd_text(), text in odd_text(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let fixture = Fixture::new();
        let file_name = crate::email::attachment::clean_file_name(&file_name);
        let files = [FilePart { file_name: &file_name, content_type: "application/pdf", bytes: &bytes, content_id: None }];
        let parts = MessageParts {
            subject: &subject, to_name: Some(&name), html: &html, text: &text, files: &files, ..fixture.parts()
        };
        let built = build(&parts).expect("a message");
        let found = headers(&built);
        prop_assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), NAMES);
        let mail = MessageParser::new().parse(&built).expect("it parses");
        prop_assert_eq!(squeezed(mail.subject().unwrap_or_default()), squeezed(&one_line(&subject)));
        let to = mail.to().and_then(|to| to.first()).expect("a recipient");
        prop_assert_eq!(to.address(), Some("contact@techconnect.bj"));
        prop_assert_eq!(squeezed(to.name().unwrap_or_default()), squeezed(&one_line(&name)));
        prop_assert_eq!(mail.parts.len(), 5);
        prop_assert_eq!(mail.parts[4].attachment_name().map(squeezed), Some(squeezed(&file_name)));
        prop_assert_eq!(mail.parts[4].contents(), &bytes[..]);
        prop_assert_eq!(std::str::from_utf8(mail.parts[2].contents()).expect("text"), clean_body(&text));
        prop_assert_eq!(std::str::from_utf8(mail.parts[3].contents()).expect("text"), clean_body(&html));
    }
}
