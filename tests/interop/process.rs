//! A server as a child process: its directory, its ports, its end.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use tokio::net::TcpStream;

use crate::support::pki::Pki;

/// How long a condition may take to come true. No test depends on how long it does take.
const PATIENCE: Duration = Duration::from_secs(15);
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Looks again and again until `is` holds.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "never came true: {what}");
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// The path of a program, also where only root's PATH looks.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// A directory that ends with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("firstbyte-interop-{}-{nth}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("the temporary directory is writable");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).expect("our own directory");
        }
        fs::write(path, content).expect("our own directory");
    }

    /// A certificate of `pki` for `api.test`: `cert.pem`, `key.pem`, and `both.pem` for those who want one file.
    pub(crate) fn write_identity(&self, pki: &Pki) {
        let identity = pki.server(&["api.test"]);
        let cert = pem("CERTIFICATE", &identity.chain[0]);
        let key = pem("PRIVATE KEY", identity.key.secret_der());
        self.write("cert.pem", &cert);
        self.write("key.pem", &key);
        self.write("both.pem", cert + &key);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind is in the temporary directory, where such things end by themselves.
        let _left = fs::remove_dir_all(&self.0);
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// A port on which nobody listens, from below the range that outgoing connections get theirs from.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() % 100 * 100;
    for _ in 0..10_000 {
        let nth = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + u16::try_from((start + nth) % 10_000).expect("below 10,000");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// A running server. Dropping it ends it and waits for its end.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    /// The signal that ends it with all its workers; `None`: it is one process, and is killed.
    end: Option<&'static str>,
    addr: SocketAddr,
}

impl Process {
    /// Starts it and waits until it accepts; its log if it ends instead.
    pub(crate) async fn start(
        mut command: Command,
        log: PathBuf,
        end: Option<&'static str>,
        port: u16,
    ) -> Result<Self, String> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.expect("our own directory");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor is left"))
            .stderr(file);
        let child = command.spawn().map_err(|error| error.to_string())?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut process = Self {
            child,
            log,
            end,
            addr,
        };
        let patience = Instant::now() + PATIENCE;
        while TcpStream::connect(addr).await.is_err() {
            if let Some(status) = process.ended() {
                return Err(format!("it ended with {status}: {}", process.log()));
            }
            if Instant::now() > patience {
                return Err(format!("it does not listen: {}", process.log()));
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Ok(process)
    }

    /// Sends a signal to the process that was started and to no other.
    pub(crate) fn signal(&self, signal: &str) {
        // A shell has `kill` built in.
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "kill -s \"$0\" \"$1\"",
            signal,
            &self.child.id().to_string(),
        ]);
        let status = shell.status().expect("there is a shell");
        assert!(
            status.success(),
            "SIG{signal} could not be sent: {}",
            self.log()
        );
    }

    /// Ends it without warning, and returns once it is gone. For servers of one process.
    pub(crate) fn kill(&mut self) {
        assert!(self.end.is_none(), "its workers would live on");
        // An error means that it has ended already.
        let _ended = self.child.kill();
        self.child.wait().expect("our own child");
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Resolves once nobody listens on its port.
    pub(crate) async fn refuses(&self) {
        let patience = Instant::now() + PATIENCE;
        while TcpStream::connect(self.addr).await.is_ok() {
            assert!(
                Instant::now() < patience,
                "it still listens: {}",
                self.log()
            );
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// What it printed so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
        if self.ended().is_some() {
            return;
        }
        if let Some(signal) = self.end {
            self.signal(signal);
            let patience = Instant::now() + PATIENCE;
            while self.ended().is_none() && Instant::now() < patience {
                std::thread::sleep(BETWEEN_LOOKS);
            }
        }
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
