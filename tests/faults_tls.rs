//! How TLS servers misbehave while a connection is made, and the right answer to each.
//!
//! | fault | test |
//! |---|---|
//! | expired, not yet valid, wrong name, self-signed, unknown authority | `bad_input::certificate_that_is_not_valid...`; `tls::server_name...` |
//! | no protocol in common, none chosen, another than promised | here; `bad_input`; `early_data::server_that_changes...` |
//! | old versions only | `tls::versions_are_held_to` |
//! | HelloRetryRequest | here; its round trips: `race` on a paused clock |
//! | ticket forgotten, certificate replaced, tickets of others, too many | here; `tls::tickets_stay...` |
//! | early data rejected, refused with 425, read by an impostor, replayed | `early_data` |
//! | stall, RST and FIN in the handshake, nonsense | here; `faults_tcp`; `race`; `bad_input` |
//! | a large chain of certificates | here |
//! | a certificate of ours is wanted, wrong, exchanged | `tls::client_certificate...` |
//! | the name is not known to the server | here |
//! | close_notify or an alert while idle | here |
//! | verification switched off for one client | `tls::verifier_of_ones_own...` |
//! | a key log by the environment | here |
//!
//! Left to rustls, which refuses them, and its own tests: a protocol that was not offered, a second or senseless
//! HelloRetryRequest, downgrade sentinels, KeyUpdate storms, renegotiation and post-handshake authentication, empty and
//! oversized records. Closing without close_notify is about bodies: `http1_peer`.

mod common;
mod support;

use std::sync::Arc;
use std::time::Duration;

use common::{World, eventually, in_time};
use firstbyte::tls::TlsOptions;
use firstbyte::{CloseReason, ErrorKind, Phase, Protocols, ReplaySafety, Timeouts};
use http::Version;
use rustls::server::{ClientHello, ResolvesServerCert};
use support::gate::Gate;
use support::h1_peer::H1Peer;
use support::peer_io::Listening;
use support::pki;
use support::port;
use support::server::Server;

#[tokio::test]
async fn no_protocol_in_common_is_told_and_none_at_all_is_http1() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["api.test"]);
        let other = Server::builder()
            .identity(&identity, "api.test")
            .alpn(&["acme-tls/1"])
            .start()
            .await;
        let client = world.client_of(&other.url("/"), Protocols::Auto);
        let error = client.post("/").body("x").send().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.phase()),
            (ErrorKind::Tls, Some(Phase::Tls))
        );
        assert_eq!(error.replay_safety(), ReplaySafety::NotSent);
        assert!(
            error.to_string().contains("NoApplicationProtocol"),
            "{error}"
        );

        let none = Server::builder()
            .identity(&identity, "api.test")
            .alpn(&[])
            .start()
            .await;
        let client = world.client_of(&none.url("/"), Protocols::Auto);
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.version(), Version::HTTP_11);
        let client = world.client_of(&none.url("/"), Protocols::Http2);
        let error = client.get("/").send().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    })
    .await;
}

#[tokio::test]
async fn hello_retry_request_is_answered_and_stands_in_the_trace() {
    in_time(async {
        let world = World::new().await;
        let mut provider = rustls::crypto::CryptoProvider::clone(&pki::provider());
        provider
            .kx_groups
            .retain(|group| group.name() == rustls::NamedGroup::secp384r1);
        let identity = world.pki.server(&["api.test"]);
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let server = Server::builder()
            .tls_config(config)
            .host("api.test")
            .start()
            .await;
        let client = world.client_of(&server.url("/"), Protocols::Auto);
        let reconnect = async || {
            let response = client.get("/").send().await.unwrap();
            let facts = response.connection().trace().tls_facts.clone().unwrap();
            drop(response);
            world.pool.close_idle();
            eventually("it is closed", || world.pool.stats().open == 0).await;
            facts
        };
        let first = reconnect().await;
        assert!(first.hello_retry && !first.resumed);
        assert_eq!(first.group, Some("secp384r1"));
        // The group is remembered: no second round trip any more.
        let second = reconnect().await;
        assert!(!second.hello_retry, "{second:?}");
        assert_eq!(server.counts().connections_accepted, 2, "one dial each");
    })
    .await;
}

