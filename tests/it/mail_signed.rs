//! DKIM: what goes out is signed, a verifier that is not ours says so, and nothing but what a relay may change can be changed.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    installation::Installation,
    requests::{in_every_language, mails_of, sample},
};

/// The distribution's Python, for which `./deploy/dev test` installs dkimpy.
const PYTHON: &str = "/usr/bin/python3";
const VERIFY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mail/verify_dkim.py");

/// Makes a key as the documentation says, readable by nobody else.
fn openssl(folder: &Path, name: &str, arguments: &[&str]) -> String {
    let file = folder.join(name);
    let made = Command::new("openssl").args(arguments).arg("-out").arg(&file).output().expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let readable = Command::new("chmod").arg("600").arg(&file).status().expect("chmod runs");
    assert!(readable.success());
    file.to_str().expect("UTF-8").to_owned()
}

const RSA: [&str; 5] = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
const ED25519: [&str; 3] = ["genpkey", "-algorithm", "ed25519"];

/// An installation without a daemon whose settings file lists an RSA and an Ed25519 key.
async fn with_two_keys(folder: &TempDir, settings: &[(&str, &str)]) -> Installation {
    let keys = [("rsa1", openssl(folder.path(), "rsa.pem", &RSA)), ("ed1", openssl(folder.path(), "ed.pem", &ED25519))];
    let tables = keys.map(|(selector, file)| {
        format!("[[dkim]]\ndomain = \"rgz.bj\"\nselector = \"{selector}\"\nkey_file = \"{file}\"\n")
    });
    let file = folder.path().join("postrider.toml");
    std::fs::write(&file, tables.concat()).expect("a file");
    let mut post = Installation::prepare(&[("POSTRIDER_CONFIG", file.to_str().expect("UTF-8"))]).await;
    post.set(settings);
    post
}

/// The records that `postrider check` says must be in DNS, each as one text.
async fn records(post: &Installation) -> BTreeMap<String, String> {
    let said: Value = serde_json::from_str(&post.run(&["check", "--json"]).await.out).expect("JSON");
    let items = said["items"].as_array().expect("items");
    let keys = items.iter().filter(|item| item["what"] == "dkim");
    keys.map(|item| {
        let words = item["words"].as_str().expect("words");
        let (name, strings) = words.split_once("in DNS: ").and_then(|(_, l)| l.split_once(" TXT ")).expect("a record");
        let strings: Vec<&str> = strings.split('"').skip(1).step_by(2).collect();
        assert!(strings.iter().all(|string| string.len() <= 255), "{words}");
        (name.to_owned(), strings.concat())
    })
    .collect()
}

