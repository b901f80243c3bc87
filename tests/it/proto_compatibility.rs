//! The contract may grow, and nobody who was built from it yesterday may stumble: compared with the committed descriptors.

mod rules;

use std::{fs, path::PathBuf};

use prost::Message;
use prost_reflect::DescriptorPool;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, descriptor_proto::ReservedRange, field_descriptor_proto::Type,
};

use self::rules::broken;

/// What the build script made of the proto file as it is now.
const NOW: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/postrider.bin"));
/// Set by `deploy/dev proto`: write down what is new, if nothing is broken.
const RENEW: &str = "PROTO_RENEW";

fn committed() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/proto/postrider.binpb").into()
}

fn pool(bytes: &[u8]) -> DescriptorPool {
    DescriptorPool::decode(bytes).expect("sound descriptors")
}

#[test]
fn a_producer_built_from_the_committed_descriptors_is_still_understood() {
    let before = fs::read(committed()).expect("proto/postrider.binpb");
    let found = broken(&pool(&before), &pool(NOW));
    assert!(
        found.is_empty(),
        "proto/postrider/v1/email.proto breaks producers and subscribers:\n- {}",
        found.join("\n- ")
    );
    if std::env::var_os(RENEW).is_some() {
        fs::write(committed(), NOW).expect("written");
        return;
    }
    // What is not written down could be taken back unnoticed; and producers read these descriptors.
    assert!(
        before == NOW,
        "proto/postrider/v1/email.proto has grown, compatibly: run ./deploy/dev proto, and commit proto/postrider.binpb"
    );
}

/// What the rules find when the contract is changed so.
fn after(change: impl FnOnce(&mut FileDescriptorProto)) -> Vec<String> {
    let mut set = FileDescriptorSet::decode(NOW).expect("descriptors");
    change(set.file.iter_mut().find(|file| file.package() == "postrider.v1").expect("our file"));
    broken(&pool(NOW), &pool(&set.encode_to_vec()))
}

fn message<'a>(file: &'a mut FileDescriptorProto, name: &str) -> &'a mut DescriptorProto {
    file.message_type.iter_mut().find(|message| message.name() == name).expect("a message of this name")
}

fn field<'a>(file: &'a mut FileDescriptorProto, of: &str, name: &str) -> &'a mut FieldDescriptorProto {
    message(file, of).field.iter_mut().find(|field| field.name() == name).expect("a field of this name")
}

fn priority(file: &mut FileDescriptorProto) -> &mut EnumDescriptorProto {
    file.enum_type.iter_mut().find(|values| values.name() == "Priority").expect("the enum")
}

fn remove(file: &mut FileDescriptorProto, of: &str, name: &str) {
    message(file, of).field.retain(|field| field.name() != name);
}

fn assert_only(found: &[String], words: &[&str]) {
    assert_eq!(found.len(), 1, "{found:#?}");
    for word in words {
        assert!(found[0].contains(word), "no {word} in: {}", found[0]);
    }
}

#[test]
fn nothing_is_found_where_nothing_changed_or_something_was_added() {
    assert_eq!(after(|_| {}), Vec::<String>::new());
    let grown = after(|file| {
        message(file, "EmailRequest").field.push(FieldDescriptorProto {
            name: Some("campaign".to_owned()),
            json_name: Some("campaign".to_owned()),
            number: Some(100),
            r#type: Some(Type::String.into()),
            label: Some(1),
            ..FieldDescriptorProto::default()
        });
        file.message_type.push(DescriptorProto { name: Some("Campaign".to_owned()), ..DescriptorProto::default() });
        priority(file).value.push(EnumValueDescriptorProto {
            name: Some("P4".to_owned()),
            number: Some(5),
            ..EnumValueDescriptorProto::default()
        });
    });
    assert_eq!(grown, Vec::<String>::new());
}

