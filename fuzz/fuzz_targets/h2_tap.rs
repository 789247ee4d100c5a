//! Frame headers under h2, in pieces of one size.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::h2_tap(data));
