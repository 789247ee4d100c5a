//! The chunked transfer coding (RFC 9112 §7.1), strict. Pure: bytes in, frames out.
//!
//! Leniency here is how responses get out of step, so: hexadecimal digits only, CRLF only, no
//! white space, and bounds on extensions and trailers.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// All chunk extensions of one body together.
const MAX_EXTENSION_BYTES: usize = 16 * 1024;
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const MAX_TRAILERS: usize = 64;

/// What the decoder found next.
#[derive(Debug, PartialEq)]
pub(crate) enum Decoded {
    Data(Bytes),
    /// The body is complete.
    End(Option<HeaderMap>),
    /// More bytes are needed.
    Incomplete,
}

#[derive(Debug)]
enum State {
    Size { value: u64, digits: u32 },
    Extension,
    SizeLf,
    Data(u64),
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// Decodes one body.
#[derive(Debug)]
pub(crate) struct ChunkedDecoder {
    state: State,
    extension_bytes: usize,
    /// The size of the chunk whose size line is being read.
    size: u64,
    /// Trailer bytes already searched for their end.
    searched: usize,
}

impl ChunkedDecoder {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Size {
                value: 0,
                digits: 0,
            },
            extension_bytes: 0,
            size: 0,
            searched: 0,
        }
    }

    /// Takes what it can off the front of `buffer`.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, &'static str> {
        loop {
            match &mut self.state {
                State::Data(left) => {
                    if buffer.is_empty() {
                        return Ok(Decoded::Incomplete);
                    }
                    let n = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(buffer.len());
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Decoded::Data(buffer.split_to(n).freeze()));
                }
                State::Trailers => return self.trailers(buffer),
                State::Done => return Ok(Decoded::End(None)),
                _ => {
                    if buffer.is_empty() {
                        return Ok(Decoded::Incomplete);
                    }
                    let byte = buffer.get_u8();
                    self.step(byte)?;
                }
            }
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), &'static str> {
        self.state = match (&self.state, byte) {
            (State::Size { value, digits }, b) if b.is_ascii_hexdigit() => {
                let digit = (b as char).to_digit(16).unwrap_or_default();
                let value =
                    value.checked_mul(16).ok_or("chunk size is too large")? | u64::from(digit);
                if *digits >= 16 {
                    return Err("chunk size has too many digits");
                }
                State::Size {
                    value,
                    digits: digits + 1,
                }
            }
            (State::Size { digits: 0, .. }, _) => return Err("chunk size is not hexadecimal"),
            (State::Size { value, .. }, b'\r') => {
                self.size = *value;
                State::SizeLf
            }
            (State::Size { value, .. }, b';') => {
                self.size = *value;
                State::Extension
            }
            (State::Size { .. }, _) => return Err("chunk size is not hexadecimal"),
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\n' | 0) => return Err("chunk extension holds a control byte"),
            (State::Extension, _) => {
                self.extension_bytes += 1;
                if self.extension_bytes > MAX_EXTENSION_BYTES {
                    return Err("chunk extensions are too long");
                }
                State::Extension
            }
            (State::SizeLf, b'\n') if self.size == 0 => State::Trailers,
            (State::SizeLf, b'\n') => State::Data(self.size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size {
                value: 0,
                digits: 0,
            },
            _ => return Err("chunk does not end in CRLF"),
        };
        Ok(())
    }

    fn trailers(&mut self, buffer: &mut BytesMut) -> Result<Decoded, &'static str> {
        if buffer.starts_with(b"\r\n") {
            buffer.advance(2);
            self.state = State::Done;
            return Ok(Decoded::End(None));
        }
        let from = self.searched.saturating_sub(3);
        let Some(at) = buffer[from..].windows(4).position(|w| w == b"\r\n\r\n") else {
            if buffer.len() > MAX_TRAILER_BYTES {
                return Err("trailers are too large");
            }
            // Whoever ends the section so waits for us: there is nothing more to come.
            let ends_bare = |at: usize| {
                let rest = &buffer[at + 1..];
                let is_bare = at == 0 || buffer[at - 1] != b'\r';
                at == 0 || rest.starts_with(b"\n") || is_bare && rest.starts_with(b"\r\n")
            };
            let mut lines = memchr::memchr_iter(b'\n', &buffer[from..]);
            if lines.any(|at| ends_bare(from + at)) {
                return Err("trailers are malformed");
            }
            self.searched = buffer.len();
            return Ok(Decoded::Incomplete);
        };
        let len = from + at + 4;
        if len > MAX_TRAILER_BYTES {
            return Err("trailers are too large");
        }
        let bytes = buffer.split_to(len).freeze();
        let mut slots = [httparse::EMPTY_HEADER; MAX_TRAILERS];
        let Ok(httparse::Status::Complete((parsed, fields))) =
            httparse::parse_headers(&bytes, &mut slots)
        else {
            return Err("trailers are malformed");
        };
        if parsed != len {
            return Err("trailers are malformed");
        }
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes())
                .map_err(|_| "trailers are malformed")?;
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
                .map_err(|_| "trailers are malformed")?;
            trailers.append(name, value);
        }
        self.state = State::Done;
        Ok(Decoded::End(Some(trailers)))
    }
}

