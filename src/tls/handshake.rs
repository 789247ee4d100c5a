//! One handshake, and what it agreed on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{Connect, TlsConnector, rustls};

use rustls::{CertificateError, HandshakeKind, InvalidMessage, ProtocolVersion};

use crate::error::{Error, ErrorKind, escape_peer_text};
use crate::timing::{EarlyData, Phase, TlsFacts};

use super::config::OriginTls;
use super::session::RaceTickets;

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum HandshakeError {
    /// The connection broke off: another address may do better.
    Lost(Error),
    /// The peer was understood and refused, or is not whom it should be.
    Refused(Error),
}

impl From<HandshakeError> for Error {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Lost(error) | HandshakeError::Refused(error) => error,
        }
    }
}

/// A handshake whose first message is made and has not been sent.
pub(crate) struct Handshake<S> {
    connect: Connect<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<S> {
    /// Makes the ClientHello, for a stream that need not be connected yet. Takes a ticket, if there is one and no
    /// other attempt of the `race` has it; with `early_data`, and a ticket that allows it, what is written after
    /// [`run`](Self::run) travels with the first flight.
    pub(crate) fn new(tls: &OriginTls, race: &RaceTickets, io: S, early_data: bool) -> Self {
        let connector = TlsConnector::from(tls.attempt(race, early_data)).early_data(early_data);
        let connect = connector.connect(tls.server_name.clone(), io);
        Self { connect }
    }

    pub(crate) fn get_mut(&mut self) -> &mut S {
        self.connect.get_mut().expect("it has not run yet")
    }

    /// Performs it, over what is connected now. No byte of a request has been written when it fails. With early data
    /// it returns before anything was sent, and without facts.
    pub(crate) async fn run(self) -> Result<(TlsStream<S>, Option<TlsFacts>), HandshakeError> {
        let stream = self.connect.into_fallible().await.map_err(refuse)?;
        let session = stream.get_ref().1;
        let is_over = !session.is_handshaking();
        let facts = is_over.then(|| facts(session, EarlyData::NotOffered));
        Ok((stream, facts))
    }
}

/// Lets our alert leave, as far as that is possible without waiting, and says what went wrong.
fn refuse<S: AsyncWrite + Unpin>((error, mut io): (io::Error, S)) -> HandshakeError {
    let mut cx = Context::from_waker(Waker::noop());
    let _ = Pin::new(&mut io).poll_shutdown(&mut cx);
    classify(error)
}

fn classify(error: io::Error) -> HandshakeError {
    let is_tls = error
        .get_ref()
        .is_some_and(|e| e.downcast_ref::<rustls::Error>().is_some());
    let error = explain(error);
    if is_tls {
        HandshakeError::Refused(error)
    } else {
        HandshakeError::Lost(error)
    }
}

/// What a handshake that ran under early data agreed on, once it is over.
pub(crate) fn late_facts(session: &rustls::ClientConnection) -> TlsFacts {
    let early_data = if session.is_early_data_accepted() {
        EarlyData::Accepted
    } else {
        EarlyData::Rejected
    };
    facts(session, early_data)
}

fn facts(session: &rustls::ClientConnection, early_data: EarlyData) -> TlsFacts {
    let kind = session.handshake_kind();
    TlsFacts {
        early_data,
        resumed: kind == Some(HandshakeKind::Resumed),
        hello_retry: kind == Some(HandshakeKind::FullWithHelloRetryRequest),
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "unknown",
        },
        cipher_suite: session
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("unknown"),
        group: session
            .negotiated_key_exchange_group()
            .and_then(|group| group.name().as_str()),
        alpn: session.alpn_protocol().map(escape_peer_text),
    }
}

/// Says what failed in words that name the cause: the certificate, the peer, the network.
pub(crate) fn explain(error: io::Error) -> Error {
    let cause = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let message = match cause {
        Some(rustls::Error::InvalidCertificate(_)) => "the server's certificate is not valid",
        Some(rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        )) => "the peer does not speak TLS",
        Some(rustls::Error::AlertReceived(_)) => "the server refused the handshake",
        Some(_) => "the handshake failed",
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection during the handshake"
        }
        None => "the connection was lost during the handshake",
    };
    let failed = Error::new(ErrorKind::Tls, message).at(Phase::Tls);
    match cause {
        // rustls would print the debug form of what a verifier of ours or the user's said.
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(said))) => {
            failed.with_source(said.0.to_string())
        }
        Some(cause) => failed.with_source(cause.clone()),
        None => failed.with_source(error),
    }
}