#[tokio::test]
async fn forgotten_ticket_means_a_full_handshake_and_is_reported_so() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["api.test"]);
        let fresh = || Server::builder().identity(&identity, "api.test");
        let server = fresh().start().await;
        let addr = server.addr();
        let client = world.client_of(&server.url("/"), Protocols::Auto);
        client.get("/").send().await.unwrap();
        world.pool.close_idle();
        eventually("it is closed", || world.pool.stats().open == 0).await;
        // A restart: new ticket keys.
        drop(server);
        let restarted = fresh().bind(addr).start().await;
        let response = client.get("/").send().await.unwrap();
        assert_eq!(response.connection().tls_resumed(), Some(false));
        let counts = restarted.counts();
        assert_eq!((counts.tls_full, counts.tls_resumed), (1, 0));
        assert_eq!(counts.tls_failed, 0);
    })
    .await;
}

#[tokio::test]
async fn thousand_tickets_are_cut_to_what_a_burst_needs() {
    in_time(async {
        let world = World::new().await;
        let mut config = pki::server_config(&world.pki.server(&["api.test"]), &["h2"]);
        config.send_tls13_tickets = 1000;
        config.max_tls13_tickets = 1000;
        let server = Server::builder()
            .tls_config(config)
            .host("api.test")
            .start()
            .await;
        let client = world.client_of(&server.url("/"), Protocols::Auto);
        for _ in 0..20 {
            client.get("/").send().await.unwrap();
            world.pool.close_idle();
            eventually("it is closed", || world.pool.stats().open == 0).await;
            assert!(world.pool.stats().tls_tickets <= 32);
        }
        assert!(world.pool.stats().resumed >= 19);
    })
    .await;
}

#[tokio::test]
async fn stall_at_each_flight_is_bounded_and_the_connection_closed() {
    in_time(async {
        // ServerHello's first bytes: a record header, the handshake header, and no more.
        let started = [0x16, 0x03, 0x03, 0x00, 0x7a, 0x02, 0x00, 0x00, 0x76];
        for bytes in [&[][..], &started[..3], &started] {
            let bytes = bytes.to_vec();
            let peer = Listening::start(port::any(), None, move |mut io, _| {
                let bytes = bytes.clone();
                async move {
                    io.read(5).await;
                    io.send(&bytes).await;
                    io.closed_by_client().await;
                }
            });
            let pool = firstbyte::ConnectionPool::builder()
                .resolve_to("api.test", ["127.0.0.1".parse().unwrap()])
                .connect_timeout(Duration::from_millis(200))
                .build()
                .unwrap();
            let url = format!("https://api.test:{}/", peer.addr().port());
            let client = pool.client_builder(url).build().unwrap();
            let error = client.get("/").send().await.unwrap_err();
            assert!(error.is_timeout(), "{error}");
            assert_eq!(error.phase(), Some(Phase::Tls));
            eventually("the dial is over", || pool.stats().open == 0).await;
        }
    })
    .await;
}

#[tokio::test]
async fn chain_of_a_hundred_certificates_is_judged_in_no_time() {
    in_time(async {
        let world = World::new().await;
        let mut identity = world.pki.server(&["api.test"]);
        let filler = pki::Pki::new();
        identity.chain.extend((0..100).map(|_| filler.ca_der()));
        let server = Server::builder()
            .identity(&identity, "api.test")
            .start()
            .await;
        let client = world.client_of(&server.url("/"), Protocols::Auto);
        assert_eq!(client.get("/").send().await.unwrap().status(), 200);
        // And with a root that leads nowhere.
        let strict = TlsOptions::new()
            .builtin_roots(false)
            .add_root(pki::Pki::new().ca_der());
        let builder = world.pool.client_builder(server.url("/")).tls(strict);
        let error = builder.build().unwrap().get("/").send().await.unwrap_err();
        assert!(error.is_tls(), "{error}");
    })
    .await;
}

