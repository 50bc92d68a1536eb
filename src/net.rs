//! Sockets: connect over all addresses, TLS, and the reader thread of an IRC connection.
//!
//! A TLS stream cannot be read in one thread and written in another. So the reader thread reads the
//! raw socket, and the thread that owns the [`Stream`] feeds it those bytes and takes out the text.

use crate::config::Tls;
use native_tls::{Certificate, Identity, Protocol, TlsConnector, TlsStream};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// The most that one address may take to accept.
const CONNECT: Duration = Duration::from_secs(15);
/// The most that the TLS hand-shake may take.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// A peer that speaks TLS answers the first record within a round trip; one that does not may wait
/// for ever for a line that never comes.
const FIRST_RECORD: Duration = Duration::from_secs(6);
/// A peer that does not take a line or a request within this time is gone: its window has long been
/// shut then. Nothing else happens meanwhile, so a signal to stop waits as long.
const WRITE: Duration = Duration::from_secs(3);
/// The bytes that the reader hands over at once.
const CHUNK: usize = 4096;

/// A socket under TLS, or under nothing. Reads come from the socket itself until the reader thread
/// takes over, then from the bytes that it has handed in.
#[derive(Debug)]
pub struct Transport {
    socket: TcpStream,
    /// The most that one read may take.
    read_limit: Duration,
    /// When all reads must be done.
    deadline: Instant,
    /// Bytes from the reader thread that TLS has not taken yet; nothing before it runs.
    received: Option<VecDeque<u8>>,
}

impl Read for Transport {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.received {
            Some(bytes) if bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            Some(bytes) => bytes.read(out),
            None => {
                let left = self
                    .deadline
                    .saturating_duration_since(Instant::now())
                    .min(self.read_limit);
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                self.socket.set_read_timeout(Some(left))?;
                self.socket.read(out).map_err(no_would_block)
            }
        }
    }
}

impl Write for Transport {
    /// All or an error, so that TLS never has half a record on its hands.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let end = Instant::now() + WRITE;
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_write_timeout(Some(left))?;
            rest = &rest[self.socket.write(rest).map_err(no_would_block)?..];
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Transport {
    /// Ends the reader thread, which holds a clone.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A timeout of the socket is an error; TLS would take `WouldBlock` for "later".
fn no_would_block(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected => io::ErrorKind::TimedOut.into(),
        _ => e,
    }
}

/// A connection, with TLS or without.
pub trait Stream: Read + Write + Send {
    fn transport(&mut self) -> &mut Transport;

    /// From now on, each read may take `one` and all of them together `whole`.
    fn set_read_limits(&mut self, one: Duration, whole: Duration) {
        let transport = self.transport();
        transport.read_limit = one;
        transport.deadline = Instant::now() + whole;
    }

    /// Another handle of the socket, to shut it down or to read it elsewhere.
    fn socket(&mut self) -> io::Result<TcpStream> {
        self.transport().socket.try_clone()
    }

    /// Takes raw bytes from the reader and returns all the text that they complete; the end of the
    /// TLS session, clean or not, is an error.
    fn receive(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let received = &mut self.transport().received;
        received.get_or_insert_default().extend(bytes);
        let mut text = Vec::new();
        let mut chunk = [0; CHUNK];
        loop {
            match self.read(&mut chunk) {
                // What came before the end is worth hearing; the end will show again.
                Ok(0) | Err(_) if !text.is_empty() => return Ok(text),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => text.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(text),
                Err(e) => return Err(e),
            }
        }
    }
}

impl Stream for Transport {
    fn transport(&mut self) -> &mut Transport {
        self
    }
}

impl Stream for TlsStream<Transport> {
    fn transport(&mut self) -> &mut Transport {
        self.get_mut()
    }
}

/// Connects and shakes hands. The certificate must be valid and bear the host's name. The error
/// names the wait or the refusal, and what to do where we know.
pub fn connect(
    host: &str,
    port: u16,
    tls: Option<&TlsConnector>,
) -> Result<Box<dyn Stream>, String> {
    let socket = dial(host, port)?;
    socket
        .set_nodelay(true)
        .map_err(|e| format!("{host}:{port}: {e}"))?;
    let transport = Transport {
        socket,
        read_limit: FIRST_RECORD,
        deadline: Instant::now() + HANDSHAKE,
        received: None,
    };
    let Some(tls) = tls else {
        return Ok(Box::new(transport));
    };
    let stream = tls
        .connect(host, transport)
        .map_err(|e| format!("{host}:{port}: {}", tls_error(&e.to_string())))?;
    Ok(Box::new(stream))
}

/// Tries each address of the host, in the order of the resolver.
fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let mut errors = Vec::new();
    for address in (host, port)
        .to_socket_addrs()
        .map_err(|e| format!("{host}: name lookup: {e}"))?
    {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => return Ok(socket),
            Err(e) => errors.push(format!("{address}: {e}")),
        }
    }
    Err(if errors.is_empty() {
        format!("{host}: no address")
    } else {
        errors.join("; ")
    })
}

