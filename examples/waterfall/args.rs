//! The command line, parsed once into a [`Command`] that makes sense. Values of `-H` are never
//! repeated in a message: they hold keys.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use firstbyte::Origin;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use lexopt::prelude::*;

use crate::provider::Site;

pub(crate) const HELP: &str = "\
Shows where the time of HTTP requests goes: a waterfall of their phases.

Usage:
  waterfall [--json]                 against a provider inside this process
  waterfall URL [options]            against a URL of yours

Options:
  -n N                  requests in all (default 5)
  -c CONCURRENCY        requests at the same time (default 1)
      --gap MS          pause between two requests that follow each other
      --new             a new connection each; TLS sessions are resumed
      --h1              HTTP/1.1 only
      --warm N          before all else, open what N at once need
  -X METHOD             default GET, with -d POST
  -d BODY               the body of each request
  -H 'NAME: VALUE'      a header; repeatable; values are never shown
      --timeout S       bound each request, to the end of its body
      --resolve HOST=ADDR   use this address for this host; repeatable
      --dns SERVER:PORT ask this name server, not those in resolv.conf
      --ca FILE         trust the certificates of this PEM file too
      --keylog FILE     append TLS secrets to this file, for Wireshark
      --early-data      send safe requests as early data (0-RTT) once there is a ticket
      --fast-open       ask for TCP Fast Open
      --no-pq           no post-quantum key share
      --json            one JSON object per line instead of pictures
  -h, --help            this text

Only the provider, until interrupted:
      --serve CA        write its CA certificate to this file, and say how to reach it
      --listen IP:PORT  its HTTPS server (default a free port of 127.0.0.1)
      --name-server IP:PORT  its name server (likewise)
      --answer IP       what the name leads to; repeatable
      --ttl S           for how long (default 60)
      --delay-v6 MS     hold AAAA answers back
      --half-rtt        answer early data with the first flight, over HTTP/1.1

JSON, in milliseconds, `null` for what did not happen. As each request ends:
  {\"type\":\"request\",\"url\",\"method\",\"status\",\"version\":\"h2|http/1.1\",
   \"connection\":ID,\"use\":\"new|joined|idle|multiplexed|prewarmed\",\"reused\",
   \"tls_resumed\",\"remote_addr\",\"attempts\",
   \"timing\":{\"retry_ms\",\"queue_ms\",\"queue_dial_ms\",\"queue_limit_ms\",
   \"queue_local_ms\",\"dns_ms\",\"tcp_ms\",\"proxy_ms\",\"tls_ms\",\"protocol_ms\",
   \"send_ms\",\"wait_ms\",\"receive_ms\",\"total_ms\"},
   \"network_overhead_ms\",\"body_bytes\",
   \"error\":null|{\"kind\",\"phase\",\"replay_safety\",\"message\"}}
then {\"type\":\"stats\"} with the fields of ConnectionPoolStats. queue_dial, _limit
and _local are parts of queue; the other phases and queue add up to total.

Width is taken from COLUMNS, at least 80. Colour on a terminal; NO_COLOR turns
it off, CLICOLOR_FORCE=1 on.
Exit code: 0; 1 when a request failed; 2 for arguments that make no sense.
";

/// What to do.
pub(crate) enum Command {
    Help,
    /// Against a provider inside the process.
    Demo {
        json: bool,
    },
    /// Against a URL.
    Live(Box<Live>),
    /// Only the provider, its CA certificate in a file: to try the options above over a network of
    /// one's own.
    Serve(Site),
}

/// A URL and what to do to it.
pub(crate) struct Live {
    pub(crate) url: String,
    pub(crate) origin: Origin,
    pub(crate) count: usize,
    pub(crate) concurrency: usize,
    pub(crate) gap: Duration,
    pub(crate) new_connections: bool,
    pub(crate) http1: bool,
    pub(crate) early_data: bool,
    pub(crate) fast_open: bool,
    pub(crate) no_pq: bool,
    pub(crate) warm: usize,
    pub(crate) method: Method,
    pub(crate) body: Option<Bytes>,
    pub(crate) headers: HeaderMap,
    pub(crate) timeout: Option<Duration>,
    pub(crate) resolve: Vec<(String, IpAddr)>,
    pub(crate) dns: Option<SocketAddr>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) keylog: Option<PathBuf>,
    pub(crate) json: bool,
}

/// As given, before anything is known to fit together.
#[derive(Default)]
struct Given {
    url: Option<String>,
    json: bool,
    serve: Option<PathBuf>,
    listen: Option<SocketAddr>,
    name_server: Option<SocketAddr>,
    answers: Vec<IpAddr>,
    ttl: Option<u32>,
    half_rtt: bool,
    delay_v6: Duration,
    /// The first option that only a URL gives a meaning to.
    needs_url: Option<&'static str>,
    count: Option<usize>,
    concurrency: Option<usize>,
    gap: Duration,
    new_connections: bool,
    http1: bool,
    early_data: bool,
    fast_open: bool,
    no_pq: bool,
    warm: usize,
    method: Option<Method>,
    body: Option<Bytes>,
    headers: HeaderMap,
    timeout: Option<Duration>,
    resolve: Vec<(String, IpAddr)>,
    dns: Option<SocketAddr>,
    ca: Option<PathBuf>,
    keylog: Option<PathBuf>,
}

/// Parses the command line.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Command, String> {
    let mut given = Given::default();
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        let name = match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("json") => {
                given.json = true;
                continue;
            }
            Long("serve") => {
                given.serve = Some(value(&mut parser, "--serve")?.into());
                continue;
            }
            Long("half-rtt") => {
                given.half_rtt = true;
                continue;
            }
            Long(option @ ("listen" | "name-server" | "answer" | "ttl" | "delay-v6")) => {
                let option = option.to_owned();
                given.site(&option, &mut parser)?;
                continue;
            }
            Value(url) if given.url.is_none() => {
                given.url = Some(text(url, "the URL")?);
                continue;
            }
            Value(_) => return Err("one URL at a time".into()),
            Long("new") => {
                given.new_connections = true;
                "--new"
            }
            Long("h1") => {
                given.http1 = true;
                "--h1"
            }
            Long("early-data") => {
                given.early_data = true;
                "--early-data"
            }
            Long("fast-open") => {
                given.fast_open = true;
                "--fast-open"
            }
            Long("no-pq") => {
                given.no_pq = true;
                "--no-pq"
            }
            Short(short) => given.short(short, &mut parser)?,
            Long(long) => {
                let long = long.to_owned();
                given.long(&long, &mut parser)?
            }
        };
        given.needs_url.get_or_insert(name);
    }
    given.finish()
}

