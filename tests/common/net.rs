//! What the fake servers share: accepting connections, plain or with TLS.

use super::{Certificates, TIMEOUT};
use native_tls::{TlsAcceptor, TlsStream};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// A plain or a TLS connection.
pub trait Stream: Read + Write + Send {}
impl Stream for TcpStream {}
impl Stream for TlsStream<TcpStream> {}

/// How often a blocked reader looks at its deadline.
const READ_SLICE: Duration = Duration::from_millis(50);

/// Sets the timeouts of an accepted connection and makes it TLS if there is an acceptor; `None` if that failed.
pub fn handshake(tcp: TcpStream, acceptor: Option<&TlsAcceptor>) -> Option<Box<dyn Stream>> {
    tcp.set_nodelay(true).unwrap();
    tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
    tcp.set_write_timeout(Some(TIMEOUT)).unwrap();
    let clone = tcp.try_clone().unwrap();
    let stream: Box<dyn Stream> = match acceptor {
        None => Box::new(tcp),
        Some(acceptor) => Box::new(acceptor.accept(tcp).ok()?),
    };
    clone.set_read_timeout(Some(READ_SLICE)).unwrap();
    Some(stream)
}

/// Serves one of the [`Certificates`]; without one, plain TCP.
pub fn tls_acceptor(certificate: Option<&str>) -> Option<TlsAcceptor> {
    certificate.map(|name| TlsAcceptor::new(Certificates::get().identity(name)).unwrap())
}

/// Whether a read only ran out of time and may be tried again.
pub fn is_timeout(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// Accepts on a port of its own and gives each connection a thread.
pub struct Acceptor {
    pub port: u16,
    stop: Arc<AtomicBool>,
}

impl Acceptor {
    pub fn start(handle: impl Fn(TcpStream, &AtomicBool) + Send + Sync + 'static) -> Acceptor {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let handle = Arc::new(handle);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let stopped = stopped.clone();
                let handle = handle.clone();
                thread::spawn(move || handle(stream, &stopped));
            }
        });
        Acceptor { port, stop }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes the accepting thread
    }
}
