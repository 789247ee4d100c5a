//! A tunnel through a SOCKS5 proxy (RFC 1928, RFC 1929), by tokio-socks.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_socks::tcp::Socks5Stream;
use tokio_socks::{Error as SocksError, TargetAddr};

use crate::error::Error;
use crate::origin::{Host, Origin};

use super::http::failed;

/// Asks the proxy for a tunnel to the origin, by name where it has one.
pub(crate) async fn connect<S>(
    stream: &mut S,
    origin: &Origin,
    credentials: Option<(&str, &str)>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let target = match origin.canonical_host() {
        Host::Ip(ip) => TargetAddr::Ip((*ip, origin.port()).into()),
        Host::Name(name) => TargetAddr::Domain(name.to_string().into(), origin.port()),
    };
    let connected = match credentials {
        None => Socks5Stream::connect_with_socket(stream, target).await,
        Some((user, password)) => {
            Socks5Stream::connect_with_password_and_socket(stream, target, user, password).await
        }
    };
    connected.map(drop).map_err(|error| {
        let message = match &error {
            SocksError::Io(_) => "the connection to the SOCKS5 proxy was lost before it answered",
            SocksError::NoAcceptableAuthMethods if credentials.is_none() => {
                "the SOCKS5 proxy asks for credentials"
            }
            SocksError::PasswordAuthFailure(_) => "the SOCKS5 proxy refused our credentials",
            SocksError::InvalidResponseVersion | SocksError::InvalidReservedByte => {
                "the proxy does not speak SOCKS5"
            }
            _ => "the SOCKS5 proxy refused the tunnel",
        };
        failed(message).with_source(error)
    })
}
