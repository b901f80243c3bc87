use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The distribution's Python: `./deploy/dev test` installs cryptography for that one.
const PYTHON: &str = "/usr/bin/python3";
/// Signs as Amazon describes it.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/feedback/sns_sign.py");
/// Where the issuer of the signing certificate is published.
pub const ISSUER_HOST: &str = "crt.tests.amazontrust.com";

/// SNS's own key: a Python process that signs what it is given. A second one is somebody else.
pub struct SnsSigner {
    directory: TempDir,
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl SnsSigner {
    /// With a certificate like SNS's.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With options of the program, such as `--name`.
    pub fn start_with(options: &[&str]) -> Self {
        let directory = TempDir::new().expect("a folder");
        let mut child = Command::new(PYTHON)
            .arg(PROGRAM)
            .arg("serve")
            .arg(directory.path())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        stdout.read_line(&mut ready).expect("it speaks");
        assert_eq!(ready.trim(), "ready", "the signer needs python3-cryptography");
        Self { directory, child, pipes: Mutex::new((stdin, stdout)) }
    }

    /// An envelope with these fields, signed; the rest is filled in. `TopicArn` must be among them.
    pub fn sign(&self, fields: &Value) -> String {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(pipes.0, "{fields}").expect("it listens");
        let mut signed = String::new();
        pipes.1.read_line(&mut signed).expect("it answers");
        assert!(signed.starts_with('{'), "the signer has died");
        signed.trim_end().to_owned()
    }

    /// The same, to be changed afterwards.
    pub fn sign_json(&self, fields: &Value) -> Value {
        serde_json::from_str(&self.sign(fields)).expect("JSON")
    }

    /// A notification of a topic.
    pub fn notify(&self, topic: &str, message: &str) -> String {
        self.sign(&json!({ "TopicArn": topic, "Message": message }))
    }

    /// The signing certificate alone, as SNS publishes it: what `SNS_SIGNING_CERT_FILE` is set to.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("signing.pem")
    }

    /// The authority above its issuer.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    /// Its issuer's certificate, DER, as Amazon publishes it.
    pub fn issuer(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("between.cer")).expect("the signer made it")
    }

    /// Certificate and issuer's in one PEM text.
    pub fn chain(&self) -> String {
        let issuer = CertificateDer::from(self.issuer());
        let lines = base64_lines(&issuer);
        let leaf = std::fs::read_to_string(self.certificate()).expect("the signer made it");
        let chain = format!("{leaf}-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n");
        assert_eq!(CertificateDer::pem_slice_iter(chain.as_bytes()).count(), 2);
        chain
    }
}

fn base64_lines(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(bytes);
    text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect()
}

impl Drop for SnsSigner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
