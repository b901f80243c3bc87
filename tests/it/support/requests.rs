use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use bytes::Bytes;
use postrider::{
    publish::Draft,
    templates::{TemplateSource, parse_manifest, read_folder},
    wire,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use uuid::Uuid;

/// The folder of the templates.
pub fn templates_dir() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/templates").into()
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir(&target).expect("made");
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copied");
        }
    }
}

/// Every template of the repository.
pub fn templates() -> &'static [TemplateSource] {
    static ALL: LazyLock<Vec<TemplateSource>> =
        LazyLock::new(|| read_folder(&templates_dir()).expect("the folder of templates is sound"));
    &ALL
}

/// A request for this template with the variables of its sample, its own priority, and its category as the source.
pub fn sample(key: &str, to: &[&str]) -> wire::EmailRequest {
    let source = templates().iter().find(|template| template.key == key).expect("a template of this key");
    let manifest = parse_manifest(&source.manifest_toml, 3).expect("a sound manifest");
    let draft = Draft {
        request_id: Uuid::new_v4(),
        source: manifest.category,
        template_key: key.to_owned(),
        template_version: 0,
        to: to.iter().map(ToString::to_string).collect(),
        variables: source.sample.clone(),
        attachments: Vec::new(),
        priority: manifest.priority,
        metadata: HashMap::new(),
    };
    draft.into_wire()
}

/// A template in one of its languages.
pub struct InLanguage {
    /// The template's key and the language: the mailbox that it goes to, and what files of it are called.
    pub name: String,
    /// What a producer publishes.
    pub request: wire::EmailRequest,
    /// Of the mail, as a BCP 47 tag.
    pub language: String,
}

/// Every template in every language that it has, with a file of each kind that it takes.
pub fn in_every_language() -> Vec<InLanguage> {
    let mut all = Vec::new();
    for template in templates() {
        let manifest = parse_manifest(&template.manifest_toml, 3).expect("a sound manifest");
        for variant in [None].into_iter().chain(template.variants.keys().map(Some)) {
            let language = variant.unwrap_or(&manifest.locale).clone();
            let name = format!("{}.{language}", template.key.replace('_', "-"));
            let mut request = sample(&template.key, &[&format!("{name}@example.bj")]);
            // A reader in a country of its own gets the language's mail.
            request.locale = variant.map(|locale| format!("{locale}-GB")).unwrap_or_default();
            for kind in &manifest.attachments {
                let (name, content_type, bytes) = match kind.as_str() {
                    "pdf" => ("Facture été 2026.pdf", "application/pdf", pdf()),
                    "csv" => ("interruptions.csv", "text/csv", "site;minutes\r\nAkpakpa;95\r\n".repeat(40).into()),
                    other => panic!("{}: a {other} to attach is needed here", template.key),
                };
                attach(&mut request, name, content_type, bytes);
            }
            all.push(InLanguage { name, request, language });
        }
    }
    all
}

/// How many mails these requests make: an incident goes to the NOC as well.
pub fn mails_of(all: &[InLanguage]) -> usize {
    all.len() + all.iter().filter(|one| one.request.template_key == "incident_alert_critical").count()
}

/// An ordinary mail of the standard lane.
pub fn ticket(to: &str) -> wire::EmailRequest {
    sample("support_ticket_created", &[to])
}

/// An invoice, P2.
pub fn invoice(to: &str) -> wire::EmailRequest {
    sample("billing_invoice_monthly", &[to])
}

/// An incident, P0; also goes to the NOC.
pub fn incident(to: &str) -> wire::EmailRequest {
    sample("incident_alert_critical", &[to])
}

/// A reminder of the bulk lane, transactional.
pub fn reminder(to: &str) -> wire::EmailRequest {
    sample("cutover_reminder", &[to])
}

/// An announcement, marketing, of the bulk lane.
pub fn announcement(to: &str) -> wire::EmailRequest {
    sample("reseller_announcement", &[to])
}

