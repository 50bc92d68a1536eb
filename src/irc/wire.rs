//! IRC bytes to messages and back, by RFC 1459, RFC 2812 and the IRCv3 message-tags text.
//!
//! Pure: no socket, no clock. What the wire forbids cannot be built here: an outgoing [`Line`]
//! holds no CR, LF or NUL and is never too long, whoever made it.

/// The most a server may send before LF: 8,191 bytes of tags (IRCv3) and 512 of message (RFC 1459).
pub const LINE_IN: usize = 8191 + 512;
/// The most anyone may send, CR LF included, as the server relays it (RFC 1459, section 2.3).
pub const LINE_OUT: usize = 512;
/// What stands for what behind a backslash in a tag's value (IRCv3); all else stands for itself.
const ESCAPES: [(char, char); 4] = [(':', ';'), ('s', ' '), ('r', '\r'), ('n', '\n')];

/// Cuts the byte stream into lines. Memory is bounded by [`LINE_IN`].
#[derive(Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    dropping: bool,
}

/// A line that was longer than [`LINE_IN`] and has been dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl LineBuffer {
    /// Takes a chunk and returns the lines that it completes, without their ends: LF, or CR LF.
    /// Empty lines are nothing.
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<Result<String, TooLong>> {
        let mut lines = Vec::new();
        for part in chunk.split_inclusive(|&b| b == b'\n') {
            let body = part.strip_suffix(b"\n").unwrap_or(part);
            self.dropping |= self.bytes.len() + body.len() > LINE_IN;
            match self.dropping {
                true => self.bytes = Vec::new(),
                false => self.bytes.extend_from_slice(body),
            }
            if body.len() < part.len() {
                match decode(&std::mem::take(&mut self.bytes)).trim_end_matches('\r') {
                    _ if std::mem::take(&mut self.dropping) => lines.push(Err(TooLong)),
                    "" => {}
                    line => lines.push(Ok(line.to_owned())),
                }
            }
        }
        lines
    }
}

/// UTF-8, or else Latin-1: what people without UTF-8 mostly send, and it cannot fail.
pub fn decode(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(|&b| char::from(b)).collect(), str::to_owned)
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// IRCv3 tags, unescaped; a tag without a value has an empty one.
    pub tags: Vec<(String, String)>,
    /// `nick!user@host`, a server's name, or empty.
    pub source: String,
    /// A command in capitals, or three digits.
    pub command: String,
    /// Parameters; the last may hold blanks.
    pub params: Vec<String>,
}

impl Message {
    /// Parses one line. Lenient: double blanks, a missing source and missing parameters are fine;
    /// `None` is a line without a command.
    pub fn parse(line: &str) -> Option<Message> {
        let (tags, rest) = marked('@', line.trim_start_matches(' '));
        let (source, rest) = marked(':', rest);
        let (command, mut rest) = word(rest);
        let tags = tags.split(';').filter(|t| !t.is_empty()).map(parse_tag).collect();
        let (source, command) = (source.to_owned(), command.to_ascii_uppercase());
        let mut message = Message { tags, source, command, params: Vec::new() };
        while !rest.is_empty() {
            let (param, after) = rest.strip_prefix(':').map_or_else(|| word(rest), |last| (last, ""));
            message.params.push(param.to_owned());
            rest = after;
        }
        (!message.command.is_empty()).then_some(message)
    }

    /// The message as the log may show it: without channel keys, which people and servers tell us.
    pub fn shown(&self) -> String {
        let mut params = self.params.join(" ");
        let key = match self.command.as_str() {
            "MODE" if self.params.get(1).is_some_and(|modes| modes.contains('k')) => {
                Some(self.params[0].len() + 1 + self.params[1].len())
            }
            "PRIVMSG" => {
                let join = params.to_ascii_lowercase().find("join ").map(|i| i + "join ".len());
                join.and_then(|i| {
                    params[i..].trim_start().find(' ').map(|end| params.len() - params[i..].trim_start().len() + end)
                })
            }
            _ => None,
        };
        if let Some(end) = key.filter(|&end| end < params.len()) {
            params.replace_range(end.., " ***");
        }
        format!("{} {} {params}", self.source, self.command)
    }

    /// The nick of the source, or a server's name.
    pub fn nick(&self) -> &str {
        self.source.split(['!', '@']).next().unwrap_or("")
    }

