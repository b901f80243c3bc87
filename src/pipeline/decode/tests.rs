use serde_json::json;

use super::*;
use crate::config::{Environment, Settings};

fn rules() -> PipelineConfig {
    let nothing = Environment::from_iter(std::iter::empty::<(String, String)>());
    Settings::read(&nothing, None).pipeline().expect("the defaults are sound")
}

fn envelope(content_type: &str) -> Envelope {
    Envelope { content_type: Some(content_type.into()), ..Envelope::of_nobody("billing.p2") }
}

fn sound() -> Value {
    json!({
        "requestId": "7b0e8f0e-4a51-4e0e-9a53-6f3c4d1f2a10",
        "source": "billing",
        "templateKey": "billing_invoice_monthly",
        "recipients": [{"address": "ada@example.bj", "displayName": "Ada"}, {"address": "bob@example.bj"}],
        "variables": {"b": 45, "a": {"y": 1.5, "x": [1, "zwei", null, true]}},
        "attachments": [{"fileName": "a.pdf", "contentType": "application/pdf", "inline": "JVBERi0="}],
        "priority": "P2",
        "metadata": {"k2": "v2", "k1": "v1"},
    })
}

fn read(request: &Value) -> Result<Decoded, Malformed> {
    decode(&envelope(wire::JSON), &Bytes::from(request.to_string()), &rules(), Utc::now())
}

fn with(path: &str, value: Value) -> Value {
    let mut request = sound();
    *request.pointer_mut(path).unwrap_or_else(|| panic!("{path} is there")) = value;
    request
}

fn complaint(request: &Value) -> String {
    read(request).expect_err("malformed").to_string()
}

#[test]
fn one_request_has_one_hash_in_both_encodings_and_any_order() {
    let from_json = read(&sound()).expect("sound").request;
    let wire = wire::from_json(sound().to_string().as_bytes()).expect("sound");
    let from_protobuf =
        decode(&envelope(wire::PROTOBUF), &wire::to_protobuf(&wire), &rules(), Utc::now()).expect("sound").request;
    assert_eq!(from_json.payload_hash, from_protobuf.payload_hash);
    let mut shuffled = with(
        "/recipients",
        json!([{"address": "BOB@Example.bj"}, {"address": "ada@example.bj", "displayName": "Ada"}]),
    );
    shuffled["metadata"] = json!({"k1": "v1", "k2": "v2"});
    shuffled["variables"] = json!({"a": {"x": [1, "zwei", null, true], "y": 1.5}, "b": 45.0});
    assert_eq!(read(&shuffled).expect("sound").request.payload_hash, from_json.payload_hash);
}

#[test]
fn every_field_counts_for_the_hash() {
    let first = read(&sound()).expect("sound").request.payload_hash;
    for (path, other) in [
        ("/source", json!("sla")),
        ("/templateKey", json!("another")),
        ("/recipients/0/address", json!("eve@example.bj")),
        ("/recipients/0/displayName", json!("Eve")),
        ("/variables/b", json!(46)),
        ("/variables/a/x/1", json!("drei")),
        ("/attachments/0/inline", json!("JVBERi0x")),
        ("/attachments/0/fileName", json!("b.pdf")),
        ("/priority", json!("P1")),
        ("/metadata/k1", json!("other")),
    ] {
        let hash = read(&with(path, other)).expect("sound").request.payload_hash;
        assert_ne!(hash, first, "{path}");
    }
}

#[test]
fn whole_numbers_are_integers_and_lists_of_addresses_are_several_recipients() {
    let request = read(&with("/recipients", json!([{"address": "a@example.bj, b@example.bj,A@example.bj"}])))
        .expect("sound")
        .request;
    assert_eq!(request.variables["b"], json!(45));
    assert_eq!(request.variables["a"]["y"], json!(1.5));
    assert_eq!(request.recipients.len(), 2);
}

