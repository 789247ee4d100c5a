//! Where the body of a response ends, and whether the connection may be used again. Pure.
//!
//! Whatever could make two readers disagree about the end (RFC 9112 §6.3) is refused or costs the
//! connection.

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode};

use crate::http_head::Head;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    Empty,
    Length(u64),
    Chunked,
    /// The body ends with the connection.
    UntilClose,
    /// The connection is no longer HTTP/1.1: 101, or 2xx to CONNECT.
    Tunnel,
}

/// The decision about one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Framing {
    pub(crate) body: BodyFraming,
    pub(crate) keep_alive: bool,
}

/// Decides. The error says what the peer did wrong; the connection must then be closed.
pub(crate) fn decide(method: &Method, head: &Head) -> Result<Framing, &'static str> {
    let headers = &head.headers;
    let keep_alive = keeps_alive(head);
    let framing = |body, keep_alive| Ok(Framing { body, keep_alive });

    // RFC 9112 §6.3 rule 1, 2.
    if head.status == StatusCode::SWITCHING_PROTOCOLS
        || (*method == Method::CONNECT && head.status.is_success())
    {
        return framing(BodyFraming::Tunnel, false);
    }
    if *method == Method::HEAD
        || head.status.is_informational()
        || head.status == StatusCode::NO_CONTENT
        || head.status == StatusCode::NOT_MODIFIED
    {
        return framing(BodyFraming::Empty, keep_alive);
    }
    // Rule 3: Transfer-Encoding wins over Content-Length, and who sends both is not trusted with
    // a second response.
    if head.speaks_of.transfer_encoding {
        let suspicious = head.is_http10 || headers.contains_key(CONTENT_LENGTH);
        return match chunked_is_last(headers) {
            // Rule 4: chunked last and only once.
            Coding::ChunkedLast => framing(BodyFraming::Chunked, keep_alive && !suspicious),
            Coding::NotChunked => framing(BodyFraming::UntilClose, false),
            Coding::Invalid => Err("transfer-encoding is not valid"),
        };
    }
    match content_length(headers)? {
        Some(0) => framing(BodyFraming::Empty, keep_alive),
        Some(n) => framing(BodyFraming::Length(n), keep_alive),
        // Rule 8.
        None => framing(BodyFraming::UntilClose, false),
    }
}

fn keeps_alive(head: &Head) -> bool {
    if !head.speaks_of.connection {
        return !head.is_http10;
    }
    let mut close = false;
    let mut keep = false;
    for token in tokens(&head.headers, &CONNECTION) {
        close |= token.eq_ignore_ascii_case(b"close");
        keep |= token.eq_ignore_ascii_case(b"keep-alive");
    }
    // RFC 9112 §9.3: close wins; 1.1 persists by default, 1.0 only when it says so.
    !close && (!head.is_http10 || keep)
}

#[derive(Debug, PartialEq, Eq)]
enum Coding {
    ChunkedLast,
    NotChunked,
    Invalid,
}

fn chunked_is_last(headers: &HeaderMap) -> Coding {
    let mut chunked = 0;
    let mut last_is_chunked = false;
    for token in tokens(headers, &TRANSFER_ENCODING) {
        let name = token
            .split(|b| *b == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii();
        if name.is_empty() || http::HeaderName::from_bytes(name).is_err() {
            return Coding::Invalid;
        }
        last_is_chunked = token.eq_ignore_ascii_case(b"chunked");
        chunked += u32::from(last_is_chunked);
    }
    match (chunked, last_is_chunked) {
        (1, true) => Coding::ChunkedLast,
        (0, _) => Coding::NotChunked,
        _ => Coding::Invalid,
    }
}

/// A list of equal lengths collapses to one; anything else is unrecoverable (rule 5).
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    // The usual case: one number.
    match (all.next(), all.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) if (1..=18).contains(&value.len()) => {
            let digits = value.as_bytes();
            if digits.iter().all(u8::is_ascii_digit) {
                let add = |n, digit: &u8| n * 10 + u64::from(digit - b'0');
                return Ok(Some(digits.iter().fold(0, add)));
            }
        }
        _ => {}
    }
    let mut length = None;
    for token in tokens(headers, &CONTENT_LENGTH) {
        if token.is_empty() || !token.iter().all(u8::is_ascii_digit) {
            return Err("content-length is not a number");
        }
        let value = token
            .iter()
            .try_fold(0u64, |n, digit| {
                n.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
            })
            .ok_or("content-length is too large")?;
        if length.is_some_and(|known| known != value) {
            return Err("content-length is given twice and differs");
        }
        length = Some(value);
    }
    Ok(length)
}

