//! What a server says in a WebSocket, behind a byte that says in which pieces it arrives.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| firstbyte::fuzzing::websocket(data));
