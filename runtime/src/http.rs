//! A small HTTP server for pages on this machine: one request per connection, everything that a
//! client sends is bounded in size and time.
//!
//! An [`Answer`] is whole, or a [`Stream`] that is written piece by piece for as long as both sides
//! like, such as server-sent events.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, Read as _, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most bytes of a request line and its headers.
const MAX_HEAD: usize = 16 << 10;
/// Most headers.
const MAX_HEADERS: usize = 64;
/// Most bytes of a request's content.
pub const MAX_BODY: usize = 1 << 20;
/// Requests that are answered at the same time; further ones are turned away.
const MAX_CLIENTS: usize = 32;
/// How long a client may take to send its request, and to take each piece of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST` …
    pub method: String,
    /// What stands between the host and `?`, not decoded.
    pub path: String,
    /// What stands behind `?`, not decoded; empty where there is none.
    pub query: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The content.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header, by its name in lower case; none where it is missing or there are
    /// several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        let (_, value) = found.next()?;
        found.next().is_none().then_some(value)
    }

    /// A value of the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Media type of the content.
    pub kind: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The content.
    pub body: Vec<u8>,
}

impl Response {
    /// Content of a media type.
    pub fn new(status: u16, kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, kind, headers: Vec::new(), body: body.into() }
    }

    /// A sentence.
    pub fn text(status: u16, sentence: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", format!("{sentence}\n"))
    }

    /// A JSON value.
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, "application/json", value.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Content that is written while the client listens. Nothing states its length: it ends with the
/// connection.
pub struct Stream {
    /// Media type of the content.
    kind: &'static str,
    write: Box<Writer>,
}

/// Writes content until it is done, or fails because the client has gone.
type Writer = dyn FnOnce(&mut dyn Write) -> io::Result<()>;

impl Stream {
    /// What `write` writes. It must end by itself when the server is to stop; each piece is lost
    /// with an error where the client does not take it in time.
    pub fn new(
        kind: &'static str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'static,
    ) -> Self {
        Self { kind, write: Box::new(write) }
    }
}

/// What is sent to a client.
pub enum Answer {
    /// All at once.
    Whole(Response),
    /// Piece by piece.
    Stream(Stream),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self::Whole(response)
    }
}

/// Answers the clients of a listener from threads of its own; stops when it is dropped.
pub struct Server {
    address: SocketAddr,
    clients: Arc<Clients>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Begins to answer.
    ///
    /// # Errors
    /// Where the address cannot be told or no thread started.
    pub fn start<A: Into<Answer>>(
        listener: TcpListener,
        answer: impl Fn(&Request) -> A + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let clients = Arc::new(Clients::default());
        let shared = Arc::clone(&clients);
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            if let Err(error) = run(&listener, &answer, &shared) {
                tracing::error!("cannot listen at {address} any more: {error}");
            }
        })?;
        Ok(Self { address, clients, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.clients.stop();
        // Wakes the thread that waits for the next client.
        let mut address = self.address;
        match address.ip() {
            ip if !ip.is_unspecified() => {}
            ip if ip.is_ipv4() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            _ => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        }
        let woken = TcpStream::connect_timeout(&address, PATIENCE);
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// The connections that are open, to count and to end them.
#[derive(Default)]
struct Clients {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    streams: HashMap<u64, TcpStream>,
    next: u64,
    stopped: bool,
}

impl Clients {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        // The state is whole after every statement; a panic elsewhere does not spoil it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection; `None` where there are too many, or it is the end.
    fn enter(&self, stream: &TcpStream) -> Option<Client<'_>> {
        let mut open = self.lock();
        if open.stopped || open.streams.len() >= MAX_CLIENTS {
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, stream.try_clone().ok()?);
        Some(Client { clients: self, number })
    }

    fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    fn stop(&self) {
        let mut open = self.lock();
        open.stopped = true;
        for stream in open.streams.values() {
            // The error is that the client has gone.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// One of the connections, until it ends.
struct Client<'a> {
    clients: &'a Clients,
    number: u64,
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.clients.lock().streams.remove(&self.number);
    }
}

/// Answers the clients of `listener`, each in a thread of its own, until `listener` fails.
///
/// # Errors
/// Whatever the listener answers; a client that fails is only left alone.
pub fn serve<A: Into<Answer>>(
    listener: &TcpListener,
    answer: &(impl Fn(&Request) -> A + Sync),
) -> io::Result<()> {
    run(listener, answer, &Clients::default())
}

fn run<A: Into<Answer>>(
    listener: &TcpListener,
    answer: &(impl Fn(&Request) -> A + Sync),
    clients: &Clients,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        loop {
            let accepted = listener.accept();
            if clients.is_stopped() {
                return Ok(());
            }
            let stream = match accepted {
                Ok((stream, _)) => stream,
                // The client went away before it was its turn, or files are short for a moment.
                Err(e) if is_passing(&e) => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                Err(e) => return Err(e),
            };
            let Some(client) = clients.enter(&stream) else { continue };
            // A thread that cannot be started must not end the server.
            let started = std::thread::Builder::new().spawn_scoped(scope, move || {
                if let Err(error) = talk(stream, answer) {
                    tracing::debug!("a client went away: {error}");
                }
                drop(client);
            });
            if let Err(error) = started {
                tracing::warn!("a client gets no answer: {error}");
            }
        }
    })
}