impl Given {
    fn short(&mut self, name: char, parser: &mut lexopt::Parser) -> Result<&'static str, String> {
        match name {
            'n' => {
                self.count = Some(at_least_one(parser, "-n")?);
                Ok("-n")
            }
            'c' => {
                self.concurrency = Some(at_least_one(parser, "-c")?);
                Ok("-c")
            }
            'X' => {
                let method = string(parser, "-X")?;
                let parsed = Method::from_bytes(method.as_bytes());
                self.method = Some(parsed.map_err(|_| format!("-X: `{method}` is no method"))?);
                Ok("-X")
            }
            'd' => {
                self.body = Some(string(parser, "-d")?.into());
                Ok("-d")
            }
            'H' => {
                let (name, value) = header(&string(parser, "-H")?)?;
                self.headers.append(name, value);
                Ok("-H")
            }
            other => Err(format!("there is no option -{other}")),
        }
    }

    fn long(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<&'static str, String> {
        match name {
            "gap" => {
                self.gap = Duration::from_millis(number(parser, "--gap")?);
                Ok("--gap")
            }
            "warm" => {
                self.warm = at_least_one(parser, "--warm")?;
                Ok("--warm")
            }
            "timeout" => {
                let seconds: f64 = number(parser, "--timeout")?;
                let timeout = Duration::try_from_secs_f64(seconds).ok();
                let timeout = timeout.filter(|timeout| !timeout.is_zero());
                self.timeout = Some(timeout.ok_or("--timeout: needs a number of seconds above 0")?);
                Ok("--timeout")
            }
            "resolve" => {
                self.resolve.push(resolve(&string(parser, "--resolve")?)?);
                Ok("--resolve")
            }
            "dns" => {
                self.dns = Some(name_server(&string(parser, "--dns")?)?);
                Ok("--dns")
            }
            "ca" => {
                self.ca = Some(value(parser, "--ca")?.into());
                Ok("--ca")
            }
            "keylog" => {
                self.keylog = Some(value(parser, "--keylog")?.into());
                Ok("--keylog")
            }
            other => Err(format!("there is no option --{other}")),
        }
    }

    /// Options of `--serve`.
    fn site(&mut self, name: &str, parser: &mut lexopt::Parser) -> Result<(), String> {
        match name {
            "listen" => self.listen = Some(number(parser, "--listen")?),
            "name-server" => self.name_server = Some(number(parser, "--name-server")?),
            "answer" => self.answers.push(number(parser, "--answer")?),
            "ttl" => self.ttl = Some(number(parser, "--ttl")?),
            _ => self.delay_v6 = Duration::from_millis(number(parser, "--delay-v6")?),
        }
        Ok(())
    }

    fn finish(self) -> Result<Command, String> {
        if let Some(ca) = self.serve {
            return Ok(Command::Serve(Site {
                ca,
                listen: self.listen,
                name_server: self.name_server,
                answers: self.answers,
                ttl: self.ttl.unwrap_or(60),
                half_rtt: self.half_rtt,
                delay_v6: self.delay_v6,
            }));
        }
        let Some(url) = self.url else {
            return match self.needs_url {
                None => Ok(Command::Demo { json: self.json }),
                Some(option) => Err(format!("{option} needs a URL")),
            };
        };
        let origin = Origin::parse(&url).map_err(|e| format!("the URL cannot be used: {e}"))?;
        if self.new_connections && self.warm > 0 {
            return Err("--new and --warm exclude each other".into());
        }
        let method = match &self.body {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        Ok(Command::Live(Box::new(Live {
            url,
            origin,
            count: self.count.unwrap_or(5),
            concurrency: self.concurrency.unwrap_or(1),
            gap: self.gap,
            new_connections: self.new_connections,
            http1: self.http1,
            early_data: self.early_data,
            fast_open: self.fast_open,
            no_pq: self.no_pq,
            warm: self.warm,
            method: self.method.unwrap_or(method),
            body: self.body,
            headers: self.headers,
            timeout: self.timeout,
            resolve: self.resolve,
            dns: self.dns,
            ca: self.ca,
            keylog: self.keylog,
            json: self.json,
        })))
    }
}

