//! HTTP/2 frames as they pass (RFC 9113 §4.1): a scanner that reads their headers, what of SETTINGS, GOAWAY and padding
//! must be known, and takes out empty DATA frames. Pure.

use super::unread::End;

pub(super) const HEADER: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE as we leave it: h2 refuses a larger frame at its head.
pub(super) const MAX_FRAME: u32 = 16_384;
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
pub(super) const ACK: u8 = 0x1;
pub(super) const PADDED: u8 = 0x8;
/// SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113 §6.5.2).
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
/// SETTINGS_MAX_HEADER_LIST_SIZE.
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl FrameHeader {
    pub(super) fn parse(head: &[u8; HEADER]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
        Self {
            len: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            // The top bit is reserved and ignored.
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        }
    }

    pub(super) fn is_empty_data(&self) -> bool {
        self.kind == DATA && self.len == 0 && self.flags & (END_STREAM | PADDED) == 0
    }

    pub(super) fn ends_stream(&self) -> bool {
        self.end().is_some()
    }

    /// How it ends its stream, if it does.
    pub(super) fn end(&self) -> Option<End> {
        let is_last = self.flags & END_STREAM != 0;
        match self.kind {
            DATA if is_last => Some(End::Complete),
            HEADERS if is_last && self.flags & END_HEADERS != 0 => Some(End::Complete),
            HEADERS if is_last => Some(End::Ended),
            RST_STREAM => Some(End::Reset),
            _ => None,
        }
    }
}

/// What the scanner saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen<'a> {
    Frame(FrameHeader),
    /// What a DATA frame carries, without its padding; told once that is known.
    Content {
        frame: FrameHeader,
        bytes: u32,
    },
    /// An empty DATA frame was taken out.
    Filtered,
    /// A SETTINGS frame that is no acknowledgement is whole.
    Settings,
    /// A SETTINGS frame says how many streams may be open.
    StreamLimit(u32),
    /// A SETTINGS frame says how large a head may be.
    HeaderListLimit(u32),
    /// A SETTINGS frame says with which window streams begin.
    InitialWindow(u32),
    /// The connection's window grows by so much.
    Window(u32),
    GoAway(GoAway),
    /// A piece of the text behind it.
    GoAwayText(&'a [u8]),
}

/// What a GOAWAY frame says (RFC 9113 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GoAway {
    /// Streams above it were not processed.
    pub(crate) last_stream: u32,
    pub(crate) code: u32,
}

impl GoAway {
    /// A stream id that means "not decided yet": the peer announces its shutdown.
    const ALL: u32 = 0x7fff_ffff;

    /// In good order, and not because something went wrong.
    pub(crate) fn is_graceful(self) -> bool {
        self.code == 0
    }

    /// ENHANCE_YOUR_CALM.
    pub(crate) fn asks_for_calm(self) -> bool {
        self.code == 0xb
    }

    /// Requests that the peer took, if it says so.
    pub(crate) fn requests(self) -> Option<u64> {
        (self.last_stream != Self::ALL).then(|| u64::from(self.last_stream).div_ceil(2))
    }
}

/// The payload of a frame that is read and not only passed on, one item of it at a time.
#[derive(Debug)]
struct Item {
    kind: ItemKind,
    bytes: [u8; 8],
    have: usize,
}

#[derive(Clone, Copy, Debug)]
enum ItemKind {
    /// The length of the padding (RFC 9113 §6.1).
    Padding(FrameHeader),
    Setting,
    Window,
    GoAway,
    GoAwayText,
}

impl ItemKind {
    fn len(self) -> usize {
        match self {
            Self::Padding(_) => 1,
            Self::Setting => 6,
            Self::Window => 4,
            Self::GoAway => 8,
            Self::GoAwayText => 0,
        }
    }
}

impl Item {
    fn of(header: FrameHeader) -> Option<Self> {
        let kind = match header.kind {
            DATA if header.flags & PADDED != 0 && header.len <= MAX_FRAME => {
                ItemKind::Padding(header)
            }
            SETTINGS if header.flags & ACK == 0 => ItemKind::Setting,
            GOAWAY => ItemKind::GoAway,
            WINDOW_UPDATE if header.stream == 0 => ItemKind::Window,
            _ => return None,
        };
        Some(Self::new(kind))
    }

    fn new(kind: ItemKind) -> Self {
        Self {
            kind,
            bytes: [0; 8],
            have: 0,
        }
    }

