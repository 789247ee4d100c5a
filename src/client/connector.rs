//! Connections for hyper-util's client: names, addresses, TLS and tickets are ours, HTTP and pooling are its own.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Uri, Version};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use crate::connection::{ConnectOptions, ConnectionInfo, Dialled, Stream};
use crate::error::Error;
use crate::origin::Origin;
use crate::pool::Pool;

use super::connection_pool::ConnectionPool;
use super::send::Route;

impl ConnectionPool {
    /// A connector for hyper-util's `Client`, with the options that the clients of this pool start from.
    pub fn hyper_connector(&self) -> HyperConnector {
        HyperConnector {
            pool: self.pool.clone(),
            options: self.defaults.connect.clone(),
        }
    }
}

/// Opens connections for hyper-util's `Client`: cached DNS, the race over addresses, tuned TCP, proxies, TLS with
/// resumption and ALPN are as in a pool of ours; HTTP, reuse and limits are hyper-util's.
///
/// It shares answers of the DNS, what is known of addresses, and tickets with the pool that it comes from, and its
/// connections are in none of the pool's lists and under none of its limits. A proxy is asked for a tunnel even where
/// the URL is plain `http`. [`Timeouts`](crate::Timeouts) are not asked; the pool's `connect_timeout` is.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use hyper_util::client::legacy::Client;
/// use hyper_util::rt::TokioExecutor;
///
/// let pool = firstbyte::ConnectionPool::new();
/// let client = Client::builder(TokioExecutor::new())
///     .build::<_, firstbyte::Body>(pool.hyper_connector());
/// let response = client.get("https://api.deepseek.com/models".parse()?).await?;
/// let connection = response.extensions().get::<firstbyte::ConnectionInfo>();
/// println!("{:?}", connection.map(|c| c.trace().setup_cost()));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct HyperConnector {
    pool: Arc<Pool>,
    options: Arc<ConnectOptions>,
}

impl fmt::Debug for HyperConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyperConnector").finish_non_exhaustive()
    }
}

impl Service<Uri> for HyperConnector {
    type Response = TokioIo<HyperStream>;
    type Error = Error;
    type Future = HyperConnecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> HyperConnecting {
        let Self { pool, options } = self.clone();
        HyperConnecting(Box::pin(async move {
            let route = Route::new(Origin::from_uri(&uri)?, options)?;
            // Whoever speaks HTTP over it does not know that a proxy forwards.
            let host = route.tunnelled().awake(&pool)?;
            let Dialled { info, stream } = host.dial_for_others().await?;
            Ok(TokioIo::new(HyperStream { info, stream }))
        }))
    }
}

/// The future of a [`HyperConnector`]. Dropping it closes whatever was opened.
pub struct HyperConnecting(
    Pin<Box<dyn Future<Output = Result<TokioIo<HyperStream>, Error>> + Send>>,
);

impl fmt::Debug for HyperConnecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HyperConnecting")
    }
}

impl Future for HyperConnecting {
    type Output = Result<TokioIo<HyperStream>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

/// A connection in the hands of hyper-util. Its [`ConnectionInfo`] is among the extensions of each response, with what
/// setting it up has cost.
#[derive(Debug)]
pub struct HyperStream {
    info: ConnectionInfo,
    stream: Stream,
}

impl Connection for HyperStream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(self.info.clone());
        match self.info.protocol() {
            Version::HTTP_2 => connected.negotiated_h2(),
            _ => connected,
        }
    }
}

impl AsyncRead for HyperStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for HyperStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