#[test]
fn what_is_wrong_is_named_with_the_field_and_the_rule() {
    let many: Vec<Value> = (0..101).map(|n| json!({"address": format!("p{n}@example.bj")})).collect();
    let far = (Utc::now() + TimeDelta::days(40)).to_rfc3339();
    for (request, words) in [
        (with("/requestId", json!("4711")), "request_id: must be a UUID"),
        (with("/source", json!("Billing")), "source: must be 1 to 100 of a-z"),
        (with("/templateKey", json!("")), "template_key: must be"),
        (with("/recipients", json!([])), "recipients: is empty"),
        (with("/recipients", json!(many)), "recipients: names more than 100 people"),
        (
            with("/recipients/0/displayName", json!("A\r\nBcc: x@example.bj")),
            "recipients[0].display_name: holds a line break",
        ),
        (with("/variables/b", json!("a\u{0}b")), "variables.b: holds a NUL"),
        // A name is told if it looks like one: the error is one line, and is kept longer than whom it could be about.
        (with("/variables", json!({"line\r\nbreak": "\u{0}"})), "variables.?: holds a NUL"),
        (with("/variables", json!({"ada@example.bj": "\u{0}"})), "variables.?: holds a NUL"),
        (with("/variables", json!({"x".repeat(101): "\u{0}"})), "variables.?: holds a NUL"),
        (with("/variables", json!({"prénom": "\u{0}"})), "variables.prénom: holds a NUL"),
        (with("/variables", json!({"postrider": 1})), "variables.postrider: is a reserved name"),
        (with("/attachments/0/fileName", json!("a\nb.pdf")), "attachments[0].file_name: holds a line break"),
        (with("/attachments/0", json!({"fileName": "a.pdf"})), "attachments[0].content: is missing"),
    ] {
        let said = complaint(&request);
        assert!(said.starts_with(words), "{said}");
    }
    let mut late = sound();
    late["notBefore"] = json!(far);
    assert!(complaint(&late).contains("more than 30 days ahead (EMAIL_MAX_NOT_BEFORE_DAYS)"));
    let mut never = sound();
    never["notBefore"] = json!("2026-01-02T00:00:00Z");
    never["expiresAt"] = json!("2026-01-01T00:00:00Z");
    assert!(complaint(&never).starts_with("expires_at: is not after not_before"));
}

#[test]
fn a_bad_address_is_that_recipients_own_fault() {
    let request = read(&with("/recipients/0/address", json!("not an address"))).expect("sound otherwise").request;
    assert!(request.recipients[0].address.is_err() && request.recipients[1].address.is_ok());
}

#[test]
fn bytes_that_are_no_request_are_told_apart() {
    let read = |content_type: &str, body: &'static [u8]| {
        decode(&envelope(content_type), &Bytes::from_static(body), &rules(), Utc::now())
            .expect_err("no request")
            .to_string()
    };
    assert!(read(wire::PROTOBUF, b"\xff\xff\xff").contains("not a protobuf postrider.v1.EmailRequest"));
    assert!(read(wire::JSON, b"{").contains("JSON mapping"));
    assert!(read("text/plain", b"hello").contains("use application/x-protobuf or application/json"));
    assert!(read(wire::PROTOBUF, b"").starts_with("request_id: must be a UUID"));
}

#[test]
fn the_body_wins_over_the_routing_key_and_p0_is_for_some_sources_only() {
    let asked = read(&with("/priority", json!("P3"))).expect("sound");
    assert_eq!(asked.request.priority, Priority::P3);
    let mut silent = sound();
    silent.as_object_mut().expect("an object").remove("priority");
    assert_eq!(read(&silent).expect("the key says p2").request.priority, Priority::P2);
    let urgent = read(&with("/priority", json!("P0"))).expect("sound");
    assert!(urgent.demoted && urgent.request.priority == Priority::P1);
    let mut incident = with("/priority", json!("P0"));
    incident["source"] = json!("incident");
    assert_eq!(read(&incident).expect("sound").request.priority, Priority::P0);
}
