//! A name server that answers by UDP with whatever bytes a test makes: what hickory's would never send.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// A question as it came.
pub struct Question<'a> {
    pub bytes: &'a [u8],
}

impl Question<'_> {
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The question section: name, type, class.
    pub fn section(&self) -> &[u8] {
        let mut end = 12;
        while self.bytes[end] != 0 {
            end += 1 + usize::from(self.bytes[end]);
        }
        &self.bytes[12..end + 5]
    }

    pub fn is_v4(&self) -> bool {
        let section = self.section();
        section[section.len() - 4..section.len() - 2] == [0, 1]
    }

    /// A reply to it with these resource records.
    pub fn reply(&self, records: &[Vec<u8>]) -> Vec<u8> {
        let mut reply = self.bytes[..2].to_vec();
        reply.extend([0x84, 0x00, 0, 1]);
        reply.extend((records.len() as u16).to_be_bytes());
        reply.extend([0, 0, 0, 0]);
        reply.extend(self.section());
        reply.extend(records.concat());
        reply
    }
}

/// A name in wire form.
pub fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A resource record of class IN.
pub fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = owner.to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub struct RawDns {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl RawDns {
    /// Answers each question with the datagrams that `answer` makes of it.
    pub async fn start(
        answer: impl Fn(&Question<'_>) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port is free");
        let addr = socket.local_addr().expect("bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let question = Question {
                    bytes: &buffer[..n],
                };
                for datagram in answer(&question) {
                    let _gone = socket.send_to(&datagram, from).await;
                }
            }
        });
        Self {
            addr,
            asked,
            task: task.abort_handle(),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for RawDns {
    fn drop(&mut self) {
        self.task.abort();
    }
}