/// The folder of the templates with other words in some manifests: key, what to replace, and by what.
pub fn edited_templates(edits: &[(&str, &str, &str)]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    copy_folder(&templates_dir(), folder.path());
    for (key, from, to) in edits {
        let path = folder.path().join(key).join("manifest.toml");
        let manifest = fs::read_to_string(&path).expect("a manifest");
        assert!(manifest.contains(from), "{key}: {from}");
        fs::write(&path, manifest.replace(from, to)).expect("written");
    }
    folder
}

/// The request's id.
pub fn id(request: &wire::EmailRequest) -> Uuid {
    request.request_id.parse().expect("a UUID")
}

/// Sets a variable.
pub fn set(request: &mut wire::EmailRequest, name: &str, value: &str) {
    let fields = &mut request.variables.get_or_insert_default().fields;
    fields.insert(name.to_owned(), wire::Value { kind: Some(wire::ValueKind::StringValue(value.to_owned())) });
}

/// Takes a variable out.
pub fn unset(request: &mut wire::EmailRequest, name: &str) {
    request.variables.get_or_insert_default().fields.remove(name).expect("the variable was there");
}

/// Attaches a file.
pub fn attach(request: &mut wire::EmailRequest, file_name: &str, content_type: &str, bytes: impl Into<Bytes>) {
    request.attachments.push(wire::Attachment {
        file_name: file_name.to_owned(),
        content_type: content_type.to_owned(),
        content: Some(wire::AttachmentContent::Inline(bytes.into())),
        content_id: String::new(),
    });
}

/// Attaches a file that lies elsewhere; what is announced is what these bytes have.
pub fn refer(request: &mut wire::EmailRequest, file_name: &str, content_type: &str, uri: &str, bytes: &[u8]) {
    request.attachments.push(wire::Attachment {
        file_name: file_name.to_owned(),
        content_type: content_type.to_owned(),
        content: Some(wire::AttachmentContent::Reference(wire::Reference {
            uri: uri.to_owned(),
            size_bytes: bytes.len() as u64,
            sha256: Sha256::digest(bytes).to_vec(),
        })),
        content_id: String::new(),
    });
}

/// Seconds from now on the wire.
pub fn in_seconds(seconds: f64) -> wire::Timestamp {
    let at = chrono::Utc::now() + chrono::TimeDelta::milliseconds((seconds * 1000.0) as i64);
    wire::Timestamp { seconds: at.timestamp(), nanos: i32::try_from(at.timestamp_subsec_nanos()).expect("in range") }
}

/// A whole PDF of one page, with every byte that could be hurt on the way: NUL, CR, LF, high bytes, a lone dot on a line.
pub fn pdf() -> Bytes {
    let mut bytes = b"%PDF-1.4\n%\xE2\xE3\xCF\xD3\r\n".to_vec();
    let content: Vec<u8> = b"% ".iter().copied().chain(0..=255).chain(b"\r\n.\r\n..\n\r.\r".iter().copied()).collect();
    let mut offsets = Vec::new();
    let mut object = |body: &[u8]| {
        offsets.push(bytes.len());
        bytes.extend_from_slice(format!("{} 0 obj\n", offsets.len()).as_bytes());
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\nendobj\n");
    };
    object(b"<< /Type /Catalog /Pages 2 0 R >>");
    object(b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>");
    object(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R >>");
    let mut stream = format!("<< /Length {} >>\nstream\n", content.len()).into_bytes();
    stream.extend_from_slice(&content);
    stream.extend_from_slice(b"\nendstream");
    object(&stream);
    let start = bytes.len();
    bytes.extend_from_slice(b"xref\n0 5\n0000000000 65535 f \n");
    for offset in offsets {
        bytes.extend_from_slice(format!("{offset:010} 00000 n \n").as_bytes());
    }
    bytes.extend_from_slice(format!("trailer\n<< /Size 5 /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n").as_bytes());
    bytes.into()
}
