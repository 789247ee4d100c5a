//! The head of an HTTP/1 response, in two pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::h1_head(data));
