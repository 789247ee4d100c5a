//! Scheme, host and port: parsed once at the edge into a type that cannot be wrong.
//!
//! Two ways in: a `&str` goes through the `url` crate (WHATWG: IDNA, percent-encoding), an
//! `http::Uri` is checked again here, because `http` accepts ports beyond 65535, user info and
//! hosts such as `[zz]` or `h..x`. Both give the same canonical host: lower case, A-labels, no
//! final dot, so that DNS, SNI, `Host` and the pool key agree.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::error::{Error, escape_peer_text};

/// The scheme of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        if text.eq_ignore_ascii_case("https") {
            Ok(Self::Https)
        } else if text.eq_ignore_ascii_case("http") {
            Ok(Self::Http)
        } else {
            Err(Error::invalid(format!(
                "URL scheme `{}` is not supported; use http or https",
                escape_peer_text(text.as_bytes())
            )))
        }
    }
}

/// A host in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Name(Arc<str>),
    Ip(IpAddr),
}

impl fmt::Display for Host {
    /// As it stands in a URL: IPv6 addresses in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// Scheme, host and port of a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: Scheme,
    host: Host,
    port: u16,
}

impl Origin {
    /// Parses the origin of a URL; path and query are ignored.
    ///
    /// # Errors
    /// Invalid: no host, a scheme other than http and https, user info, a port of 0 or beyond
    /// 65535, an IPv6 zone, a legacy numeric address such as `127.1`, an empty label.
    pub fn parse(url: &str) -> Result<Self, Error> {
        Ok(parse_url(url)?.0)
    }

    /// The origin of an absolute `http::Uri`.
    pub(crate) fn from_uri(uri: &http::Uri) -> Result<Self, Error> {
        let scheme = Scheme::parse(
            uri.scheme_str()
                .ok_or_else(|| Error::invalid("URL has no scheme; an absolute URL is needed"))?,
        )?;
        let authority = uri
            .authority()
            .ok_or_else(|| Error::invalid("URL has no host"))?
            .as_str();
        let (host, port) = split_authority(authority)?;
        let host = parse_host(host)?;
        let port = match port {
            Some(text) => parse_port(text)?,
            None => scheme.default_port(),
        };
        Ok(Self { scheme, host, port })
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The port, the scheme's default filled in.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host as it stands in a URL: IPv6 addresses in brackets.
    pub fn host(&self) -> String {
        self.host.to_string()
    }

    pub(crate) fn canonical_host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn is_https(&self) -> bool {
        self.scheme == Scheme::Https
    }

    /// Host and port, the port always: what CONNECT asks for (RFC 9112 §3.2.3).
    pub(crate) fn authority_with_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The value of `Host` and `:authority`: the port only if it is not the scheme's default.
    pub(crate) fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host()
        } else {
            format!("{}:{}", self.host(), self.port)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Origin {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        Self::parse(url)
    }
}

impl TryFrom<&str> for Origin {
    type Error = Error;

    fn try_from(url: &str) -> Result<Self, Error> {
        Self::parse(url)
    }
}

/// Parses a URL string into its origin and its path with query (no fragment; fragments are never
/// sent).
pub(crate) fn parse_url(text: &str) -> Result<(Origin, String), Error> {
    // The URL standard silently strips tabs and newlines; we would rather say so.
    if let Some(bad) = text.bytes().find(|b| b.is_ascii_control() || *b == b' ') {
        return Err(Error::invalid(format!(
            "URL holds the character \\x{bad:02x}; percent-encode it"
        )));
    }
    // And it reads a backslash as a slash, where others read it as a part of the user's name.
    if text.contains('\\') {
        return Err(Error::invalid(
            "URL holds a backslash; write a slash, or %5C where a backslash is meant",
        ));
    }
    let url =
        url::Url::parse(text).map_err(|e| Error::invalid("URL does not parse").with_source(e))?;
    let scheme = Scheme::parse(url.scheme())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(
            "URL holds user info; send credentials in a header instead",
        ));
    }
    // What stands between `://` and the path, to see what the URL standard would have repaired.
    let written = text
        .split_once("://")
        .map(|(_, rest)| rest.split(['/', '?', '#', '\\']).next().unwrap_or(rest))
        .filter(|written| !written.is_empty())
        .ok_or_else(|| Error::invalid("URL has no host after `://`"))?;
    if written.contains('@') {
        return Err(Error::invalid(
            "URL holds user info; send credentials in a header instead",
        ));
    }
    let host = match url.host() {
        None => return Err(Error::invalid("URL has no host")),
        Some(url::Host::Domain(name)) => parse_host(name)?,
        Some(url::Host::Ipv4(ip)) => {
            let (host, _) = split_authority(written)?;
            if host != ip.to_string() {
                return Err(legacy_numeric(host));
            }
            Host::Ip(IpAddr::V4(ip))
        }
        Some(url::Host::Ipv6(ip)) => Host::Ip(IpAddr::V6(ip)),
    };
    let port = url.port().unwrap_or_else(|| scheme.default_port());
    if port == 0 {
        return Err(parse_port("0").expect_err("port 0 is never valid"));
    }
    let mut path = url.path().to_owned();
    if let Some(query) = url.query() {
        path.push('?');
        path.push_str(query);
    }
    Ok((Origin { scheme, host, port }, path))
}

