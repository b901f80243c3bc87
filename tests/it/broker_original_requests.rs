//! The bodies of the system that postrider replaces, converted to requests, are delivered as they stand.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use postrider::wire;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{installation::Installation, mail::Mail, requests::pdf};

fn invoice() -> Value {
    json!({
        "source": "billing",
        "recipients": [{ "address": "reseller@techconnect.bj" }],
        "templateKey": "billing_invoice_monthly",
        "variables": {
            "reseller_name": "Tech Connect SA",
            "month": "février",
            "year": "2026",
            "amount_fcfa": "450000",
            "link_portal": "https://admin-rgz.duckdns.org/invoices/latest",
            "invoice_number": "INV-2026-0001"
        },
        "attachments": [
            { "fileName": "invoice_2026-02.pdf", "contentType": "application/pdf", "inline": BASE64.encode(pdf()) }
        ]
    })
}

fn incident() -> Value {
    json!({
        "source": "incident",
        "recipients": [{ "address": "noc@rgz.bj,reseller@techconnect.bj" }],
        "templateKey": "incident_alert_critical",
        "variables": {
            "incident_number": "INC-2026-000847",
            "title": "Fiber cut central",
            "description": "Central BGP flap, 45 sites offline",
            "priority": "P0",
            "affected_sites": 45,
            "detected_at": "2026-02-21T14:30:00Z",
            "status_link": "https://status.rgz.bj"
        }
    })
}

fn welcome() -> Value {
    json!({
        "source": "onboarding",
        "recipients": [{ "address": "john@techconnect.bj" }],
        "templateKey": "onboarding_welcome",
        "variables": {
            "reseller_name": "Tech Connect SA",
            "validation_link": "https://admin-rgz.duckdns.org",
            "estimated_duration": "7-12 jours"
        }
    })
}

/// In both encodings, under an id each.
async fn publish(post: &Installation, routing_key: &str, mut request: Value) -> [Uuid; 2] {
    let ids = [Uuid::new_v4(), Uuid::new_v4()];
    request["requestId"] = json!(ids[0]);
    post.broker.publish_json(routing_key, &request.to_string()).await;
    request["requestId"] = json!(ids[1]);
    request["priority"] = json!(routing_key.rsplit_once('.').expect("a priority").1.to_uppercase());
    let decoded = wire::from_json(request.to_string().as_bytes()).expect("protobuf's JSON mapping");
    post.broker.publish(&decoded).await;
    ids
}

/// The narrow blanks that French typography puts between digits are blanks to a reader.
fn plain_blanks(text: &str) -> String {
    text.replace(['\u{A0}', '\u{202F}'], " ").replace("&nbsp;", " ")
}

fn to<'a>(mails: &'a [Mail], address: &str, subject: &str) -> Vec<&'a Mail> {
    mails.iter().filter(|mail| mail.envelope_to == address && plain_blanks(&mail.subject) == subject).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_of_the_old_system_is_refused_or_mangled() {
    let post = Installation::start().await;
    let mut ids = Vec::new();
    ids.extend(publish(&post, "billing.p2", invoice()).await);
    ids.extend(publish(&post, "incident.p0", incident()).await);
    ids.extend(publish(&post, "onboarding.p1", welcome()).await);
    // Two encodings; an invoice, an incident for two, a welcome.
    let mails = post.mails(8).await;

    let invoices = to(&mails, "reseller@techconnect.bj", "Facture RGZ — février 2026");
    assert_eq!(invoices.len(), 2, "{mails:#?}");
    for mail in &invoices {
        for part in [&mail.text, &mail.html] {
            assert!(plain_blanks(part).contains("450 000 FCFA"), "{part}");
            assert!(part.contains("INV-2026-0001") && part.contains("https://admin-rgz.duckdns.org/invoices/latest"));
        }
        assert_eq!(mail.files.len(), 1);
        let (name, content_type, bytes) = &mail.files[0];
        assert_eq!((name.as_str(), content_type.as_str()), ("invoice_2026-02.pdf", "application/pdf"));
        assert!(bytes == &pdf(), "the PDF arrives byte for byte");
    }

    for address in ["noc@rgz.bj", "reseller@techconnect.bj"] {
        let alerts = to(&mails, address, "⚠️ ALERTE CRITIQUE RGZ — INC-2026-000847");
        assert_eq!(alerts.len(), 2, "one of each encoding, although the NOC is also in the template: {address}");
        for mail in alerts {
            for part in [&mail.text, &mail.html] {
                assert!(part.contains("45") && !part.contains("45.0"), "{part}");
                assert!(part.contains("Fiber cut central") && part.contains("https://status.rgz.bj"), "{part}");
            }
        }
    }

    let welcomes = to(&mails, "john@techconnect.bj", "Bienvenue sur RGZ Access!");
    assert_eq!(welcomes.len(), 2, "{:?}", mails.iter().map(|mail| &mail.subject).collect::<Vec<_>>());
    for mail in welcomes {
        assert!(mail.text.contains("7-12 jours") && mail.text.contains("https://admin-rgz.duckdns.org/dashboard"));
        assert!(!mail.text.contains("XXXXX"), "{}", mail.text);
    }

    for id in ids {
        for row in post.database.wait_for(id, "sent").await {
            assert_eq!(row.attempts, 1);
        }
    }
    let said = post.run(&["messages", "--to", "reseller@techconnect.bj", "--json"]).await.json();
    assert_eq!(said["total"], 4);
    assert!(said["items"].as_array().expect("items").iter().all(|item| item["status"] == "sent"), "{said}");
    let (status, said) =
        post.daemon().get("/api/v1/email/messages?to=Reseller@TechConnect.bj", "an-admin-of-these-tests").await;
    assert_eq!((status.as_u16(), &said["total"]), (200, &json!(4)));
    assert!(post.database.letters().await.is_empty());
    post.finish().await;
}
