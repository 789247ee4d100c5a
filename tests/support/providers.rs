//! Servers that play the providers, in the wire shapes that they document: each under its real name, which leads to
//! loopback, with a certificate of the tests' authority. What a request gets is decided by its model:
//!
//! | model | answer |
//! |---|---|
//! | `slow` | the first token after 200 ms |
//! | `broken` | an error object in the middle of the events |
//! | `busy` | 429 with `retry-after: 7` |
//! | any other | "Hello" in two tokens |
//!
//! Gemini's Live sessions are messages of JSON in binary frames: `setup` with a model of these first, then turns. `broken`
//! is closed with 1011 after a token, `slow` says `goAway` behind its first turn; a wrong key is refused by a Close with 1007.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use firstbyte::tls::TlsOptions;
use firstbyte::{ConnectionPool, ConnectionPoolBuilder, Provider};
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http::request::Parts;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::dns::DnsServer;
use super::pki::Pki;
use super::server::websocket::Socket;
use super::server::{Reply, Server};

/// What all of them take for their key.
pub const KEY: &str = "sk-TOPSECRET0123456789abcdef";

pub const PRESETS: [Provider; 4] = [
    Provider::DEEPSEEK,
    Provider::GEMINI,
    Provider::GROQ,
    Provider::CODESTRAL,
];

const FIRST_TOKEN: Duration = Duration::from_millis(200);

/// One provider, at the port where it is played.
pub struct Role {
    pub provider: Provider,
    pub server: Server,
    host: String,
}

/// All of them, and the name server that knows them.
pub struct Stage {
    pub dns: DnsServer,
    pub roles: Vec<Role>,
    pki: Pki,
}

impl Stage {
    pub async fn set() -> Self {
        let pki = Pki::new();
        let dns = DnsServer::start().await;
        let mut roles = Vec::new();
        for preset in PRESETS {
            let base = &preset.base_url["https://".len()..];
            let (host, path) = base.split_once('/').unwrap_or((base, ""));
            let server = Server::builder().tls(&pki, &[host]).handler(play);
            // What Google says about RFC 8441 stands in no documentation: its sessions are played over HTTP/1.1.
            let server = match &preset.live {
                Some(Cow::Borrowed(live)) => server.websockets(live, false, live_session),
                _ => server,
            };
            let server = server.start().await;
            dns.v4(host, &["127.0.0.1"]);
            let provider = Provider {
                base_url: format!("https://{host}:{}/{path}", server.port()).into(),
                ..preset.clone()
            };
            let host = host.to_owned();
            roles.push(Role {
                provider,
                server,
                host,
            });
        }
        Self { dns, roles, pki }
    }

    /// A pool that finds them and trusts them, to be configured further.
    pub fn pool(&self) -> ConnectionPoolBuilder {
        ConnectionPool::builder()
            .name_servers([self.dns.addr()])
            .tls(self.tls())
    }

    /// Options that trust them.
    pub fn tls(&self) -> TlsOptions {
        let tls = TlsOptions::new().builtin_roots(false);
        tls.add_root(self.pki.ca_der())
    }

    /// Of the role with this name.
    pub fn role(&self, name: &str) -> &Role {
        let mut roles = self.roles.iter();
        roles
            .find(|role| role.provider.name == name)
            .expect("a preset")
    }
}

impl Role {
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The body of a request for a chat completion, streamed or not.
    pub fn question(&self, model: &str, is_streamed: bool) -> String {
        if self.provider.name == "gemini" {
            return r#"{"contents":[{"parts":[{"text":"Hi"}]}]}"#.to_owned();
        }
        format!(
            r#"{{"model":"{model}","stream":{is_streamed},"messages":[{{"role":"user","content":"Hi"}}]}}"#
        )
    }
}

fn json(status: u16, text: &'static str) -> Reply {
    Reply::status(status)
        .header("content-type", "application/json")
        .body(text)
}