/// What dkimpy says of each mail.
fn verify(folder: &TempDir, records: &BTreeMap<String, String>, mails: &[Vec<u8>]) -> Vec<Value> {
    let zone = folder.path().join("records.json");
    std::fs::write(&zone, json!(records).to_string()).expect("a file");
    let files: Vec<_> = (0..mails.len()).map(|n| folder.path().join(format!("{n}.eml"))).collect();
    files.iter().zip(mails).for_each(|(file, mail)| std::fs::write(file, mail).expect("a file"));
    let said = Command::new(PYTHON).arg(VERIFY).arg(&zone).args(&files).output().expect("python3 runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let said = String::from_utf8(said.stdout).expect("UTF-8");
    said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mail_passes_with_both_keys_also_where_the_relay_writes_message_id_and_date_anew() {
    let folder = TempDir::new().expect("a folder");
    let ses = [("SES_CONFIGURATION_SET", "postrider"), ("SES_MESSAGE_TAGS", "template,source,environment=test")];
    let mut post = with_two_keys(&folder, &ses).await;
    post.start_daemon().await;
    let records = records(&post).await;
    assert_eq!(records.keys().collect::<Vec<_>>(), ["ed1._domainkey.rgz.bj.", "rsa1._domainkey.rgz.bj."]);
    let mut all = in_every_language();
    for one in &mut all {
        one.request.recipients[0].display_name = "Adélaïde Hounsou, directrice de l’agence de Porto-Novo".to_owned();
        post.publish(&one.request).await;
    }
    let count = mails_of(&all);
    post.mails(count).await;
    let mails: Vec<Vec<u8>> = post.relay.log().mails.iter().map(|mail| mail.content.clone()).collect();
    let said = verify(&folder, &records, &mails);
    assert_eq!(said.len(), count);
    let (both, none) = (json!(["ed25519-sha256", "rsa-sha256"]), json!([]));
    for (said, mail) in said.iter().zip(&mails) {
        let head = String::from_utf8_lossy(mail);
        let head = head.split("\r\n\r\n").next().unwrap_or_default();
        let has_room = |line: &str| line.len() <= 78 || line.contains("/unsubscribe/");
        assert!(head.lines().all(has_room), "{head}");
        for (change, passing) in said.as_object().expect("an object") {
            let is_harmless = matches!(
                change.as_str(),
                "as it is"
                    | "another Message-ID"
                    | "another Date"
                    | "without headers for SES"
                    | "with a trace"
                    | "other blanks"
            );
            assert_eq!(passing, if is_harmless { &both } else { &none }, "{change}: {head}");
        }
    }
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_by_the_environment_signs_alone_and_marketing_has_its_unsubscribe_headers_signed() {
    let folder = TempDir::new().expect("a folder");
    // PKCS#1, as older tools write it.
    let key = openssl(folder.path(), "key.pem", &["genrsa", "-traditional"]);
    let settings = [
        ("DKIM_KEY_FILE", key.as_str()),
        ("DKIM_SELECTOR", "only"),
        ("DKIM_DOMAIN", "rgz.bj"),
        ("SMTP_FROM_EMAIL", "noreply@mail.rgz.bj"),
    ];
    let post = Installation::start_with(&settings).await;
    let records = records(&post).await;
    let request = sample("reseller_announcement", &["ada@example.bj"]);
    post.publish(&request).await;
    let mail = post.mails(1).await.remove(0);
    let signature = mail.header("DKIM-Signature").expect("it is signed");
    let signature: String = signature.split_whitespace().collect();
    for part in ["d=rgz.bj;", "s=only;", "a=rsa-sha256;", "c=relaxed/relaxed;"] {
        assert!(signature.contains(part), "{part}: {signature}");
    }
    let names = signature.split("h=").nth(1).and_then(|rest| rest.split(';').next()).expect("names");
    let names: Vec<&str> = names.split(':').collect();
    for name in ["List-Unsubscribe", "List-Unsubscribe-Post", "List-Id"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert_eq!(names.iter().filter(|name| **name == "From").count(), 2, "nobody adds a second one: {names:?}");
    assert!(!names.contains(&"Message-ID") && !names.contains(&"Date"), "{names:?}");
    let said = verify(&folder, &records, &[post.relay.log().mails[0].content.clone()]);
    assert_eq!(said[0]["as it is"], json!(["rsa-sha256"]));
    post.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_sign_keeps_the_daemon_from_starting_and_says_why() {
    let folder = TempDir::new().expect("a folder");
    let small =
        openssl(folder.path(), "small.pem", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    let curve =
        openssl(folder.path(), "curve.pem", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let locked = ["genpkey", "-algorithm", "RSA", "-aes256", "-pass", "pass:secret-of-the-key"];
    let locked = openssl(folder.path(), "locked.pem", &locked);
    let sound = openssl(folder.path(), "sound.pem", &ED25519);
    let garbled = folder.path().join("garbled.pem");
    let text = std::fs::read_to_string(&sound).expect("a key");
    std::fs::write(&garbled, text.replacen("MC4CAQ", "MC4CAA", 1).replace('M', "N")).expect("a file");
    let garbled = garbled.to_str().expect("UTF-8").to_owned();
    let mut post = Installation::prepare(&[]).await;
    for (file, domain, words) in [
        (small.as_str(), "rgz.bj", "not of 2048, 3072 or 4096 bits"),
        (&curve, "rgz.bj", "neither RSA nor Ed25519"),
        (&locked, "rgz.bj", "is encrypted"),
        (&garbled, "rgz.bj", "names a file that holds"),
        ("/nonexistent/dkim.pem", "rgz.bj", "cannot be read"),
        (&sound, "other.example", "cannot sign for rgz.bj"),
    ] {
        post.set(&[("DKIM_KEY_FILE", file), ("DKIM_SELECTOR", "one"), ("DKIM_DOMAIN", domain)]);
        let said = post.run(&["check"]).await;
        assert_eq!(said.code, 78, "{said:?}");
        assert!(said.err.contains("DKIM_KEY_FILE") && said.err.contains(words), "{words}: {said:?}");
        assert!(!said.err.contains("secret-of-the-key") && !said.err.contains("MC4C"), "{said:?}");
    }
    for (settings, name) in [
        ([("DKIM_KEY_FILE", sound.as_str()), ("DKIM_SELECTOR", "")], "DKIM_SELECTOR"),
        ([("DKIM_KEY_FILE", ""), ("DKIM_SELECTOR", "one")], "DKIM_KEY_FILE"),
        ([("DKIM_KEY_FILE", sound.as_str()), ("DKIM_SELECTOR", "-one")], "DKIM_SELECTOR"),
    ] {
        post.set(&[("DKIM_DOMAIN", "")]);
        post.set(&settings);
        let said = post.run(&["check"]).await;
        assert!(said.code == 78 && said.err.contains(name), "{settings:?}: {said:?}");
    }
}
