//! What the readers of a connection have left unread, stream by stream, and who has to go when it is too
//! much; and when their response heads arrived. Pure.
//!
//! h2 keeps what arrives until its reader takes it. Flow control bounds the bytes, of a stream and of the
//! connection; nothing bounds the frames, and a frame of one byte takes more than 200 bytes of memory. So
//! a frame costs [`FRAME_COST`] beside its content. A stream beyond its bound is cut off, alone.
//!
//! What slow readers hold is missing in the connection's window, which belongs to all. So the window
//! grows by as much, up to [`LARGEST_WINDOW`]. Beyond that the slowest reader is cut off.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

/// What a frame costs beside its content: h2 takes 224 bytes for one.
pub(crate) const FRAME_COST: u64 = 256;
/// To what the window of a connection grows, unless it is set larger from the beginning.
const LARGEST_WINDOW: u32 = 64 * 1024 * 1024;
/// Heads of a response that are kept for a request that does not ask for them.
const MAX_HEADS: u16 = 64;
/// What others always find of the window.
const KEPT_FREE: u32 = 4 * 1024 * 1024;
/// The window grows in steps of so much.
const STEP: u64 = 1024 * 1024;

/// How much may be unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Cost, on one stream.
    stream: u64,
    /// Cost, on all streams.
    connection: u64,
    window: u32,
    largest_window: u32,
}

impl Bounds {
    pub(crate) fn new(stream_window: u32, connection_window: u32) -> Self {
        let largest_window = connection_window.max(LARGEST_WINDOW);
        Self {
            // Whole frames of 256 bytes fill the window of a stream to its end.
            stream: 2 * u64::from(stream_window),
            connection: u64::from(largest_window - KEPT_FREE),
            window: connection_window,
            largest_window,
        }
    }

    /// The window of the connection while so many bytes are unread.
    pub(crate) fn window(&self, unread: u64) -> u32 {
        let grown = u64::from(self.window) + unread / STEP * STEP;
        let largest = self.largest_window;
        u32::try_from(grown).map_or(largest, |grown| grown.min(largest))
    }
}

/// Stream ids are the keys: small, distinct and ours.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Spreads neighbours over the whole word (Knuth's multiplicative method).
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[derive(Debug)]
struct Account<S> {
    /// `None` once its request is gone: what still comes is thrown away.
    reader: Option<S>,
    bytes: u64,
    cost: u64,
    /// When it was opened or read last.
    read_at: Instant,
    end: End,
    head: Arrival,
}

/// How far the peer is with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Open,
    /// END_STREAM has come, with a header block that may go on.
    Ended,
    /// END_STREAM has come, with the last frame.
    Complete,
    /// It has reset it: nothing is left of it.
    Reset,
}

/// How the head of a response arrived, with those of informational responses before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The reads that brought the first and the last HEADERS frame before the first DATA frame.
    pub(crate) first: Option<Instant>,
    pub(crate) last: Option<Instant>,
    /// Bytes of the last header block, as they came.
    pub(crate) bytes: u32,
    /// How many HEADERS frames there were before the first DATA frame.
    heads: u16,
    /// The first DATA frame has come.
    is_over: bool,
    /// And one with content, which h2 is shown.
    has_data: bool,
    /// HEADERS have come behind DATA.
    has_trailers: bool,
}

impl Arrival {
    /// Whether the next head that h2 hands out is the final one, where so many informational ones were handed out:
    /// what DATA follows is a final head.
    pub(crate) fn is_final(&self, informational: u32) -> bool {
        self.has_data && u32::from(self.heads) == informational + 1
    }

    /// More informational responses than anybody asks for.
    pub(crate) fn is_a_flood(&self) -> bool {
        self.heads > MAX_HEADS
    }

    /// When the final head began to arrive, after so many informational ones.
    pub(crate) fn of_final(&self, informational: u32) -> Option<Instant> {
        if informational == 0 {
            self.first
        } else {
            self.last
        }
    }
}

/// The books of one connection; `S` is what cutting off needs.
#[derive(Debug)]
pub(crate) struct Unread<S> {
    bounds: Bounds,
    streams: HashMap<u32, Account<S>, BuildHasherDefault<IdHasher>>,
    bytes: u64,
    cost: u64,
    is_over: bool,
}

