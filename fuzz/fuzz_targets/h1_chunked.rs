//! The chunked transfer coding, in two pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::h1_chunked(data));
