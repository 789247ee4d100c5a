//! The server's process, as the clients see it.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// Where the server is, and whom to trust.
pub struct World {
    /// Kept: it ends with our end of its standard input.
    _server: Child,
    /// Of the server, and of one that allows 10 streams.
    ports: [u16; 2],
    control: u16,
    pub certificate: CertificateDer<'static>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Protocol {
    H1,
    H2,
}

impl World {
    pub fn start() -> Arc<Self> {
        let mut server = Command::new(std::env::current_exe().expect("we run"))
            .arg("server")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let out = server.stdout.take().expect("piped");
        BufReader::new(out)
            .read_line(&mut line)
            .expect("it says where it is");
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = |n: usize| words[n].parse().expect("a port");
        let hex = words[3].as_bytes().chunks(2);
        let bytes = hex.map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex")
        });
        Arc::new(Self {
            ports: [port(0), port(1)],
            control: port(2),
            certificate: bytes.collect::<Vec<u8>>().into(),
            _server: server,
        })
    }

    pub fn port(&self, few_streams: bool) -> u16 {
        self.ports[usize::from(few_streams)]
    }

    /// A fresh TLS configuration, with no session in it.
    pub fn tls(&self, protocol: Protocol) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("it parses");
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![match protocol {
            Protocol::H1 => b"http/1.1".to_vec(),
            Protocol::H2 => b"h2".to_vec(),
        }];
        config
    }

    /// Connections accepted and handshakes completed so far.
    pub fn counts(&self) -> [usize; 2] {
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", self.control))
            .and_then(|mut tcp| tcp.read_to_string(&mut text))
            .expect("the server is there");
        let mut words = text.split(' ').map(|n| n.parse().expect("a number"));
        [(); 2].map(|()| words.next().expect("two numbers"))
    }
}
