//! One handshake, and what it agreed on.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};

use rustls::{HandshakeKind, InvalidMessage, ProtocolVersion};

use crate::error::{Error, ErrorKind, escape_peer_text};
use crate::timing::{EarlyData, Phase, TlsFacts};

use super::config::OriginTls;

/// Performs the handshake over `io`. No byte of a request has been written when it fails.
pub(crate) async fn handshake<S>(tls: &OriginTls, io: S) -> Result<(TlsStream<S>, TlsFacts), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connector = TlsConnector::from(tls.config.clone());
    let stream = connector
        .connect(tls.server_name.clone(), io)
        .await
        .map_err(explain)?;
    let facts = facts(stream.get_ref().1, EarlyData::NotOffered);
    Ok((stream, facts))
}

/// The same, but if there is a ticket that allows early data it returns before anything was sent:
/// without facts, and what is written next travels with the first flight.
pub(crate) async fn early_handshake<S>(
    tls: &OriginTls,
    io: S,
) -> Result<(TlsStream<S>, Option<TlsFacts>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(config) = &tls.early else {
        let (stream, facts) = handshake(tls, io).await?;
        return Ok((stream, Some(facts)));
    };
    let connector = TlsConnector::from(config.clone()).early_data(true);
    let stream = connector
        .connect(tls.server_name.clone(), io)
        .await
        .map_err(explain)?;
    let session = stream.get_ref().1;
    let facts = (!session.is_handshaking()).then(|| facts(session, EarlyData::NotOffered));
    Ok((stream, facts))
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
        Some(cause) => failed.with_source(cause.clone()),
        None => failed.with_source(error),
    }
}
