//! Connections before anybody needs them.

use std::sync::Arc;

use http::Version;
use tokio::sync::oneshot;

use crate::connection::ConnectionInfo;
use crate::error::{Error, ErrorKind};
use crate::timing::Phase;

use super::host::Host;
use super::lease::H2Conn;

/// One connection that is ready.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WarmConnection {
    /// The connection; its trace has each phase.
    pub connection: ConnectionInfo,
    /// It was opened by this call and not ready before.
    pub opened: bool,
}

/// What `warm` did.
#[derive(Clone, Debug, Default)]
#[must_use = "it tells whether the connections are ready"]
#[non_exhaustive]
pub struct WarmReport {
    /// Connections that are ready, those that were so before included.
    pub connections: Vec<WarmConnection>,
    /// Why fewer than asked for are ready.
    pub error: Option<Error>,
}

impl WarmReport {
    /// The connections, or why fewer than asked for are ready.
    ///
    /// # Errors
    /// What [`error`](Self::error) holds: as of a request that could not be sent.
    pub fn into_result(self) -> Result<Vec<WarmConnection>, Error> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.connections),
        }
    }

    /// Connections that are ready.
    pub fn ready(&self) -> usize {
        self.connections.len()
    }

    /// Connections that this call opened.
    pub fn opened(&self) -> usize {
        self.connections.iter().filter(|c| c.opened).count()
    }
}

/// Makes `n` requests at once possible without waiting for a connection: TLS, ALPN and (HTTP/2) the
/// peer's SETTINGS are done, and no request is sent. HTTP/1.1 needs `n` idle connections; HTTP/2
/// one, as long as the peer allows that many streams.
///
/// Dropping the future stops waiting; dials that were started finish.
pub(crate) async fn warm(host: &Arc<Host>, n: usize) -> WarmReport {
    let mut report = WarmReport::default();
    let (idle, shared, mut verdict) = host.warmth();
    report.connections.extend(idle.into_iter().map(ready));
    report
        .connections
        .extend(shared.iter().map(|conn| ready(conn.info.clone())));
    if verdict.is_none() && n > 0 && report.connections.is_empty() {
        // One dial tells the protocol.
        open(host, 1, &mut report).await;
        verdict = host.warmth().2;
    }
    if report.error.is_none() {
        match verdict {
            Some(Version::HTTP_2) if n > 0 && host.warmth().1.is_empty() => {
                open(host, 1, &mut report).await;
            }
            Some(Version::HTTP_2) | None => {}
            Some(_) => open(host, n.saturating_sub(report.ready()), &mut report).await,
        }
    }
    for conn in host.warmth().1 {
        settle(&conn).await;
    }
    report.check(host);
    report
}

impl WarmReport {
    /// What the pool could not keep is not ready.
    fn check(&mut self, host: &Host) {
        let opened = self.connections.len();
        self.connections
            .retain(|conn| host.is_live(conn.connection.id()));
        let lost = opened - self.connections.len();
        if lost > 0 && self.error.is_none() {
            self.error = Some(
                Error::new(
                    ErrorKind::Limit,
                    format!(
                        "{lost} connection(s) could not be kept: the peer has ended them, or \
                         max_keepalive_connections did"
                    ),
                )
                .at(Phase::Queue)
                .with_origin(host.plan.origin_text.clone()),
            );
        }
    }
}

fn ready(connection: ConnectionInfo) -> WarmConnection {
    WarmConnection {
        connection,
        opened: false,
    }
}

async fn open(host: &Arc<Host>, n: usize, report: &mut WarmReport) {
    let mut dials = Vec::new();
    for _ in 0..n {
        let (sender, receiver) = oneshot::channel();
        match host.order(sender) {
            Ok(()) => dials.push(receiver),
            Err(error) => {
                report.error = Some(error);
                break;
            }
        }
    }
    for dial in dials {
        match dial.await {
            Ok(Ok(connection)) => {
                report.connections.push(WarmConnection {
                    connection,
                    opened: true,
                });
            }
            Ok(Err(error)) => report.error = Some(error),
            Err(_) => {
                report.error = Some(super::shared::pool_closed());
            }
        }
    }
}

/// Waits until the peer's SETTINGS have arrived, or the connection ends.
async fn settle(conn: &Arc<H2Conn>) {
    loop {
        let told = conn.settled.notified();
        if conn.handle.has_settings() || conn.handle.slots().is_retired() {
            return;
        }
        told.await;
    }
}
