//! IRC bytes to messages and back, by RFC 1459, RFC 2812 and the IRCv3 message-tags text. Pure.
//!
//! What the wire forbids cannot be built here: an outgoing [`Line`] holds no CR, LF or NUL and is
//! never too long, whoever made it.

use crate::names::{Casemapping, Name, is_channel, is_mistyped};
use crate::sanitize::strip_formatting;

/// The most a server may send before LF: 8,191 bytes of tags (IRCv3) and 512 of message (RFC 1459).
const LINE_IN: usize = 8191 + 512;
/// The most anyone may send, CR LF included, as the server relays it (RFC 1459, section 2.3).
const LINE_OUT: usize = 512;

/// Cuts the byte stream into messages. It never holds more than a line and a byte.
#[derive(Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
}

impl LineBuffer {
    /// Takes a chunk and returns the messages that it completes. A line ends with LF or CR LF; one
    /// that is too long is dropped.
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        for part in chunk.split_inclusive(|&byte| byte == b'\n') {
            let body = part.strip_suffix(b"\n");
            let is_complete = body.is_some();
            let body = body.unwrap_or(part);
            // One byte more than a line shows that it is too long.
            let room = LINE_IN + 1 - self.bytes.len();
            self.bytes.extend_from_slice(&body[..body.len().min(room)]);
            if is_complete {
                let line = std::mem::take(&mut self.bytes);
                messages.extend(decode(line));
            }
        }
        messages
    }
}

/// A line to a message. UTF-8, or else Latin-1: what people without UTF-8 mostly send, and it
/// cannot fail.
fn decode(line: Vec<u8>) -> Option<Message> {
    if line.len() > LINE_IN {
        log!(Warning, "IRC: dropped a line that was too long");
        return None;
    }
    let text = String::from_utf8(line).unwrap_or_else(|error| {
        let bytes = error.into_bytes();
        bytes.into_iter().map(char::from).collect()
    });
    Message::parse(text.trim_end_matches('\r'))
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Tags of IRCv3, as they came: `name=value;name`.
    pub tags: String,
    /// `nick!user@host`, a server's name, or empty.
    pub source: String,
    /// In capitals, or three digits.
    pub command: String,
    /// The last one may hold blanks.
    pub params: Vec<String>,
}

impl Message {
    /// Parses one line. Lenient: double blanks, a missing source and missing parameters are fine;
    /// `None` is a line without a command.
    pub fn parse(line: &str) -> Option<Message> {
        let (tags, rest) = marked('@', line.trim_start_matches(' '));
        let (source, rest) = marked(':', rest);
        let (command, mut rest) = word(rest);
        let mut params = Vec::new();
        while !rest.is_empty() {
            let (param, after) = match rest.strip_prefix(':') {
                Some(trailing) => (trailing, ""),
                None => word(rest),
            };
            params.push(param.to_owned());
            rest = after;
        }
        let message = Message {
            tags: tags.to_owned(),
            source: source.to_owned(),
            command: command.to_ascii_uppercase(),
            params,
        };
        (!command.is_empty()).then_some(message)
    }

    /// The message as the log may show it: without channel keys, which people and servers tell us.
    pub fn shown(&self) -> String {
        let params = self.params.join(" ");
        let text = match self.command.as_str() {
            "MODE" if self.sets_key(1) => self.params[..1].join(" ") + " ***",
            // RPL_CHANNELMODEIS: nick, channel, modes.
            "324" if self.sets_key(2) => self.params[..2].join(" ") + " ***",
            "PRIVMSG" | "NOTICE" => hide_key(&strip_formatting(&params)),
            _ => params,
        };
        format!("{} {} {text}", self.source, self.command)
    }

    /// Whether the modes at that parameter have to do with a channel's key.
    fn sets_key(&self, modes: usize) -> bool {
        self.params
            .get(modes)
            .is_some_and(|modes| modes.contains('k'))
    }

    /// The nick of the source, or a server's name.
    pub fn nick(&self) -> &str {
        self.source.split(['!', '@']).next().unwrap_or("")
    }

    /// The value of a tag, with its escapes undone; of a tag without a value, nothing.
    pub fn tag(&self, name: &str) -> Option<String> {
        let tags = self
            .tags
            .split(';')
            .map(|tag| tag.split_once('=').unwrap_or((tag, "")));
        let (_, value) = tags.into_iter().find(|(key, _)| *key == name)?;
        Some(unescape_tag(value))
    }

