//! What a client trusts, what it offers and who it says it is.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_rustls::rustls;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::error::Error;

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Who does the cryptography. A variant exists where its feature is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsProvider {
    /// aws-lc-rs: faster, and with post-quantum key exchange.
    #[cfg(feature = "aws-lc-rs")]
    AwsLcRs,
    /// ring.
    #[cfg(feature = "ring")]
    Ring,
}

impl Default for TlsProvider {
    /// aws-lc-rs where it is there.
    fn default() -> Self {
        #[cfg(feature = "aws-lc-rs")]
        return Self::AwsLcRs;
        #[cfg(not(feature = "aws-lc-rs"))]
        return Self::Ring;
    }
}

/// Whom to trust, what to offer and who to be. Two clients share connections and tickets only if all
/// of it is equal, private keys included.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    pub(super) provider: TlsProvider,
    pub(super) builtin_roots: bool,
    pub(super) platform_verifier: bool,
    /// Shared by the clients that are built with them.
    pub(super) roots: Arc<Vec<CertificateDer<'static>>>,
    pub(super) verifier: Option<CustomVerifier>,
    pub(super) pins: Vec<[u8; 32]>,
    pub(super) identity: Option<Arc<ClientIdentity>>,
    pub(super) min_version: TlsVersion,
    pub(super) max_version: TlsVersion,
    pub(super) post_quantum: Option<bool>,
    pub(super) server_name: Option<String>,
    pub(super) resumption: bool,
    pub(super) early_data: bool,
    pub(super) key_log: Option<PathBuf>,
}

impl Default for TlsOptions {
    /// Mozilla's roots by `webpki-roots`, TLS 1.2 and 1.3, resumption on.
    fn default() -> Self {
        Self {
            provider: TlsProvider::default(),
            builtin_roots: true,
            platform_verifier: false,
            roots: Arc::default(),
            verifier: None,
            pins: Vec::new(),
            identity: None,
            min_version: TlsVersion::Tls12,
            max_version: TlsVersion::Tls13,
            post_quantum: None,
            server_name: None,
            resumption: true,
            early_data: false,
            key_log: None,
        }
    }
}

impl fmt::Debug for TlsOptions {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("provider", &self.provider)
            .field("builtin_roots", &self.builtin_roots)
            .field("platform_verifier", &self.platform_verifier)
            .field("roots", &self.roots.len())
            .field("verifier", &self.verifier.is_some())
            .field("pins", &self.pins.len())
            .field("client_certificate", &self.identity.is_some())
            .field("min_version", &self.min_version)
            .field("max_version", &self.max_version)
            .field("post_quantum", &self.post_quantum)
            .field("server_name", &self.server_name)
            .field("resumption", &self.resumption)
            .field("early_data", &self.early_data)
            .field("key_log", &self.key_log)
            .finish()
    }
}

