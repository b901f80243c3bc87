use serde_json::json;

use super::*;

const ROW: &str = "01936f00-0000-7000-8000-000000000001";

fn published() -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-11-25T10:00:00Z").expect("a time").into()
}

fn read_json(event: &Value) -> FeedbackEvent {
    read(&event.to_string(), published())
}

/// As SES writes it, in event publishing and in notifications.
fn both(event_type: &str, part: &str, details: &Value) -> [FeedbackEvent; 2] {
    ["eventType", "notificationType"].map(|key| {
        read_json(&json!({
            key: event_type,
            "mail": {
                "timestamp": "2026-11-25T09:00:00.123Z",
                "messageId": "0100018f-aaaa-000000",
                "source": "noreply@rgz.bj",
                "destination": ["Ama <ama@example.bj>", "kofi@example.bj"],
                "headersTruncated": "false",
                "headers": [
                    {"name": "Subject", "value": "Facture"},
                    {"name": "x-postrider-message", "value": format!("{ROW};attempt=2")},
                ],
                "tags": {"ses:configuration-set": ["postrider"]},
            },
            part: details,
        }))
    })
}

#[test]
fn every_type_of_event_is_read_in_both_formats() {
    let bounce = |permanent, subtype: &str, blames_address| FeedbackKind::Bounced {
        bounce: Bounce { permanent, subtype: subtype.to_owned() },
        blames_address,
    };
    let complaint = |word: &str| FeedbackKind::Complained { feedback_type: word.to_owned() };
    let delayed = |word: &str| FeedbackKind::Delayed { cause: word.to_owned() };
    let permanent = |subtype: &str| json!({"bounceType": "Permanent", "bounceSubType": subtype});
    let transient = |subtype: &str| json!({"bounceType": "Transient", "bounceSubType": subtype});
    let undetermined = json!({"bounceType": "Undetermined", "bounceSubType": "Undetermined"});
    let table = [
        ("Send", "send", json!({}), FeedbackKind::Accepted),
        ("Delivery", "delivery", json!({"smtpResponse": "250 ok"}), FeedbackKind::Delivered),
        ("DeliveryDelay", "deliveryDelay", json!({"delayType": "MailboxFull"}), delayed("MailboxFull")),
        ("Bounce", "bounce", permanent("General"), bounce(true, "General", true)),
        ("Bounce", "bounce", permanent("NoEmail"), bounce(true, "NoEmail", true)),
        ("Bounce", "bounce", permanent("Suppressed"), bounce(true, "Suppressed", true)),
        ("Bounce", "bounce", permanent("OnAccountSuppressionList"), bounce(true, "OnAccountSuppressionList", true)),
        ("Bounce", "bounce", permanent("UnsubscribedRecipient"), bounce(true, "UnsubscribedRecipient", false)),
        ("Bounce", "bounce", transient("General"), bounce(false, "General", false)),
        ("Bounce", "bounce", transient("MailboxFull"), bounce(false, "MailboxFull", false)),
        ("Bounce", "bounce", transient("MessageTooLarge"), bounce(false, "MessageTooLarge", false)),
        ("Bounce", "bounce", transient("ContentRejected"), bounce(false, "ContentRejected", false)),
        ("Bounce", "bounce", transient("AttachmentRejected"), bounce(false, "AttachmentRejected", false)),
        ("Bounce", "bounce", undetermined, bounce(false, "Undetermined", false)),
        ("Bounce", "bounce", json!({"bounceType": "Brand new"}), bounce(false, "Brand new", false)),
        ("Complaint", "complaint", json!({"complaintFeedbackType": "abuse"}), complaint("abuse")),
        ("Complaint", "complaint", json!({"complaintFeedbackType": "not-spam"}), complaint("not-spam")),
        ("Complaint", "complaint", json!({"complaintFeedbackType": "auth-failure"}), complaint("auth-failure")),
        ("Complaint", "complaint", json!({"complaintFeedbackType": "fraud"}), complaint("fraud")),
        ("Complaint", "complaint", json!({"complaintFeedbackType": "virus"}), complaint("virus")),
        ("Complaint", "complaint", json!({"complaintFeedbackType": "other"}), complaint("other")),
        (
            "Complaint",
            "complaint",
            json!({"complaintSubType": "OnAccountSuppressionList"}),
            complaint("OnAccountSuppressionList"),
        ),
        ("Complaint", "complaint", json!({}), complaint("undetermined")),
        ("Reject", "reject", json!({"reason": "Bad content"}), bounce(true, "Reject", false)),
        (
            "Rendering Failure",
            "failure",
            json!({"errorMessage": "no such attribute"}),
            bounce(true, "RenderingFailure", false),
        ),
        ("Open", "open", json!({"timestamp": "2026-11-25T09:30:00.000Z"}), FeedbackKind::Opened),
        ("Click", "click", json!({"link": "https://example.bj/"}), FeedbackKind::Clicked),
        ("Subscription", "subscription", json!({"contactList": "all"}), FeedbackKind::Subscription),
        ("Brand New Type", "brandNew", json!({}), FeedbackKind::Other),
    ];
    for (event_type, part, details, kind) in table {
        for event in both(event_type, part, &details) {
            assert_eq!(event.kind, kind, "{event_type} {details}");
            assert_eq!(event.event_type, event_type);
            assert_eq!(event.relay_message_id.as_deref(), Some("0100018f-aaaa-000000"));
            assert_eq!(event.mark, Some(Mark { row_id: ROW.parse().expect("a UUID"), attempt: 2 }));
            assert!(event.has_marks);
            let named: Vec<_> = event.recipients.iter().map(|told| told.address.as_str()).collect();
            assert_eq!(named, ["ama@example.bj", "kofi@example.bj"], "those of the mail, when none is named");
        }
    }
}

