//! The HTTP endpoint: metrics, the live page and its events.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::hub::Hub;
use super::{metrics, page};
use crate::http::{self, Answer, Request, Response, Stream};

/// Pages that are kept up to date at once; each takes a thread, and the metrics need some, too.
const MAX_PAGES: usize = 16;
/// Shortest time between two updates of a page.
const PACE: Duration = Duration::from_millis(500);
/// A page that hears nothing for so long is told that it is still connected.
const ALIVE: Duration = Duration::from_secs(10);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why the endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {reason}; choose another address, or 0 as the port for any")]
pub struct ServerError {
    address: String,
    reason: io::Error,
}

/// Serves `/metrics` for Prometheus, the page `/`, its events `/events`, and `/streams` (JSON).
#[derive(Debug)]
pub struct Server {
    hub: Arc<Hub>,
    server: http::Server,
}

impl Server {
    /// Opens the endpoint at `address` (`host:port`). It has no passwords: an address other than
    /// that of this machine opens it to the network.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(address: &str, hub: Arc<Hub>) -> Result<Self, ServerError> {
        let failed = |reason| ServerError { address: address.to_owned(), reason };
        let sockets: Vec<_> = address.to_socket_addrs().map_err(failed)?.collect();
        let listener = TcpListener::bind(&sockets[..]).map_err(failed)?;
        let (told, pages) = (Arc::clone(&hub), Arc::default());
        let server = http::Server::start(listener, move |request| answer(request, &told, &pages))
            .map_err(failed)?;
        let bound = server.address();
        if !bound.ip().is_loopback() {
            tracing::warn!("{bound} can be reached from other machines, without a password");
        }
        Ok(Self { hub, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the pages, which the server waits for.
        self.hub.close();
    }
}

fn answer(request: &Request, hub: &Arc<Hub>, pages: &Arc<AtomicUsize>) -> Answer {
    if request.method != "GET" {
        return plain(Response::text(405, "only GET is possible"));
    }
    plain(match request.path.as_str() {
        "/" => Response::new(200, "text/html; charset=utf-8", page::PAGE),
        "/metrics" => match metrics::render(hub) {
            Ok(text) => Response::new(200, OPEN_METRICS, text),
            Err(error) => Response::text(500, &error.to_string()),
        },
        "/streams" => Response::new(200, "application/json", page::streams(hub)),
        "/events" => match Counted::enter(pages) {
            Some(count) => {
                let hub = Arc::clone(hub);
                return Answer::Stream(Stream::new("text/event-stream", move |out| {
                    let _count = count;
                    send(out, &hub)
                }));
            }
            None => Response::text(503, "too many pages are open"),
        },
        _ => Response::text(404, "there are /, /metrics, /streams and /events"),
    })
}

fn plain(response: Response) -> Answer {
    let policy =
        "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:";
    response
        .with("Cache-Control", "no-store")
        .with("X-Content-Type-Options", "nosniff")
        .with("Content-Security-Policy", policy)
        .into()
}

/// Counts a page as open.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// `None` where too many are.
    fn enter(pages: &Arc<AtomicUsize>) -> Option<Self> {
        let entered = Self(Arc::clone(pages));
        (pages.fetch_add(1, Ordering::Relaxed) < MAX_PAGES).then_some(entered)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps a page up to date.
fn send(out: &mut dyn Write, hub: &Hub) -> io::Result<()> {
    writeln!(out, "event: timelines\ndata: {}\n", page::timelines(hub))?;
    let (mut version, mut last) = (0, 0);
    loop {
        for (number, event) in hub.events_after(last) {
            last = number;
            writeln!(out, "event: told\ndata: {}\n", serde_json::to_string(&*event)?)?;
        }
        writeln!(out, "event: streams\ndata: {}\n", page::streams(hub))?;
        out.flush()?;
        std::thread::sleep(PACE);
        let Some(next) = hub.wait(version, ALIVE) else { return Ok(()) };
        version = next;
    }
}
