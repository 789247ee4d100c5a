//! A stream of Server-Sent Events behind two bytes that say in which pieces it arrives.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::sse_decoder(data));
