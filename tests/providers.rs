//! The presets of providers, against servers that play them.

mod common;
mod support;

use std::time::Duration;

use firstbyte::{ConnectionPool, ErrorKind, EventStream, KeyPlace, Protocols, Provider};
use support::providers::{KEY, Role, Stage};

async fn stream(pool: &ConnectionPool, role: &Role, model: &str) -> EventStream {
    let provider = &role.provider;
    let client = pool.get_client(&provider.name).expect("registered");
    let request = client.post(provider.chat_events_path(model));
    let answer = request.body(role.question(model, true)).send().await;
    let events = answer.expect("an answer").events().expect("events");
    match &provider.last_event {
        Some(last) => events.until(last.clone()),
        None => events,
    }
}

/// All clients registered under their providers' names.
fn register(pool: &ConnectionPool, stage: &Stage) {
    for role in &stage.roles {
        pool.provider(role.provider.clone(), KEY).build().unwrap();
    }
}

#[tokio::test]
async fn presets_ask_where_and_as_their_providers_want_it() {
    let stage = Stage::set().await;
    let pool = stage.pool().build().unwrap();
    register(&pool, &stage);
    for (name, chat, chat_events) in [
        ("deepseek", "/chat/completions", "/chat/completions"),
        (
            "gemini",
            "/v1beta/models/some-model:generateContent",
            "/v1beta/models/some-model:streamGenerateContent?alt=sse",
        ),
        (
            "groq",
            "/openai/v1/chat/completions",
            "/openai/v1/chat/completions",
        ),
        ("codestral", "/v1/chat/completions", "/v1/chat/completions"),
    ] {
        let role = stage.role(name);
        let client = pool.get_client(name).unwrap();
        let request = client.post(role.provider.chat_path("some-model"));
        let request = request.body(role.question("some-model", false));
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{name}");
        let json: serde_json::Value = answer
            .json()
            .await
            .expect("empty lines before it are no fault");
        assert!(json.to_string().contains("Hello"), "{json}");

        let mut events = stream(&pool, role, "some-model").await;
        let mut all = String::new();
        while let Some(event) = events.next().await {
            all.push_str(&event.unwrap().data);
        }
        assert!(all.contains("Hel") && all.contains("lo"), "{all}");
        let timing = events.timing();
        assert_eq!((timing.events, timing.comments), (2, 1), "{name}");
        let seen = role.server.seen();
        let path_of = |n: usize| seen[n].uri.path_and_query().unwrap().as_str();
        assert_eq!((path_of(0), path_of(1)), (chat, chat_events));
        assert_eq!(role.server.counts().connections_accepted, 1);
    }
}

#[tokio::test]
async fn slow_first_token_is_told_from_a_slow_head() {
    let stage = Stage::set().await;
    let pool = stage.pool().build().unwrap();
    register(&pool, &stage);
    for role in &stage.roles {
        let mut events = stream(&pool, role, "slow").await;
        while let Some(event) = events.next().await {
            event.unwrap();
        }
        let first = events.timing().first_event.unwrap();
        assert!(first >= Duration::from_millis(200), "{first:?}");
        let head = events.body().timing().time_to_first_byte().unwrap();
        assert!(head < first, "{head:?}");
        assert_eq!(events.timing().gaps.count(), 1);
    }
}

#[tokio::test]
async fn error_in_the_middle_is_an_event_and_a_missing_end_an_error() {
    let stage = Stage::set().await;
    let pool = stage.pool().build().unwrap();
    register(&pool, &stage);
    for role in &stage.roles {
        let mut events = stream(&pool, role, "broken").await;
        assert!(events.next().await.unwrap().is_ok());
        let error = events.next().await.unwrap().unwrap();
        assert!(error.data.contains("overloaded"), "{error:?}");
        let end = events.next().await.map(|end| end.unwrap_err().kind());
        let expected = role
            .provider
            .last_event
            .is_some()
            .then_some(ErrorKind::Truncated);
        assert_eq!(end, expected, "{}", role.provider.name);
    }
}

#[tokio::test]
async fn too_many_requests_are_the_callers_to_handle() {
    let stage = Stage::set().await;
    let pool = stage.pool().build().unwrap();
    register(&pool, &stage);
    for role in &stage.roles {
        let client = pool.get_client(&role.provider.name).unwrap();
        let request = client.post(role.provider.chat_events_path("busy"));
        let answer = request
            .body(role.question("busy", true))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()["retry-after"], "7");
        let error = answer.events().unwrap_err();
        assert!(error.to_string().contains("429"), "{error}");
        assert_eq!(role.server.counts().requests, 1, "nobody asked again");
    }
}

