//! What a producer writes into a variable is text in the mail, and never anything else: no element, no attribute, no other
//! address of a link, no other line.

use std::{cell::RefCell, collections::BTreeMap};

use chrono::DateTime;
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer};
use mail_parser::MessageParser;
use postrider::{
    email::{EmailAddress, Lane, RenderedEmail},
    mime::{self, FilePart, MessageParts},
    templates::{AttachedFile, CompiledTemplate, RenderError, System, TemplateSource},
};
use proptest::prelude::*;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::support::requests;

/// What breaks out of an element, an attribute, a comment, a style or a script where it is not escaped.
const HOSTILE: [&str; 24] = [
    "<b>x</b>",
    "</p></td></tr></table><h1>x",
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<style>*{display:none}</style>",
    "</title><img src=x onerror=alert(1)>",
    "\"><img src=x onerror=alert(1)>",
    "'><img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)",
    "' onmouseover='alert(1)",
    "x onmouseover=alert(1) ",
    "` onmouseover=`alert(1)",
    "<!-- x",
    "--><h1>x</h1><!--",
    "<![CDATA[x]]>",
    "<?x ?>",
    "&lt;b&gt;&#60;b&#62;&#x3c;b&#x3e;",
    "<svg/onload=alert(1)>",
    "<iframe src=\"https://x.example\">",
    "</body></html><html><body>",
    "{{title}}{{{title}}}<x-pwn {{x}}>",
    "100%;background:url(//x.example)",
    "\u{0}\u{8}\u{C}\u{1B}<x>",
    "\u{2028}\u{202E}<x>\u{FEFF}",
];
/// Addresses that no link may lead to, in the disguises that browsers see through.
const BAD_LINKS: [&str; 20] = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "\tjavascript:alert(1)",
    "\u{1}javascript:alert(1)",
    "\u{A0}javascript:alert(1)",
    "java\nscript:alert(1)",
    "java\tscript:alert(1)",
    "java\0script:alert(1)",
    "javascript&colon;alert(1)",
    "&#106;avascript:alert(1)",
    "&#x6A;avascript:alert(1)",
    "javascript://https://a.bj/%0aalert(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:text/html;base64,PHNjcmlwdD4=",
    "vbscript:msgbox(1)",
    "file:///etc/passwd",
    "//x.example/",
    "about:blank",
    "blob:https://a.bj/x",
];
/// Web addresses that must stay one attribute.
const ODD_LINKS: [&str; 6] = [
    "https://a.bj/\"><script>alert(1)</script>",
    "https://a.bj/' onmouseover='alert(1)",
    "https://a.bj/?a=1&b=<x>&c=\"d\"",
    "https://a.bj/#\"onload=x",
    "https://a.bj/ x y",
    "https://a.bj/`{|}\\^",
];
/// Attributes whose value is an address.
const LINKS: [&str; 6] = ["href", "src", "action", "formaction", "background", "poster"];

/// An element's name and its attributes, as a browser takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    name: String,
    attributes: Vec<(String, String)>,
}

impl Piece {
    /// Without what variables may fill: the values of attributes.
    fn shape(&self) -> (&str, Vec<&str>) {
        (&self.name, self.attributes.iter().map(|(name, _)| name.as_str()).collect())
    }
}

#[derive(Default)]
struct Pieces {
    found: RefCell<Vec<Piece>>,
}

impl TokenSink for Pieces {
    type Handle = ();

    fn process_token(&self, token: Token, _: u64) -> TokenSinkResult<()> {
        let piece = match token {
            Token::TagToken(Tag { kind, name, attrs, .. }) => {
                let attributes = attrs.iter().map(|a| (a.name.local.to_string(), a.value.to_string())).collect();
                let mark = if kind == TagKind::EndTag { "/" } else { "" };
                Some(Piece { name: format!("{mark}{name}"), attributes })
            }
            Token::CommentToken(_) => Some(Piece { name: "<!--".to_owned(), attributes: Vec::new() }),
            Token::DoctypeToken(_) => Some(Piece { name: "<!DOCTYPE".to_owned(), attributes: Vec::new() }),
            _ => None,
        };
        self.found.borrow_mut().extend(piece);
        TokenSinkResult::Continue
    }
}

