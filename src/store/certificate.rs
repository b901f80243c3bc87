//! A certificate of the database that was refused: sqlx tells why, but not always which; a second look tells that.
//!
//! Invariant: nothing is sent over a connection that is only looked at.

use std::{io, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::fault::DATABASE;
use crate::tls;

/// How PostgreSQL is asked for TLS: a message of eight bytes, and a code that no version has.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// Longest look.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// What is wrong, with the certificate's names, issuer and dates where it can be had again.
pub(super) async fn words(error: &io::Error, host: &str, port: u16) -> String {
    let words = tls::words(error, &DATABASE).unwrap_or_else(|| error.to_string());
    if !tls::is_undescribed(error) {
        return words;
    }
    match tokio::time::timeout(LOOK_MAX, look(host, port)).await {
        Ok(Some(shown)) => format!("{words} ({shown})"),
        Ok(None) | Err(_) => words,
    }
}

/// What the certificate that is shown there says of itself.
async fn look(host: &str, port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((host, port)).await.ok()?;
    stream.write_all(&SSL_REQUEST).await.ok()?;
    if stream.read_u8().await.ok()? != b'S' {
        return None;
    }
    let connector = TlsConnector::from(Arc::new(tls::looking().ok()?));
    let name = ServerName::try_from(host.to_owned()).ok()?;
    tls::shown(&connector.connect(name, stream).await.err()?)
}