#[tokio::test]
async fn server_that_goes_away_lets_its_streams_end() {
    let stage = Stage::set().await;
    let pool = stage.pool().build().unwrap();
    register(&pool, &stage);
    let role = stage.role("groq");
    let mut events = stream(&pool, role, "slow").await;
    // GOAWAY in the middle of the events.
    role.server.shutdown_connections();
    let mut count = 0;
    while let Some(event) = events.next().await {
        event.expect("what was begun is finished");
        count += 1;
    }
    assert_eq!(count, 2);
    let mut next = stream(&pool, role, "m").await;
    assert!(
        next.next().await.unwrap().is_ok(),
        "over another connection"
    );
    assert_eq!(role.server.counts().connections_accepted, 2);
}

/// A workflow of 200 calls, 50 to each provider, and the same with a new connection for each call.
#[tokio::test]
async fn workflow_pays_dns_and_tls_once_for_each_provider() {
    const CALLS: usize = 50;
    let workflow = async |keeps_connections: bool| {
        let stage = Stage::set().await;
        let pool = stage.pool().build().unwrap();
        register(&pool, &stage);
        let mut overhead = 0.0;
        for call in 0..CALLS {
            for role in &stage.roles {
                if call % 2 == 0 {
                    let mut events = stream(&pool, role, "m").await;
                    while let Some(event) = events.next().await {
                        event.unwrap();
                    }
                    overhead += events.body().metrics().network_overhead_ms;
                } else {
                    let client = pool.get_client(&role.provider.name).unwrap();
                    let request = client.post(role.provider.chat_path("m"));
                    let request = request.body(role.question("m", false));
                    let mut answer = request.send().await.unwrap();
                    answer.bytes().await.unwrap();
                    overhead += answer.metrics().network_overhead_ms;
                }
            }
            if !keeps_connections {
                pool.close_idle();
            }
        }
        (stage, pool.stats(), overhead)
    };
    let (stage, kept, with) = workflow(true).await;
    for role in &stage.roles {
        let counts = role.server.counts();
        assert_eq!((counts.connections_accepted, counts.tls_full), (1, 1));
    }
    // Both families of each name, once.
    assert_eq!(stage.dns.total_queries(), 2 * stage.roles.len());
    assert!(
        kept.connection_reuse_rate > 80.0,
        "{}",
        kept.connection_reuse_rate
    );
    let (_stage, renewed, without) = workflow(false).await;
    println!(
        "network overhead of {} calls: {with:.1} ms with {} connections, {without:.1} ms with {}; reused {:.1} % and {:.1} %",
        kept.total_requests,
        kept.connections_created,
        renewed.connections_created,
        kept.connection_reuse_rate,
        renewed.connection_reuse_rate,
    );
    assert!(with < 0.7 * without, "{with} of {without}");
    assert!(kept.network_overhead_reduction_ms > 0.3 * without);
}

#[tokio::test]
async fn key_in_the_query_reaches_the_server_and_nobody_else() {
    let stage = Stage::set().await;
    let pool = stage.pool().build().unwrap();
    let role = stage.role("gemini");
    let provider = Provider {
        key: KeyPlace::Query("key".into()),
        ..role.provider.clone()
    };
    for protocols in [Protocols::Http1, Protocols::Http2] {
        let builder = pool.provider(provider.clone(), KEY).protocols(protocols);
        assert!(!format!("{builder:?}").contains(KEY));
        let client = builder.replace().unwrap();
        let request = client
            .post(provider.chat_events_path("m"))
            .query([("x", "1")]);
        let response = request.body("{}").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let shown = response.url().to_owned();
        assert!(
            shown.ends_with(":streamGenerateContent?alt=sse&x=1"),
            "{shown}"
        );
        assert!(!format!("{client:?} {response:?} {pool:?}").contains(KEY));
        let seen = role.server.seen().last().unwrap().uri.to_string();
        assert!(seen.ends_with(&format!("?alt=sse&x=1&key={KEY}")), "{seen}");

        // Another key under the same name replaces it for all who hold the client.
        let other = pool
            .provider(provider.clone(), "other")
            .protocols(protocols);
        other.build().unwrap();
        let request = client.post(provider.chat_path("m")).body("{}");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 401);
        let mut response = response;
        let error = response.error_for_status_ref().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Status);
        assert!(!response.bytes().await.unwrap().is_empty(), "what it says");
        let error = response.error_for_status().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Status);
        assert!(!format!("{error:?} {error}").contains("other"));
    }
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
    // As of a variable that is not set.
    for provider in [Provider::GROQ, Provider::GEMINI] {
        let error = pool.provider(provider, "").build().unwrap_err();
        assert!(error.to_string().contains("key is empty"), "{error}");
    }
    let client = pool.client_builder("http://a.test");
    let error = client.bearer_auth("").build().unwrap_err();
    assert!(error.to_string().contains("token is empty"), "{error}");
    for url in [
        "//user:SECRET@a.test/v1?key=SECRET",
        "https://user:SECRET#1@a.test/",
        "https://user:SECRET/1@a.test/",
        "https://user:SECRET?1@a.test/",
        "https://a.test:99999/?key=SECRET",
    ] {
        let error = pool.client_builder(url).build().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
        if let Ok(request) = http::Request::get(url).body(firstbyte::Body::empty()) {
            let error = pool.send(request).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
        }
    }
    let error = pool
        .client_builder("a.test/v1?key=SECRET")
        .build()
        .unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(
        said.contains("`a.test/v1...`") && !said.contains("SECRET"),
        "{said}"
    );
    let pool = ConnectionPool::builder().connect_timeout(Duration::ZERO);
    assert!(pool.build().unwrap_err().is_invalid());
}