impl<S: Clone> Unread<S> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            streams: HashMap::default(),
            bytes: 0,
            cost: 0,
            is_over: false,
        }
    }

    /// A request was sent.
    pub(crate) fn open(&mut self, stream: u32, reader: S, now: Instant) {
        let account = Account {
            reader: Some(reader),
            bytes: 0,
            cost: 0,
            read_at: now,
            end: End::Open,
            head: Arrival::default(),
        };
        self.streams.insert(stream, account);
    }

    /// HEADERS arrived, with so many bytes. False if nobody knows of its stream: it comes late.
    pub(crate) fn head_came(&mut self, stream: u32, bytes: u32, at: Instant) -> bool {
        let Some(account) = self.streams.get_mut(&stream) else {
            return false;
        };
        let head = &mut account.head;
        head.bytes = bytes;
        if !head.is_over {
            head.first = head.first.or(Some(at));
            head.last = Some(at);
            head.heads = head.heads.saturating_add(1);
            if head.is_a_flood() && account.reader.is_some() {
                // h2 keeps each of them until it is asked for.
                let cost = self.bounds.stream + 1;
                account.cost += cost;
                self.cost += cost;
                self.is_over = true;
            }
        } else {
            head.has_trailers = true;
        }
        true
    }

    /// CONTINUATION arrived.
    pub(crate) fn head_goes_on(&mut self, stream: u32, bytes: u32) {
        if let Some(account) = self.streams.get_mut(&stream) {
            account.head.bytes = account.head.bytes.saturating_add(bytes);
        }
    }

    /// DATA arrived: what HEADERS follow are trailers.
    pub(crate) fn head_is_over(&mut self, stream: u32) {
        if let Some(account) = self.streams.get_mut(&stream) {
            account.head.is_over = true;
        }
    }

    /// How the response head of a stream arrived.
    pub(crate) fn arrival(&self, stream: u32) -> Arrival {
        let account = self.streams.get(&stream);
        account.map(|account| account.head).unwrap_or_default()
    }

    /// A frame with content arrived. False if nobody knows of its stream: it comes late.
    pub(crate) fn received(&mut self, stream: u32, bytes: u64) -> bool {
        let Some(account) = self.streams.get_mut(&stream) else {
            return false;
        };
        account.head.is_over = true;
        account.head.has_data |= bytes > 0;
        if account.reader.is_some() && bytes > 0 {
            account.bytes += bytes;
            account.cost += bytes + FRAME_COST;
            self.bytes += bytes;
            self.cost += bytes + FRAME_COST;
            self.is_over |= account.cost > self.bounds.stream || self.cost > self.bounds.connection;
        }
        true
    }

    /// The peer ended its side of a stream, or reset it.
    pub(crate) fn ended(&mut self, stream: u32, end: End) {
        if let Some(account) = self.streams.get_mut(&stream) {
            account.end = end;
        }
    }

    /// Its reader took the content of a frame.
    pub(crate) fn taken(&mut self, stream: u32, bytes: u64, now: Instant) {
        let Some(account) = self.streams.get_mut(&stream) else {
            return;
        };
        account.read_at = now;
        // Of a frame that h2 cut or padded otherwise than it said, no more than was entered.
        let bytes = bytes.min(account.bytes);
        let cost = (bytes + FRAME_COST).min(account.cost);
        account.bytes -= bytes;
        account.cost -= cost;
        self.bytes -= bytes;
        self.cost -= cost;
    }

    /// Its request is gone, and the stream is not: what still comes belongs to nobody. How far the peer is
    /// with it.
    pub(crate) fn abandoned(&mut self, stream: u32) -> End {
        let Some(account) = self.streams.get_mut(&stream) else {
            return End::Complete;
        };
        account.reader = None;
        self.bytes -= std::mem::take(&mut account.bytes);
        self.cost -= std::mem::take(&mut account.cost);
        account.end
    }

    /// The stream is gone.
    pub(crate) fn closed(&mut self, stream: u32) {
        if let Some(account) = self.streams.remove(&stream) {
            self.bytes -= account.bytes;
            self.cost -= account.cost;
        }
    }

    /// How far the peer is with it.
    pub(crate) fn end(&self, stream: u32) -> End {
        let account = self.streams.get(&stream);
        account.map_or(End::Complete, |account| account.end)
    }

    /// Whether the peer has ended the stream and all of its content was taken. There are no trailers: h2 hands out what
    /// it has read, so where it fails it has not.
    pub(crate) fn is_complete(&self, stream: u32) -> bool {
        let complete =
            |a: &Account<S>| a.end == End::Complete && a.bytes == 0 && !a.head.has_trailers;
        self.streams.get(&stream).is_none_or(complete)
    }

    /// Bytes that are unread.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is unread, with what its frames cost.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn cost(&self) -> u64 {
        self.cost
    }

    /// More is unread than may be: [`cut`](Self::cut) must be asked who goes.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes a reader off the books that has left too much unread, as long as there is one: those beyond
    /// the bound of a stream, then, while the connection is beyond its own, of those that hold their share
    /// or more the one that has not read for longest.
    pub(crate) fn cut(&mut self) -> Option<S> {
        if !self.is_over {
            return None;
        }
        let held = |(id, account): (&u32, &Account<S>)| (*id, account.cost, account.read_at);
        let holders = || {
            self.streams
                .iter()
                .map(held)
                .filter(|(_, cost, _)| *cost > 0)
        };
        let beyond = holders().find(|(_, cost, _)| *cost > self.bounds.stream);
        let slowest = || {
            let share = self.cost / (holders().count() as u64).max(1);
            holders()
                .filter(|(_, cost, _)| *cost >= share)
                .min_by_key(|(id, _, read_at)| (*read_at, *id))
        };
        let is_connection_over = self.cost > self.bounds.connection;
        let who = beyond.or_else(|| is_connection_over.then(slowest).flatten());
        let Some((stream, ..)) = who else {
            self.is_over = false;
            return None;
        };
        let reader = self.streams.get(&stream)?.reader.clone();
        self.abandoned(stream);
        reader
    }
}

