//! Server-Sent Events: a decoder of `text/event-stream` by the rules of the WHATWG (HTML Standard §9.2.5 and
//! §9.2.6). Pure.
//!
//! [`Response::events`](crate::Response::events) reads a response with it. By itself it decodes what comes from
//! elsewhere:
//!
//! ```
//! use bytes::Bytes;
//! use firstbyte::sse::{EventDecoder, Item};
//!
//! let mut decoder = EventDecoder::new();
//! let mut chunk = Bytes::from_static(b": ping\n\nevent: add\ndata: 73857293\n\ndata: not");
//! let mut items = Vec::new();
//! while let Some(item) = decoder.decode(&mut chunk)? {
//!     items.push(item);
//! }
//! assert!(matches!(&items[0], Item::Comment(text) if *text == "ping"));
//! assert!(matches!(&items[1], Item::Event(e) if e.event == "add" && e.data == "73857293"));
//! # Ok::<(), firstbyte::sse::TooLarge>(())
//! ```

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use crate::text::Text;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Its type; `message` where the server names none.
    pub event: Text,
    /// Its `data` lines, with `\n` between them.
    pub data: Text,
    /// The last id that the server has sent, with this event or before; empty if there was none.
    pub id: Text,
    /// The reconnection time that came with this event.
    pub retry: Option<Duration>,
}

/// What a stream is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// An event.
    Event(Event),
    /// A comment, which servers send to show that they are alive.
    Comment(Text),
}

/// An event, or one of its lines, is larger than [`EventDecoder::max_event_bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLarge {
    limit: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event is larger than {} bytes", self.limit)
    }
}

impl std::error::Error for TooLarge {}

const BOM: &[u8; 3] = b"\xef\xbb\xbf";

/// Decodes a stream that arrives in arbitrary pieces, in time linear in its bytes. An event whose data is one line
/// that came in one piece is not copied.
#[derive(Clone, Debug)]
pub struct EventDecoder {
    max_event_bytes: usize,
    /// How much of a byte order mark was seen; beyond the mark nothing is looked for.
    bom_seen: usize,
    /// The last line ended with CR: an LF that follows belongs to it.
    skips_lf: bool,
    /// The beginning of a line.
    line: BytesMut,
    /// Of the event under way.
    name: Text,
    data: Data,
    event_retry: Option<Duration>,
    event_id: Option<Text>,
    bytes: usize,
    /// Of the stream.
    last_id: Text,
    retry: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Data {
    None,
    Line(Text),
    Lines(String),
}

impl Default for EventDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl EventDecoder {
    /// For one stream, from its beginning.
    pub fn new() -> Self {
        Self {
            // Larger than any text of a model, and large enough for an image in base64.
            max_event_bytes: 16 * 1024 * 1024,
            bom_seen: 0,
            skips_lf: false,
            line: BytesMut::new(),
            name: Text::default(),
            data: Data::None,
            event_retry: None,
            event_id: None,
            bytes: 0,
            last_id: Text::default(),
            retry: None,
        }
    }

    /// Bounds what is kept of an event that is not complete. Default 16 MiB.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// The id of the last event that was complete, one without data included; empty if there was none. For
    /// `Last-Event-ID`: a server that goes on behind it repeats an event that was cut off.
    pub fn last_event_id(&self) -> &str {
        &self.last_id
    }

    /// The reconnection time that the server has sent last.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Takes bytes off the front of `chunk` until there is an item; `None` once the chunk is used up. At the end
    /// of the stream an event that is not complete is dropped.
    ///
    /// # Errors
    /// The event is too large; the decoder is of no use after that.
    pub fn decode(&mut self, chunk: &mut Bytes) -> Result<Option<Item>, TooLarge> {
        self.skip_bom(chunk);
        loop {
            if self.skips_lf && !chunk.is_empty() {
                self.skips_lf = false;
                if chunk[0] == b'\n' {
                    chunk.advance(1);
                }
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) else {
                self.check_size(self.line.len() + chunk.len())?;
                self.line.extend_from_slice(chunk);
                chunk.clear();
                return Ok(None);
            };
            self.check_size(self.line.len() + end)?;
            self.skips_lf = chunk[end] == b'\r';
            let mut line = chunk.split_to(end);
            chunk.advance(1);
            if !self.line.is_empty() {
                self.line.extend_from_slice(&line);
                line = self.line.split().freeze();
            }
            if let Some(item) = self.take_line(line) {
                return Ok(Some(item));
            }
        }
    }

