//! Peers for the tests: the other end of the wire, scripted, counted and on loopback only.
//!
//! | module | the peer |
//! |---|---|
//! | [`dns`] | a name server with scripted answers per name and family |
//! | [`pki`] | a certificate authority and the TLS configurations made from it |
//! | [`server`] | a sound HTTP server (hyper's) that counts everything; WebSockets (tungstenite's) |
//! | [`h1_peer`] | an HTTP/1 peer scripted byte by byte |
//! | [`h2_peer`] | an HTTP/2 peer scripted frame by frame |
//! | [`half_rtt`] | a server that answers early data with its first flight |
//! | [`providers`] | servers that play DeepSeek, Gemini, Groq and Codestral |
//! | [`grpc`] | the health service of gRPC (tonic's) |
//! | [`stall`] | peers that never get as far as HTTP |
//! | [`raw_dns`] | a name server that answers with whatever bytes a test makes |
//! | [`proxy`] | a proxy: CONNECT, absolute-form, SOCKS5, with TLS or without |
//! | [`sim`] | a network of memory under a paused clock, with scripted HTTP/1 and HTTP/2 peers |
//! | [`counting`] | no peer: an allocator that counts |
//! | [`gate`] | what holds an answer back until the test says so |
//! | [`port`], [`peer_io`] | what the peers have in common |
//!
//! Nothing here sleeps to synchronise: a test waits for a count, a gate or the end of a connection.

// Each test binary includes this module whole and uses a part of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod counting;
pub mod dns;
pub mod gate;
pub mod grpc;
pub mod h1_peer;
pub mod h2_peer;
pub mod half_rtt;
pub mod peer_io;
pub mod pki;
pub mod port;
pub mod providers;
pub mod proxy;
pub mod raw_dns;
pub mod server;
pub mod sim;
pub mod stall;
