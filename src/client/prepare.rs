//! A request made ready for the wire: headers of the client merged, framing ours. Pure.

use std::sync::Arc;

use http::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Uri, Version};

use crate::error::Error;
use crate::origin::Origin;

use super::options::RequestOptions;

const USER_AGENT_VALUE: HeaderValue =
    HeaderValue::from_static(concat!("firstbyte/", env!("CARGO_PKG_VERSION")));
const ANY: HeaderValue = HeaderValue::from_static("*/*");

/// A request as both protocols need it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) method: Method,
    pub(crate) target: PathAndQuery,
    pub(crate) headers: HeaderMap,
    /// The exact length of the body, if known: its own, or the caller's `content-length`.
    pub(crate) length: Option<u64>,
    pub(crate) idempotent: bool,
    /// It may travel as early data, which can be replayed (RFC 8470 §4).
    pub(crate) early: bool,
    /// What a CONNECT wants to speak (RFC 8441).
    pub(crate) protocol: Option<Arc<str>>,
}

impl Prepared {
    /// # Errors
    /// Invalid: CONNECT without a protocol, a target that is not ASCII, headers that would lie about framing, host or
    /// connection.
    pub(crate) fn new(
        method: Method,
        target: PathAndQuery,
        mut headers: HeaderMap,
        defaults: Option<&HeaderMap>,
        origin: &Origin,
        body_length: Option<u64>,
        options: &RequestOptions,
    ) -> Result<Self, Error> {
        let protocol = options.extended_connect.clone();
        check_connect(&method, protocol.as_deref(), body_length)?;
        // RFC 9112 §3.2 and RFC 3986 know visible ASCII alone; `http` lets more through.
        if !target.as_str().bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid(
                "URL path or query holds a character that is not visible ASCII; percent-encode it",
            ));
        }
        // What the request says replaces what the client says by default.
        for name in defaults.into_iter().flat_map(HeaderMap::keys) {
            if !headers.contains_key(name) {
                for value in defaults.into_iter().flat_map(|d| d.get_all(name)) {
                    headers.append(name, value.clone());
                }
            }
        }
        let length = check_framing(&mut headers, origin, body_length)?;
        headers.entry(USER_AGENT).or_insert(USER_AGENT_VALUE);
        headers.entry(ACCEPT).or_insert(ANY);
        let idempotent = options.idempotent;
        let early = idempotent.unwrap_or_else(|| method.is_safe());
        let idempotent = idempotent
            .unwrap_or_else(|| method.is_idempotent() || headers.contains_key("idempotency-key"));
        Ok(Self {
            method,
            target,
            headers,
            length,
            idempotent,
            early,
            protocol,
        })
    }

    /// The same request for HTTP/2: pseudo-headers from the origin, nothing that belongs to a
    /// connection (RFC 9113 §8.2.2).
    pub(crate) fn http2(&self, origin: &Origin, authority: &Authority) -> http::Request<()> {
        let mut request = http::Request::new(());
        *request.method_mut() = self.method.clone();
        *request.version_mut() = Version::HTTP_2;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if origin.is_https() {
            http::uri::Scheme::HTTPS
        } else {
            http::uri::Scheme::HTTP
        });
        parts.authority = Some(authority.clone());
        parts.path_and_query = Some(self.target.clone());
        *request.uri_mut() = Uri::from_parts(parts).expect("its parts were checked");
        let mut headers = self.headers.clone();
        // The others that belong to a connection were refused.
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
        if let Some(n) = self
            .length
            .filter(|n| *n > 0 || self.method == Method::POST)
        {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(n));
        }
        *request.headers_mut() = headers;
        request
    }
}

