use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hmac::{Hmac, Mac};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::authority::Authority;

/// The key that the S3 of these tests knows.
pub const KEY_ID: &str = "AKIATESTSTESTSTESTS";
/// And its secret.
pub const SECRET: &str = "a-secret-of-these-tests";
/// Where it says it is.
pub const REGION: &str = "eu-test-1";

/// How a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// With this status and nothing else.
    Status(u16),
    /// Never.
    Silent,
    /// It sends half of the file, and no more.
    Stuck,
    /// It sends half of the file, and closes.
    CutOff,
    /// As it should, but it does not say beforehand how large the file is.
    Unsized,
}

#[derive(Debug)]
struct Shelf {
    files: BTreeMap<String, Bytes>,
    mood: Mood,
    asked: Vec<(Method, String)>,
    checks_signatures: bool,
}

/// A server of files: over HTTPS, or as an S3 that checks signatures.
#[derive(Clone)]
pub struct Files {
    /// Where it listens.
    pub address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

impl Files {
    /// A web server with a certificate of this authority.
    pub async fn https(authority: &Authority) -> Self {
        Self::start(Some(TlsAcceptor::from(Arc::clone(&authority.server)))).await
    }

    /// An S3 over plain HTTP, as one stands beside a daemon.
    pub async fn s3() -> Self {
        Self::start(None).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shelf =
            Shelf { files: BTreeMap::new(), mood: Mood::Well, asked: Vec::new(), checks_signatures: tls.is_none() };
        let shelf = Arc::new(Mutex::new(shelf));
        let server = Self { address, shelf: Arc::clone(&shelf) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shelf, tls) = (Arc::clone(&shelf), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, shelf).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, shelf).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// `https://127.0.0.1:port` and this path, which begins with a slash and may have a query.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// What `AWS_ENDPOINT_URL_S3` is set to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts a file at a path with its query; in S3 that is `/bucket/key`.
    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        lock(&self.shelf).files.insert(path.to_owned(), bytes.into());
    }

    /// Takes a file away.
    pub fn remove(&self, path: &str) {
        lock(&self.shelf).files.remove(path);
    }

    /// The files that are there, by their paths.
    pub fn files(&self) -> BTreeMap<String, Bytes> {
        lock(&self.shelf).files.clone()
    }

    /// From now on it answers so.
    pub fn set(&self, mood: Mood) {
        lock(&self.shelf).mood = mood;
    }

    /// How often a path was asked for.
    pub fn asked_for(&self, path: &str) -> usize {
        lock(&self.shelf).asked.iter().filter(|(method, asked)| *method == Method::GET && asked == path).count()
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

type Body = BoxBody<Bytes, io::Error>;

/// A body in these pieces; `Err` breaks the connection, and without an end it never comes to one.
fn body(pieces: Vec<Result<Bytes, io::Error>>, ends: bool) -> Body {
    let pieces = stream::iter(pieces.into_iter().map(|piece| piece.map(Frame::data)));
    match ends {
        true => BodyExt::boxed(StreamBody::new(pieces)),
        false => BodyExt::boxed(StreamBody::new(pieces.chain(stream::pending()))),
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, shelf: Arc<Mutex<Shelf>>) {
    let answer = service_fn(|request: Request<Incoming>| answer(request, Arc::clone(&shelf)));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(request: Request<Incoming>, shelf: Arc<Mutex<Shelf>>) -> Result<Response<Body>, io::Error> {
    let (head, incoming) = request.into_parts();
    let content = incoming.collect().await.map_err(io::Error::other)?.to_bytes();
    let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let (mood, checks) = {
        let mut shelf = lock(&shelf);
        shelf.asked.push((head.method.clone(), path.clone()));
        (shelf.mood, shelf.checks_signatures)
    };
    match mood {
        Mood::Silent => std::future::pending::<()>().await,
        Mood::Status(status) => {
            let mut response = Response::new(body(Vec::new(), true));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            response.headers_mut().insert("location", "https://elsewhere.example/".parse().expect("a value"));
            return Ok(response);
        }
        _ => {}
    }
    if checks && let Err(code) = check_signature(&head, &content) {
        return Ok(refusal(StatusCode::FORBIDDEN, code));
    }
    let mut shelf = lock(&shelf);
    match head.method {
        Method::PUT => {
            shelf.files.insert(path, content);
            let response = Response::builder().header("etag", "\"as-it-came\"");
            Ok(response.body(body(Vec::new(), true)).expect("an answer"))
        }
        Method::DELETE => {
            shelf.files.remove(&path);
            let response = Response::builder().status(StatusCode::NO_CONTENT);
            Ok(response.body(body(Vec::new(), true)).expect("an answer"))
        }
        _ => {
            let Some(file) = shelf.files.get(&path).cloned() else {
                return Ok(refusal(StatusCode::NOT_FOUND, "NoSuchKey"));
            };
            let (whole, half) = (file.len(), file.slice(..file.len() / 2));
            let with = |pieces, ends| {
                let response = Response::builder().header("content-length", whole);
                response.body(body(pieces, ends)).expect("an answer")
            };
            Ok(match mood {
                Mood::Stuck => with(vec![Ok(half)], false),
                Mood::CutOff => with(vec![Ok(half), Err(io::ErrorKind::ConnectionReset.into())], true),
                Mood::Unsized => Response::new(body(vec![Ok(half), Ok(file.slice(whole / 2..))], true)),
                _ => with(vec![Ok(file)], true),
            })
        }
    }
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let words = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    let mut response = Response::new(body(vec![Ok(words.into())], true));
    *response.status_mut() = status;
    response
}

/// As Amazon does it: the signature is made once more from the secret.
fn check_signature(head: &hyper::http::request::Parts, content: &[u8]) -> Result<(), &'static str> {
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fields = header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").ok_or("AccessDenied")?;
    let field = |name: &str| {
        let found = fields.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
        found.ok_or("AuthorizationHeaderMalformed")
    };
    let (credential, signed, signature) = (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
    let (key_id, scope) = credential.split_once('/').ok_or("AuthorizationHeaderMalformed")?;
    if key_id != KEY_ID {
        return Err("InvalidAccessKeyId");
    }
    let (date, rest) = scope.split_once('/').ok_or("AuthorizationHeaderMalformed")?;
    if rest != format!("{REGION}/s3/aws4_request") {
        return Err("AuthorizationHeaderMalformed");
    }
    let content_hash = hex::encode(Sha256::digest(content));
    if header("x-amz-content-sha256") != content_hash {
        return Err("XAmzContentSHA256Mismatch");
    }
    let mut query: Vec<&str> = head.uri.query().unwrap_or_default().split('&').collect();
    query.sort_unstable();
    let headers: String = signed.split(';').map(|name| format!("{name}:{}\n", header(name).trim())).collect();
    let canonical =
        format!("{}\n{}\n{}\n{headers}\n{signed}\n{content_hash}", head.method, head.uri.path(), query.join("&"));
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", header("x-amz-date"), hex::encode(Sha256::digest(canonical)));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [date, REGION, "s3", "aws4_request"] {
        key = hmac(&key, part);
    }
    if hex::encode(hmac(&key, &to_sign)) == signature { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}