    /// Whether a bot has sent it: by IRCv3's tag, or by the name that InspIRCd 3 has for it.
    pub fn is_from_bot(&self) -> bool {
        let names = self
            .tags
            .split(';')
            .map(|tag| tag.split('=').next().unwrap_or(""));
        names
            .into_iter()
            .any(|name| name == "bot" || name.ends_with("/bot"))
    }
}

/// The escapes of tag values (IRCv3 message-tags).
fn unescape_tag(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some(':') => text.push(';'),
            Some('s') => text.push(' '),
            Some('r') => text.push('\r'),
            Some('n') => text.push('\n'),
            Some(other) => text.push(other),
            None => {}
        }
    }
    text
}

/// Hides what stands behind the word `join`, mistyped or not, or behind the name of a channel: that
/// may be a key. The first parameter, where it was said, stays.
fn hide_key(text: &str) -> String {
    let (place, said) = text.split_once(' ').unwrap_or((text, ""));
    let is_separator = |c: char| c.is_whitespace() || matches!(c, ':' | ',');
    let mut end = 0;
    for word in said.split_inclusive(is_separator) {
        let letters = word.find(|c: char| !c.is_alphabetic());
        let letters = letters.unwrap_or(word.len());
        let shown = if is_mistyped(&word[..letters], "join") {
            Some(end + letters)
        } else if is_channel(word) {
            Some(end + word.trim_end_matches(is_separator).len())
        } else {
            None
        };
        end += word.len();
        if let Some(shown) = shown
            && !said[shown..].trim().is_empty()
        {
            return format!("{place} {} ***", &said[..shown]);
        }
    }
    text.to_owned()
}

/// The first word and what follows its blanks.
fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').map_or((text, ""), |(word, rest)| {
        (word, rest.trim_start_matches(' '))
    })
}

/// The first word if it begins with `mark`, or nothing, and the rest.
fn marked(mark: char, text: &str) -> (&str, &str) {
    text.strip_prefix(mark).map_or(("", text), word)
}

/// An outgoing line. It holds nothing that the wire forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    text: String,
    is_secret: bool,
}

impl Line {
    /// A command and its parameters; only `trailing` may hold blanks, be empty or begin with `:`.
    /// What does not belong is replaced, what is too long is cut between characters.
    pub fn new(command: &str, middle: &[&str], trailing: Option<&str>) -> Line {
        let mut text = String::from(command);
        for param in middle {
            text.push(' ');
            if param.is_empty() || param.starts_with(':') {
                text.push('_');
            }
            text.push_str(&param.replace(' ', "_"));
        }
        if let Some(trailing) = trailing {
            text.push_str(" :");
            text.push_str(trailing);
        }
        text = text.replace(['\r', '\n', '\0'], " ");
        text.truncate(text.floor_char_boundary(LINE_OUT - 2));
        Line {
            text,
            is_secret: false,
        }
    }

    /// A line whose parameters the log must not show.
    pub fn secret(command: &str, middle: &[&str], trailing: Option<&str>) -> Line {
        Line {
            is_secret: true,
            ..Line::new(command, middle, trailing)
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.text.as_bytes(), b"\r\n"].concat()
    }

    /// What the log may show.
    pub fn shown(&self) -> String {
        match self.text.split_once(' ') {
            Some((command, _)) if self.is_secret => format!("{command} ***"),
            _ => self.text.clone(),
        }
    }
}

/// The bytes of text that fit into one PRIVMSG or NOTICE to `target`, behind `source` bytes of source.
pub fn text_budget(target: &str, source: usize) -> usize {
    LINE_OUT.saturating_sub(":".len() + source + " PRIVMSG ".len() + target.len() + " :\r\n".len())
}

/// Cuts text into pieces of at most `budget` bytes, at blanks if any, never inside a character.
pub fn split(text: &str, budget: usize) -> Vec<&str> {
    // No character is longer than four bytes, so each round takes at least one.
    let budget = budget.max(4);
    let mut pieces = Vec::new();
    let mut rest = text.trim_matches(' ');
    while !rest.is_empty() {
        let hard = rest.floor_char_boundary(budget);
        let soft = rest
            .as_bytes()
            .get(..=hard)
            .and_then(|head| head.iter().rposition(|&b| b == b' '));
        let (piece, after) = rest.split_at(soft.unwrap_or(hard));
        pieces.push(piece.trim_end_matches(' '));
        rest = after.trim_start_matches(' ');
    }
    pieces
}

