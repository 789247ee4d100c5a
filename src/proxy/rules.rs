//! Which origin goes through which proxy. Pure; the environment is read once, when asked to.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::Error;
use crate::origin::{Host, Origin, Scheme};

use super::server::Proxy;

/// Which proxy, if any, each origin goes through. Default: none.
///
/// A [`Proxy`] turned into rules is used for every origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProxyRules {
    http: Option<Proxy>,
    https: Option<Proxy>,
    direct: Vec<Direct>,
}

/// What is reached without a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Direct {
    Everything,
    /// Addresses written in the URL.
    Net(IpNet, Option<u16>),
    /// The name itself and everything below it.
    Domain(String, Option<u16>),
}

impl From<Proxy> for ProxyRules {
    fn from(proxy: Proxy) -> Self {
        Self {
            http: Some(proxy.clone()),
            https: Some(proxy),
            direct: Vec::new(),
        }
    }
}

impl ProxyRules {
    /// No proxy at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets the proxy of `http` origins.
    pub fn http(mut self, proxy: impl Into<Option<Proxy>>) -> Self {
        self.http = proxy.into();
        self
    }

    /// Sets the proxy of `https` origins.
    pub fn https(mut self, proxy: impl Into<Option<Proxy>>) -> Self {
        self.https = proxy.into();
        self
    }

    /// Adds origins that are reached without a proxy, in the form of `NO_PROXY`: names with commas
    /// between them. `example.com`, `.example.com` and `*.example.com` all mean the name and
    /// everything below it; addresses and networks (`10.0.0.0/8`) concern hosts written as
    /// addresses, because names are the proxy's to resolve; `:port` behind either narrows it; `*` is
    /// everything.
    ///
    /// # Errors
    /// Invalid: an entry that is none of these.
    pub fn no_proxy(mut self, list: &str) -> Result<Self, Error> {
        for entry in list.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            self.direct.push(Direct::parse(entry)?);
        }
        Ok(self)
    }

    /// The environment's rules: `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, or their
    /// names in capitals. `HTTP_PROXY` in capitals is not read in a CGI program, where a client's
    /// `Proxy` header sets it (CVE-2016-5385).
    ///
    /// # Errors
    /// Invalid: a variable that does not parse; the error names it.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let is_cgi = variable("REQUEST_METHOD").is_some();
        let read = |name: &str| {
            let capitals = name.to_ascii_uppercase();
            let capitals = (!(is_cgi && name == "http_proxy")).then_some(capitals);
            let set = |name: String| {
                let value = variable(&name)?;
                (!value.trim().is_empty()).then_some((name, value))
            };
            set(name.to_owned()).or_else(|| set(capitals?))
        };
        let proxy = |(name, value): (String, String)| {
            Proxy::parse(value.trim())
                .map_err(|e| Error::invalid(format!("variable {name}")).with_source(e))
        };
        let all = read("all_proxy");
        let rules = Self {
            http: read("http_proxy")
                .or_else(|| all.clone())
                .map(proxy)
                .transpose()?,
            https: read("https_proxy").or(all).map(proxy).transpose()?,
            direct: Vec::new(),
        };
        match read("no_proxy") {
            None => Ok(rules),
            Some((name, list)) => rules
                .no_proxy(&list)
                .map_err(|e| Error::invalid(format!("variable {name}")).with_source(e)),
        }
    }

    /// The proxy of an origin.
    pub(crate) fn proxy_for(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = match origin.scheme() {
            Scheme::Http => self.http.as_ref(),
            Scheme::Https => self.https.as_ref(),
        };
        proxy.filter(|_| !self.direct.iter().any(|direct| direct.covers(origin)))
    }

    pub(crate) fn is_none(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }
}

