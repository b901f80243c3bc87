//! Files as programs, spreadsheets and people write them.

use proptest::prelude::*;

use super::*;

/// Stands for the keyed hash: only that equal keys have equal hashes matters here.
fn hash(key: &str) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(key).into()
}

fn read_text(text: &str) -> Contents {
    read(text.as_bytes(), &Reading { hash: &hash, source: "import:ada" })
}

fn faults(text: &str) -> Vec<String> {
    read_text(text).faults.iter().map(ToString::to_string).collect()
}

#[test]
fn an_address_alone_is_an_entry() {
    let contents = read_text("Address\r\nAda@Example.BJ\r\n\r\ncontact@b\u{fc}cher.example\n");
    assert!(contents.faults.is_empty(), "{:?}", contents.faults);
    let [ada, contact] = &contents.entries[..] else { panic!("{contents:?}") };
    assert_eq!((ada.address.as_deref(), ada.address_hash), (Some("Ada@example.bj"), hash("ada@example.bj")));
    assert_eq!((ada.reason, ada.source.as_str()), (SuppressionReason::Operator, "import:ada"));
    assert_eq!((&ada.category, &ada.note, ada.expires_at, ada.created_at), (&None, &None, None, None));
    assert_eq!(contact.address_hash, hash("contact@xn--bcher-kva.example"));
}

#[test]
fn spreadsheets_may_use_semicolons_and_mark_their_utf8() {
    let contents =
        read_text("\u{feff}address;reason;note;expires_at\nada@example.bj;complaint;\"a; b, \"\"c\"\"\";2027-01-31\n");
    assert!(contents.faults.is_empty(), "{:?}", contents.faults);
    let entry = &contents.entries[0];
    assert_eq!((entry.reason, entry.note.as_deref()), (SuppressionReason::Complaint, Some("a; b, \"c\"")));
    assert_eq!(entry.expires_at.map(time).as_deref(), Some("2027-01-31T00:00:00Z"));
}

#[test]
fn every_fault_is_told_with_line_and_field_and_without_what_stood_there() {
    let long = "x".repeat(NOTE_CHARS_MAX + 1);
    let file = format!(
        "address,reason,note,expires_at,address_hash\n\
         sound@example.bj,,,,\n\
         secret.person@nowhere,,,,\n\
         secret@example.bj,bounced,,,\n\
         secret@example.bj,,\"two\nlines\",,\n\
         secret@example.bj,,{long},,\n\
         secret@example.bj,,,tomorrow,\n\
         secret@example.bj,,\n\
         ,,,,abcd\n\
         ,,,,\n\
         secret@example.bj,,nul\0,,\n"
    );
    let contents = read_text(&file);
    assert_eq!(contents.entries.len(), 2);
    let told: Vec<(u64, Option<&str>)> = contents.faults.iter().map(|fault| (fault.line, fault.field)).collect();
    let expected = [
        (3, Some("address")),
        (4, Some("reason")),
        (7, Some("note")),
        (8, Some("expires_at")),
        (9, None),
        (10, Some("address_hash")),
        (11, Some("address")),
        (12, Some("note")),
    ];
    assert_eq!(told, expected, "{:?}", contents.faults);
    let words = contents.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for private in ["secret", "bounced", "tomorrow", "abcd", "xxx"] {
        assert!(!words.contains(private), "{words}");
    }
    assert!(words.contains("hard_bounce") && words.contains("500 characters"), "{words}");
}

#[test]
fn bytes_that_are_not_utf8_are_a_fault_of_their_line() {
    let mut file = b"address,note\na@example.bj,caf".to_vec();
    file.extend_from_slice(b"\xe9\nb@example.bj,ok\n");
    let contents = read(&file, &Reading { hash: &hash, source: "x" });
    assert_eq!((contents.entries.len(), contents.faults.len()), (1, 1));
    assert_eq!(contents.faults[0].to_string(), "line 2, note: it is not UTF-8");
}

#[test]
fn a_file_without_its_header_is_refused_and_nobody_in_it_is_named() {
    for file in
        ["", "secret@example.bj\n", "address,adress\n", "address,address\na@example.bj,b@example.bj\n", "reason\n"]
    {
        let contents = read_text(file);
        assert!(contents.entries.is_empty());
        assert_eq!(faults(file), [format!("line 1: {HEADER}")], "{file:?}");
    }
}

#[test]
fn no_cell_is_a_formula() {
    let entry = Suppression {
        address_hash: hash("=cmd@example.bj"),
        address: Some("=cmd@example.bj".to_owned()),
        reason: SuppressionReason::Operator,
        category: Some("-1".to_owned()),
        source: "@SUM(A1)".to_owned(),
        note: Some("+1".to_owned()),
        expires_at: None,
        created_at: read_moment("2026-11-24").expect("a time"),
    };
    let file = String::from_utf8(write(std::slice::from_ref(&entry), false).expect("written")).expect("UTF-8");
    assert_eq!(file, "'=cmd@example.bj,operator,'-1,'@SUM(A1),'+1,,2026-11-24T00:00:00Z,\r\n");
}

fn suppression() -> impl Strategy<Value = Suppression> {
    // Beginnings and bytes that formats and spreadsheets make something of.
    let odd = "['=+@\t\r\n\",;\u{e9}\u{1f600} a-z0-9-]{1,20}";
    let address = prop_oneof![
        "[A-Za-z0-9=+'-]{1,10}@[a-z]{1,8}\\.bj".prop_map(Some),
        Just(Some("\u{e9}lise@xn--bcher-kva.example".to_owned())),
        Just(None)
    ];
    let time = 0_i64..4_000_000_000_000_000;
    let reason = proptest::sample::select(SuppressionReason::ALL);
    let texts = (proptest::option::of(odd), odd, proptest::option::of(odd));
    (address, any::<[u8; 32]>(), reason, texts, proptest::option::of(time.clone()), time).prop_map(
        |(address, other, reason, (category, source, note), expires_at, created_at)| {
            let at = |micros| DateTime::from_timestamp_micros(micros).expect("a time");
            let key = address.as_deref().map(|a| EmailAddress::parse(a).expect("an address").key());
            Suppression {
                address_hash: key.map_or(other, |key| hash(&key)),
                address,
                reason,
                category,
                source,
                note,
                expires_at: expires_at.map(at),
                created_at: at(created_at),
            }
        },
    )
}

proptest! {
    #[test]
    fn what_was_written_is_read_the_same(entries in proptest::collection::vec(suppression(), 0..20)) {
        let file = write(&entries, true).expect("written");
        let contents = read(&file, &Reading { hash: &hash, source: "x" });
        prop_assert!(contents.faults.is_empty(), "{:?}", contents.faults);
        let expected: Vec<_> = entries.into_iter().map(|entry| NewSuppression {
            address_hash: entry.address_hash,
            address: entry.address,
            reason: entry.reason,
            source: entry.source,
            category: entry.category,
            note: entry.note,
            expires_at: entry.expires_at,
            created_at: Some(entry.created_at),
        }).collect();
        prop_assert_eq!(contents.entries, expected);
    }
}
