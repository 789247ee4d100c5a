//! One proxy: where it is, what it speaks and who we are to it.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use crate::error::Error;
use crate::origin::{Host, Origin};

/// What is spoken with a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProxyScheme {
    /// HTTP/1.1 over TCP.
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// SOCKS5; names are resolved by the proxy.
    Socks5,
}

impl ProxyScheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Socks5 => 1080,
        }
    }
}

/// A proxy. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Proxy {
    server: Arc<Server>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Server {
    scheme: ProxyScheme,
    host: Host,
    port: u16,
    credentials: Option<(String, String)>,
}

impl fmt::Display for Proxy {
    /// Without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = &*self.server;
        let scheme = server.scheme.as_str();
        write!(f, "{scheme}://{}:{}", server.host, server.port)
    }
}

impl fmt::Debug for Proxy {
    /// Without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Proxy {
    /// Parses `http://`, `https://`, `socks5://` or `socks5h://` with host, port (80, 443, 1080 by
    /// default) and, percent-encoded, user and password. Without a scheme it is `http://`, as in
    /// the environment's variables. With SOCKS5 the proxy resolves names, whichever way it is
    /// written.
    ///
    /// # Errors
    /// Invalid: another scheme, no host, a path or query.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let scheme = match &*scheme.to_ascii_lowercase() {
            "http" => ProxyScheme::Http,
            "https" => ProxyScheme::Https,
            "socks5" | "socks5h" => ProxyScheme::Socks5,
            // What stands there may be a mistyped password.
            _ => {
                return Err(Error::invalid(
                    "proxy URL has a scheme other than http, https, socks5 and socks5h",
                ));
            }
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user_info, address) = match rest.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, rest),
        };
        if address.contains(['/', '?', '#']) {
            return Err(Error::invalid("proxy URL has a path, query or fragment"));
        }
        let origin = Origin::parse(&format!("http://{address}/"))
            .map_err(|e| Error::invalid("proxy URL").with_source(e))?;
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let credentials = user_info.map(|text| {
            let (user, password) = text.split_once(':').unwrap_or((text, ""));
            (decoded(user), decoded(password))
        });
        let proxy = Self {
            server: Arc::new(Server {
                scheme,
                host: origin.canonical_host().clone(),
                port: if has_port {
                    origin.port()
                } else {
                    scheme.default_port()
                },
                credentials: None,
            }),
        };
        match credentials {
            Some((user, password)) => proxy.basic_auth(user, password),
            None => Ok(proxy),
        }
    }

    /// Who we are to the proxy: Basic credentials (RFC 7617), or those of RFC 1929 with SOCKS5.
    ///
    /// # Errors
    /// Invalid: a colon in the user's name (HTTP), an empty or too long part (SOCKS5 takes 1 to 255
    /// bytes), a control character.
    pub fn basic_auth(
        mut self,
        user: impl Into<String>,
        password: impl Into<String>,
    ) -> Result<Self, Error> {
        let (user, password) = (user.into(), password.into());
        if user.chars().chain(password.chars()).any(char::is_control) {
            return Err(Error::invalid("proxy credentials hold a control character"));
        }
        match self.server.scheme {
            ProxyScheme::Socks5 => {
                let fits = |text: &str| (1..=255).contains(&text.len());
                if !fits(&user) || !fits(&password) {
                    return Err(Error::invalid(
                        "SOCKS5 takes 1 to 255 bytes of user name and of password",
                    ));
                }
            }
            ProxyScheme::Http | ProxyScheme::Https if user.contains(':') => {
                return Err(Error::invalid("proxy user name holds a colon"));
            }
            ProxyScheme::Http | ProxyScheme::Https => {}
        }
        Arc::make_mut(&mut self.server).credentials = Some((user, password));
        Ok(self)
    }

    /// What is spoken with it.
    pub fn scheme(&self) -> ProxyScheme {
        self.server.scheme
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    pub(crate) fn host(&self) -> &Host {
        &self.server.host
    }

    pub(crate) fn credentials(&self) -> Option<(&str, &str)> {
        let (user, password) = self.server.credentials.as_ref()?;
        Some((user, password))
    }

    /// The value of `proxy-authorization`.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        let (user, password) = self.credentials()?;
        let token = STANDARD.encode(format!("{user}:{password}"));
        let mut value = HeaderValue::try_from(format!("Basic {token}"))
            .expect("base64 has no character that a header refuses");
        value.set_sensitive(true);
        Some(value)
    }
}

impl std::str::FromStr for Proxy {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        Self::parse(url)
    }
}

/// Percent-decoded; what is no valid escape stays as it is.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn proxy_urls_have_scheme_host_port_and_credentials() {
        for (url, shown, credentials) in [
            ("http://p.test:3128", "http://p.test:3128", None),
            ("p.test:8080", "http://p.test:8080", None),
            ("HTTPS://P.test/", "https://p.test:443", None),
            ("http://p.test:80", "http://p.test:80", None),
            ("socks5h://[::1]", "socks5://[::1]:1080", None),
            (
                "socks5://u:p%40%3Aw@p.test",
                "socks5://p.test:1080",
                Some(("u", "p@:w")),
            ),
            ("http://u@p.test", "http://p.test:80", Some(("u", ""))),
        ] {
            let proxy = Proxy::parse(url).unwrap();
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(format!("{proxy:?}"), shown);
            assert_eq!(proxy.credentials(), credentials, "{url}");
        }
        let proxy = Proxy::parse("http://Aladdin:open%20sesame@p.test").unwrap();
        // RFC 7617 §2.
        let expected = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
        assert_eq!(proxy.authorization().unwrap(), expected);
        assert!(!format!("{:?}", proxy.authorization()).contains("QWxh"));
    }

    #[test]
    fn proxy_urls_that_cannot_be_meant_are_refused_without_showing_the_password() {
        for url in [
            "ftp://u:sk-secret@p.test",
            "http://u:sk-secret@p.test/path",
            "http://u:sk-secret@",
            "http://u:sk-secret@p.test:99999",
            "socks5://u:@p.test",
            "http://u:sk-secret%0d%0a@p.test",
            "",
        ] {
            let error = Proxy::parse(url).expect_err(url);
            assert!(error.is_invalid());
            assert!(
                !format!("{error} {error:?}").contains("sk-secret"),
                "{error:?}"
            );
        }
    }
}
