//! An HTTPS server that answers a request in early data with its first flight, as large providers do: rustls alone on
//! threads, because every server library here waits for the end of the handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection};

/// Who spoke on a connection, in turn: C the client, S the server, and A where an answer was made.
pub type Flights = Arc<Mutex<Vec<String>>>;

/// A server that lives until the process ends.
pub struct HalfRtt {
    addr: SocketAddr,
    flights: Flights,
}

impl HalfRtt {
    /// Answers every request with `ok`, over HTTP/1.1.
    pub fn start(addr: SocketAddr, mut config: ServerConfig) -> Self {
        config.send_half_rtt_data = true;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(addr).expect("the address is free");
        let addr = listener.local_addr().expect("bound");
        let flights = Flights::default();
        let noted = flights.clone();
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let Ok(tcp) = tcp else { return };
                let (config, noted) = (config.clone(), noted.clone());
                std::thread::spawn(move || {
                    // What ends a connection is the client's to tell.
                    let _ended = serve(tcp, config, &noted);
                });
            }
        });
        Self { addr, flights }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Of each connection so far.
    pub fn flights(&self) -> Vec<String> {
        self.flights
            .lock()
            .expect("no panic under this lock")
            .clone()
    }
}

fn serve(mut tcp: TcpStream, config: Arc<ServerConfig>, noted: &Flights) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut request = Vec::new();
    let own = {
        let mut all = noted.lock().expect("no panic under this lock");
        all.push(String::new());
        all.len() - 1
    };
    let note = |who: char| {
        let mut all = noted.lock().expect("no panic under this lock");
        if !all[own].ends_with(who) {
            all[own].push(who);
        }
    };
    loop {
        while session.wants_write() {
            note('S');
            session.write_tls(&mut tcp)?;
        }
        if session.read_tls(&mut tcp)? == 0 {
            return Ok(());
        }
        note('C');
        session.process_new_packets().map_err(io::Error::other)?;
        if let Some(mut early) = session.early_data() {
            early.read_to_end(&mut request)?;
        }
        match session.reader().read_to_end(&mut request) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            note('A');
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            session.writer().write_all(answer)?;
        }
    }
}
