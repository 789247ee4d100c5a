//! What TLS options do on the wire: whom we trust, who we are, what we offer.

mod common;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use common::{World, eventually, in_time};
use firstbyte::io::{BoxFuture, Dial, DialTarget, Transport};
use firstbyte::tls::danger::{self, ServerCertVerifier};
use firstbyte::tls::{TlsOptions, TlsProvider, TlsVersion};
use firstbyte::{Client, ErrorKind, Phase, Protocols, ReplaySafety, Response};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use support::pki::{self, Pki};
use support::server::Server;

/// Trusts the world's authority alone.
fn trusting(world: &World) -> TlsOptions {
    TlsOptions::new()
        .builtin_roots(false)
        .add_root(world.pki.ca_der())
}

fn client(world: &World, url: &str, tls: TlsOptions) -> Client {
    world.pool.client_builder(url).tls(tls).build().unwrap()
}

async fn get(world: &World, url: &str, tls: TlsOptions) -> Result<Response, firstbyte::Error> {
    client(world, url, tls).get("/").send().await
}

fn group(response: &Response) -> &'static str {
    let facts = response.connection().trace().tls_facts.as_ref().unwrap();
    facts.group.unwrap()
}

fn version(response: &Response) -> &'static str {
    response
        .connection()
        .trace()
        .tls_facts
        .as_ref()
        .unwrap()
        .version
}

#[tokio::test]
async fn pin_lets_only_the_pinned_key_pass_and_replaces_no_other_check() {
    in_time(async {
        let world = World::new().await;
        let identity = world.pki.server(&["api.test"]);
        let server = Server::builder()
            .identity(&identity, "api.test")
            .start()
            .await;
        let suite = pki::provider().cipher_suites[0].tls13().unwrap();
        let suites = pki::provider().cipher_suites.clone();
        let sha256 = suites
            .iter()
            .filter_map(|s| s.tls13())
            .find(|s| s.common.hash_provider.output_len() == 32);
        let hash = sha256.unwrap_or(suite).common.hash_provider;
        let base64 = base64::engine::general_purpose::STANDARD;
        let pin = base64.encode(hash.hash(&identity.spki).as_ref());
        let other = base64.encode([7; 32]);
        let url = server.url("/");

        let right = trusting(&world)
            .pin_sha256(&format!("sha256//{pin}"))
            .unwrap();
        assert_eq!(
            get(&world, &url, right.clone()).await.unwrap().status(),
            200
        );
        let spare = trusting(&world)
            .pin_sha256(&other)
            .unwrap()
            .pin_sha256(&pin)
            .unwrap();
        assert_eq!(get(&world, &url, spare).await.unwrap().status(), 200);
        let wrong = trusting(&world).pin_sha256(&other).unwrap();
        let error = get(&world, &url, wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
        assert!(error.to_string().contains("pinned"), "{error}");
        // The right key under an authority that is not trusted stays refused.
        let untrusted = TlsOptions::new().pin_sha256(&pin).unwrap();
        let error = get(&world, &url, untrusted).await.unwrap_err();
        assert!(
            error.to_string().contains("issuer") || error.is_tls(),
            "{error}"
        );
        assert_eq!(server.counts().requests, 2);
        for bad in ["", "sha256//", "sha256//AAAA", "not base64!"] {
            assert!(TlsOptions::new().pin_sha256(bad).is_err(), "{bad}");
        }
    })
    .await;
}

#[tokio::test]
async fn client_certificate_is_shown_and_is_part_of_the_connections_identity() {
    in_time(async {
        let world = World::new().await;
        let clients = Pki::new();
        let config = pki::server_config_client_auth(
            &world.pki.server(&["api.test"]),
            &["h2", "http/1.1"],
            &clients,
        );
        let server = Server::builder()
            .tls_config(config)
            .host("api.test")
            .start()
            .await;
        let url = server.url("/");
        let [one, two] = [clients.client("one"), clients.client("two")];
        let as_client = |identity: &pki::ServerIdentity| {
            trusting(&world).client_certificate(identity.chain.clone(), identity.key.clone_key())
        };
        let first = get(&world, &url, as_client(&one)).await.unwrap();
        let again = get(&world, &url, as_client(&one)).await.unwrap();
        let other = get(&world, &url, as_client(&two)).await.unwrap();
        assert_eq!(first.connection().id(), again.connection().id());
        assert_ne!(first.connection().id(), other.connection().id());
        // The same certificate with another key is another identity, if it were usable at all.
        let mixed = trusting(&world).client_certificate(one.chain.clone(), two.key.clone_key());
        assert_ne!(mixed, as_client(&one));
        let built = world.pool.client_builder(&*url).tls(mixed).build();
        assert!(
            built.unwrap_err().is_invalid(),
            "the key is not the certificate's"
        );

        // TLS 1.3: the client learns of it at its first read.
        let refused = get(&world, &url, trusting(&world)).await;
        let error = refused.expect_err("the server wants a certificate");
        assert_ne!(error.replay_safety(), ReplaySafety::Processed, "{error}");
        assert!(error.to_string().contains("ertificate"), "{error}");
        assert!(!format!("{:?}", as_client(&one)).contains("PRIVATE"));
    })
    .await;
}

#[tokio::test]
async fn server_name_overrides_the_hosts_in_sni_and_in_the_certificate() {
    in_time(async {
        let world = World::new().await;
        let url = format!("https://127.0.0.1:{}/", world.server.port());
        let error = get(&world, &url, trusting(&world)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.phase()),
            (ErrorKind::Tls, Some(Phase::Tls))
        );
        // The error names what was wanted and what was there.
        let text = error.to_string();
        assert!(
            text.contains("127.0.0.1") && text.contains("api.test"),
            "{text}"
        );
        let named = trusting(&world).server_name("api.test");
        let response = get(&world, &url, named.clone()).await.unwrap();
        assert_eq!(response.status(), 200);
        let other = get(&world, &url, trusting(&world).server_name("other.test")).await;
        assert_ne!(
            other.unwrap().connection().id(),
            response.connection().id(),
            "another name is another connection"
        );
        let builder = world.pool.client_builder(&*url);
        let bad = builder.tls(TlsOptions::new().server_name("a b"));
        assert!(bad.build().unwrap_err().is_invalid());
    })
    .await;
}

