//! Base URLs and the paths appended to them. Pure.
//!
//! Appending is what httpx does and never RFC 3986 joining: `/v1` and `/chat` give `/v1/chat`, so
//! that a leading slash does not lose the base path.

use bytes::Bytes;
use http::uri::PathAndQuery;

use crate::error::Error;
use crate::origin::{Origin, parse_url};

/// A base URL, parsed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BaseUrl {
    pub(crate) origin: Origin,
    /// Ends in a slash.
    path: String,
    query: Option<String>,
}

impl BaseUrl {
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let (origin, target) = parse_url(url)?;
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target.as_str(), None),
        };
        let mut path = path.to_owned();
        if !path.ends_with('/') {
            path.push('/');
        }
        Ok(Self {
            origin,
            path,
            query,
        })
    }

    /// The target of a request: `path` appended to the base path, queries merged in the order base, path.
    ///
    /// # Errors
    /// Invalid: an absolute URL of another origin, a `..` segment, a control character.
    pub(crate) fn target(&self, path: &str) -> Result<PathAndQuery, Error> {
        if let Some(target) = self.append_plain(path) {
            return Ok(target);
        }
        let target = if has_scheme(path) {
            let (origin, target) = parse_url(path)?;
            if origin != self.origin {
                return Err(Error::invalid(format!(
                    "URL of {origin} given to a client of {}; use a client of that origin",
                    self.origin
                )));
            }
            target
        } else {
            self.append(path)?
        };
        let (path, own_query) = match target.split_once('?') {
            Some((path, query)) => (path, query),
            None => (target.as_str(), ""),
        };
        merge(path, [self.query.as_deref().unwrap_or_default(), own_query])
    }

    /// The same for what the URL standard leaves as it is, which is nearly all: nothing to encode, no
    /// segment that climbs, no scheme.
    fn append_plain(&self, path: &str) -> Option<PathAndQuery> {
        let mut before = b'/';
        for byte in path.bytes() {
            let is_plain = byte.is_ascii_alphanumeric() || b"-_~!$&()*+,;=:@/.?".contains(&byte);
            if !is_plain || matches!((before, byte), (b'/', b'.') | (b':', b'/')) {
                return None;
            }
            before = byte;
        }
        if self.query.is_some() || before == b'?' {
            return None;
        }
        let path = path.trim_start_matches('/');
        let mut target = String::with_capacity(self.path.len() + path.len());
        target.push_str(&self.path);
        target.push_str(path);
        PathAndQuery::from_maybe_shared(Bytes::from(target)).ok()
    }

    fn append(&self, path: &str) -> Result<String, Error> {
        let only_path = path.split(['?', '#']).next().unwrap_or(path);
        let climbs = only_path.split(['/', '\\']).any(|segment| {
            let segment = segment.to_ascii_lowercase().replace("%2e", ".");
            segment == ".." || segment == "."
        });
        if climbs {
            return Err(Error::invalid("URL path holds a `.` or `..` segment"));
        }
        let text = format!(
            "{}{}{}",
            self.origin,
            self.path,
            path.trim_start_matches('/')
        );
        parse_url(&text).map(|(_, target)| target)
    }
}

/// The same target with more pairs in its query.
///
/// # Errors
/// Invalid: too long for a URL.
pub(crate) fn with_query(
    target: &PathAndQuery,
    pairs: &[(String, String)],
) -> Result<PathAndQuery, Error> {
    let added = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .finish();
    merge(target.path(), [target.query().unwrap_or_default(), &added])
}

fn merge(path: &str, queries: [&str; 2]) -> Result<PathAndQuery, Error> {
    let mut merged = path.to_owned();
    let mut separator = '?';
    for query in queries.into_iter().filter(|query| !query.is_empty()) {
        merged.push(separator);
        merged.push_str(query);
        separator = '&';
    }
    PathAndQuery::from_maybe_shared(merged.into_bytes())
        .map_err(|e| Error::invalid("URL path is not valid").with_source(e))
}

fn has_scheme(path: &str) -> bool {
    path.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    fn target(base: &str, path: &str) -> Result<String, Error> {
        let target = BaseUrl::parse(base).unwrap().target(path)?;
        Ok(target.to_string())
    }

    #[test]
    fn paths_are_appended_and_queries_merged() {
        for (base, path, expected) in [
            ("https://h", "/chat", "/chat"),
            ("https://h/v1", "/chat", "/v1/chat"),
            ("https://h/v1/", "chat", "/v1/chat"),
            ("https://h/v1", "", "/v1/"),
            (
                "https://h/v1?key=K",
                "/chat?alt=sse",
                "/v1/chat?key=K&alt=sse",
            ),
            ("https://h/v1", "https://h/other?x", "/other?x"),
            ("https://h", "/a b/ü?q=ä#frag", "/a%20b/%C3%BC?q=%C3%A4"),
            ("https://h", "//evil.test/x", "/evil.test/x"),
            (
                "https://h",
                "/models/gemini:generate",
                "/models/gemini:generate",
            ),
        ] {
            let got = target(base, &path.replace(' ', "%20")).unwrap();
            assert_eq!(got, expected, "{base} + {path}");
        }
        let base = BaseUrl::parse("https://h/v1?a=1").unwrap();
        let query = [("k&".to_owned(), "v w".to_owned())];
        for (path, expected) in [
            ("x", "/v1/x?a=1&k%26=v+w"),
            ("x?", "/v1/x?a=1&k%26=v+w"),
            ("x?b", "/v1/x?a=1&b&k%26=v+w"),
        ] {
            let target = base.target(path).unwrap();
            assert_eq!(with_query(&target, &query).unwrap(), expected);
        }
        let plain = BaseUrl::parse("https://h").unwrap().target("/x").unwrap();
        assert_eq!(with_query(&plain, &query).unwrap(), "/x?k%26=v+w");
    }

    proptest::proptest! {
        /// The short way gives what the long one gives, or declines.
        #[test]
        fn plain_paths_are_what_the_url_standard_makes_of_them(
            path in "[a-c./:?&=%@~'\\\\ é-]{0,12}",
            base in proptest::sample::select(vec!["https://h", "https://h/v1", "https://h/v1/?k"]),
        ) {
            let base = BaseUrl::parse(base).unwrap();
            if let Some(short) = base.append_plain(&path) {
                let long = base.append(&path).expect("it is plain");
                let long = long.strip_suffix('?').unwrap_or(&long);
                proptest::prop_assert_eq!(short.as_str(), long);
                proptest::prop_assert!(!has_scheme(&path));
            }
        }
    }

    #[test]
    fn other_origins_and_climbing_paths_are_refused() {
        for path in [
            "https://other/x",
            "http://h/x",
            "https://h:444/x",
            "../x",
            "/a/%2e%2e/x",
            "/a\r\nX: y",
            "/a\0",
            "ftp://h/",
        ] {
            assert!(
                target("https://h/v1", path).unwrap_err().is_invalid(),
                "{path}"
            );
        }
    }
}
