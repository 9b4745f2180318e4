//! The client: where, with what credentials, with what patience.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_types::config_bag::ConfigBag;
use chrono::{DateTime, Utc};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::S3Store;
use super::errors::Scrub;
use crate::error::{Error, Result};
use crate::secret::SecretText;

/// The region that stores of one's own expect in signatures, unless told otherwise.
const CUSTOM_REGION: &str = "us-east-1";
/// The most that S3 puts in a page of a list.
const PAGE: u16 = 1000;
/// A certificate file larger than this is none.
const CA_FILE_LIMIT: u64 = 4 << 20;

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S3Timeouts {
    /// To connect.
    pub connect: Duration,
    /// From the end of the request to the beginning of the answer.
    pub read: Duration,
    /// The whole call, bodies too: at 16 MiB a pack, five minutes are 56 kB/s.
    pub operation: Duration,
}

impl Default for S3Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(60),
            operation: Duration::from_secs(300),
        }
    }
}

/// Which bucket, and how to reach it.
#[derive(Clone, Debug)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// What every key begins with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The server's URL, for stores other than AWS.
    pub endpoint: Option<String>,
    /// The region; with an endpoint `us-east-1`, else found by the standard AWS chain.
    pub region: Option<String>,
    /// The bucket in the path (`true`) or in the host name; by default in the path with an endpoint.
    pub path_style: Option<bool>,
    /// PEM certificates that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Access key id and secret access key; without them the standard AWS chain, with an endpoint without the metadata
    /// service.
    pub credentials: Option<(SecretText, SecretText)>,
    /// How long a call may take.
    pub timeouts: S3Timeouts,
    /// Objects asked for in a page of a list, at most 1000. For tests.
    pub page: u16,
}

impl S3Config {
    /// AWS, the standard chain, the default timeouts.
    pub fn new(bucket: String, prefix: String) -> Self {
        Self {
            bucket,
            prefix,
            endpoint: None,
            region: None,
            path_style: None,
            ca_file: None,
            credentials: None,
            timeouts: S3Timeouts::default(),
            page: PAGE,
        }
    }
}

impl S3Store {
    /// Makes the client. Nothing is asked of the store yet; the credential chain may ask the host it runs on.
    ///
    /// # Errors
    /// A `ca_file` that can not be used, an endpoint that is no plain `http` or `https` URL, or no region.
    pub async fn connect(config: S3Config) -> Result<Self> {
        let http = http_client(config.ca_file.as_deref())?;
        let seen = Arc::new(Seen::default());
        let custom = config.endpoint.is_some();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(config.timeouts.connect)
            .read_timeout(config.timeouts.read)
            .operation_timeout(config.timeouts.operation)
            .build();
        // Uploads on slow links were seen to be taken for stalled; downloads are ours to read fast.
        let stalled = StalledStreamProtectionConfig::enabled()
            .upload_enabled(false)
            .grace_period(Duration::from_secs(30))
            .build();
        let mut sdk = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(http.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(stalled)
            .force_path_style(config.path_style.unwrap_or(custom))
            .interceptor(Watch(Arc::clone(&seen)));
        let mut location = format!("s3://{}/{}", config.bucket, config.prefix);
        if let Some(endpoint) = &config.endpoint {
            let endpoint = check_endpoint(endpoint)?;
            // Stores other than AWS were seen to stumble over the SDK's own checksums; ours is in every put.
            sdk = sdk
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
            location = format!("{location} at {endpoint}");
            sdk = sdk.endpoint_url(endpoint);
        }
        let mut region = config.region.clone().map(Region::new);
        if custom && region.is_none() {
            region = Some(Region::from_static(CUSTOM_REGION));
        }
        let mut credentials = None;
        if let Some((id, secret)) = &config.credentials {
            let pair = Credentials::new(id.expose(), secret.expose(), None, None, "policy");
            sdk = sdk.credentials_provider(pair);
        }
        if config.credentials.is_none() || region.is_none() {
            let mut chain = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http.clone());
            if let Some(region) = &region {
                chain = chain.region(region.clone());
            }
            if config.credentials.is_some() {
                chain = chain.no_credentials();
            } else if custom {
                chain = chain.credentials_provider(local_credentials(http, region.clone()));
            }
            let chain = chain.load().await;
            region = region.or_else(|| chain.region().cloned());
            credentials = chain.credentials_provider();
        }
        if config.credentials.is_none()
            && let Some(credentials) = credentials
        {
            sdk = sdk.credentials_provider(credentials);
        }
        let region = region.ok_or_else(|| {
            Error::usage(format!("no region is known for the bucket {:?}", config.bucket))
                .hint("Set repository.region.")
        })?;
        let client = aws_sdk_s3::Client::from_conf(sdk.region(region).build());
        let secrets = config
            .credentials
            .into_iter()
            .flat_map(|(id, secret)| [id, secret]);
        let prefix = config.prefix.trim_matches('/');
        Ok(Self {
            client,
            bucket: config.bucket,
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
            location,
            whole_call: config.timeouts.operation,
            page: i32::from(config.page.clamp(1, PAGE)),
            scrub: Scrub::new(secrets),
            seen,
            unconditional: Arc::default(),
        })
    }
}

