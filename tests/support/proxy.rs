//! A proxy on loopback: HTTP CONNECT, absolute-form and SOCKS5, told apart by the first byte. Whatever name it is asked
//! for, it connects to loopback: names are the proxy's to resolve.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::port::{self, Port};

/// What the proxy was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// CONNECT with this head.
    Tunnel(String),
    /// A request in absolute-form, its head.
    Forward(String),
    /// SOCKS5: `name:port` or `ip:port`, and the credentials `user:password`.
    Socks(String, Option<String>),
}

/// A running proxy; dropping it cuts its connections.
pub struct ProxyPeer {
    port: Port,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: tokio::task::AbortHandle,
}

/// How it behaves.
#[derive(Clone, Default)]
pub struct Manner {
    /// The answer to CONNECT in place of `HTTP/1.1 200`; the tunnel is made only for 2xx.
    pub answer: Option<String>,
    /// Credentials `user:password` that SOCKS5 clients must give.
    pub socks_login: Option<String>,
    /// The SOCKS5 reply code in place of 0.
    pub socks_reply: u8,
    /// What the proxy takes for the tunnel.
    pub delay: Duration,
}

impl ProxyPeer {
    pub fn start(tls: Option<ServerConfig>, manner: Manner) -> Self {
        let port = Port::bind(port::any());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let accepting = tokio::spawn(accept(port.clone(), tls, manner, asked.clone()));
        Self {
            port,
            asked,
            accepting: accepting.abort_handle(),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic under this lock").clone()
    }
}

impl Drop for ProxyPeer {
    fn drop(&mut self) {
        self.port.close();
        self.accepting.abort();
    }
}

async fn accept(
    port: Port,
    tls: Option<TlsAcceptor>,
    manner: Manner,
    asked: Arc<Mutex<Vec<Asked>>>,
) {
    let mut connections = JoinSet::new();
    while let Some(tcp) = port.accept().await {
        let (tls, manner, asked) = (tls.clone(), manner.clone(), asked.clone());
        connections.spawn(async move {
            // What goes wrong is the client's to report.
            let _ended = match tls {
                None => serve(tcp, &manner, &asked).await,
                Some(tls) => match tls.accept(tcp).await {
                    Ok(stream) => serve(stream, &manner, &asked).await,
                    Err(error) => Err(error),
                },
            };
        });
    }
}

async fn serve<S>(stream: S, manner: &Manner, asked: &Mutex<Vec<Asked>>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufStream::new(stream);
    if stream.fill_buf().await?.first() == Some(&5) {
        return socks(stream, manner, asked).await;
    }
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let note = |what| asked.lock().expect("no panic under this lock").push(what);
        let Some(target) = head.strip_prefix("CONNECT ") else {
            note(Asked::Forward(head));
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nforwarded")
                .await?;
            stream.flush().await?;
            continue;
        };
        let port = port_of(target.split(' ').next().unwrap_or_default());
        note(Asked::Tunnel(head));
        tokio::time::sleep(manner.delay).await;
        let answer = manner
            .answer
            .as_deref()
            .unwrap_or("HTTP/1.1 200 ok\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        if !answer.starts_with("HTTP/1.1 2") {
            // The client reads the refusal and goes.
            let _rest = stream.read_to_end(&mut Vec::new()).await;
            return Ok(());
        }
        return tunnel(stream, port).await;
    }
}

fn port_of(authority: &str) -> u16 {
    let port = authority.rsplit(':').next().unwrap_or_default();
    port.parse().unwrap_or_default()
}

async fn tunnel<S>(mut stream: BufStream<S>, port: u16) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut origin = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    tokio::io::copy_bidirectional(&mut stream, &mut origin).await?;
    Ok(())
}

/// RFC 1928 and 1929, the server's side.
async fn socks<S>(
    mut stream: BufStream<S>,
    manner: &Manner,
    asked: &Mutex<Vec<Asked>>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _version = stream.read_u8().await?;
    let methods = block(&mut stream).await?;
    let wanted = if manner.socks_login.is_some() { 2 } else { 0 };
    let method = if methods.contains(&wanted) {
        wanted
    } else {
        0xff
    };
    stream.write_all(&[5, method]).await?;
    stream.flush().await?;
    let mut login = None;
    if method == 2 {
        let _version = stream.read_u8().await?;
        let (user, password) = (block(&mut stream).await?, block(&mut stream).await?);
        let given = [user, vec![b':'], password].concat();
        let given = String::from_utf8_lossy(&given).into_owned();
        let ok = manner.socks_login.as_ref() == Some(&given);
        login = Some(given);
        stream.write_all(&[1, u8::from(!ok)]).await?;
        stream.flush().await?;
        if !ok {
            return Ok(());
        }
    }
    let mut request = [0; 4];
    stream.read_exact(&mut request).await?;
    let host = match request[3] {
        1 => Ipv4Addr::from(stream.read_u32().await?).to_string(),
        3 => String::from_utf8_lossy(&block(&mut stream).await?).into_owned(),
        _ => return Ok(()),
    };
    let port = stream.read_u16().await?;
    asked
        .lock()
        .expect("no panic under this lock")
        .push(Asked::Socks(format!("{host}:{port}"), login));
    tokio::time::sleep(manner.delay).await;
    stream
        .write_all(&[5, manner.socks_reply, 0, 1, 0, 0, 0, 0, 0, 0])
        .await?;
    stream.flush().await?;
    if manner.socks_reply != 0 {
        return Ok(());
    }
    tunnel(stream, port).await
}

/// A length in one byte, and as many bytes.
async fn block<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let len = stream.read_u8().await?;
    let mut bytes = vec![0; len.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
