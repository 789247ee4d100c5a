//! The presets of providers, against a server that plays them: their names lead to loopback, and its certificate is for them.

mod common;
mod support;

use std::time::Duration;

use bytes::Bytes;
use firstbyte::tls::TlsOptions;
use firstbyte::{ConnectionPool, ErrorKind, KeyPlace, Provider};
use http::Request;
use support::pki::Pki;
use support::server::{Reply, Server};

const KEY: &str = "sk-TOPSECRET0123456789abcdef";
const NAMES: [&str; 4] = [
    "api.deepseek.com",
    "generativelanguage.googleapis.com",
    "api.groq.com",
    "codestral.mistral.ai",
];
const PRESETS: [Provider; 4] = [
    Provider::DEEPSEEK,
    Provider::GEMINI,
    Provider::GROQ,
    Provider::CODESTRAL,
];

fn events(texts: &[&'static str]) -> Reply {
    let chunks = texts.iter().map(|text| Bytes::from_static(text.as_bytes()));
    Reply::status(200)
        .header("content-type", "text/event-stream")
        .chunks(chunks.collect(), Duration::from_millis(1))
}

/// In the shapes that the providers document. The key is looked at as each of them does.
fn play(request: Request<Bytes>) -> Reply {
    let (request, body) = request.into_parts();
    let header = |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok());
    let is_gemini = request.uri.path().contains("/models/");
    let bearer = format!("Bearer {KEY}");
    let has_key = if is_gemini {
        let in_query = request.uri.query().unwrap_or_default().contains(KEY);
        header("x-goog-api-key") == Some(KEY) || in_query
    } else {
        header("authorization") == Some(&bearer)
    };
    if !has_key {
        return Reply::status(401)
            .header("content-type", "application/json")
            .body(r#"{"error":{"message":"no key"}}"#);
    }
    let wants_events = request.uri.query().unwrap_or_default().contains("alt=sse")
        || body.windows(13).any(|window| window == b"\"stream\":true");
    match (is_gemini, wants_events) {
        (true, true) => events(&[
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hel\"}]}}]}\r\n\r\n",
            "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"lo\"}]}}]}\r\n\r\n",
        ]),
        (true, false) => {
            Reply::ok().body(r#"{"candidates":[{"content":{"parts":[{"text":"Hello"}]}}]}"#)
        }
        (false, true) => events(&[
            ": keep-alive\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\ndata: [DONE]\n\n",
        ]),
        // What keeps the connection alive before the answer.
        (false, false) => {
            Reply::ok().body("\n\n\n{\"choices\":[{\"message\":{\"content\":\"Hello\"}}]}")
        }
    }
}

struct Stage {
    server: Server,
    pool: ConnectionPool,
}

impl Stage {
    async fn set() -> Self {
        let pki = Pki::new();
        let server = Server::builder()
            .tls(&pki, &NAMES)
            .handler(play)
            .start()
            .await;
        let mut pool = ConnectionPool::builder().tls(
            TlsOptions::new()
                .builtin_roots(false)
                .add_root(pki.ca_der()),
        );
        for name in NAMES {
            pool = pool.resolve_to(name, [[127, 0, 0, 1].into()]);
        }
        Self {
            server,
            pool: pool.build().unwrap(),
        }
    }

    /// The same, at the server's port.
    fn here(&self, provider: &Provider) -> Provider {
        let base = &provider.base_url["https://".len()..];
        let (host, path) = base.split_once('/').unwrap_or((base, ""));
        Provider {
            base_url: format!("https://{host}:{}/{path}", self.server.port()).into(),
            ..provider.clone()
        }
    }
}

#[tokio::test]
async fn presets_ask_where_and_as_their_providers_want_it() {
    let stage = Stage::set().await;
    for preset in PRESETS {
        let provider = stage.here(&preset);
        let client = stage.pool.provider(provider.clone(), KEY).build().unwrap();
        let found = stage.pool.get_client(&preset.name).is_some();
        assert!(found, "registered under its name");
        let path = provider.chat_path("some-model");
        let mut answer = client.post(path).body("{}").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", preset.name);
        let json: serde_json::Value = answer.json().await.unwrap();
        assert!(json.to_string().contains("Hello"), "{json}");

        let path = provider.chat_events_path("some-model");
        let request = client.post(path).body(r#"{"stream":true}"#);
        let answer = request.send().await.unwrap();
        let mut stream = answer.events().unwrap();
        if let Some(last) = &provider.last_event {
            stream = stream.until(last.clone());
        }
        let mut all = String::new();
        while let Some(event) = stream.next().await {
            all.push_str(&event.unwrap().data);
        }
        assert!(all.contains("Hel") && all.contains("lo"), "{all}");
        assert_eq!(stream.timing().events, 2);
        assert_eq!(stream.timing().comments > 0, provider.last_event.is_some());
    }
    let paths: Vec<_> = stage
        .server
        .seen()
        .iter()
        .map(|s| s.uri.to_string())
        .collect();
    for expected in [
        "/chat/completions",
        "/v1beta/models/some-model:generateContent",
        "/v1beta/models/some-model:streamGenerateContent?alt=sse",
        "/openai/v1/chat/completions",
        "/v1/chat/completions",
    ] {
        assert!(
            paths.iter().any(|path| path.ends_with(expected)),
            "{paths:?}"
        );
    }
}

#[tokio::test]
async fn key_in_the_query_reaches_the_server_and_nobody_else() {
    let stage = Stage::set().await;
    let provider = Provider {
        key: KeyPlace::Query("key".into()),
        ..stage.here(&Provider::GEMINI)
    };
    let builder = stage.pool.provider(provider.clone(), KEY);
    assert!(!format!("{builder:?}").contains(KEY));
    let client = builder.build().unwrap();
    let path = provider.chat_events_path("m");
    let response = client
        .post(path)
        .query([("x", "1")])
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let shown = response.url().to_owned();
    assert!(
        shown.ends_with(":streamGenerateContent?alt=sse&x=1"),
        "{shown}"
    );
    assert!(!format!("{client:?} {response:?} {:?}", stage.pool).contains(KEY));
    let seen = stage.server.seen().last().unwrap().uri.to_string();
    assert!(seen.ends_with(&format!("?alt=sse&x=1&key={KEY}")), "{seen}");

    // Another key under the same name replaces it for all who hold the client.
    let other = stage
        .pool
        .provider(provider.clone(), "other")
        .build()
        .unwrap();
    drop(other);
    let response = client
        .post("/models/m:generateContent")
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 401);
    let error = response.error_for_status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Status);
    assert!(!format!("{error:?} {error}").contains("other"));
}

#[tokio::test]
async fn key_that_is_no_header_is_a_mistake_without_the_key() {
    let pool = ConnectionPool::new();
    for place in [KeyPlace::Bearer, KeyPlace::Header("x-key".into())] {
        let provider = Provider {
            key: place,
            ..Provider::GROQ
        };
        let error = pool.provider(provider, "a\nSECRET").build().unwrap_err();
        assert!(error.is_invalid() && !format!("{error:?}").contains("SECRET"));
    }
}
