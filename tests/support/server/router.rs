//! What the server answers when the test does not say: a small router.
//!
//! | path | answer |
//! |---|---|
//! | `/` | 200 `hello` |
//! | `/echo` | the request's body with its content-type |
//! | `/bytes/N` | N bytes |
//! | `/stream/N` | N chunks of 20 bytes without a length |
//! | `/status/N` | that status, no body |
//! | `/delay/MS` | `hello` after that many milliseconds |
//! | `/headers` | the request's headers, a `name: value` line each |
//! | `/close` | `hello` with `Connection: close` |
//! | `/empty` | 204 |

use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;

use super::reply::Reply;

#[expect(clippy::needless_pass_by_value, reason = "the shape of every handler")]
pub(super) fn route(request: Request<Bytes>) -> Reply {
    let mut path = request.uri().path().trim_start_matches('/').splitn(2, '/');
    let (noun, rest) = (path.next().unwrap_or_default(), path.next());
    match (noun, rest) {
        ("", None) => Reply::ok().body("hello"),
        ("echo", None) => echo(&request),
        ("bytes", Some(n)) => with_number(n, |n: usize| Reply::ok().body(vec![b'x'; n])),
        ("stream", Some(n)) => with_number(n, |n: usize| {
            let chunk = Bytes::from_static(b"twenty bytes of it.\n");
            Reply::ok().chunks(vec![chunk; n], Duration::ZERO)
        }),
        ("status", Some(n)) => with_number(n, Reply::status),
        ("delay", Some(ms)) => with_number(ms, |ms| {
            Reply::ok().body("hello").delay(Duration::from_millis(ms))
        }),
        ("headers", None) => Reply::ok().body(headers(&request)),
        ("close", None) => Reply::ok().body("hello").close(),
        ("empty", None) => Reply::status(204),
        _ => Reply::status(404),
    }
}

fn echo(request: &Request<Bytes>) -> Reply {
    let reply = Reply::ok().body(request.body().clone());
    match request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    {
        Some(kind) => reply.header("content-type", kind),
        None => reply,
    }
}

fn headers(request: &Request<Bytes>) -> String {
    request
        .headers()
        .iter()
        .fold(String::new(), |mut lines, (name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            writeln!(lines, "{name}: {value}").expect("a String takes everything");
            lines
        })
}

fn with_number<N: FromStr>(number: &str, answer: impl FnOnce(N) -> Reply) -> Reply {
    number.parse().map_or_else(|_| Reply::status(400), answer)
}
