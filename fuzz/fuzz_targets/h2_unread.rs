//! What the readers of an HTTP/2 connection leave unread, two bytes an operation.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::h2_unread(data));
