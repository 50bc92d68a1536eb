//! Outside text made safe to show. One set of forbidden characters serves the wire and the log;
//! here is the only place that names it.

/// Characters of one outside text in a line: a reason, a step, a name.
pub const EXCERPT: usize = 120;
/// Characters of an error of the master, which may list the choices that there are.
const ERROR: usize = 600;

/// Whether a character could make a line read as another, or be taken for a command by a terminal
/// or a client: C0 and C1 controls (IRC's formatting codes among them), line separators, and the
/// marks and overrides of the Unicode bidirectional algorithm (UAX #9) and other invisible ones.
pub fn is_forbidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The text on one line: forbidden characters and runs of blanks become one blank.
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || is_forbidden(c));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// [`one_line`], cut at [`EXCERPT`] characters.
pub fn sanitize(text: &str) -> String {
    cut(&one_line(text), EXCERPT)
}

/// [`one_line`], cut late: someone can act on an error only if they see most of it.
pub fn sanitize_error(text: &str) -> String {
    cut(&one_line(text), ERROR)
}

/// The text for the log: forbidden characters are shown as escapes, so that nothing is lost and
/// nothing can forge a line.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_forbidden(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// At most that many characters, with a mark where some are left out.
pub fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Removes the escape sequences with which programs colour their output on a terminal (ECMA-48):
/// `ESC [ … letter`, `ESC ] … BEL` or `ESC ] … ESC \`, and ESC with one character.
pub fn strip_ansi(text: &str) -> String {
    let mut pieces = text.split('\u{1b}');
    let mut plain = String::from(pieces.next().unwrap_or(""));
    let mut in_command = false;
    for piece in pieces {
        // What ends an operating system command begins with the ESC of its end.
        let is_end = std::mem::take(&mut in_command) && piece.starts_with('\\');
        let end = match piece.chars().next() {
            _ if is_end => Some(1),
            Some('[') => {
                let is_final = |c: char| matches!(c, '\u{40}'..='\u{7e}');
                piece[1..].find(is_final).map(|at| at + 2)
            }
            Some(']') => {
                let bell = piece.find('\u{7}').map(|at| at + 1);
                in_command = bell.is_none();
                bell
            }
            Some(c) => Some(c.len_utf8()),
            None => None,
        };
        plain.push_str(&piece[end.unwrap_or(piece.len())..]);
    }
    plain
}

/// Removes IRC's formatting codes, so that a text can be compared: services wrap nicks and
/// commands in bold. A colour is one or two digits, perhaps a comma and two more.
pub fn strip_formatting(text: &str) -> String {
    let mut pieces = text.split('\u{3}');
    let mut plain = String::from(pieces.next().unwrap_or(""));
    for piece in pieces {
        let foreground = leading_digits(piece);
        let rest = &piece[foreground..];
        let background = rest.strip_prefix(',').map_or(0, leading_digits);
        if foreground > 0 && background > 0 {
            plain.push_str(&rest[1 + background..]);
        } else {
            plain.push_str(rest);
        }
    }
    plain.replace('\t', " ").replace(char::is_control, "")
}

/// How many of the first two bytes are digits, before the first that is none.
fn leading_digits(text: &str) -> usize {
    let bytes = text.bytes().take(2);
    bytes.take_while(u8::is_ascii_digit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_colours_are_taken_out() {
        for (text, plain) in [
            ("\u{1b}[1;31mred\u{1b}[0m text", "red text"),
            ("\u{1b}]0;title\u{7}x\u{1b}]8;;u\u{1b}\\y", "xy"),
            ("a\u{1b}(Bb\u{1b}", "aBb"),
            ("cut \u{1b}[31", "cut "),
            ("\u{1b}\u{e9}z", "z"),
        ] {
            assert_eq!(strip_ansi(text), plain, "{text:?}");
        }
    }

    #[test]
    fn outside_text_loses_what_could_harm() {
        let hostile = "a\r\nQUIT\0\u{2}b\u{3}04,01c\u{202e}d \t e";
        assert_eq!(sanitize(hostile), "a QUIT b 04,01c d e");
        assert_eq!(sanitize(&"\u{e9}".repeat(500)).chars().count(), EXCERPT + 1);
        assert_eq!(sanitize("\u{1}\u{2}"), "");
        assert_eq!(sanitize("a\u{61c}b\u{2028}c\u{e0041}d"), "a b c d");
    }

    #[test]
    fn the_log_shows_forbidden_characters_as_escapes() {
        assert_eq!(
            escape("a\nb\u{202e}c\u{2028}d"),
            "a\\nb\\u{202e}c\\u{2028}d"
        );
        assert_eq!(escape("plain é"), "plain é");
    }

    #[test]
    fn formatting_is_no_part_of_the_words() {
        assert_eq!(
            strip_formatting("\u{2}RECOVER\u{2} \u{3}04red\u{f}"),
            "RECOVER red"
        );
        assert_eq!(strip_formatting("\u{3}04,01a\u{3}b\u{3}1,c\u{3}"), "ab,c");
    }
}
