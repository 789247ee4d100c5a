//! What a server says about how long it keeps the connection: `Keep-Alive: timeout=5, max=100`
//! (RFC 2068 §19.7.1.1; never standardised, widely sent). Pure.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// What was announced. A value that is not a number announces nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeepAlive {
    /// For how long an idle connection is kept.
    pub(crate) timeout: Option<Duration>,
    /// How many more requests it takes.
    pub(crate) max: Option<u64>,
}

impl KeepAlive {
    pub(super) fn parse(headers: &HeaderMap) -> Self {
        let mut said = Self::default();
        for value in headers.get_all(KEEP_ALIVE) {
            for parameter in value.as_bytes().split(|b| *b == b',') {
                let mut parts = parameter.splitn(2, |b| *b == b'=');
                let name = parts.next().unwrap_or_default().trim_ascii();
                let Some(n) = parts.next().and_then(number) else {
                    continue;
                };
                // Said twice, the smaller one is the safer one.
                if name.eq_ignore_ascii_case(b"timeout") {
                    let timeout = Duration::from_secs(n);
                    said.timeout = Some(said.timeout.map_or(timeout, |t| t.min(timeout)));
                } else if name.eq_ignore_ascii_case(b"max") {
                    said.max = Some(said.max.map_or(n, |m| m.min(n)));
                }
            }
        }
        said
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    let text = text.strip_prefix(b"\"").unwrap_or(text);
    let text = text.strip_suffix(b"\"").unwrap_or(text);
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // More than fits is as good as for ever.
    Some(text.iter().fold(0u64, |n, digit| {
        n.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    }))
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn parameters_are_read_whatever_their_order_and_nonsense_is_ignored() {
        let parse = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(KEEP_ALIVE, value.parse().unwrap());
            }
            let said = KeepAlive::parse(&headers);
            (said.timeout.map(|t| t.as_secs()), said.max)
        };
        assert_eq!(parse(&["timeout=5, max=100"]), (Some(5), Some(100)));
        assert_eq!(parse(&["Max = 7 ,TIMEOUT=\"3\""]), (Some(3), Some(7)));
        assert_eq!(parse(&["timeout=9", "timeout=4"]), (Some(4), None));
        assert_eq!(parse(&[]), (None, None));
        for nonsense in [
            "timeout",
            "timeout=",
            "timeout=-1",
            "timeout=5s",
            "max=+1",
            "=,==",
        ] {
            assert_eq!(parse(&[nonsense]), (None, None), "{nonsense}");
        }
        let endless = parse(&["timeout=99999999999999999999999"]);
        assert_eq!(endless, (Some(u64::MAX), None));
    }
}
