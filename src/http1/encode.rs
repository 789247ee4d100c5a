//! Request heads and chunks, written. Pure.
//!
//! Names and values come as `http` types, which cannot hold CR, LF or NUL.

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::PROXY_AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// What goes into the head of a request beside its framing.
#[derive(Debug)]
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a Method,
    /// Path and query: origin-form (RFC 9112 §3.2.1), unless a proxy forwards.
    pub(crate) target: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// Those that go beside them, but for names that they have. None of them speaks of the connection or of
    /// framing.
    pub(crate) defaults: Option<&'a Repeated>,
}

impl RequestHead<'_> {
    /// The defaults, if they go as they are.
    fn repeated(&self) -> Option<&Repeated> {
        let defaults = self.defaults?;
        let own = self.headers;
        let is_whole = !own.keys().any(|name| defaults.fields.contains_key(name));
        is_whole.then_some(defaults)
    }

    fn fields(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let defaults = self
            .defaults
            .into_iter()
            .flat_map(|repeated| &repeated.fields);
        let others = defaults.filter(|(name, _)| !self.headers.contains_key(*name));
        self.headers.iter().chain(others)
    }
}

/// Header fields that go with request after request: their lines are written once.
pub(crate) struct Repeated {
    pub(crate) fields: HeaderMap,
    lines: Bytes,
}

impl Repeated {
    pub(crate) fn new(fields: HeaderMap) -> Self {
        let mut lines = BytesMut::new();
        for (name, value) in &fields {
            field(&mut lines, name, value);
        }
        let lines = lines.freeze();
        Self { fields, lines }
    }
}

impl fmt::Debug for Repeated {
    /// Values that are marked as sensitive hide themselves; the lines cannot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields.fmt(f)
    }
}

/// The other end is a proxy that is asked for each request (RFC 9112 §3.2.2): absolute-form, and
/// the credentials that are its own.
#[derive(Debug)]
pub(crate) struct Forward {
    /// The origin, as `http://host:port`.
    pub(crate) prefix: Arc<str>,
    /// The value of `proxy-authorization`.
    pub(crate) authorization: Option<HeaderValue>,
}

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadFraming {
    Empty,
    Length(u64),
    Chunked,
}

impl UploadFraming {
    /// The framing for a body of this length, if it is known. Trailers that are announced, and may come, need the
    /// chunked coding (RFC 9112 §7.1.2).
    pub(crate) fn new(method: &Method, length: Option<u64>, has_trailers: bool) -> Self {
        match length.filter(|_| !has_trailers) {
            // RFC 9110 §8.6: methods that anticipate content say so even when there is none.
            Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
                Self::Empty
            }
            Some(n) => Self::Length(n),
            None => Self::Chunked,
        }
    }
}

