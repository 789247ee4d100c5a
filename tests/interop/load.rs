//! Requests without a pause, each with a name of its own, so that what was lost or came twice can be named.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use firstbyte::{Client, Error, ErrorKind, ReplaySafety};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::server::Server;

/// Several workers that ask in turns: GET, POST, GET, POST.
pub(crate) struct Load {
    posts: Posts,
    tally: Arc<watch::Sender<Tally>>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Tally {
    is_over: bool,
    answered: Vec<String>,
    /// Answers by the generation of the configuration that gave them.
    generations: BTreeMap<u32, usize>,
    failed: Vec<(String, Failure)>,
}

/// A failed request or a wrong answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Option<ErrorKind>,
    pub(crate) replay_safety: Option<ReplaySafety>,
    pub(crate) text: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            kind: Some(error.kind()),
            replay_safety: Some(error.replay_safety()),
            text: describe(&error),
        }
    }
}

/// So many failures end the waiting for answers.
const HOPELESS: usize = 50;

/// How POSTs are sent.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Posts {
    Plain,
    /// With an `Idempotency-Key`: may be sent again where a plain one may not.
    Keyed,
}

impl Load {
    pub(crate) fn start(name: &'static str, client: &Client, workers: usize, posts: Posts) -> Self {
        let tally = Arc::new(watch::Sender::new(Tally::default()));
        let work = |worker| {
            let (client, tally) = (client.clone(), Arc::clone(&tally));
            tokio::spawn(async move { work(name, worker, &client, posts, &tally).await })
        };
        Self {
            posts,
            workers: (0..workers).map(work).collect(),
            tally,
        }
    }

    /// Resolves once `n` more were answered, or all is lost.
    pub(crate) async fn more(&self, n: usize) {
        let goal = self.tally.borrow().answered.len() + n;
        self.wait(|tally| tally.answered.len() >= goal).await;
    }

    /// Resolves once `n` were answered by this generation of the server's configuration, or all is lost.
    pub(crate) async fn generation(&self, generation: u32, n: usize) {
        self.wait(|tally| {
            tally
                .generations
                .get(&generation)
                .is_some_and(|seen| *seen >= n)
        })
        .await;
    }

    async fn wait(&self, mut reached: impl FnMut(&Tally) -> bool) {
        let mut tally = self.tally.subscribe();
        let reached = tally
            .wait_for(|tally| tally.failed.len() >= HOPELESS || reached(tally))
            .await;
        reached.expect("the tally is ours and still there");
    }

    /// Lets the workers finish what they have begun, and holds their books against the backend's.
    ///
    /// # Panics
    ///
    /// If a request was answered that the backend never saw.
    pub(crate) async fn finish(self, backend: &Server) -> Report {
        self.tally.send_modify(|tally| tally.is_over = true);
        for worker in self.workers {
            worker.await.expect("a worker does not panic");
        }
        let tally = self.tally.borrow();
        let arrivals = arrivals(backend);
        let from = |id: &String| arrivals.get(id).map_or(&[][..], Vec::as_slice);
        let unseen: Vec<_> = tally
            .answered
            .iter()
            .filter(|id| from(id).is_empty())
            .collect();
        assert!(unseen.is_empty(), "answered by nobody: {unseen:?}");
        let all = tally
            .answered
            .iter()
            .chain(tally.failed.iter().map(|(id, _)| id));
        let repeated = all.filter(|id| from(id).len() > 1);
        let describe = |id: &String| format!("{id}, arrived from {:?}", from(id));
        let failed = tally.failed.iter().map(|(id, failure)| Failure {
            text: format!("{}: {}", describe(id), failure.text),
            ..failure.clone()
        });
        let failed: Vec<Failure> = failed.collect();
        let (may_repeat, must_not) = repeated.partition(|id| may_repeat(id, self.posts));
        let texts = |ids: Vec<&String>| ids.into_iter().map(describe).collect::<Vec<_>>();
        Report {
            failed,
            repeated: texts(may_repeat),
            repeated_unasked: texts(must_not),
        }
    }
}

/// What a load came to, apart from what went well.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) failed: Vec<Failure>,
    /// Processed more than once: requests that may be, by their method or because the caller said so.
    pub(crate) repeated: Vec<String>,
    /// Those that may not.
    pub(crate) repeated_unasked: Vec<String>,
}

