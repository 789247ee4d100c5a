//! TLS by rustls: who is trusted, what is offered, and which tickets are kept.
//!
//! The configuration of an identity ([`TlsOptions`]) is built once: tickets hold weak references
//! to the verifier, so every origin derives its configuration from the same one, with a ticket
//! store of its own.

mod config;
mod handshake;
mod session;

pub(crate) use config::{Alpn, Identities, OriginTls, warm_provider};
pub use config::{TlsOptions, TlsVersion};
pub(crate) use handshake::{HandshakeError, early_handshake, explain, handshake, late_facts};
pub(crate) use session::RaceTickets;
pub use tokio_rustls::rustls::pki_types::CertificateDer;
