use std::{net::SocketAddr, sync::Arc};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use url::Url;

/// How PostgreSQL's clients ask for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What is said in plain before TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Nothing.
    AtOnce,
    /// A request, and a letter that agrees.
    Postgres,
}

/// A server with a certificate of the test's own, that passes on to a real one in plain.
pub struct TlsFront {
    address: SocketAddr,
    listening: JoinHandle<()>,
}

impl TlsFront {
    /// Before where this URL points.
    pub async fn start(url: &str, server: Arc<ServerConfig>, opening: Opening) -> Self {
        let url = Url::parse(url).expect("a URL");
        let upstream = format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Whoever refuses the certificate hangs up, and that is no fault here.
                connections.spawn(pass_on(stream, TlsAcceptor::from(Arc::clone(&server)), opening, upstream.clone()));
            }
        });
        Self { address, listening }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn pass_on(mut stream: TcpStream, acceptor: TlsAcceptor, opening: Opening, upstream: String) -> Option<()> {
    if opening == Opening::Postgres {
        let mut asked = [0; SSL_REQUEST.len()];
        stream.read_exact(&mut asked).await.ok()?;
        assert_eq!(asked, SSL_REQUEST, "it asks for TLS first");
        stream.write_all(b"S").await.ok()?;
    }
    let mut protected = acceptor.accept(stream).await.ok()?;
    let mut server = TcpStream::connect(upstream).await.ok()?;
    copy_bidirectional(&mut protected, &mut server).await.ok()?;
    Some(())
}