#[test]
fn a_field_that_is_removed_must_leave_its_number_and_its_name_reserved() {
    let found = after(|file| remove(file, "EmailRequest", "locale"));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("reserved 9;") && found[1].contains("reserved \"locale\";"), "{found:#?}");

    let reserve = |file: &mut FileDescriptorProto| {
        remove(file, "EmailRequest", "locale");
        let request = message(file, "EmailRequest");
        request.reserved_range.push(ReservedRange { start: Some(9), end: Some(10) });
        request.reserved_name.push("locale".to_owned());
    };
    assert_eq!(after(reserve), Vec::<String>::new());

    // And so it stays.
    let mut reserved = FileDescriptorSet::decode(NOW).expect("descriptors");
    reserve(reserved.file.iter_mut().find(|file| file.package() == "postrider.v1").expect("our file"));
    let mut freed = reserved.clone();
    let file = freed.file.iter_mut().find(|file| file.package() == "postrider.v1").expect("our file");
    message(file, "EmailRequest").reserved_range.clear();
    let found = broken(&pool(&reserved.encode_to_vec()), &pool(&freed.encode_to_vec()));
    assert_only(&found, &["number 9 was reserved", "reserved 9;"]);
}

#[test]
fn a_field_that_is_renumbered_renamed_or_retyped_is_named_with_its_remedy() {
    let found = after(|file| field(file, "EmailEvent", "kind").number = Some(60));
    assert_only(&found, &["EmailEvent.kind", "60 instead of 6", "old number"]);

    let found = after(|file| {
        let field = field(file, "Recipient", "address");
        field.name = Some("email".to_owned());
        field.json_name = Some("email".to_owned());
    });
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found.iter().all(|fault| fault.contains("address and is email")), "{found:#?}");

    let found = after(|file| field(file, "EmailRequest", "template_version").r#type = Some(Type::Uint64.into()));
    assert_only(&found, &["template_version = 4", "uint32 and is uint64"]);

    let found = after(|file| {
        let field = field(file, "EmailRequest", "expires_at");
        field.type_name = Some(".google.protobuf.Struct".to_owned());
    });
    assert_only(&found, &["expires_at", "google.protobuf.Timestamp and is google.protobuf.Struct"]);

    let found = after(|file| field(file, "Recipient", "display_name").label = Some(3));
    assert!(found.iter().any(|fault| fault.contains("cardinality")), "{found:#?}");

    let found = after(|file| {
        let field = field(file, "EmailRequest", "reply_to");
        field.json_name = Some("replyto".to_owned());
    });
    assert_only(&found, &["JSON name", "replyTo and is replyto"]);

    let found = after(|file| field(file, "Attachment", "inline").oneof_index = None);
    assert!(found.iter().any(|fault| fault.contains("oneof was content and is none")), "{found:#?}");
}

#[test]
fn an_enum_keeps_its_values_and_their_numbers() {
    let found = after(|file| priority(file).value[4].number = Some(7));
    assert_only(&found, &["P3 = 4 is gone", "reserved 4;"]);
    let found = after(|file| priority(file).value[1].name = Some("URGENT".to_owned()));
    assert_only(&found, &["1 was P0 and is URGENT"]);
    let found = after(|file| {
        priority(file).value.pop();
    });
    assert_only(&found, &["P3 = 4 is gone"]);
}

#[test]
fn a_message_or_package_with_another_name_is_another_contract() {
    let found = after(|file| {
        let request = message(file, "Recipient");
        request.name = Some("Person".to_owned());
        field(file, "EmailRequest", "recipients").type_name = Some(".postrider.v1.Person".to_owned());
    });
    assert!(found.iter().any(|fault| fault.contains("message postrider.v1.Recipient is gone")), "{found:#?}");

    // The whole package moves to v2, as by a careless search and replace.
    let text = String::from_utf8_lossy(NOW).into_owned();
    assert!(text.contains("postrider.v1"));
    let moved: Vec<u8> = replace(NOW, b"postrider.v1", b"postrider.v2");
    let found = broken(&pool(NOW), &pool(&moved));
    assert!(found.iter().any(|fault| fault.contains("message postrider.v1.EmailRequest is gone")), "{found:#?}");
    assert!(found.iter().any(|fault| fault.contains("enum postrider.v1.Priority is gone")), "{found:#?}");
}

/// Of the same length, so that every length before it still holds.
fn replace(bytes: &[u8], from: &[u8; 12], to: &[u8; 12]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for at in 0..changed.len().saturating_sub(from.len()) {
        if changed[at..].starts_with(from) {
            changed[at..at + to.len()].copy_from_slice(to);
        }
    }
    changed
}
