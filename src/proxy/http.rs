//! A tunnel through an HTTP proxy: CONNECT (RFC 9110 §9.3.6).

use bytes::BytesMut;
use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, ErrorKind};
use crate::http_head::{HeadLimits, HeadParser};
use crate::timing::Phase;

/// Informational responses accepted before the final one.
const MAX_INFORMATIONAL: u32 = 8;

/// Asks the proxy for a tunnel to `authority` (host and port). Bytes behind the proxy's answer are
/// the origin's first and stay in `stream`.
pub(crate) async fn connect<S>(
    stream: &mut S,
    authority: &str,
    authorization: Option<&HeaderValue>,
) -> Result<(), Error>
where
    S: AsyncBufRead + AsyncWrite + Unpin,
{
    let lost = |e: std::io::Error| {
        failed("the connection to the proxy was lost before it answered").with_source(e)
    };
    let mut head = format!(
        "CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: firstbyte/{}\r\n",
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes();
    if let Some(value) = authorization {
        head.extend_from_slice(b"proxy-authorization: ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    stream.write_all(&head).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;

    let mut parser = HeadParser::default();
    let mut buffer = BytesMut::new();
    let mut informational = 0;
    loop {
        let read = stream.fill_buf().await.map_err(lost)?;
        if read.is_empty() {
            return Err(failed("the proxy closed the connection before it answered"));
        }
        let n = read.len();
        buffer.extend_from_slice(read);
        let head = loop {
            let parsed = parser.parse(&mut buffer, HeadLimits::DEFAULT);
            match parsed.map_err(|e| failed("the proxy's answer cannot be read").with_source(e))? {
                Some(head) if head.status.is_informational() => {
                    informational += 1;
                    if informational > MAX_INFORMATIONAL {
                        return Err(failed("the proxy sent too many informational responses"));
                    }
                    // The next head may be in the buffer already.
                    if buffer.is_empty() {
                        break None;
                    }
                }
                head => break head,
            }
        };
        let Some(head) = head else {
            stream.consume(n);
            continue;
        };
        stream.consume(n - buffer.len());
        return match head.status {
            status if status.is_success() => Ok(()),
            StatusCode::PROXY_AUTHENTICATION_REQUIRED if authorization.is_some() => {
                Err(failed("the proxy refused our credentials (407)"))
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(failed("the proxy asks for credentials (407)"))
            }
            status => Err(failed(format!("the proxy refused the tunnel ({status})"))),
        };
    }
}

pub(super) fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Proxy, message).at(Phase::Proxy)
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;
    use tokio::io::{AsyncReadExt, BufStream};

    async fn answered(answer: &str) -> (Result<(), Error>, String, String) {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut near = BufStream::new(near);
        far.write_all(answer.as_bytes()).await.unwrap();
        let value = HeaderValue::from_static("Basic x");
        let result = connect(&mut near, "h.test:443", Some(&value)).await;
        let mut asked = vec![0; 1000];
        let n = far.read(&mut asked).await.unwrap();
        drop(far);
        let mut rest = String::new();
        near.read_to_string(&mut rest).await.unwrap();
        (
            result,
            String::from_utf8(asked[..n].to_vec()).unwrap(),
            rest,
        )
    }

    #[tokio::test]
    async fn bytes_behind_the_answer_are_left_for_the_tunnel() {
        let answer =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ok\r\ncontent-length: 9\r\n\r\nfirst";
        let (result, asked, rest) = answered(answer).await;
        result.unwrap();
        assert!(asked.starts_with("CONNECT h.test:443 HTTP/1.1\r\nhost: h.test:443\r\n"));
        assert!(asked.contains("\r\nproxy-authorization: Basic x\r\n"));
        assert_eq!(rest, "first");
    }

    #[tokio::test]
    async fn refusals_name_the_status_and_nothing_of_the_peers_text() {
        for (answer, words) in [
            ("HTTP/1.1 407 Who\r\n\r\n", "refused our credentials"),
            ("HTTP/1.1 502 Bad\r\n\r\n", "502"),
            ("SSH-2.0-x\r\n", "not HTTP/1"),
        ] {
            let error = answered(answer).await.0.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(words) && !text.contains('\x1b'), "{text}");
            assert_eq!(error.kind(), ErrorKind::Proxy);
        }
        let many = "HTTP/1.1 100 Continue\r\n\r\n".repeat(20);
        assert!(answered(&many).await.0.is_err());
    }
}
