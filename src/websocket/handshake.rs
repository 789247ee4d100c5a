//! The opening handshake: what is asked, and whether the answer fits (RFC 6455 §4.1, RFC 8441 §5). Pure, but for
//! the key's randomness.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderName, Version};

use crate::error::{Error, ErrorKind, escape_peer_text};

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// One opening handshake.
pub(crate) struct Handshake {
    key: String,
    subprotocols: Vec<String>,
}

impl Handshake {
    /// Asks for these subprotocols, the preferred one first.
    ///
    /// # Errors
    /// Invalid: a subprotocol that is no token, or a system that has no randomness to give.
    pub(crate) fn new(subprotocols: Vec<String>) -> Result<Self, Error> {
        subprotocols
            .iter()
            .try_for_each(|name| check_subprotocol(name))?;
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|e| {
            Error::invalid("the system gives no random bytes for the WebSocket key").with_source(e)
        })?;
        Ok(Self {
            key: BASE64.encode(nonce),
            subprotocols,
        })
    }

    /// Adds the fields of the request. Those that HTTP/2 has no use for are left out where it is spoken.
    ///
    /// # Errors
    /// Invalid: the caller has set one of them.
    pub(crate) fn write(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        for name in [
            UPGRADE,
            SEC_WEBSOCKET_KEY,
            SEC_WEBSOCKET_VERSION,
            SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_EXTENSIONS,
        ] {
            if headers.contains_key(&name) {
                return Err(Error::invalid(format!(
                    "header {name} is the WebSocket handshake's to set"
                )));
            }
        }
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let key = HeaderValue::from_str(&self.key).expect("base64 is visible ASCII");
        headers.insert(SEC_WEBSOCKET_KEY, key);
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        if !self.subprotocols.is_empty() {
            let all = HeaderValue::from_str(&self.subprotocols.join(", "));
            let mut all = all.expect("they are tokens");
            // Browsers can send nothing else, so that some services take a key there.
            all.set_sensitive(true);
            headers.insert(SEC_WEBSOCKET_PROTOCOL, all);
        }
        Ok(())
    }

    /// Whether the answer, 101 over HTTP/1.1 and 2xx over HTTP/2, is one to this request; and the subprotocol that the
    /// server has chosen.
    ///
    /// # Errors
    /// Protocol.
    pub(crate) fn check(
        &self,
        version: Version,
        headers: &HeaderMap,
    ) -> Result<Option<String>, Error> {
        let wrong = |why: String| {
            let message = format!("the WebSocket handshake failed: {why}");
            Err(Error::new(ErrorKind::Protocol, message))
        };
        if version != Version::HTTP_2 {
            if !is_one(headers, &UPGRADE, |v| v.eq_ignore_ascii_case(b"websocket")) {
                return wrong("the answer's upgrade is not `websocket`".into());
            }
            let mut tokens = headers
                .get_all(CONNECTION)
                .iter()
                .flat_map(|v| v.as_bytes().split(|b| *b == b','));
            if !tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade")) {
                return wrong("the answer has no `connection: upgrade`".into());
            }
            let accept = self.accept();
            if !is_one(headers, &SEC_WEBSOCKET_ACCEPT, |v| v == accept.as_bytes()) {
                return wrong("sec-websocket-accept does not fit the key".into());
            }
        }
        if let Some(extensions) = headers.get(SEC_WEBSOCKET_EXTENSIONS) {
            let name = escape_peer_text(extensions.as_bytes());
            return wrong(format!(
                "the server uses `{name}`, and no extension was asked for"
            ));
        }
        let mut chosen = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let (Some(first), more) = (chosen.next(), chosen.next()) else {
            return Ok(None);
        };
        let asked = self.subprotocols.iter();
        let mut fits = asked.filter(|asked| asked.as_bytes() == first.as_bytes());
        match fits.next() {
            Some(chosen) if more.is_none() => Ok(Some(chosen.clone())),
            _ => wrong("the server chose a subprotocol that was not asked for".into()),
        }
    }

    fn accept(&self) -> String {
        let mut sha1 = sha1_smol::Sha1::new();
        sha1.update(self.key.as_bytes());
        sha1.update(GUID);
        BASE64.encode(sha1.digest().bytes())
    }
}