#[cfg(feature = "websocket")]
mod live {
    //! Gemini's sessions over WebSocket.

    use firstbyte::WebSocket;

    use super::*;

    async fn open(stage: &Stage, pool: &ConnectionPool, model: &str) -> WebSocket {
        let role = stage.role("gemini");
        let client = pool.get_client("gemini").expect("registered");
        let url = role.provider.live_url().expect("it has sessions");
        let mut socket = client.websocket(url).connect().await.unwrap();
        let setup = format!(r#"{{"setup":{{"model":"models/{model}"}}}}"#);
        socket.send(setup).await.unwrap();
        assert_eq!(
            next(&mut socket).await["setupComplete"],
            serde_json::json!({})
        );
        socket
    }

    async fn next(socket: &mut WebSocket) -> serde_json::Value {
        let message = socket.next().await.expect("a message").unwrap();
        serde_json::from_slice(message.as_bytes()).unwrap()
    }

    const TURN: &str = r#"{"clientContent":{"turns":[{"role":"user","parts":[{"text":"Hi"}]}],"turnComplete":true}}"#;

    #[tokio::test]
    async fn sessions_have_turns_and_an_end() {
        let stage = Stage::set().await;
        let pool = stage.pool().build().unwrap();
        register(&pool, &stage);
        let mut socket = open(&stage, &pool, "slow").await;
        for _ in 0..2 {
            socket.send(TURN).await.unwrap();
            let mut said = String::new();
            loop {
                let message = next(&mut socket).await;
                if message["serverContent"]["turnComplete"] == true {
                    break;
                }
                let part = &message["serverContent"]["modelTurn"]["parts"][0]["text"];
                said.push_str(part.as_str().expect("text"));
            }
            assert_eq!(said, "Hello");
            assert_eq!(next(&mut socket).await["goAway"]["timeLeft"], "30s");
        }
        assert_eq!(socket.close(1000, "").await.unwrap().code, Some(1000));
        // A session that the provider ends says why.
        let mut socket = open(&stage, &pool, "broken").await;
        socket.send(TURN).await.unwrap();
        assert!(next(&mut socket).await["serverContent"].is_object());
        assert!(socket.next().await.is_none());
        let said = socket.close_frame().unwrap();
        assert_eq!((said.code, &*said.reason), (Some(1011), "overloaded"));
    }

    #[tokio::test]
    async fn keys_travel_where_the_preset_says_and_show_nowhere() {
        let stage = Stage::set().await;
        let pool = stage.pool().build().unwrap();
        let preset = stage.role("gemini").provider.clone();
        for (place, key, is_taken) in [
            (KeyPlace::Header("x-goog-api-key".into()), KEY, true),
            (KeyPlace::Query("key".into()), KEY, true),
            (KeyPlace::Query("key".into()), "sk-WRONG0123456789", false),
        ] {
            let provider = Provider {
                key: place,
                ..preset.clone()
            };
            let client = pool.client_builder(&*provider.base_url);
            let client = client.key(&provider.key, key).build().unwrap();
            let builder = client.websocket(provider.live_url().unwrap());
            let shown = format!("{builder:?}");
            let mut socket = builder.connect().await.unwrap();
            socket
                .send(r#"{"setup":{"model":"models/m"}}"#)
                .await
                .unwrap();
            let shown = format!("{shown}{socket:?}{:?}", socket.connection());
            assert!(!shown.contains(key), "{shown}");
            match socket.next().await {
                Some(message) => assert!(is_taken, "{message:?}"),
                None => {
                    assert!(!is_taken);
                    assert_eq!(socket.close_frame().unwrap().code, Some(1007));
                }
            }
        }
    }
}