fn split_authority(authority: &str) -> Result<(&str, Option<&str>), Error> {
    if authority.contains('@') {
        return Err(Error::invalid(
            "URL holds user info; send credentials in a header instead",
        ));
    }
    if let Some(rest) = authority.strip_prefix('[') {
        let (_, after) = rest
            .split_once(']')
            .ok_or_else(|| Error::invalid("URL host has an unclosed `[`"))?;
        let host = &authority[..authority.len() - after.len()];
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(Error::invalid("URL host has text after `]`")),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, Error> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse::<u16>().ok())
        .flatten()
        .filter(|port| *port != 0)
        .ok_or_else(|| {
            // Anything but digits may be a part of a password.
            if text.bytes().all(|b| b.is_ascii_digit()) {
                Error::invalid(format!("URL port `{text}` is not between 1 and 65535"))
            } else {
                Error::invalid("URL port is no number")
            }
        })
}

fn parse_host(text: &str) -> Result<Host, Error> {
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(ip) => Ok(Host::Ip(IpAddr::V6(ip))),
            Err(_) => Err(bad_host(
                text,
                "is not an IPv6 address (zones are not supported)",
            )),
        };
    }
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(IpAddr::V4(ip)));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() {
        return Err(Error::invalid("URL has no host"));
    }
    if name.len() > 253 {
        return Err(bad_host(text, "is longer than 253 bytes"));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(bad_host(text, "has an empty label"));
        }
        if label.len() > 63 {
            return Err(bad_host(text, "has a label longer than 63 bytes"));
        }
        // RFC 952/1123 letters, digits and hyphens; underscores occur in practice.
        if !label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return Err(bad_host(text, "has a character that no host name has"));
        }
    }
    // WHATWG URL §3.5: a host whose last label is a number is an IPv4 address; ours are written
    // in full, so `127.1`, `0x7f.1` and `2130706433` are refused (faults: SSRF filters differ).
    let last = name.rsplit('.').next().unwrap_or(&name);
    let hex = last.strip_prefix("0x");
    if last.bytes().all(|b| b.is_ascii_digit())
        || hex.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(legacy_numeric(text));
    }
    Ok(Host::Name(name.into()))
}

fn legacy_numeric(host: &str) -> Error {
    bad_host(
        host,
        "is a shortened numeric address; write all four parts in decimal",
    )
}

fn bad_host(host: &str, why: &str) -> Error {
    Error::invalid(format!(
        "URL host `{}` {why}",
        escape_peer_text(host.as_bytes())
    ))
}

/// The property that the fuzz target asserts: whatever parses prints as a URL that parses to the
/// same origin, by both ways in.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_round_trip(text: &str) {
    let by_str = Origin::parse(text);
    if let Ok(origin) = &by_str {
        let printed = origin.to_string();
        assert_eq!(
            Origin::parse(&printed).as_ref().ok(),
            Some(origin),
            "{text:?}"
        );
        let uri: http::Uri = printed.parse().expect("an origin prints as a URI");
        assert_eq!(
            Origin::from_uri(&uri).as_ref().ok(),
            Some(origin),
            "{text:?}"
        );
        assert!(origin.port() != 0);
        assert!(
            !printed
                .bytes()
                .any(|b| b.is_ascii_control() || b == b'@' || b == b' ')
        );
    }
    if let Ok(uri) = text.parse::<http::Uri>()
        && let Ok(origin) = Origin::from_uri(&uri)
    {
        let again = Origin::parse(&origin.to_string());
        // `xn--` labels may be invalid punycode, which only the URL standard notices.
        if !origin.host().contains("xn--") {
            assert_eq!(again.ok(), Some(origin), "{text:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses error, which is below.
    use super::*;

    fn both(text: &str) -> Result<Origin, Error> {
        let by_str = Origin::parse(text);
        if let Ok(uri) = text.parse::<http::Uri>() {
            let by_uri = Origin::from_uri(&uri);
            assert_eq!(
                by_uri.is_ok(),
                by_str.is_ok(),
                "{text}: {by_uri:?} {by_str:?}"
            );
        }
        check_round_trip(text);
        by_str
    }

    #[test]
    fn equal_origins_have_one_form() {
        for text in [
            "https://api.test",
            "https://API.test:443/path?q#f",
            "HTTPS://api.test./",
        ] {
            assert_eq!(
                both(text).unwrap().to_string(),
                "https://api.test",
                "{text}"
            );
        }
        assert_eq!(
            Origin::parse("https://bücher.example").unwrap().host(),
            "xn--bcher-kva.example"
        );
        assert_eq!(
            both("http://[::1]:8080/").unwrap().to_string(),
            "http://[::1]:8080"
        );
        assert_eq!(both("http://127.0.0.1/").unwrap().authority(), "127.0.0.1");
    }

    #[test]
    fn what_other_parsers_accept_and_we_refuse() {
        for text in [
            "https://h:65536/",
            "https://h:0/",
            "https://user@h/",
            "https://user:pw@h/",
            "https://@h/",
            "https://[zz]/",
            "https://[fe80::1%25eth0]/",
            "https://h..x/",
            "https://127.1/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://1.2.3.4.5/",
            "ftp://h/",
            "https:///path",
            "h/path",
            "https://a b/",
            "https://h\t/",
            "https://h/\r\nX: y",
        ] {
            let error = Origin::parse(text).expect_err(text);
            assert!(error.is_invalid(), "{text}");
            if let Ok(uri) = text.parse::<http::Uri>() {
                assert!(Origin::from_uri(&uri).is_err(), "{text} as Uri");
            }
        }
    }
}
