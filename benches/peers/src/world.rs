//! The server's process, as the clients see it.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// Where the server is, and whom to trust.
pub struct World {
    /// Kept: it ends with our end of its standard input.
    _server: Option<Child>,
    pub address: IpAddr,
    /// What the server said.
    pub line: String,
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
        Arc::new(Self::told(&line, Some(server)))
    }

    /// A server that was started by somebody else, and said this.
    pub fn there(line: &str) -> Arc<Self> {
        Arc::new(Self::told(line, None))
    }

    fn told(line: &str, server: Option<Child>) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = |n: usize| words[n].parse().expect("a port");
        let hex = words[4].as_bytes().chunks(2);
        let bytes = hex.map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex")
        });
        Self {
            line: line.to_owned(),
            address: words[0].parse().expect("an address"),
            ports: [port(1), port(2)],
            control: port(3),
            certificate: bytes.collect::<Vec<u8>>().into(),
            _server: server,
        }
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
        TcpStream::connect((self.address, self.control))
            .and_then(|mut tcp| tcp.read_to_string(&mut text))
            .expect("the server is there");
        let mut words = text.split(' ').map(|n| n.parse().expect("a number"));
        [(); 2].map(|()| words.next().expect("two numbers"))
    }
}
