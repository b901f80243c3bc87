//! What can never be sent becomes a dead letter that a person understands, and stops nobody else's mail.

use lapin::BasicProperties;
use postrider::wire;

use crate::support::{
    installation::Installation,
    requests::{attach, id, invoice, pdf, set, ticket, unset},
};

/// The reason, and what its error must say.
struct Expected {
    request: Option<uuid::Uuid>,
    reason: &'static str,
    words: Vec<&'static str>,
}

const MEGABYTE: usize = 1024 * 1024;

/// Every kind of poison, each as a message; the reason that is expected, and words that its error must hold.
fn poisons() -> Vec<(&'static str, wire::EmailRequest, &'static str, Vec<&'static str>)> {
    let mut all = Vec::new();
    let mut poison = |name, request, reason, words: &[&'static str]| all.push((name, request, reason, words.to_vec()));

    let mut request = invoice("missing@example.bj");
    unset(&mut request, "amount_fcfa");
    poison("a variable that is missing", request, "missing_variable", &["amount_fcfa"]);

    let mut request = ticket("unknown@example.bj");
    request.template_key = "no_such_template".to_owned();
    poison("a template that does not exist", request, "unknown_template", &["no_such_template"]);

    let mut request = ticket("version@example.bj");
    request.template_version = 77;
    poison("a version that does not exist", request, "unknown_template", &["version 77", "support_ticket_created"]);

    poison("an address without an @", ticket("nobody"), "bad_address", &["no @"]);

    let mut request = invoice("forbidden@example.bj");
    attach(&mut request, "setup.exe", "application/x-msdownload", &b"MZ\x90\0"[..]);
    poison("a forbidden attachment", request, "bad_attachment", &["setup.exe", "application/x-msdownload", "pdf"]);

    let mut request = invoice("liar@example.bj");
    attach(&mut request, "invoice.pdf", "application/pdf", &b"MZ\x90\0 this is no PDF"[..]);
    poison("an attachment that lies", request, "bad_attachment", &["invoice.pdf", "application/pdf"]);

    let mut large = pdf().to_vec();
    large.resize(MEGABYTE + 1, b'\n');
    let mut request = invoice("large@example.bj");
    attach(&mut request, "large.pdf", "application/pdf", large);
    poison("an attachment over the limit", request, "bad_attachment", &["large.pdf", "1048577", "1048576"]);

    let mut request = ticket("injection@example.bj");
    request.recipients[0].display_name = "Ada\r\nBcc: victim@example.bj".to_owned();
    poison("a line break in a name", request, "malformed", &["recipients[0].display_name", "line break"]);

    let mut request = ticket("nul@example.bj");
    set(&mut request, "title", "a\0b");
    poison("a NUL in a variable", request, "malformed", &["variables.title", "NUL"]);

    let mut request = ticket("early@example.bj");
    request.not_before = Some(crate::support::requests::in_seconds(31.0 * 86_400.0));
    poison("a time too far ahead", request, "malformed", &["not_before", "EMAIL_MAX_NOT_BEFORE_DAYS"]);

    let mut request = ticket("nobody@example.bj");
    request.recipients.clear();
    poison("nobody to send to", request, "malformed", &["recipients", "100"]);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_can_never_be_sent_is_told_apart_and_stops_nothing() {
    let post = Installation::start_with(&[("EMAIL_MAX_ATTACHMENT_SIZE_MB", "1")]).await;
    let mut expected = Vec::new();
    let mut good = Vec::new();
    let good_one = async |good: &mut Vec<uuid::Uuid>| {
        let request = ticket(&format!("good-{}@example.bj", good.len()));
        good.push(post.publish(&request).await);
    };

    good_one(&mut good).await;
    for body in [&b"\xFF\xFF garbage \0\x01"[..], b"", b"{\"requestId\": 7"] {
        let properties = match body.first() {
            Some(b'{') => BasicProperties::default().with_content_type(wire::JSON.into()),
            _ => BasicProperties::default().with_content_type(wire::PROTOBUF.into()),
        };
        post.broker.publish_raw("support.p1", properties, body).await;
        let words = match body {
            [] => vec!["request_id"],
            [b'{', ..] => vec!["JSON"],
            _ => vec!["protobuf"],
        };
        expected.push(Expected { request: None, reason: "malformed", words });
        good_one(&mut good).await;
    }
    for (_, request, reason, words) in poisons() {
        // A producer's library checks nothing of this.
        post.publish(&request).await;
        // Whose it is can be told even of what breaks a rule.
        expected.push(Expected { request: Some(id(&request)), reason, words });
        good_one(&mut good).await;
    }

    let letters = post.database.wait_for_letters(expected.len()).await;
    for one in &expected {
        let fits = letters.iter().any(|letter| {
            let error = letter.error.as_deref().unwrap_or_default();
            letter.reason == one.reason
                && (one.request.is_none() || letter.request_id == one.request)
                && one.words.iter().all(|word| error.contains(word))
        });
        assert!(fits, "no letter with {} and {:?}: {letters:#?}", one.reason, one.words);
    }
    for request in &good {
        let row = &post.database.wait_for(*request, "sent").await[0];
        assert_eq!(row.attempts, 1);
    }
    assert_eq!(post.relay.log().mails.len(), good.len(), "nothing of the others reached the relay");

    // What a person sees.
    let listed = post.run(&["dead", "list", "--json"]).await.json();
    assert_eq!(listed["total"], expected.len());
    let only = post.run(&["dead", "list", "--reason", "missing_variable", "--json"]).await.json();
    assert_eq!(only["total"], 1);
    assert_eq!(only["items"][0]["template_key"], "billing_invoice_monthly");
    for letter in &letters {
        let shown = post.run(&["dead", "show", &letter.id.to_string()]).await;
        assert_eq!(shown.code, 0, "{shown:?}");
        assert!(shown.out.contains(&letter.reason), "{shown:?}");
        assert!(shown.out.contains(letter.error.as_deref().expect("an error")), "{shown:?}");
        let is_safe = |c: char| c == '\n' || !c.is_control();
        assert!(shown.out.chars().all(is_safe), "nothing in a letter does things to a terminal: {shown:?}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_address_among_good_ones_fails_only_itself() {
    let post = Installation::start().await;
    let mut request = ticket("first@example.bj");
    for address in ["second@nowhere", "third@example.bj"] {
        request.recipients.push(wire::Recipient { address: address.to_owned(), display_name: String::new() });
    }
    let request = post.publish(&request).await;
    let letter = post.database.wait_for_letter(request).await;
    assert_eq!(letter.reason, "bad_address");
    let named = letter.header("x-recipients");
    assert_eq!(named.as_array().map(Vec::len), Some(1), "{named}");
    assert_eq!((&named[0]["address"], &named[0]["reason"]), (&"second@nowhere".into(), &"bad_address".into()));
    assert!(named[0]["error"].as_str().is_some_and(|error| error.contains("after the @")), "{named}");
    let rows = post.database.rows(request).await;
    let fates: Vec<_> = rows.iter().map(|row| (row.recipient_email.as_str(), row.status.as_str())).collect();
    assert_eq!(fates, [("first@example.bj", "sent"), ("second@nowhere", "failed"), ("third@example.bj", "sent")]);
    assert_eq!(post.relay.log().mails.len(), 2);
    post.finish().await;
}
