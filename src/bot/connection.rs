//! One connection to the IRC server, and what is forgotten with it: the stream, the bytes of a line
//! that is not complete, and those that TLS could not take yet.

use crate::irc::wire::{Line, LineBuffer, Message};
use crate::net::Stream;
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Connection {
    /// Events of connections with other numbers are stale.
    pub number: u64,
    stream: Option<Box<dyn Stream>>,
    lines: LineBuffer,
    unsent: Vec<u8>,
    /// Our questions whether lines have arrived that are not answered yet.
    pub questions: Questions,
}

/// Questions to the server whether lines have arrived. They are answered in order, unless a bouncer
/// has lost some, and the lines before them.
#[derive(Debug, Default)]
pub struct Questions {
    open: VecDeque<Question>,
    /// The last line after which we asked.
    pub asked_after: u64,
    /// When we ask again, unless that is answered.
    pub again_at: Option<Instant>,
    /// How many we have asked.
    count: u64,
}

#[derive(Debug)]
struct Question {
    token: String,
    /// The last line before it.
    line: u64,
}

/// What an answer tells.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The lines up to this one are lost, if any are.
    pub lost: Option<u64>,
    /// Those behind it have arrived, up to this one.
    pub arrived: u64,
}

/// The end of the token of a question. No nick looks like this, and none is too long for a server.
const TOKEN: &str = "-told";
/// Questions that are not answered yet; what was asked before them counts as asked with them.
const OPEN_QUESTIONS: usize = 100;
/// A question that a bouncer has lost, or for which the network is too busy, is asked again.
pub const ASK_AGAIN: Duration = Duration::from_secs(60);

impl Questions {
    /// Asks after this line; returns the token.
    pub fn ask(&mut self, line: u64, now: Instant) -> String {
        self.count += 1;
        let token = format!("{}{TOKEN}", self.count);
        self.open.push_back(Question {
            token: token.clone(),
            line,
        });
        if self.open.len() > OPEN_QUESTIONS {
            self.open.pop_front();
        }
        self.asked_after = line;
        self.again_at = Some(now + ASK_AGAIN);
        token
    }

    /// Whether the last one should have been answered by now.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.again_at.is_some_and(|at| at <= now)
    }

    /// Takes in an answer, if it is one to us.
    pub fn on_answer(&mut self, token: &str) -> Option<Arrival> {
        let at = self.open.iter().position(|asked| asked.token == token)?;
        let lost = at.checked_sub(1).map(|before| self.open[before].line);
        let answered = self.open.drain(..=at).next_back()?;
        Some(Arrival {
            lost,
            arrived: answered.line,
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_an_unanswered_question_is_lost() {
        let now = Instant::now();
        let mut questions = Questions::default();
        let tokens: Vec<String> = [3, 5, 5, 9].map(|line| questions.ask(line, now)).into();
        assert!(questions.is_overdue(now + ASK_AGAIN));
        let arrival = |lost, arrived| Some(Arrival { lost, arrived });
        assert_eq!(questions.on_answer("alive"), None);
        assert_eq!(questions.on_answer(&tokens[0]), arrival(None, 3));
        assert_eq!(questions.on_answer(&tokens[0]), None, "again");
        assert_eq!(questions.on_answer(&tokens[2]), arrival(Some(5), 5));
        assert_eq!(questions.on_answer(&tokens[3]), arrival(None, 9));
    }
}
