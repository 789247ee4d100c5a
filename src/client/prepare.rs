//! A request made ready for the wire: headers of the client merged, framing ours. Pure.

use std::fmt;
use std::sync::{Arc, LazyLock};

use http::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Uri, Version};

use crate::error::Error;
use crate::http1::Repeated;
use crate::origin::Origin;

use super::base_url::with_query;
use super::options::RequestOptions;

const USER_AGENT_VALUE: HeaderValue =
    HeaderValue::from_static(concat!("firstbyte/", env!("CARGO_PKG_VERSION")));
const ANY: HeaderValue = HeaderValue::from_static("*/*");
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The header fields that requests have unless they say otherwise: a client's, and those that every request
/// should have. Looked through once, when they are made.
pub(crate) struct DefaultHeaders {
    repeated: Repeated,
    speaks_of_framing: bool,
    names_key: bool,
    /// A key that travels in the query.
    query: Option<(String, String)>,
}

impl fmt::Debug for DefaultHeaders {
    /// Values that are marked as sensitive hide themselves; a key in the query cannot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DefaultHeaders")
            .field("fields", &self.repeated)
            .finish_non_exhaustive()
    }
}

impl DefaultHeaders {
    pub(crate) fn new(mut fields: HeaderMap, query: Option<(String, String)>) -> Arc<Self> {
        fields.entry(USER_AGENT).or_insert(USER_AGENT_VALUE);
        fields.entry(ACCEPT).or_insert(ANY);
        Arc::new(Self {
            speaks_of_framing: fields.keys().any(speaks_of_framing),
            names_key: fields.contains_key(IDEMPOTENCY_KEY),
            repeated: Repeated::new(fields),
            query,
        })
    }

    /// Those of a request without a client.
    pub(crate) fn none() -> Arc<Self> {
        static NONE: LazyLock<Arc<DefaultHeaders>> =
            LazyLock::new(|| DefaultHeaders::new(HeaderMap::new(), None));
        NONE.clone()
    }
}

/// A request as its caller makes it. Boxed by whoever begins it, since it goes through several hands.
pub(crate) struct Draft {
    pub(crate) method: Method,
    pub(crate) target: PathAndQuery,
    /// What is shown of the target, if not all of it.
    pub(crate) shown_target: Option<PathAndQuery>,
    /// The request's own.
    pub(crate) headers: HeaderMap,
    pub(crate) options: RequestOptions,
    /// It opens a WebSocket: an Upgrade over HTTP/1.1 (RFC 6455), an extended CONNECT over HTTP/2 (RFC 8441).
    pub(crate) is_websocket: bool,
}

impl Draft {
    pub(crate) fn new(method: Method, target: PathAndQuery) -> Self {
        Self {
            method,
            target,
            shown_target: None,
            headers: HeaderMap::new(),
            options: RequestOptions::default(),
            is_websocket: false,
        }
    }
}

impl fmt::Debug for Draft {
    /// Without its target, which may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft")
            .field("method", &self.method)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// A request that may go onto the wire, of either protocol.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) draft: Box<Draft>,
    /// What of them is not among the request's own goes with it.
    defaults: Option<Arc<DefaultHeaders>>,
    /// The body's length, if it is known.
    pub(crate) length: Option<u64>,
    /// It may be processed twice.
    pub(crate) idempotent: bool,
    /// It may travel as early data, which others may replay (RFC 8470 §5.1).
    pub(crate) early: bool,
}