    fn check_size(&self, more: usize) -> Result<(), TooLarge> {
        let limit = self.max_event_bytes;
        if self.bytes + more > limit {
            return Err(TooLarge { limit });
        }
        Ok(())
    }

    /// One byte order mark at the very beginning is none of the stream's text.
    fn skip_bom(&mut self, chunk: &mut Bytes) {
        while let (Some(expected), Some(byte)) = (BOM.get(self.bom_seen), chunk.first()) {
            if byte != expected {
                self.line.extend_from_slice(&BOM[..self.bom_seen]);
                self.bom_seen = BOM.len();
                return;
            }
            chunk.advance(1);
            self.bom_seen += 1;
        }
    }

    fn take_line(&mut self, line: Bytes) -> Option<Item> {
        let colon = match line.first() {
            None => return self.dispatch().map(Item::Event),
            Some(b':') => return Some(Item::Comment(Text::decode(value(line, 0)))),
            Some(_) => memchr::memchr(b':', &line),
        };
        let (name, value) = match colon {
            Some(colon) => (line.slice(..colon), value(line, colon)),
            None => (line, Bytes::new()),
        };
        match &name[..] {
            b"data" => self.add_data(value),
            b"event" => {
                self.bytes += value.len();
                self.name = Text::decode(value);
            }
            b"id" if !value.contains(&0) => self.event_id = Some(Text::decode(value)),
            b"retry" => {
                if let Some(millis) = number(&value) {
                    self.event_retry = Some(Duration::from_millis(millis));
                    self.retry = self.event_retry;
                }
            }
            _ => {}
        }
        None
    }

    fn add_data(&mut self, value: Bytes) {
        self.bytes += value.len() + 1;
        let value = Text::decode(value);
        self.data = match std::mem::replace(&mut self.data, Data::None) {
            Data::None => Data::Line(value),
            Data::Line(first) => {
                let mut lines = String::with_capacity(2 * (first.len() + value.len() + 1));
                lines.push_str(&first);
                lines.push('\n');
                lines.push_str(&value);
                Data::Lines(lines)
            }
            Data::Lines(mut lines) => {
                lines.push('\n');
                lines.push_str(&value);
                Data::Lines(lines)
            }
        };
    }

    fn dispatch(&mut self) -> Option<Event> {
        self.bytes = 0;
        let name = std::mem::take(&mut self.name);
        let retry = self.event_retry.take();
        if let Some(id) = self.event_id.take() {
            self.last_id = id;
        }
        let data = match std::mem::replace(&mut self.data, Data::None) {
            Data::None => return None,
            Data::Line(line) => line,
            Data::Lines(lines) => Text::from(lines),
        };
        Some(Event {
            event: if name.is_empty() {
                Text::from_static("message")
            } else {
                name
            },
            data,
            id: self.last_id.clone(),
            retry,
        })
    }
}

/// What follows the colon, without the one space that may.
fn value(line: Bytes, colon: usize) -> Bytes {
    let is_spaced = line.get(colon + 1) == Some(&b' ');
    line.slice(colon + 1 + usize::from(is_spaced)..)
}

/// ASCII digits only; more than fits is as good as for ever.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |n: u64, digit: &u8| n.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(text.iter().fold(0, add))
}

/// The property that the fuzz target asserts: however the bytes are split, the items are those of the rules applied
/// to the whole text, word by word.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_splits(input: &[u8], pieces: &[usize]) {
    let mut decoder = EventDecoder::new();
    let mut items = Vec::new();
    let mut rest = input;
    let mut pieces = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let n = pieces.next().unwrap_or(rest.len()).clamp(1, rest.len());
        let (piece, after) = rest.split_at(n);
        rest = after;
        let mut chunk = Bytes::copy_from_slice(piece);
        while let Some(item) = decoder.decode(&mut chunk).expect("it is not that large") {
            items.push(item);
        }
        assert!(chunk.is_empty(), "it is used up");
    }
    let (expected, last_id, retry) = by_the_rules(input);
    assert_eq!(items, expected);
    assert_eq!(decoder.last_event_id(), last_id);
    assert_eq!(decoder.retry().map(|time| time.as_millis()), retry);
}

