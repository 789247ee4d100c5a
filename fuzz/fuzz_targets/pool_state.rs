//! Operations on the books of one origin, two bytes each behind one for the limits.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::pool_state(data));
