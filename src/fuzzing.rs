//! Entry points of the fuzz targets in `fuzz/`: each splits its input into a parameter and bytes,
//! and hands both to a property that stands beside the reader it is about.
//!
//! On stable, the tests below replay the seeds and drive the same properties with random bytes and
//! with mutated seeds.
// layering: the door of the fuzz targets to every reader of bytes, whatever its layer.

use crate::{client, dns, http_head, http1, http2, origin, pool, sse};

/// The head of an HTTP/1 response; the first two bytes are where it is split.
pub fn h1_head(data: &[u8]) {
    if let Some((split, input)) = split_position(data) {
        http_head::check_splits(input, split);
    }
}

/// A chunked body; the first two bytes are where it is split.
pub fn h1_chunked(data: &[u8]) {
    if let Some((split, input)) = split_position(data) {
        http1::check_chunked(input, split);
    }
}

/// A whole response over HTTP/1.1; the first byte is the size of the pieces that it arrives in, and whether
/// the request was HEAD.
pub fn h1_exchange(data: &[u8]) {
    if let Some((&first, input)) = data.split_first() {
        http1::check_exchange(input, usize::from(first >> 1), first & 1 == 1);
    }
}

/// HTTP/2 frames; the first byte is the size of the pieces that they arrive in.
pub fn h2_tap(data: &[u8]) {
    if let Some((&piece, input)) = data.split_first() {
        http2::check_tap(input, usize::from(piece));
        http2::check_reads(input, usize::from(piece), usize::from(piece % 16));
    }
}

/// A whole HTTP/2 connection over memory, three bytes an operation.
pub fn h2_connection(data: &[u8]) {
    http2::check_connection(data);
}

/// What the readers of a connection leave unread, two bytes an operation.
pub fn h2_unread(data: &[u8]) {
    http2::check_unread(data);
}

/// Failures and answers of one request's attempts, two bytes each.
pub fn retry_verdict(data: &[u8]) {
    client::check_verdicts(data);
}

/// Operations on the cache of names, two bytes each.
pub fn dns_cache(data: &[u8]) {
    dns::check_operations(data);
}

/// Operations on the books of one origin, two bytes each behind one for the limits.
pub fn pool_state(data: &[u8]) {
    pool::check_operations(data);
}

/// A URL; bytes that are not UTF-8 end it.
pub fn origin(data: &[u8]) {
    let text = data.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    origin::check_round_trip(text);
}

/// A stream of events; the first two bytes are the sizes of the pieces that it arrives in.
pub fn sse_decoder(data: &[u8]) {
    if let Some((pieces, input)) = data.split_first_chunk::<2>() {
        sse::check_splits(input, &pieces.map(|n| usize::from(n) + 1));
    }
}

/// What a server says in a WebSocket; the first byte is the size of the pieces that it arrives in.
#[cfg(feature = "websocket")]
pub fn websocket(data: &[u8]) {
    if let Some((&piece, input)) = data.split_first() {
        crate::websocket::check_session(input, usize::from(piece));
    }
}

/// A big-endian position, taken modulo the length of what follows, so that every input has one.
fn split_position(data: &[u8]) -> Option<(usize, &[u8])> {
    let (position, input) = data.split_first_chunk::<2>()?;
    let split = usize::from(u16::from_be_bytes(*position)) % (input.len() + 1);
    Some((split, input))
}