fn value(parser: &mut lexopt::Parser, option: &str) -> Result<OsString, String> {
    parser
        .value()
        .map_err(|_| format!("{option} needs a value"))
}

fn text(value: OsString, what: &str) -> Result<String, String> {
    value
        .into_string()
        .map_err(|_| format!("{what} is no UTF-8"))
}

fn string(parser: &mut lexopt::Parser, option: &str) -> Result<String, String> {
    text(value(parser, option)?, option)
}

fn number<T: std::str::FromStr>(parser: &mut lexopt::Parser, option: &str) -> Result<T, String> {
    let text = string(parser, option)?;
    text.parse()
        .map_err(|_| format!("{option}: `{text}` is no number that fits"))
}

fn at_least_one(parser: &mut lexopt::Parser, option: &str) -> Result<usize, String> {
    match number(parser, option)? {
        0 => Err(format!("{option} must be at least 1")),
        n => Ok(n),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("-H: expected 'NAME: VALUE'")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes())
        .map_err(|_| "-H: what stands before the colon is no header name")?;
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| format!("-H: the value of `{name}` holds a character that is not allowed"))?;
    Ok((name, value))
}

fn resolve(text: &str) -> Result<(String, IpAddr), String> {
    let (host, addr) = text
        .split_once('=')
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| format!("--resolve: expected HOST=ADDR, not `{text}`"))?;
    let bare = addr.trim_start_matches('[').trim_end_matches(']');
    let addr = bare
        .parse()
        .map_err(|_| format!("--resolve: `{addr}` is no IP address"))?;
    Ok((host.to_owned(), addr))
}

fn name_server(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>().ok();
    with_port
        .or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)))
        .ok_or_else(|| format!("--dns: expected SERVER:PORT with an IP address, not `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(lexopt::Parser::from_args(args.iter().copied()))
    }

    #[test]
    fn bad_arguments_are_named_and_secrets_are_not() {
        for (args, expected) in [
            (&["-n", "3"][..], "-n needs a URL"),
            (&["https://h", "-n", "0"], "-n must be at least 1"),
            (&["https://h", "-c", "x"], "-c: `x`"),
            (&["ftp://h/"], "the URL cannot be used"),
            (&["https://h", "https://i"], "one URL"),
            (&["https://h", "--warm", "1", "--new"], "exclude"),
            (&["https://h", "--resolve", "h"], "HOST=ADDR"),
            (&["https://h", "--dns", "ns.test"], "--dns"),
            (&["https://h", "--timeout", "-1"], "--timeout"),
            (&["https://h", "--frob"], "--frob"),
            (&["https://h", "-d"], "-d needs a value"),
            (&["https://h", "-H", "x-key: canary\u{7f}"], "x-key"),
            (&["https://h", "-H", "canary"], "NAME: VALUE"),
        ] {
            let message = parsed(args).err().expect("refused");
            assert!(message.contains(expected), "{args:?}: {message}");
            assert!(!message.contains("canary"), "{message}");
        }
    }

    #[test]
    fn a_body_makes_it_a_post_unless_told_otherwise() {
        for (args, expected) in [
            (&["https://h"][..], Method::GET),
            (&["https://h", "-d", "x"], Method::POST),
            (&["https://h", "-d", "x", "-X", "PUT"], Method::PUT),
        ] {
            let Ok(Command::Live(live)) = parsed(args) else {
                panic!("{args:?}");
            };
            assert_eq!(live.method, expected);
        }
        assert!(matches!(
            parsed(&["--json"]),
            Ok(Command::Demo { json: true })
        ));
    }
}