fn is_passing(error: &io::Error) -> bool {
    // 23 and 24: too many open files, of the system and of this process.
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    ) || matches!(error.raw_os_error(), Some(23 | 24))
}

fn talk<A: Into<Answer>>(mut stream: TcpStream, answer: &impl Fn(&Request) -> A) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match read(&mut stream)? {
        Ok(request) => answer(&request).into(),
        Err(response) => response.into(),
    };
    match answer {
        Answer::Whole(Response { status, kind, headers, body }) => {
            let mut head = head(status, kind);
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
            for (name, value) in &headers {
                let _ = write!(head, "{name}: {value}\r\n");
            }
            head.push_str("\r\n");
            stream.write_all(head.as_bytes())?;
            stream.write_all(&body)?;
        }
        Answer::Stream(Stream { kind, write }) => {
            let head = head(200, kind) + "Cache-Control: no-store\r\n\r\n";
            stream.write_all(head.as_bytes())?;
            write(&mut stream)?;
        }
    }
    // What the client still sends is read before the connection ends: it would lose the answer.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut rest = [0; 4096];
    for _ in 0..64 {
        if !matches!(stream.read(&mut rest), Ok(n) if n > 0) {
            break;
        }
    }
    Ok(())
}

/// The status line and the headers that all answers have.
fn head(status: u16, kind: &str) -> String {
    let reason = reason(status);
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nConnection: close\r\n")
}

/// Reads a request, or gives the answer to one that is not acceptable.
fn read(stream: &mut TcpStream) -> io::Result<Result<Request, Response>> {
    let end = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    loop {
        match parse(&bytes) {
            Ok(Some(request)) => return Ok(Ok(request)),
            Ok(None) => {}
            Err(response) => return Ok(Err(response)),
        }
        // One deadline for the whole, or a byte now and then would hold the place for ever.
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 8192];
        let n = stream.read(&mut piece)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&piece[..n]);
    }
}

