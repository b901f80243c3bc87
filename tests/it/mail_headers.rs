//! Headers for mail providers: what the settings ask for, where it belongs, and nothing unasked; and lines that fit.

use postrider::config::{Environment, Settings};

use crate::support::{
    installation::Installation,
    process::DaemonProcess,
    requests::{attach, invoice, pdf, sample, set, ticket},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_are_told_apart_as_the_settings_say_and_not_otherwise() {
    let post = Installation::start().await;
    post.publish(&ticket("ada@example.bj")).await;
    let mail = post.mails(1).await.remove(0);
    for header in ["List-Id", "Feedback-ID", "X-SES-CONFIGURATION-SET", "X-SES-MESSAGE-TAGS", "DKIM-Signature"] {
        assert_eq!(mail.header(header), None);
    }
    post.finish().await;

    let post = Installation::start_with(&[
        ("EMAIL_LIST_ID_DOMAIN", "listes.rgz.bj"),
        ("EMAIL_FEEDBACK_SENDER_ID", "rgzaccess"),
        ("SES_CONFIGURATION_SET", "transactional-1"),
        ("SES_MESSAGE_TAGS", "template, source, category, lane, environment=test"),
    ])
    .await;
    let mut request = ticket("ada@example.bj");
    request.source = "support".to_owned();
    post.publish(&request).await;
    post.mails(1).await;
    post.publish(&sample("reseller_announcement", &["ada@example.bj"])).await;
    let mails = post.mails(2).await;
    let header =
        |n: usize, name: &str| mails[n].header(name).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    assert_eq!(header(0, "List-Id"), None, "a list is what one can leave");
    assert_eq!(header(1, "List-Id").as_deref(), Some("<marketing.listes.rgz.bj>"));
    assert_eq!(header(0, "Feedback-ID").as_deref(), Some("support_ticket_created:support:support:rgzaccess"));
    assert_eq!(header(1, "Feedback-ID").as_deref(), Some("reseller_announcement:marketing:marketing:rgzaccess"));
    for n in [0, 1] {
        assert_eq!(header(n, "X-SES-CONFIGURATION-SET").as_deref(), Some("transactional-1"));
    }
    // Without a webhook nobody would hear of our own mark.
    assert_eq!(
        header(0, "X-SES-MESSAGE-TAGS").as_deref(),
        Some("template=support_ticket_created, source=support, category=support, lane=standard, environment=test")
    );
    post.finish().await;
}

#[test]
fn what_cannot_be_a_header_is_a_fault_at_start() {
    for (name, value, words) in [
        ("EMAIL_PUBLIC_URL", "http://mail.rgz.bj", "does not start with https://"),
        ("EMAIL_PUBLIC_URL", "https://mail.rgz.bj/?a=b", "a query"),
        ("EMAIL_PUBLIC_URL", "https://u:p@mail.rgz.bj", "has a user"),
        ("EMAIL_PUBLIC_URL", "mail.rgz.bj", "is not a URL"),
        ("EMAIL_LIST_ID_DOMAIN", "rgz", "is not a domain name"),
        ("EMAIL_FEEDBACK_SENDER_ID", "rgz", "is not of 5 to 15"),
        ("EMAIL_FEEDBACK_SENDER_ID", "rgz:access", "is not of 5 to 15"),
        ("SES_CONFIGURATION_SET", "a\r\nBcc: b", "is not of 1 to 64"),
        ("SES_MESSAGE_TAGS", "template,colour", "entry (2)"),
        ("SES_MESSAGE_TAGS", "a=b c", "entry (1)"),
        ("SES_MESSAGE_TAGS", "postrider=1", "reserved"),
        ("SES_MESSAGE_TAGS", "a=1,a=2", "two entries for a"),
    ] {
        let settings: Environment = [("WEBHOOK_ADDR", "0.0.0.0:8026"), (name, value)].into_iter().collect();
        let faults = Settings::read(&settings, None).config().expect_err("a fault").to_string();
        let fault = faults.split("\n\n").find(|fault| fault.contains(name)).unwrap_or_default();
        assert!(fault.contains(words), "{name}={value}: {faults}");
    }
    let alone: Environment = [("EMAIL_PUBLIC_URL", "https://mail.rgz.bj/")].into_iter().collect();
    let faults = Settings::read(&alone, None).mail().expect_err("a fault").to_string();
    assert!(faults.contains("without WEBHOOK_ADDR"), "{faults}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_is_too_long_and_what_is_encoded_says_so() {
    let post = Installation::start().await;
    let mut request = invoice("ada@example.bj");
    request.recipients[0].display_name = "É".repeat(100);
    set(&mut request, "reseller_name", &"très long ".repeat(300));
    attach(&mut request, "facture.pdf", "application/pdf", pdf());
    post.publish(&request).await;
    let mut marketing = sample("reseller_announcement", &["ada@example.bj"]);
    set(&mut marketing, "title", &"é".repeat(400));
    post.publish(&marketing).await;
    post.mails(2).await;
    for mail in &post.relay.log().mails {
        let text = std::str::from_utf8(&mail.content).expect("ASCII");
        assert!(text.is_ascii(), "7-bit");
        assert!(!mail.parameters.contains("8BITMIME") && !mail.parameters.contains("SMTPUTF8"), "{}", mail.parameters);
        assert!(text.lines().all(|line| line.len() <= 998));
        let mut encoded_parts = 0;
        for part in text.split("\r\n--").skip(1) {
            let Some((head, body)) = part.split_once("\r\n\r\n") else { continue };
            let head = head.to_ascii_lowercase();
            if head.contains("content-transfer-encoding: base64")
                || head.contains("content-transfer-encoding: quoted-printable")
            {
                encoded_parts += 1;
                assert!(body.lines().all(|line| line.len() <= 76), "{head}");
            } else {
                assert!(head.contains("multipart/") || head.contains("content-transfer-encoding: 7bit"), "{head}");
            }
        }
        assert!(encoded_parts >= 2, "{text}");
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_gmail_would_cut_goes_out_whole_and_the_log_tells_of_its_template() {
    let mut post = Installation::prepare(&[]).await;
    post.declare_queues().await;
    let daemon = DaemonProcess::start(&post.variables);
    let mut request = sample("support_ticket_created", &["ada@example.bj"]);
    set(&mut request, "title", &"très long ".repeat(6000));
    let id = post.publish(&request).await;
    post.database.wait_for(id, "sent").await;
    assert!(post.mails(1).await[0].html.len() > 102_000);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("Gmail")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("support_ticket_created") && !line.contains("long"), "{line}");
}
