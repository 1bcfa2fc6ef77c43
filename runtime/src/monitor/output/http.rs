//! The HTTP endpoint: metrics, the live page and its events.

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tiny_http::{Header, Method, Request, Response};

use super::hub::Hub;
use super::{metrics, page};

/// Pages that are kept up to date at once; each takes a thread.
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
    reason: String,
}

/// Serves `/metrics` for Prometheus, the page `/`, its events `/events`, and `/streams` (JSON).
pub struct Server {
    address: Option<SocketAddr>,
    socket: Arc<tiny_http::Server>,
    hub: Arc<Hub>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Handler {
    server: Arc<tiny_http::Server>,
    hub: Arc<Hub>,
    pages: Arc<AtomicUsize>,
}

impl Server {
    /// Opens the endpoint at `address` (`host:port`). It has no passwords: an address other than
    /// that of this machine opens it to the network.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(address: &str, hub: Arc<Hub>) -> Result<Self, ServerError> {
        let failed = |reason: String| ServerError { address: address.to_owned(), reason };
        let sockets = address.to_socket_addrs().map_err(|e| failed(e.to_string()))?;
        let sockets: Vec<_> = sockets.collect();
        let server = tiny_http::Server::http(&sockets[..]).map_err(|e| failed(e.to_string()))?;
        let server = Arc::new(server);
        let bound = server.server_addr().to_ip();
        if let Some(bound) = bound.filter(|b| !b.ip().is_loopback()) {
            tracing::warn!("{bound} can be reached from other machines, without a password");
        }
        let handler =
            Handler { server: Arc::clone(&server), hub: Arc::clone(&hub), pages: Arc::default() };
        let thread = std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || handler.run())
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self { address: bound, socket: server, hub, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hub.close();
        self.socket.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Handler {
    fn run(&self) {
        // Ends with the first error, which is that of `unblock`.
        while let Ok(request) = self.server.recv() {
            self.answer(request);
        }
    }

    fn answer(&self, request: Request) {
        if *request.method() != Method::Get {
            respond(request, 405, "text/plain", "only GET is possible\n".to_owned());
            return;
        }
        let path = request.url().split('?').next().unwrap_or_default().to_owned();
        match path.as_str() {
            "/" => respond(request, 200, "text/html; charset=utf-8", page::PAGE.to_owned()),
            "/metrics" => match metrics::render(&self.hub) {
                Ok(text) => respond(request, 200, OPEN_METRICS, text),
                Err(error) => respond(request, 500, "text/plain", error.to_string()),
            },
            "/streams" => respond(request, 200, "application/json", page::streams(&self.hub)),
            "/events" => self.follow(request),
            _ => respond(
                request,
                404,
                "text/plain",
                "there are /, /metrics, /streams and /events\n".to_owned(),
            ),
        }
    }

    /// Keeps a page up to date, from a thread of its own.
    fn follow(&self, request: Request) {
        if self.pages.fetch_add(1, Ordering::Relaxed) >= MAX_PAGES {
            self.pages.fetch_sub(1, Ordering::Relaxed);
            respond(request, 503, "text/plain", "too many pages are open\n".to_owned());
            return;
        }
        let (hub, pages) = (Arc::clone(&self.hub), Arc::clone(&self.pages));
        let count = Counted(pages);
        let spawned = std::thread::Builder::new().name("page".to_owned()).spawn(move || {
            let _count = count;
            let mut writer = request.into_writer();
            // The error is that the page was closed.
            let _ = send(&mut writer, &hub);
        });
        if let Err(error) = spawned {
            tracing::warn!("cannot start the thread of a page: {error}");
        }
    }
}

/// Counts a page as open.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn send(writer: &mut dyn Write, hub: &Hub) -> io::Result<()> {
    writer.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
          Connection: close\r\n\r\n",
    )?;
    writeln!(writer, "event: timelines\ndata: {}\n", page::timelines(hub))?;
    let (mut version, mut last) = (0, 0);
    loop {
        for (number, event) in hub.events_after(last) {
            last = number;
            writeln!(writer, "event: told\ndata: {}\n", serde_json::to_string(&*event)?)?;
        }
        writeln!(writer, "event: streams\ndata: {}\n", page::streams(hub))?;
        writer.flush()?;
        std::thread::sleep(PACE);
        let Some(next) = hub.wait(version, ALIVE) else { return Ok(()) };
        version = next;
    }
}

fn respond(request: Request, status: u16, kind: &str, body: String) {
    let mut response = Response::from_string(body).with_status_code(status);
    for (name, value) in [
        ("Content-Type", kind),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        (
            "Content-Security-Policy",
            "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:",
        ),
    ] {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    // The error is that the other side has gone.
    let _ = request.respond(response);
}
