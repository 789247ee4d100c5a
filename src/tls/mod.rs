//! TLS by rustls: who is trusted, what is offered, and which tickets are kept.
//!
//! `options` says what is wanted, `verify` who decides whether a server is whom it says it is, `config`
//! makes rustls' configurations, `session` keeps tickets, `key_share` what an offer is made of,
//! `handshake` acts.
//!
//! The configuration of an identity ([`TlsOptions`]) is built once: tickets hold weak references
//! to the verifier, so every origin derives its configuration from the same one, with a ticket
//! store of its own.

mod config;
mod handshake;
mod key_share;
mod options;
mod session;
mod verify;

pub(crate) use config::{
    Alpn, Identities, OriginTls, lacks_key_shares, make_key_shares, warm_provider,
};
pub(crate) use handshake::{Handshake, HandshakeError, explain, late_facts};
pub use options::{TlsOptions, TlsProvider, TlsVersion, danger};
pub use session::TicketStore;
pub(crate) use session::{OriginTickets, RaceTickets};
pub use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
