//! Canonical forms against the examples of RFC 6376, and what must not matter against what must. That a verifier which is
//! not ours takes the signatures is shown by tests/it/mail_signed.rs.

use proptest::prelude::*;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::{canonical::relaxed_body, *};

fn header_of(text: &str) -> String {
    let mut out = Vec::new();
    for field in fields(text.as_bytes()) {
        field.write_relaxed(&mut out);
        out.extend_from_slice(b"\r\n");
    }
    String::from_utf8(out).expect("text")
}

fn body_of(text: &str) -> String {
    let mut out = Vec::new();
    relaxed_body(text.as_bytes(), |piece| out.extend_from_slice(piece));
    String::from_utf8(out).expect("text")
}

fn key() -> SigningKey {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    SigningKey::from_pem("example.bj".to_owned(), "one".to_owned(), &pair.serialize_pem()).expect("it signs")
}

#[test]
fn the_examples_of_the_standard() {
    // §3.4.5
    assert_eq!(header_of("A: X\r\nB : Y\t\r\n\tZ  \r\n"), "a:X\r\nb:Y Z\r\n");
    assert_eq!(body_of(" C \r\nD \t E\r\n\r\n\r\n"), " C\r\nD E\r\n");
    // §3.4.4: an empty body is nothing at all.
    for empty in ["", "\r\n", "\r\n\r\n", " \r\n\t\r\n"] {
        assert_eq!(
            BASE64_STANDARD.encode(body_digest(empty.as_bytes())),
            "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
        );
    }
    // A line that does not end is ended.
    assert_eq!(body_of("a"), "a\r\n");
    assert_eq!(header_of("Subject:\r\n \r\nX:\r\n"), "subject:\r\nx:\r\n");
}

#[test]
fn of_several_headers_the_last_comes_first_and_sealed_ones_are_named_once_more() {
    let head = "From: a@example.bj\r\nSubject: one\r\nSubject: two\r\nDate: x\r\nMessage-ID: <y>\r\n";
    let fields = fields(head.as_bytes());
    let (names, chosen) = choose(&fields);
    assert_eq!(names, ["From", "From", "Reply-To", "To", "Cc", "Subject", "Subject", "Subject", "Content-Type"]);
    let mut out = Vec::new();
    chosen.iter().for_each(|field| field.write_relaxed(&mut out));
    assert_eq!(String::from_utf8(out).expect("text"), "from:a@example.bjsubject:twosubject:one");
}

#[test]
fn a_key_tells_what_dns_must_say_and_nothing_of_itself() {
    let key = key();
    assert_eq!((key.record_name().as_str(), key.kind().as_str()), ("one._domainkey.example.bj", "Ed25519"));
    let record = key.record();
    let public =
        BASE64_STANDARD.decode(record.strip_prefix("v=DKIM1; k=ed25519; p=").expect("a record")).expect("base64");
    assert_eq!(public.len(), 32);
    assert_eq!(key.zone_line(), format!("one._domainkey.example.bj. TXT \"{record}\""));
    for (domain, signs) in [("example.bj", true), ("mail.example.bj", true), ("notexample.bj", false), ("bj", false)] {
        assert_eq!(key.signs_for(domain), signs, "{domain}");
    }
    let refused = SigningKey::from_pem(
        String::new(),
        String::new(),
        "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
    );
    assert!(matches!(refused, Err(KeyError::NoKey)));
    let public = UnparsedPublicKey::new(&ED25519, public);
    let signature = key.sign(b"digest", b"text").expect("signed");
    public.verify(b"digest", &signature).expect("Ed25519 signs the digest");
}

#[test]
fn a_signature_is_folded_and_the_same_mail_has_the_same() {
    let mail = b"From: a@example.bj\r\nSubject: x\r\n\r\nbody\r\n";
    let key = key();
    let signed = signatures(mail, [&key, &key], DateTime::UNIX_EPOCH).expect("signed");
    let text = String::from_utf8(signed.clone()).expect("ASCII");
    assert!(text.split("\r\n").all(|line| line.len() <= 78), "{text}");
    assert_eq!(text.matches("DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n").count(), 2);
    assert!(text.contains("t=0; x=1209600;") && text.ends_with("\r\n"), "{text}");
    assert_eq!(signatures(mail, [&key, &key], DateTime::UNIX_EPOCH), Ok(signed));
}

/// Lines of a body, and of a header's value.
fn lines() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-c =.\t]{0,12}", 0..8)
}

proptest! {
    #[test]
    fn blanks_that_relays_change_make_no_difference(lines in lines(), blanks in "[ \t]{1,4}", ends in 0_usize..4) {
        let plain = lines.iter().map(|line| format!("{line}\r\n")).collect::<String>();
        let changed: String = lines
            .iter()
            .map(|line| format!("{}{}\r\n", line.replace(' ', &format!("{blanks} ")), if line.is_empty() { "" } else { &blanks }))
            .collect();
        let changed = format!("{changed}{}", "\r\n".repeat(ends));
        prop_assert_eq!(body_of(&plain), body_of(&changed));
    }

    #[test]
    fn a_canonical_body_is_its_own_canonical_form_and_ends_in_one_line_end(lines in lines()) {
        let body = body_of(&lines.join("\r\n"));
        prop_assert_eq!(&body_of(&body), &body);
        prop_assert!(body.is_empty() || (body.ends_with("\r\n") && !body.ends_with("\r\n\r\n")));
        prop_assert!(!body.contains(" \r\n") && !body.contains('\t') && !body.contains("  "));
    }

    #[test]
    fn words_make_a_difference(lines in lines(), at in any::<prop::sample::Index>()) {
        let body = lines.join("\r\n");
        let places: Vec<usize> = body.bytes().enumerate().filter(|(_, b)| b.is_ascii_alphabetic()).map(|(at, _)| at).collect();
        prop_assume!(!places.is_empty());
        let at = places[at.index(places.len())];
        let changed = format!("{}X{}", &body[..at], &body[at + 1..]);
        prop_assert_ne!(body_of(&body), body_of(&changed));
    }

    #[test]
    fn folding_a_header_makes_no_difference(words in prop::collection::vec("[a-z=;]{1,9}", 1..8), fold in "(\r\n)?[ \t]{1,3}") {
        let plain = format!("Subject: {}\r\n", words.join(" "));
        let folded = format!("SUBJECT :{fold}{}\r\n", words.join(&fold));
        prop_assert_eq!(header_of(&plain), header_of(&folded));
    }

    #[test]
    fn whatever_the_bytes_are_it_is_signed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(signatures(&bytes, [&key()], DateTime::UNIX_EPOCH).is_ok());
    }
}