    /// The last parameter, which is where servers put text for people.
    pub fn text(&self) -> &str {
        self.params.last().map_or("", String::as_str)
    }

    pub fn tag(&self, name: &str) -> Option<&str> {
        self.tags.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The first word and what follows its blanks.
fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').map_or((text, ""), |(word, rest)| (word, rest.trim_start_matches(' ')))
}

/// The first word if it begins with `mark`, or nothing, and the rest.
fn marked(mark: char, text: &str) -> (&str, &str) {
    text.strip_prefix(mark).map_or(("", text), word)
}

fn parse_tag(tag: &str) -> (String, String) {
    let (name, raw) = tag.split_once('=').unwrap_or((tag, ""));
    let mut value = String::new();
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        let escaped = |c| ESCAPES.iter().find(|e| e.0 == c).map_or(c, |e| e.1);
        value.extend(if c == '\\' { chars.next().map(escaped) } else { Some(c) });
    }
    (name.to_owned(), value)
}

/// An outgoing line. It holds nothing that the wire forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    text: String,
    secret: bool,
}

impl Line {
    /// A command and its parameters; only `trailing` may hold blanks, be empty or begin with `:`.
    /// What does not belong is replaced, what is too long is cut between characters.
    pub fn new(command: &str, middle: &[&str], trailing: Option<&str>) -> Line {
        let mut text = String::from(command);
        for param in middle {
            let first = if param.is_empty() {
                "*"
            } else if param.starts_with(':') {
                "_"
            } else {
                ""
            };
            text.extend([" ", first, &param.replace(' ', "_")]);
        }
        text.extend(trailing.map(|last| format!(" :{last}")));
        text = text.replace(['\r', '\n', '\0'], " ");
        text.truncate(text.floor_char_boundary(LINE_OUT - 2));
        Line { text, secret: false }
    }

    /// A line whose parameters the log must not show.
    pub fn secret(command: &str, middle: &[&str], trailing: Option<&str>) -> Line {
        Line { secret: true, ..Line::new(command, middle, trailing) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.text.as_bytes(), b"\r\n"].concat()
    }

    /// What the log may show.
    pub fn shown(&self) -> String {
        match self.text.split_once(' ') {
            Some((command, _)) if self.secret => format!("{command} ***"),
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
    while rest.len() > budget {
        let hard = rest.floor_char_boundary(budget);
        let soft = rest.as_bytes()[..=hard].iter().rposition(|&b| b == b' ').filter(|&i| i > 0);
        let (piece, after) = rest.split_at(soft.unwrap_or(hard));
        pieces.push(piece.trim_end_matches(' '));
        rest = after.trim_start_matches(' ');
    }
    pieces.extend(Some(rest).filter(|r| !r.is_empty()));
    pieces
}

/// How a server compares names (CASEMAPPING of ISUPPORT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Casemapping {
    /// Only the letters A to Z.
    Ascii,
    /// Also `[]\~` and `{}|^` (RFC 1459, section 2.2).
    #[default]
    Rfc1459,
    /// Also `[]\` and `{}|`.
    StrictRfc1459,
}

impl Casemapping {
    /// By its name in ISUPPORT; one that we do not know compares letters only.
    pub fn named(name: &str) -> Casemapping {
        match name {
            "rfc1459" => Casemapping::Rfc1459,
            "strict-rfc1459" => Casemapping::StrictRfc1459,
            _ => Casemapping::Ascii,
        }
    }

    pub fn fold(self, name: &str) -> String {
        let lower = |c: char| match c {
            '[' | ']' | '\\' if self != Casemapping::Ascii => char::from(c as u8 + 32),
            '~' if self == Casemapping::Rfc1459 => '^',
            c => c.to_ascii_lowercase(),
        };
        name.chars().map(lower).collect()
    }

    pub fn same(self, a: &str, b: &str) -> bool {
        self.fold(a) == self.fold(b)
    }
}

/// The command in `nick: command` or `nick, command`, if the text is addressed so.
pub fn addressed<'a>(text: &'a str, nick: &str, mapping: Casemapping) -> Option<&'a str> {
    let (name, rest) = text.trim_start().split_once([':', ','])?;
    mapping.same(name.trim_end(), nick).then(|| rest.trim())
}