/// The command in `nick: command` or `nick, command`, if the text is addressed so.
pub fn addressed<'a>(text: &'a str, nick: &Name, casemapping: Casemapping) -> Option<&'a str> {
    let (name, rest) = text.trim_start().split_once([':', ','])?;
    let is_ours = casemapping.name(name.trim_end()) == *nick;
    is_ours.then(|| rest.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    fn feed(chunks: &[&[u8]]) -> Vec<Message> {
        let mut buffer = LineBuffer::default();
        chunks.iter().flat_map(|c| buffer.feed(c)).collect()
    }

    #[test]
    fn any_split_of_the_bytes_gives_the_same_lines() {
        let bytes = ":a!b@c PRIVMSG #x :h\u{e9}llo\r\n\r\nPING :1\n:s 001 bot :hi\r\n".as_bytes();
        let whole = feed(&[bytes]);
        assert_eq!(whole.len(), 3);
        for i in 0..bytes.len() {
            for j in i..bytes.len() {
                assert_eq!(
                    feed(&[&bytes[..i], &bytes[i..j], &bytes[j..]]),
                    whole,
                    "{i} {j}"
                );
            }
        }
    }

    #[test]
    fn a_line_without_end_is_dropped_in_bounded_memory() {
        let mut buffer = LineBuffer::default();
        for _ in 0..100 {
            assert_eq!(buffer.feed(&[b'x'; 4096]), []);
            assert!(buffer.bytes.capacity() <= 2 * LINE_IN);
        }
        assert_eq!(
            buffer.feed(b"x\nPING :1\r\n"),
            [Message::parse("PING 1").unwrap()]
        );
        let longest = [&[b'x'; LINE_IN], &b"\n"[..]].concat();
        assert_eq!(
            (
                buffer.feed(&longest).len(),
                buffer.feed(&[b"x", &longest[..]].concat()).len()
            ),
            (1, 0)
        );
    }

    #[test]
    fn invalid_utf8_is_read_as_latin_1() {
        assert_eq!(
            feed(&[b"PRIVMSG x :gr\xfc\xdfe\n"])[0].params[1],
            "gr\u{fc}\u{df}e"
        );
    }

    #[test]
    fn messages_parse() {
        let m = Message::parse("@a=b\\sc;account=joe;+x :n!u@h PRIVMSG #c  :a :b").unwrap();
        assert_eq!(m.tag("a").as_deref(), Some("b c"));
        assert_eq!(m.tag("account").as_deref(), Some("joe"));
        assert_eq!(m.tag("+x").as_deref(), Some(""));
        assert_eq!(m.tag("x"), None);
        assert_eq!(unescape_tag("a\\:\\\\\\n\\x\\"), "a;\\\nx");
        assert_eq!((m.nick(), m.source.as_str()), ("n", "n!u@h"));
        assert_eq!(m.params, ["#c", "a :b"]);
        let m = Message::parse(":irc.example 353 bot = #x:y :@a +b").unwrap();
        assert_eq!(m.params, ["bot", "=", "#x:y", "@a +b"]);
        assert_eq!(Message::parse("ping").unwrap().command, "PING");
        for nothing in ["", " ", ":only.source", "@tag=1", "@t :s "] {
            assert_eq!(Message::parse(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn an_outgoing_line_cannot_hold_what_the_wire_forbids() {
        let line = Line::new("PRIVMSG", &["#a b"], Some("x\r\nQUIT :gone\0"));
        assert_eq!(line.bytes(), b"PRIVMSG #a_b :x  QUIT :gone \r\n");
        assert_eq!(
            Line::new("JOIN", &["", ":k"], None).bytes(),
            b"JOIN _ _:k\r\n"
        );
        let long = Line::new("PRIVMSG", &["#c"], Some(&"\u{e9}".repeat(400))).bytes();
        assert!(long.len() <= LINE_OUT && std::str::from_utf8(&long).is_ok());
    }

    #[test]
    fn a_secret_line_shows_its_command_only() {
        assert_eq!(Line::secret("PASS", &["hunter2"], None).shown(), "PASS ***");
        assert_eq!(
            Line::secret("PASS", &["hunter2"], None).bytes(),
            b"PASS hunter2\r\n"
        );
    }

    #[test]
    fn keys_that_we_are_told_are_not_shown() {
        for (line, shown) in [
            (":s MODE #c +kl key 5", ":s MODE #c ***"),
            (":s MODE #c +o joe", ":s MODE #c +o joe"),
            (":s 324 bot #c +k key", ":s 324 bot #c ***"),
            (":s 324 bot #c +nt", ":s 324 bot #c +nt"),
            (
                ":a!b@c PRIVMSG bot :Join  #c key more",
                "PRIVMSG bot Join ***",
            ),
            (
                ":a!b@c PRIVMSG bot :jion #c key more",
                "PRIVMSG bot jion ***",
            ),
            (":a!b@c PRIVMSG bot :join#c key", "PRIVMSG bot join ***"),
            (":a!b@c PRIVMSG bot :join:#c key", "PRIVMSG bot join ***"),
            (":a!b@c PRIVMSG bot :jion c key", "PRIVMSG bot jion ***"),
            (":a!b@c NOTICE bot :join #c\tkey", "NOTICE bot join ***"),
            (":a!b@c PRIVMSG bot :go #c,key", "PRIVMSG bot go #c ***"),
            (
                ":a!b@c PRIVMSG #x :bot: jo\u{2}in\u{2}\u{a0}#c key",
                "PRIVMSG #x bot: join ***",
            ),
            (
                ":a!b@c PRIVMSG #x :bot: status #c",
                "PRIVMSG #x bot: status #c",
            ),
        ] {
            let shown = shown.trim_start_matches(":s ");
            assert!(
                Message::parse(line).unwrap().shown().ends_with(shown),
                "{line}"
            );
        }
    }

    #[test]
    fn text_is_split_at_blanks_and_never_inside_a_character() {
        assert_eq!(split("one two three", 8), ["one two", "three"]);
        assert_eq!(split("one two", 7), ["one two"]);
        assert_eq!(split("onetwothree", 4), ["onet", "woth", "ree"]);
        assert_eq!(split("", 4), Vec::<&str>::new());
        assert_eq!(split("  abcdef ", 4), ["abcd", "ef"]);
        let text = "\u{e4}\u{1f600} b\u{20ac}c d".repeat(50);
        for budget in 0..60 {
            let pieces = split(&text, budget);
            assert!(pieces.iter().all(|p| p.len() <= budget.max(4)), "{budget}");
            let joined: String = pieces.concat();
            assert_eq!(joined.replace(' ', ""), text.replace(' ', ""));
        }
    }

    #[test]
    fn a_relayed_line_of_the_whole_budget_just_fits() {
        let text = "x".repeat(text_budget("#c", "bot!u@h".len()));
        assert_eq!(format!(":bot!u@h PRIVMSG #c :{text}\r\n").len(), LINE_OUT);
    }

    #[test]
    fn addressing_is_by_nick_and_colon_or_comma() {
        let command = |text, nick| {
            let nick = Casemapping::Rfc1459.name(nick);
            addressed(text, &nick, Casemapping::Rfc1459)
        };
        assert_eq!(command("Bot[1]:  status", "bot{1}"), Some("status"));
        assert_eq!(command("bot , help", "bot"), Some("help"));
        assert_eq!(command("bot help", "bot"), None);
        assert_eq!(command("robot: help", "bot"), None);
        assert_eq!(command("bot:", "bot"), Some(""));
    }

    #[test]
    fn fuzz_wire() {
        let seed = b"@a=b\\:c;d :n!u@h PRIVMSG #chan :hello \xc3\xa9 world\r\nPING :x\r\n:s 353 a = #b :@c\r\n";
        fuzz(&[seed], |bytes, random| {
            let (one, two) = bytes.split_at(random.below(bytes.len()));
            let messages = feed(&[one, two]);
            assert_eq!(messages, feed(&[bytes]));
            for message in messages {
                assert!(!message.shown().contains('\n'));
                let echo = Line::new(
                    "PRIVMSG",
                    &[message.nick()],
                    message.params.last().map(String::as_str),
                )
                .bytes();
                assert!(echo.len() <= LINE_OUT);
                assert!(!echo[..echo.len() - 2].iter().any(|b| b"\r\n\0".contains(b)));
            }
            let text = String::from_utf8_lossy(bytes);
            let budget = random.below(600);
            assert!(
                split(&text, budget)
                    .iter()
                    .all(|piece| !piece.is_empty() && piece.len() <= budget.max(4))
            );
        });
    }
}
