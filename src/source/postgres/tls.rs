//! TLS as libpq's `sslmode` means it, on rustls with the aws-lc provider.
//!
//! `prefer` and `require` encrypt without knowing the server; with a root certificate `require` becomes `verify-ca`;
//! `verify-ca` wants a certificate signed by the root, `verify-full` also one with the name of the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::{Context as _, Error, Result};

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server has it (libpq's default; `allow` is taken for it).
    Prefer,
    /// TLS, any certificate.
    Require,
    /// TLS, a certificate signed by the root.
    VerifyCa,
    /// TLS, a certificate signed by the root for this host.
    VerifyFull,
}

impl SslMode {
    /// From the URL's spelling.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
    /// For a child's environment.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Where systems keep the certificates that they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The file that `sslrootcert=system` means, for us and for children of any version.
///
/// # Errors
/// There is none where systems keep it.
pub(crate) fn system_roots() -> Result<PathBuf> {
    SYSTEM_ROOTS
        .iter()
        .map(PathBuf::from)
        .find(|p| p.is_file())
        .ok_or_else(|| {
            Error::usage("sslrootcert=system: the system's certificates were not found")
                .hint("Name the file with sslrootcert=FILE.")
        })
}

/// The TLS side of a connection.
///
/// # Errors
/// A certificate or key can not be read, or the mode needs a root certificate and has none.
pub(crate) fn connector(
    mode: SslMode,
    root: Option<&Path>,
    client: Option<(&Path, &Path)>,
) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new(mode, root, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .doing(|| "TLS can not be set up")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate, "sslcert")?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable("sslkey", key, e))?;
            builder
                .with_client_auth_cert(chain, key)
                .doing(|| format!("sslcert {} and its key do not fit", certificate.display()))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn unreadable(what: &str, path: &Path, e: rustls::pki_types::pem::Error) -> Error {
    Error::usage(format!("{what} {} can not be read", path.display()))
        .hint("It must be a PEM file that this user may read.")
        .because(e)
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unreadable(what, path, e))?;
    if found.is_empty() {
        return Err(Error::usage(format!(
            "{what} {} holds no certificate",
            path.display()
        )));
    }
    Ok(found)
}

/// Checks as much of the server's certificate as the mode asks for. The handshake's signature always is.
#[derive(Debug)]
struct Verifier {
    /// `None`: any certificate will do.
    roots: Option<(RootCertStore, Vec<CertificateDer<'static>>)>,
    names: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(mode: SslMode, root: Option<&Path>, provider: &CryptoProvider) -> Result<Self> {
        let verifies = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
        let roots = match root {
            None if verifies => {
                return Err(
                    Error::usage(format!("sslmode={} needs a root certificate", mode.name()))
                        .hint("Add sslrootcert=FILE, or sslrootcert=system, to the URL."),
                );
            }
            // libpq: a root certificate makes `require` check the chain too.
            Some(path) if verifies || mode == SslMode::Require => {
                let pinned = certificates(path, "sslrootcert")?;
                let mut store = RootCertStore::empty();
                // System bundles hold certificates that webpki can not use; those then vouch for nobody.
                store.add_parsable_certificates(pinned.iter().cloned());
                Some((store, pinned))
            }
            _ => None,
        };
        Ok(Self {
            roots,
            names: mode == SslMode::VerifyFull,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some((store, pinned)) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            // A self-signed server certificate given as its own root is trusted as itself, as by libpq; webpki would
            // refuse a certificate that may sign as a server's.
            if !pinned.iter().any(|p| p.as_ref() == end_entity.as_ref()) {
                verify_server_cert_signed_by_trust_anchor(
                    &certificate,
                    store,
                    intermediates,
                    now,
                    self.algorithms.all,
                )?;
            }
            if self.names {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
