//! The certificate authority of the tests, and the TLS configurations made from what it signs.
//!
//! Every identity has a fresh key. Authorities have different names, so that a certificate of one is "unknown issuer" to
//! a client that trusts the other and not "bad signature".

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs as chosen;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring as chosen;

static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

/// A certificate authority that lives as long as the test.
pub struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// A new authority: nobody trusts it who was not given [`Pki::ca_der`].
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let nth = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(
            DnType::CommonName,
            format!("firstbyte test authority {nth}"),
        );
        let ca = CertifiedIssuer::self_signed(params, new_key()).expect("a fresh key signs");
        Self { ca }
    }

    /// The authority's own certificate: the trust anchor.
    pub fn ca_der(&self) -> CertificateDer<'static> {
        self.ca.der().clone()
    }

    /// The same in PEM.
    pub fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// A store that trusts this authority and nothing else.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.ca_der())
            .expect("our own certificate parses");
        roots
    }

    /// A sound server identity for these names; an IP address becomes an IP SAN.
    pub fn server(&self, names: &[&str]) -> ServerIdentity {
        self.sign(server_params(names))
    }

    /// Was valid until 2001.
    pub fn expired(&self, names: &[&str]) -> ServerIdentity {
        let mut params = server_params(names);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
        self.sign(params)
    }

    /// Becomes valid in 4000.
    pub fn not_yet_valid(&self, names: &[&str]) -> ServerIdentity {
        let mut params = server_params(names);
        params.not_before = date_time_ymd(4000, 1, 1);
        params.not_after = date_time_ymd(4001, 1, 1);
        self.sign(params)
    }

    /// Signed by no authority but by its own key.
    pub fn self_signed(names: &[&str]) -> ServerIdentity {
        let key = new_key();
        let leaf = server_params(names)
            .self_signed(&key)
            .expect("a fresh key signs");
        ServerIdentity::new(leaf.der().clone(), &key)
    }

    /// A client certificate of this common name.
    pub fn client(&self, name: &str) -> ServerIdentity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A plain rustls client that trusts this authority: the oracle's side of a test of the peers themselves.
    pub fn client_config(&self, alpn: &[&str]) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = wire_alpn(alpn);
        config
    }

    fn sign(&self, mut params: CertificateParams) -> ServerIdentity {
        params.use_authority_key_identifier_extension = true;
        let key = new_key();
        let leaf = params
            .signed_by(&key, &self.ca)
            .expect("the authority's key signs");
        ServerIdentity::new(leaf.der().clone(), &key)
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

/// A certificate chain (without the root) and the key of its leaf.
pub struct ServerIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// The leaf's SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
}

impl ServerIdentity {
    fn new(leaf: CertificateDer<'static>, key: &KeyPair) -> Self {
        Self {
            chain: vec![leaf],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            spki: key.subject_public_key_info(),
        }
    }
}

impl Clone for ServerIdentity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            spki: self.spki.clone(),
        }
    }
}

/// TLS 1.2 and 1.3 with session tickets.
pub fn server_config(identity: &ServerIdentity, alpn: &[&str]) -> ServerConfig {
    server_config_versions(identity, alpn, rustls::DEFAULT_VERSIONS)
}

/// These versions only, for example `&[&rustls::version::TLS12]`; with session tickets.
pub fn server_config_versions(
    identity: &ServerIdentity,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("the provider has these versions")
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .expect("the key belongs to the leaf");
    with_tickets(config, alpn)
}

/// As [`server_config`], and refuses clients without a certificate of `clients`.
pub fn server_config_client_auth(
    identity: &ServerIdentity,
    alpn: &[&str],
    clients: &Pki,
) -> ServerConfig {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(clients.roots()), provider())
            .build()
            .expect("the authority is a usable root");
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .expect("the key belongs to the leaf");
    with_tickets(config, alpn)
}

/// Tickets that allow early data, each good for one resumption; `storage` is the server's memory of them.
pub fn with_early_data(
    mut config: ServerConfig,
    storage: Arc<dyn rustls::server::StoresServerSessions>,
) -> ServerConfig {
    config.ticketer = Arc::new(NoTickets);
    config.session_storage = storage;
    config.max_early_data_size = 16_384;
    config
}

/// Takes every means of resumption away again.
pub fn without_tickets(mut config: ServerConfig) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config.ticketer = Arc::new(NoTickets);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}

/// The crypto provider that the crate's features choose.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(chosen::default_provider())
}

fn with_tickets(mut config: ServerConfig, alpn: &[&str]) -> ServerConfig {
    config.alpn_protocols = wire_alpn(alpn);
    config.ticketer = chosen::Ticketer::new().expect("the provider has randomness");
    config
}

fn wire_alpn(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter()
        .map(|protocol| protocol.as_bytes().to_vec())
        .collect()
}

fn server_params(names: &[&str]) -> CertificateParams {
    let sans: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(sans).expect("test names are ASCII");
    let subject = names.first().copied().unwrap_or("nameless");
    params.distinguished_name.push(DnType::CommonName, subject);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the provider has randomness")
}

#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
