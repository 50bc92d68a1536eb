//! An HTTP/1.1 client for one connection, over anything that reads and writes (RFC 9112).
//!
//! Pure over `Read + Write`: timeouts belong to the stream. Everything a server sends has a limit,
//! and a body that ends before its length is an error, never a short answer.

use std::fmt;
use std::io::{self, Read, Write};

/// The most a head may take: far above what Buildbot or a proxy sends.
const HEAD: usize = 16 * 1024;
/// No chunk is larger than this.
const CHUNK: u64 = 1 << 30;
/// The most that stands between chunks: a size in hexadecimal with extensions, or a trailer.
const CHUNK_LINE: usize = 1024;
/// Lines of one trailer section.
const TRAILERS: usize = 64;
const HEADERS: usize = 64;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum HttpError {
    NotHttp,
    EndlessHead,
    BrokenChunk,
    ChunkTooLong,
    UnknownLength,
    /// The body is larger than this many bytes.
    TooLarge(usize),
    EndedEarly,
    /// The body is not what its head promises.
    Broken,
    Timeout,
    Io(String),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            HttpError::NotHttp => f.write_str("this is no HTTP"),
            HttpError::EndlessHead => f.write_str("an endless head"),
            HttpError::BrokenChunk => f.write_str("a broken chunk"),
            HttpError::ChunkTooLong => f.write_str("a chunk is longer than its size"),
            HttpError::UnknownLength => f.write_str("a body of unknown length"),
            HttpError::TooLarge(limit) => write!(f, "a body above {} KiB", limit / 1024),
            HttpError::EndedEarly => f.write_str("the connection ended early"),
            HttpError::Broken => {
                f.write_str("the answer is not what it should be: half of one, or garbled")
            }
            HttpError::Timeout => f.write_str("no answer in time"),
            HttpError::Io(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for HttpError {
    fn from(e: io::Error) -> HttpError {
        match e.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => HttpError::Timeout,
            _ => HttpError::Io(e.to_string()),
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
        let named = move |(n, _): &&(String, String)| n.eq_ignore_ascii_case(name);
        self.headers.iter().filter(named).map(|(_, v)| v.as_str())
    }

    /// The first value of a header.
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// Whether a header that is a list holds a token.
    pub fn has(&self, name: &str, token: &str) -> bool {
        let mut tokens = self.all(name).flat_map(|value| value.split(','));
        tokens.any(|t| t.trim().eq_ignore_ascii_case(token))
    }
}

/// Where in a body the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// The body is complete, or there is none.
    Done,
    /// So many bytes are to come.
    Length(usize),
    /// A line with the size of the next chunk is to come.
    ChunkSize,
    /// So many bytes of this chunk are to come.
    Chunk(usize),
    /// It lasts until the connection closes.
    UntilClose,
}

/// One connection. After an error it is of no further use.
pub struct Connection<S> {
    /// The stream, for its timeouts.
    pub stream: S,
    buffer: Vec<u8>,
    body: Body,
}

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S) -> Connection<S> {
        Connection {
            stream,
            buffer: Vec::new(),
            body: Body::Done,
        }
    }

    /// Sends a request and reads the head of its answer. `headers` are whole lines with their ends;
    /// `json` is what to POST, or empty for a GET.
    pub fn ask(&mut self, target: &str, headers: &str, json: &str) -> Result<Head, HttpError> {
        let method = method(json);
        let content = if json.is_empty() {
            String::new()
        } else {
            let length = json.len();
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n")
        };
        // One write: a request in two segments waits for a delayed acknowledgement.
        let request = format!("{method} {target} HTTP/1.1\r\n{headers}{content}\r\n{json}");
        self.stream.write_all(request.as_bytes())?;
        self.stream.flush()?;
        loop {
            let head = self.head()?;
            // Interim answers (1xx) come before the real one.
            if head.status >= 200 {
                return Ok(head);
            }
        }
    }

    fn head(&mut self) -> Result<Head, HttpError> {
        loop {
            let mut slots = [httparse::EMPTY_HEADER; HEADERS];
            let mut response = httparse::Response::new(&mut slots);
            let parsed = response
                .parse(&self.buffer)
                .map_err(|_| HttpError::NotHttp)?;
            let httparse::Status::Complete(length) = parsed else {
                if self.buffer.len() >= HEAD {
                    return Err(HttpError::EndlessHead);
                }
                self.fill()?;
                continue;
            };
            let owned = |header: &httparse::Header| {
                let value = String::from_utf8_lossy(header.value).into_owned();
                (header.name.to_owned(), value)
            };
            let head = Head {
                status: response.code.unwrap_or(0),
                headers: response.headers.iter().map(owned).collect(),
            };
            self.buffer.drain(..length);
            self.body = framing(&head)?;
            return Ok(head);
        }
    }

    /// The next piece of the body; nothing at its end, if that does not come too early.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>, HttpError> {
        if self.body == Body::ChunkSize {
            self.body = match self.chunk_size()? {
                0 => {
                    self.trailers()?;
                    Body::Done
                }
                size => Body::Chunk(size),
            };
        }
        match self.body {
            Body::Done | Body::ChunkSize => Ok(None),
            Body::Length(0) => {
                self.body = Body::Done;
                Ok(None)
            }
            Body::Length(left) => {
                let piece = self.take(left)?;
                self.body = Body::Length(left - piece.len());
                Ok(Some(piece))
            }
            Body::Chunk(left) => {
                let piece = self.take(left)?;
                self.body = Body::Chunk(left - piece.len());
                if piece.len() == left {
                    if !self.line()?.is_empty() {
                        return Err(HttpError::ChunkTooLong);
                    }
                    self.body = Body::ChunkSize;
                }
                Ok(Some(piece))
            }
            Body::UntilClose => match self.take(usize::MAX) {
                // The connection is over, too: the body stays what it is.
                Err(HttpError::EndedEarly) => Ok(None),
                piece => piece.map(Some),
            },
        }
    }

    /// The whole body, if it is not longer than `limit` bytes.
    pub fn body(&mut self, limit: usize) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        loop {
            let announced = match self.body {
                Body::Length(left) | Body::Chunk(left) => left,
                Body::Done | Body::ChunkSize | Body::UntilClose => 0,
            };
            if body.len() + announced > limit {
                return Err(HttpError::TooLarge(limit));
            }
            let Some(piece) = self.piece()? else {
                return Ok(body);
            };
            body.extend(piece);
        }
    }

    /// Whether another request may follow: the body is complete, and nothing stands behind it.
    /// What does would be taken for the answer of that request.
    pub fn is_reusable(&self) -> bool {
        self.body == Body::Done && self.buffer.is_empty()
    }

    fn chunk_size(&mut self) -> Result<usize, HttpError> {
        let mut line = self.line()?;
        line.extend(b"\r\n");
        match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, size))) if size <= CHUNK => Ok(size as usize),
            _ => Err(HttpError::BrokenChunk),
        }
    }

    /// The trailer section ends with an empty line.
    fn trailers(&mut self) -> Result<(), HttpError> {
        for _ in 0..TRAILERS {
            if self.line()?.is_empty() {
                return Ok(());
            }
        }
        Err(HttpError::BrokenChunk)
    }

    /// At least one byte, at most `limit` of them.
    fn take(&mut self, limit: usize) -> Result<Vec<u8>, HttpError> {
        while self.buffer.is_empty() {
            self.fill()?;
        }
        let length = self.buffer.len().min(limit);
        Ok(self.buffer.drain(..length).collect())
    }

    /// A line between chunks, without its end.
    fn line(&mut self) -> Result<Vec<u8>, HttpError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(line.trim_ascii_end().to_vec());
            }
            if self.buffer.len() > CHUNK_LINE {
                return Err(HttpError::BrokenChunk);
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<(), HttpError> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(HttpError::EndedEarly),
            Ok(length) => {
                self.buffer.extend_from_slice(&chunk[..length]);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// How the length of a body is told (RFC 9112, section 6.3).
fn framing(head: &Head) -> Result<Body, HttpError> {
    if head.status < 200 || head.status == 204 || head.status == 304 {
        return Ok(Body::Done);
    }
    if head.has("transfer-encoding", "chunked") {
        return Ok(Body::ChunkSize);
    }
    let lengths: Vec<&str> = head.all("content-length").collect();
    match lengths[..] {
        [] => Ok(Body::UntilClose),
        [length] => match length.parse() {
            Ok(length) => Ok(Body::Length(length)),
            Err(_) => Err(HttpError::UnknownLength),
        },
        // Two lengths are an attack on whoever believes the other one.
        _ => Err(HttpError::UnknownLength),
    }
}

pub fn method(json: &str) -> &'static str {
    if json.is_empty() { "GET" } else { "POST" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    const LIMIT: usize = 1024 * 1024;

    /// A peer that sends these pieces, one a read, and then closes.
    struct Peer(Vec<Vec<u8>>);

    impl Read for Peer {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let length = self.0[0].len().min(out.len());
            out[..length].copy_from_slice(&self.0[0][..length]);
            self.0[0].drain(..length);
            if self.0[0].is_empty() {
                self.0.remove(0);
            }
            Ok(length)
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

    fn get(pieces: Vec<Vec<u8>>) -> Result<(u16, Vec<u8>), HttpError> {
        let mut connection = Connection::new(Peer(pieces));
        let head = connection.ask("/", "Host: h\r\n", "")?;
        Ok((head.status, connection.body(LIMIT)?))
    }

    const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n\
          3;ext=1\r\nhel\r\nA\r\nlo\r\n world\r\n0\r\nX: y\r\n\r\n";
    const UNTIL_CLOSE: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhello";

    #[test]
    fn any_split_gives_the_same_answer_and_every_prefix_is_an_error() {
        let answers = [
            (PLAIN, (200, b"hello".to_vec())),
            (CHUNKED, (404, b"hello\r\n world".to_vec())),
        ];
        for (bytes, answer) in answers {
            for at in 1..bytes.len() {
                let (a, b) = bytes.split_at(at);
                let whole = get(vec![a.to_vec(), b.to_vec()]).unwrap();
                assert_eq!(whole, answer, "split at {at}");
                assert!(get(vec![a.to_vec()]).is_err(), "prefix of {at}");
            }
            let bytewise = bytes.iter().map(|&b| vec![b]).collect();
            assert_eq!(get(bytewise).unwrap(), answer);
        }
    }

    #[test]
    fn a_body_may_last_until_the_connection_closes() {
        let bytewise = UNTIL_CLOSE.iter().map(|&b| vec![b]).collect();
        assert_eq!(get(bytewise), Ok((200, b"hello".to_vec())));
        let mut connection = Connection::new(Peer(vec![UNTIL_CLOSE.to_vec()]));
        connection.ask("/", "", "").unwrap();
        connection.body(LIMIT).unwrap();
        assert!(!connection.is_reusable());
        let mut endless = vec![UNTIL_CLOSE.to_vec()];
        endless.extend((0..300).map(|_| vec![b'a'; 8192]));
        assert_eq!(get(endless), Err(HttpError::TooLarge(LIMIT)));
    }

    #[test]
    fn a_chunk_longer_than_its_size_is_an_error() {
        let wrong = String::from_utf8_lossy(CHUNKED).replace("A\r\n", "9\r\n");
        let error = get(vec![wrong.into_bytes()]).unwrap_err();
        assert_eq!(error.to_string(), "a chunk is longer than its size");
    }

    #[test]
    fn limits_hold() {
        let error = |pieces| get(pieces).unwrap_err().to_string();
        let mut endless = vec![b"HTTP/1.1 200 OK\r\n".to_vec()];
        endless.extend((0..10_000).map(|i| format!("X-{i}: y\r\n").into_bytes()));
        assert!(get(endless).is_err());
        let one_header = vec![b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 1 << 20]];
        assert_eq!(error(one_header), "an endless head");
        let large = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n".to_vec();
        assert_eq!(error(vec![large]), "a body above 1024 KiB");
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let huge = [&chunked[..], b"FFFFFFFFFFFFFFFF\r\n"].concat();
        assert_eq!(error(vec![huge]), "a broken chunk");
        let mut pieces = vec![chunked.clone()];
        pieces.extend((0..300).map(|_| [b"2000\r\n", &[b'a'; 0x2000][..], b"\r\n"].concat()));
        assert_eq!(error(pieces), "a body above 1024 KiB");
        let mut trailers = vec![chunked, b"0\r\n".to_vec()];
        trailers.extend((0..1000).map(|_| b"X: y\r\n".to_vec()));
        assert_eq!(error(trailers), "a broken chunk");
        let two_lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(error(vec![two_lengths.into()]), "a body of unknown length");
        let irc = b":irc 001 bot :hi\r\n".to_vec();
        assert_eq!(error(vec![irc]), "this is no HTTP");
    }

    #[test]
    fn two_answers_on_one_connection_do_not_mix() {
        let mut connection = Connection::new(Peer(vec![PLAIN.to_vec(), PLAIN.to_vec()]));
        for _ in 0..2 {
            let head = connection.ask("/", "", "").unwrap();
            assert!(!head.has("connection", "close"));
            assert_eq!(connection.body(LIMIT).unwrap(), b"hello");
            assert!(connection.is_reusable());
        }
    }

    #[test]
    fn surplus_bytes_end_the_use_of_a_connection() {
        let surplus = [PLAIN, b"HTTP/1.1 200 OK\r\n"].concat();
        let mut connection = Connection::new(Peer(vec![surplus]));
        connection.ask("/", "", "").unwrap();
        assert_eq!(connection.body(LIMIT).unwrap(), b"hello");
        assert!(!connection.is_reusable());
    }

    #[test]
    fn fuzz_http() {
        fuzz(&[PLAIN, CHUNKED, UNTIL_CLOSE], |bytes, random| {
            let (one, two) = bytes.split_at(random.below(bytes.len()));
            let whole = get(vec![bytes.to_vec()]);
            let pieces = get(vec![one.to_vec(), two.to_vec()]);
            // httparse finds some heads faulty in pieces only, or sooner.
            if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
                assert_eq!(whole, pieces);
            }
        });
    }
}
