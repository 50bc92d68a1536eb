//! An HTTP/1.1 client for one connection, over anything that reads and writes (RFC 9112).
//!
//! Pure over `Read + Write`: timeouts belong to the stream. Everything a server sends has a limit,
//! and a body that ends early is an error, never a short answer. Errors are sentences.

use std::io::{self, Read, Write};

/// The most a head may take: far above what Buildbot or a proxy sends.
const HEAD: usize = 16 * 1024;
/// No chunk is larger than this.
const CHUNK: u64 = 1 << 30;
/// The most that stands between chunks: a size in hexadecimal with extensions, or a trailer.
const CHUNK_LINE: usize = 1024;
const HEADERS: usize = 64;

#[derive(Debug, Default)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// All values of a header, in the order they came.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    pub fn has(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
    }
}

/// One connection. After an error it is of no further use.
pub struct Connection<S> {
    /// The stream, for its timeouts.
    pub stream: S,
    bytes: Vec<u8>,
    /// What is to come of the body, or of this chunk; then, whether more chunks follow.
    left: usize,
    chunked: bool,
}

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S) -> Connection<S> {
        Connection {
            stream,
            bytes: Vec::new(),
            left: 0,
            chunked: false,
        }
    }

    /// Sends a request and reads the head of its answer. `headers` are whole lines with their ends;
    /// `json` is what to POST, or empty for a GET.
    pub fn ask(&mut self, target: &str, headers: &str, json: &str) -> Result<Head, String> {
        let content = match json.len() {
            0 => String::new(),
            length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
        };
        // One write: a request in two segments waits for a delayed acknowledgement.
        let request = format!(
            "{} {target} HTTP/1.1\r\n{headers}{content}\r\n{json}",
            method(json)
        );
        self.stream
            .write_all(request.as_bytes())
            .and_then(|()| self.stream.flush())
            .map_err(sentence)?;
        loop {
            let mut slots = [httparse::EMPTY_HEADER; HEADERS];
            let mut response = httparse::Response::new(&mut slots);
            match response.parse(&self.bytes) {
                Ok(httparse::Status::Complete(length)) => {
                    let value =
                        |h: &httparse::Header| String::from_utf8_lossy(h.value).into_owned();
                    let headers = response
                        .headers
                        .iter()
                        .map(|h| (h.name.to_owned(), value(h)))
                        .collect();
                    let head = Head {
                        status: response.code.unwrap_or(0),
                        headers,
                    };
                    self.bytes.drain(..length);
                    (self.left, self.chunked) = framing(&head)?;
                    if head.status >= 200 {
                        return Ok(head);
                    }
                }
                Ok(httparse::Status::Partial) if self.bytes.len() < HEAD => self.fill()?,
                Ok(httparse::Status::Partial) => return Err("an endless head".into()),
                Err(_) => return Err("this is no HTTP".into()),
            }
        }
    }

    /// The next piece of the body; nothing at its end, if that does not come too early.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>, String> {
        if self.left == 0 && self.chunked {
            let line = [self.line()?, b"\r\n".to_vec()].concat();
            self.left = match httparse::parse_chunk_size(&line) {
                Ok(httparse::Status::Complete((_, size))) if size <= CHUNK => size as usize,
                _ => return Err("a broken chunk".into()),
            };
            self.chunked = self.left > 0;
            // The trailer section ends with an empty line.
            while !self.chunked && !self.line()?.is_empty() {}
        }
        if self.left == 0 {
            return Ok(None);
        }
        if self.bytes.is_empty() {
            self.fill()?;
        }
        let n = self.bytes.len().min(self.left);
        let piece = self.bytes.drain(..n).collect();
        self.left -= n;
        if self.left == 0 && self.chunked && !self.line()?.is_empty() {
            return Err("a chunk is longer than its size".into());
        }
        Ok(Some(piece))
    }

    /// The whole body, as [`Connection::piece`] gives it, if it is not longer than that.
    pub fn body(&mut self, most: usize) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        while most
            .checked_sub(body.len())
            .is_some_and(|room| self.left <= room)
        {
            match self.piece()? {
                Some(piece) => body.extend(piece),
                None => return Ok(body),
            }
        }
        Err(format!("a body above {} KiB", most / 1024))
    }

    /// A line between chunks, without its end.
    fn line(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(end) = self.bytes.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return Ok(line.trim_ascii_end().to_vec());
            }
            if self.bytes.len() > CHUNK_LINE {
                return Err("a broken chunk".into());
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<(), String> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err("the connection ended early".into()),
            Ok(n) => self.bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(sentence(e)),
        }
        Ok(())
    }
}

