//! Every mail in every language, as the relay gets it: no parser stumbles over it, no filter takes it for spam.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use postrider::wire;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    installation::Installation,
    requests::{InLanguage, in_every_language, mails_of},
};

const JUDGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mail/judge.py");

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A file as the judge is told of it.
fn described(file: &wire::Attachment) -> Value {
    let Some(wire::AttachmentContent::Inline(bytes)) = &file.content else {
        panic!("a file that is not in the request")
    };
    json!({"name": file.file_name, "type": file.content_type, "sha256": sha256(bytes)})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mail_is_malformed_cut_short_or_taken_for_spam() {
    let post = Installation::start().await;
    let wanted = in_every_language();
    for one in &wanted {
        post.publish(&one.request).await;
    }
    let mails = post.mails(mails_of(&wanted)).await;
    let received = post.relay.log().mails;
    let folder = tempfile::tempdir().expect("a folder");
    for InLanguage { name, request, language } in &wanted {
        let to = request.recipients[0].address.as_str();
        let mail = mails.iter().find(|mail| mail.envelope_to == to).unwrap_or_else(|| panic!("{to} got nothing"));
        assert!(mail.html.contains(&format!("<html lang=\"{language}\"")), "{to}: {}", mail.html);
        let is_english =
            ["Kind regards", "Cordialement"].map(|words| mail.text.contains(words) && mail.html.contains(words));
        assert_eq!(is_english, [language == "en", language == "fr"], "{to}: one mail, one language");
        assert!(mail.html.contains("<td class=\"content font\" style=\""), "{to}: styles are on their elements");
        let raw = received.iter().find(|raw| raw.to == [to]).expect("the same mail");
        fs::write(folder.path().join(format!("{name}.eml")), &raw.content).expect("written");
        let lines = |text: &str| sha256(text.replace("\r\n", "\n").trim_end_matches('\n').as_bytes());
        let files: Vec<_> = request.attachments.iter().map(described).collect();
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
