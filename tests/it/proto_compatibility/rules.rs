//! What may change in the contract and what may not: pure, over two sets of descriptors.
//!
//! As buf's `WIRE_JSON` has it, since requests travel in both encodings: names count as much as numbers.

use std::fmt::Display;

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

/// Everything in `new` that a producer or subscriber built from `old` would stumble over; each with its remedy.
pub(super) fn broken(old: &DescriptorPool, new: &DescriptorPool) -> Vec<String> {
    let mut found = Vec::new();
    for before in old.all_messages().filter(|message| is_ours(message.package_name())) {
        match new.get_message_by_name(before.full_name()) {
            Some(now) => message(&before, &now, &mut found),
            None => found.push(format!(
                "message {} is gone: put it back (a renamed message or package is another type to everybody)",
                before.full_name()
            )),
        }
    }
    for before in old.all_enums().filter(|values| is_ours(values.package_name())) {
        match new.get_enum_by_name(before.full_name()) {
            Some(now) => enumeration(&before, &now, &mut found),
            None => found.push(format!("enum {} is gone: put it back", before.full_name())),
        }
    }
    found
}

/// The well-known types are somebody else's to keep.
fn is_ours(package: &str) -> bool {
    package.split('.').next() == Some("postrider")
}

fn message(before: &MessageDescriptor, now: &MessageDescriptor, found: &mut Vec<String>) {
    for old in before.fields() {
        match now.get_field(old.number()) {
            Some(new) => field(&old, &new, found),
            None => removed(now, &old, found),
        }
    }
    for range in before.reserved_ranges() {
        for number in range.clone().take(1000) {
            let is_reserved = now.reserved_ranges().any(|kept| kept.contains(&number));
            if !is_reserved {
                found.push(format!(
                    "{}: number {number} was reserved and is not any more: a removed field's number is never used again; \
                     add `reserved {number};`, and give the new field the next free number",
                    now.full_name()
                ));
            }
        }
    }
    for name in before.reserved_names() {
        if !now.reserved_names().any(|kept| kept == name) {
            found.push(format!(
                "{}: the name {name} was reserved and is not any more: add `reserved \"{name}\";`",
                now.full_name()
            ));
        }
    }
}

fn removed(now: &MessageDescriptor, old: &FieldDescriptor, found: &mut Vec<String>) {
    let (number, name) = (old.number(), old.name());
    if let Some(moved) = now.get_field_by_name(name) {
        found.push(format!(
            "{}.{name} has the number {} instead of {number}: give it its old number; for another meaning, another name",
            now.full_name(),
            moved.number()
        ));
        return;
    }
    if !now.reserved_ranges().any(|range| range.contains(&number)) {
        found.push(format!(
            "{}.{name} = {number} is gone, and its number is free to be used again: put it back, or add `reserved {number};`",
            now.full_name()
        ));
    }
    if !now.reserved_names().any(|kept| kept == name) {
        found.push(format!(
            "{}.{name} = {number} is gone, and its name is free to be used again: put it back, or add `reserved \"{name}\";`",
            now.full_name()
        ));
    }
}

fn field(old: &FieldDescriptor, new: &FieldDescriptor, found: &mut Vec<String>) {
    let oneof = |field: &FieldDescriptor| {
        field.containing_oneof().map_or_else(|| "none".to_owned(), |oneof| oneof.name().to_owned())
    };
    let mut same = |what: &str, before: &dyn Display, now: &dyn Display| {
        let (before, now) = (before.to_string(), now.to_string());
        if before != now {
            found.push(format!(
                "{} = {}: its {what} was {before} and is {now}: change it back, and add a new field with the next free number \
                 for what is new",
                old.full_name(),
                old.number()
            ));
        }
    };
    same("name", &old.name(), &new.name());
    same("JSON name", &old.json_name(), &new.json_name());
    same("type", &type_of(old), &type_of(new));
    same("cardinality", &format!("{:?}", old.cardinality()), &format!("{:?}", new.cardinality()));
    same("presence", &old.supports_presence(), &new.supports_presence());
    same("oneof", &oneof(old), &oneof(new));
}

fn type_of(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => values.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn enumeration(before: &EnumDescriptor, now: &EnumDescriptor, found: &mut Vec<String>) {
    for old in before.values() {
        let (name, number) = (old.name(), old.number());
        match now.values().find(|value| value.number() == number) {
            Some(new) if new.name() == name => {}
            Some(new) => found.push(format!(
                "{}: {number} was {name} and is {}: change it back; a new value takes the next free number",
                now.full_name(),
                new.name()
            )),
            None => {
                let is_reserved = now.reserved_ranges().any(|range| range.contains(&number))
                    && now.reserved_names().any(|kept| kept == name);
                if !is_reserved {
                    found.push(format!(
                        "{}: {name} = {number} is gone: put it back, or add `reserved {number};` and `reserved \"{name}\";`",
                        now.full_name()
                    ));
                }
            }
        }
    }
}