/// A channel's name begins with one of these (CHANTYPES, with RFC 2812's list as the default).
pub fn is_channel(name: &str) -> bool {
    name.starts_with(['#', '&', '+', '!'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(chunks: &[&[u8]]) -> Vec<Result<String, TooLong>> {
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
                assert_eq!(feed(&[&bytes[..i], &bytes[i..j], &bytes[j..]]), whole, "{i} {j}");
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
        assert_eq!(buffer.feed(b"x\nPING :1\r\n"), [Err(TooLong), Ok("PING :1".into())]);
    }

    #[test]
    fn invalid_utf8_is_read_as_latin_1() {
        assert_eq!(feed(&[b"PRIVMSG x :gr\xfc\xdfe\n"]), [Ok("PRIVMSG x :gr\u{fc}\u{df}e".into())]);
    }

    #[test]
    fn messages_parse() {
        let m = Message::parse("@a=b\\sc;account=joe;+x :n!u@h PRIVMSG #c  :a :b").unwrap();
        assert_eq!(m.tag("a"), Some("b c"));
        assert_eq!(m.tag("+x"), Some(""));
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
        assert_eq!(Line::new("JOIN", &["", ":k"], None).bytes(), b"JOIN * _:k\r\n");
        let long = Line::new("PRIVMSG", &["#c"], Some(&"\u{e9}".repeat(400))).bytes();
        assert!(long.len() <= LINE_OUT && std::str::from_utf8(&long).is_ok());
    }

    #[test]
    fn a_secret_line_shows_its_command_only() {
        assert_eq!(Line::secret("PASS", &["hunter2"], None).shown(), "PASS ***");
        assert_eq!(Line::secret("PASS", &["hunter2"], None).bytes(), b"PASS hunter2\r\n");
    }

    #[test]
    fn keys_that_we_are_told_are_not_shown() {
        for (line, shown) in [
            (":s MODE #c +kl key 5", ":s MODE #c +kl ***"),
            (":s MODE #c +o joe", ":s MODE #c +o joe"),
            (":a!b@c PRIVMSG bot :Join  #c key more", "PRIVMSG bot Join  #c ***"),
            (":a!b@c PRIVMSG #x :bot: join #c", "PRIVMSG #x bot: join #c"),
        ] {
            let shown = shown.trim_start_matches(":s ");
            assert!(Message::parse(line).unwrap().shown().ends_with(shown), "{line}");
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
    fn casemappings_differ_where_they_should() {
        use Casemapping::{Ascii, Rfc1459, StrictRfc1459};
        assert!(Rfc1459.same("Bot[]\\~", "bot{}|^"));
        assert!(StrictRfc1459.same("Bot[]\\", "bot{}|") && !StrictRfc1459.same("~", "^"));
        assert!(Ascii.same("BOT", "bot") && !Ascii.same("[", "{"));
    }

    #[test]
    fn addressing_is_by_nick_and_colon_or_comma() {
        let m = Casemapping::Rfc1459;
        assert_eq!(addressed("Bot[1]:  status", "bot{1}", m), Some("status"));
        assert_eq!(addressed("bot , help", "bot", m), Some("help"));
        assert_eq!(addressed("bot help", "bot", m), None);
        assert_eq!(addressed("robot: help", "bot", m), None);
        assert_eq!(addressed("bot:", "bot", m), Some(""));
    }

    #[test]
    fn mutated_input_never_panics_and_stays_within_limits() {
        let seed = b"@a=b\\:c;d :n!u@h PRIVMSG #chan :hello \xc3\xa9 world\r\nPING :x\r\n:s 353 a = #b :@c\r\n";
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for _ in 0..20_000 {
            let mut bytes = seed.to_vec();
            for _ in 0..random() % 8 {
                let at = random() % bytes.len();
                match random() % 3 {
                    0 => bytes[at] = random() as u8,
                    1 => bytes.insert(at, random() as u8),
                    _ => drop(bytes.remove(at)),
                }
            }
            let cut = random() % bytes.len();
            for line in feed(&[&bytes[..cut], &bytes[cut..]]).into_iter().flatten() {
                assert!(!line.contains('\n'));
                if let Some(message) = Message::parse(&line) {
                    let echo = Line::new("PRIVMSG", &[message.nick()], Some(message.text())).bytes();
                    assert!(echo.len() <= LINE_OUT);
                    assert!(!echo[..echo.len() - 2].iter().any(|b| b"\r\n\0".contains(b)));
                }
            }
        }
    }
}
