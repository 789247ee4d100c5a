//! Operations on the cache of names, two bytes each.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::dns_cache(data));