/// Knows no name.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
}

#[tokio::test]
async fn server_that_does_not_know_the_name_is_told_with_its_alert() {
    in_time(async {
        let world = World::new().await;
        let config = rustls::ServerConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Nobody));
        let server = Server::builder()
            .tls_config(config)
            .host("api.test")
            .start()
            .await;
        let client = world.client_of(&server.url("/"), Protocols::Auto);
        let error = client.get("/").send().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert!(
            error.to_string().contains("refused the handshake"),
            "{error}"
        );
        assert_eq!(server.counts().connections_accepted, 1, "dialled once");
    })
    .await;
}

#[tokio::test]
async fn connection_that_the_peer_ends_while_idle_is_gone_before_it_is_asked_for() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["api.test"]);
        for (what, ending) in [("close_notify", 0), ("FIN alone", 1), ("alert", 2)] {
            let gate = Gate::new();
            let read = gate.waiter();
            let peer = H1Peer::start_tls(&identity, move |mut conn, index| {
                let read = read.clone();
                async move {
                    loop {
                        if conn.read_head().await.is_empty() {
                            return;
                        }
                        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                            .await;
                        if index > 0 {
                            continue;
                        }
                        read.clone().opened().await;
                        match ending {
                            0 => return conn.close().await,
                            1 => return conn.close_without_notify().await,
                            // A record that does not decrypt is as fatal as an alert.
                            _ => {
                                use tokio::io::AsyncWriteExt;
                                let record = [
                                    0x17, 3, 3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                    0, 0, 0, 0, 0,
                                ];
                                let _sent = conn.tcp_mut().write_all(&record).await;
                                conn.closed_by_client().await;
                                return;
                            }
                        }
                    }
                }
            });
            let url = format!("https://api.test:{}/", peer.port());
            let client = world.client_of(&url, Protocols::Auto);
            let mut first = client.get("/").send().await.unwrap();
            assert_eq!(first.text().await.unwrap(), "ok");
            gate.open();
            eventually("it is gone", || world.pool.stats().open == 0).await;
            let closed = world.pool.stats().closed;
            assert!(
                closed.contains_key(&CloseReason::PeerClosedIdle),
                "{what}: {closed:?}"
            );
            let mut second = client.post("/").body("x").send().await.unwrap();
            assert_eq!(second.text().await.unwrap(), "ok", "{what}");
            assert_eq!(second.metrics().attempts, 1);
            drop(second);
            world.pool.close_idle();
            eventually("it is closed", || world.pool.stats().open == 0).await;
        }
    })
    .await;
}

#[test]
fn nothing_in_the_library_reads_the_environments_key_log() {
    let mut directories = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("SSLKEYLOGFILE"), "{}", path.display());
            // rustls' own log that follows the variable.
            assert!(!text.contains("KeyLogFile::new"), "{}", path.display());
        }
    }
    assert!(files > 50);
}

#[tokio::test]
async fn handshake_that_trickles_in_is_bounded_by_the_connect_timeout() {
    in_time(async {
        let world = World::new().await;
        let peer = Listening::start(port::any(), None, |mut io, _| async move {
            io.read(5).await;
            // A record of 16 KiB, a byte at a time, for as long as somebody listens.
            io.send(&[0x16, 0x03, 0x03, 0x3f, 0xff]).await;
            while io.send(&[2]).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let url = format!("https://api.test:{}/", peer.addr().port());
        let client = world.client_of(&url, Protocols::Auto);
        let timeouts = Timeouts::default().connect(Duration::from_millis(200));
        let error = client.get("/").timeouts(timeouts).send().await.unwrap_err();
        assert!(
            error.is_timeout() && error.phase() == Some(Phase::Tls),
            "{error}"
        );
    })
    .await;
}