#[tokio::test]
async fn versions_are_held_to() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        let (old, new) = (TlsVersion::Tls12, TlsVersion::Tls13);
        let at_most = get(&world, &url, trusting(&world).max_version(old))
            .await
            .unwrap();
        assert_eq!(version(&at_most), "TLSv1.2");
        let at_least = get(&world, &url, trusting(&world).min_version(new))
            .await
            .unwrap();
        assert_eq!(version(&at_least), "TLSv1.3");

        let config = pki::server_config_versions(
            &world.pki.server(&["api.test"]),
            &["h2"],
            &[&rustls::version::TLS12],
        );
        let server = Server::builder()
            .tls_config(config)
            .host("api.test")
            .start()
            .await;
        let only_new = trusting(&world).min_version(new);
        let error = get(&world, &server.url("/"), only_new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
        for wrong in [
            trusting(&world).min_version(new).max_version(old),
            trusting(&world).max_version(old).early_data(true),
        ] {
            let builder = world.pool.client_builder(&*url).tls(wrong);
            assert!(builder.build().unwrap_err().is_invalid());
        }
    })
    .await;
}

#[tokio::test]
async fn post_quantum_key_share_can_be_left_out_and_is_refused_where_there_is_none() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        let without = get(&world, &url, trusting(&world).post_quantum(false))
            .await
            .unwrap();
        assert_eq!(group(&without), "X25519");
        let with = trusting(&world).post_quantum(true);
        if cfg!(feature = "aws-lc-rs") {
            let with = get(&world, &url, with).await.unwrap();
            assert_eq!(group(&with), "X25519MLKEM768");
        } else {
            let builder = world.pool.client_builder(&*url).tls(with);
            assert!(builder.build().unwrap_err().is_invalid());
        }
    })
    .await;
}