/// The standard's own steps, over the whole text at once.
#[cfg(any(test, fuzzing))]
fn by_the_rules(input: &[u8]) -> (Vec<Item>, String, Option<u128>) {
    let text = String::from_utf8_lossy(input);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let owned = |text: &str| Text::from(text);
    let (mut items, mut last_id, mut reconnection) = (Vec::new(), String::new(), None);
    let mut id = String::new();
    let (mut data, mut event, mut retry) = (String::new(), String::new(), None);
    // What follows the last end of line is no line.
    let Some((whole, _)) = text.rsplit_once('\n') else {
        return (items, last_id, reconnection);
    };
    for line in whole.split('\n') {
        let (field, value) = match line.split_once(':') {
            Some((field, value)) => (field, value.strip_prefix(' ').unwrap_or(value)),
            None => (line, ""),
        };
        match field {
            "" if line.is_empty() => {
                last_id.clone_from(&id);
                if !data.is_empty() {
                    data.pop();
                    let name = if event.is_empty() { "message" } else { &event };
                    items.push(Item::Event(Event {
                        event: owned(name),
                        data: owned(&data),
                        id: owned(&id),
                        retry,
                    }));
                }
                (data, event, retry) = (String::new(), String::new(), None);
            }
            "" => items.push(Item::Comment(owned(value))),
            "event" => value.clone_into(&mut event),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut id),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                let millis = value.parse().unwrap_or(u64::MAX);
                retry = Some(Duration::from_millis(millis));
                reconnection = Some(u128::from(millis));
            }
            _ => {}
        }
    }
    (items, last_id, reconnection)
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    fn decode(input: &str) -> Vec<Item> {
        let mut chunk = Bytes::copy_from_slice(input.as_bytes());
        let mut decoder = EventDecoder::new();
        let mut items = Vec::new();
        while let Some(item) = decoder.decode(&mut chunk).unwrap() {
            items.push(item);
        }
        items
    }

    /// Type, data and id of the events.
    fn events(input: &str) -> Vec<(String, String, String)> {
        let items = decode(input).into_iter();
        let events = items.filter_map(|item| match item {
            Item::Event(e) => Some((e.event.into(), e.data.into(), e.id.into())),
            Item::Comment(_) => None,
        });
        events.collect()
    }

    fn data(input: &str) -> Vec<String> {
        events(input).into_iter().map(|(_, data, _)| data).collect()
    }

    /// The examples of the standard, and the cases of web-platform-tests' eventsource folder.
    #[test]
    fn streams_of_the_standard_and_of_its_tests() {
        assert_eq!(data("data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
        let input = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n\
            data:  third event\n\n";
        let ids: Vec<_> = events(input)
            .into_iter()
            .map(|(_, d, id)| (d, id))
            .collect();
        let expected = [
            ("first event", "1"),
            ("second event", ""),
            (" third event", ""),
        ];
        assert_eq!(ids, expected.map(|(d, id)| (d.to_owned(), id.to_owned())));
        // "data" alone, twice, and an event that is not complete.
        assert_eq!(data("data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
        assert_eq!(data("data:test\n\ndata: test\n\n"), ["test", "test"]);
        // One mark is taken away, a second one is text.
        assert_eq!(
            data("\u{feff}data:1\n\n\u{feff}data:2\n\ndata:3\n\n"),
            ["1", "3"]
        );
        assert_eq!(data("\u{feff}\u{feff}data:1\n\ndata:2\n\n"), ["2"]);
        assert_eq!(data("data:1\r\ndata:2\n\rdata:3\r\r\n\n"), ["1\n2", "3"]);
        assert_eq!(
            data("data: msg1\ndata: msg1\n\n\n\ndata: last"),
            ["msg1\nmsg1"]
        );
        let comments = decode("data:1\n:\0\n:\r\ndata:2\n: x:y\r\ndata:3\n\n");
        assert_eq!(comments.len(), 4);
        assert_eq!(comments[2], Item::Comment(Text::from_static("x:y")));
        assert!(matches!(&comments[3], Item::Event(e) if e.data == "1\n2\n3"));
        // Names are exact, and others mean nothing.
        assert_eq!(
            data("data:a\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:b\n\n"),
            ["a\n\nb"]
        );
        assert_eq!(data("Data:1\ndata\0:2\ndata:3\n\n"), ["3"]);
        let named = "event:test\ndata:x\n\ndata:y\n\nevent:a\nevent:b\ndata:z\n\nevent:q\n\ndata:w\n\nevent:\ndata:v\n\n";
        let names: Vec<_> = events(named).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["test", "message", "b", "message", "message"]);
        assert_eq!(events("id: 1\0\ndata: x\n\nid: 2\n\ndata: y\n\n")[1].2, "2");
        assert_eq!(events("id: 1\0\ndata: x\n\n")[0].2, "");
        // An event that is cut off has not been had: its id is not the last.
        for (stream, last) in [
            ("id: 1\ndata: a\n\nid: 2\ndata: b\n", "1"),
            ("id: 7\n", ""),
            ("id: 7\n\n", "7"),
            ("id: 7\ndata: a\n\nid\n\n", ""),
        ] {
            let mut decoder = EventDecoder::new();
            let mut chunk = Bytes::from(stream);
            while decoder.decode(&mut chunk).unwrap().is_some() {}
            assert_eq!(decoder.last_event_id(), last, "{stream:?}");
        }
    }

    #[test]
    fn reconnection_time_is_digits_and_outlives_its_event() {
        let mut decoder = EventDecoder::new();
        let mut chunk =
            Bytes::from_static(b"retry:3000\nretry:1000x\ndata:x\n\ndata:y\n\nretry: 5\n\n");
        let mut next = || decoder.decode(&mut chunk).unwrap();
        let retry = |item| match item {
            Some(Item::Event(event)) => event.retry,
            _ => panic!("an event"),
        };
        assert_eq!(retry(next()), Some(Duration::from_secs(3)));
        assert_eq!(retry(next()), None);
        assert!(next().is_none());
        assert_eq!(decoder.retry(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn event_of_one_line_in_one_piece_shares_its_memory() {
        let whole = Bytes::from_static(b"data: {\"a\":1}\n\n");
        let mut chunk = whole.clone();
        let Ok(Some(Item::Event(event))) = EventDecoder::new().decode(&mut chunk) else {
            panic!("an event");
        };
        let data = event.data.into_bytes();
        assert!(whole.as_ptr_range().contains(&data.as_ptr()));
    }

    #[test]
    fn event_without_an_end_is_refused_at_its_bound() {
        let refused = |pieces: &[&str]| {
            let mut decoder = EventDecoder::new().max_event_bytes(100);
            pieces.iter().find_map(|piece| {
                let mut chunk = Bytes::copy_from_slice(piece.as_bytes());
                loop {
                    match decoder.decode(&mut chunk) {
                        Ok(Some(_)) => {}
                        Ok(None) => return None,
                        Err(error) => return Some(error.to_string()),
                    }
                }
            })
        };
        let said = Some("an event is larger than 100 bytes".to_owned());
        let long = "x".repeat(60);
        assert_eq!(refused(&["data:", &long, &long]), said, "a line in pieces");
        assert_eq!(
            refused(&[&format!("data:{long}{long}\n")]),
            said,
            "a line at once"
        );
        let line = format!("data:{long}\n");
        assert_eq!(refused(&[&line, &line]), said, "lines");
        let event = format!("data:{long}\n\n");
        assert_eq!(refused(&[&event, &event, &event]), None);
        let comment = format!(":{long}\n");
        assert_eq!(refused(&[&comment, &comment, &comment]), None);
    }

    proptest::proptest! {
        #[test]
        fn items_are_those_of_the_rules_however_the_bytes_are_split(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "data: a\n", "data:b\r", "data\n", "event: c\n", "id: d\r\n", "retry: 7\n", ": e\n",
                    "data", "event", "id", "retry", "x", ":", ": ", " ", "\n", "\r", "\r\n", "\n\n", "\u{feff}",
                    "\0", "12", "\u{e4}", "\u{1f600}",
                ]),
                0..40,
            ),
            noise in proptest::collection::vec((0usize..200, proptest::prelude::any::<u8>()), 0..3),
            pieces in proptest::collection::vec(1usize..9, 1..6),
        ) {
            let mut input = parts.concat().into_bytes();
            for (at, byte) in noise {
                let at = at.min(input.len());
                input.insert(at, byte);
            }
            check_splits(&input, &pieces);
            check_splits(&input, &[1]);
            check_splits(&input, &[usize::MAX]);
        }
    }
}
