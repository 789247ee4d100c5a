//! The server: hyper's, in a process of its own.

use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::machine;

/// Loopback addresses that the certificate is for.
pub const HOSTS: u8 = 220;
/// A usual JSON answer.
const ANSWER: [u8; 256] = [b'x'; 256];
const FRAME: usize = 64 * 1024;
pub const BIG: usize = 256 * 1024 * 1024;
pub const EVENTS: usize = 4000;
/// An event: its instant, and filling.
pub const EVENT: usize = 100;
const EVENT_GAP: u64 = 50_000;
pub const SLOW: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    handshakes: AtomicUsize,
}

/// Says where it listens, and its certificate, in one line. Ends with its standard input.
pub fn run(address: Option<&str>) {
    // Elsewhere the processors are shared with what makes up the path.
    if address.is_none() {
        machine::pin(machine::processors() - 1);
    }
    let address = address.unwrap_or("127.0.0.1").to_owned();
    std::thread::spawn(|| {
        let _end = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(serve(address));
}

async fn serve(address: String) {
    let names = (1..=HOSTS).map(|n| format!("127.0.0.{n}"));
    let names = names.chain([address.clone()]);
    let identity = rcgen::generate_simple_self_signed(names.collect::<Vec<_>>()).expect("a key");
    let certificate = identity.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(identity.signing_key.serialize_der().into());
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a valid key");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.send_tls13_tickets = 2;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let counts = Arc::new(Counts::default());
    let mut line = format!("{address} ");
    for streams in [2000, 10] {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        line += &format!("{} ", listener.local_addr().expect("bound").port());
        tokio::spawn(listen(listener, acceptor.clone(), streams, counts.clone()));
    }
    let control = TcpListener::bind((address.as_str(), 0))
        .await
        .expect("a port");
    line += &format!("{} ", control.local_addr().expect("bound").port());
    line.extend(certificate.iter().map(|byte| format!("{byte:02x}")));
    println!("{line}");
    std::io::stdout().flush().expect("somebody reads");
    while let Ok((mut tcp, _)) = control.accept().await {
        let (accepted, handshakes) = (&counts.accepted, &counts.handshakes);
        let text = format!("{} {}", accepted.load(Relaxed), handshakes.load(Relaxed));
        let _gone = tcp.write_all(text.as_bytes()).await;
    }
}

async fn listen(listener: TcpListener, tls: TlsAcceptor, streams: u32, counts: Arc<Counts>) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    let builder = Arc::new(builder);
    while let Ok((tcp, _)) = listener.accept().await {
        let _unlikely = tcp.set_nodelay(true);
        counts.accepted.fetch_add(1, Relaxed);
        let (tls, counts, builder) = (tls.clone(), counts.clone(), builder.clone());
        tokio::spawn(async move {
            let Ok(tls) = tls.accept(tcp).await else {
                return;
            };
            counts.handshakes.fetch_add(1, Relaxed);
            let _ended = builder
                .serve_connection(TokioIo::new(tls), service_fn(answer))
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<Either<Full<Bytes>, Pieces>>, Infallible> {
    let (parts, body) = request.into_parts();
    let _all = body.collect().await;
    let body = match parts.uri.path() {
        "/big" => Either::Right(Pieces::Big { left: BIG }),
        "/events" => Either::Right(Pieces::Events {
            left: EVENTS,
            next: machine::clock(),
        }),
        path => {
            if path == "/slow" {
                tokio::time::sleep(SLOW).await;
            }
            Either::Left(Full::new(Bytes::from_static(&ANSWER)))
        }
    };
    Ok(Response::builder()
        .header("content-type", "application/json")
        .body(body)
        .expect("valid headers"))
}

enum Pieces {
    Big { left: usize },
    Events { left: usize, next: u64 },
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static ZEROS: [u8; FRAME] = [0; FRAME];
        match &mut *self {
            Self::Big { left: 0 } | Self::Events { left: 0, .. } => Poll::Ready(None),
            Self::Big { left } => {
                let n = FRAME.min(*left);
                *left -= n;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..n])))))
            }
            Self::Events { left, next } => {
                // A timer of the runtime is too coarse.
                if machine::clock() < *next {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                *left -= 1;
                *next += EVENT_GAP;
                let mut event = vec![b'.'; EVENT];
                event[..8].copy_from_slice(&machine::clock().to_be_bytes());
                Poll::Ready(Some(Ok(Frame::data(event.into()))))
            }
        }
    }
}
