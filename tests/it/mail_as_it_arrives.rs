//! Every mail in every language, as the relay gets it: no parser stumbles over it, no filter takes it for spam.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use postrider::templates::parse_manifest;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::{
    installation::Installation,
    requests::{attach, pdf, sample, templates},
};

const JUDGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mail/judge.py");

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mail_is_malformed_cut_short_or_taken_for_spam() {
    let post = Installation::start().await;
    let csv = "site;minutes\r\nAkpakpa;95\r\n".repeat(40);
    let mut wanted = Vec::new();
    for template in templates() {
        let manifest = parse_manifest(&template.manifest_toml, 3).expect("a sound manifest");
        for locale in [""].into_iter().chain(template.variants.keys().map(String::as_str)) {
            let language = if locale.is_empty() { manifest.locale.as_str() } else { locale };
            let to = format!("{}.{language}@example.bj", template.key.replace('_', "-"));
            let mut request = sample(&template.key, &[&to]);
            // A reader in a country of its own gets the language's mail.
            request.locale = if locale.is_empty() { String::new() } else { format!("{locale}-GB") };
            let mut files = Vec::new();
            for kind in &manifest.attachments {
                let (name, content_type, bytes) = match kind.as_str() {
                    "pdf" => ("Facture été 2026.pdf", "application/pdf", pdf()),
                    "csv" => ("interruptions.csv", "text/csv", csv.clone().into()),
                    other => panic!("{}: a {other} to attach is needed here", template.key),
                };
                files.push(json!({"name": name, "type": content_type, "sha256": sha256(&bytes)}));
                attach(&mut request, name, content_type, bytes);
            }
            post.publish(&request).await;
            wanted.push((to, language.to_owned(), files));
        }
    }
    // The incident goes to the NOC as well.
    let incidents = wanted.iter().filter(|(to, ..)| to.starts_with("incident-alert-critical")).count();
    let mails = post.mails(wanted.len() + incidents).await;
    let received = post.relay.log().mails;
    let folder = tempfile::tempdir().expect("a folder");
    for (to, language, files) in &wanted {
        let mail = mails.iter().find(|mail| mail.envelope_to == *to).unwrap_or_else(|| panic!("{to} got nothing"));
        assert!(mail.html.contains(&format!("<html lang=\"{language}\"")), "{to}: {}", mail.html);
        let is_english =
            ["Kind regards", "Cordialement"].map(|words| mail.text.contains(words) && mail.html.contains(words));
        assert_eq!(is_english, [language == "en", language == "fr"], "{to}: one mail, one language");
        assert!(mail.html.contains("<td class=\"content font\" style=\""), "{to}: styles are on their elements");
        let raw = received.iter().find(|raw| raw.to == [to.as_str()]).expect("the same mail");
        let name = to.split('@').next().expect("a left side");
        fs::write(folder.path().join(format!("{name}.eml")), &raw.content).expect("written");
        let lines = |text: &str| sha256(text.replace("\r\n", "\n").trim_end_matches('\n').as_bytes());
        let want = json!({"html": lines(&mail.html), "text": lines(&mail.text), "files": files});
        fs::write(folder.path().join(format!("{name}.json")), want.to_string()).expect("written");
    }
    let judged = Command::new("/usr/bin/python3")
        .arg(JUDGE)
        .arg(folder.path())
        .stdout(Stdio::piped())
        .output()
        .expect("/usr/bin/python3 (`./deploy/dev test` installs what it needs)");
    let said = String::from_utf8_lossy(&judged.stdout).into_owned();
    if let Some(kept) = std::env::var_os("TEST_MAILS").map(PathBuf::from) {
        fs::create_dir_all(&kept).expect("a folder");
        for entry in fs::read_dir(folder.path()).expect("a folder") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), kept.join(entry.file_name())).expect("copied");
        }
        fs::write(kept.join("judged.txt"), &said).expect("written");
    }
    assert!(judged.status.success(), "{said}{}", String::from_utf8_lossy(&judged.stderr));
    post.finish().await;
}