/// Whether a field is there once, and fits.
fn is_one(headers: &HeaderMap, name: &HeaderName, fits: impl Fn(&[u8]) -> bool) -> bool {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => fits(value.as_bytes().trim_ascii()),
        _ => false,
    }
}

/// Whether a subprotocol may be asked for (RFC 6455 §4.1: a token).
///
/// # Errors
/// Invalid; without the name, which may hold a key.
fn check_subprotocol(name: &str) -> Result<(), Error> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let why = match name.chars().find(|c| !is_token(*c)) {
        None if !name.is_empty() => return Ok(()),
        None => "is empty".to_owned(),
        Some(c) => format!("has the character {c:?}"),
    };
    Err(Error::invalid(format!(
        "a subprotocol is no token (RFC 9110 §5.6.2): it {why}"
    )))
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    /// The key and its answer in RFC 6455 §1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn handshake(subprotocols: &[&str]) -> Handshake {
        Handshake {
            key: KEY.into(),
            subprotocols: subprotocols.iter().map(ToString::to_string).collect(),
        }
    }

    fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const GOOD: [(&str, &str); 3] = [
        ("upgrade", "WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-accept", ACCEPT),
    ];

    #[test]
    fn answer_of_the_rfc_fits_and_others_do_not() {
        let check = |headers: &HeaderMap| handshake(&[]).check(Version::HTTP_11, headers);
        assert_eq!(check(&fields(&GOOD)).unwrap(), None);
        for left_out in GOOD {
            let mut rest = GOOD.to_vec();
            rest.retain(|field| *field != left_out);
            assert!(check(&fields(&rest)).is_err(), "{left_out:?}");
        }
        for wrong in [
            ("upgrade", "h2c"),
            ("connection", "close"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo"),
            ("sec-websocket-accept", KEY),
        ] {
            let mut headers = fields(&GOOD);
            headers.insert(wrong.0, HeaderValue::from_static(wrong.1));
            assert!(check(&headers).is_err(), "{wrong:?}");
        }
        for more in [
            ("sec-websocket-accept", ACCEPT),
            ("sec-websocket-extensions", "permessage-deflate"),
            ("sec-websocket-protocol", "chat"),
        ] {
            let mut headers = fields(&GOOD);
            headers.append(more.0, HeaderValue::from_static(more.1));
            let error = check(&headers).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{more:?}");
        }
    }

    #[test]
    fn http2_has_no_key_and_no_accept() {
        let check = |fields_: &[_]| handshake(&["a", "b"]).check(Version::HTTP_2, &fields(fields_));
        assert_eq!(check(&[]).unwrap(), None);
        let chosen = check(&[("sec-websocket-protocol", "b")]).unwrap();
        assert_eq!(chosen.as_deref(), Some("b"));
        for wrong in [
            &[("sec-websocket-protocol", "B")][..],
            &[("sec-websocket-protocol", "a, b")],
            &[
                ("sec-websocket-protocol", "a"),
                ("sec-websocket-protocol", "b"),
            ],
            &[("sec-websocket-extensions", "x")],
        ] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn request_says_what_the_rfc_wants_and_refuses_what_is_not_the_callers() {
        let mut headers = HeaderMap::new();
        handshake(&["a", "b"]).write(&mut headers).unwrap();
        for (name, value) in [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "a, b"),
        ] {
            assert_eq!(headers[name], value);
        }
        assert!(headers["sec-websocket-protocol"].is_sensitive());
        assert!(handshake(&[]).write(&mut headers).unwrap_err().is_invalid());
        let keys: Vec<_> = (0..2)
            .map(|_| Handshake::new(Vec::new()).unwrap().key)
            .collect();
        assert_ne!(keys[0], keys[1]);
        assert_eq!(BASE64.decode(&keys[0]).unwrap().len(), 16);
    }

    #[test]
    fn subprotocols_are_tokens() {
        assert!(check_subprotocol("v1.json+x").is_ok());
        for wrong in ["", "a b", "a,b", "ä", "a\r\nb"] {
            assert!(
                check_subprotocol(wrong).unwrap_err().is_invalid(),
                "{wrong:?}"
            );
        }
    }
}