impl Prepared {
    /// Checks the request.
    ///
    /// # Errors
    /// Invalid: a framing header that lies or that is ours to set, a target with other characters than the
    /// RFCs know, CONNECT without what it needs.
    pub(crate) fn new(
        mut draft: Box<Draft>,
        defaults: Arc<DefaultHeaders>,
        origin: &Origin,
        body_length: Option<u64>,
    ) -> Result<Self, Error> {
        if let Some(key) = &defaults.query {
            let target = with_query(&draft.target, std::slice::from_ref(key))?;
            draft.shown_target = Some(std::mem::replace(&mut draft.target, target));
        }
        let protocol = draft.options.extended_connect.as_deref();
        check_connect(&draft.method, protocol, body_length)?;
        // RFC 9112 §3.2 and RFC 3986 know visible ASCII alone; `http` lets more through.
        let target = draft.target.as_str();
        if !target.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid(
                "URL path or query holds a character that is not visible ASCII; percent-encode it",
            ));
        }
        mark_all_sensitive(&mut draft.headers);
        let idempotent = draft.options.idempotent;
        // Early data can be replayed by others, as often as they like: no session begins with it.
        let early = !draft.is_websocket && idempotent.unwrap_or_else(|| draft.method.is_safe());
        let idempotent = idempotent.unwrap_or_else(|| {
            draft.method.is_idempotent()
                || defaults.names_key
                || draft.headers.contains_key(IDEMPOTENCY_KEY)
        });
        // The usual request has none of them.
        let is_usual = !defaults.speaks_of_framing && !draft.headers.keys().any(speaks_of_framing);
        let (defaults, length) = if is_usual {
            (Some(defaults), body_length)
        } else {
            draft.headers = merged(&draft.headers, &defaults.repeated.fields);
            let length = check_framing(&mut draft.headers, origin, body_length)?;
            (None, length)
        };
        Ok(Self {
            draft,
            defaults,
            length,
            idempotent,
            early,
        })
    }

    /// The header fields that come beside [the request's own](Draft::headers), unless those have the name.
    pub(crate) fn defaults(&self) -> Option<&Repeated> {
        self.defaults.as_ref().map(|defaults| &defaults.repeated)
    }

    /// What it wants to speak over a stream of HTTP/2, if not HTTP (RFC 8441).
    pub(crate) fn protocol(&self) -> Option<Arc<str>> {
        static WEBSOCKET: LazyLock<Arc<str>> = LazyLock::new(|| "websocket".into());
        if self.draft.is_websocket {
            return Some(WEBSOCKET.clone());
        }
        self.draft.options.extended_connect.clone()
    }

    /// The request as HTTP/2 sends it.
    pub(crate) fn http2(&self, origin: &Origin, authority: &Authority) -> http::Request<()> {
        let draft = &*self.draft;
        let mut request = http::Request::new(());
        *request.method_mut() = if draft.is_websocket {
            Method::CONNECT
        } else {
            draft.method.clone()
        };
        *request.version_mut() = Version::HTTP_2;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if origin.is_https() {
            http::uri::Scheme::HTTPS
        } else {
            http::uri::Scheme::HTTP
        });
        parts.authority = Some(authority.clone());
        parts.path_and_query = Some(draft.target.clone());
        *request.uri_mut() = Uri::from_parts(parts).expect("its parts were checked");
        let mut headers = match self.defaults() {
            Some(defaults) => merged(&draft.headers, &defaults.fields),
            None => {
                let mut headers = draft.headers.clone();
                // The others that belong to a connection were refused.
                headers.remove(CONNECTION);
                headers.remove(UPGRADE);
                if draft.is_websocket {
                    headers.remove(SEC_WEBSOCKET_KEY);
                }
                headers
            }
        };
        if let Some(n) = self
            .length
            .filter(|n| *n > 0 || draft.method == Method::POST)
        {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(n));
        }
        *request.headers_mut() = headers;
        request
    }
}