#[test]
fn recipients_are_those_that_the_event_names_each_with_its_own_words() {
    let details = json!({
        "bounceType": "Permanent", "bounceSubType": "General", "timestamp": "2026-11-25T09:00:05.000Z",
        "bouncedRecipients": [
            {"emailAddress": "kofi@example.bj", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 <kofi@example.bj> unknown"},
            {"emailAddress": "<ama@example.bj>", "status": "5.2.1"},
        ],
    });
    for event in both("Bounce", "bounce", &details) {
        let told: Vec<_> = event.recipients.iter().map(|t| (t.address.as_str(), t.diagnostic.as_deref())).collect();
        let expected =
            [("kofi@example.bj", Some("smtp; 550 5.1.1 <k***@***.bj> unknown")), ("ama@example.bj", Some("5.2.1"))];
        assert_eq!(told, expected);
        assert_eq!(event.occurred_at.to_rfc3339(), "2026-11-25T09:00:05+00:00");
    }
}

#[test]
fn a_delivery_has_the_far_servers_answer() {
    let details = json!({"recipients": ["kofi@example.bj"], "smtpResponse": "250 2.6.0 Message received"});
    for event in both("Delivery", "delivery", &details) {
        let told: Vec<_> = event.recipients.iter().map(|t| t.diagnostic.as_deref()).collect();
        assert_eq!(told, [Some("250 2.6.0 Message received")]);
        assert_eq!(event.occurred_at, event.accepted_at.expect("the mail's own time"), "without one of its own");
    }
}

#[test]
fn a_far_servers_endless_words_cost_no_more_than_what_is_kept_of_them() {
    // Every dot may be the end of an address, and none is. All of the long one would take minutes, and so would the short one if it
    // were read for everybody who is named.
    let endless = |times: usize| format!("a@{} ", "1.".repeat(100)).repeat(times);
    let everybody: Vec<_> = (0..2000).map(|n| format!("n{n}@example.bj")).collect();
    let of_all = json!({"recipients": everybody, "smtpResponse": endless(100)});
    let of_one = json!({"bounceType": "Permanent", "bouncedRecipients": [
        {"emailAddress": "kofi@example.bj", "diagnosticCode": endless(100_000)},
    ]});
    for (kind, part, details, named) in [("Delivery", "delivery", of_all, 2000), ("Bounce", "bounce", of_one, 1)] {
        for event in both(kind, part, &details) {
            assert_eq!(event.recipients.len(), named);
            let kept = event.recipients.iter().filter_map(|told| told.diagnostic.as_deref());
            assert!(kept.map(|words| words.chars().count()).all(|chars| chars <= 1000));
        }
    }
}

#[test]
fn tags_are_as_good_as_a_header_and_ses_own_are_no_sign_of_a_set_up() {
    let mail =
        |tags: Value| read_json(&json!({"eventType": "Send", "mail": {"messageId": "x", "tags": tags}, "send": {}}));
    let marked = mail(json!({"postrider": [format!("{ROW}_3")], "ses:source-ip": ["192.0.2.1"]}));
    assert_eq!(marked.mark, Some(Mark { row_id: ROW.parse().expect("a UUID"), attempt: 3 }));
    assert!(marked.has_marks);
    let bare = mail(json!({"ses:source-ip": ["192.0.2.1"]}));
    assert_eq!((bare.mark, bare.has_marks), (None, false));
    let of_others = mail(json!({"campaign": ["spring"], "postrider": ["no mark"]}));
    assert_eq!((of_others.mark, of_others.has_marks), (None, true));
}

#[test]
fn what_is_no_event_is_kept_without_effect() {
    let bodies = [
        "Successfully validated SNS topic for Amazon SES event publishing.",
        "",
        "[]",
        "null",
        "{}",
        r#"{"eventType": 7, "mail": [], "bounce": "x"}"#,
        r#"{"notificationType": "AmazonSnsSubscriptionSucceeded", "message": "You have successfully subscribed"}"#,
    ];
    for body in bodies {
        let event = read(body, published());
        assert_eq!((event.kind, event.occurred_at), (FeedbackKind::Other, published()), "{body}");
        assert!(event.recipients.is_empty() && event.mark.is_none());
    }
}

#[test]
fn an_event_that_cannot_be_read_is_no_event_without_effect() {
    for body in [r#"{"eventType": "Bounce", "mail": {"#, r#"{"eventType": "Bounce", "mail": {"messageId": "\ud800"}}"#]
    {
        assert_eq!(read(body, published()).kind, FeedbackKind::Unreadable, "{body}");
    }
}

#[test]
fn times_are_read_as_ses_writes_them() {
    let at = |text: &str| {
        read_json(&json!({"eventType": "Send", "mail": {"timestamp": text}})).accepted_at.map(|t| t.to_rfc3339())
    };
    assert_eq!(at("2018-10-08T14:05:45 +0000").as_deref(), Some("2018-10-08T14:05:45+00:00"));
    assert_eq!(at("2016-01-27T14:59:38.237Z").as_deref(), Some("2016-01-27T14:59:38.237+00:00"));
    assert_eq!(at("yesterday"), None);
}