impl TlsOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who does the cryptography. Default aws-lc-rs where its feature is on.
    pub fn provider(mut self, provider: TlsProvider) -> Self {
        self.provider = provider;
        self
    }

    /// Trusts this root certificate too.
    pub fn add_root(mut self, root: CertificateDer<'static>) -> Self {
        Arc::make_mut(&mut self.roots).push(root);
        self
    }

    /// Trusts every certificate of this PEM text too.
    ///
    /// # Errors
    /// Invalid: no certificate in it, or one that does not decode.
    pub fn add_root_pem(mut self, pem: &[u8]) -> Result<Self, Error> {
        Arc::make_mut(&mut self.roots).extend(certificates(pem, "root certificate")?);
        Ok(self)
    }

    /// Whether Mozilla's roots are trusted beside those added. Default yes: the same answer on
    /// every machine.
    pub fn builtin_roots(mut self, on: bool) -> Self {
        self.builtin_roots = on;
        self
    }

    /// Whether the operating system's verifier decides, with its roots and those added, instead of
    /// Mozilla's roots. Default no.
    #[cfg(feature = "platform-verifier")]
    pub fn platform_verifier(mut self, on: bool) -> Self {
        self.platform_verifier = on;
        self
    }

    /// Accepts only servers whose own certificate has a public key with this SHA-256 hash of its
    /// SubjectPublicKeyInfo, beside all other checks. Several pins are alternatives: have one in
    /// reserve. In the form of curl and RFC 7469: `sha256//` and base64, the prefix may be left out.
    ///
    /// # Errors
    /// Invalid: it does not decode to 32 bytes.
    pub fn pin_sha256(mut self, pin: &str) -> Result<Self, Error> {
        let base64 = pin.strip_prefix("sha256//").unwrap_or(pin);
        let bytes = STANDARD.decode(base64).ok();
        let pin = bytes.and_then(|bytes| bytes.try_into().ok());
        let pin = pin.ok_or_else(|| Error::invalid("pin is not 32 bytes in base64"))?;
        self.pins.push(pin);
        Ok(self)
    }

    /// Shows this certificate, followed by its chain, to servers that ask for one, and signs with its
    /// key.
    pub fn client_certificate(
        mut self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Self {
        self.identity = Some(Arc::new(ClientIdentity { chain, key }));
        self
    }

    /// The same from PEM texts.
    ///
    /// # Errors
    /// Invalid: no certificate or no private key in them, or one that does not decode.
    pub fn client_certificate_pem(self, chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let chain = certificates(chain, "client certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| Error::invalid("client key PEM holds no private key"))?;
        Ok(self.client_certificate(chain, key))
    }

    /// The oldest version to accept. Default TLS 1.2.
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
        self
    }

    /// The newest version to offer. Default TLS 1.3.
    pub fn max_version(mut self, version: TlsVersion) -> Self {
        self.max_version = version;
        self
    }

    /// Whether a post-quantum key share is offered first. Default as the provider has it: yes with
    /// aws-lc-rs. Without it a ClientHello is some 260 bytes instead of 1480 and fits one segment, but
    /// traffic that is recorded today may be read one day.
    pub fn post_quantum(mut self, on: bool) -> Self {
        self.post_quantum = Some(on);
        self
    }

    /// The name that is asked for by SNI and that the certificate must have, instead of the host of the
    /// URL.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Whether sessions are resumed with tickets. Default yes: a resumed handshake saves the
    /// certificates and their verification.
    pub fn resumption(mut self, on: bool) -> Self {
        self.resumption = on;
        self
    }

    /// Whether requests may travel as early data (0-RTT) with the first flight of a resumed
    /// handshake. Default no.
    ///
    /// Early data can be replayed by whoever recorded it, and it leaves before the server's
    /// identity is proved anew (RFC 8446 §8, RFC 8470). So only requests with a safe method, or for
    /// which the caller said [`idempotent(true)`](crate::RequestBuilder::idempotent), are sent so,
    /// and only with a body that can be produced again. A server that does not take them gets the
    /// same bytes after the handshake; on 425 Too Early the request is sent once more without.
    pub fn early_data(mut self, on: bool) -> Self {
        self.early_data = on;
        self
    }

    /// Appends the secrets of every session to this file, in the format that Wireshark reads.
    /// Whoever has the file reads the traffic: for debugging only. Never switched on by the
    /// environment.
    pub fn key_log_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key_log = Some(path.into());
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = if self.early_data && !self.resumption {
            "early_data does nothing without resumption"
        } else if self.early_data && self.max_version < TlsVersion::Tls13 {
            "early_data does nothing without TLS 1.3"
        } else if self.min_version > self.max_version {
            "TLS min_version is newer than max_version"
        } else if self.verifier.is_some()
            && (!self.roots.is_empty() || !self.builtin_roots || self.platform_verifier)
        {
            "roots do nothing beside a verifier of one's own"
        } else if self.platform_verifier && !self.builtin_roots {
            "builtin_roots does nothing beside the platform's verifier"
        } else {
            return self.check_server_name();
        };
        Err(Error::invalid(wrong))
    }

    fn check_server_name(&self) -> Result<(), Error> {
        let Some(name) = &self.server_name else {
            return Ok(());
        };
        ServerName::try_from(name.as_str())
            .map(drop)
            .map_err(|e| Error::invalid("server_name is no valid TLS server name").with_source(e))
    }
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| Error::invalid(format!("{what} PEM")).with_source(e))?;
    if found.is_empty() {
        return Err(Error::invalid(format!("{what} PEM holds no certificate")));
    }
    Ok(found)
}

/// Who we are to servers that ask.
#[derive(PartialEq, Eq)]
pub(super) struct ClientIdentity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Hash for ClientIdentity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The key is compared, and need not be hashed: keys of one certificate are few.
        self.chain.hash(state);
    }
}

/// A verifier given by the user: equal only to itself.
#[derive(Clone)]
pub(super) struct CustomVerifier(pub(super) Arc<dyn ServerCertVerifier>);

impl PartialEq for CustomVerifier {
    fn eq(&self, other: &Self) -> bool {
        // Both are alive, so that an address means one object.
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0))
    }
}

impl Eq for CustomVerifier {}

impl Hash for CustomVerifier {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}

/// Doors that lead out of what TLS promises.
pub mod danger {
    use super::{Arc, CustomVerifier, TlsOptions};

    pub use tokio_rustls::rustls::client::danger::{
        HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
    };
    pub use tokio_rustls::rustls::pki_types::{ServerName, UnixTime};
    pub use tokio_rustls::rustls::{
        CertificateError, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    };

    /// Lets `verifier` alone decide whether a server is whom it says it is. A verifier that accepts
    /// too much gives every request, and every key in it, to whoever is on the way. Connections and
    /// tickets are shared only by options with this very object.
    pub fn with_verifier(
        mut options: TlsOptions,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> TlsOptions {
        options.verifier = Some(CustomVerifier(verifier));
        options
    }
}