/// The request in `bytes`; none where more is to come.
fn parse(bytes: &[u8]) -> Result<Option<Request>, Response> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let bad = |what: &str| Response::text(400, &format!("this is no valid request: {what}"));
    let head = match parsed.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Response::text(431, "the headers of the request are too long"));
        }
        Err(e) => return Err(bad(&e.to_string())),
    };
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::with_capacity(parsed.headers.len()),
        body: Vec::new(),
    };
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| bad("a header is not UTF-8"))?;
        request.headers.push((header.name.to_ascii_lowercase(), value.to_owned()));
    }
    if request.headers.iter().any(|(name, _)| name == "transfer-encoding") {
        return Err(Response::text(411, "the request must state its length"));
    }
    let length = if request.headers.iter().any(|(name, _)| name == "content-length") {
        let stated = request.header("content-length").and_then(|text| text.parse::<usize>().ok());
        stated.ok_or_else(|| bad("its length is no number"))?
    } else {
        0
    };
    if length > MAX_BODY {
        let sentence = format!("the request has {length} bytes; {MAX_BODY} are possible");
        return Err(Response::text(413, &sentence));
    }
    if bytes.len() < head + length {
        return Ok(None);
    }
    request.body = bytes[head..head + length].to_vec();
    Ok(Some(request))
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers with what it was asked.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            serve(&listener, &|request| {
                Response::text(200, &format!("{request:?}")).with("X-A", "b")
            })
        });
        address
    }

    fn ask(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    #[test]
    fn a_request_arrives_whole_and_gets_an_answer() {
        let head = b"POST /a%20b?x=1&token=t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(parse(&head[..20]).unwrap(), None);
        assert_eq!(parse(head).unwrap(), None);
        let whole = [head, &b"hello"[..]].concat();
        let request = parse(&whole).unwrap().unwrap();
        assert_eq!((&*request.method, &*request.path), ("POST", "/a%20b"));
        assert_eq!((request.header("host"), request.parameter("token")), (Some("h"), Some("t")));
        assert_eq!(request.body, b"hello");
        let text = ask(echo(), &whole);
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\nX-A: b\r\n"),
            "{text}"
        );
        assert!(text.contains("Content-Length: ") && text.contains("/a%20b"), "{text}");
    }

    #[test]
    fn what_is_too_large_or_wrong_is_turned_away() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_HEAD));
        let endless = vec![b'a'; MAX_HEAD + 1];
        for (bytes, status) in [
            (many.as_bytes(), 431),
            (long.as_bytes(), 431),
            (&endless, 431),
            (b"POST / HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413),
            (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
            (b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00 TLS", 400),
        ] {
            assert_eq!(parse(bytes).unwrap_err().status, status);
        }
        let text = ask(echo(), long.as_bytes());
        assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    }

    #[test]
    fn a_stream_arrives_piece_by_piece_and_a_server_that_stops_ends_everything() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (send, pieces) = std::sync::mpsc::channel::<&str>();
        let pieces = Arc::new(Mutex::new(Some(pieces)));
        let server = Server::start(listener, move |_| {
            let pieces = pieces.lock().unwrap().take();
            Answer::Stream(Stream::new("text/event-stream", move |out| {
                pieces.into_iter().flatten().try_for_each(|piece| writeln!(out, "{piece}"))
            }))
        })
        .unwrap();
        let address = server.address();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut lines = io::BufRead::lines(io::BufReader::new(client)).map(Result::unwrap);
        assert!(lines.by_ref().take_while(|l| !l.is_empty()).all(|l| !l.contains("Length")));
        for piece in ["first", "second"] {
            send.send(piece).unwrap();
            assert_eq!(lines.next().unwrap(), piece);
        }
        let silent = TcpStream::connect(address).unwrap();
        drop(send);
        drop(server);
        assert_eq!(lines.next(), None);
        assert_eq!((&silent).read(&mut [0]).unwrap_or(0), 0);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn clients_beyond_the_limit_are_turned_away_and_places_become_free() {
        let address = echo();
        let silent: Vec<_> =
            (0..MAX_CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert_eq!(ask(address, b"GET / HTTP/1.1\r\n\r\n"), "");
        drop(silent);
        let end = Instant::now() + PATIENCE;
        while ask(address, b"GET / HTTP/1.1\r\n\r\n").is_empty() {
            assert!(Instant::now() < end, "no place has become free");
        }
    }

    #[test]
    fn silent_clients_do_not_keep_others_from_their_answer() {
        let address = echo();
        let silent: Vec<_> = (0..8).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        drop(silent);
    }
}
