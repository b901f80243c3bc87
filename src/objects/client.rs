//! The client that all places are asked through, and the buckets.
//!
//! Invariant: the crypto provider is named here, so that no other crate's features can make it ambiguous.
//! Invariant: an answer other than 2xx is read no further than its first few KiB.

use std::{path::Path, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Limited};
use object_store::{
    ClientOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService},
};
use reqwest_of_object_store::{Client, header::CONTENT_LENGTH, redirect::Policy};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use secrecy::ExposeSecret;

use super::fault::Answered;
use crate::config::S3Config;

/// From the name to the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An unused connection is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Read of an answer that is not the file.
const REFUSAL_BYTES_MAX: usize = 4 * 1024;
/// Who asks.
const USER_AGENT: &str = concat!("postrider/", env!("CARGO_PKG_VERSION"));

/// Why object stores cannot be used as the settings say. Found at start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No TLS.
    #[error("ATTACHMENT_CA_FILE: TLS towards object stores cannot be set up ({0})")]
    Tls(String),
    /// The library refuses a bucket's settings.
    #[error("the bucket {bucket} cannot be used as AWS_* and EMAIL_ATTACHMENT_STORE say ({words})")]
    Bucket {
        /// Its name.
        bucket: String,
        /// Why.
        words: String,
    },
}

/// A client that follows no redirects and uses no proxy of the environment.
pub(super) fn connect(ca_file: Option<&Path>) -> Result<HttpClient, SetupError> {
    let tls = |error: &dyn std::error::Error| SetupError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    // A system store may hold certificates that are old beyond reading; the others still count.
    let (_added, _unusable) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| tls(&error))?;
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(|error| tls(&error))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(SetupError::Tls("the file holds no usable certificate".to_owned()));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Client::builder()
        .tls_backend_preconfigured(config)
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_MAX)
        .user_agent(USER_AGENT)
        .build()
        .map_err(|error| tls(&error))?;
    Ok(HttpClient::new(Guarded(client)))
}

/// A bucket.
pub(super) fn bucket(config: &S3Config, name: &str, client: HttpClient) -> Result<AmazonS3, SetupError> {
    let builder = match &config.credentials {
        Some(credentials) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(credentials.key_id.expose_secret())
                .with_secret_access_key(credentials.secret.expose_secret());
            match &credentials.token {
                Some(token) => builder.with_token(token.expose_secret()),
                None => builder,
            }
        }
        // The variables by which a pod or task learns its role have no other reader than this library.
        None => AmazonS3Builder::from_env(),
    };
    let builder = match &config.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    };
    builder
        .with_region(&config.region)
        .with_bucket_name(name)
        .with_allow_http(config.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")))
        .with_retry(once())
        // One object is deleted at a time, which every S3 can do.
        .with_disable_bulk_delete(true)
        .with_http_connector(Connected(client))
        .build()
        .map_err(|error| SetupError::Bucket { bucket: name.to_owned(), words: error.to_string() })
}

/// Trying again is the lane's ladder's concern.
pub(super) fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

/// Hands a client out that is there already: connections are shared.
#[derive(Debug)]
pub(super) struct Connected(pub(super) HttpClient);

impl HttpConnector for Connected {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

type Answering<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

/// Makes a refusal an error that says its status.
#[derive(Debug)]
struct Guarded(Client);

impl HttpService for Guarded {
    // As the macro of async-trait writes it.
    fn call<'life0, 'async_trait>(&'life0 self, request: HttpRequest) -> Answering<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let answer = HttpService::call(&self.0, request).await?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            let body = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
            let body = body.map_or_else(|_| Bytes::new(), Collected::to_bytes);
            Err(HttpError::new(HttpErrorKind::Unknown, Answered::new(status.as_u16(), &body)))
        })
    }
}

/// Says the announced size where an answer does not: servers that make a file as they send it do not know it.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) client: HttpClient,
    pub(super) size_bytes: u64,
}

impl HttpService for Announced {
    fn call<'life0, 'async_trait>(&'life0 self, request: HttpRequest) -> Answering<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let mut answer = self.client.execute(request).await?;
            answer.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| self.size_bytes.into());
            Ok(answer)
        })
    }
}