/// The property that the fuzz target asserts, over operations of two bytes each: the sums are those of
/// the streams, whoever is not over its bound stays, and after [`Unread::cut`] the bounds hold.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_operations(data: &[u8]) {
    use std::collections::{BTreeMap, VecDeque};

    let start = crate::clock::now();
    let bounds = Bounds {
        stream: 4_000,
        connection: 10_000,
        window: 65_535,
        largest_window: LARGEST_WINDOW,
    };
    let mut unread: Unread<u32> = Unread::new(bounds);
    // What each stream received and has not taken, told by ourselves.
    let mut frames: BTreeMap<u32, VecDeque<u64>> = BTreeMap::new();
    for (step, operation) in data.chunks_exact(2).enumerate() {
        let now = start + std::time::Duration::from_millis(step as u64);
        let stream = u32::from(operation[0] % 8) * 2 + 1;
        let bytes = u64::from(operation[1]) * 8;
        match operation[0] / 8 % 5 {
            0 => {
                unread.closed(stream);
                unread.open(stream, stream, now);
                frames.insert(stream, VecDeque::new());
            }
            1 | 2 => {
                let known = unread.received(stream, bytes);
                assert_eq!(known, unread.streams.contains_key(&stream));
                if bytes > 0
                    && let Some(queue) = frames.get_mut(&stream)
                {
                    queue.push_back(bytes);
                }
            }
            3 => {
                if let Some(bytes) = frames.get_mut(&stream).and_then(VecDeque::pop_front) {
                    unread.taken(stream, bytes, now);
                }
            }
            _ => {
                unread.closed(stream);
                frames.remove(&stream);
            }
        }
        let cost =
            |queue: &VecDeque<u64>| queue.iter().map(|bytes| bytes + FRAME_COST).sum::<u64>();
        let total = |frames: &BTreeMap<u32, VecDeque<u64>>| frames.values().map(cost).sum::<u64>();
        assert_eq!(unread.cost(), total(&frames));
        assert_eq!(unread.bytes(), frames.values().flatten().sum::<u64>());
        while let Some(cut) = unread.cut() {
            let queue = frames.remove(&cut).expect("only a reader is cut off");
            assert!(
                cost(&queue) > bounds.stream || total(&frames) + cost(&queue) > bounds.connection
            );
        }
        assert!(unread.cost() <= bounds.connection && unread.cost() == total(&frames));
        assert!(frames.values().all(|queue| cost(queue) <= bounds.stream));
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module and clock, which is below.
    use super::*;
    use crate::clock::now;
    use std::time::Duration;

    const MIB: u64 = 1024 * 1024;

    fn books() -> (Unread<u32>, Instant) {
        (Unread::new(Bounds::new(2 << 20, 16 << 20)), now())
    }

    #[test]
    fn window_grows_by_what_is_unread_up_to_its_largest() {
        let bounds = Bounds::new(2 << 20, 16 << 20);
        let mib = |unread: u64| bounds.window(unread) >> 20;
        assert_eq!((mib(0), mib(MIB - 1), mib(MIB)), (16, 16, 17));
        assert_eq!((mib(40 * MIB), mib(48 * MIB), mib(60 * MIB)), (56, 64, 64));
        let wide = Bounds::new(2 << 20, 100 << 20);
        assert_eq!(wide.window(50 * MIB) >> 20, 100);
    }

    #[test]
    fn head_is_the_final_one_even_after_informational_ones_and_before_trailers() {
        let (mut unread, now) = books();
        unread.open(1, 1, now);
        let at = |n| now + Duration::from_micros(n);
        assert_eq!(unread.arrival(1), Arrival::default());
        assert!(unread.head_came(1, 5, at(10)) && unread.head_came(1, 7, at(20)));
        unread.head_goes_on(1, 100);
        let arrival = unread.arrival(1);
        assert_eq!((arrival.first, arrival.last), (Some(at(10)), Some(at(20))));
        assert_eq!(arrival.bytes, 107);
        unread.received(1, 3);
        assert!(unread.head_came(1, 9, at(40)));
        assert_eq!(unread.arrival(1).last, Some(at(20)), "trailers");
        unread.open(3, 3, now);
        unread.head_is_over(3);
        assert!(unread.head_came(3, 1, at(50)) && !unread.head_came(5, 1, at(50)));
        assert_eq!(unread.arrival(3).first, None);
    }

    #[test]
    fn stream_of_small_frames_is_cut_off_at_its_bound_and_its_neighbours_are_not() {
        let (mut unread, now) = books();
        unread.open(1, 1, now);
        unread.open(3, 3, now);
        assert!(unread.received(3, MIB));
        let mut frames = 0;
        while unread.cut().is_none() {
            unread.received(1, 1);
            frames += 1;
        }
        assert_eq!(frames, 4 * MIB / (1 + FRAME_COST) + 1);
        assert_eq!((unread.bytes(), unread.cost()), (MIB, MIB + FRAME_COST));
        assert!(
            unread.received(1, 5) && unread.bytes() == MIB,
            "thrown away"
        );
        unread.closed(1);
        assert!(!unread.received(1, 5), "late");
    }

    #[test]
    fn slowest_of_those_that_hold_their_share_is_cut_off_when_the_connection_is_full() {
        let (mut unread, start) = books();
        let at = |n: u32| start + Duration::from_secs(u64::from(n));
        // The last of them has not read for longest, and holds next to nothing.
        for n in 0..40 {
            unread.open(2 * n + 1, n, at(100 - n));
        }
        unread.received(79, 100);
        let mut cut = Vec::new();
        for n in 0..39 {
            unread.received(2 * n + 1, 2 * MIB);
            cut.extend(std::iter::from_fn(|| unread.cut()));
        }
        assert_eq!(cut.len(), 39 - 29, "{cut:?}");
        assert!(cut.iter().is_sorted() && !cut.contains(&39));
        assert!(unread.cost() <= 60 * MIB);
    }

    #[test]
    fn what_is_read_is_free_and_what_is_abandoned_too() {
        let (mut unread, now) = books();
        unread.open(1, 1, now);
        unread.received(1, 100);
        unread.received(1, 0);
        unread.received(1, 50);
        unread.taken(1, 100, now);
        assert_eq!((unread.bytes(), unread.cost()), (50, 50 + FRAME_COST));
        assert_eq!(unread.end(1), End::Open);
        unread.ended(1, End::Complete);
        assert_eq!(
            (unread.end(1), unread.abandoned(1)),
            (End::Complete, End::Complete)
        );
        assert_eq!((unread.bytes(), unread.cost()), (0, 0));
        unread.taken(1, 50, now);
        unread.closed(1);
        unread.closed(1);
        assert!(unread.end(1) == End::Complete && unread.cut().is_none());
    }
}
