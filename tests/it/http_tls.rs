//! TLS of both listeners: certificates that are renewed without a restart, and clients that must show one.

use std::net::SocketAddr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::support::{
    daemon::OPERATOR_TOKEN,
    installation::Installation,
    port::Port,
    process::{DaemonProcess, postrider},
    raw::{ask_on, connect_tls, read_all},
    wait::{until, until_some},
};

const NAME: &str = "mail.example.bj";
const LIVEZ: &str = "GET /livez HTTP/1.1\r\nHost: mail.example.bj\r\nConnection: close\r\n\r\n";

/// An authority, PEM.
struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority"))
    }

    /// A certificate and its key, PEM.
    fn issue(&self, use_for: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        params.extended_key_usages = vec![use_for];
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }
}

/// Files of a listener, as something renews them.
struct Files(TempDir);

impl Files {
    fn new(issuer: &Issuer) -> Self {
        let files = Self(TempDir::new().expect("a folder"));
        files.renew(issuer);
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn renew(&self, issuer: &Issuer) {
        let (certificate, key) = issuer.issue(ExtendedKeyUsagePurpose::ServerAuth);
        self.write("cert.pem", &certificate);
        self.write("key.pem", &key);
    }
}

/// The certificate that the other side has shown.
fn shown<S>(stream: &TlsStream<S>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("it has shown some")[0].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_without_a_restart_and_a_bad_one_is_not_taken_up() {
    let issuer = Issuer::new();
    let files = Files::new(&issuer);
    let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
    let post = Installation::start_with(&[("WEBHOOK_TLS_CERT_FILE", &cert), ("WEBHOOK_TLS_KEY_FILE", &key)]).await;
    let address = post.daemon().public();
    let connect = async || connect_tls(address, NAME, &issuer.0.pem(), None).await.expect("TLS");
    let first = connect().await;
    let shown_first = shown(&first);
    let replies = ask_on(first, "GET / HTTP/1.1\r\nHost: mail.example.bj\r\nConnection: close\r\n\r\n").await;
    assert_eq!(replies[0].status, 404);
    assert_eq!(replies[0].header("strict-transport-security"), Some("max-age=31536000"));
    let mut plain = TcpStream::connect(address).await.expect("a connection");
    plain.write_all(LIVEZ.as_bytes()).await.expect("written");
    assert!(!read_all(&mut plain).await.starts_with(b"HTTP"), "plain HTTP is none");
    let stranger = Issuer::new();
    assert!(connect_tls(address, NAME, &stranger.0.pem(), None).await.is_err(), "by another authority");

    files.renew(&issuer);
    until("the new certificate is shown", async || shown(&connect().await) != shown_first).await;
    let shown_second = shown(&connect().await);
    // Written one after the other, as most do.
    let (certificate, other_key) = issuer.issue(ExtendedKeyUsagePurpose::ServerAuth);
    files.write("cert.pem", &certificate);
    files.write("key.pem", &other_key);
    until("the pair is whole", async || shown(&connect().await) != shown_second).await;
    let refused = post.daemon().metric("email_http_refused_total", &["listener=\"public\"", "\"handshake\""]).await;
    assert!(refused >= 2.0, "{refused}");
    post.finish().await;
}

/// The admin listener of a daemon that is ready, and what its probe is told.
async fn ready(post: &Installation, address: SocketAddr) -> DaemonProcess {
    let daemon = DaemonProcess::start_at(&post.variables, &address.to_string());
    let mut asking = post.variables.clone();
    asking.insert("ADMIN_ADDR".to_owned(), address.to_string());
    until_some("it is ready, as its probe says over TLS", async || {
        let said = postrider(&asking, &["health", "--ready"]).await;
        (said.code == 0 && said.out == "ready\n").then_some(())
    })
    .await;
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_show_a_certificate_and_probes_need_none() {
    let (issuer, operators) = (Issuer::new(), Issuer::new());
    let files = Files::new(&issuer);
    files.write("operators.pem", &operators.0.pem());
    let post = Installation::prepare(&[
        ("ADMIN_TLS_CERT_FILE", &files.path("cert.pem")),
        ("ADMIN_TLS_KEY_FILE", &files.path("key.pem")),
        ("ADMIN_TLS_CLIENT_CA_FILE", &files.path("operators.pem")),
        ("ADMIN_HOSTS", NAME),
    ])
    .await;
    let port = Port::reserve();
    let mut daemon = ready(&post, port.address()).await;
    let ca = issuer.0.pem();
    let ask = async |client: Option<(&str, &str)>, path: &str, more: &str| {
        let stream = connect_tls(port.address(), NAME, &ca, client).await?;
        let request = format!("{path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n{more}");
        std::io::Result::Ok(ask_on(stream, &request).await.remove(0))
    };
    for path in ["GET /livez", "GET /metrics"] {
        assert_eq!(ask(None, path, "\r\n").await.expect("TLS").status, 200, "{path}");
    }
    let bearer = format!("Authorization: Bearer {OPERATOR_TOKEN}\r\n\r\n");
    for path in ["GET /sign-in", "GET /", "GET /api/v1/email/templates"] {
        let reply = ask(None, path, &bearer).await.expect("TLS");
        assert_eq!(reply.status, 403, "{path}");
        assert!(reply.body.contains("ADMIN_TLS_CLIENT_CA_FILE"), "{}", reply.body);
    }
    let (certificate, key) = operators.issue(ExtendedKeyUsagePurpose::ClientAuth);
    let mine = Some((certificate.as_str(), key.as_str()));
    assert_eq!(ask(mine, "GET /api/v1/email/templates", &bearer).await.expect("TLS").status, 200);
    assert_eq!(ask(mine, "GET /api/v1/email/templates", "\r\n").await.expect("TLS").status, 401, "it is no token");
    let body = format!("token={OPERATOR_TOKEN}");
    let form =
        format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let signed_in = ask(mine, "POST /sign-in", &form).await.expect("TLS");
    assert_eq!(signed_in.status, 303);
    let cookie = signed_in.header("set-cookie").expect("a cookie");
    assert!(cookie.starts_with("__Host-postrider_session=") && cookie.ends_with("; Secure"), "{cookie}");
    // Of another authority.
    let (certificate, key) = issuer.issue(ExtendedKeyUsagePurpose::ClientAuth);
    let stranger = connect_tls(port.address(), NAME, &ca, Some((&certificate, &key))).await;
    let refused = match stranger {
        Err(_) => true,
        // With TLS 1.3 whoever connects learns it when it reads.
        Ok(mut stream) => {
            let _ = stream.write_all(LIVEZ.as_bytes()).await;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.is_err() && answer.is_empty()
        }
    };
    assert!(refused);
    daemon.terminate();
    assert!(daemon.wait().await.success());
}