/// Writes the head.
pub(crate) fn head(
    head: &RequestHead<'_>,
    framing: UploadFraming,
    forward: Option<&Forward>,
) -> BytesMut {
    // A guess that is seldom too small: who sends long fields has grown once.
    let defaults = head.defaults.map_or(0, |defaults| defaults.lines.len());
    let fields = 64 * head.headers.len() + defaults;
    let prefix = forward.map_or("", |forward| &forward.prefix);
    let authorization = forward.and_then(|forward| forward.authorization.as_ref());
    let for_proxy = prefix.len() + authorization.map_or(0, |value| value.len() + 24);
    let fixed = 96 + head.target.len() + head.authority.len() + for_proxy;
    let mut out = BytesMut::with_capacity(fixed + fields);
    // RFC 9112 §3.2.4: a proxy is told of the server as a whole by an absolute-form without a path.
    let target = match (forward, head.target) {
        (Some(_), "*") => "",
        (_, target) => target,
    };
    for part in [
        head.method.as_str(),
        " ",
        prefix,
        target,
        " HTTP/1.1\r\nhost: ",
        head.authority,
    ] {
        out.put_slice(part.as_bytes());
    }
    out.put_slice(b"\r\n");
    if let Some(value) = authorization {
        field(&mut out, &PROXY_AUTHORIZATION, value);
    }
    if authorization.is_none()
        && let Some(repeated) = head.repeated()
    {
        for (name, value) in head.headers {
            field(&mut out, name, value);
        }
        out.put_slice(&repeated.lines);
    } else {
        for (name, value) in head.fields() {
            // The proxy's credentials are those that it was configured with.
            if authorization.is_none() || *name != PROXY_AUTHORIZATION {
                field(&mut out, name, value);
            }
        }
    }
    match framing {
        UploadFraming::Empty => {}
        UploadFraming::Length(n) => number(&mut out, format_args!("content-length: {n}\r\n")),
        UploadFraming::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.put_slice(b"\r\n");
    out
}

/// The line before a chunk's data; CRLF follows the data.
pub(crate) fn chunk_size(len: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    number(&mut out, format_args!("{len:x}\r\n"));
    out.freeze()
}

/// The end of a chunked body.
pub(crate) fn last_chunk(trailers: Option<&HeaderMap>) -> Bytes {
    let mut out = BytesMut::with_capacity(5);
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        field(&mut out, name, value);
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

fn field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}

fn number(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    out.writer()
        .write_fmt(text)
        .expect("a growing buffer takes every write");
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn head_has_host_first_and_the_framing_of_its_body() {
        let mut headers = HeaderMap::new();
        headers.insert("accept", "*/*".parse().unwrap());
        let mut defaults = HeaderMap::new();
        defaults.insert("accept", "not this".parse().unwrap());
        defaults.insert("x-key", "1".parse().unwrap());
        let defaults = Repeated::new(defaults);
        let request = RequestHead {
            method: &Method::POST,
            target: "/a?b",
            authority: "h.test:81",
            headers: &headers,
            defaults: Some(&defaults),
        };
        assert_eq!(
            head(
                &request,
                UploadFraming::new(&Method::POST, Some(3), false),
                None
            ),
            "POST /a?b HTTP/1.1\r\nhost: h.test:81\r\naccept: */*\r\nx-key: 1\r\n\
             content-length: 3\r\n\r\n"
        );
        let mut other = HeaderMap::new();
        other.insert("x-own", "2".parse().unwrap());
        let others = RequestHead {
            headers: &other,
            ..request
        };
        assert_eq!(
            head(&others, UploadFraming::Empty, None),
            "POST /a?b HTTP/1.1\r\nhost: h.test:81\r\nx-own: 2\r\naccept: not this\r\nx-key: 1\r\n\r\n"
        );
        assert_eq!(
            UploadFraming::new(&Method::GET, Some(0), false),
            UploadFraming::Empty
        );
        assert_eq!(
            UploadFraming::new(&Method::POST, Some(0), false),
            UploadFraming::Length(0)
        );
        assert_eq!(
            UploadFraming::new(&Method::GET, None, false),
            UploadFraming::Chunked
        );
        assert_eq!(
            UploadFraming::new(&Method::POST, Some(3), true),
            UploadFraming::Chunked
        );
        let forward = Forward {
            prefix: "http://h.test:81".into(),
            authorization: Some("Basic ours".parse().unwrap()),
        };
        let mut headers = HeaderMap::new();
        headers.insert(PROXY_AUTHORIZATION, "Basic theirs".parse().unwrap());
        let request = RequestHead {
            headers: &headers,
            defaults: None,
            ..request
        };
        assert_eq!(
            head(&request, UploadFraming::Empty, Some(&forward)),
            "POST http://h.test:81/a?b HTTP/1.1\r\nhost: h.test:81\r\nproxy-authorization: Basic ours\r\n\r\n"
        );
        let whole = RequestHead {
            target: "*",
            method: &Method::OPTIONS,
            ..request
        };
        let whole = super::head(&whole, UploadFraming::Empty, Some(&forward));
        assert!(whole.starts_with(b"OPTIONS http://h.test:81 HTTP/1.1\r\n"));
        assert_eq!(chunk_size(255), "ff\r\n");
        assert_eq!(
            last_chunk(Some(&headers)),
            "0\r\nproxy-authorization: Basic theirs\r\n\r\n"
        );
    }
}