/// The standard chain without the metadata service of AWS's own machines: it knows nothing of a store of one's own, and
/// where there is none, it is waited for.
fn local_credentials(http: SharedHttpClient, region: Option<Region>) -> CredentialsProviderChain {
    let config = ProviderConfig::without_region()
        .with_region(region)
        .with_http_client(http);
    let profile = ProfileFileCredentialsProvider::builder()
        .configure(&config)
        .build();
    let token = WebIdentityTokenCredentialsProvider::builder()
        .configure(&config)
        .build();
    let container = EcsCredentialsProvider::builder().configure(&config).build();
    CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
        .or_else("Profile", profile)
        .or_else("WebIdentityToken", token)
        .or_else("Container", container)
}

/// An endpoint is shown in messages, so nothing secret may be in it.
fn check_endpoint(text: &str) -> Result<String> {
    let wrong = || {
        Error::usage("repository.endpoint is not the URL of a store")
            .hint("Write it as https://host:port, without user, password or query.")
    };
    let url = url::Url::parse(text).map_err(|e| wrong().because(e))?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !plain {
        return Err(wrong());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn http_client(ca_file: Option<&Path>) -> Result<SharedHttpClient> {
    let mut builder = aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(Duration::from_secs(30))
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    if let Some(path) = ca_file {
        let trust = TrustStore::empty().with_pem_certificate(read_ca_file(path)?);
        let context = TlsContext::builder().with_trust_store(trust).build();
        let context = context.map_err(|e| {
            Error::usage(format!("the certificates in {} can not be used", path.display())).because(e)
        })?;
        builder = builder.tls_context(context);
    }
    Ok(builder.build_https())
}

/// The certificates of a file, each tried first: the SDK would panic over a bad one.
fn read_ca_file(path: &Path) -> Result<Vec<u8>> {
    let wrong = |why: &str| {
        Error::usage(format!(
            "{} can not be used as repository.ca_file: {why}",
            path.display()
        ))
        .hint("It is a file of PEM certificates (-----BEGIN CERTIFICATE-----).")
    };
    let metadata = std::fs::metadata(path).map_err(|e| wrong("it can not be read").because(e))?;
    if metadata.len() > CA_FILE_LIMIT {
        return Err(wrong("it is larger than 4 MiB"));
    }
    let pem = std::fs::read(path).map_err(|e| wrong("it can not be read").because(e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| wrong("a certificate is not PEM").because(e))?;
        roots
            .add(certificate)
            .map_err(|e| wrong("a certificate is damaged").because(e))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it"));
    }
    Ok(pem)
}

/// What the answers told of the server.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Lists come in the order of a directory tree (`a/b` before `a-b`), not of the keys.
    pub(super) tree_order: AtomicBool,
}

/// Reads the answers on their way.
#[derive(Debug)]
struct Watch(Arc<Seen>);

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }
    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _bag: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        // SeaweedFS keeps keys as a tree; that is not seen in every page, but losing a key to it is not an option.
        let server = context.response().headers().get("server");
        if server.is_some_and(|name| name.contains("SeaweedFS")) {
            self.0.tree_order.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Keeps the Date of the answer to one call.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer(Arc<Mutex<Option<DateTime<Utc>>>>);

impl Answer {
    pub(super) fn date(&self) -> Option<DateTime<Utc>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn date_of(response: &HttpResponse) -> Option<DateTime<Utc>> {
    let text = response.headers().get("date")?;
    DateTime::parse_from_rfc2822(text)
        .ok()
        .map(|date| date.with_timezone(&Utc))
}

impl Intercept for Answer {
    fn name(&self) -> &'static str {
        "Answer"
    }
    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _bag: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date_of(context.response());
        Ok(())
    }
}
