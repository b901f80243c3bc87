use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longer than any limit of a listener.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// One answer, byte for byte.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    head: String,
    /// Its body.
    pub body: String,
}

impl Reply {
    /// The value of a header, if there is one.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(n, v)| n.eq_ignore_ascii_case(name).then_some(v))
    }
}

/// Sends these bytes to a plain listener, and reads what is answered until it closes the connection. `is_all`: says as well that
/// nothing more will come, so that a listener that goes on waiting closes too.
pub async fn exchange(address: SocketAddr, bytes: &[u8], is_all: bool) -> Vec<Reply> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    // Whoever is refused early may find the connection closed while it still writes.
    let _ = stream.write_all(bytes).await;
    if is_all {
        let _ = stream.shutdown().await;
    }
    replies(&read_all(&mut stream).await)
}

/// What comes until the other side closes.
pub async fn read_all<S: AsyncRead + Unpin>(stream: &mut S) -> Vec<u8> {
    let mut all = Vec::new();
    let reading = async {
        let mut chunk = vec![0; 16 * 1024];
        // A connection that is reset is closed too; what came before counts.
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            all.extend_from_slice(&chunk[..read]);
        }
    };
    timeout(ANSWER_MAX, reading).await.expect("the listener closes the connection");
    all
}

/// Splits what a listener wrote into its answers. Each says how long it is, but for answers to HEAD and chunked ones.
pub fn replies(bytes: &[u8]) -> Vec<Reply> {
    let mut rest = String::from_utf8_lossy(bytes).into_owned();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole head: {rest:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut reply = Reply { status, head: head.to_owned(), body: String::new() };
        let length = reply.header("content-length").and_then(|length| length.parse().ok());
        let length: usize = if matches!(status, 100 | 204 | 304) { 0 } else { length.unwrap_or(after.len()) };
        let (body, after) = after.split_at(length.min(after.len()));
        let after = after.to_owned();
        reply.body = body.to_owned();
        all.push(reply);
        rest = after;
    }
    all
}

/// A connection with TLS to a listener, by this name; with a client's certificate and key, if there are any (PEM).
///
/// # Errors
/// When the handshake fails.
pub async fn connect_tls(
    address: SocketAddr,
    name: &str,
    authority: &str,
    client: Option<(&str, &str)>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(authority.as_bytes()).expect("a certificate");
    roots.add(authority).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the defaults are sound")
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
            )
            .expect("they fit"),
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Asks on a connection that is there, and reads until it closes.
pub async fn ask_on<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &str) -> Vec<Reply> {
    stream.write_all(request.as_bytes()).await.expect("written");
    replies(&read_all(&mut stream).await)
}
