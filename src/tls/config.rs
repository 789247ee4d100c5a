//! The rustls configurations made from what clients ask for, one per identity.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tokio_rustls::rustls;

use rustls::client::{Resumption, TicketRequest};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, KeyLog, NamedGroup, SupportedProtocolVersion};

use crate::error::Error;
use crate::origin::Host;
use crate::sync::lock;

use super::key_share::Groups;
use super::options::{TlsOptions, TlsProvider, TlsVersion};
use super::session::{AttemptTickets, OriginTickets, RaceTickets, TicketStore};
use super::verify::verifier;

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("firstbyte needs a TLS provider: enable the feature `aws-lc-rs` or `ring`");

/// Builds the configuration of an identity. Does no I/O.
fn build(options: &TlsOptions) -> Result<ClientConfig, Error> {
    options.check()?;
    let provider = provider_for(options)?;
    let verifier = verifier(options, &provider)?;
    let versions: Vec<&SupportedProtocolVersion> = [
        (TlsVersion::Tls12, &rustls::version::TLS12),
        (TlsVersion::Tls13, &rustls::version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (options.min_version..=options.max_version).contains(version))
    .map(|(_, version)| version)
    .collect();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|e| Error::invalid("TLS versions").with_source(e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|e| Error::invalid("client certificate").with_source(e))?,
    };
    if let Some(path) = &options.key_log {
        config.key_log = Arc::new(KeyLogFile {
            path: path.clone(),
            file: OnceLock::new(),
        });
    }
    Ok(config)
}

impl TlsOptions {
    /// A configuration of rustls by these options, for clients of others: the same roots, pins, certificates, versions
    /// and key exchange, with a [`TicketStore`] for 256 servers. What it offers by ALPN is whoever uses it to say.
    ///
    /// # Errors
    /// Invalid: options that cannot be used; `server_name` and `early_data`, which a configuration alone cannot keep.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        for (is_set, name) in [
            (self.server_name.is_some(), "server_name"),
            (self.early_data, "early_data"),
        ] {
            if is_set {
                let message = format!("{name} is not a matter of the TLS configuration alone");
                return Err(Error::invalid(message));
            }
        }
        let mut config = build(self)?;
        config.resumption = if self.resumption {
            config.send_ticket_request = Some(TICKETS_WANTED);
            Resumption::store(Arc::new(TicketStore::new(256)))
        } else {
            Resumption::disabled()
        };
        Ok(config)
    }
}

/// The provider with the key exchange that the options ask for.
fn provider_for(options: &TlsOptions) -> Result<Arc<CryptoProvider>, Error> {
    let provider = provider(options.provider);
    let is_pq = |group: &&dyn SupportedKxGroup| {
        matches!(
            group.name(),
            NamedGroup::X25519MLKEM768 | NamedGroup::secp256r1MLKEM768 | NamedGroup::MLKEM768
        )
    };
    match options.post_quantum {
        None => Ok(provider),
        Some(true) if provider.kx_groups.first().is_some_and(is_pq) => Ok(provider),
        Some(true) => Err(Error::invalid(
            "post_quantum needs the provider aws-lc-rs; this one has no such key exchange",
        )),
        Some(false) => {
            let mut without = CryptoProvider::clone(&provider);
            without.kx_groups.retain(|group| !is_pq(group));
            Ok(Arc::new(without))
        }
    }
}

/// A provider, and the key shares that are made ahead for it.
struct Prepared {
    provider: Arc<CryptoProvider>,
    groups: Groups,
}

impl Prepared {
    fn new(mut provider: CryptoProvider) -> Self {
        let groups = Groups::of(&mut provider, &LACKS_KEY_SHARES);
        let provider = Arc::new(provider);
        Self { provider, groups }
    }
}

#[cfg(feature = "aws-lc-rs")]
static AWS_LC_RS: OnceLock<Prepared> = OnceLock::new();
#[cfg(feature = "ring")]
static RING: OnceLock<Prepared> = OnceLock::new();

/// The provider is chosen here and nowhere else; the process-wide default is never touched.
fn provider(which: TlsProvider) -> Arc<CryptoProvider> {
    let prepared = match which {
        #[cfg(feature = "aws-lc-rs")]
        TlsProvider::AwsLcRs => &AWS_LC_RS,
        #[cfg(feature = "ring")]
        TlsProvider::Ring => &RING,
    };
    let prepared = prepared.get_or_init(|| Prepared::new(unprepared(which)));
    prepared.provider.clone()
}

