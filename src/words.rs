//! Words as a shell would cut them, in `bot.conf` and in commands. Pure.

use crate::sanitize::sanitize;

/// All words of a text: quotes of both kinds keep blanks, a backslash keeps the next character.
/// The error is a quote that is not closed.
pub fn split_words(mut text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    while let Some((word, rest)) = first_word(text)? {
        words.push(word);
        text = rest;
    }
    Ok(words)
}

/// The first word, and the text behind it as it stands.
pub fn first_word(text: &str) -> Result<Option<(String, &str)>, String> {
    let text = text.trim_start();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, ' ' | '\t') => return Ok(Some((word, text[at..].trim_start()))),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), '\\') => word.push(chars.next().map_or('\\', |(_, c)| c)),
            _ => word.push(c),
        }
    }
    match quote {
        Some(open) => Err(format!("the quote {open} is not closed")),
        None if text.is_empty() => Ok(None),
        None => Ok(Some((word, ""))),
    }
}

/// A name as it must be typed: quoted where it holds a blank, a quote or a backslash.
pub fn quote(name: &str) -> String {
    let name = sanitize(name);
    if name.is_empty() || name.contains([' ', '"', '\'', '\\']) {
        let escaped = name.replace('\\', r"\\").replace('"', "\\\"");
        format!("\"{escaped}\"")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_in_a_shell() {
        assert_eq!(
            split_words("a \"b c\" 'd \\' e\\ f ''").unwrap(),
            ["a", "b c", "d \\", "e f", ""]
        );
        let unclosed = split_words("a \"b").unwrap_err();
        assert_eq!(unclosed, "the quote \" is not closed");
        assert_eq!(split_words("  ").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_quoted_reads_back() {
        for name in ["a", "a b", "a\"b", "it's", r"dir\a b", "a\"'\\'\"", ""] {
            assert_eq!(split_words(&quote(name)).unwrap(), [name]);
        }
    }
}
