//! How to reach the APIs of providers: plain data.

use std::borrow::Cow;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What of a model's name stands in a path as it is (RFC 3986 §2.3).
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Where a provider wants its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// `authorization: Bearer <key>`.
    Bearer,
    /// This header.
    Header(Cow<'static, str>),
    /// This parameter of the query. [`Response::url`](super::Response::url) does not have it; servers and proxies
    /// on the way may log it all the same, so a header is better where the provider takes one.
    Query(Cow<'static, str>),
}

/// How to reach a provider's API, as its public documentation has it: plain data, to be copied for any other provider
/// and changed where an account differs.
///
/// ```
/// use firstbyte::{ConnectionPool, KeyPlace, Provider};
///
/// let pool = ConnectionPool::new();
/// let groq = pool.provider(Provider::GROQ, "key").build()?;
/// let own = Provider {
///     name: "own".into(),
///     base_url: "https://llm.example/v1".into(),
///     key: KeyPlace::Header("x-api-key".into()),
///     ..Provider::GROQ
/// };
/// let own = pool.provider(own, "key").build()?;
/// # Ok::<(), firstbyte::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The name that its client is registered under.
    pub name: Cow<'static, str>,
    /// What its paths are appended to.
    pub base_url: Cow<'static, str>,
    /// Where its key goes.
    pub key: KeyPlace,
    /// The path of a chat completion; `{model}` stands for the model where it is part of the path.
    pub chat: Cow<'static, str>,
    /// The path of one that is answered with Server-Sent Events, if the request's body says so too where it has to
    /// (`"stream": true`).
    pub chat_events: Cow<'static, str>,
    /// The path of its sessions over WebSocket, from the root of the host, if it has such; [`live_url`](Self::live_url)
    /// makes a URL of it.
    pub live: Option<Cow<'static, str>>,
    /// The data of the event behind which nothing comes, for [`EventStream::until`](super::EventStream::until).
    pub last_event: Option<Cow<'static, str>>,
    /// While a request waits its connection is kept alive with bytes that mean nothing: comments among events, empty lines
    /// before JSON. Then silence is a fault, and [`Timeouts::between_bytes`](super::Timeouts::between_bytes) finds it.
    pub keeps_alive: bool,
    /// A request that has waited for so long is ended by the provider.
    pub gives_up_after: Option<Duration>,
}

/// The OpenAI-compatible ones; a pause is how long a request may wait, with comments meanwhile.
const fn compatible(
    name: &'static str,
    base_url: &'static str,
    pause: Option<Duration>,
) -> Provider {
    Provider {
        name: Cow::Borrowed(name),
        base_url: Cow::Borrowed(base_url),
        key: KeyPlace::Bearer,
        chat: Cow::Borrowed("/chat/completions"),
        chat_events: Cow::Borrowed("/chat/completions"),
        live: None,
        last_event: Some(Cow::Borrowed("[DONE]")),
        keeps_alive: pause.is_some(),
        gives_up_after: pause,
    }
}

impl Provider {
    /// DeepSeek. A request that waits for its turn gets SSE comments (`: keep-alive`), or empty lines before JSON, and is
    /// ended if it has not begun after ten minutes (thirty, by older versions of the page).
    ///
    /// Sources: <https://api-docs.deepseek.com/>, <https://api-docs.deepseek.com/quick_start/rate_limit>.
    pub const DEEPSEEK: Self = compatible(
        "deepseek",
        "https://api.deepseek.com",
        Some(Duration::from_secs(600)),
    );

    /// Gemini, by its own API. The model stands in the path, and the key goes in a header (`?key=` in the query is taken
    /// too; for Live it is what the documentation shows). Events come with `alt=sse`, and the end of the body is the end.
    /// Live sessions are messages of JSON over a WebSocket, the first one `setup`; a `goAway` says how long one has left.
    ///
    /// Sources: <https://ai.google.dev/api>, <https://ai.google.dev/api/generate-content>,
    /// <https://ai.google.dev/api/live>.
    pub const GEMINI: Self = Self {
        name: Cow::Borrowed("gemini"),
        base_url: Cow::Borrowed("https://generativelanguage.googleapis.com/v1beta"),
        key: KeyPlace::Header(Cow::Borrowed("x-goog-api-key")),
        chat: Cow::Borrowed("/models/{model}:generateContent"),
        chat_events: Cow::Borrowed("/models/{model}:streamGenerateContent?alt=sse"),
        live: Some(Cow::Borrowed(
            "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
        )),
        last_event: None,
        keeps_alive: false,
        gives_up_after: None,
    };

    /// Groq.
    ///
    /// Sources: <https://console.groq.com/docs/openai>, <https://console.groq.com/docs/api-reference>.
    pub const GROQ: Self = compatible("groq", "https://api.groq.com/openai/v1", None);

    /// Codestral, Mistral's model for code, at its own address. Fill-in-the-middle is at `/fim/completions`.
    ///
    /// Sources: <https://docs.mistral.ai/capabilities/code_generation/>, <https://docs.mistral.ai/api/>.
    pub const CODESTRAL: Self = compatible("codestral", "https://codestral.mistral.ai/v1", None);

    /// The path of a chat completion by this model.
    pub fn chat_path(&self, model: &str) -> String {
        fill_in(&self.chat, model)
    }

    /// The URL of its sessions over WebSocket, if it has such: for `Client::websocket`, since it is not below the base
    /// URL's path.
    pub fn live_url(&self) -> Option<String> {
        let path = self.live.as_ref()?;
        let host = self.base_url.find("://").map_or(0, |at| at + 3);
        let end = self.base_url[host..].find(['/', '?', '#']);
        let root = &self.base_url[..end.map_or(self.base_url.len(), |end| host + end)];
        Some(format!("{root}{path}"))
    }

    /// The path of one that is answered with events.
    pub fn chat_events_path(&self, model: &str) -> String {
        fill_in(&self.chat_events, model)
    }
}

fn fill_in(path: &str, model: &str) -> String {
    path.replace("{model}", &utf8_percent_encode(model, PATH).to_string())
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn models_stand_in_paths_that_name_them() {
        let gemini = Provider::GEMINI;
        assert_eq!(
            gemini.chat_events_path("gemini-2.5-flash"),
            "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
        );
        // Nobody gets to another path by the name of a model.
        assert_eq!(
            gemini.chat_path("../x?y#z"),
            "/models/..%2Fx%3Fy%23z:generateContent"
        );
        assert_eq!(Provider::GROQ.chat_path("a/b"), "/chat/completions");
    }

    #[test]
    fn live_sessions_are_at_the_root_of_the_host() {
        let live = |base_url: &'static str| {
            let provider = Provider {
                base_url: base_url.into(),
                live: Some("/live".into()),
                ..Provider::GEMINI
            };
            provider.live_url().unwrap()
        };
        for base in [
            "https://h:1",
            "https://h:1/",
            "https://h:1/v1/beta",
            "https://h:1?x=/y",
        ] {
            assert_eq!(live(base), "https://h:1/live");
        }
        assert_eq!(Provider::GROQ.live_url(), None);
    }
}