// layering: drives the entry points above.
#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    type Target = fn(&[u8]);

    /// Every target with the bytes that its format is made of.
    const TARGETS: &[(&str, Target, &[u8])] = &[
        ("h1_head", h1_head, b"HTTP/1.10 2\r\n\t:aZ-\0;=\x80"),
        (
            "h1_chunked",
            h1_chunked,
            b"0123456789abcdefF\r\n;=\": \tx\0",
        ),
        (
            "h1_exchange",
            h1_exchange,
            b"\x02\x06HTTP/1.10 2\r\n: 5;,ckeontent-lgh\0",
        ),
        (
            "h2_tap",
            h2_tap,
            &[0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x80, 0xff],
        ),
        (
            "h2_connection",
            h2_connection,
            &[
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0x80, 0x81, 0x90, 0xff,
            ],
        ),
        (
            "h2_unread",
            h2_unread,
            &[0, 1, 8, 9, 16, 17, 24, 25, 32, 33, 100, 255],
        ),
        (
            "retry_verdict",
            retry_verdict,
            &[0, 1, 2, 5, 6, 10, 11, 12, 64, 65, 0x0f, 0x3f, 0x80],
        ),
        (
            "dns_cache",
            dns_cache,
            &[0, 1, 4, 5, 7, 8, 10, 11, 20, 27, 40, 43, 64, 80, 100, 240],
        ),
        (
            "pool_state",
            pool_state,
            &[
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 28, 64, 80, 128, 200,
            ],
        ),
        (
            "sse_decoder",
            sse_decoder,
            b"\0\x01data:eventidry x7\n\r\xef\xbb\xbf\xc3\xa4",
        ),
        #[cfg(feature = "websocket")]
        (
            "websocket",
            websocket,
            b"\x00\x01\x02\x80\x81\x82\x88\x89\x8a\x03\xe8\x7e\x7f\xc3\xa4 xyz",
        ),
        ("origin", origin, b"htps:/@[].%?#\\0127xfn-_ABZ\xc3\xbc\t"),
    ];
    const MIN_SEEDS: usize = 8;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/seeds")
            .join(target);
        let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("readable").path())
            .collect();
        paths.sort();
        paths
            .iter()
            .map(|path| fs::read(path).expect("readable"))
            .collect()
    }

    #[test]
    fn every_seed_holds() {
        for &(name, target, _) in TARGETS {
            let seeds = seeds(name);
            assert!(seeds.len() >= MIN_SEEDS, "{name} has {} seeds", seeds.len());
            for seed in &seeds {
                target(seed);
            }
        }
    }

    /// The seeds say one split each; here is every other one.
    #[test]
    fn every_seed_holds_at_every_split() {
        for (name, check) in [
            ("h1_head", http_head::check_splits as fn(&[u8], usize)),
            ("h1_chunked", http1::check_chunked),
        ] {
            for seed in seeds(name) {
                let input = &seed[2..];
                // The few seeds about a limit are long: their ends are where something happens.
                let near_an_end = |split: &usize| *split < 200 || *split + 200 > input.len();
                for split in (0..=input.len()).filter(near_an_end) {
                    check(input, split);
                }
            }
        }
        for seed in seeds("h2_tap") {
            for piece in 1..seed.len() {
                http2::check_tap(&seed[1..], piece);
                for room in 1..24 {
                    http2::check_reads(&seed[1..], piece, room);
                }
            }
        }
    }

    /// A change of a seed, applied at places that exist in it.
    #[derive(Clone, Debug)]
    enum Edit {
        Set(Index, u8),
        Insert(Index, u8),
        Remove(Index),
        Repeat(Index, Index),
        Truncate(Index),
    }

    fn edit(alphabet: &'static [u8]) -> impl Strategy<Value = Edit> {
        let byte = || prop_oneof![any::<u8>(), select(alphabet)];
        prop_oneof![
            (any::<Index>(), byte()).prop_map(|(at, byte)| Edit::Set(at, byte)),
            (any::<Index>(), byte()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
            any::<Index>().prop_map(Edit::Remove),
            any::<(Index, Index)>().prop_map(|(from, to)| Edit::Repeat(from, to)),
            any::<Index>().prop_map(Edit::Truncate),
        ]
    }

    fn apply(edits: &[Edit], bytes: &mut Vec<u8>) {
        for edit in edits {
            if bytes.is_empty() {
                return;
            }
            let len = bytes.len();
            match edit {
                Edit::Set(at, byte) => bytes[at.index(len)] = *byte,
                Edit::Insert(at, byte) => bytes.insert(at.index(len), *byte),
                Edit::Remove(at) => drop(bytes.remove(at.index(len))),
                Edit::Repeat(a, b) => {
                    let (a, b) = (a.index(len), b.index(len));
                    bytes.extend_from_within(a.min(b)..a.max(b));
                }
                Edit::Truncate(at) => bytes.truncate(at.index(len)),
            }
        }
    }

    fn drive(name: &str) {
        let &(_, target, alphabet) = TARGETS.iter().find(|t| t.0 == name).expect("a target");
        let mutated =
            (select(seeds(name)), vec(edit(alphabet), 1..12)).prop_map(|(mut seed, edits)| {
                apply(&edits, &mut seed);
                seed
            });
        let input = prop_oneof![
            vec(any::<u8>(), 0..600),
            vec(select(alphabet), 0..200),
            mutated,
        ];
        // No file of regressions: a failure becomes a seed.
        let config = ProptestConfig {
            cases: 1024,
            failure_persistence: None,
            ..Default::default()
        };
        proptest!(config, |(bytes in input)| target(&bytes));
    }

    #[test]
    fn h1_head_holds_over_random_input() {
        drive("h1_head");
    }

    #[test]
    fn h1_chunked_holds_over_random_input() {
        drive("h1_chunked");
    }

    #[test]
    fn h1_exchange_holds_over_random_input() {
        drive("h1_exchange");
    }

    #[test]
    fn h2_tap_holds_over_random_input() {
        drive("h2_tap");
    }

    #[test]
    fn h2_connection_holds_over_random_operations() {
        drive("h2_connection");
    }

    #[test]
    fn sse_decoder_holds_over_random_streams() {
        drive("sse_decoder");
    }

    #[cfg(feature = "websocket")]
    #[test]
    fn websocket_holds_over_random_frames() {
        drive("websocket");
    }

    #[test]
    fn h2_unread_holds_over_random_operations() {
        drive("h2_unread");
    }

    #[test]
    fn retry_verdict_holds_over_random_attempts() {
        drive("retry_verdict");
    }

    #[test]
    fn dns_cache_holds_over_random_operations() {
        drive("dns_cache");
    }

    #[test]
    fn pool_state_holds_over_random_operations() {
        drive("pool_state");
    }

    #[test]
    fn origin_holds_over_random_input() {
        drive("origin");
    }
}
