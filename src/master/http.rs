//! An HTTP/1.1 client for one connection, over anything that reads and writes (RFC 9112).
//!
//! Pure over `Read + Write`: timeouts belong to the stream. Everything a server sends has a limit,
//! and a body that ends early is an error, never a short answer.

use std::fmt;
use std::io::{self, Read, Write};

/// The most a head may take: far above what Buildbot or a proxy sends.
const HEAD: usize = 16 * 1024;
/// The most a body may take; the longest page we ask for stays well below.
const BODY: usize = 16 * 1024 * 1024;
/// The most that stands between chunks: a size in hexadecimal with extensions, or a trailer.
const CHUNK_LINE: usize = 1024;
const HEADERS: usize = 64;

/// Why there is no answer.
#[derive(Debug)]
pub enum Error {
    /// The stream failed, ended or timed out.
    Io(io::Error),
    /// The peer does not speak HTTP, or says too much.
    Bad(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Bad(why) => f.write_str(why),
            Error::Io(e) => match e.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => f.write_str("no answer in time"),
                io::ErrorKind::UnexpectedEof => f.write_str("the connection ended early"),
                _ => e.fmt(f),
            },
        }
    }
}

#[derive(Debug, Default)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// All values of a header, in the order they came.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    fn has(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
    }

    /// Whether the connection may serve another request.
    pub fn keeps_alive(&self) -> bool {
        !self.has("connection", "close")
    }
}

/// What is left of a body.
enum Body {
    /// So many bytes.
    Length(usize),
    /// So many bytes of this chunk and the CR LF behind it.
    Chunk(usize),
    /// A line with the next chunk's size.
    ChunkSize,
    /// The trailer section, up to an empty line.
    Trailer,
}

/// One connection. After an error it is of no further use.
pub struct Connection<S> {
    /// The stream, for its timeouts.
    pub stream: S,
    bytes: Vec<u8>,
    body: Body,
}

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S) -> Connection<S> {
        Connection { stream, bytes: Vec::new(), body: Body::Length(0) }
    }

    /// Sends a request and reads the head of its answer. `headers` must hold no line ends.
    pub fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Head, Error> {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        let request = format!("{method} {target} HTTP/1.1\r\n{headers}{length}\r\n");
        // One write: a request in two segments waits for a delayed acknowledgement.
        let sent = self.stream.write_all(&[request.as_bytes(), body].concat()).and_then(|()| self.stream.flush());
        sent.map_err(Error::Io)?;
        loop {
            let mut slots = [httparse::EMPTY_HEADER; HEADERS];
            let mut response = httparse::Response::new(&mut slots);
            match response.parse(&self.bytes) {
                Ok(httparse::Status::Complete(length)) => {
                    let value = |h: &httparse::Header| String::from_utf8_lossy(h.value).into_owned();
                    let headers = response.headers.iter().map(|h| (h.name.to_owned(), value(h))).collect();
                    let head = Head { status: response.code.unwrap_or(0), headers };
                    self.bytes.drain(..length);
                    self.body = framing(&head)?;
                    if head.status >= 200 {
                        return Ok(head);
                    }
                }
                Ok(httparse::Status::Partial) if self.bytes.len() < HEAD => self.fill()?,
                Ok(httparse::Status::Partial) => return Err(Error::Bad("an endless head")),
                Err(_) => return Err(Error::Bad("this is no HTTP")),
            }
        }
    }

    /// The next piece of the body; nothing at its end, if that does not come too early.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            match &mut self.body {
                Body::Length(0) => return Ok(None),
                // A chunk's data is followed by an empty line, then comes a size.
                Body::Chunk(0) => match self.line()?.is_empty() {
                    true => self.body = Body::ChunkSize,
                    false => return Err(Error::Bad("a chunk is longer than its size")),
                },
                Body::Length(_) | Body::Chunk(_) if self.bytes.is_empty() => self.fill()?,
                Body::Length(left) | Body::Chunk(left) => {
                    let n = self.bytes.len().min(*left);
                    *left -= n;
                    return Ok(Some(self.bytes.drain(..n).collect()));
                }
                Body::ChunkSize => {
                    let line = [self.line()?, b"\r\n".to_vec()].concat();
                    self.body = match httparse::parse_chunk_size(&line) {
                        Ok(httparse::Status::Complete((_, 0))) => Body::Trailer,
                        Ok(httparse::Status::Complete((_, size))) if size <= BODY as u64 => Body::Chunk(size as usize),
                        _ => return Err(Error::Bad("a broken chunk")),
                    };
                }
                Body::Trailer => self.body = if self.line()?.is_empty() { Body::Length(0) } else { Body::Trailer },
            }
        }
    }

    /// The whole body, as [`Connection::piece`] gives it, within the limit.
    pub fn body(&mut self) -> Result<Vec<u8>, Error> {
        let (mut body, too_large) = (Vec::new(), Err(Error::Bad("a body above 16 MiB")));
        if matches!(self.body, Body::Length(n) if n > BODY) {
            return too_large;
        }
        while let Some(piece) = self.piece()? {
            body.extend(piece);
            if body.len() > BODY {
                return too_large;
            }
        }
        Ok(body)
    }

    fn line(&mut self) -> Result<Vec<u8>, Error> {
        let end = loop {
            match self.bytes.iter().position(|&b| b == b'\n') {
                Some(end) => break end,
                None if self.bytes.len() > CHUNK_LINE => return Err(Error::Bad("a broken chunk")),
                None => self.fill()?,
            }
        };
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Ok(line.trim_ascii_end().to_vec())
    }

    fn fill(&mut self) -> Result<(), Error> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::Io(e)),
        }
        Ok(())
    }
}

