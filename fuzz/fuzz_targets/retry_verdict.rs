//! Failures and answers of one request's attempts, two bytes each.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::retry_verdict(data));