fn events(first_after: Duration, texts: &[&'static str]) -> Reply {
    let chunks = texts.iter().map(|text| Bytes::from_static(text.as_bytes()));
    // A chunk of nothing but a comment first, so that the head does not wait for the first token.
    let chunks = [Bytes::from_static(b": processing\n\n")]
        .into_iter()
        .chain(chunks);
    Reply::status(200)
        .header("content-type", "text/event-stream")
        .chunks(chunks.collect(), first_after)
}

fn play(request: Request<Bytes>) -> Reply {
    let (request, body) = request.into_parts();
    let body = String::from_utf8_lossy(&body);
    let header = |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok());
    let (path, query) = (request.uri.path(), request.uri.query().unwrap_or_default());
    let is_gemini = path.contains("/models/");
    let has_key = if is_gemini {
        has_gemini_key(&request)
    } else {
        header("authorization") == Some(&format!("Bearer {KEY}"))
    };
    let is_model = |name: &str| {
        path.contains(&format!("/models/{name}:"))
            || body.contains(&format!("\"model\":\"{name}\""))
    };
    let is_streamed = query.contains("alt=sse") || body.contains("\"stream\":true");
    let gap = if is_model("slow") {
        FIRST_TOKEN
    } else {
        Duration::from_millis(1)
    };
    if !has_key {
        return json(401, r#"{"error":{"message":"no valid key"}}"#);
    }
    if is_model("busy") {
        let text = r#"{"error":{"message":"too many requests"}}"#;
        return json(429, text).header("retry-after", "7");
    }
    match (is_gemini, is_streamed, is_model("broken")) {
        (true, true, false) => events(
            gap,
            &[
                "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hel\"}]}}]}\r\n\r\n",
                "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"lo\"}]}}]}\r\n\r\n",
            ],
        ),
        (true, true, true) => events(
            gap,
            &[
                "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hel\"}]}}]}\r\n\r\n",
                "data: {\"error\":{\"code\":503,\"message\":\"overloaded\"}}\r\n\r\n",
            ],
        ),
        (true, false, _) => json(
            200,
            r#"{"candidates":[{"content":{"parts":[{"text":"Hello"}]}}]}"#,
        ),
        (false, true, false) => events(
            gap,
            &[
                "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n",
                "data: {\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\ndata: [DONE]\n\n",
            ],
        ),
        (false, true, true) => events(
            gap,
            &[
                "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n",
                "data: {\"error\":{\"message\":\"overloaded\"}}\n\n",
            ],
        ),
        // Behind what keeps the connection alive.
        (false, false, _) => json(
            200,
            "\n\n\n{\"choices\":[{\"message\":{\"content\":\"Hello\"}}]}",
        ),
    }
}

fn has_gemini_key(request: &Parts) -> bool {
    let key = request.headers.get("x-goog-api-key");
    let query = request.uri.query().unwrap_or_default();
    key.is_some_and(|key| key == KEY) || query.split('&').any(|p| p == format!("key={KEY}"))
}

/// A Live session, with turns of text.
async fn live_session(request: Parts, mut socket: Socket) {
    let close = |code: u16, reason: &'static str| CloseFrame {
        code: code.into(),
        reason: reason.into(),
    };
    if !has_gemini_key(&request) {
        let _ = socket.close(Some(close(1007, "API key not valid"))).await;
        return;
    }
    let mut model = None;
    while let Some(Ok(message)) = socket.next().await {
        let text = String::from_utf8_lossy(&message.into_data()).into_owned();
        let answers: &[&'static str] = match &model {
            None if text.contains("\"setup\"") => {
                model = Some(text);
                &[r#"{"setupComplete":{}}"#]
            }
            None => {
                let _ = socket.close(Some(close(1007, "setup comes first"))).await;
                return;
            }
            Some(setup) if text.contains("\"clientContent\"") => match setup {
                setup if setup.contains("models/broken") => &[TOKENS[0]],
                setup if setup.contains("models/slow") => &TOKENS,
                _ => &TOKENS[..3],
            },
            Some(_) => &[],
        };
        for answer in answers {
            let _ = socket.send(Message::binary(answer.as_bytes())).await;
        }
        if answers == [TOKENS[0]] {
            let _ = socket.close(Some(close(1011, "overloaded"))).await;
        }
    }
}

const TOKENS: [&str; 4] = [
    r#"{"serverContent":{"modelTurn":{"parts":[{"text":"Hel"}]}}}"#,
    r#"{"serverContent":{"modelTurn":{"parts":[{"text":"lo"}]}}}"#,
    r#"{"serverContent":{"turnComplete":true}}"#,
    r#"{"goAway":{"timeLeft":"30s"}}"#,
];
