//! What a client trusts and offers, and the rustls configurations made from it.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use tokio_rustls::rustls;

use rustls::client::{Resumption, TicketRequest};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, KeyLog, RootCertStore, SupportedProtocolVersion};

use crate::error::Error;
use crate::origin::Host;
use crate::sync::lock;

use super::session::{AttemptTickets, RaceTickets, TicketStore};

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("firstbyte needs a TLS provider: enable the feature `aws-lc-rs` or `ring`");

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Whom to trust and what to offer. Two clients share connections and tickets only if all of it
/// is equal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    builtin_roots: bool,
    roots: Vec<CertificateDer<'static>>,
    min_version: TlsVersion,
    resumption: bool,
    early_data: bool,
    key_log: Option<PathBuf>,
}

impl Default for TlsOptions {
    /// Mozilla's roots by `webpki-roots`, TLS 1.2 and 1.3, resumption on.
    fn default() -> Self {
        Self {
            builtin_roots: true,
            roots: Vec::new(),
            min_version: TlsVersion::Tls12,
            resumption: true,
            early_data: false,
            key_log: None,
        }
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("builtin_roots", &self.builtin_roots)
            .field("roots", &self.roots.len())
            .field("min_version", &self.min_version)
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

    /// Trusts this root certificate too.
    pub fn add_root(mut self, root: CertificateDer<'static>) -> Self {
        self.roots.push(root);
        self
    }

    /// Trusts every certificate of this PEM text too.
    ///
    /// # Errors
    /// Invalid: no certificate in it, or one that does not decode.
    pub fn add_root_pem(mut self, pem: &[u8]) -> Result<Self, Error> {
        use rustls::pki_types::pem::PemObject;
        let before = self.roots.len();
        for root in CertificateDer::pem_slice_iter(pem) {
            let root = root.map_err(|e| Error::invalid("root certificate PEM").with_source(e))?;
            self.roots.push(root);
        }
        if self.roots.len() == before {
            return Err(Error::invalid("root certificate PEM holds no certificate"));
        }
        Ok(self)
    }

    /// Whether Mozilla's roots are trusted beside those added. Default yes.
    pub fn builtin_roots(mut self, on: bool) -> Self {
        self.builtin_roots = on;
        self
    }

    /// The oldest version to accept. Default TLS 1.2.
    pub fn min_version(mut self, version: TlsVersion) -> Self {
        self.min_version = version;
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

    fn build(&self) -> Result<ClientConfig, Error> {
        let Self {
            builtin_roots,
            roots,
            min_version,
            resumption,
            early_data,
            key_log,
        } = self;
        if *early_data && !*resumption {
            return Err(Error::invalid("early_data does nothing without resumption"));
        }
        let mut store = RootCertStore::empty();
        if *builtin_roots {
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        for root in roots {
            store
                .add(root.clone())
                .map_err(|e| Error::invalid("root certificate is not usable").with_source(e))?;
        }
        if store.is_empty() {
            return Err(Error::invalid(
                "no root certificate is trusted; add one or keep the builtin roots",
            ));
        }
        let versions: &[&SupportedProtocolVersion] = match min_version {
            TlsVersion::Tls12 => &[&rustls::version::TLS12, &rustls::version::TLS13],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|e| Error::invalid("TLS versions").with_source(e))?
            .with_root_certificates(store)
            .with_no_client_auth();
        if let Some(path) = key_log {
            config.key_log = Arc::new(KeyLogFile {
                path: path.clone(),
                file: OnceLock::new(),
            });
        }
        Ok(config)
    }
}

/// The provider is chosen here and nowhere else; the process-wide default is never touched.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            #[cfg(feature = "aws-lc-rs")]
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            #[cfg(not(feature = "aws-lc-rs"))]
            let provider = rustls::crypto::ring::default_provider();
            Arc::new(provider)
        })
        .clone()
}

