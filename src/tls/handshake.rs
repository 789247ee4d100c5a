//! One handshake, and what it agreed on.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, rustls};

use rustls::{HandshakeKind, InvalidMessage, ProtocolVersion};

use crate::error::{Error, ErrorKind, escape_peer_text};
use crate::timing::{Phase, TlsFacts};

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
    let facts = facts(stream.get_ref().1);
    Ok((stream, facts))
}

fn facts(session: &rustls::ClientConnection) -> TlsFacts {
    let kind = session.handshake_kind();
    TlsFacts {
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
fn explain(error: io::Error) -> Error {
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
