//! STARTTLS before the sink, which has none: the reply to EHLO offers it, and after the handshake everything is passed on in
//! clear.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::Task;

/// A port that leads to the sink, by STARTTLS.
pub(crate) struct StartTls {
    port: u16,
    authority: PathBuf,
    _accepting: Task,
}

impl StartTls {
    /// Makes an authority and a certificate of its own.
    pub(crate) async fn start(sink: u16, scratch: &Path) -> anyhow::Result<Self> {
        let authority = scratch.join("authority.pem");
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&authority)?));
        let (listener, port) = super::listen().await?;
        let accepting = Task(tokio::spawn(accept(listener, sink, acceptor)).abort_handle());
        Ok(Self { port, authority, _accepting: accepting })
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// For `SMTP_CA_FILE`.
    pub(crate) fn authority(&self) -> PathBuf {
        self.authority.clone()
    }
}

fn server_config(authority: &Path) -> anyhow::Result<ServerConfig> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "The benchmark's authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()])?.signed_by(&key, &issuer)?;
    std::fs::write(authority, issuer.pem())?;
    Ok(ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )?)
}

async fn accept(listener: TcpListener, sink: u16, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        // A connection that breaks is the daemon's to notice.
        connections.spawn(async move { drop(pass(client, sink, &acceptor).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(client: TcpStream, sink: u16, acceptor: &TlsAcceptor) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(("127.0.0.1", sink)).await?;
    server.set_nodelay(true)?;
    let (mut client, mut server) = (BufReader::new(client), BufReader::new(server));
    let greeting = reply(&mut server).await?;
    client.write_all(greeting.as_bytes()).await?;
    let mut command = String::new();
    loop {
        command.clear();
        if client.read_line(&mut command).await? == 0 {
            return Ok(());
        }
        let verb = command.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        if verb == "STARTTLS" {
            client.write_all(b"220 2.0.0 ready\r\n").await?;
            break;
        }
        server.write_all(command.as_bytes()).await?;
        let mut answer = reply(&mut server).await?;
        if verb == "EHLO" && answer.starts_with("250") {
            offer_starttls(&mut answer);
        }
        client.write_all(answer.as_bytes()).await?;
    }
    let mut client = acceptor.accept(client.into_inner()).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// A whole reply: all but its last line have a hyphen after the code.
async fn reply(server: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut whole = String::new();
    loop {
        let begun = whole.len();
        if server.read_line(&mut whole).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if whole.as_bytes()[begun..].get(3) != Some(&b'-') {
            return Ok(whole);
        }
    }
}

/// Before the last line, which has to stay the last.
fn offer_starttls(answer: &mut String) {
    let last = answer.trim_end().rfind('\n').map_or(0, |end| end + 1);
    answer.insert_str(last, "250-STARTTLS\r\n");
}
