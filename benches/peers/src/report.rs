//! The table, for people and for machines.

use crate::machine;
use crate::scenarios::{CLIENTS, Row};

/// Prints the table, and writes it as JSON to `target/peers.json` of this package.
pub fn print(rows: &[Row]) {
    println!("{}; {} processors", machine::model(), machine::processors());
    print!("\n| | |");
    for client in CLIENTS {
        print!(" {client} |");
    }
    println!(" to raw | to hyper-util | to reqwest |");
    println!("|---|---|{}---|---|---|", "---|".repeat(CLIENTS.len()));
    let mut last = "";
    for row in rows {
        let name = if row.scenario == last {
            ""
        } else {
            row.scenario
        };
        last = row.scenario;
        print!("| {name} | {} |", row.metric);
        for (_, value) in &row.values {
            print!(" {} |", shown(*value));
        }
        let of = |client| row.values.iter().find(|(name, _)| *name == client);
        let ours = of("firstbyte").map(|(_, value)| *value);
        for peer in ["raw", "hyper-util", "reqwest"] {
            match (ours, of(peer)) {
                (Some(ours), Some((_, theirs))) if *theirs != 0.0 => {
                    print!(" {:.2} |", ours / theirs)
                }
                _ => print!(" |"),
            }
        }
        println!();
    }
    let json: Vec<_> = rows
        .iter()
        .map(|row| {
            let values: serde_json::Map<_, _> = row
                .values
                .iter()
                .map(|(client, value)| ((*client).to_owned(), (*value).into()))
                .collect();
            serde_json::json!({
                "scenario": row.scenario,
                "metric": row.metric,
                "values": values,
            })
        })
        .collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers.json");
    let text = serde_json::to_string_pretty(&json).expect("plain values");
    match std::fs::write(path, text) {
        Ok(()) => println!("\nas JSON: {path}"),
        Err(e) => println!("\n{path} could not be written: {e}"),
    }
}

fn shown(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
