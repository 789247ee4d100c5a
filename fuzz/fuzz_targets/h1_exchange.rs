//! A whole response over HTTP/1.1; the first byte is the size of the pieces that it arrives in, and whether
//! the request was HEAD.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::h1_exchange(data));
