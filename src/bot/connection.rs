//! One connection to the IRC server, and what is forgotten with it: the stream, the bytes of a line
//! that is not complete, and those that TLS could not take yet.

use crate::irc::wire::{Line, LineBuffer, Message};
use crate::net::Stream;
use std::io;
use std::net::Shutdown;
use std::time::Instant;

#[derive(Default)]
pub struct Connection {
    /// Events of connections with other numbers are stale.
    pub number: u64,
    stream: Option<Box<dyn Stream>>,
    lines: LineBuffer,
    unsent: Vec<u8>,
    /// The last line after which we asked whether it has arrived.
    pub asked_after: u64,
    /// When we ask again, unless that is answered.
    pub ask_again_at: Option<Instant>,
}

/// What became of the bytes that wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    All,
    /// TLS wants to read first: the same bytes again after the next event.
    Blocked,
    /// The peer did not take them in time, and is gone.
    TimedOut,
}

impl Connection {
    pub fn new(number: u64, stream: Box<dyn Stream>) -> Connection {
        Connection {
            number,
            stream: Some(stream),
            ..Connection::default()
        }
    }

    /// The place of a connection that is gone. Dropping the stream ends its reader; what that still
    /// brings is stale.
    pub fn closed(&self) -> Connection {
        Connection {
            number: self.number + 1,
            ..Connection::default()
        }
    }

    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Whether TLS holds a line back.
    pub fn is_blocked(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub fn unsent_bytes(&self) -> usize {
        self.unsent.len()
    }

    /// Takes in bytes of the socket, and returns the messages that they complete.
    pub fn receive(&mut self, bytes: &[u8]) -> io::Result<Vec<Message>> {
        let Some(stream) = &mut self.stream else {
            return Ok(Vec::new());
        };
        let text = stream.receive(bytes)?;
        Ok(self.lines.feed(&text))
    }

    /// Puts a line behind the bytes that wait.
    pub fn push(&mut self, line: &Line) {
        log!(Debug, ">> {}", line.shown());
        self.unsent.extend(line.bytes());
    }

    /// Writes the bytes that wait.
    pub fn write(&mut self) -> Written {
        while !self.unsent.is_empty() {
            let Some(stream) = &mut self.stream else {
                break;
            };
            match stream.write(&self.unsent) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Written::Blocked,
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Written::TimedOut,
                Err(_) => {
                    // It is closed. What the server has said before tells why: the reader brings
                    // it, and ends.
                    if let Ok(socket) = stream.socket() {
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                    break;
                }
            }
        }
        self.unsent.clear();
        Written::All
    }
}