#[cfg(all(feature = "ring", feature = "aws-lc-rs"))]
#[tokio::test]
async fn either_provider_can_be_chosen_and_options_it_lacks_are_refused() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        let ring = trusting(&world).provider(TlsProvider::Ring);
        let response = get(&world, &url, ring.clone()).await.unwrap();
        assert_eq!(group(&response), "X25519");
        let builder = world.pool.client_builder(&*url);
        let error = builder.tls(ring.post_quantum(true)).build().unwrap_err();
        assert!(error.is_invalid(), "{error}");
    })
    .await;
}

/// Notes who was asked about, and accepts them.
#[derive(Debug)]
struct Noting {
    asked: AtomicUsize,
    inner: Arc<rustls::client::WebPkiServerVerifier>,
    /// So long it takes to say what a ClientHello offers.
    thinks: Duration,
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<danger::ServerCertVerified, danger::TlsError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &danger::DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, danger::TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &danger::DigitallySignedStruct,
    ) -> Result<danger::HandshakeSignatureValid, danger::TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<danger::SignatureScheme> {
        std::thread::sleep(self.thinks);
        self.inner.supported_verify_schemes()
    }
}

#[tokio::test]
async fn verifier_of_ones_own_decides_alone_and_its_connections_are_nobody_elses() {
    in_time(async {
        let world = World::new().await;
        let self_signed = Pki::self_signed(&["api.test"]);
        let server = Server::builder()
            .identity(&self_signed, "api.test")
            .start()
            .await;
        let inner = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(world.pki.roots()),
            pki::provider(),
        );
        let verifier = Arc::new(Noting {
            asked: AtomicUsize::new(0),
            inner: inner.build().unwrap(),
            thinks: Duration::ZERO,
        });
        let options = danger::with_verifier(TlsOptions::new(), verifier.clone());
        let url = server.url("/");
        let response = get(&world, &url, options.clone()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(verifier.asked.load(Ordering::SeqCst), 1);
        // A connection that it let pass serves nobody who did not ask for it, and no ticket does.
        let error = get(&world, &url, trusting(&world)).await.unwrap_err();
        assert!(error.is_tls(), "{error}");
        let another = danger::with_verifier(
            TlsOptions::new(),
            Arc::new(Noting {
                asked: AtomicUsize::new(0),
                inner: verifier.inner.clone(),
                thinks: Duration::ZERO,
            }),
        );
        assert_ne!(options, another);
        let inert = danger::with_verifier(trusting(&world), verifier.clone());
        let builder = world.pool.client_builder(&*url).tls(inert);
        assert!(builder.build().unwrap_err().is_invalid());
    })
    .await;
}

#[tokio::test]
async fn tickets_stay_with_their_identity_name_and_port() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        let other_url = world.other_url();
        let reconnect = async |url: &str, tls: TlsOptions| {
            let response = get(&world, url, tls).await.unwrap();
            let resumed = response.connection().tls_resumed();
            drop(response);
            world.pool.close_idle();
            eventually("it is closed", || world.pool.stats().open == 0).await;
            resumed
        };
        let plain = trusting(&world);
        assert_eq!(reconnect(&url, plain.clone()).await, Some(false));
        assert_eq!(reconnect(&url, plain.clone()).await, Some(true));
        // The same server under another name, and the same name with other options: from scratch.
        assert_eq!(reconnect(&other_url, plain.clone()).await, Some(false));
        for options in [
            plain.clone().min_version(TlsVersion::Tls13),
            plain.clone().post_quantum(false),
            plain.clone().add_root(Pki::new().ca_der()),
            plain.clone().early_data(true),
        ] {
            assert_eq!(reconnect(&url, options).await, Some(false));
        }
        assert_eq!(reconnect(&url, plain).await, Some(true));
        let off = trusting(&world).resumption(false);
        for _ in 0..2 {
            assert_eq!(reconnect(&url, off.clone()).await, Some(false));
        }
    })
    .await;
}

