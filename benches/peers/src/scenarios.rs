//! What is measured. In each scenario the clients take turns, round by round, and each value is the median of
//! its rounds.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::calls::{Call, Client, Target, Worker};
use crate::firstbyte_client::Firstbyte;
use crate::hyper_client::Hyper;
use crate::machine::{self, Spent};
use crate::raw::{RawH1, RawH2};
use crate::reqwest_client::Reqwest;
use crate::server;
use crate::world::{Protocol, World};

pub const CLIENTS: [&str; 4] = ["raw", "firstbyte", "hyper-util", "reqwest"];

/// What one round of one client gave: metric and value.
type Values = Vec<(&'static str, f64)>;

/// A measured value of every client.
pub struct Row {
    pub scenario: &'static str,
    pub metric: &'static str,
    pub values: Vec<(&'static str, f64)>,
}

#[derive(Clone, Copy)]
pub struct Scenario {
    name: &'static str,
    protocol: Protocol,
    /// Of the runtime; 0 is the calling thread alone.
    threads: usize,
    what: What,
    rounds: usize,
}

#[derive(Clone, Copy)]
enum What {
    /// So many calls in flight, so many in a round.
    Flow {
        flight: usize,
        calls: usize,
        post: usize,
    },
    /// First calls on new connections.
    Cold {
        resumed: bool,
        /// So long after the client was made.
        after: Duration,
    },
    /// So many calls at once without a connection.
    Burst {
        path: &'static str,
        target: Target,
    },
    /// The first call of a process, and the second on a new connection.
    First,
    Big,
    Events,
    Idle,
}

const BURST: usize = 200;
/// A process has other things to do between making its client and its first call.
const FIRST_AFTER: Duration = Duration::from_millis(50);

fn scenarios() -> Vec<Scenario> {
    use Protocol::{H1, H2};
    let flow = |name, protocol, threads, flight, calls| Scenario {
        name,
        protocol,
        threads,
        what: What::Flow {
            flight,
            calls,
            post: 0,
        },
        rounds: 11,
    };
    let post = |name, protocol| Scenario {
        what: What::Flow {
            flight: 1,
            calls: 2000,
            post: 2048,
        },
        ..flow(name, protocol, 0, 1, 0)
    };
    let other = |name, protocol, what, rounds| Scenario {
        name,
        protocol,
        threads: 0,
        what,
        rounds,
    };
    let cold = |resumed| What::Cold {
        resumed,
        after: Duration::from_millis(10),
    };
    let burst = |path, target| What::Burst { path, target };
    let few = Target {
        few_streams: true,
        ..Target::default()
    };
    let twenty = Target {
        connections: Some(20),
        ..few
    };
    vec![
        flow("h2_1", H2, 0, 1, 3000),
        flow("h2_1_2_workers", H2, 2, 1, 3000),
        flow("h2_2_2_workers", H2, 2, 2, 4000),
        flow("h2_4_2_workers", H2, 2, 4, 8000),
        flow("h2_64", H2, 0, 64, 32_000),
        flow("h2_256", H2, 0, 256, 32_000),
        flow("h1_1", H1, 0, 1, 3000),
        flow("h1_64", H1, 0, 64, 32_000),
        post("h2_post", H2),
        post("h1_post", H1),
        other("h2_cold_full", H2, cold(false), 101),
        other("h2_cold_resumed", H2, cold(true), 101),
        other("h2_first_of_process", H2, What::First, 9),
        other("h2_stampede", H2, burst("/", Target::default()), 15),
        other("h2_limit_10", H2, burst("/slow", few), 5),
        other("h2_limit_10_20_connections", H2, burst("/slow", twenty), 5),
        other("h2_256_mib", H2, What::Big, 7),
        other("h2_events", H2, What::Events, 7),
        other("h1_events", H1, What::Events, 7),
        other("h2_idle", H2, What::Idle, 1),
        other("h1_idle", H1, What::Idle, 1),
    ]
}

/// Asks for runtimes in which no timer is pending but for those of the clients.
const NO_TIMER: &str = "--no-timer";

/// Everything, or one scenario.
pub fn all(is_quick: bool, only: Option<&str>, server: Option<&str>) -> Vec<Row> {
    provider();
    let world = match server {
        Some(file) => World::there(&std::fs::read_to_string(file).expect("what the server said")),
        None => {
            machine::pin(0);
            World::start()
        }
    };
    let mut rows = Vec::new();
    for mut scenario in scenarios() {
        if only.is_some_and(|only| scenario.name != only) {
            continue;
        }
        eprintln!("{} ...", scenario.name);
        if is_quick {
            scenario.rounds = scenario.rounds.div_ceil(4);
        }
        rows.extend(measure(scenario, &world));
    }
    assert!(!rows.is_empty(), "there is no scenario of that name");
    rows
}

/// `calls` calls of one client, warm or each on a new connection, and nothing else.
pub fn one(client: &str, name: &str, calls: usize) {
    provider();
    let world = World::start();
    let mut scenario = scenarios()
        .into_iter()
        .find(|scenario| scenario.name == name)
        .expect("a scenario");
    let rounds = match &mut scenario.what {
        What::Flow {
            calls: of_a_round, ..
        } => {
            *of_a_round = calls;
            1
        }
        What::Cold { .. } | What::Events => calls,
        _ => panic!("only scenarios of single calls can be run alone"),
    };
    let mut turns = start(scenario, &world, client);
    for _ in 0..rounds {
        turns.round();
    }
}

/// The first two calls of this process, each of a new client on a new connection, in ms.
pub fn first(client: &str, server: &str) {
    machine::pin(0);
    provider();
    let scenario = Scenario {
        name: "h2_first_of_process",
        protocol: Protocol::H2,
        threads: 0,
        what: What::Cold {
            resumed: false,
            after: FIRST_AFTER,
        },
        rounds: 2,
    };
    let mut turns = start(scenario, &World::there(server), client);
    let mut call = || turns.round()[0].1;
    println!("{} {}", call(), call());
}

/// What holds for the whole process.
fn provider() {
    // As in every program there was a thread: from then on some functions of libc take more care, whoever calls them.
    let thread = std::thread::spawn(|| {});
    thread.join().expect("it does nothing");
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().expect("nobody was first");
}

fn measure(scenario: Scenario, world: &Arc<World>) -> Vec<Row> {
    let mut turns: Vec<_> = CLIENTS
        .map(|client| (client, start(scenario, world, client), Vec::new()))
        .into();
    for (_, turns, _) in &mut turns {
        // Its first round is not like the others.
        turns.warm_up();
    }
    for _ in 0..scenario.rounds {
        for (_, turns, values) in &mut turns {
            values.push(turns.round());
        }
        // Nobody always follows the same one.
        turns.rotate_left(1);
    }
    turns.sort_by_key(|(client, ..)| CLIENTS.iter().position(|c| c == client));
    let metrics = turns[0].2[0].iter().map(|(metric, _)| *metric);
    let metrics: Vec<_> = metrics.collect();
    let row = |(n, metric): (usize, &'static str)| Row {
        scenario: scenario.name,
        metric,
        values: turns
            .iter()
            .map(|(client, _, rounds)| {
                let all = rounds.iter().map(|values: &Values| values[n].1);
                (*client, median(all.collect()))
            })
            .collect(),
    };
    metrics.into_iter().enumerate().map(row).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A client's part in a scenario.
trait Turns {
    fn warm_up(&mut self);
    fn round(&mut self) -> Values;
}

fn start(scenario: Scenario, world: &Arc<World>, client: &str) -> Box<dyn Turns> {
    match (client, scenario.protocol) {
        ("raw", Protocol::H1) => Box::new(Part::<RawH1>::new(scenario, world)),
        ("raw", Protocol::H2) => Box::new(Part::<RawH2>::new(scenario, world)),
        ("firstbyte", _) => Box::new(Part::<Firstbyte>::new(scenario, world)),
        ("hyper-util", _) => Box::new(Part::<Hyper>::new(scenario, world)),
        ("reqwest", _) => Box::new(Part::<Reqwest>::new(scenario, world)),
        _ => panic!("the clients are {CLIENTS:?}"),
    }
}

struct Part<C: Client> {
    scenario: Scenario,
    world: Arc<World>,
    runtime: Runtime,
    client: C,
    workers: Vec<C::Worker>,
    /// Connections that the workers needed.
    opened: usize,
}

impl<C: Client> Part<C> {
    fn new(scenario: Scenario, world: &Arc<World>) -> Self {
        let mut builder = match scenario.threads {
            0 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        let runtime = builder
            .worker_threads(scenario.threads.max(1))
            .enable_all()
            .build()
            .expect("a runtime");
        if !std::env::args().any(|word| word == NO_TIMER) {
            // As in every program some timer is pending, for which it costs the kernel more to wait for sockets.
            runtime.spawn(async { tokio::time::sleep(Duration::from_secs(3600)).await });
        }
        let target = Target {
            no_reuse: matches!(scenario.what, What::Cold { resumed: true, .. }),
            ..Target::default()
        };
        let client = {
            let _on = runtime.enter();
            C::new(world, scenario.protocol, target)
        };
        Self {
            scenario,
            client,
            world: world.clone(),
            runtime,
            workers: Vec::new(),
            opened: 0,
        }
    }

    fn flow(&mut self, flight: usize, calls: usize, post: usize) -> Values {
        let call = match post {
            0 => Call::Get("/"),
            n => Call::Post(Bytes::from(vec![b'x'; n])),
        };
        let each = calls / flight;
        let client = self.client.clone();
        let mut workers = std::mem::take(&mut self.workers);
        let before = self.world.counts();
        let (cost, ended) = self.runtime.block_on(async move {
            while workers.len() < flight {
                workers.push(client.worker().await);
            }
            let spent = Spent::now();
            let mut tasks = JoinSet::new();
            for mut worker in workers {
                let call = call.clone();
                tasks.spawn(async move {
                    let mut latencies = Vec::with_capacity(if flight == 1 { each } else { 0 });
                    for _ in 0..each {
                        let start = (flight == 1).then(Instant::now);
                        let done = worker.call(call.clone(), &mut |_| {}).await;
                        done.expect("the server is sound");
                        latencies.extend(start.map(|start| micros(start.elapsed())));
                    }
                    (worker, latencies)
                });
            }
            let ended = tasks.join_all().await;
            (spent.since(each * flight), ended)
        });
        let mut all = Vec::new();
        for (worker, latencies) in ended {
            self.workers.push(worker);
            all.extend(latencies);
        }
        self.opened += self.world.counts()[0] - before[0];
        let mut values = vec![
            ("requests/s", 1e6 / cost.wall_us),
            ("CPU, us", cost.cpu_us),
            ("context switches", cost.switches),
            ("allocations", cost.allocations),
            ("connections so far", self.opened as f64),
        ];
        if flight == 1 {
            values.push(("p50, us", median(all)));
        }
        values
    }

    /// One first call on a new connection.
    fn cold(&mut self, resumed: bool, after: Duration) -> Values {
        let client = if resumed {
            self.client.clone()
        } else {
            let _on = self.runtime.enter();
            C::new(&self.world, self.scenario.protocol, Target::default())
        };
        let wall = self.runtime.block_on(async {
            client.forget_connections().await;
            // Tickets, and what the last connection has to say at its end, are out of the way.
            tokio::time::sleep(after).await;
            // In a task, as programs do: to wake the future of `block_on` takes a system call each time.
            let call = tokio::spawn(async move {
                let start = Instant::now();
                let mut worker = client.worker().await;
                let done = worker.call(Call::Get("/"), &mut |_| {}).await;
                done.expect("the server is sound");
                start.elapsed()
            });
            call.await.expect("it does not panic")
        });
        vec![("ms", micros(wall) / 1e3)]
    }

    /// The first calls of a process of its own.
    fn first(&self) -> Values {
        let output = Command::new(std::env::current_exe().expect("we run"))
            .args(["first", C::NAME, &self.world.line])
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut words = text.split_whitespace();
        let mut next = || words.next()?.parse().ok();
        let (first, second) = (next().expect("two numbers"), next().expect("two numbers"));
        vec![("first, ms", first), ("second, ms", second)]
    }

    /// Many calls at once without a connection.
    fn burst(&mut self, path: &'static str, target: Target) -> Values {
        let before = self.world.counts();
        let client = {
            let _on = self.runtime.enter();
            C::new(&self.world, self.scenario.protocol, target)
        };
        let (wall, failed) = self.runtime.block_on(async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let start = Instant::now();
            let mut tasks = JoinSet::new();
            for _ in 0..BURST {
                let client = client.clone();
                tasks.spawn(async move {
                    let mut worker = client.worker().await;
                    worker.call(Call::Get(path), &mut |_| {}).await
                });
            }
            let ended = tasks.join_all().await;
            (start.elapsed(), ended.iter().filter(|e| e.is_err()).count())
        });
        let after = self.world.counts();
        vec![
            ("ms", micros(wall) / 1e3),
            ("connections", (after[0] - before[0]) as f64),
            ("handshakes", (after[1] - before[1]) as f64),
            ("failed", failed as f64),
        ]
    }

    fn take_worker(&mut self) -> C::Worker {
        match self.workers.pop() {
            Some(worker) => worker,
            None => self.runtime.block_on(self.client.worker()),
        }
    }

    fn big(&mut self) -> Values {
        let mut worker = self.take_worker();
        let start = Instant::now();
        let mut bytes = 0;
        let mut on_piece = |piece: &[u8]| bytes += piece.len();
        let done = worker.call(Call::Get("/big"), &mut on_piece);
        self.runtime.block_on(done).expect("the server is sound");
        assert_eq!(bytes, server::BIG);
        let mib = (server::BIG >> 20) as f64;
        self.workers.push(worker);
        vec![("MiB/s", mib / start.elapsed().as_secs_f64())]
    }

    fn events(&mut self) -> Values {
        let mut worker = self.take_worker();
        let spent = Spent::now();
        let mut event = Vec::with_capacity(server::EVENT);
        let mut latencies = Vec::with_capacity(server::EVENTS);
        let mut on_piece = |mut piece: &[u8]| {
            let now = machine::clock();
            while !piece.is_empty() {
                let n = piece.len().min(server::EVENT - event.len());
                event.extend_from_slice(&piece[..n]);
                piece = &piece[n..];
                if event.len() == server::EVENT {
                    let sent = u64::from_be_bytes(event[..8].try_into().expect("eight"));
                    latencies.push((now - sent) as f64 / 1e3);
                    event.clear();
                }
            }
        };
        let done = worker.call(Call::Get("/events"), &mut on_piece);
        self.runtime.block_on(done).expect("the server is sound");
        assert_eq!(latencies.len(), server::EVENTS);
        self.workers.push(worker);
        let cost = spent.since(server::EVENTS);
        vec![
            ("latency p50, us", median(latencies)),
            ("CPU, us", cost.cpu_us),
            ("context switches", cost.switches),
        ]
    }

    /// A connection to each of many hosts, all idle.
    fn idle(&mut self) -> Values {
        let hosts = 20..server::HOSTS;
        let n = f64::from(hosts.end - hosts.start);
        let ask = async |client: C| {
            let mut worker = client.worker().await;
            let done = worker.call(Call::Get("/"), &mut |_| {}).await;
            done.expect("the server is sound");
            (client, worker)
        };
        self.runtime.block_on(async {
            // What is there once, however many connections there are.
            for host in 2..20 {
                let target = Target {
                    host,
                    ..Target::default()
                };
                let (client, worker) = ask(self.client.elsewhere(&self.world, target)).await;
                std::mem::forget((client, worker));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            let before = machine::live();
            let mut kept = Vec::with_capacity(usize::from(server::HOSTS));
            for host in hosts {
                let target = Target {
                    host,
                    ..Target::default()
                };
                kept.push(ask(self.client.elsewhere(&self.world, target)).await);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            let each = (machine::live() - before) as f64 / n;
            vec![("KiB for each connection", each / 1024.0)]
        })
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl<C: Client> Turns for Part<C> {
    fn warm_up(&mut self) {
        match self.scenario.what {
            What::Flow { flight, post, .. } => {
                self.flow(flight, (flight * 4).max(300), post);
            }
            What::Events | What::Big => {
                let mut worker = self.take_worker();
                let mut on_piece = |_: &[u8]| {};
                let done = worker.call(Call::Get("/"), &mut on_piece);
                self.runtime.block_on(done).expect("the server is sound");
                self.workers.push(worker);
            }
            What::Idle | What::First => {}
            What::Cold { .. } | What::Burst { .. } => {
                self.round();
            }
        }
    }

    fn round(&mut self) -> Values {
        match self.scenario.what {
            What::Flow {
                flight,
                calls,
                post,
            } => self.flow(flight, calls, post),
            What::Cold { resumed, after } => self.cold(resumed, after),
            What::Burst { path, target } => self.burst(path, target),
            What::First => self.first(),
            What::Big => self.big(),
            What::Events => self.events(),
            What::Idle => self.idle(),
        }
    }
}