/// The length of a body, and whether it comes in chunks (RFC 9112, section 6.3), less what nobody
/// should send: a body that lasts until the connection closes cannot be told from a cut one.
fn framing(head: &Head) -> Result<(usize, bool), String> {
    let mut lengths = head.all("content-length");
    match (lengths.next().map(str::parse), lengths.next()) {
        _ if head.status < 200 || head.status == 204 || head.status == 304 => Ok((0, false)),
        _ if head.has("transfer-encoding", "chunked") => Ok((0, true)),
        (Some(Ok(n)), None) => Ok((n, false)),
        _ => Err("a body of unknown length".into()),
    }
}

pub fn method(json: &str) -> &'static str {
    if json.is_empty() { "GET" } else { "POST" }
}

fn sentence(e: io::Error) -> String {
    match e.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".into(),
        _ => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    const MOST: usize = 1024 * 1024;

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

    fn get(pieces: Vec<Vec<u8>>) -> Result<(u16, Vec<u8>), String> {
        let mut connection = Connection::new(Peer(pieces));
        let head = connection.ask("/", "Host: h\r\n", "")?;
        Ok((head.status, connection.body(MOST)?))
    }

    const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n\
                             3;ext=1\r\nhel\r\nA\r\nlo\r\n world\r\n0\r\nX: y\r\n\r\n";

    #[test]
    fn any_split_gives_the_same_answer_and_every_prefix_is_an_error() {
        for (bytes, answer) in [
            (PLAIN, (200, b"hello".to_vec())),
            (CHUNKED, (404, b"hello\r\n world".to_vec())),
        ] {
            for i in 1..bytes.len() {
                let (a, b) = bytes.split_at(i);
                assert_eq!(
                    get(vec![a.to_vec(), b.to_vec()]).unwrap(),
                    answer,
                    "split at {i}"
                );
                assert!(get(vec![a.to_vec()]).is_err(), "prefix of {i}");
            }
            assert_eq!(
                get(bytes.iter().map(|&b| vec![b]).collect()).unwrap(),
                answer
            );
        }
    }

    #[test]
    fn a_chunk_longer_than_its_size_is_an_error() {
        let wrong = String::from_utf8_lossy(CHUNKED).replace("A\r\n", "9\r\n");
        let error = get(vec![wrong.into_bytes()]).unwrap_err();
        assert_eq!(error, "a chunk is longer than its size");
    }

    #[test]
    fn limits_hold() {
        let mut endless = vec![b"HTTP/1.1 200 OK\r\n".to_vec()];
        endless.extend((0..10_000).map(|i| format!("X-{i}: y\r\n").into_bytes()));
        assert!(get(endless).is_err());
        let one_header = vec![b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 1 << 20]];
        assert_eq!(get(one_header).unwrap_err(), "an endless head");
        let large = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n".to_vec();
        assert_eq!(get(vec![large]).unwrap_err(), "a body above 1024 KiB");
        let chunk =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n".to_vec();
        assert_eq!(get(vec![chunk]).unwrap_err(), "a broken chunk");
        let mut pieces = vec![b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()];
        pieces.extend((0..300).map(|_| [b"2000\r\n", &[b'a'; 0x2000][..], b"\r\n"].concat()));
        assert_eq!(get(pieces).unwrap_err(), "a body above 1024 KiB");
        let close = b"HTTP/1.0 200 OK\r\n\r\nhello".to_vec();
        assert_eq!(get(vec![close]).unwrap_err(), "a body of unknown length");
        assert_eq!(
            get(vec![b":irc 001 bot :hi\r\n".to_vec()]).unwrap_err(),
            "this is no HTTP"
        );
    }

    #[test]
    fn two_answers_on_one_connection_do_not_mix() {
        let mut c = Connection::new(Peer(vec![[PLAIN, PLAIN].concat()]));
        for _ in 0..2 {
            let head = c.ask("/", "", "").unwrap();
            assert!(!head.has("connection", "close"));
            assert_eq!(c.body(MOST).unwrap(), b"hello");
        }
    }

    #[test]
    fn fuzz_http() {
        fuzz(&[PLAIN, CHUNKED], |bytes, random| {
            let (one, two) = bytes.split_at(random.below(bytes.len()));
            // httparse finds some heads faulty in pieces only, or sooner.
            if let (Ok(whole), Ok(pieces)) = (
                get(vec![bytes.to_vec()]),
                get(vec![one.to_vec(), two.to_vec()]),
            ) {
                assert_eq!(whole, pieces);
            }
        });
    }
}