impl Report {
    /// # Panics
    ///
    /// If anything failed or was processed twice.
    pub(crate) fn expect_spotless(&self) {
        self.expect_lost_only(|_| false);
        assert!(self.repeated.is_empty(), "{self:#?}");
    }

    /// # Panics
    ///
    /// If anything else failed, or was processed twice without being asked to.
    pub(crate) fn expect_lost_only(&self, may_be: impl Fn(&Failure) -> bool) {
        assert!(self.repeated_unasked.is_empty(), "{self:#?}");
        let is_lost = |failure: &Failure| failure.is_unanswered() && may_be(failure);
        assert!(self.failed.iter().all(is_lost), "{self:#?}");
    }
}

impl Failure {
    pub(crate) fn is_post(&self) -> bool {
        self.text.contains("-post, ")
    }

    /// The connection was lost, and whether the request was processed nobody can say.
    fn is_unanswered(&self) -> bool {
        self.kind == Some(ErrorKind::ConnectionLost)
            && self.replay_safety == Some(ReplaySafety::MaybeProcessed)
    }
}

/// GET, or POST with a key (RFC 9110 §9.2.2).
fn may_repeat(id: &str, posts: Posts) -> bool {
    !id.ends_with("post") || posts == Posts::Keyed
}

/// From which of the client's ports the backend was asked for each name, by the proxy's word, an entry for each time.
pub(crate) fn arrivals(backend: &Server) -> HashMap<String, Vec<String>> {
    let mut arrivals: HashMap<String, Vec<String>> = HashMap::new();
    for seen in backend.seen() {
        if let Some(id) = seen.uri.query().and_then(|query| query.strip_prefix("id=")) {
            let port = seen.headers.get("x-peer-port");
            let port = port.and_then(|port| port.to_str().ok()).unwrap_or_default();
            arrivals
                .entry(id.to_owned())
                .or_default()
                .push(port.to_owned());
        }
    }
    arrivals
}

/// How often the backend saw each name.
pub(crate) fn processed(backend: &Server) -> HashMap<String, usize> {
    let arrivals = arrivals(backend).into_iter();
    arrivals.map(|(id, from)| (id, from.len())).collect()
}

async fn work(
    name: &str,
    worker: usize,
    client: &Client,
    posts: Posts,
    tally: &watch::Sender<Tally>,
) {
    let mut nth = 0;
    while !tally.borrow().is_over {
        let is_post = nth % 2 == 1;
        let method = if is_post { "post" } else { "get" };
        let id = format!("{name}-{worker}-{nth}-{method}");
        let outcome = one(client, &id, is_post, posts).await;
        tally.send_modify(|tally| match outcome {
            Ok(generation) => {
                *tally.generations.entry(generation).or_default() += 1;
                tally.answered.push(id);
            }
            Err(failure) => tally.failed.push((id, failure)),
        });
        nth += 1;
        if nth % 8 == worker % 8 {
            // A moment in which a connection can be idle.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}

/// One request with this name; the generation that answered it.
pub(crate) async fn one(
    client: &Client,
    id: &str,
    is_post: bool,
    posts: Posts,
) -> Result<u32, Failure> {
    let (request, expected) = match is_post {
        false => (client.get(format!("/?id={id}")), "hello"),
        true => (
            client.post(format!("/echo?id={id}")).body(id.to_owned()),
            id,
        ),
    };
    let request = match posts {
        Posts::Keyed if is_post => request.header("idempotency-key", id),
        _ => request,
    };
    let mut response = request.send().await?;
    let generation = response.headers().get("x-generation").cloned();
    let text = response.text().await?;
    if response.status() != 200 || text != expected {
        return Err(Failure {
            kind: None,
            replay_safety: None,
            text: format!("status {}, body {text:?}", response.status()),
        });
    }
    let generation = generation.and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(generation.unwrap_or(0))
}

/// Everything that an error knows, in one line.
pub(crate) fn describe(error: &Error) -> String {
    format!(
        "{:?} in {:?}, {:?}, reused {}, {} attempts: {error}",
        error.kind(),
        error.phase(),
        error.replay_safety(),
        error.on_reused_connection(),
        error.attempts()
    )
}