/// The elements of a document, in order. The same pieces make the same tree: what lies between them is text.
fn pieces(html: &str) -> Vec<Piece> {
    let tokenizer = Tokenizer::new(Pieces::default(), html5ever::tokenizer::TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(html.into());
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.found.into_inner()
}

/// The same variables with every text replaced. Links get one of their own, or nothing would be rendered.
fn filled(value: &Value, text: &str, link: &str) -> Value {
    match value {
        Value::String(old) if old.starts_with("https://") || old.starts_with("http://") => Value::from(link),
        Value::String(_) => Value::from(text),
        Value::Array(items) => items.iter().map(|item| filled(item, text, link)).collect(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), filled(value, text, link))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// Numbers as texts too: producers write either.
fn worded(value: &Value) -> Value {
    match value {
        Value::Number(_) => Value::from("x"),
        Value::Array(items) => items.iter().map(worded).collect(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), worded(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

fn render(
    template: &CompiledTemplate,
    locale: &str,
    variables: &Value,
    file: &str,
) -> Result<RenderedEmail, RenderError> {
    let system = System {
        request_date: DateTime::UNIX_EPOCH,
        attachments: &[AttachedFile { file_name: file, content_type: "application/pdf" }],
        support_email: Some("support@rgz.bj"),
        support_phone: Some("+229 01 00 00 00 00"),
        timezone: chrono_tz::Africa::PortoNovo,
        locale,
        unsubscribe_url: template.manifest().example_unsubscribe_url(),
    };
    template.render(variables.as_object().expect("an object"), &system)
}

/// Every template in every language, with its sample as it is and with texts in place of its numbers.
fn every_template() -> Vec<(CompiledTemplate, String, Value)> {
    let mut all = Vec::new();
    for source in requests::templates() {
        let compile = || CompiledTemplate::compile(source, 1, 3).expect("it compiles");
        let locales: Vec<String> = compile().locales().map(str::to_owned).collect();
        let sample = Value::Object(source.sample.clone());
        for locale in locales {
            all.push((compile(), locale.clone(), sample.clone()));
            all.push((compile(), locale, worded(&sample)));
        }
    }
    all
}

/// That a mail with these texts has the elements of a harmless one, and links of the web only.
fn check(template: &CompiledTemplate, locale: &str, sample: &Value, text: &str, link: &str) {
    let place = format!("{template:?} {locale} {text:?} {link:?}");
    let harmless = render(template, locale, &filled(sample, "harmless", "https://a.bj/x"), "a.pdf").expect("a mail");
    let mail = render(template, locale, &filled(sample, text, link), text);
    let mail = mail.unwrap_or_else(|error| panic!("{place}: {error}"));
    let (expected, found) = (pieces(&harmless.html), pieces(&mail.html));
    let shapes = |pieces: &[Piece]| pieces.iter().map(|piece| format!("{:?}", piece.shape())).collect::<Vec<_>>();
    assert_eq!(shapes(&expected), shapes(&found), "{place}");
    for (before, after) in expected.iter().zip(&found) {
        for ((name, old), (_, value)) in before.attributes.iter().zip(&after.attributes) {
            if LINKS.contains(&name.as_str()) {
                let is_web = ["https://", "http://", "mailto:support@", "tel:+229", "cid:"]
                    .iter()
                    .any(|known| value.starts_with(known));
                assert!(is_web || value == old, "{place}: {name}={value}");
            }
            let is_code =
                name.starts_with("on") || matches!(name.as_str(), "style" | "class" | "id" | "http-equiv" | "srcdoc");
            assert!(!is_code || value == old, "{place}: {name}={value}");
        }
    }
    assert!(!mail.subject.contains(['\r', '\n', '\0']), "{place}");
    assert_eq!(mail.subject.lines().count(), 1, "{place}");
}

#[test]
fn no_variable_of_any_template_breaks_out_of_its_place() {
    for (template, locale, sample) in every_template() {
        for text in HOSTILE {
            check(&template, &locale, &sample, text, "https://a.bj/x");
        }
        for link in ODD_LINKS {
            check(&template, &locale, &sample, "harmless", link);
        }
    }
}

#[test]
fn no_link_leads_out_of_the_web() {
    for (template, locale, sample) in every_template() {
        for link in BAD_LINKS {
            match render(&template, &locale, &filled(&sample, "harmless", link), "a.pdf") {
                // It is told which file, and the address is not repeated.
                Err(error) => {
                    assert!(matches!(error, RenderError::NotAUrl { .. }), "{template:?} {link:?}: {error}");
                    assert!(!error.to_string().contains(link), "{error}");
                }
                Ok(mail) => {
                    let addresses = pieces(&mail.html);
                    let addresses = addresses.iter().flat_map(|piece| &piece.attributes);
                    for (name, value) in addresses.filter(|(name, _)| LINKS.contains(&name.as_str())) {
                        assert!(!value.trim().starts_with(link.trim()), "{template:?}: {name}={value}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_template_that_would_let_a_variable_out_is_refused() {
    let whole = requests::templates().iter().find(|source| source.key == "support_ticket_created").expect("a template");
    for (tag, words) in [
        ("{{{title}}}", "without escaping"),
        ("{{&title}}", "without escaping"),
        ("<a href=\"{{title}}\">x</a>", "use http://"),
        ("<img alt=\"\" src=\"{{title}}\">", "use http"),
    ] {
        let html = whole.html.replace("{{/card}}", &format!("{tag}{{{{/card}}}}"));
        assert_ne!(html, whole.html, "there is a place for it");
        let found = postrider::templates::lint(&TemplateSource { html, variants: BTreeMap::new(), ..whole.clone() });
        assert!(found.iter().any(|fault| fault.words.contains(words)), "{tag}: {found:?}");
    }
}

#[test]
fn lines_of_a_variable_are_lines_of_a_body_and_never_headers() {
    let hostile = "x\r\nBcc: victim@example.com\r\n\r\n.\r\nMAIL FROM:<x@example.com>";
    let address = |text: &str| EmailAddress::parse(text).expect("an address");
    let (from, to) = (address("noreply@rgz.bj"), address("ada@example.bj"));
    for (template, locale, sample) in every_template() {
        let mail = render(&template, &locale, &filled(&sample, hostile, "https://a.bj/x"), "a.pdf").expect("a mail");
        let parts = MessageParts {
            from: &from,
            from_name: Some(hostile),
            to: &to,
            to_name: Some(hostile),
            reply_to: None,
            subject: &mail.subject,
            html: &mail.html,
            text: &mail.text,
            files: &[FilePart { file_name: hostile, content_type: "text/csv", bytes: b"a", content_id: None }],
            message_id: "1@rgz.bj",
            date: DateTime::UNIX_EPOCH,
            row_id: Uuid::nil(),
            attempt: 1,
            request_id: Uuid::nil(),
            template_key: template.key(),
            template_version: 1,
            lane: Lane::Standard,
            auto_submitted: true,
            extra: &[],
            keys: &[],
        };
        let built = mime::build(&parts).expect("a message");
        let read = MessageParser::new().parse(&built).expect("it parses");
        assert!(read.bcc().is_none() && read.headers().len() == 12, "{template:?}: {:?}", read.headers().len());
        let people: Vec<_> = read.to().expect("somebody").iter().filter_map(|to| to.address()).collect();
        assert_eq!(people, ["ada@example.bj"], "{template:?}");
        assert!(read.body_text(0).is_some_and(|text| text.contains("Bcc: victim@example.com")), "it is a line of text");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_at_all_breaks_out_of_its_place(text in "[<>\"'`=/&;!\\-a-z {}#x0-9\u{A0}\u{2028}]{1,40}", which in any::<prop::sample::Index>()) {
        // Blank texts are left out of a mail, as they should be.
        prop_assume!(!text.trim().is_empty());
        let all = requests::templates();
        let source = &all[which.index(all.len())];
        let template = CompiledTemplate::compile(source, 1, 3).expect("it compiles");
        let text = format!("x{text}x");
        check(&template, &template.manifest().locale, &worded(&Value::Object(source.sample.clone())), &text, "https://a.bj/x");
    }
}