/// What happens to an IRC connection, in this order: `Up`, any number of `Bytes`, `Down`; or `Down`
/// alone, when it could not be made.
pub enum SocketEvent {
    Up(Box<dyn Stream>),
    Bytes(Vec<u8>),
    Down(String),
}

/// Connects in a thread of its own, so that a slow name server stops nobody, and goes on as the
/// reader of that connection. `emit` returns false when nobody listens any more.
pub fn open(
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    emit: impl Fn(SocketEvent) -> bool + Send + 'static,
) {
    let reader = move || {
        if let Err(why) = read(&host, port, tls.as_ref(), &emit) {
            emit(SocketEvent::Down(why));
        }
    };
    // Without threads nothing works; the supervisor starts us again.
    std::thread::Builder::new()
        .name("reader".into())
        .spawn(reader)
        .expect("a thread for the reader");
}

/// Why the connection is down, or nothing when nobody listens any more.
fn read(
    host: &str,
    port: u16,
    tls: Option<&TlsConnector>,
    emit: &dyn Fn(SocketEvent) -> bool,
) -> Result<(), String> {
    let mut stream = connect(host, port, tls)?;
    let mut socket = stream.socket().map_err(|e| e.to_string())?;
    // The timeout belongs to the socket, so the clone shares it.
    socket.set_read_timeout(None).map_err(|e| e.to_string())?;
    let mut is_wanted = emit(SocketEvent::Up(stream));
    let mut chunk = [0; CHUNK];
    while is_wanted {
        match socket.read(&mut chunk) {
            Ok(0) => return Err("closed by the server".into()),
            Ok(length) => is_wanted = emit(SocketEvent::Bytes(chunk[..length].to_vec())),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(())
}

/// A connector that knows the system's authorities and the configured ones; TLS 1.2 at least. The
/// error names the key whose file does not hold what it should.
pub fn connector(tls: &Tls) -> Result<TlsConnector, String> {
    let mut builder = TlsConnector::builder();
    builder.min_protocol_version(Some(Protocol::Tlsv12));
    if let Some(pem) = &tls.ca {
        let authorities =
            Certificate::stack_from_pem(pem).map_err(|e| format!("tls_ca_file: {e}"))?;
        if authorities.is_empty() {
            return Err("tls_ca_file: no certificate in PEM form".into());
        }
        for authority in authorities {
            builder.add_root_certificate(authority);
        }
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        let needed = "(a certificate and a PKCS#8 key, both PEM, are needed)";
        let identity = Identity::from_pkcs8(cert, key.0.as_bytes());
        builder
            .identity(identity.map_err(|e| format!("tls_cert_file, tls_key_file: {e} {needed}"))?);
    }
    builder.build().map_err(|e| format!("TLS: {e}"))
}

/// OpenSSL's error as a sentence: the reason, and what an operator can do about it.
fn tls_error(text: &str) -> String {
    if text.contains("certificate verify failed") {
        let why = text
            .rsplit_once('(')
            .map_or("", |(_, why)| why.trim_end_matches(')'));
        format!("the certificate is refused: {why} (tls_ca_file names an authority to trust)")
    } else if text.contains("wrong version number") || text.contains("packet length too long") {
        "no TLS is spoken on this port".into()
    } else if text.contains("access denied") {
        // What Solanum does to those who come too often.
        "the server refuses the hand-shake (connections are throttled)".into()
    } else if text.contains("timed out") || text.contains("unexpected EOF") {
        "no TLS hand-shake (is this a port without TLS?)".into()
    } else {
        format!("TLS: {text}")
    }
}
