//! Scheme, host and port of a URL.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::origin(data));
