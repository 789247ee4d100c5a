//! firstbyte side by side with reqwest, hyper-util's legacy client and the raw limit: one HTTP/2 connection of the
//! `h2` crate, or HTTP/1.1 written by hand, with no pool at all.
//!
//! `cargo run --release` measures everything, `-- --quick` in less than two minutes, `-- --only h2_64` one
//! scenario. The server is a process of its own, pinned to the last processor, the clients take turns on the
//! first. `-- server ADDRESS` is the server alone, at an address of another host or network namespace; what it
//! says, in a file, is what `--server FILE` finds it by. `-- one CLIENT SCENARIO N` does N calls and ends: for callgrind (see `instructions`).

mod calls;
mod firstbyte_client;
mod hyper_client;
mod machine;
mod raw;
mod report;
mod reqwest_client;
mod scenarios;
mod server;
mod world;

#[global_allocator]
static ALLOCATOR: machine::Counting = machine::Counting;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["server"] => server::run(None),
        ["server", address] => server::run(Some(address)),
        ["first", client, server] => scenarios::first(client, server),
        ["one", client, scenario, calls] => {
            let calls = calls.parse().expect("a number of calls");
            scenarios::one(client, scenario, calls);
        }
        _ => {
            let is_quick = words.contains(&"--quick");
            let value = |name| {
                let at = words.iter().position(|word| *word == name)?;
                words.get(at + 1).copied()
            };
            report::print(&scenarios::all(
                is_quick,
                value("--only"),
                value("--server"),
            ));
        }
    }
}
