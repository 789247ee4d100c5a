//! The user timeout while the peer's window is closed.

use std::time::Duration;

use crate::io::{AttendUpload, BoxFuture, PathFacts};

use super::info::SocketWatch;

impl AttendUpload for SocketWatch {
    fn attend(&self) -> Option<BoxFuture<'static, ()>> {
        let window = ClosedWindow::watch(self)?;
        Some(Box::pin(window.keep_looking()))
    }

    fn path(&self) -> Option<PathFacts> {
        let info = self.info()?;
        Some(PathFacts {
            // Our SYN counts as one byte; where nothing does, nothing is counted (gVisor has zeroes).
            acknowledged: info.bytes_acked?.checked_sub(1)?,
            min_rtt: info.min_rtt,
        })
    }
}

/// Switches a socket's user timeout off while its peer's window is closed, and on again after.
///
/// The kernel counts a closed window as silence even if the peer acknowledges every probe
/// (tcp(7), `TCP_USER_TIMEOUT`), so that a server which takes its time with an upload would lose
/// it. A peer that is gone has not closed its window first, and still meets the timeout.
struct ClosedWindow {
    socket: SocketWatch,
    timeout: Duration,
    is_off: bool,
}

impl ClosedWindow {
    /// `None` where there is no such timeout.
    fn watch(socket: &SocketWatch) -> Option<Self> {
        let timeout = socket.user_timeout()?;
        Some(Self {
            socket: socket.clone(),
            timeout,
            is_off: false,
        })
    }

    /// Four times in the time that the kernel would wait. Never ends.
    async fn keep_looking(mut self) {
        loop {
            tokio::time::sleep(self.timeout / 4).await;
            self.look();
        }
    }

    fn look(&mut self) {
        let is_closed = self.socket.is_window_closed();
        if is_closed != self.is_off {
            self.is_off = is_closed;
            self.socket
                .set_user_timeout((!is_closed).then_some(self.timeout));
        }
    }
}

impl Drop for ClosedWindow {
    fn drop(&mut self) {
        if self.is_off {
            self.socket.set_user_timeout(Some(self.timeout));
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    // layering: uses this module alone.
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn timeout_is_off_while_the_window_is_closed_and_only_then() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let (socket, _guard) = SocketWatch::new(&stream);
        assert!(ClosedWindow::watch(&socket).is_none());
        socket.set_user_timeout(Some(TIMEOUT));
        let mut window = ClosedWindow::watch(&socket).unwrap();
        window.look();
        assert_eq!(socket.user_timeout(), Some(TIMEOUT));

        // Until the kernels on both sides hold what they can.
        let writer = tokio::spawn(async move {
            stream.write_all(&vec![7; 32 << 20]).await.unwrap();
            stream
        });
        until(|| socket.is_window_closed()).await;
        window.look();
        assert_eq!(socket.user_timeout(), None);

        let mut buffer = vec![0; 1 << 20];
        let mut left = 32 << 20;
        while left > 0 {
            left -= peer.read(&mut buffer).await.unwrap();
        }
        let _stream = writer.await.unwrap();
        until(|| !socket.is_window_closed()).await;
        window.look();
        assert_eq!(socket.user_timeout(), Some(TIMEOUT));
    }

    #[tokio::test]
    async fn timeout_is_on_again_when_the_watch_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (socket, guard) = SocketWatch::new(&stream);
        socket.set_user_timeout(Some(TIMEOUT));
        let mut window = ClosedWindow::watch(&socket).unwrap();
        window.is_off = true;
        socket.set_user_timeout(None);
        drop(window);
        assert_eq!(socket.user_timeout(), Some(TIMEOUT));

        let window = ClosedWindow::watch(&socket).unwrap();
        drop(guard);
        assert_eq!(socket.user_timeout(), None);
        drop(window);
    }

    async fn until(mut is_so: impl FnMut() -> bool) {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
