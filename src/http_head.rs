//! The head of an HTTP/1 response: a pure parser over `httparse`.
//!
//! The end of the head is searched first, from where the last search stopped, and the head parsed
//! once it is whole: time stays linear when it arrives byte by byte.

use std::fmt;
use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::error::escape_peer_text;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Bounds of a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HeadLimits {
    pub(crate) bytes: usize,
    pub(crate) headers: usize,
}

impl HeadLimits {
    /// 64 KiB and 128 headers: beyond what any known API sends, small beside a response body.
    pub(crate) const DEFAULT: Self = Self {
        bytes: 64 * 1024,
        headers: 128,
    };
}

/// A parsed response head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    /// HTTP/1.0 rather than 1.1.
    pub(crate) is_http10: bool,
    pub(crate) headers: HeaderMap,
    /// What the headers speak of: nobody needs to look for what is not there.
    pub(crate) speaks_of: Topics,
}

/// Fields of a head that say something of its connection or its framing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Topics {
    pub(crate) connection: bool,
    pub(crate) keep_alive: bool,
    pub(crate) transfer_encoding: bool,
}

impl Topics {
    fn note(&mut self, name: &HeaderName) {
        self.connection |= *name == CONNECTION;
        self.transfer_encoding |= *name == TRANSFER_ENCODING;
        self.keep_alive |= *name == KEEP_ALIVE;
    }
}

/// Why a head cannot be accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// The bytes are not HTTP/1 at all.
    NotHttp(String),
    /// A line breaks RFC 9112.
    Malformed(String),
    TooLarge(&'static str, usize),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHttp(bytes) => write!(f, "the answer is not HTTP/1; it begins `{bytes}`"),
            Self::Malformed(why) => write!(f, "malformed response head: {why}"),
            Self::TooLarge(what, limit) => {
                write!(f, "response head has more than {limit} {what}")
            }
        }
    }
}

impl std::error::Error for HeadError {}

/// Finds and parses heads in a growing buffer.
#[derive(Debug, Default)]
pub(crate) struct HeadParser {
    /// Bytes of the buffer that were searched without finding the end of the head.
    searched: usize,
}

impl HeadParser {
    /// Takes a head off the front of `buffer`; `None` while it is incomplete.
    pub(crate) fn parse(
        &mut self,
        buffer: &mut BytesMut,
        limits: HeadLimits,
    ) -> Result<Option<Head>, HeadError> {
        check_prefix(buffer)?;
        let Some(len) = self.find_end(buffer) else {
            if buffer.len() >= limits.bytes {
                return Err(HeadError::TooLarge("bytes", limits.bytes));
            }
            return Ok(None);
        };
        self.searched = 0;
        if len > limits.bytes {
            return Err(HeadError::TooLarge("bytes", limits.bytes));
        }
        parse_whole(buffer, len, limits).map(Some)
    }

    /// The length of the head, its empty line included. A line may end in LF alone
    /// (RFC 9112 §2.2).
    fn find_end(&mut self, buffer: &[u8]) -> Option<usize> {
        let mut from = self.searched;
        while let Some(at) = memchr::memchr(b'\n', &buffer[from..]) {
            let line_end = from + at;
            match &buffer[line_end + 1..] {
                [b'\n', ..] => return Some(line_end + 2),
                [b'\r', b'\n', ..] => return Some(line_end + 3),
                [] | [b'\r'] => {
                    self.searched = line_end;
                    return None;
                }
                _ => from = line_end + 1,
            }
        }
        self.searched = buffer.len();
        None
    }
}

/// A peer that speaks something else is found out at its first byte, not at a timeout.
fn check_prefix(buffer: &[u8]) -> Result<(), HeadError> {
    const PREFIX: &[u8] = b"HTTP/1.";
    let n = buffer.len().min(PREFIX.len());
    if buffer[..n] == PREFIX[..n] {
        return Ok(());
    }
    // Enough to tell a protocol by; a peer that echoes must not put a key into our errors.
    Err(HeadError::NotHttp(escape_peer_text(
        &buffer[..buffer.len().min(8)],
    )))
}