/// Whether CONNECT is what it can be here: extended, and without a body of its own.
fn check_connect(
    method: &Method,
    protocol: Option<&str>,
    body_length: Option<u64>,
) -> Result<(), Error> {
    let Some(protocol) = protocol else {
        return if method == Method::CONNECT {
            Err(Error::invalid(
                "method CONNECT needs extended_connect (RFC 8441); proxies are set in the options",
            ))
        } else {
            Ok(())
        };
    };
    if method != Method::CONNECT {
        return Err(Error::invalid(format!(
            "extended_connect needs method CONNECT, not {method}"
        )));
    }
    // The registry of upgrade tokens (RFC 8441 §9.1, RFC 9110 §16.7), which are header names in form.
    if HeaderName::from_bytes(protocol.as_bytes()).is_err() {
        return Err(Error::invalid(
            "the protocol of extended_connect is no token (RFC 9110 §5.6.2)",
        ));
    }
    if body_length != Some(0) {
        return Err(Error::invalid(
            "an extended CONNECT has no body; write to what Response::upgrade returns",
        ));
    }
    Ok(())
}

/// Whether [`check_framing`] has something to say about it.
fn speaks_of_framing(name: &HeaderName) -> bool {
    const STANDARD: [HeaderName; 7] = [
        CONNECTION,
        CONTENT_LENGTH,
        EXPECT,
        HOST,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    STANDARD.contains(name) || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

/// Takes the caller's framing headers out, after a look at whether they are true.
fn check_framing(
    headers: &mut HeaderMap,
    origin: &Origin,
    body_length: Option<u64>,
) -> Result<Option<u64>, Error> {
    // The usual request has none of them.
    if !headers.keys().any(speaks_of_framing) {
        return Ok(body_length);
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(Error::invalid(
            "header transfer-encoding is the library's to set",
        ));
    }
    if headers.contains_key(EXPECT) {
        return Err(Error::invalid(
            "header expect is the library's to set; ask for it with expect_continue",
        ));
    }
    for name in ["keep-alive", "proxy-connection"] {
        if headers.contains_key(name) {
            return Err(Error::invalid(format!(
                "header {name} speaks of a connection, which is the pool's"
            )));
        }
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        return Err(Error::invalid(
            "header te may only be `trailers`: no other transfer coding is decoded",
        ));
    }
    let asks_upgrade = connection_tokens(headers).any(|t| t.eq_ignore_ascii_case(b"upgrade"));
    if asks_upgrade != headers.contains_key(UPGRADE) {
        return Err(Error::invalid(
            "header upgrade and `connection: upgrade` go together (RFC 9110 §7.8)",
        ));
    }
    if let Some(host) = headers.remove(HOST)
        && host.as_bytes() != origin.authority().as_bytes()
    {
        return Err(Error::invalid(
            "header host does not fit the URL; it is made from the URL",
        ));
    }
    let known = ["close", "keep-alive", "upgrade", "te"];
    let is_known = |token: &[u8]| {
        known
            .iter()
            .any(|known| token.eq_ignore_ascii_case(known.as_bytes()))
    };
    if !connection_tokens(headers).all(is_known) {
        return Err(Error::invalid(
            "header connection may name only close, keep-alive, upgrade and te",
        ));
    }
    let mut given = headers.get_all(CONTENT_LENGTH).iter();
    let (first, more) = (given.next(), given.next().is_some());
    let given = match first {
        None => None,
        Some(value) => {
            let length = value
                .to_str()
                .ok()
                .filter(|text| !more && text.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|text| text.parse::<u64>().ok());
            Some(length.ok_or_else(|| Error::invalid("header content-length is not one number"))?)
        }
    };
    headers.remove(CONTENT_LENGTH);
    match (given, body_length) {
        (Some(given), Some(length)) if given != length => Err(Error::invalid(format!(
            "header content-length is {given}, but the body has {length} bytes"
        ))),
        (given, length) => Ok(length.or(given)),
    }
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(CONNECTION)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
}

/// Header names whose values are never shown.
pub(crate) fn mark_sensitive(name: &HeaderName, value: &mut HeaderValue) {
    const SECRET: [&str; 6] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-api-key",
        "x-goog-api-key",
        "api-key",
    ];
    if SECRET.contains(&name.as_str()) {
        value.set_sensitive(true);
    }
}

/// Every secret of a map.
pub(crate) fn mark_all_sensitive(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        mark_sensitive(name, value);
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module, options beside it, and origin, which is below.
    use super::*;

    fn prepare(pairs: &[(&'static str, &str)], length: Option<u64>) -> Result<Prepared, Error> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        Prepared::new(
            Method::POST,
            PathAndQuery::from_static("/a"),
            headers,
            None,
            &Origin::parse("https://h.test").unwrap(),
            length,
            &RequestOptions::default(),
        )
    }

    #[test]
    fn framing_headers_that_lie_are_refused_and_true_ones_become_ours() {
        for bad in [
            &[("transfer-encoding", "chunked")][..],
            &[("host", "other")],
            &[("content-length", "4")],
            &[("content-length", "+3")],
            &[("content-length", "3"), ("content-length", "3")],
            &[("connection", "content-length")],
            &[("keep-alive", "timeout=5")],
            &[("proxy-connection", "keep-alive")],
            &[("te", "gzip")],
            &[("upgrade", "websocket")],
            &[("connection", "upgrade")],
            &[("expect", "100-continue")],
        ] {
            assert!(prepare(bad, Some(3)).unwrap_err().is_invalid(), "{bad:?}");
        }
        let good = prepare(&[("content-length", "3"), ("host", "h.test")], Some(3)).unwrap();
        assert!(!good.headers.contains_key(CONTENT_LENGTH) && !good.headers.contains_key(HOST));
        assert_eq!(good.length, Some(3));
        assert_eq!(
            prepare(&[("content-length", "9")], None).unwrap().length,
            Some(9)
        );
    }

    #[test]
    fn connect_is_extended_or_nothing() {
        let prepare = |method: Method, protocol: Option<&str>, length| {
            let options = RequestOptions {
                extended_connect: protocol.map(Into::into),
                ..RequestOptions::default()
            };
            Prepared::new(
                method,
                PathAndQuery::from_static("/chat"),
                HeaderMap::new(),
                None,
                &Origin::parse("https://h.test").unwrap(),
                length,
                &options,
            )
        };
        for (method, protocol, length) in [
            (Method::CONNECT, None, Some(0)),
            (Method::GET, Some("websocket"), Some(0)),
            (Method::CONNECT, Some("web socket"), Some(0)),
            (Method::CONNECT, Some(""), Some(0)),
            (Method::CONNECT, Some("websocket"), Some(3)),
            (Method::CONNECT, Some("websocket"), None),
        ] {
            let error = prepare(method.clone(), protocol, length).unwrap_err();
            assert!(error.is_invalid(), "{method} {protocol:?} {length:?}");
        }
        let good = prepare(Method::CONNECT, Some("websocket"), Some(0)).unwrap();
        assert_eq!(good.protocol.as_deref(), Some("websocket"));
        assert!(!good.idempotent && !good.early);
    }

    #[test]
    fn http2_request_has_no_connection_headers() {
        let pairs = [
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "x"),
            ("te", "trailers"),
        ];
        let prepared = prepare(&pairs, Some(3)).unwrap();
        let origin = Origin::parse("https://h.test").unwrap();
        let request = prepared.http2(&origin, &"h.test".parse().unwrap());
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "content-length", "te", "user-agent"]);
        assert_eq!(request.uri(), "https://h.test/a");
    }

    #[test]
    fn request_headers_replace_defaults_and_defaults_keep_all_their_values() {
        let mut defaults = HeaderMap::new();
        defaults.append("x-a", "1".parse().unwrap());
        defaults.append("x-a", "2".parse().unwrap());
        defaults.append("x-b", "3".parse().unwrap());
        let mut headers = HeaderMap::new();
        headers.append("x-b", "mine".parse().unwrap());
        let prepared = Prepared::new(
            Method::GET,
            PathAndQuery::from_static("/"),
            headers,
            Some(&defaults),
            &Origin::parse("https://h").unwrap(),
            Some(0),
            &RequestOptions::default(),
        )
        .unwrap();
        let all = |name| prepared.headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(all("x-a"), ["1", "2"]);
        assert_eq!(all("x-b"), ["mine"]);
        assert!(prepared.idempotent);
    }
}