pub(super) fn unprepared(which: TlsProvider) -> CryptoProvider {
    match which {
        #[cfg(feature = "aws-lc-rs")]
        TlsProvider::AwsLcRs => rustls::crypto::aws_lc_rs::default_provider(),
        #[cfg(feature = "ring")]
        TlsProvider::Ring => rustls::crypto::ring::default_provider(),
    }
}

/// A key share was taken since the last were made, or none was made yet.
static LACKS_KEY_SHARES: AtomicBool = AtomicBool::new(true);

/// Whether a key share that the next handshakes will want is still to be made.
pub(crate) fn lacks_key_shares() -> bool {
    LACKS_KEY_SHARES.load(Ordering::Acquire)
}

/// Makes them, which takes its time.
pub(crate) fn make_key_shares() {
    if LACKS_KEY_SHARES.swap(false, Ordering::AcqRel) {
        make_used();
    }
}

fn make_used() {
    let used = [
        #[cfg(feature = "aws-lc-rs")]
        AWS_LC_RS.get(),
        #[cfg(feature = "ring")]
        RING.get(),
    ];
    for prepared in used.into_iter().flatten() {
        prepared.groups.make();
    }
}

/// Sees to what no request's handshake shall be charged for, on a thread of its own: the provider's first random
/// number, which costs 20 to 32 ms once in a process, and the first key share.
pub(crate) fn warm_provider() {
    if !LACKS_KEY_SHARES.swap(false, Ordering::AcqRel) {
        return;
    }
    let warmed = std::thread::Builder::new()
        .name("firstbyte-warm".into())
        .spawn(|| {
            let provider = provider(TlsProvider::default());
            let _ = provider.secure_random.fill(&mut [0; 32]);
            make_used();
        });
    // Without a thread to spare the first handshake pays, as it would have anyway.
    drop(warmed);
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

/// Identities whose configuration is kept. A service has a handful; who makes one per tenant builds
/// some of them anew, which costs about as much as parsing the roots.
const IDENTITIES_KEPT: usize = 64;

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
        let config = Arc::new(build(options)?);
        if built.len() >= IDENTITIES_KEPT
            && let Some(other) = built.keys().next().cloned()
        {
            built.remove(&other);
        }
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
        self.for_server(options, options.server_name.as_deref(), host, alpn)
    }

    /// The TLS with a proxy on the way, which has its own name and is shown no certificate of ours.
    pub(crate) fn for_proxy(&self, options: &TlsOptions, host: &Host) -> Result<OriginTls, Error> {
        let mut options = options.clone();
        options.identity = None;
        options.pins.clear();
        options.early_data = false;
        self.for_server(&options, None, host, Alpn::Http1)
    }

    fn for_server(
        &self,
        options: &TlsOptions,
        override_name: Option<&str>,
        host: &Host,
        alpn: Alpn,
    ) -> Result<OriginTls, Error> {
        let server_name = match (override_name, host) {
            (None, Host::Ip(ip)) => ServerName::IpAddress((*ip).into()),
            (None, Host::Name(name)) => ServerName::try_from(name.to_string())
                .map_err(|e| Error::invalid("host is no valid TLS server name").with_source(e))?,
            (Some(name), _) => ServerName::try_from(name.to_owned())
                .map_err(|e| Error::invalid("server_name").with_source(e))?,
        };
        let mut config = ClientConfig::clone(&*self.prepare(options)?);
        config.alpn_protocols = alpn.protocols();
        let tickets = options.resumption.then(Arc::<OriginTickets>::default);
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
    pub(crate) tickets: Option<Arc<OriginTickets>>,
    /// Requests may travel as early data.
    pub(crate) early_data: bool,
    pub(crate) server_name: ServerName<'static>,
}

impl OriginTls {
    /// Whether a handshake would resume an earlier one.
    pub(crate) fn has_tickets(&self) -> bool {
        (self.tickets.as_ref()).is_some_and(|tickets| tickets.len() > 0)
    }

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

#[cfg(test)]
mod tests {
    // layering: uses this module, its siblings and sync, which is below.
    use super::*;

    #[test]
    fn identity_is_built_once_and_their_number_is_bounded() {
        let identities = Identities::default();
        let options = |n: usize| TlsOptions::new().server_name(format!("tenant-{n}.test"));
        for n in 0..2 * IDENTITIES_KEPT {
            let built = identities.prepare(&options(n)).unwrap();
            let found = identities.prepare(&options(n)).unwrap();
            assert!(Arc::ptr_eq(&built, &found));
        }
        assert_eq!(lock(&identities.built).len(), IDENTITIES_KEPT);
    }
}
