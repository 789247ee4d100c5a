//! A whole HTTP/2 connection over memory, three bytes an operation: who asks, what the peer sends, how much is
//! read and written at a time.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::h2_connection(data));