/// The property that the fuzz target asserts: the decoded body does not depend on how the bytes
/// were split, and nothing behind the end is consumed.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_splits(input: &[u8], split: usize) {
    let run = |cut: usize| -> (Vec<u8>, Result<Option<usize>, &'static str>) {
        let mut decoder = ChunkedDecoder::new();
        let mut buffer = BytesMut::new();
        let mut body = Vec::new();
        for part in [&input[..cut], &input[cut..]] {
            buffer.extend_from_slice(part);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Decoded::Data(data)) => {
                        assert!(!data.is_empty());
                        body.extend_from_slice(&data);
                    }
                    Ok(Decoded::Incomplete) => break,
                    Ok(Decoded::End(_)) => {
                        // The first part alone may be enough; the rest was never fed.
                        let unfed = if std::ptr::eq(part, &input[..cut]) && cut < input.len() {
                            input.len() - cut
                        } else {
                            0
                        };
                        return (body, Ok(Some(buffer.len() + unfed)));
                    }
                    Err(e) => return (body, Err(e)),
                }
            }
        }
        (body, Ok(None))
    };
    let whole = run(input.len());
    let parts = run(split.min(input.len()));
    assert_eq!(whole.0, parts.0);
    assert_eq!(whole.1.is_err(), parts.1.is_err());
    if let (Ok(a), Ok(b)) = (whole.1, parts.1) {
        assert_eq!(a, b);
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    fn decode(text: &str) -> Result<(String, Option<HeaderMap>, usize), &'static str> {
        let mut buffer = BytesMut::from(text);
        let mut decoder = ChunkedDecoder::new();
        let mut body = Vec::new();
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::End(trailers) => {
                    return Ok((String::from_utf8(body).unwrap(), trailers, buffer.len()));
                }
                Decoded::Incomplete => return Err("incomplete"),
            }
        }
    }

    #[test]
    fn body_extensions_and_trailers_are_read_to_the_end_and_not_beyond() {
        let text = "5\r\nhello\r\n6;name=\"v\"\r\n world\r\n0\r\nx-sum: 1\r\n\r\nNEXT";
        let (body, trailers, left) = decode(text).unwrap();
        assert_eq!((body.as_str(), left), ("hello world", 4));
        assert_eq!(trailers.unwrap()["x-sum"], "1");
        for split in 0..text.len() {
            check_splits(text.as_bytes(), split);
        }
        assert_eq!(decode("0\r\n\r\n").unwrap().0, "");
    }

    #[test]
    fn lenient_forms_are_refused() {
        for text in [
            "0x5\r\nhello\r\n0\r\n\r\n",
            "-1\r\n",
            "+5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "\r\n",
            "5\nhello\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n0\r\n\r\n",
            "10000000000000000\r\n",
            "00000000000000005\r\nhello",
            "5;a\n\r\nhello",
            "0\r\n: bad\r\n\r\n",
        ] {
            let error = decode(text).expect_err(text);
            assert_ne!(error, "incomplete", "{text:?}");
        }
    }

    #[test]
    fn bounds_hold() {
        let long = format!("5;{}\r\nhello\r\n", "x".repeat(20_000));
        assert_eq!(decode(&long).unwrap_err(), "chunk extensions are too long");
        let trailers = format!("0\r\nx: {}", "y".repeat(20_000));
        assert_eq!(decode(&trailers).unwrap_err(), "trailers are too large");
    }
}