#[tokio::test]
async fn burst_of_reconnects_is_resumed_while_tickets_last() {
    in_time(async {
        let world = World::new().await;
        let client = client(&world, &world.server.url("/"), trusting(&world));
        let first = client.get("/").send().await.unwrap();
        drop(first);
        // Asked for by RFC 9149; the server of this test gives what it is asked for.
        eventually("its tickets are there", || {
            world.pool.stats().tls_tickets >= 2
        })
        .await;
        let http1 = world
            .pool
            .client_builder(world.server.url("/"))
            .tls(trusting(&world))
            .protocols(Protocols::Http1)
            .build()
            .unwrap();
        http1.get("/").send().await.unwrap().bytes().await.unwrap();
        let tickets = world.pool.stats().tls_tickets;
        let report = http1.warm(4).await.unwrap();
        assert_eq!(report.ready(), 4);
        let stats = world.pool.stats();
        assert!(
            stats.resumed >= 2,
            "{} tickets, {} resumed",
            tickets,
            stats.resumed
        );
    })
    .await;
}

#[tokio::test]
async fn key_log_is_written_only_where_it_was_asked_for() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        let path = std::env::temp_dir().join(format!("firstbyte-{}.keys", std::process::id()));
        get(&world, &url, trusting(&world)).await.unwrap();
        assert!(!path.exists());
        let logged = trusting(&world).key_log_file(&path);
        get(&world, &url, logged).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("CLIENT_TRAFFIC_SECRET_0 "), "{text}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "nobody else may read it");
        }
        std::fs::remove_file(&path).unwrap();
    })
    .await;
}

#[cfg(feature = "platform-verifier")]
#[tokio::test]
async fn platform_verifier_trusts_the_roots_that_are_added() {
    in_time(async {
        let world = World::new().await;
        let url = world.server.url("/");
        let trusted = TlsOptions::new()
            .platform_verifier(true)
            .add_root(world.pki.ca_der());
        assert_eq!(get(&world, &url, trusted).await.unwrap().status(), 200);
        let untrusted = TlsOptions::new().platform_verifier(true);
        assert!(get(&world, &url, untrusted).await.unwrap_err().is_tls());
    })
    .await;
}

#[test]
fn provider_is_the_one_whose_feature_is_on() {
    let default = format!("{:?}", TlsProvider::default());
    let expected = if cfg!(feature = "aws-lc-rs") {
        "AwsLcRs"
    } else {
        "Ring"
    };
    assert_eq!(default, expected);
}

/// Connects as anybody would.
struct Plainly(SocketAddr);

impl Dial for Plainly {
    fn dial(&self, _: DialTarget) -> BoxFuture<'static, std::io::Result<Transport>> {
        let addr = self.0;
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(addr).await?;
            Ok(Transport::Tcp(stream))
        })
    }
}

#[tokio::test]
async fn making_the_first_message_is_no_time_of_the_tcp_handshake() {
    in_time(async {
        let world = World::new().await;
        let inner = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(world.pki.roots()),
            pki::provider(),
        );
        let thinks = Duration::from_millis(50);
        let verifier = Arc::new(Noting {
            asked: AtomicUsize::new(0),
            inner: inner.build().unwrap(),
            thinks,
        });
        let pool = firstbyte::ConnectionPool::builder()
            .dialer(Plainly(world.server.addr()))
            .resolve_to("api.test", [world.server.addr().ip()])
            .tls(danger::with_verifier(TlsOptions::new(), verifier))
            .build()
            .unwrap();
        let client = pool.client_builder("https://api.test").build().unwrap();
        let response = client.get("/").send().await.unwrap();
        let timing = response.timing();
        assert!(timing.get(Phase::Tls).unwrap() >= thinks, "{timing:?}");
    })
    .await;
}