/// The comma-separated tokens of all fields of a name.
fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &http::HeaderName,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    // layering: uses http_head, which is below.
    use super::*;
    use crate::http_head::{HeadLimits, HeadParser};

    fn of(method: Method, text: &str) -> Result<Framing, &'static str> {
        let mut buffer = bytes::BytesMut::from(text.replace('\n', "\r\n").as_str());
        let head = HeadParser::default()
            .parse(&mut buffer, HeadLimits::DEFAULT)
            .unwrap()
            .unwrap();
        decide(&method, &head)
    }

    fn get(text: &str) -> Result<(BodyFraming, bool), &'static str> {
        of(Method::GET, text).map(|f| (f.body, f.keep_alive))
    }

    #[test]
    fn content_length_in_all_its_forms() {
        let cl = |value: &str| get(&format!("HTTP/1.1 200 OK\ncontent-length: {value}\n\n"));
        assert_eq!(cl("5"), Ok((BodyFraming::Length(5), true)));
        assert_eq!(cl("5, 5"), Ok((BodyFraming::Length(5), true)));
        assert_eq!(cl("0"), Ok((BodyFraming::Empty, true)));
        for bad in [
            "+5",
            "-5",
            "0x5",
            "5, 6",
            "",
            "5,",
            "18446744073709551616",
            "5 5",
        ] {
            assert!(cl(bad).is_err(), "{bad:?}");
        }
        let twice = "HTTP/1.1 200 OK\ncontent-length: 5\ncontent-length: 6\n\n";
        assert!(get(twice).is_err());
    }

    #[test]
    fn transfer_encoding_wins_and_costs_the_connection() {
        let te = |value: &str| get(&format!("HTTP/1.1 200 OK\ntransfer-encoding: {value}\n\n"));
        assert_eq!(te("chunked"), Ok((BodyFraming::Chunked, true)));
        assert_eq!(te("gzip, Chunked"), Ok((BodyFraming::Chunked, true)));
        assert_eq!(te("gzip"), Ok((BodyFraming::UntilClose, false)));
        assert_eq!(te("chunkedchunked"), Ok((BodyFraming::UntilClose, false)));
        assert!(te("chunked, gzip").is_err());
        assert!(te("chunked, chunked").is_err());
        let both = "HTTP/1.1 200 OK\ntransfer-encoding: chunked\ncontent-length: 5\n\n";
        assert_eq!(get(both), Ok((BodyFraming::Chunked, false)));
        let old = "HTTP/1.0 200 OK\ntransfer-encoding: chunked\nconnection: keep-alive\n\n";
        assert_eq!(get(old), Ok((BodyFraming::Chunked, false)));
    }

    #[test]
    fn responses_without_a_body_and_tunnels() {
        let empty = Ok((BodyFraming::Empty, true));
        let head = of(Method::HEAD, "HTTP/1.1 200 OK\ncontent-length: 5\n\n");
        assert_eq!(head.map(|f| (f.body, f.keep_alive)), empty);
        assert_eq!(get("HTTP/1.1 204 No\n\n"), empty);
        assert_eq!(get("HTTP/1.1 304 No\ncontent-length: 9\n\n"), empty);
        assert_eq!(get("HTTP/1.1 101 Up\n\n"), Ok((BodyFraming::Tunnel, false)));
        let connect = of(Method::CONNECT, "HTTP/1.1 200 OK\ncontent-length: 5\n\n");
        assert_eq!(connect.unwrap().body, BodyFraming::Tunnel);
    }

    #[test]
    fn persistence_follows_version_and_connection() {
        let conn = |v: &str, c: &str| {
            get(&format!(
                "HTTP/{v} 200 OK\nconnection: {c}\ncontent-length: 1\n\n"
            ))
            .unwrap()
            .1
        };
        assert!(conn("1.1", "keep-alive"));
        assert!(!conn("1.1", "Close"));
        assert!(!conn("1.1", "close, keep-alive"));
        assert!(conn("1.0", "keep-alive"));
        assert!(!conn("1.0", "x"));
        assert_eq!(
            get("HTTP/1.1 200 OK\n\n"),
            Ok((BodyFraming::UntilClose, false))
        );
    }
}