/// What the request says replaces what is said by default.
fn merged(own: &HeaderMap, defaults: &HeaderMap) -> HeaderMap {
    let mut headers = defaults.clone();
    for name in own.keys() {
        headers.remove(name);
    }
    for (name, value) in own {
        headers.append(name, value.clone());
    }
    headers
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
    const STANDARD: [HeaderName; 8] = [
        CONNECTION,
        CONTENT_LENGTH,
        EXPECT,
        HOST,
        TE,
        TRAILER,
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

    fn draft(method: Method, path: &'static str) -> Box<Draft> {
        Box::new(Draft::new(method, PathAndQuery::from_static(path)))
    }

    fn with(
        defaults: &[(&'static str, &str)],
        draft: Box<Draft>,
        length: Option<u64>,
    ) -> Result<Prepared, Error> {
        let defaults = DefaultHeaders::new(map(defaults), None);
        let origin = Origin::parse("https://h.test").unwrap();
        Prepared::new(draft, defaults, &origin, length)
    }

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn prepare(pairs: &[(&'static str, &str)], length: Option<u64>) -> Result<Prepared, Error> {
        let mut draft = draft(Method::POST, "/a");
        draft.headers = map(pairs);
        with(&[], draft, length)
    }

    fn http2(prepared: &Prepared) -> http::Request<()> {
        let origin = Origin::parse("https://h.test").unwrap();
        prepared.http2(&origin, &"h.test".parse().unwrap())
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
        let headers = &good.draft.headers;
        assert!(!headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(HOST));
        assert_eq!(good.length, Some(3));
        assert_eq!(
            prepare(&[("content-length", "9")], None).unwrap().length,
            Some(9)
        );
    }

    #[test]
    fn connect_is_extended_or_nothing() {
        let prepare = |method: Method, protocol: Option<&str>, length| {
            let mut draft = draft(method, "/chat");
            draft.options.extended_connect = protocol.map(Into::into);
            with(&[], draft, length)
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
        let protocol = &good.draft.options.extended_connect;
        assert_eq!(protocol.as_deref(), Some("websocket"));
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
        let request = http2(&prepared);
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "content-length", "te", "user-agent"]);
        assert_eq!(request.uri(), "https://h.test/a");
    }

    #[test]
    fn request_headers_replace_defaults_and_defaults_keep_all_their_values() {
        let defaults = [("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("accept", "d")];
        // The second has a field that makes everything be looked at.
        for more in [&[][..], &[("te", "trailers")]] {
            let mut draft = draft(Method::GET, "/");
            draft.headers = map(&[("x-b", "mine"), ("x-c", "1"), ("x-c", "2")]);
            draft.headers.extend(map(more));
            let prepared = with(&defaults, draft, Some(0)).unwrap();
            assert!(prepared.idempotent);
            let sent = http2(&prepared);
            let all = |name| sent.headers().get_all(name).iter().collect::<Vec<_>>();
            assert_eq!(all("x-a"), ["1", "2"]);
            assert_eq!(all("x-b"), ["mine"]);
            assert_eq!(all("x-c"), ["1", "2"]);
            assert_eq!(all("accept"), ["d"]);
            assert_eq!(all("user-agent").len(), 1);
            assert_eq!(sent.headers().len(), 7 + more.len());
        }
    }

    #[test]
    fn defaults_that_speak_of_framing_are_looked_at_like_any_other() {
        let post = |defaults: &[_]| with(defaults, draft(Method::POST, "/"), Some(3));
        assert!(post(&[("transfer-encoding", "chunked")]).is_err());
        assert!(post(&[("host", "other")]).is_err());
        let good = post(&[("connection", "close"), ("host", "h.test")]).unwrap();
        assert!(good.defaults().is_none() && !good.draft.headers.contains_key(HOST));
        assert_eq!(good.draft.headers[CONNECTION], "close");
        assert!(!http2(&good).headers().contains_key(CONNECTION));
    }

    #[test]
    fn key_of_idempotency_counts_wherever_it_stands() {
        let post = |defaults: &[_]| with(defaults, draft(Method::POST, "/"), Some(3));
        assert!(!post(&[]).unwrap().idempotent);
        assert!(post(&[("idempotency-key", "1")]).unwrap().idempotent);
        assert!(
            prepare(&[("idempotency-key", "1")], Some(3))
                .unwrap()
                .idempotent
        );
    }
}
