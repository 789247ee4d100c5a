//! Who decides whether a server is whom it says it is.

use std::sync::Arc;
#[cfg(feature = "platform-verifier")]
use std::sync::OnceLock;

use tokio_rustls::rustls;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::error::Error;

use super::options::TlsOptions;

/// The verifier that the options ask for.
pub(super) fn verifier(
    options: &TlsOptions,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let chain: Arc<dyn ServerCertVerifier> = if let Some(custom) = &options.verifier {
        custom.0.clone()
    } else if options.platform_verifier {
        platform(options, provider)?
    } else {
        let roots = Arc::new(roots(options)?);
        WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| Error::invalid("root certificates").with_source(e))?
    };
    if options.pins.is_empty() {
        return Ok(chain);
    }
    Ok(Arc::new(Pinned {
        chain,
        pins: options.pins.clone(),
        provider: provider.clone(),
    }))
}

fn roots(options: &TlsOptions) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    if options.builtin_roots {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for root in &*options.roots {
        store
            .add(root.clone())
            .map_err(|e| Error::invalid("root certificate is not usable").with_source(e))?;
    }
    if store.is_empty() {
        return Err(Error::invalid(
            "no root certificate is trusted; add one or keep the builtin roots",
        ));
    }
    Ok(store)
}

/// Checks the chain, and then that the server's own key is one of those expected.
#[derive(Debug)]
struct Pinned {
    chain: Arc<dyn ServerCertVerifier>,
    pins: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// The SHA-256 of a certificate's SubjectPublicKeyInfo, by the provider in use.
    fn hash(&self, certificate: &CertificateDer<'_>) -> Result<Vec<u8>, rustls::Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        let key = certificate.subject_public_key_info();
        let suites = self.provider.cipher_suites.iter();
        let hash = suites
            .filter_map(|suite| suite.tls13())
            .map(|suite| suite.common.hash_provider)
            .find(|hash| hash.algorithm() == rustls::crypto::hash::HashAlgorithm::SHA256)
            .ok_or_else(|| rustls::Error::General("the TLS provider has no SHA-256".into()))?;
        Ok(hash.hash(&key).as_ref().to_vec())
    }
}

/// The cause of a refusal by pin.
#[derive(Debug)]
struct NotPinned;

impl std::fmt::Display for NotPinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the public key of the server's certificate is none of those pinned")
    }
}

impl std::error::Error for NotPinned {}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let key = self.hash(end_entity)?;
        if self.pins.iter().any(|pin| key == pin) {
            return Ok(verified);
        }
        let cause = CertificateError::Other(OtherError(Arc::new(NotPinned)));
        Err(rustls::Error::InvalidCertificate(cause))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(not(feature = "platform-verifier"))]
fn platform(_: &TlsOptions, _: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    Err(Error::invalid(
        "the platform's verifier needs the feature platform-verifier",
    ))
}

/// The operating system's verifier. It reads files when it is made, so that is done on a thread of
/// its own, or by the first handshake if that is faster.
#[cfg(feature = "platform-verifier")]
fn platform(
    options: &TlsOptions,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let platform = Arc::new(Platform {
        roots: options.roots.to_vec(),
        provider: provider.clone(),
        made: OnceLock::new(),
    });
    let ahead = platform.clone();
    let making = std::thread::Builder::new().name("firstbyte-roots".into());
    // Without a thread to spare the first handshake waits for it.
    drop(making.spawn(move || drop(ahead.verifier())));
    Ok(platform)
}

#[cfg(feature = "platform-verifier")]
#[derive(Debug)]
struct Platform {
    roots: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    made: OnceLock<Result<rustls_platform_verifier::Verifier, rustls::Error>>,
}

#[cfg(feature = "platform-verifier")]
impl Platform {
    fn verifier(&self) -> Result<&rustls_platform_verifier::Verifier, rustls::Error> {
        let make = || {
            rustls_platform_verifier::Verifier::new_with_extra_roots(
                self.roots.clone(),
                self.provider.clone(),
            )
        };
        self.made.get_or_init(make).as_ref().map_err(Clone::clone)
    }
}

#[cfg(feature = "platform-verifier")]
impl ServerCertVerifier for Platform {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier()?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier()?.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