impl Direct {
    fn parse(entry: &str) -> Result<Self, Error> {
        if entry == "*" {
            return Ok(Self::Everything);
        }
        let invalid =
            || Error::invalid("no_proxy has an entry that is no name, address or network");
        if let Ok(net) = entry.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc(), None));
        }
        if let Ok(ip) = entry.parse::<IpAddr>() {
            return Ok(Self::Net(ip.into(), None));
        }
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if let Some((net, port)) = entry.rsplit_once(':')
            && is_port(port)
            && let Ok(net) = net.replace(['[', ']'], "").parse::<IpNet>()
        {
            let port = port.parse().map_err(|_| invalid())?;
            return Ok(Self::Net(net.trunc(), Some(port)));
        }
        // The rest of a URL would be read as something else than it says.
        if entry.contains(['/', '?', '#']) {
            return Err(invalid());
        }
        let name = entry.strip_prefix('*').unwrap_or(entry);
        let name = name.strip_prefix('.').unwrap_or(name);
        let origin = Origin::parse(&format!("http://{name}/")).map_err(|_| invalid())?;
        let has_port = (name.rsplit_once(':')).is_some_and(|(_, port)| is_port(port));
        let port = has_port.then(|| origin.port());
        Ok(match origin.canonical_host() {
            Host::Ip(ip) => Self::Net((*ip).into(), port),
            Host::Name(name) => Self::Domain(name.to_string(), port),
        })
    }

    fn covers(&self, origin: &Origin) -> bool {
        let at = |port: &Option<u16>| port.is_none_or(|port| port == origin.port());
        match (self, origin.canonical_host()) {
            (Self::Everything, _) => true,
            (Self::Net(net, port), Host::Ip(ip)) => at(port) && net.contains(ip),
            (Self::Domain(domain, port), Host::Name(name)) => {
                let below = name.strip_suffix(domain.as_str());
                at(port) && below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and origin, which is below.
    use super::*;

    fn via(rules: &ProxyRules, url: &str) -> Option<String> {
        let origin = Origin::parse(url).unwrap();
        rules.proxy_for(&origin).map(ToString::to_string)
    }

    #[test]
    fn no_proxy_takes_networks_with_a_port_and_nothing_that_it_would_read_otherwise() {
        let rules = |entry: &str| {
            let proxy = ProxyRules::from(Proxy::parse("http://p.test").unwrap());
            proxy.no_proxy(entry)
        };
        for (entry, direct, not) in [
            ("10.0.0.0/8:8080", "http://10.1.2.3:8080", "http://10.1.2.3"),
            ("fd00::/8:81", "http://[fd12::1]:81", "http://[fd12::1]"),
            (
                "[fd00::]/8:81",
                "http://[fd12::1]:81",
                "http://[fe80::1]:81",
            ),
        ] {
            let rules = rules(entry).unwrap();
            assert_eq!(via(&rules, direct), None, "{entry}");
            assert!(via(&rules, not).is_some(), "{entry}");
        }
        for wrong in [
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/8:99999",
            "example.com/x",
            "http://internal.corp",
            "example.com?x",
        ] {
            assert!(rules(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_proxy_names_domains_addresses_networks_and_ports() {
        let rules = ProxyRules::from(Proxy::parse("http://p.test").unwrap())
            .no_proxy("example.com, .dots.test,*.stars.test ,10.0.0.0/8,::1,[fd00::1]:8443,ports.test:81,")
            .unwrap();
        for direct in [
            "https://example.com",
            "https://a.example.com",
            "http://dots.test",
            "http://a.b.dots.test",
            "http://stars.test",
            "http://10.200.0.1:99",
            "http://[::1]",
            "https://[fd00::1]:8443",
            "http://ports.test:81",
            "http://EXAMPLE.com.",
        ] {
            assert_eq!(via(&rules, direct), None, "{direct}");
        }
        for proxied in [
            "https://notexample.com",
            "https://example.com.evil.test",
            "http://11.0.0.1",
            "https://[fd00::1]",
            "http://ports.test",
        ] {
            assert!(via(&rules, proxied).is_some(), "{proxied}");
        }
        let none = rules.no_proxy("*").unwrap();
        assert_eq!(via(&none, "https://notexample.com"), None);
        assert!(ProxyRules::none().no_proxy("a b").is_err());
    }

    #[test]
    fn environment_prefers_small_letters_and_names_the_variable_that_is_wrong() {
        let env = |pairs: &'static [(&str, &str)]| {
            ProxyRules::from_variables(|name| {
                let found = pairs.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let rules = env(&[
            ("HTTPS_PROXY", "http://big:1"),
            ("https_proxy", "http://small:1"),
            ("ALL_PROXY", "socks5://all:1"),
            ("NO_PROXY", "localhost"),
        ])
        .unwrap();
        assert_eq!(via(&rules, "https://a.test").unwrap(), "http://small:1");
        assert_eq!(via(&rules, "http://a.test").unwrap(), "socks5://all:1");
        assert_eq!(via(&rules, "http://localhost"), None);
        let cgi = env(&[("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "http://evil")]).unwrap();
        assert_eq!(via(&cgi, "http://a.test"), None);
        assert!(env(&[("https_proxy", "")]).unwrap().is_none());
        let error = env(&[("ALL_PROXY", "gopher://x")]).unwrap_err();
        assert!(error.to_string().contains("ALL_PROXY"), "{error}");
    }
}