/// RFC 9112, section 6.3, less what nobody should send: a body that lasts until the connection
/// closes cannot be told from a cut one.
fn framing(head: &Head) -> Result<Body, Error> {
    let mut lengths = head.all("content-length");
    match (lengths.next().map(str::parse), lengths.next()) {
        _ if head.status < 200 || head.status == 204 || head.status == 304 => Ok(Body::Length(0)),
        _ if head.has("transfer-encoding", "chunked") => Ok(Body::ChunkSize),
        (Some(Ok(n)), None) => Ok(Body::Length(n)),
        _ => Err(Error::Bad("a body of unknown length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that sends these pieces, one a read, and then closes.
    struct Peer(Vec<Vec<u8>>);

    impl Read for Peer {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let n = self.0[0].len().min(out.len());
            out[..n].copy_from_slice(&self.0[0][..n]);
            self.0[0].drain(..n);
            if self.0[0].is_empty() {
                self.0.remove(0);
            }
            Ok(n)
        }
    }

    impl Write for Peer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn get(pieces: Vec<Vec<u8>>) -> Result<(u16, Vec<u8>), Error> {
        let mut connection = Connection::new(Peer(pieces));
        let head = connection.ask("GET", "/", &[("Host", "h")], b"")?;
        Ok((head.status, connection.body()?))
    }

    const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nhello";
    const CHUNKED: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n\
                             3;ext=1\r\nhel\r\nA\r\nlo\r\n world\r\n0\r\nX: y\r\n\r\n";

    #[test]
    fn any_split_gives_the_same_answer_and_every_prefix_is_an_error() {
        for (bytes, answer) in [(PLAIN, (200, b"hello".to_vec())), (CHUNKED, (404, b"hello\r\n world".to_vec()))] {
            for i in 1..bytes.len() {
                let (a, b) = bytes.split_at(i);
                assert_eq!(get(vec![a.to_vec(), b.to_vec()]).unwrap(), answer, "split at {i}");
                assert!(get(vec![a.to_vec()]).is_err(), "prefix of {i}");
            }
            assert_eq!(get(bytes.iter().map(|&b| vec![b]).collect()).unwrap(), answer);
        }
    }

    #[test]
    fn a_chunk_longer_than_its_size_is_an_error() {
        let wrong = String::from_utf8_lossy(CHUNKED).replace("A\r\n", "9\r\n");
        let error = get(vec![wrong.into_bytes()]).unwrap_err();
        assert_eq!(error.to_string(), "a chunk is longer than its size");
    }

    #[test]
    fn limits_hold() {
        let mut endless = vec![b"HTTP/1.1 200 OK\r\n".to_vec()];
        endless.extend((0..10_000).map(|i| format!("X-{i}: y\r\n").into_bytes()));
        assert!(get(endless).is_err());
        let one_header = vec![b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 1 << 20]];
        assert_eq!(get(one_header).unwrap_err().to_string(), "an endless head");
        let large = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n".to_vec();
        assert_eq!(get(vec![large]).unwrap_err().to_string(), "a body above 16 MiB");
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n".to_vec();
        assert_eq!(get(vec![chunk]).unwrap_err().to_string(), "a broken chunk");
        let close = b"HTTP/1.0 200 OK\r\n\r\nhello".to_vec();
        assert_eq!(get(vec![close]).unwrap_err().to_string(), "a body of unknown length");
        assert_eq!(get(vec![b":irc 001 bot :hi\r\n".to_vec()]).unwrap_err().to_string(), "this is no HTTP");
    }

    #[test]
    fn two_answers_on_one_connection_do_not_mix() {
        let mut c = Connection::new(Peer(vec![[PLAIN, PLAIN].concat()]));
        for _ in 0..2 {
            let head = c.ask("GET", "/", &[], b"").unwrap();
            assert!(head.keeps_alive());
            assert_eq!(c.body().unwrap(), b"hello");
        }
    }

    #[test]
    fn mutated_answers_never_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let mut bytes = if state & 1 == 0 { PLAIN.to_vec() } else { CHUNKED.to_vec() };
            let at = (state >> 8) as usize % bytes.len();
            bytes[at] = (state >> 40) as u8;
            let _ = get(vec![bytes]);
        }
    }
}