/// The provider's first random number costs 20 to 32 ms once in a process. Draws it on a thread
/// of its own, so that no request's handshake is charged for it.
pub(crate) fn warm_provider() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let warmed = std::thread::Builder::new()
            .name("firstbyte-warm".into())
            .spawn(|| {
                let provider = provider();
                let _ = provider.secure_random.fill(&mut [0; 32]);
                if let Some(group) = provider.kx_groups.first() {
                    let _ = group.start();
                }
            });
        // Without a thread to spare the first handshake pays, as it would have anyway.
        drop(warmed);
    });
}

/// What to offer by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Alpn {
    H2AndHttp1,
    H2,
    Http1,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::H2AndHttp1 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::H2 => vec![b"h2".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
        }
    }
}

/// The configurations of a pool, one per identity: verifier and roots are built once.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    built: Mutex<HashMap<TlsOptions, Arc<ClientConfig>>>,
}

impl Identities {
    /// Builds, or finds, the configuration of an identity. Does no I/O.
    pub(crate) fn prepare(&self, options: &TlsOptions) -> Result<Arc<ClientConfig>, Error> {
        let mut built = lock(&self.built);
        if let Some(config) = built.get(options) {
            return Ok(config.clone());
        }
        let config = Arc::new(options.build()?);
        built.insert(options.clone(), config.clone());
        Ok(config)
    }

    /// The TLS of one origin: the identity's verifier, a ticket store of its own.
    pub(crate) fn for_origin(
        &self,
        options: &TlsOptions,
        host: &Host,
        alpn: Alpn,
    ) -> Result<OriginTls, Error> {
        let server_name = match host {
            Host::Ip(ip) => ServerName::IpAddress((*ip).into()),
            Host::Name(name) => ServerName::try_from(name.to_string())
                .map_err(|e| Error::invalid("host is no valid TLS server name").with_source(e))?,
        };
        let mut config = ClientConfig::clone(&*self.prepare(options)?);
        config.alpn_protocols = alpn.protocols();
        let tickets = options.resumption.then(Arc::<TicketStore>::default);
        // Each attempt gets its own view of the tickets.
        config.resumption = Resumption::disabled();
        if tickets.is_some() {
            config.send_ticket_request = Some(TICKETS_WANTED);
        }
        Ok(OriginTls {
            config: Arc::new(config),
            tickets,
            early_data: options.early_data,
            server_name,
        })
    }
}

/// Tickets asked for (RFC 9149): a full handshake should allow a burst of reconnects, a resumed one
/// replace what it spent and one more. Servers that do not know the extension send their own number.
const TICKETS_WANTED: TicketRequest = TicketRequest {
    new_session_count: 4,
    resumption_count: 2,
};

/// Everything a handshake with one origin needs.
#[derive(Clone, Debug)]
pub(crate) struct OriginTls {
    config: Arc<ClientConfig>,
    /// `None` with resumption off.
    pub(crate) tickets: Option<Arc<TicketStore>>,
    /// Requests may travel as early data.
    pub(crate) early_data: bool,
    pub(crate) server_name: ServerName<'static>,
}

impl OriginTls {
    /// The configuration of one attempt to connect.
    pub(super) fn attempt(&self, race: &RaceTickets, early_data: bool) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.config);
        config.enable_early_data = early_data && self.early_data;
        if let Some(store) = &self.tickets {
            let tickets = AttemptTickets::new(store.clone(), race.clone());
            config.resumption = Resumption::store(Arc::new(tickets));
        }
        Arc::new(config)
    }
}

/// Appends secrets to a file, opened at the first one.
struct KeyLogFile {
    path: PathBuf,
    file: OnceLock<Option<Mutex<std::fs::File>>>,
}

impl fmt::Debug for KeyLogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyLogFile").field(&self.path).finish()
    }
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let file = self.file.get_or_init(|| {
            let mut options = std::fs::OpenOptions::new();
            options.append(true).create(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options.open(&self.path).map(Mutex::new).ok()
        });
        if let Some(file) = file {
            let line = format!("{label} {} {}\n", hex(client_random), hex(secret));
            // A key log that cannot be written must not fail a handshake.
            let _ = lock(file).write_all(line.as_bytes());
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