    /// Takes bytes off the front of `payload` until the item is whole.
    fn fill(&mut self, payload: &mut &[u8]) -> bool {
        let len = self.kind.len();
        let n = payload.len().min(len - self.have);
        let (head, rest) = payload.split_at(n);
        self.bytes[self.have..self.have + n].copy_from_slice(head);
        self.have += n;
        *payload = rest;
        self.have == len
    }
}

/// Follows frames through a byte stream that arrives in arbitrary pieces. Bytes of a header that
/// is not whole yet are held back, so that the frame can still be taken out.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    head: [u8; HEADER],
    /// Header bytes read.
    pub(super) have: usize,
    payload_left: u32,
    /// Whose payload it is.
    stream: u32,
    item: Option<Item>,
}

impl Scanner {
    /// Header bytes that are held back.
    pub(super) fn held(&self) -> &[u8] {
        &self.head[..self.have]
    }

    /// Scans `bytes`, of which the first `held` are those held back before. Compacts what stays
    /// to the front and returns its length.
    pub(super) fn scan(
        &mut self,
        bytes: &mut [u8],
        held: usize,
        mut seen: impl FnMut(Seen<'_>),
    ) -> usize {
        let len = bytes.len();
        let mut read = held;
        let mut write = held;
        while read < len {
            if self.payload_left > 0 {
                let n = (len - read).min(self.payload_left as usize);
                self.capture(&bytes[read..read + n], &mut seen);
                if write != read {
                    bytes.copy_within(read..read + n, write);
                }
                read += n;
                write += n;
                self.payload_left -= n as u32;
                self.tell_whole_settings(&mut seen);
                continue;
            }
            if self.have == 0
                && write == read
                && let Some(whole) = bytes[read..].first_chunk::<HEADER>()
            {
                // The usual case: nothing is held back and nothing was taken out.
                let header = FrameHeader::parse(whole);
                if !header.is_empty_data() {
                    read += HEADER;
                    write += HEADER;
                    self.begin(header, &mut seen);
                    continue;
                }
            }
            let n = (len - read).min(HEADER - self.have);
            self.head[self.have..self.have + n].copy_from_slice(&bytes[read..read + n]);
            if write != read {
                bytes.copy_within(read..read + n, write);
            }
            self.have += n;
            read += n;
            write += n;
            if self.have < HEADER {
                break;
            }
            let header = FrameHeader::parse(&self.head);
            self.have = 0;
            self.begin(header, &mut seen);
            if header.is_empty_data() {
                write -= HEADER;
                seen(Seen::Filtered);
            }
        }
        write - self.held().len()
    }

    /// The header of a frame is whole.
    fn begin(&mut self, header: FrameHeader, seen: &mut impl FnMut(Seen<'_>)) {
        seen(Seen::Frame(header));
        self.item = Item::of(header);
        self.payload_left = header.len;
        self.stream = header.stream;
        self.tell_whole_settings(seen);
        let is_content = header.kind == DATA && self.item.is_none();
        if is_content && !header.is_empty_data() && header.len <= MAX_FRAME {
            seen(Seen::Content {
                frame: header,
                bytes: header.len,
            });
        }
    }

    fn tell_whole_settings(&mut self, seen: &mut impl FnMut(Seen<'_>)) {
        if self.payload_left == 0
            && let Some(Item {
                kind: ItemKind::Setting,
                ..
            }) = self.item
        {
            self.item = None;
            seen(Seen::Settings);
        }
    }

    /// The stream in the middle of whose frame it ends; 0 if that is none.
    pub(super) fn cut_in(&self) -> u32 {
        if self.payload_left > 0 {
            self.stream
        } else {
            0
        }
    }

    fn capture(&mut self, mut payload: &[u8], seen: &mut impl FnMut(Seen<'_>)) {
        while let Some(item) = &mut self.item {
            if !item.fill(&mut payload) {
                return;
            }
            let [a, b, c, d, e, f, g, h] = item.bytes;
            match item.kind {
                ItemKind::Padding(frame) => {
                    let bytes = frame.len.saturating_sub(1 + u32::from(a));
                    seen(Seen::Content { frame, bytes });
                    self.item = None;
                }
                ItemKind::Setting => {
                    let value = u32::from_be_bytes([c, d, e, f]);
                    match u16::from_be_bytes([a, b]) {
                        MAX_CONCURRENT_STREAMS => seen(Seen::StreamLimit(value)),
                        INITIAL_WINDOW_SIZE => seen(Seen::InitialWindow(value)),
                        MAX_HEADER_LIST_SIZE => seen(Seen::HeaderListLimit(value)),
                        _ => {}
                    }
                    item.have = 0;
                }
                ItemKind::Window => {
                    // The top bit is reserved.
                    seen(Seen::Window(u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff));
                    self.item = None;
                }
                ItemKind::GoAway => {
                    seen(Seen::GoAway(GoAway {
                        last_stream: u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff,
                        code: u32::from_be_bytes([e, f, g, h]),
                    }));
                    *item = Item::new(ItemKind::GoAwayText);
                }
                ItemKind::GoAwayText => {
                    if !payload.is_empty() {
                        seen(Seen::GoAwayText(payload));
                    }
                    return;
                }
            }
        }
    }
}

/// The property that the fuzz target asserts: what comes out is what went in without the empty
/// DATA frames, however it was split and whatever room the reader had.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_splits(input: &[u8], piece: usize) {
    let piece = piece.max(1);
    let mut scanner = Scanner::default();
    let mut out = Vec::new();
    let mut seen_frames = 0;
    for part in input.chunks(piece) {
        let held = scanner.held().to_vec();
        let mut bytes = held.clone();
        bytes.extend_from_slice(part);
        let kept = scanner.scan(&mut bytes, held.len(), |seen| {
            seen_frames += usize::from(matches!(seen, Seen::Frame(_)));
        });
        out.extend_from_slice(&bytes[..kept]);
    }
    out.extend_from_slice(scanner.held());
    assert_eq!((out, seen_frames), without_empty_frames(input));
}

/// The same bytes without empty DATA frames, and how many frames there were.
#[cfg(any(test, fuzzing))]
pub(super) fn without_empty_frames(input: &[u8]) -> (Vec<u8>, usize) {
    let mut expected = Vec::new();
    let mut frames = 0;
    let mut rest = input;
    while let Some((head, after)) = rest.split_first_chunk::<HEADER>() {
        let header = FrameHeader::parse(head);
        frames += 1;
        if !header.is_empty_data() {
            expected.extend_from_slice(head);
        }
        let n = (header.len as usize).min(after.len());
        expected.extend_from_slice(&after[..n]);
        rest = &after[n..];
    }
    expected.extend_from_slice(rest);
    (expected, frames)
}

/// A frame, whole.
#[cfg(test)]
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn empty_data_frames_are_taken_out_at_every_split() {
        let bytes = [
            frame(SETTINGS, 0, 0, &[]),
            frame(HEADERS, 4, 1, b"abc"),
            frame(DATA, 0, 1, &[]),
            frame(DATA, 0, 1, b"data"),
            frame(DATA, 0, 1, &[]),
            frame(DATA, 0, 1, &[]),
            frame(DATA, PADDED, 1, &[]),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 11, b'd']),
            frame(DATA, END_STREAM, 1, &[]),
        ]
        .concat();
        for piece in 1..=bytes.len() {
            check_splits(&bytes, piece);
        }
        let mut goaways = Vec::new();
        let mut text = Vec::new();
        Scanner::default().scan(&mut bytes.clone(), 0, |seen| match seen {
            Seen::GoAway(goaway) => goaways.push(goaway),
            Seen::GoAwayText(piece) => text.extend_from_slice(piece),
            _ => {}
        });
        let goaway = GoAway {
            last_stream: 5,
            code: 11,
        };
        assert_eq!((&goaways[..], &text[..]), (&[goaway][..], &b"d"[..]));
        assert!(goaway.asks_for_calm() && !goaway.is_graceful());
        assert_eq!(goaway.requests(), Some(3));
        let announced = GoAway {
            last_stream: GoAway::ALL,
            code: 0,
        };
        assert!(announced.is_graceful() && announced.requests().is_none());
    }

    #[test]
    fn content_is_told_without_padding_however_it_is_split() {
        let bytes = [
            frame(DATA, 0, 1, b"data"),
            frame(DATA, PADDED, 3, &[2, b'x', b'y', b'z', 0, 0]),
            frame(DATA, PADDED, 5, &[0]),
        ]
        .concat();
        for piece in 1..=bytes.len() {
            let mut scanner = Scanner::default();
            let mut content = Vec::new();
            for part in bytes.chunks(piece) {
                let held = scanner.held().to_vec();
                let mut bytes = [&held, part].concat();
                scanner.scan(&mut bytes, held.len(), |seen| {
                    if let Seen::Content { frame, bytes } = seen {
                        content.push((frame.stream, bytes));
                    }
                });
            }
            assert_eq!(content, [(1, 4), (3, 3), (5, 0)]);
        }
    }
}