fn parse_whole(buffer: &mut BytesMut, len: usize, limits: HeadLimits) -> Result<Head, HeadError> {
    let bytes = buffer.split_to(len).freeze();
    // As many as there may be, and not initialized: most heads have a few.
    let mut slots = [const { MaybeUninit::uninit() }; HeadLimits::DEFAULT.headers];
    let slots = &mut slots[..limits.headers.min(HeadLimits::DEFAULT.headers)];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        &bytes,
        slots,
    );
    match parsed {
        Ok(httparse::Status::Complete(parsed)) if parsed == len => {}
        Ok(_) => return Err(HeadError::Malformed("it ends before its empty line".into())),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(HeadError::TooLarge("headers", limits.headers));
        }
        Err(error) => return Err(HeadError::Malformed(error.to_string())),
    }
    let status = response.code.unwrap_or_default();
    let status = StatusCode::from_u16(status)
        .map_err(|_| HeadError::Malformed(format!("status code {status}")))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    let mut speaks_of = Topics::default();
    for header in response.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| {
            HeadError::Malformed(format!(
                "header name `{}`",
                escape_peer_text(header.name.as_bytes())
            ))
        })?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(header.value))
            .map_err(|_| HeadError::Malformed(format!("value of header `{name}`")))?;
        speaks_of.note(&name);
        headers.append(name, value);
    }
    Ok(Head {
        status,
        is_http10: response.version == Some(0),
        headers,
        speaks_of,
    })
}

/// The property that the fuzz target asserts: however the bytes are split, the result is the same
/// and exactly the head is consumed.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_splits(input: &[u8], split: usize) {
    let limits = HeadLimits {
        bytes: 4096,
        headers: 32,
    };
    let run = |cuts: &[usize]| {
        let mut parser = HeadParser::default();
        let mut buffer = BytesMut::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([input.len()]) {
            buffer.extend_from_slice(&input[from..cut]);
            from = cut;
            match parser.parse(&mut buffer, limits) {
                Ok(None) => {}
                Ok(Some(head)) => {
                    let left = buffer.len() + (input.len() - from);
                    return Ok(Some((head.status, head.headers, left)));
                }
                Err(HeadError::TooLarge(what, _)) => return Err(Some(what)),
                Err(_) => return Err(None),
            }
        }
        Ok(None)
    };
    let whole = run(&[]);
    let cut = split.min(input.len());
    let parts = run(&[cut]);
    // An early cut may find a limit or a wrong prefix before the rest is seen; what parses,
    // parses the same.
    if let (Ok(Some(a)), Ok(Some(b))) = (&whole, &parts) {
        assert_eq!(a, b);
    }
    assert_eq!(matches!(whole, Ok(Some(_))), matches!(parts, Ok(Some(_))));
}

#[cfg(test)]
mod tests {
    // layering: uses error, which is below.
    use super::*;

    fn parse(text: &str) -> Result<Option<Head>, HeadError> {
        let mut buffer = BytesMut::from(text);
        HeadParser::default().parse(&mut buffer, HeadLimits::DEFAULT)
    }

    #[test]
    fn head_is_the_same_at_every_split() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-A: b\r\n\r\nhello";
        for split in 0..text.len() {
            check_splits(text, split);
        }
        let mut buffer = BytesMut::from(&text[..]);
        let mut parser = HeadParser::default();
        let head = parser
            .parse(&mut buffer, HeadLimits::DEFAULT)
            .unwrap()
            .unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["x-a"], "b");
        assert_eq!(&buffer[..], b"hello");
    }

    #[test]
    fn another_protocol_is_named_at_its_first_byte() {
        for text in ["\x16\x03\x01", "HTTP/2.0 200\r\n", "SSH-2.0", "ICY 200 OK"] {
            assert!(
                matches!(parse(text), Err(HeadError::NotHttp(_))),
                "{text:?}"
            );
        }
        assert!(matches!(parse("HTTP/1"), Ok(None)));
    }

    #[test]
    fn limits_hold() {
        let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(70_000));
        assert_eq!(
            parse(&long).unwrap_err(),
            HeadError::TooLarge("bytes", 65_536)
        );
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(70_000));
        assert_eq!(
            parse(&endless).unwrap_err(),
            HeadError::TooLarge("bytes", 65_536)
        );
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(129));
        assert_eq!(
            parse(&many).unwrap_err(),
            HeadError::TooLarge("headers", 128)
        );
    }

    #[test]
    fn malformed_lines_are_refused() {
        for text in [
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            "HTTP/1.1 000 OK\r\n\r\n",
        ] {
            assert!(
                matches!(parse(text), Err(HeadError::Malformed(_))),
                "{text:?}"
            );
        }
    }
}
